//! Empty file systems prepared ahead for writable layers on disk: to make one
//! takes tens of milliseconds, which a start need not wait for.
//!
//! ```text
//!  a size is asked for ─▶ mke2fs, one at a time ─▶ ready ─▶ a sandbox's
//!                                              └─▶ who waits: a machine's
//! ```
//! A file has no name: whatever ends the launcher ends the prepared ones with
//! it, and nothing is left to be swept. What is not ready when it is asked for
//! is made by the sandbox's own first process; for a machine it is made here,
//! and its reply waits.

use std::collections::VecDeque;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use skiff_base::{Clock, Monotonic};
use skiff_wire::launcher::{Refusal, Reply};

use super::client::ReplyTo;
use super::{Launcher, Token};
use crate::child::{self, DiskPlan};
use crate::failure::{Context, Step, refuse};

const STEP: &str = "disk";
/// Sizes that are prepared: the last ones that were asked for.
const SIZES_MAX: usize = 4;
/// File systems of one size.
const PREPARED_PER_SIZE: usize = 8;
/// Machines that wait for one.
const WAITERS_MAX: usize = 64;
/// Below this ext4 has no room for anything.
pub(super) const DISK_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// For one to be made.
const MAKING_DEADLINE: Duration = Duration::from_secs(20);
/// Of what mke2fs says.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// A file or device for a writable layer, and what is on it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: OwnedFd,
    pub(super) plan: DiskPlan,
}

impl Disk {
    /// A device that came with a request.
    pub(super) fn given(device: OwnedFd) -> Step<Self> {
        let status = rustix::fs::fstat(&device).at(STEP, "look at the device")?;
        if FileType::from_raw_mode(status.st_mode) != FileType::BlockDevice {
            return Err(refuse(STEP, "what was given is no block device"));
        }
        Ok(Self {
            file: device,
            plan: DiskPlan::Device,
        })
    }
}

/// What is prepared, and what is being prepared.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// The latest is first.
    sizes: VecDeque<u64>,
    ready: Vec<(u64, OwnedFd)>,
    making: Option<Making>,
    /// Who gets the next of their sizes, in order.
    waiting: VecDeque<(u64, ReplyTo)>,
}

#[derive(Debug)]
struct Making {
    bytes: u64,
    file: OwnedFd,
    pidfd: OwnedFd,
    until: Monotonic,
    maker: Maker,
}

/// A running mke2fs; dropping ends it.
#[derive(Debug)]
struct Maker(Child);

impl Drop for Maker {
    fn drop(&mut self) {
        // An error means that it has ended, and was waited for.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Disks {
    /// One of this size, if one is ready; others of it are prepared from now on.
    fn take(&mut self, bytes: u64) -> Option<OwnedFd> {
        self.sizes.retain(|size| *size != bytes);
        self.sizes.push_front(bytes);
        self.sizes.truncate(SIZES_MAX);
        let sizes = &self.sizes;
        self.ready.retain(|(size, _)| sizes.contains(size));
        let at = self.ready.iter().position(|(size, _)| *size == bytes)?;
        Some(self.ready.swap_remove(at).1)
    }

    /// A size of which one is missing, while none is being made: first for
    /// those who wait.
    fn missing(&self) -> Option<u64> {
        let is_missing = |bytes: &&u64| {
            let ready = self.ready.iter().filter(|(size, _)| size == *bytes);
            ready.count() < PREPARED_PER_SIZE
        };
        let waited_for = self.waiting.front().map(|(bytes, _)| *bytes);
        let missing = waited_for.or_else(|| self.sizes.iter().find(is_missing).copied());
        missing.filter(|_| self.making.is_none())
    }

    /// Who has waited longest for one of this size, and waits no more.
    fn waiter(&mut self, bytes: u64) -> Option<ReplyTo> {
        let at = self.waiting.iter().position(|(size, _)| *size == bytes)?;
        self.waiting.remove(at).map(|(_, to)| to)
    }

    /// It cannot be made: not before it is asked for again.
    fn give_up(&mut self, bytes: u64) {
        self.sizes.retain(|size| *size != bytes);
    }
}

impl Launcher {
    /// A sparse file without a name, of a file system if one is ready.
    pub(super) fn take_disk(&mut self, bytes: u64) -> Step<Disk> {
        if let Some(file) = self.disks.take(bytes) {
            return Ok(Disk {
                file,
                plan: DiskPlan::Formatted,
            });
        }
        Ok(Disk {
            file: self.empty_disk(bytes)?,
            plan: DiskPlan::Empty,
        })
    }

    /// Gives a file system to a machine: now, or once it is made.
    pub(super) fn provide_disk(&mut self, to: ReplyTo, bytes: u64) -> Step<Option<OwnedFd>> {
        if bytes < DISK_BYTES_MIN {
            let message = format!("a disk is at least {DISK_BYTES_MIN} bytes");
            return Err(refuse("request", message));
        }
        if let Some(file) = self.disks.take(bytes) {
            return Ok(Some(file));
        }
        if self.disks.waiting.len() >= WAITERS_MAX {
            let message = format!("{WAITERS_MAX} machines wait for their disks");
            return Err(refuse(STEP, message));
        }
        self.disks.waiting.push_back((bytes, to));
        self.make_awaited_disk();
        Ok(None)
    }

    /// Begins to make what is waited for, if anything is: before all that is
    /// only prepared.
    fn make_awaited_disk(&mut self) {
        while let Some((bytes, _)) = self.disks.waiting.front().copied()
            && self.disks.making.is_none()
        {
            match self.begin_disk(bytes) {
                Ok(making) => self.disks.making = Some(making),
                Err(refusal) => self.refuse_disks(bytes, &refusal),
            }
        }
    }

    /// None of this size can be made.
    fn refuse_disks(&mut self, bytes: u64, refusal: &Refusal) {
        self.disks.give_up(bytes);
        while let Some(to) = self.disks.waiter(bytes) {
            self.reply(to, Err(refusal.clone()), Vec::new());
        }
    }

    pub(super) fn wants_disks(&self) -> bool {
        self.disks.missing().is_some()
    }

    pub(super) fn makes_disk(&self) -> bool {
        self.disks.making.is_some()
    }

    /// Begins to make one that is missing.
    pub(super) fn make_disk(&mut self) -> Step<()> {
        let Some(bytes) = self.disks.missing() else {
            return Ok(());
        };
        match self.begin_disk(bytes) {
            Ok(making) => self.disks.making = Some(making),
            Err(refusal) => {
                self.refuse_disks(bytes, &refusal);
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn begin_disk(&self, bytes: u64) -> Step<Making> {
        let file = self.empty_disk(bytes)?;
        let maker = child::make_file_system(&file)?
            .stderr(Stdio::piped())
            .spawn()
            .at(STEP, "start mke2fs")?;
        let maker = Maker(maker);
        let pid = Pid::from_child(&maker.0);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).at(STEP, "pidfd_open")?;
        self.watch(&pidfd, Token::Maker, EventFlags::IN)?;
        Ok(Making {
            bytes,
            file,
            pidfd,
            until: self.clock.now().plus(MAKING_DEADLINE),
            maker,
        })
    }

    /// mke2fs has ended.
    pub(super) fn disk_made(&mut self) {
        let Some(mut making) = self.disks.making.take() else {
            return;
        };
        self.unwatch(&making.pidfd);
        let bytes = making.bytes;
        match outcome(&mut making.maker.0) {
            Ok(()) => match self.disks.waiter(bytes) {
                Some(to) => self.reply(to, Ok(Reply::Descriptors), vec![making.file]),
                None => self.disks.ready.push((bytes, making.file)),
            },
            Err(refusal) => {
                tracing::warn!(%refusal, bytes, "no file system is prepared");
                self.refuse_disks(bytes, &refusal);
            }
        }
        self.make_awaited_disk();
    }

    /// Ends a mke2fs that takes too long.
    pub(super) fn give_up_late_disk(&mut self) {
        let now = self.clock.now();
        if let Some(making) = self.disks.making.take_if(|making| making.until <= now) {
            self.unwatch(&making.pidfd);
            tracing::warn!(bytes = making.bytes, "mke2fs takes too long and is ended");
            self.refuse_disks(making.bytes, &refuse(STEP, "mke2fs takes too long"));
            drop(making);
            self.make_awaited_disk();
        }
    }

    /// The next program prepares its own.
    pub(super) fn drop_disks(&mut self) {
        if let Some(making) = &self.disks.making {
            self.unwatch(&making.pidfd);
        }
        let left = std::mem::take(&mut self.disks);
        for (_, to) in left.waiting {
            let refusal = refuse(STEP, "the launcher is ending or being replaced");
            self.reply(to, Err(refusal), Vec::new());
        }
    }

    fn empty_disk(&self, bytes: u64) -> Step<OwnedFd> {
        let folder = self.options.disk_dir.as_ref();
        let folder: &Path =
            folder.ok_or_else(|| refuse(STEP, "the launcher has no folder for writable layers"))?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).at(STEP, folder.display())?;
        rustix::fs::ftruncate(&file, bytes).at(STEP, "set the size")?;
        Ok(file)
    }
}

fn outcome(maker: &mut Child) -> Step<()> {
    let status = maker.wait().at(STEP, "wait for mke2fs")?;
    let mut said = Vec::new();
    if let Some(errors) = maker.stderr.take() {
        errors
            .take(MESSAGE_BYTES_MAX)
            .read_to_end(&mut said)
            .at(STEP, "read from mke2fs")?;
    }
    child::made_file_system(status, &said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn the_last_sizes_are_prepared_and_no_more() {
        let mut disks = Disks::default();
        assert_eq!(disks.missing(), None, "nobody has asked");
        for bytes in 1..=6 {
            assert!(disks.take(bytes).is_none());
        }
        let mut made = 0;
        while let Some(bytes) = disks.missing() {
            assert!((3..=6).contains(&bytes), "{bytes}");
            disks.ready.push((bytes, file()));
            made += 1;
        }
        assert_eq!(made, SIZES_MAX * PREPARED_PER_SIZE);
        assert!(disks.take(4).is_some());
        assert_eq!(disks.missing(), Some(4), "what was taken is made again");
        // A new size drives the one out that was not asked for the longest.
        assert!(disks.take(7).is_none());
        assert!(disks.ready.iter().all(|(bytes, _)| *bytes != 3));
        disks.give_up(7);
        assert_eq!(disks.missing(), Some(4));
    }

    #[test]
    fn who_waits_is_served_first_and_in_order() {
        let mut disks = Disks::default();
        assert!(disks.take(5).is_none());
        let to = |id| ReplyTo { client: 1, id };
        disks.waiting = [(7, to(1)), (9, to(2)), (7, to(3))].into();
        assert_eq!(disks.missing(), Some(7));
        let mut served = |bytes| disks.waiter(bytes).map(|to| to.id);
        assert_eq!(
            [7, 7, 7, 9].map(&mut served),
            [Some(1), Some(3), None, Some(2)]
        );
        assert_eq!(disks.missing(), Some(5));
    }
}
