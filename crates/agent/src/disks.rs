//! Layers and writable layers on parts of the machine's disks. Each part
//! becomes a partition at run time, a device of its own, which the kernel
//! mounts as it is: no table is written, and no device-mapper is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use skiff_base::Monotonic;
use skiff_types::{Digest, InstanceId};
use skiff_wire::agent::Window;
use skiff_wire::launcher::Refusal;

use crate::requests::{kernel, refuse};
use crate::sys;

const SECTOR_BYTES: u64 = 512;
/// Linux's own limit, less the whole disk.
const PARTITIONS_MAX: u8 = 255;
/// The virtio disks that have one letter.
const DISKS_MAX: u8 = 26;
/// For the kernel to let go of an unmounted layer.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// What the machine's disks are called.
#[derive(Debug, Clone)]
pub enum DiskNames {
    /// `/dev/vda` and on.
    Virtio,
    /// These.
    Listed(Vec<PathBuf>),
}

impl DiskNames {
    fn path(&self, disk: u8) -> Option<String> {
        match self {
            Self::Virtio if disk < DISKS_MAX => Some(format!("/dev/vd{}", char::from(b'a' + disk))),
            Self::Virtio => None,
            Self::Listed(paths) => paths
                .get(usize::from(disk))
                .map(|path| path.display().to_string()),
        }
    }
}

/// What lies on a part of a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// A layer that any sandbox may use.
    Layer(Digest),
    /// What this sandbox writes.
    Writable(InstanceId),
}

impl std::fmt::Display for Part {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer(digest) => write!(formatter, "{digest}"),
            Self::Writable(sandbox) => write!(formatter, "the writable layer of {sandbox}"),
        }
    }
}

impl Part {
    const fn step(&self) -> &'static str {
        match self {
            Self::Layer(_) => "layer",
            Self::Writable(_) => "disk",
        }
    }
}

/// What became of a part that was asked for.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It is there already, at the same place.
    Known,
    /// Its device, to be mounted.
    Device(OwnedFd),
}

#[derive(Debug)]
struct Place {
    window: Window,
    number: u8,
    /// The launcher has it.
    mounted: bool,
}

impl Place {
    fn leave<W>(self, part: &Part, waiter: W, now: Monotonic) -> Leaving<W> {
        Leaving {
            step: part.step(),
            disk: self.window.disk,
            number: self.number,
            deadline: now.plus(LEAVE_DEADLINE),
            waiter,
        }
    }
}

/// A partition that the kernel does not let go of yet.
#[derive(Debug)]
struct Leaving<W> {
    step: &'static str,
    disk: u8,
    number: u8,
    deadline: Monotonic,
    waiter: W,
}

/// The parts of a machine's disks. `W` is who waits for a removal.
#[derive(Debug)]
pub(crate) struct Disks<W> {
    names: DiskNames,
    parts: BTreeMap<Part, Place>,
    leaving: Vec<Leaving<W>>,
    /// Partitions by disk and number, those that leave among them.
    taken: BTreeSet<(u8, u8)>,
}

impl<W> Disks<W> {
    pub(crate) fn new(names: DiskNames) -> Self {
        Self {
            names,
            parts: BTreeMap::new(),
            leaving: Vec::new(),
            taken: BTreeSet::new(),
        }
    }

    /// Makes a device of a part of a disk.
    pub(crate) fn open(&mut self, part: &Part, window: Window) -> Result<Opened, Refusal> {
        let step = part.step();
        if let Some(place) = self.parts.get(part) {
            return match place {
                place if place.window != window => {
                    Err(refuse(step, format!("{part} is at another place")))
                }
                place if !place.mounted => Err(refuse(step, format!("{part} is being added"))),
                _ => Ok(Opened::Known),
            };
        }
        let path = self.path(step, window.disk)?;
        let bytes = bytes_of(step, window)?;
        let number = (1..=PARTITIONS_MAX)
            .find(|number| !self.taken.contains(&(window.disk, *number)))
            .ok_or_else(|| refuse(step, format!("{path} has {PARTITIONS_MAX} parts")))?;
        let disk = open(step, &path)?;
        sys::add_partition(&disk, number, bytes)
            .map_err(|errno| kernel(step, format!("make a part of {path}"), errno))?;
        let device = match open(step, &partition_name(&path, number)) {
            Ok(device) => device,
            Err(refusal) => {
                // Nobody can use what has no device.
                sys::remove_partition(&disk, number).ok();
                return Err(refusal);
            }
        };
        self.taken.insert((window.disk, number));
        let place = Place {
            window,
            number,
            mounted: false,
        };
        self.parts.insert(part.clone(), place);
        Ok(Opened::Device(device))
    }

    /// A part's device is mounted.
    pub(crate) fn set_mounted(&mut self, part: &Part) {
        if let Some(place) = self.parts.get_mut(part) {
            place.mounted = true;
        }
    }

    /// A part's device is not mounted, or not any more: it is let go of. Gives
    /// the waiter back when it is so already.
    pub(crate) fn remove(&mut self, part: &Part, waiter: W, now: Monotonic) -> Option<W> {
        let Some(place) = self.parts.remove(part) else {
            return Some(waiter);
        };
        self.leaving.push(place.leave(part, waiter, now));
        None
    }

    /// Whether [`Self::look_again`] has something to look at.
    pub(crate) fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Tries to let go of what leaves; who is to be told what.
    pub(crate) fn look_again(&mut self, now: Monotonic) -> Vec<(W, Result<(), Refusal>)> {
        let mut told = Vec::new();
        for leaving in std::mem::take(&mut self.leaving) {
            match self.let_go(leaving.step, leaving.disk, leaving.number) {
                Ok(true) => {
                    self.taken.remove(&(leaving.disk, leaving.number));
                    told.push((leaving.waiter, Ok(())));
                }
                Ok(false) if now < leaving.deadline => self.leaving.push(leaving),
                Ok(false) => {
                    let message = "the kernel does not let go of a part of a disk";
                    told.push((leaving.waiter, Err(refuse(leaving.step, message))));
                }
                Err(refusal) => told.push((leaving.waiter, Err(refusal))),
            }
        }
        told
    }

    fn let_go(&self, step: &str, disk: u8, number: u8) -> Result<bool, Refusal> {
        let path = self.path(step, disk)?;
        match sys::remove_partition(open(step, &path)?, number) {
            Ok(()) | Err(Errno::NXIO) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(kernel(step, format!("let go of a part of {path}"), errno)),
        }
    }

    fn path(&self, step: &str, disk: u8) -> Result<String, Refusal> {
        let path = self.names.path(disk);
        path.ok_or_else(|| refuse(step, format!("there is no disk {disk}")))
    }
}

fn open(step: &str, path: &str) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| kernel(step, format!("open {path}"), errno))
}

fn bytes_of(step: &str, window: Window) -> Result<std::ops::Range<u64>, Refusal> {
    let most = u64::try_from(i64::MAX).unwrap_or(u64::MAX) / SECTOR_BYTES;
    let end = window.first_sector.checked_add(window.sectors);
    match end {
        Some(end) if window.sectors > 0 && end <= most => {
            Ok(window.first_sector * SECTOR_BYTES..end * SECTOR_BYTES)
        }
        _ => Err(refuse(
            step,
            format!(
                "{} sectors from {} on are no part of a disk",
                window.sectors, window.first_sector
            ),
        )),
    }
}

/// The kernel's name for a partition.
fn partition_name(disk: &str, number: u8) -> String {
    let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{separator}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_as_the_kernel_names_it() {
        assert_eq!(partition_name("/dev/vda", 3), "/dev/vda3");
        assert_eq!(partition_name("/dev/loop0", 12), "/dev/loop0p12");
        assert_eq!(DiskNames::Virtio.path(1).as_deref(), Some("/dev/vdb"));
        assert_eq!(DiskNames::Virtio.path(26), None);
        assert_eq!(DiskNames::Listed(Vec::new()).path(0), None);
    }

    #[test]
    fn a_window_is_a_part_of_a_disk() {
        let bytes = |first_sector, sectors| {
            let window = Window {
                disk: 0,
                first_sector,
                sectors,
            };
            bytes_of("layer", window)
        };
        assert_eq!(bytes(2048, 8), Ok(1_048_576..1_052_672));
        for (first, sectors) in [(2048, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX / 512, 1)] {
            assert!(bytes(first, sectors).is_err(), "{first} {sectors}");
        }
    }
}
