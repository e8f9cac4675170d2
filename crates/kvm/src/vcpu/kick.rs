//! How a vCPU's thread is called out of the kernel.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The flag that makes KVM_RUN return at once.
///
/// A signal alone could come just before KVM_RUN and be lost. The flag is set
/// first: then either the signal interrupts KVM_RUN, or KVM_RUN sees the flag.
#[derive(Debug)]
pub(super) struct Kick {
    flag: NonNull<AtomicU8>,
}

// SAFETY: the flag is an atomic, and its mapping belongs to no thread.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// The flag of this vCPU. It must not be used once the vCPU is dropped.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        let flag: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        // A reference is never null.
        let flag = NonNull::new(flag.cast()).unwrap_or(NonNull::dangling());
        Self { flag }
    }

    pub(super) fn set(&self, on: bool) {
        // SAFETY: the byte lies in the vCPU's shared page, which is mapped as
        // long as the vCPU lives, and the owner of `self` does not outlive
        // that. The kernel only reads it, and we touch it only here.
        let flag = unsafe { self.flag.as_ref() };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

/// The signal that interrupts KVM_RUN.
pub(super) fn signal() -> i32 {
    SIGRTMIN()
}

/// Makes the signal interrupt, and do nothing else.
pub(super) fn listen() -> std::io::Result<()> {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(signal(), nothing)
        .map_err(|errno| std::io::Error::from_raw_os_error(errno.errno()))
}
