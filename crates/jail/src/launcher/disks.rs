//! Empty file systems for writable layers on disk. To make one takes tens of
//! milliseconds; so of each size one is made, and everybody gets a copy of what
//! little is written in it, which takes less than one.
//!
//! ```text
//!  a size is asked for ─▶ mke2fs, one at a time ─▶ a template ─▶ a sandbox's copy
//!                                                          └─▶ who waits: a machine's
//! ```
//! A file has no name: whatever ends the launcher ends the templates with it,
//! and nothing is left to be swept. Where there is no template yet, a sandbox's
//! own first process makes its file system; for a machine it is waited for.
//! Copies share the template's UUID, which nobody finds them by.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use skiff_base::{Clock, Monotonic};
use skiff_wire::launcher::{Refusal, Reply};

use super::client::ReplyTo;
use super::{Launcher, Token};
use crate::child::{self, DiskPlan};
use crate::failure::{Context, Step, refuse};
use crate::loops;

const STEP: &str = "disk";
/// Sizes that there are templates of: the last ones that were asked for.
const SIZES_MAX: usize = 4;
/// Machines that wait for one.
const WAITERS_MAX: usize = 64;
/// Below this ext4 has no room for anything.
pub(super) const DISK_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// For one to be made.
const MAKING_DEADLINE: Duration = Duration::from_secs(20);
/// Of a template that is looked at at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// Of what mke2fs says.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// A device for a writable layer, and what is on it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) device: OwnedFd,
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
            device,
            plan: DiskPlan::Formatted,
        })
    }
}

/// The templates, and one that is being made.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// The latest is first.
    sizes: VecDeque<u64>,
    templates: Vec<(u64, OwnedFd)>,
    making: Option<Making>,
    /// Who gets a copy once there is a template of their size, in order.
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
    /// The template of this size, if there is one; from now on there is to be.
    fn template(&mut self, bytes: u64) -> Option<&OwnedFd> {
        self.sizes.retain(|size| *size != bytes);
        self.sizes.push_front(bytes);
        self.sizes.truncate(SIZES_MAX);
        let sizes = &self.sizes;
        self.templates.retain(|(size, _)| sizes.contains(size));
        let mut templates = self.templates.iter();
        templates.find_map(|(size, file)| (*size == bytes).then_some(file))
    }

    /// A size without a template, while none is being made: first for those who
    /// wait.
    fn missing(&self) -> Option<u64> {
        let is_missing = |bytes: &&u64| !self.templates.iter().any(|(size, _)| size == *bytes);
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
    /// A loop device on a sparse file without a name, with a file system if there
    /// is a template.
    ///
    /// Here and not in the sandbox: the kernel tells all who ask at once of the
    /// same free device, and one of them gets it.
    pub(super) fn take_disk(&mut self, bytes: u64) -> Step<Disk> {
        let (file, plan) = match self.copied_disk(bytes)? {
            Some(file) => (file, DiskPlan::Formatted),
            None => (self.empty_disk(bytes)?, DiskPlan::Empty),
        };
        let device = loops::attach(file.as_fd(), loops::Access::Write)?.into_device();
        Ok(Disk { device, plan })
    }

    /// Gives a file system to a machine: now, or once there is a template.
    pub(super) fn provide_disk(&mut self, to: ReplyTo, bytes: u64) -> Step<Option<OwnedFd>> {
        if bytes < DISK_BYTES_MIN {
            let message = format!("a disk is at least {DISK_BYTES_MIN} bytes");
            return Err(refuse("request", message));
        }
        if let Some(file) = self.copied_disk(bytes)? {
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

    /// One of this size, if there is a template of it.
    fn copied_disk(&mut self, bytes: u64) -> Step<Option<OwnedFd>> {
        let Some(template) = self.disks.template(bytes) else {
            return Ok(None);
        };
        let template = template.try_clone().at(STEP, "dup")?;
        let file = self.empty_disk(bytes)?;
        copy(&template, &file).at(STEP, "copy an empty file system")?;
        Ok(Some(file))
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
            Ok(()) => {
                self.disks.templates.push((bytes, making.file));
                self.give_awaited_disks(bytes);
            }
            Err(refusal) => {
                tracing::warn!(%refusal, bytes, "no file system is prepared");
                self.refuse_disks(bytes, &refusal);
            }
        }
        self.make_awaited_disk();
    }

    /// There is a template for those who have waited.
    fn give_awaited_disks(&mut self, bytes: u64) {
        while let Some(to) = self.disks.waiter(bytes) {
            let copied = self.copied_disk(bytes);
            let copied = copied.map(|file| file.into_iter().collect());
            match copied {
                Ok(files) => self.reply(to, Ok(Reply::Descriptors), files),
                Err(refusal) => self.reply(to, Err(refusal), Vec::new()),
            }
        }
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

/// Copies what is written in a sparse file: where its file system does not tell
/// holes, all that is not zero.
fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let (from, to) = (File::from(from.try_clone()?), File::from(to.try_clone()?));
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(data) => at = data,
            // There is only a hole.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let end = rustix::fs::seek(&from, SeekFrom::Hole(at))?;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(PIECE_BYTES);
            let piece = &mut piece[..left.min(PIECE_BYTES)];
            from.read_exact_at(piece, at)?;
            if piece.iter().any(|byte| *byte != 0) {
                to.write_all_at(piece, at)?;
            }
            at += piece.len() as u64;
        }
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
    fn the_last_sizes_have_templates_and_no_more() {
        let mut disks = Disks::default();
        assert_eq!(disks.missing(), None, "nobody has asked");
        for bytes in 1..=6 {
            assert!(disks.template(bytes).is_none());
        }
        let mut made = 0;
        while let Some(bytes) = disks.missing() {
            assert!((3..=6).contains(&bytes), "{bytes}");
            disks.templates.push((bytes, file()));
            made += 1;
        }
        assert_eq!(made, SIZES_MAX);
        assert!(disks.template(4).is_some());
        // A new size drives the one out that was not asked for the longest.
        assert!(disks.template(7).is_none());
        assert_eq!(disks.missing(), Some(7));
        assert!(disks.templates.iter().all(|(bytes, _)| *bytes != 3));
        disks.give_up(7);
        assert_eq!(disks.missing(), None);
    }

    #[test]
    fn who_waits_is_served_first_and_in_order() {
        let mut disks = Disks::default();
        assert!(disks.template(5).is_none());
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

    #[test]
    fn a_copy_has_what_is_written_and_the_same_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = 64 << 20;
        for file in [&from, &to] {
            file.set_len(bytes).unwrap();
        }
        let written = [(0, 1), (1024, 5000), (33 << 20, 200_000), (bytes - 3, 3)];
        for (at, length) in written {
            let some = vec![7; length];
            from.write_all_at(&some, at).unwrap();
        }
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        copy(&from, &to).unwrap();
        let (from, to) = (File::from(from), File::from(to));
        let mut pieces = [vec![0; 1 << 20], vec![0; 1 << 20]];
        for at in (0..bytes).step_by(1 << 20) {
            from.read_exact_at(&mut pieces[0], at).unwrap();
            to.read_exact_at(&mut pieces[1], at).unwrap();
            assert!(pieces[0] == pieces[1], "at {at}");
        }
        use std::os::unix::fs::MetadataExt as _;
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        copy(&tempfile::tempfile().unwrap().into(), &to.into()).unwrap();
    }
}
