//! The devices' thread: it waits for doorbells, and works on queues.
//!
//! ```text
//! spawn ─▶ paused ◀── pause / resume ──▶ working ──▶ ended (dropped)
//! ```

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use skiff_kvm::GuestExit;
use skiff_virtio::{Progress, Transport};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use super::bus::lock;
use super::devices::Attached;
use super::ending::Ending;

/// What the control event has for data: nothing else has that number.
const CONTROL: u64 = u64::MAX;
/// How many events are taken at once.
const EVENTS: usize = 32;
const EVENT_FLAGS: i32 = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Pause,
    Work,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Paused,
    Working,
    Ended,
}

#[derive(Debug)]
struct Control {
    /// What is wanted, and what is.
    state: Mutex<(Command, Phase)>,
    changed: Condvar,
    wake: EventFd,
}

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub(super) struct IoThread {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts it, paused, and does `first` in it before anything else. That
    /// this fails, or a panic, is the guest's end: nobody would serve its
    /// devices.
    pub(super) fn spawn(
        devices: Vec<Attached>,
        ending: Arc<Ending>,
        first: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<Self, MachineError> {
        let wake = EventFd::new(EVENT_FLAGS).map_err(MachineError::io("get an event"))?;
        let control = Arc::new(Control {
            state: Mutex::new((Command::Pause, Phase::Paused)),
            changed: Condvar::new(),
            wake,
        });
        let worker = Worker::new(devices, Arc::clone(&control))?;
        let thread = std::thread::Builder::new()
            .name("devices".into())
            .spawn(move || match first() {
                Ok(()) => worker.live(ending),
                Err(what) => ending.set(GuestExit::Monitor(what)),
            })
            .map_err(MachineError::io("be started"))?;
        Ok(Self {
            control,
            thread: Some(thread),
        })
    }

    pub(super) fn resume(&self) -> Result<(), MachineError> {
        self.tell(Command::Work)
    }

    /// Waits until the request that is worked on is done.
    pub(super) fn pause(&self, within: Duration) -> Result<(), MachineError> {
        self.tell(Command::Pause)?;
        let state = lock(&self.control.state);
        let (_state, timeout) = self
            .control
            .changed
            .wait_timeout_while(state, within, |(_, phase)| *phase == Phase::Working)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(MachineError::io("pause")(
                std::io::ErrorKind::TimedOut.into(),
            ));
        }
        Ok(())
    }

    fn tell(&self, command: Command) -> Result<(), MachineError> {
        lock(&self.control.state).0 = command;
        self.control.changed.notify_all();
        self.control
            .wake
            .write(1)
            .map_err(MachineError::io("be woken"))
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let told = self.tell(Command::End);
        if let (Ok(()), Some(thread)) = (told, self.thread.take()) {
            // A panic of the thread has ended it as well.
            thread.join().unwrap_or_default();
        }
    }
}

/// The thread's side.
struct Worker {
    devices: Vec<Attached>,
    control: Arc<Control>,
    epoll: Epoll,
    /// What each event is for.
    events: Vec<Event>,
    /// Where each device hears of the host.
    sources: Vec<Option<Source>>,
    /// Devices that have more to do for the host, though nothing new came.
    unfinished: RefCell<Vec<usize>>,
}

/// What becomes readable when the host has something for a device.
#[derive(Debug)]
struct Source {
    descriptor: RawFd,
    /// The event's number.
    event: u64,
    /// Nothing is waited for, because the device had no driver.
    is_deaf: Cell<bool>,
}

/// Who has something for whom.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The driver of a device, in a queue.
    Doorbell { device: usize, queue: usize },
    /// The host, for a device.
    Host { device: usize },
}

impl Worker {
    fn new(devices: Vec<Attached>, control: Arc<Control>) -> Result<Self, MachineError> {
        let failed = MachineError::io("wait for events");
        let epoll = Epoll::new().map_err(&failed)?;
        let add = |descriptor: i32, data: u64| {
            let event = EpollEvent::new(EventSet::IN, data);
            epoll.ctl(ControlOperation::Add, descriptor, event)
        };
        add(control.wake.as_raw_fd(), CONTROL).map_err(&failed)?;
        let mut events = Vec::new();
        let mut sources = Vec::new();
        for (device, attached) in devices.iter().enumerate() {
            for (queue, doorbell) in attached.doorbells.iter().enumerate() {
                add(doorbell.as_raw_fd(), events.len() as u64).map_err(&failed)?;
                events.push(Event::Doorbell { device, queue });
            }
            // The device keeps its descriptor as long as it lives.
            let window = lock(&attached.window);
            let source = window.core().device().source().map(|source| Source {
                descriptor: source.as_raw_fd(),
                event: events.len() as u64,
                is_deaf: Cell::new(false),
            });
            if let Some(source) = &source {
                add(source.descriptor, source.event).map_err(&failed)?;
                events.push(Event::Host { device });
            }
            sources.push(source);
        }
        Ok(Self {
            devices,
            control,
            epoll,
            events,
            sources,
            unfinished: RefCell::default(),
        })
    }

    fn live(self, ending: Arc<Ending>) {
        let _end = End {
            control: &self.control,
            ending,
        };
        while self.await_work() {
            self.work();
        }
    }

    /// Waits out a pause. Tells whether there is still work to do.
    fn await_work(&self) -> bool {
        let state = lock(&self.control.state);
        let mut state = self
            .control
            .changed
            .wait_while(state, |(command, phase)| {
                if *command != Command::Pause {
                    return false;
                }
                *phase = Phase::Paused;
                self.control.changed.notify_all();
                true
            })
            .unwrap_or_else(PoisonError::into_inner);
        if state.0 == Command::End {
            return false;
        }
        state.1 = Phase::Working;
        true
    }

    /// One round: events come, and each device has its turn.
    fn work(&self) {
        let mut events = [EpollEvent::default(); EVENTS];
        let unfinished = self.unfinished.take();
        let timeout = if unfinished.is_empty() { -1 } else { 0 };
        // Interrupted by a signal is as good as nothing to do.
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            if event.data() == CONTROL {
                // Several wakes are one.
                self.control.wake.read().unwrap_or_default();
                continue;
            }
            let place = usize::try_from(event.data());
            match place.ok().and_then(|place| self.events.get(place)) {
                Some(&Event::Doorbell { device, queue }) => self.ring(device, queue),
                Some(&Event::Host { device }) => self.host_ready(device),
                None => {}
            }
        }
        for device in unfinished {
            self.host_ready(device);
        }
    }

    fn ring(&self, device: usize, queue: usize) {
        let Some(attached) = self.devices.get(device) else {
            return;
        };
        let Some(doorbell) = attached.doorbells.get(queue) else {
            return;
        };
        // Read before the work: a ring during it is an event of its own.
        doorbell.read().unwrap_or_default();
        self.listen(device, true);
        let progress = lock(&attached.window).notify(queue);
        if progress == Progress::More {
            // The others first.
            doorbell.write(1).unwrap_or_default();
        }
    }

    fn host_ready(&self, device: usize) {
        let Some(attached) = self.devices.get(device) else {
            return;
        };
        let mut window = lock(&attached.window);
        if !window.core().is_active() {
            // What the host has stays there, and would be told again and
            // again: it is listened for when there is a driver that rings.
            drop(window);
            self.listen(device, false);
        } else if window.host_ready() == Progress::More {
            self.unfinished.borrow_mut().push(device);
        }
    }

    /// Waits for what the host has for a device, or does not.
    fn listen(&self, device: usize, listens: bool) {
        let Some(Some(source)) = self.sources.get(device) else {
            return;
        };
        if source.is_deaf.replace(!listens) != listens {
            return;
        }
        let wanted = if listens {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        let event = EpollEvent::new(wanted, source.event);
        // It is there from the start, and as long as this.
        self.epoll
            .ctl(ControlOperation::Modify, source.descriptor, event)
            .unwrap_or_default();
    }
}

/// Says that the thread is over, however it ends.
struct End<'a> {
    control: &'a Control,
    ending: Arc<Ending>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = "the devices' thread panicked".into();
            self.ending.set(GuestExit::Monitor(what));
        }
        lock(&self.control.state).1 = Phase::Ended;
        self.control.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use skiff_kvm::arch::acpi::Slot;
    use skiff_kvm::arch::layout;
    use skiff_kvm::{Backing, GuestRam};
    use skiff_virtio::Line;
    use skiff_virtio::mmio::Window;
    use skiff_virtio::vsock::Vsock;

    use super::*;

    #[test]
    fn a_thread_pauses_works_and_ends() {
        let ending = Arc::new(Ending::default());
        let thread = IoThread::spawn(Vec::new(), Arc::clone(&ending), || Ok(())).unwrap();
        let phase = |thread: &IoThread| lock(&thread.control.state).1;
        for _ in 0..100 {
            thread.resume().unwrap();
            thread.pause(Duration::from_secs(60)).unwrap();
            assert_eq!(phase(&thread), Phase::Paused);
        }
        let control = Arc::clone(&thread.control);
        drop(thread);
        assert_eq!(lock(&control.state).1, Phase::Ended);
        assert_eq!(ending.wait(Some(Duration::ZERO)), None);
    }

    #[test]
    fn a_device_without_a_driver_keeps_nobody_awake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let ram = GuestRam::allocate(&layout::memory(2), Backing::Private).unwrap();
        let device = Box::new(Vsock::new(3, &path).unwrap());
        let window = Window::new(device, Arc::clone(ram.memory()), Box::new(NoLine));
        let attached = Attached {
            slot: Slot { address: 0, gsi: 0 },
            window: Arc::new(Mutex::new(window)),
            doorbells: vec![EventFd::new(EVENT_FLAGS).unwrap()],
        };
        let control = Arc::new(Control {
            state: Mutex::new((Command::Work, Phase::Working)),
            changed: Condvar::new(),
            wake: EventFd::new(EVENT_FLAGS).unwrap(),
        });
        let worker = Worker::new(vec![attached], control).unwrap();
        let ready = || {
            let mut events = [EpollEvent::default(); EVENTS];
            worker.epoll.wait(0, &mut events).unwrap()
        };
        assert_eq!(ready(), 0);
        let _host = UnixStream::connect(&path).unwrap();
        assert_eq!(ready(), 1);
        worker.work();
        assert_eq!(ready(), 0);
        // The driver rings, and is told of the host.
        worker.devices[0].doorbells[0].write(1).unwrap();
        worker.work();
        assert_eq!(ready(), 1);
    }

    #[derive(Debug)]
    struct NoLine;

    impl Line for NoLine {
        fn raise(&self) {}
    }

    #[test]
    fn a_panic_is_the_guests_end() {
        let ending = Arc::new(Ending::default());
        let theirs = Arc::clone(&ending);
        let thread = std::thread::spawn(move || {
            let control = Control {
                state: Mutex::new((Command::Work, Phase::Working)),
                changed: Condvar::new(),
                wake: EventFd::new(EVENT_FLAGS).unwrap(),
            };
            let _end = End {
                control: &control,
                ending: theirs,
            };
            panic!("a device's bug");
        });
        assert!(thread.join().is_err());
        let exit = ending.wait(Some(Duration::ZERO));
        assert!(matches!(exit, Some(GuestExit::Monitor(_))), "{exit:?}");
    }
}
