//! A machine and its life:
//!
//! ```text
//! build ─▶ paused ◀── pause / resume ──▶ running ─▶ ended
//! ```

mod build;
mod bus;
mod devices;
mod ending;
mod error;
mod generation;
mod io;
mod serial;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skiff_kvm::{GuestExit, GuestRam, VcpuThread, Vm};
use skiff_virtio::LimitsChange;
use skiff_virtio::block::{SectorRange, Windows};
use skiff_wire::monitor::{DiskStats, NetworkStats, Stats};

pub use build::Options;
use bus::{MachineBus, Shared};
use devices::{DiskHandle, NetworkHandle};
use ending::Ending;
pub use error::MachineError;
use generation::Generation;
use io::IoThread;

/// How long threads may take to pause: a device's request may wait for a disk.
const PAUSE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a window's last request may take.
const UNMAP_DEADLINE: Duration = Duration::from_secs(10);

/// A virtual machine with its threads. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    // Threads first: they use what is below.
    vcpus: Vec<VcpuThread>,
    io: IoThread,
    bus: Arc<MachineBus>,
    ending: Arc<Ending>,
    disks: Vec<DiskHandle>,
    /// Of the disks, one for each.
    disk_windows: Vec<Shared>,
    networks: Vec<NetworkHandle>,
    /// What it was told last.
    paused: AtomicBool,
    /// Whoever pauses or resumes it does so alone.
    turn: Mutex<()>,
    generation: Generation,
    ram: GuestRam,
    _vm: Vm,
}

impl Machine {
    /// Lets the guest run.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<(), MachineError> {
        let _turn = bus::lock(&self.turn);
        self.try_resume()
    }

    fn try_resume(&self) -> Result<(), MachineError> {
        self.paused.store(false, Ordering::SeqCst);
        self.io.resume()?;
        for vcpu in &self.vcpus {
            vcpu.resume()?;
        }
        Ok(())
    }

    /// Stops the guest between two instructions, and its devices between two
    /// requests.
    ///
    /// # Errors
    /// When it has ended, or a thread does not stop in time; then it runs.
    pub fn pause(&self) -> Result<(), MachineError> {
        let _turn = bus::lock(&self.turn);
        let paused = self.try_pause();
        match paused {
            Ok(()) => self.paused.store(true, Ordering::SeqCst),
            // That it cannot run either is the same error.
            Err(_) => self.try_resume().unwrap_or_default(),
        }
        paused
    }

    /// Whether it was told to pause last.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    fn try_pause(&self) -> Result<(), MachineError> {
        // All are told before any is waited for.
        for vcpu in &self.vcpus {
            vcpu.request_pause();
        }
        for vcpu in &self.vcpus {
            vcpu.wait_paused(PAUSE_DEADLINE)?;
        }
        // The devices last: until then vCPUs may have rung doorbells.
        self.io.pause(PAUSE_DEADLINE)
    }

    /// Makes it another one than it was, for when it has been copied: a guest
    /// whose kernel knows of generations makes its randomness anew.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn renew_generation(&self) -> Result<(), MachineError> {
        self.generation.renew(&self.ram)
    }

    /// Maps a file to sectors of a disk of windows.
    ///
    /// # Errors
    /// When there is no such disk, no room for it, or the file does not do.
    pub fn map(&self, disk: &str, range: SectorRange, file: File) -> Result<(), MachineError> {
        let mapped = self.windows(disk)?.map(range, file);
        mapped.map_err(MachineError::window(disk))
    }

    /// Takes the window away that begins with this sector. When it returns,
    /// the guest does not use the file any more.
    ///
    /// # Errors
    /// When there is none, or a request to it takes long.
    pub fn unmap(&self, disk: &str, first_sector: u64) -> Result<(), MachineError> {
        let unmapped = self.windows(disk)?.unmap(first_sector, UNMAP_DEADLINE);
        unmapped.map_err(MachineError::window(disk))
    }

    fn windows(&self, disk: &str) -> Result<&Windows, MachineError> {
        let mut disks = self.disks.iter();
        let found = disks.find(|other| other.id == disk);
        let windows = found.and_then(|disk| disk.windows.as_ref());
        windows.ok_or_else(|| MachineError::NoDisk { id: disk.into() })
    }

    /// Puts another file or block device behind a disk, open as the disk
    /// needs it, and tells the guest's driver. Waits for a request under way.
    ///
    /// # Errors
    /// When there is no such disk, or the file is none.
    pub fn replace_disk(&self, id: &str, path: &Path, file: File) -> Result<(), MachineError> {
        let mut disks = self.disks.iter().zip(&self.disk_windows);
        let found = disks.find_map(|(disk, window)| {
            let backing = disk.backing.as_ref().filter(|_| disk.id == id)?;
            Some((backing, window))
        });
        let (backing, window) = found.ok_or_else(|| MachineError::no_device("drive", id))?;
        let replaced = backing.replace(file);
        replaced.map_err(|source| MachineError::Disk {
            id: id.into(),
            path: path.to_owned(),
            source,
        })?;
        bus::lock(window).refresh();
        Ok(())
    }

    /// Changes how much the guest may ask of a disk.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn limit_disk(&self, id: &str, change: LimitsChange) -> Result<(), MachineError> {
        let found = self.disks.iter().find(|disk| disk.id == id);
        let disk = found.ok_or_else(|| MachineError::no_device("drive", id))?;
        disk.limits.change(change);
        Ok(())
    }

    /// Changes what the guest may receive and send at an interface.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn limit_interface(
        &self,
        id: &str,
        receive: LimitsChange,
        transmit: LimitsChange,
    ) -> Result<(), MachineError> {
        let found = self.networks.iter().find(|network| network.id == id);
        let network = found.ok_or_else(|| MachineError::no_device("network interface", id))?;
        network.receive.change(receive);
        network.transmit.change(transmit);
        Ok(())
    }

    /// What it has used so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let disk = |disk: &DiskHandle| {
            let counts = disk.counters.counts();
            DiskStats {
                disk: disk.id.clone(),
                requests: counts.requests,
                failed: counts.failed,
                read_bytes: counts.read_bytes,
                written_bytes: counts.written_bytes,
            }
        };
        let network = |network: &NetworkHandle| {
            let counts = network.counters.counts();
            NetworkStats {
                interface: network.id.clone(),
                received_packets: counts.received_packets,
                received_bytes: counts.received_bytes,
                received_dropped: counts.received_dropped,
                sent_packets: counts.sent_packets,
                sent_bytes: counts.sent_bytes,
                sent_dropped: counts.sent_dropped,
            }
        };
        Stats {
            paused: self.is_paused(),
            cpu_us: cpu_us(),
            serial_dropped_bytes: self.serial_dropped(),
            disks: self.disks.iter().map(disk).collect(),
            networks: self.networks.iter().map(network).collect(),
        }
    }

    /// Ends the guest, whatever it does.
    pub fn stop(&self) {
        self.ending.set(GuestExit::Stopped);
    }

    /// Somebody who can end the guest from another thread.
    pub fn stopper(&self) -> impl Fn() + Send + use<> {
        let ending = Arc::clone(&self.ending);
        move || ending.set(GuestExit::Stopped)
    }

    /// Waits for the guest's end. `None` when it has not come in time.
    #[must_use]
    pub fn wait(&self, within: Option<Duration>) -> Option<GuestExit> {
        self.ending.wait(within)
    }

    /// The guest's memory.
    #[must_use]
    pub const fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// How many bytes of the serial port were over its limit.
    #[must_use]
    pub fn serial_dropped(&self) -> u64 {
        self.bus.serial_dropped()
    }

    /// What went wrong with devices since the last call, for the log.
    #[must_use]
    pub fn take_failures(&self) -> Vec<String> {
        self.bus.take_failures()
    }
}

/// Processor time of this process.
fn cpu_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1_000
}

impl Drop for Machine {
    fn drop(&mut self) {
        for vcpu in &self.vcpus {
            vcpu.request_stop();
        }
    }
}
