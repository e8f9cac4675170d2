//! x86_64: registers, interrupts, ACPI, and the two ways into a kernel.

pub mod acpi;
pub mod boot;
mod capabilities;
mod cpuid;
mod interrupts;
pub mod layout;
mod msrs;
mod registers;
mod state;
mod step;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, VmFd};

use crate::KvmError;

pub use boot::{BootError, ElfError, Entry, Kernel, Payload, boot, load_kernel};
pub use capabilities::Capabilities;
pub(crate) use capabilities::configure;
pub use state::{VcpuState, VmState};
pub(crate) use step::{Step, step};

/// What KVM must have.
pub const NEEDED: [Cap; 12] = [
    Cap::Irqchip,
    Cap::Ioeventfd,
    Cap::Irqfd,
    Cap::UserMemory,
    Cap::SetTssAddr,
    Cap::Pit2,
    Cap::AdjustClock,
    Cap::MpState,
    Cap::VcpuEvents,
    Cap::Xsave,
    Cap::ExtCpuid,
    Cap::ImmediateExit,
];

/// Gives a new machine its interrupt controllers and its timer.
pub(crate) fn prepare(vm: &VmFd) -> Result<(), KvmError> {
    vm.set_tss_address(layout::TSS)
        .map_err(KvmError::of("place the TSS"))?;
    vm.create_irq_chip()
        .map_err(KvmError::of("create the interrupt controllers"))?;
    // A kernel that does not know KVM's clock calibrates its own by the PIT.
    // The speaker's port then ends in the kernel as well.
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })
    .map_err(KvmError::of("create the timer"))
}
