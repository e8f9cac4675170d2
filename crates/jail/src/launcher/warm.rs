//! Monitors that wait for their machines: to make a process with namespaces and
//! to enter cgroups takes milliseconds, which a start need not wait for.
//!
//! ```text
//!  nothing starts ─▶ born ─▶ waits ─▶ a machine's
//!                      │       │ fewer are wanted, or its program is another now
//!                      │ dies  ▼
//!                      └────▶ gone ─▶ another, unless that has failed often
//! ```
//! They are this program's own: an upgrade ends them, and the next program
//! makes others.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::fs::Stat;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use skiff_base::Clock;
use skiff_types::InstanceId;
use skiff_wire::launcher::MonitorSpec;
use skiff_wire::monitor::Assignment;

use super::monitor::FILES_MAX;
use super::sandbox::Outputs;
use super::{Launcher, Token, create, seat};
use crate::channel;
use crate::child::MonitorTask;
use crate::failure::{Context, Step, refuse};
use crate::ids::Ranges;

const STEP: &str = "monitor";
/// However many a client asks for.
const WAITING_MAX: u32 = 64;
/// That have died or could not be made, one after the other: then no more are
/// made until somebody asks for them again, or a machine starts without.
const FAILURES_MAX: u32 = 3;

/// The monitors that wait.
#[derive(Debug, Default)]
pub(super) struct Warm {
    waiting: Vec<Waiting>,
    failures: u32,
}

#[derive(Debug)]
pub(super) struct Waiting {
    seat: u64,
    socket: OwnedFd,
    outputs: Outputs,
    program: Stamp,
}

impl Warm {
    fn wants(&self, wanted: usize) -> bool {
        self.failures < FAILURES_MAX && self.waiting.len() < wanted
    }
}

/// Which file a program is, and of when.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, u64),
}

impl Stamp {
    fn of(status: &Stat) -> Self {
        Self {
            device: status.st_dev,
            inode: status.st_ino,
            changed: (status.st_ctime, status.st_ctime_nsec),
        }
    }
}

impl Launcher {
    /// How many wait from now on.
    pub(super) fn keep_monitors(&mut self, count: u32) {
        self.kept.warm = count.min(WAITING_MAX);
        self.warm.failures = 0;
        self.refill_after = self.clock.now();
        while self.warm.waiting.len() > self.wanted_monitors() {
            self.drop_monitor();
        }
    }

    fn wanted_monitors(&self) -> usize {
        usize::try_from(self.kept.warm).unwrap_or(usize::MAX)
    }

    /// Whether another is to be made: while nothing starts, which would be
    /// slower for it.
    pub(super) fn wants_monitor(&self) -> bool {
        self.starting.is_empty() && self.warm.wants(self.wanted_monitors())
    }

    /// Makes one.
    pub(super) fn make_monitor(&mut self) -> Step<()> {
        let made = self.bear_waiting();
        self.warm.failures += u32::from(made.is_err());
        self.warm.waiting.push(made?);
        Ok(())
    }

    fn bear_waiting(&mut self) -> Step<Waiting> {
        let range = self.kept.ranges.take()?;
        let number = self.kept.number();
        let born = self.cgroups.make(number).and_then(|()| {
            self.try_bear_waiting(number, range)
                .inspect_err(|_| self.forget_groups(number))
        });
        born.inspect_err(|_| self.kept.ranges.release(range))
    }

    fn try_bear_waiting(&mut self, number: u64, range: u32) -> Step<Waiting> {
        let program = self.open_program()?;
        let status = rustix::fs::fstat(&program).at(STEP, "look at the program")?;
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .at(STEP, "socketpair")?;
        let place = |_| create::open_empty();
        let task = MonitorTask::Await {
            places: (0..FILES_MAX).map(place).collect::<Step<_>>()?,
            socket: theirs,
        };
        // Of nobody's sandbox yet: it is no spare seat.
        let holder = InstanceId::from_parts(number, 0);
        let (seat, streams) = self.bear_monitor(number, range, holder, program, task)?;
        self.kept.seats.insert(number, seat);
        Ok(Waiting {
            seat: number,
            socket: ours,
            outputs: streams.outputs,
            program: Stamp::of(&status),
        })
    }

    /// One that waits and is of the program that would be started now. Those
    /// of another end.
    pub(super) fn take_monitor(&mut self) -> Option<Waiting> {
        let path = self.options.monitor.as_deref()?;
        let current = rustix::fs::stat(path).ok().map(|it| Stamp::of(&it));
        while self
            .warm
            .waiting
            .first()
            .is_some_and(|first| Some(&first.program) != current.as_ref())
        {
            self.drop_monitor();
        }
        let seats: Vec<_> = self.warm.waiting.iter().map(|one| one.seat).collect();
        for seat in seats {
            // What is known of it may not have been heard yet.
            self.hear(seat);
        }
        // One that has not come to its program yet is no faster than another.
        let is_there = |waiting: &Waiting| {
            let seat = self.kept.seats.get(&waiting.seat);
            seat.is_some_and(|seat| !seat.dead && seat.control.is_none())
        };
        let at = self.warm.waiting.iter().position(is_there);
        self.warm.failures = 0;
        Some(self.warm.waiting.remove(at?))
    }

    /// Tells a monitor its machine. Its seat, and what the launcher holds of
    /// its output.
    pub(super) fn assign(
        &mut self,
        monitor: Waiting,
        spec: &MonitorSpec,
        files: &[OwnedFd],
    ) -> Step<(u64, Outputs)> {
        let Waiting {
            seat,
            socket,
            outputs,
            ..
        } = monitor;
        let told = self.tell(seat, socket, spec, files);
        if told.is_err() {
            self.abandon_seat(seat);
            self.remove_monitor_folder(spec.sandbox);
        }
        told.map(|()| (seat, outputs))
    }

    fn tell(
        &mut self,
        number: u64,
        socket: OwnedFd,
        spec: &MonitorSpec,
        files: &[OwnedFd],
    ) -> Step<()> {
        let owner = Ranges::base(self.seat(number)?.range);
        self.limit_monitor(number, spec)?;
        let folder = self.make_monitor_folder(spec.sandbox, owner)?;
        let assignment = Assignment {
            id: spec.sandbox.to_string(),
        };
        let frame = skiff_wire::encode(&assignment).map_err(|error| refuse(STEP, error))?;
        let fds: Vec<_> = std::iter::once(&folder)
            .chain(files)
            .map(AsFd::as_fd)
            .collect();
        channel::send(&socket, &frame, &fds, SendFlags::DONTWAIT).at(STEP, "tell the monitor")?;
        // The monitor closes it when it goes on, as one does that executes.
        self.watch(&socket, Token::Control(number), EventFlags::IN)?;
        let seat = self.kept.seats.get_mut(&number);
        let seat = seat.ok_or_else(|| refuse(STEP, "the monitor has gone"))?;
        seat.control = Some(socket.into());
        seat.holder = Some(spec.sandbox);
        Ok(())
    }

    /// A seat has died. If a machine was waited for in it, that is so no more.
    pub(super) fn lose_monitor(&mut self, number: u64) {
        let waiting = &mut self.warm.waiting;
        let Some(at) = waiting.iter().position(|one| one.seat == number) else {
            return;
        };
        waiting.remove(at);
        self.warm.failures += 1;
        self.refill_after = self.clock.now().plus(seat::REFILL_PAUSE);
        let failures = self.warm.failures;
        tracing::warn!(
            number,
            failures,
            "a monitor that waits for a machine has died"
        );
    }

    fn drop_monitor(&mut self) {
        if !self.warm.waiting.is_empty() {
            let waiting = self.warm.waiting.remove(0);
            self.abandon_seat(waiting.seat);
        }
    }

    /// Ends all that wait.
    pub(super) fn drop_monitors(&mut self) {
        while !self.warm.waiting.is_empty() {
            self.drop_monitor();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dies_again_and_again_is_not_made_for_ever() {
        let mut warm = Warm::default();
        let mut made = 0;
        while warm.wants(2) {
            made += 1;
            warm.failures += 1;
        }
        assert_eq!(made, FAILURES_MAX);
        warm.failures = 0;
        assert!(warm.wants(1) && !warm.wants(0));
    }

    #[test]
    fn a_program_is_another_when_its_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let stamp = || Stamp::of(&rustix::fs::stat(&path).unwrap());
        std::fs::write(&path, "one").unwrap();
        let first = stamp();
        assert_eq!(first, stamp());
        let other = folder.path().join("other");
        std::fs::write(&other, "one").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(first, stamp());
    }
}
