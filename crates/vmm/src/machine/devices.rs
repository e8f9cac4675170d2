//! Devices at their places: a window, an interrupt, a doorbell for each queue.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::{Arc, Mutex};

use skiff_base::SystemClock;
use skiff_kvm::arch::acpi::Slot;
use skiff_kvm::arch::layout;
use skiff_kvm::{GuestRam, Ram, Vm};
use skiff_virtio::block::{Backing, Block, Counters, Disk, Windows};
use skiff_virtio::entropy::Entropy;
use skiff_virtio::net::{self, Net, Tap, TapError};
use skiff_virtio::vsock::Vsock;
use skiff_virtio::{Device, Line, Throttle, ThrottleHandle, mmio};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use super::bus::Shared;
use crate::config::{Drive, NetworkInterface, RateLimits};
use crate::{Config, inherited};

type Boxed = Box<dyn Device<Ram>>;

/// A device at its place.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) slot: Slot,
    pub(super) window: Shared,
    /// One for each queue.
    pub(super) doorbells: Vec<EventFd>,
}

/// A disk, for those who look at it from outside of its device.
#[derive(Debug)]
pub(super) struct DiskHandle {
    pub(super) id: String,
    pub(super) counters: Arc<Counters>,
    /// Where files are mapped, if it is a disk of windows.
    pub(super) windows: Option<Windows>,
    /// The file behind it, if it is none.
    pub(super) backing: Option<Backing>,
    pub(super) limits: ThrottleHandle,
}

/// What a configuration makes.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// In the order in which a guest finds them, disks first.
    pub(super) devices: Vec<Boxed>,
    pub(super) disks: Vec<DiskHandle>,
    pub(super) networks: Vec<NetworkHandle>,
}

/// An interface, for those who look at it from outside of its device.
#[derive(Debug)]
pub(super) struct NetworkHandle {
    pub(super) id: String,
    pub(super) counters: Arc<net::Counters>,
    /// Of what the guest receives.
    pub(super) receive: ThrottleHandle,
    /// Of what it sends.
    pub(super) transmit: ThrottleHandle,
}

impl Made {
    fn add_disk(
        &mut self,
        id: &str,
        disk: Disk,
        windows: Option<Windows>,
        limits: Option<&RateLimits>,
    ) -> Result<(), MachineError> {
        let throttle = throttle(limits)?;
        let limits = throttle.handle();
        let backing = disk.backing();
        let block = Block::new(disk).limited(throttle);
        self.disks.push(DiskHandle {
            id: id.into(),
            counters: block.counters(),
            windows,
            backing,
            limits,
        });
        self.devices.push(Box::new(block));
        Ok(())
    }

    fn add_interface(&mut self, interface: &NetworkInterface) -> Result<(), MachineError> {
        let tap = open_tap(interface)?;
        let receive = throttle(interface.rx_rate_limiter.as_ref())?;
        let transmit = throttle(interface.tx_rate_limiter.as_ref())?;
        let limits = (receive.handle(), transmit.handle());
        let settings = net::Settings {
            mac: interface.guest_mac.map(|mac| mac.0),
            mtu: interface.mtu.or(tap.mtu()),
            receive: Some(receive),
            transmit: Some(transmit),
        };
        let net =
            Net::new(Box::new(tap), settings).map_err(MachineError::io("wait for an interface"))?;
        self.networks.push(NetworkHandle {
            id: interface.iface_id.clone(),
            counters: net.counters(),
            receive: limits.0,
            transmit: limits.1,
        });
        self.devices.push(Box::new(net));
        Ok(())
    }
}

fn open_tap(interface: &NetworkInterface) -> Result<Tap, MachineError> {
    let failed = |source| MachineError::Tap {
        id: interface.iface_id.clone(),
        source,
    };
    match (&interface.host_dev_name, interface.tap_fd) {
        (Some(name), _) => Tap::open(name).map_err(failed),
        (None, Some(descriptor)) => {
            let taken = inherited::take(descriptor);
            let taken = taken.map_err(|error| failed(TapError::Kind(Some(error))))?;
            Tap::from_descriptor(taken).map_err(failed)
        }
        (None, None) => Err(failed(TapError::Kind(None))),
    }
}

/// What keeps a device to its limits, which it may get later.
fn throttle(limits: Option<&RateLimits>) -> Result<Throttle, MachineError> {
    let limits = limits.map(RateLimits::limits).unwrap_or_default();
    let throttle = Throttle::new(limits, Arc::new(SystemClock));
    throttle.map_err(MachineError::io("get a timer"))
}

/// Makes the devices of a configuration.
pub(super) fn make(config: &Config) -> Result<Made, MachineError> {
    let mut made = Made::default();
    for disk in &config.window_disks {
        let windows = Windows::new(disk.sectors(), disk.is_read_only);
        let media = Disk::of_windows(windows.clone(), &disk.disk_id);
        let limits = disk.rate_limiter.as_ref();
        made.add_disk(&disk.disk_id, media, Some(windows), limits)?;
    }
    for drive in config.ordered_drives() {
        let limits = drive.rate_limiter.as_ref();
        made.add_disk(&drive.drive_id, disk(drive)?, None, limits)?;
    }
    for interface in &config.network_interfaces {
        made.add_interface(interface)?;
    }
    if let Some(vsock) = &config.vsock {
        let vsock = Vsock::new(vsock.guest_cid, &vsock.uds_path)?;
        made.devices.push(Box::new(vsock));
    }
    if config.entropy.is_some() {
        made.devices.push(Box::new(Entropy));
    }
    Ok(made)
}

fn disk(drive: &Drive) -> Result<Disk, MachineError> {
    let path = &drive.path_on_host;
    let mut options = OpenOptions::new();
    options.read(true).write(!drive.is_read_only);
    let file = open_with(&format!("drive {}", drive.drive_id), path, &options)?;
    Disk::new(file, drive.is_read_only, &drive.drive_id).map_err(|source| MachineError::Disk {
        id: drive.drive_id.clone(),
        path: path.clone(),
        source,
    })
}

/// Opens a file that the configuration names, to read it.
pub(super) fn open(field: &str, path: &Path) -> Result<File, MachineError> {
    open_with(field, path, OpenOptions::new().read(true))
}

/// Opens a file that the configuration names, unless it names one that is
/// open already.
pub(super) fn open_with(
    field: &str,
    path: &Path,
    options: &OpenOptions,
) -> Result<File, MachineError> {
    let opened = inherited::named(path).and_then(|named| match named {
        Some(file) => Ok(file),
        None => options.open(path),
    });
    opened.map_err(|source| MachineError::Open {
        field: field.into(),
        path: path.to_owned(),
        source,
    })
}

/// Gives each device the next window and the next interrupt.
pub(super) fn attach(
    vm: &Vm,
    ram: &GuestRam,
    devices: Vec<Boxed>,
) -> Result<Vec<Attached>, MachineError> {
    let places = (layout::DEVICES..)
        .step_by(usize::try_from(layout::DEVICE_BYTES).unwrap_or(usize::MAX))
        .zip(layout::FIRST_GSI..=layout::LAST_GSI);
    devices
        .into_iter()
        .zip(places)
        .map(|(device, (address, gsi))| {
            let doorbells = (0..)
                .zip(device.queue_sizes())
                .map(|(queue, _)| vm.doorbell(GuestAddress(address + mmio::DOORBELL), queue))
                .collect::<Result<_, _>>()?;
            let line = Box::new(IrqLine(vm.interrupt(gsi)?));
            let window = mmio::Window::new(device, Arc::clone(ram.memory()), line);
            Ok(Attached {
                slot: Slot { address, gsi },
                window: Arc::new(Mutex::new(window)),
                doorbells,
            })
        })
        .collect()
}

/// An interrupt that KVM listens to.
#[derive(Debug)]
struct IrqLine(EventFd);

impl Line for IrqLine {
    fn raise(&self) {
        // It cannot fail but by overflow, and then it is raised already.
        self.0.write(1).unwrap_or_default();
    }
}
