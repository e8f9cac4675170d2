use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::{GuestRam, Host, KvmError, Vcpu, arch};

/// How often a creation that a signal interrupts is tried.
const CREATE_TRIES: u32 = 5;

/// A machine: its vCPUs share the memory and the interrupts.
///
/// The order of creation is fixed: the machine and its interrupt controllers,
/// then its vCPUs, then its memory.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    ram: Option<GuestRam>,
}

impl Vm {
    /// Makes a machine with its interrupt controllers. It belongs to this
    /// process: no other can use its descriptors.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create(host: &Host) -> Result<Self, KvmError> {
        // KVM starts a kernel thread here, and gives up when a signal comes.
        let mut tries = 0;
        let fd = loop {
            tries += 1;
            match host.kvm().create_vm() {
                Err(errno) if errno.errno() == libc::EINTR && tries < CREATE_TRIES => {}
                other => break other.map_err(KvmError::of("create a machine"))?,
            }
        };
        arch::prepare(&fd)?;
        Ok(Self { fd, ram: None })
    }

    /// Makes the vCPUs 0 to `count`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vcpus(&self, host: &Host, count: u8) -> Result<Vec<Vcpu>, KvmError> {
        let capabilities = arch::Capabilities::read(host, &self.fd)?;
        (0..count)
            .map(|id| {
                let fd = self
                    .fd
                    .create_vcpu(u64::from(id))
                    .map_err(KvmError::of("create a vCPU"))?;
                Vcpu::new(fd, id, count, &capabilities)
            })
            .collect()
    }

    /// Maps the memory into the machine, and keeps it as long as that is.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn map(&mut self, ram: GuestRam) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(ram.memory().iter()) {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|error| KvmError::io("map memory")(std::io::Error::other(error)))?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the range is one mapping of `ram`, which `self` keeps
            // until after the machine's descriptor is closed (fields drop in
            // their order), and no other slot has its number.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(KvmError::of("map memory"))?;
        }
        self.ram = Some(ram);
        Ok(())
    }

    /// An event that raises the interrupt `gsi`, as an edge.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn interrupt(&self, gsi: u32) -> Result<EventFd, KvmError> {
        let event = event()?;
        self.fd
            .register_irqfd(&event, gsi)
            .map_err(KvmError::of("connect an interrupt"))?;
        Ok(event)
    }

    /// An event that comes when the guest writes the 32-bit `value` to
    /// `address`, without a vCPU leaving the kernel.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn doorbell(&self, address: GuestAddress, value: u32) -> Result<EventFd, KvmError> {
        let event = event()?;
        self.fd
            .register_ioevent(&event, &IoEventAddress::Mmio(address.0), value)
            .map_err(KvmError::of("connect a doorbell"))?;
        Ok(event)
    }

    /// The state that all vCPUs share. They must be paused.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(&self) -> Result<arch::VmState, KvmError> {
        arch::VmState::save(&self.fd)
    }

    /// Puts a saved state into this machine, which has not run.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn restore(&self, state: &arch::VmState) -> Result<(), KvmError> {
        state.restore(&self.fd)
    }
}

fn event() -> Result<EventFd, KvmError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(KvmError::io("get an event"))
}
