//! What this host's KVM is worth, found out by trial.
//!
//! On cheap virtual machines `/dev/kvm` can be a module that interprets each
//! instruction: it opens, has every capability and boots a kernel in minutes.
//! Only time tells it apart. A guest of rounds of 10^5 instructions runs until
//! one of them is done in time, which takes a processor some 50 µs, or until
//! there is no hope:
//!
//! ```text
//! machine made ─ rounds ─▶ one within 20 ms ─▶ usable
//!      │            └────▶ none within half a second ─▶ emulated
//!      └─ no machine ─▶ absent, unusable
//! ```
//!
//! Several rounds have a chance, since a host that is busy takes a processor
//! away for longer than that.

use std::error::Error;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use skiff_base::{Clock, Monotonic, SystemClock, chain};
use skiff_flat::{ROUND_INSTRUCTIONS, ROUND_PORT, ROUNDS};
use skiff_kvm::arch::{self, acpi, layout};
use skiff_kvm::{Backing, Bus, GuestExit, GuestRam, Host, Outcome, VcpuThread, Vm};

use crate::MachineError;

/// How long a round may take.
const ROUND: Duration = Duration::from_millis(20);
/// How long rounds are given a chance.
const CHANCES: Duration = Duration::from_millis(500);
/// How long a guest may take to begin, or to end a round that is its last.
const DEADLINE: Duration = Duration::from_secs(10);
const MEMORY_MIB: u64 = 4;

/// What this host's KVM is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kvm", rename_all = "kebab-case")]
pub enum Verdict {
    /// A processor runs guests.
    Usable {
        /// The fastest round, µs.
        took_us: u64,
        /// How long a round may take, µs.
        limit_us: u64,
        /// Instructions of a round.
        instructions: u32,
    },
    /// A program does, and is too slow for anything.
    Emulated {
        /// The fastest round, µs; none was done when there is none.
        took_us: Option<u64>,
        /// How long a round may take, µs.
        limit_us: u64,
        /// Instructions of a round.
        instructions: u32,
    },
    /// There is no KVM, or it is not for us.
    Absent {
        /// Why not.
        reason: String,
    },
    /// There is one, and no machine can be made or run with it.
    Unusable {
        /// Why not.
        reason: String,
    },
}

impl Verdict {
    /// Whether machines can run here.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        matches!(self, Self::Usable { .. })
    }
}

/// Tries this host's KVM. It takes a second at most where that works as it
/// should, and some more where it does not.
#[must_use]
pub fn probe() -> Verdict {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            return Verdict::Absent {
                reason: told(&error),
            };
        }
    };
    let rounds = Arc::new(Rounds::new(SystemClock));
    match run(&host, Arc::<Rounds<_>>::clone(&rounds)) {
        Ok(None | Some(GuestExit::Stopped)) => rounds.verdict(),
        Ok(Some(exit)) => Verdict::Unusable {
            reason: exit.to_string(),
        },
        Err(error) => Verdict::Unusable {
            reason: told(&error),
        },
    }
}

/// Runs the guest until the rounds end it, or the deadline: then there is no
/// reason.
fn run(host: &Host, rounds: Arc<dyn Bus>) -> Result<Option<GuestExit>, MachineError> {
    let mut vm = Vm::create(host)?;
    let mut vcpus = vm.create_vcpus(host, 1)?;
    let ram = GuestRam::allocate(&layout::memory(MEMORY_MIB), Backing::default())?;
    vm.map(ram.clone())?;
    let kernel = arch::load_kernel(&ram, skiff_flat::elf(ROUNDS).as_slice())?;
    let devices = acpi::Devices {
        vcpus: 1,
        virtio: Vec::new(),
        serial: false,
    };
    arch::boot(&ram, &kernel, "", None, &devices)?;
    let Some(vcpu) = vcpus.pop() else {
        return Ok(None);
    };
    vcpu.enter(ram.memory(), &kernel)?;
    let (send, ended) = channel();
    let thread = VcpuThread::spawn(
        vcpu,
        rounds,
        || Ok(()),
        move |exit| {
            // Nobody waits any more when it is late.
            send.send(exit).unwrap_or_default();
        },
    )?;
    thread.resume()?;
    match ended.recv_timeout(DEADLINE) {
        Ok(exit) => Ok(Some(exit)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Ok(Some(GuestExit::Monitor(
            "the guest's end was not told".into(),
        ))),
    }
}

fn told(error: &(dyn Error + 'static)) -> String {
    chain(error).to_string()
}

/// The bus of a guest that runs rounds: takes their times, and ends it.
#[derive(Debug)]
struct Rounds<C> {
    clock: C,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    first: Option<Monotonic>,
    last: Option<Monotonic>,
    fastest: Option<Duration>,
}

impl<C: Clock> Rounds<C> {
    fn new(clock: C) -> Self {
        Self {
            clock,
            times: Mutex::new(Times::default()),
        }
    }

    fn verdict(&self) -> Verdict {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let limit_us = micros(ROUND);
        let instructions = ROUND_INSTRUCTIONS;
        match times.fastest {
            Some(took) if took <= ROUND => Verdict::Usable {
                took_us: micros(took),
                limit_us,
                instructions,
            },
            took => Verdict::Emulated {
                took_us: took.map(micros),
                limit_us,
                instructions,
            },
        }
    }

    /// A round begins, and one ends if it is not the first.
    fn round(&self) -> Outcome {
        let now = self.clock.now();
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *times.first.get_or_insert(now);
        let Some(last) = times.last.replace(now) else {
            return Outcome::Continue;
        };
        let took = now.since(last);
        times.fastest = Some(times.fastest.map_or(took, |fastest| fastest.min(took)));
        if took <= ROUND || now.since(first) >= CHANCES {
            return Outcome::Exit(GuestExit::Stopped);
        }
        Outcome::Continue
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl<C: Clock> Bus for Rounds<C> {
    fn read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _address: u64, _data: &[u8]) -> Outcome {
        Outcome::Continue
    }

    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, _data: &[u8]) -> Outcome {
        if port == ROUND_PORT {
            self.round()
        } else {
            Outcome::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_base::ManualClock;

    use super::*;

    const END: Outcome = Outcome::Exit(GuestExit::Stopped);

    /// The verdict after rounds of these lengths in ms, the last of which ends
    /// the guest.
    fn after(rounds: &[u64]) -> Verdict {
        let clock = ManualClock::default();
        let bus = Rounds::new(clock.clone());
        assert_eq!(bus.port_write(ROUND_PORT, &[0]), Outcome::Continue);
        for (number, length) in rounds.iter().enumerate() {
            clock.advance(Duration::from_millis(*length));
            assert_eq!(bus.port_write(0x1234, &[0]), Outcome::Continue);
            let expected = if number + 1 == rounds.len() {
                END
            } else {
                Outcome::Continue
            };
            assert_eq!(bus.port_write(ROUND_PORT, &[0]), expected, "{number}");
        }
        bus.verdict()
    }

    fn emulated(took_us: Option<u64>) -> Verdict {
        Verdict::Emulated {
            took_us,
            limit_us: 20_000,
            instructions: 100_000,
        }
    }

    #[test]
    fn one_round_in_time_is_enough() {
        for rounds in [&[0][..], &[20], &[21, 20], &[300, 21, 1]] {
            let last = rounds.last().unwrap();
            let expected = Verdict::Usable {
                took_us: last * 1000,
                limit_us: 20_000,
                instructions: 100_000,
            };
            assert_eq!(after(rounds), expected, "{rounds:?}");
        }
    }

    #[test]
    fn there_is_an_end_to_chances() {
        assert_eq!(after(&[110, 100, 120, 130, 110]), emulated(Some(100_000)));
        assert_eq!(after(&[5000]), emulated(Some(5_000_000)));
        assert_eq!(Rounds::new(SystemClock).verdict(), emulated(None));
    }

    #[test]
    fn a_verdict_is_one_object() {
        let text = serde_json::to_string(&emulated(None)).unwrap();
        assert_eq!(
            text,
            r#"{"kvm":"emulated","took_us":null,"limit_us":20000,"instructions":100000}"#
        );
        let absent = Verdict::Absent {
            reason: "none".into(),
        };
        let text = serde_json::to_string(&absent).unwrap();
        assert_eq!(text, r#"{"kvm":"absent","reason":"none"}"#);
        assert!(!absent.is_usable());
    }
}
