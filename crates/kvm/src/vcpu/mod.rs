//! A vCPU and the thread that runs it.

mod kick;
mod thread;

use kvm_ioctls::VcpuFd;

use crate::arch::{self, Capabilities, Kernel, Step, VcpuState};
use crate::{Bus, KvmError, Ram};
use kick::Kick;
pub use thread::{Phase, ThreadError, VcpuThread};

/// A vCPU that nobody runs.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    id: u8,
    capabilities: Capabilities,
}

impl Vcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        id: u8,
        count: u8,
        capabilities: &Capabilities,
    ) -> Result<Self, KvmError> {
        arch::configure(&fd, id, count, capabilities)?;
        Ok(Self {
            fd,
            id,
            capabilities: capabilities.clone(),
        })
    }

    /// Its number in its machine.
    #[must_use]
    pub const fn id(&self) -> u8 {
        self.id
    }

    /// Sets it to a kernel's first instruction.
    ///
    /// # Errors
    /// When KVM refuses, or the memory is too small.
    pub fn enter(&self, memory: &Ram, kernel: &Kernel) -> Result<(), arch::BootError> {
        arch::boot::enter(&self.fd, memory, kernel)
    }

    /// What it holds.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(&self) -> Result<VcpuState, KvmError> {
        VcpuState::save(&self.fd, &self.capabilities)
    }

    /// Puts a saved state in.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn restore(&self, state: &VcpuState) -> Result<(), KvmError> {
        state.restore(&self.fd)
    }

    fn step(&mut self, bus: &dyn Bus) -> Step {
        arch::step(&mut self.fd, bus)
    }

    fn kick(&mut self) -> Kick {
        Kick::new(&mut self.fd)
    }

    /// Tells the guest's clock that it stood still, so that the guest's
    /// watchdogs do not bite.
    fn resumed(&self) {
        // A guest without KVM's clock has nothing to be told.
        self.fd.kvmclock_ctrl().unwrap_or_default();
    }
}
