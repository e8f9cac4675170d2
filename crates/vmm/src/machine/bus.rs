use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skiff_kvm::arch::layout;
use skiff_kvm::{Bus, GuestExit, Outcome, Ram};
use skiff_virtio::{Transport, mmio::Window};

use super::serial::SerialPort;

/// A device's window and its lock: vCPUs use its registers, the devices'
/// thread its queues.
pub(super) type Shared = Arc<Mutex<Window<Ram>>>;

/// What is in the guest's address space beside its memory.
#[derive(Debug)]
pub(super) struct MachineBus {
    windows: Vec<Shared>,
    serial: Option<Mutex<SerialPort>>,
}

impl MachineBus {
    pub(super) fn new(windows: Vec<Shared>, serial: Option<SerialPort>) -> Self {
        Self {
            windows,
            serial: serial.map(Mutex::new),
        }
    }

    /// The window at an address, and the offset into it.
    fn window(&self, address: u64) -> Option<(MutexGuard<'_, Window<Ram>>, u64)> {
        let offset = address.checked_sub(layout::DEVICES)?;
        let index = usize::try_from(offset / layout::DEVICE_BYTES).ok()?;
        let window = self.windows.get(index)?;
        Some((lock(window), offset % layout::DEVICE_BYTES))
    }

    fn serial(&self, port: u16) -> Option<(MutexGuard<'_, SerialPort>, u8)> {
        let offset = port.checked_sub(layout::SERIAL_PORT)?;
        if offset >= layout::SERIAL_PORTS {
            return None;
        }
        let serial = self.serial.as_ref()?;
        Some((lock(serial), u8::try_from(offset).ok()?))
    }

    pub(super) fn serial_dropped(&self) -> u64 {
        self.serial
            .as_ref()
            .map_or(0, |serial| lock(serial).dropped())
    }

    pub(super) fn take_failures(&self) -> Vec<String> {
        let failure = |window: &Shared| {
            let mut window = lock(window);
            let kind = window.core().kind();
            let error = window.take_failure()?;
            Some(format!("{kind:?}: {}", skiff_base::chain(&error)))
        };
        self.windows.iter().filter_map(failure).collect()
    }
}

/// A device that panicked is as its last call left it: nothing here relies on
/// more, and the guest is the only one that it can confuse.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus for MachineBus {
    fn read(&self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((mut window, offset)) => window.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, address: u64, data: &[u8]) -> Outcome {
        if let Some((mut window, offset)) = self.window(address) {
            window.write(offset, data);
        }
        Outcome::Continue
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, self.serial(port)) {
            // The keyboard controller's buffers are empty.
            (layout::RESET_PORT, _) => data.fill(0),
            // A string instruction comes as one access of all its bytes.
            (_, Some((mut serial, offset))) => {
                data.fill_with(|| serial.read(offset));
            }
            (_, None) => {}
        }
    }

    fn port_write(&self, port: u16, data: &[u8]) -> Outcome {
        match (port, data) {
            (layout::RESET_PORT, [layout::RESET_VALUE]) => Outcome::Exit(GuestExit::Reset),
            (layout::SLEEP_PORT, [layout::SLEEP_OFF]) => Outcome::Exit(GuestExit::PowerOff),
            _ => {
                if let Some((mut serial, offset)) = self.serial(port) {
                    data.iter().for_each(|byte| serial.write(offset, *byte));
                }
                Outcome::Continue
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_reads_as_ones_and_takes_writes() {
        let bus = MachineBus::new(Vec::new(), None);
        for address in [0, layout::DEVICES, layout::DEVICES + 0x1000, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4]);
            assert_eq!(bus.write(address, &data), Outcome::Continue);
        }
        for port in [0, layout::SERIAL_PORT, 0xffff] {
            let mut data = [0; 1];
            bus.port_read(port, &mut data);
            assert_eq!(data, [0xff]);
            assert_eq!(bus.port_write(port, &[1]), Outcome::Continue);
        }
    }

    #[test]
    fn the_guest_can_end_itself_in_two_ways() {
        let bus = MachineBus::new(Vec::new(), None);
        assert_eq!(
            bus.port_write(layout::RESET_PORT, &[layout::RESET_VALUE]),
            Outcome::Exit(GuestExit::Reset)
        );
        assert_eq!(
            bus.port_write(layout::SLEEP_PORT, &[layout::SLEEP_OFF]),
            Outcome::Exit(GuestExit::PowerOff)
        );
        for (port, value) in [(layout::RESET_PORT, 0xfd), (layout::SLEEP_PORT, 0)] {
            assert_eq!(bus.port_write(port, &[value]), Outcome::Continue);
        }
    }
}
