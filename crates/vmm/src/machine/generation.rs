//! Which of its copies a machine is.

use skiff_base::random;
use skiff_kvm::arch::layout;
use skiff_kvm::{GuestRam, Vm};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;

/// The machine's generation: 16 bytes in its memory that no other has.
#[derive(Debug)]
pub(super) struct Generation {
    interrupt: EventFd,
}

impl Generation {
    /// The first one.
    pub(super) fn begin(vm: &Vm, ram: &GuestRam) -> Result<Self, MachineError> {
        let generation = Self {
            interrupt: vm.interrupt(layout::GENERATION_GSI)?,
        };
        write(ram)?;
        Ok(generation)
    }

    /// Another one, of which the guest is told.
    pub(super) fn renew(&self, ram: &GuestRam) -> Result<(), MachineError> {
        write(ram)?;
        let raised = self.interrupt.write(1);
        raised.map_err(MachineError::io("tell of a new generation"))
    }
}

fn write(ram: &GuestRam) -> Result<(), MachineError> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    let written = ram
        .memory()
        .write_slice(&bytes, GuestAddress(layout::GENERATION));
    written.map_err(|error| MachineError::io("write the generation")(std::io::Error::other(error)))
}
