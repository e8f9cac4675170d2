//! What differs between processors. Every architecture has the same names:
//! `NEEDED`, `prepare`, `Capabilities`, `VcpuState`, `VmState`, `layout`,
//! `load_kernel`, `boot`.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("skiff-kvm knows x86_64 only: another architecture is a folder beside arch/x86_64");
