//! The registers of virtio over MMIO (virtio 1.3, section 4.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::QueueT;
use vm_memory::GuestMemory;

use super::Transport;
use crate::state::check_version;
use crate::{Cause, Core, CoreState, Device, DeviceError, Interrupt, Line, Progress, StateError};

/// Where a driver rings, for whoever has the kernel listen there.
pub const DOORBELL: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"SKIF");
/// What a length of shared memory reads as where there is none.
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// The interrupt of a window: why it was raised, and the line.
#[derive(Debug)]
struct WindowInterrupt {
    causes: AtomicU32,
    line: Box<dyn Line>,
}

impl Interrupt for WindowInterrupt {
    fn signal(&self, cause: Cause) {
        let bit = match cause {
            Cause::Queue(_) => VIRTIO_MMIO_INT_VRING,
            Cause::Config => VIRTIO_MMIO_INT_CONFIG,
        };
        self.causes.fetch_or(bit, Ordering::SeqCst);
        self.line.raise();
    }
}

/// A device's window into guest-physical memory.
#[derive(Debug)]
pub struct Window<M> {
    core: Core<M>,
    interrupt: Arc<WindowInterrupt>,
    selected: Selected,
}

/// What the driver's next accesses are about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

/// A window with its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowState {
    /// The version of this struct.
    pub version: u32,
    selected: Selected,
    interrupt_causes: u32,
    /// The device.
    pub core: CoreState,
}

impl WindowState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;
}

impl<M: GuestMemory> Window<M> {
    /// A window for a device that raises `line`.
    #[must_use]
    pub fn new(device: Box<dyn Device<M>>, memory: Arc<M>, line: Box<dyn Line>) -> Self {
        let interrupt = Arc::new(WindowInterrupt {
            causes: AtomicU32::new(0),
            line,
        });
        Self {
            core: Core::new(device, memory, Arc::<WindowInterrupt>::clone(&interrupt)),
            interrupt,
            selected: Selected::default(),
        }
    }

    /// Takes the device's configuration anew, and tells the driver.
    pub fn refresh(&mut self) {
        self.core.refresh();
    }

    /// The device behind it.
    #[must_use]
    pub const fn core(&self) -> &Core<M> {
        &self.core
    }

    /// Why the device needs a reset, once.
    pub fn take_failure(&mut self) -> Option<DeviceError> {
        self.core.take_failure()
    }

    /// All that it holds.
    #[must_use]
    pub fn state(&self) -> WindowState {
        WindowState {
            version: WindowState::VERSION,
            selected: self.selected,
            interrupt_causes: self.interrupt.causes.load(Ordering::SeqCst),
            core: self.core.state(),
        }
    }

    /// Takes a saved state.
    ///
    /// # Errors
    /// When it is not this device's.
    pub fn restore(&mut self, state: &WindowState) -> Result<(), StateError> {
        check_version("window", state.version, WindowState::VERSION)?;
        self.core.restore(&state.core)?;
        self.selected = state.selected;
        self.interrupt
            .causes
            .store(state.interrupt_causes, Ordering::SeqCst);
        Ok(())
    }

    fn queue(&self) -> usize {
        usize::try_from(self.selected.queue).unwrap_or(usize::MAX)
    }

    fn register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.core.kind().number(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => page(self.core.offered(), self.selected.device_features),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .core
                .queue(self.queue())
                .map_or(0, |queue| u32::from(queue.ring().max_size())),
            VIRTIO_MMIO_QUEUE_READY => self
                .core
                .queue(self.queue())
                .map_or(0, |queue| u32::from(queue.is_ready())),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.causes.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.core.status(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.core.generation(),
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => NO_SHARED_MEMORY,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        let queue = self.queue();
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.selected.device_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.selected.driver_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                self.core.set_features(self.selected.driver_features, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.selected.queue = value,
            VIRTIO_MMIO_QUEUE_NUM => {
                // What no size can be is left as it is.
                let size = u16::try_from(value).unwrap_or(0);
                self.core.change_queue(queue, |ring| ring.set_size(size));
            }
            VIRTIO_MMIO_QUEUE_READY => {
                self.core
                    .change_queue(queue, |ring| ring.set_ready(value == 1));
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => self
                .core
                .change_queue(queue, |ring| ring.set_desc_table_address(Some(value), None)),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => self
                .core
                .change_queue(queue, |ring| ring.set_desc_table_address(None, Some(value))),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => self
                .core
                .change_queue(queue, |ring| ring.set_avail_ring_address(Some(value), None)),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self
                .core
                .change_queue(queue, |ring| ring.set_avail_ring_address(None, Some(value))),
            VIRTIO_MMIO_QUEUE_USED_LOW => self
                .core
                .change_queue(queue, |ring| ring.set_used_ring_address(Some(value), None)),
            VIRTIO_MMIO_QUEUE_USED_HIGH => self
                .core
                .change_queue(queue, |ring| ring.set_used_ring_address(None, Some(value))),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.causes.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        self.core.set_status(value);
        if value == 0 {
            self.selected = Selected::default();
            self.interrupt.causes.store(0, Ordering::SeqCst);
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.core.config().get(offset..))
            .unwrap_or_default();
        for (to, byte) in data.iter_mut().zip(from) {
            *to = *byte;
        }
    }
}

impl<M: GuestMemory + Send + Sync + std::fmt::Debug> Transport for Window<M> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.read_config(offset, data);
        } else if let (Ok(offset), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // Configurations are read-only: no device here has a field to write.
        if let (Ok(offset), Ok(value)) = (u32::try_from(offset), data.try_into()) {
            self.set_register(offset, u32::from_le_bytes(value));
        }
    }

    fn notify(&mut self, queue: usize) -> Progress {
        self.core.notify(queue)
    }

    fn host_ready(&mut self) -> Progress {
        self.core.host_ready()
    }
}

/// 32 bits of 64.
fn page(value: u64, page: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match page {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;
    use crate::testing::{Bench, Desc, MEMORY};

    fn bench() -> Bench {
        Bench::new(Box::new(Entropy), 8)
    }

    #[test]
    fn a_window_tells_what_it_is() {
        let mut bench = bench();
        assert_eq!(bench.read(0x00), 0x7472_6976);
        assert_eq!(bench.read(0x04), 2);
        assert_eq!(bench.read(0x08), 4);
        assert_eq!(bench.read(0x34), 256);
        bench.write(0x30, 1);
        assert_eq!(bench.read(0x34), 0, "there is no queue 1");
        bench.write(0x14, 1);
        assert_eq!(bench.read(0x10), 1, "VERSION_1");
        bench.write(0x14, 2);
        assert_eq!(bench.read(0x10), 0);
        assert_eq!(bench.read(0xb0), u32::MAX, "no shared memory");
    }

    #[test]
    fn registers_have_32_bits() {
        let mut bench = bench();
        for length in [1, 2, 8] {
            let mut data = vec![0xee; length];
            bench.window.read(0, &mut data);
            assert_eq!(data, vec![0; length]);
            bench.window.write(0x70, &vec![1; length]);
        }
        assert_eq!(bench.status(), 0);
        let mut data = [0xee; 4];
        bench.window.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_driver_takes_its_steps_in_order() {
        let mut bench = bench();
        // Ready before the features are agreed on.
        bench.write(0x70, 1 | 2 | 4);
        assert_eq!(bench.status(), 0);
        bench.write(0x70, 3);
        // Features without VERSION_1.
        bench.write(0x70, 11);
        assert_eq!(bench.status(), 3);
        // Features that were not offered.
        bench.write(0x24, 1);
        bench.write(0x20, 3);
        bench.write(0x70, 11);
        assert_eq!(bench.status(), 3);
        bench.write(0x20, 1);
        bench.write(0x70, 11);
        assert_eq!(bench.status(), 11);
        // No step back but the whole way.
        bench.write(0x70, 3);
        assert_eq!(bench.status(), 11);
        bench.write(0x70, 0);
        assert_eq!(bench.status(), 0);
    }

    #[test]
    fn a_queue_is_changed_only_while_it_is_set_up() {
        let mut bench = bench();
        bench.write(0x44, 1);
        assert_eq!(bench.read(0x44), 0, "before the features");
        bench.start();
        bench.write(0x44, 0);
        assert_eq!(bench.read(0x44), 1, "after the driver is ready");
    }

    #[test]
    fn rings_outside_of_memory_need_a_reset() {
        let mut bench = bench();
        bench.write(0x70, 3);
        bench.write(0x24, 1);
        bench.write(0x20, 1);
        bench.write(0x70, 11);
        bench.write(0x80, u32::try_from(MEMORY).unwrap());
        bench.write(0x44, 1);
        bench.write(0x70, 15);
        assert_eq!(bench.status(), 15 | 0x40);
        assert_eq!(bench.read(0x60), 2);
        bench.write(0x64, 2);
        assert_eq!(bench.read(0x60), 0);
        assert_eq!(bench.window.notify(0), Progress::Done);
    }

    #[test]
    fn a_state_moves_to_another_window() {
        let mut bench = bench();
        bench.start();
        assert_eq!(bench.request(&[Desc::write(0x8000, 8)]), [(0, 8)]);
        let text = serde_json::to_string(&bench.window.state()).unwrap();
        let state: WindowState = serde_json::from_str(&text).unwrap();

        let line = crate::testing::CountingLine::default();
        let memory = Arc::new(bench.driver.memory.clone());
        let mut other = Window::new(Box::new(Entropy), memory, Box::new(line));
        other.restore(&state).unwrap();
        assert_eq!(other.state(), state);
        bench.window = other;
        assert_eq!(bench.request(&[Desc::write(0x8000, 9)]), [(0, 9)]);

        let mut newer = state.clone();
        newer.version += 1;
        let error = bench.window.restore(&newer).unwrap_err();
        assert!(matches!(error, StateError::Version { found: 2, .. }));
        let mut wrong = state;
        wrong.core.queues[0].used = MEMORY;
        let error = bench.window.restore(&wrong).unwrap_err();
        assert!(error.to_string().contains("outside of memory"), "{error}");
    }
}
