//! One stretch of a guest's life: from KVM_RUN to the next exit.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::{Bus, GuestExit, Outcome};

/// What ended a stretch.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing that matters: go on.
    Continue,
    /// Somebody wants the vCPU's attention. Every access is complete.
    Interrupted,
    /// The machine is over.
    Exit(GuestExit),
}

impl From<Outcome> for Step {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Continue => Self::Continue,
            Outcome::Exit(exit) => Self::Exit(exit),
        }
    }
}

/// Runs the guest until it leaves the kernel.
pub(crate) fn step(vcpu: &mut VcpuFd, bus: &dyn Bus) -> Step {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(errno) => return failure(errno.errno()),
    };
    match exit {
        VcpuExit::MmioRead(address, data) => {
            bus.read(address, data);
            Step::Continue
        }
        VcpuExit::MmioWrite(address, data) => bus.write(address, data).into(),
        VcpuExit::IoIn(port, data) => {
            bus.port_read(port, data);
            Step::Continue
        }
        VcpuExit::IoOut(port, data) => bus.port_write(port, data).into(),
        // With interrupt controllers in the kernel a halt stays there; what
        // comes here has nothing to wake it.
        VcpuExit::Hlt | VcpuExit::Intr => Step::Continue,
        VcpuExit::Shutdown => Step::Exit(GuestExit::TripleFault),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Step::Exit(GuestExit::Reset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Step::Exit(GuestExit::PowerOff),
        VcpuExit::InternalError => Step::Exit(internal(vcpu)),
        VcpuExit::FailEntry(reason, cpu) => Step::Exit(GuestExit::Kvm(format!(
            "the processor refuses to enter the guest on CPU {cpu}, reason {reason:#x}"
        ))),
        other => Step::Exit(GuestExit::Kvm(format!("exit {other:?}"))),
    }
}

fn failure(errno: i32) -> Step {
    match errno {
        libc::EINTR => Step::Interrupted,
        libc::EAGAIN => Step::Continue,
        _ => Step::Exit(GuestExit::Kvm(format!(
            "KVM_RUN: {}",
            std::io::Error::from_raw_os_error(errno)
        ))),
    }
}

fn internal(vcpu: &mut VcpuFd) -> GuestExit {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, whose member of the union
    // this is; all of its bit patterns are valid.
    let error = unsafe { run.__bindgen_anon_1.internal };
    if error.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return GuestExit::Kvm(format!("internal error {}", error.suberror));
    }
    // Since Linux 5.14 the first word has flags, of which bit 0 says that the
    // length and the bytes of the instruction follow.
    let bytes = match error.data {
        [flags, first, second, ..] if error.ndata >= 3 && flags & 1 != 0 => {
            let packed = [first.to_le_bytes(), second.to_le_bytes()].concat();
            let length = usize::from(packed[0]).min(packed.len() - 1);
            packed[1..=length].to_vec()
        }
        _ => Vec::new(),
    };
    let instruction_pointer = vcpu.get_regs().map_or(0, |registers| registers.rip);
    GuestExit::Emulation {
        instruction_pointer,
        bytes,
    }
}
