//! The life of a vCPU's thread:
//!
//! ```text
//! spawn ─▶ paused ◀── pause / resume ──▶ running
//!             │                             │ the guest ends, or stop
//!             └────────────▶ ended ◀────────┘
//! ```
//!
//! The thread holds the vCPU's lock while it runs and lets go of it while it
//! is paused: whoever wants to save a state takes the lock.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::Killable;

use super::Vcpu;
use super::kick::{self, Kick};
use crate::arch::Step;
use crate::{Bus, GuestExit};

/// Where a thread is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits, and the guest stands still.
    Paused,
    /// The guest runs.
    Running,
    /// It is over.
    Ended,
}

/// What a vCPU's thread cannot do.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// It cannot be started.
    #[error("the thread of vCPU {id} cannot be started")]
    Spawn {
        /// The vCPU.
        id: u8,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It did not do in time what it was told.
    #[error("vCPU {id} is not {wanted:?} after {within:?}")]
    Late {
        /// The vCPU.
        id: u8,
        /// What it was to be.
        wanted: Phase,
        /// The deadline.
        within: Duration,
    },
    /// It is over.
    #[error("vCPU {id} has ended")]
    Ended {
        /// The vCPU.
        id: u8,
    },
    /// It runs.
    #[error("vCPU {id} runs: pause it first")]
    Runs {
        /// The vCPU.
        id: u8,
    },
}

/// What a thread is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Pause,
    Run,
    Stop,
}

#[derive(Debug)]
struct Control {
    command: Command,
    phase: Phase,
    /// Gone when the vCPU is.
    kick: Option<Kick>,
}

#[derive(Debug)]
struct Shared {
    control: Mutex<Control>,
    changed: Condvar,
    vcpu: Mutex<Option<Vcpu>>,
}

impl Shared {
    fn control(&self) -> MutexGuard<'_, Control> {
        // Nothing under this lock can leave it half changed.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vcpu(&self) -> MutexGuard<'_, Option<Vcpu>> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        self.control().phase = phase;
        self.changed.notify_all();
    }
}

/// A vCPU with the thread that runs it. Dropping it ends the thread.
#[derive(Debug)]
pub struct VcpuThread {
    id: u8,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts a thread, paused, that does `first` before anything else and
    /// ends if that fails. `ended` is called once, by the thread, with the
    /// reason when the guest ends.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn(
        mut vcpu: Vcpu,
        bus: Arc<dyn Bus>,
        first: impl FnOnce() -> Result<(), String> + Send + 'static,
        ended: impl FnOnce(GuestExit) + Send + 'static,
    ) -> Result<Self, ThreadError> {
        let id = vcpu.id();
        let spawn = |source| ThreadError::Spawn { id, source };
        kick::listen().map_err(spawn)?;
        let shared = Arc::new(Shared {
            control: Mutex::new(Control {
                command: Command::Pause,
                phase: Phase::Paused,
                kick: Some(vcpu.kick()),
            }),
            changed: Condvar::new(),
            vcpu: Mutex::new(Some(vcpu)),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let end = End {
                    shared: &theirs,
                    ended: Some(ended),
                };
                let exit = match first() {
                    Ok(()) => live(&theirs, bus.as_ref()),
                    Err(what) => GuestExit::Monitor(what),
                };
                end.with(exit);
            })
            .map_err(spawn)?;
        Ok(Self {
            id,
            shared,
            thread: Some(thread),
        })
    }

    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.control().phase
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When the thread is over.
    pub fn resume(&self) -> Result<(), ThreadError> {
        let mut control = self.shared.control();
        if control.phase == Phase::Ended {
            return Err(ThreadError::Ended { id: self.id });
        }
        control.command = Command::Run;
        drop(control);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Tells it to pause, without waiting: so all of a machine stop together.
    pub fn request_pause(&self) {
        self.tell(Command::Pause);
    }

    /// Tells it to end, without waiting.
    pub fn request_stop(&self) {
        self.tell(Command::Stop);
    }

    /// Waits until it is paused.
    ///
    /// # Errors
    /// When it is over, or does not pause in time.
    pub fn wait_paused(&self, within: Duration) -> Result<(), ThreadError> {
        let (control, timeout) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.control(), within, |control| {
                control.phase == Phase::Running
            })
            .unwrap_or_else(PoisonError::into_inner);
        match control.phase {
            Phase::Paused => Ok(()),
            Phase::Ended => Err(ThreadError::Ended { id: self.id }),
            Phase::Running if timeout.timed_out() => Err(ThreadError::Late {
                id: self.id,
                wanted: Phase::Paused,
                within,
            }),
            Phase::Running => Err(ThreadError::Runs { id: self.id }),
        }
    }

    /// Does something with the paused vCPU.
    ///
    /// # Errors
    /// When it runs, or is over.
    pub fn with<T>(&self, work: impl FnOnce(&Vcpu) -> T) -> Result<T, ThreadError> {
        // Held until the work is done, so that nobody resumes it meanwhile.
        let control = self.shared.control();
        if control.phase == Phase::Running || control.command == Command::Run {
            return Err(ThreadError::Runs { id: self.id });
        }
        let vcpu = self.shared.vcpu();
        let vcpu = vcpu.as_ref().ok_or(ThreadError::Ended { id: self.id })?;
        Ok(work(vcpu))
    }

    fn tell(&self, command: Command) {
        let mut control = self.shared.control();
        // Whoever is told to end is not told anything else.
        if control.command != Command::Stop {
            control.command = command;
        }
        if let (Some(kick), Some(thread)) = (&control.kick, &self.thread) {
            kick.set(true);
            // It can only fail for a thread that is over, which needs no kick.
            thread.kill(kick::signal()).unwrap_or_default();
        }
        drop(control);
        self.shared.changed.notify_all();
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported as the guest's end.
            drop(thread.join());
        }
    }
}

/// Says how it ended however the thread ends, and takes the vCPU away.
struct End<'a, F: FnOnce(GuestExit)> {
    shared: &'a Shared,
    ended: Option<F>,
}

impl<F: FnOnce(GuestExit)> End<'_, F> {
    fn with(mut self, exit: GuestExit) {
        self.finish(exit);
    }

    fn finish(&mut self, exit: GuestExit) {
        // The kick first: it points into the vCPU.
        self.shared.control().kick = None;
        *self.shared.vcpu() = None;
        self.shared.enter(Phase::Ended);
        if let Some(ended) = self.ended.take() {
            ended(exit);
        }
    }
}

impl<F: FnOnce(GuestExit)> Drop for End<'_, F> {
    fn drop(&mut self) {
        if self.ended.is_some() {
            self.finish(GuestExit::Monitor("a vCPU's thread panicked".into()));
        }
    }
}

fn live(shared: &Shared, bus: &dyn Bus) -> GuestExit {
    let mut was_paused = false;
    loop {
        let mut control = shared
            .changed
            .wait_while(shared.control(), |control| {
                if control.command != Command::Pause {
                    return false;
                }
                control.phase = Phase::Paused;
                shared.changed.notify_all();
                true
            })
            .unwrap_or_else(PoisonError::into_inner);
        if control.command == Command::Stop {
            return GuestExit::Stopped;
        }
        control.phase = Phase::Running;
        if let Some(kick) = &control.kick {
            kick.set(false);
        }
        drop(control);

        let mut guard = shared.vcpu();
        let Some(vcpu) = guard.as_mut() else {
            return GuestExit::Monitor("a vCPU is gone".into());
        };
        if was_paused {
            vcpu.resumed();
        }
        was_paused = true;
        if let Some(exit) = run(vcpu, bus) {
            return exit;
        }
    }
}

/// Runs until somebody wants attention, or the guest ends.
fn run(vcpu: &mut Vcpu, bus: &dyn Bus) -> Option<GuestExit> {
    loop {
        match vcpu.step(bus) {
            Step::Continue => {}
            Step::Interrupted => return None,
            Step::Exit(exit) => return Some(exit),
        }
    }
}
