//! Virtual machines over KVM: vCPUs, memory, interrupts, and what a kernel
//! must find to boot.
//!
//! It knows no device: an access that KVM does not serve goes to a [`Bus`],
//! which the monitor gives. It reads no configuration and opens no file but
//! `/dev/kvm`.
//!
//! Invariants: guest memory outlives the machine that it is mapped into; a
//! vCPU is touched by its own thread, or by nobody while it runs; a state
//! that is saved carries its version; bytes of a kernel file are hostile.
//!
//! Entry points: [`Host::open`], [`Vm::create`], [`GuestRam::allocate`],
//! [`arch::load_kernel`], [`VcpuThread::spawn`]. What differs between
//! processors is in [`arch`].

pub mod arch;
mod bus;
mod error;
mod exit;
mod host;
mod memory;
mod vcpu;
mod vm;

pub use bus::{Bus, Outcome};
pub use error::KvmError;
pub use exit::GuestExit;
pub use host::{Host, HostError};
pub use memory::{Backing, GuestRam, MemoryError, Ram, RamRegion, Region};
pub use vcpu::{Phase, ThreadError, Vcpu, VcpuThread};
pub use vm::Vm;
