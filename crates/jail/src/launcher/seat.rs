//! Seats: processes that wait in namespaces and cgroups of their own to
//! become sandboxes. To enter a v1 cgroup may take ten milliseconds; a seat
//! has done so before anybody asks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::net::SendFlags;
use serde::{Deserialize, Serialize};
use skiff_base::Clock;
use skiff_types::InstanceId;

use super::{Launcher, Token};
use crate::channel;
use crate::child::{self, Birth, Plan};
use crate::failure::{Context, Step, refuse};
use crate::handle::Handle;
use crate::sys::{self, Cloned};

/// Seats prepared ahead, whatever a client configures.
const SEATS_MAX: usize = 256;
/// After a preparation failed.
pub(super) const REFILL_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// The first process of a sandbox, or of one to be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Seat {
    pub(super) range: u32,
    pub(super) pidfd: Handle,
    /// Until the init has no more to say.
    pub(super) control: Option<Handle>,
    /// Whose it is.
    pub(super) holder: Option<InstanceId>,
    pub(super) dead: bool,
}

impl Launcher {
    fn spare_seats(&self) -> usize {
        let spare = |seat: &&Seat| seat.holder.is_none() && !seat.dead;
        self.kept.seats.values().filter(spare).count()
    }

    fn wanted_seats(&self) -> usize {
        let pool = self.kept.pool;
        let wanted = u64::from(pool.networks) + u64::from(pool.egress_networks);
        usize::try_from(wanted).unwrap_or(usize::MAX).min(SEATS_MAX)
    }

    pub(super) fn wants_refill(&self) -> bool {
        !self.kept.shutting_down
            && (self.refill_networks
                || self.spare_seats() < self.wanted_seats()
                || self.wants_monitor()
                || self.wants_disks())
    }

    /// Prepares one thing ahead of demand, while nobody asks for anything.
    pub(super) fn refill(&mut self) {
        if self.kept.shutting_down || self.clock.now() < self.refill_after {
            return;
        }
        match self.networks.refill_one() {
            Ok(worked) => self.refill_networks = worked,
            Err(error) => self.pause_refill(error.to_string()),
        }
        if self.refill_networks {
            return;
        }
        let prepared = if self.spare_seats() < self.wanted_seats() {
            self.add_seat().map(drop)
        } else if self.wants_monitor() {
            self.make_monitor()
        } else {
            self.make_disk()
        };
        match prepared {
            Ok(()) => self.refill_told = None,
            Err(refusal) => self.pause_refill(refusal.to_string()),
        }
    }

    /// Told once for as long as the reason is the same.
    fn pause_refill(&mut self, reason: String) {
        if self.refill_told.as_ref() != Some(&reason) {
            tracing::warn!(reason, "nothing can be prepared ahead");
            self.refill_told = Some(reason);
        }
        self.refill_after = self.clock.now().plus(REFILL_PAUSE);
    }

    /// The oldest spare seat, or one made now.
    pub(super) fn take_seat(&mut self, holder: InstanceId) -> Step<u64> {
        let spare = self
            .kept
            .seats
            .iter()
            .find(|(_, seat)| seat.holder.is_none() && !seat.dead)
            .map(|(number, _)| *number);
        let number = match spare {
            Some(number) => number,
            None => self.add_seat()?,
        };
        if let Some(seat) = self.kept.seats.get_mut(&number) {
            seat.holder = Some(holder);
        }
        Ok(number)
    }

    fn add_seat(&mut self) -> Step<u64> {
        let number = self.kept.number();
        let range = self.kept.ranges.take()?;
        let born = self.cgroups.make(number).and_then(|()| {
            self.bear(number, range)
                .inspect_err(|_| self.forget_groups(number))
        });
        match born {
            Ok(seat) => {
                self.kept.seats.insert(number, seat);
                Ok(number)
            }
            Err(refusal) => {
                self.kept.ranges.release(range);
                Err(refusal)
            }
        }
    }

    /// Of a seat that was never born: nothing can be in them.
    pub(super) fn forget_groups(&self, number: u64) {
        if !self.cgroups.remove(number) {
            tracing::error!(number, "the cgroups of a seat that was never born stay");
        }
    }

    fn bear(&self, number: u64, range: u32) -> Step<Seat> {
        let birth = Birth {
            doors: self.cgroups.doors(number),
            cgroup_views: self.cgroups.views(number),
            layers: self.kept.layers.folder().to_owned(),
            stage: self.options.stage(),
            owner: crate::ids::Ranges::base(range),
        };
        let (ours, theirs) = channel::pair().at("clone", "socketpair")?;
        let birthplace = self.cgroups.birthplace(number)?;
        let namespaces =
            libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        // SAFETY: the launcher has one thread, checked at its start.
        let cloned = unsafe { sys::clone3(namespaces, birthplace.as_ref().map(AsFd::as_fd)) };
        let pidfd = match cloned.at("clone", "clone3")? {
            Cloned::Child => child::run(&birth, theirs, &self.filters),
            Cloned::Parent { pidfd, .. } => pidfd,
        };
        self.watch_birth(number, &ours, &pidfd)?;
        Ok(Seat {
            range,
            pidfd: pidfd.into(),
            control: Some(ours.into()),
            holder: None,
            dead: false,
        })
    }

    /// Watches a process from its birth on.
    pub(super) fn watch_birth(&self, number: u64, control: &OwnedFd, pidfd: &OwnedFd) -> Step<()> {
        let watched = self
            .watch(control, Token::Control(number), EventFlags::IN)
            .and_then(|()| self.watch(pidfd, Token::Process(number), EventFlags::IN));
        if watched.is_err() {
            // Nobody will hear of it: it must not live.
            sys::signal(pidfd.as_fd(), libc::SIGKILL).at("clone", "kill")?;
        }
        watched
    }

    /// Tells a seat what to become.
    pub(super) fn send_plan(&self, number: u64, plan: &Plan, fds: &[BorrowedFd<'_>]) -> Step<()> {
        let control = self.seat(number)?.control.as_ref();
        let control = control.ok_or_else(|| refuse("clone", "the seat has gone"))?;
        let mut frame = skiff_wire::encode(plan).map_err(|error| refuse("request", error))?;
        let sent = channel::send(control, &frame, fds, SendFlags::DONTWAIT);
        frame.fill(0);
        sent.at("clone", "send the plan")
    }

    pub(super) fn seat(&self, number: u64) -> Step<&Seat> {
        let seat = self.kept.seats.get(&number);
        seat.ok_or_else(|| refuse("clone", "the seat has gone"))
    }

    /// Ends a seat and all that runs in it; [`Self::bury`] hears of it.
    pub(super) fn kill_seat(&self, number: u64) {
        let Some(seat) = self.kept.seats.get(&number) else {
            return;
        };
        if seat.dead {
            return;
        }
        if let Err(errno) = sys::signal(seat.pidfd.as_fd(), libc::SIGKILL) {
            tracing::debug!(%errno, number, "a seat cannot be killed");
        }
        self.cgroups.kill(number);
    }
}
