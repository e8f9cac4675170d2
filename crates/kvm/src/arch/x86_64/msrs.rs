//! Machine-specific registers at reset.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::KvmError;

const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_MASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC: u32 = 0x10;
const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// Quick string operations.
const FAST_STRING: u64 = 1;
/// MTRRs on, and everything write-back but what they say.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

pub(super) fn reset(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let values = [
        (SYSENTER_CS, 0),
        (SYSENTER_ESP, 0),
        (SYSENTER_EIP, 0),
        (STAR, 0),
        (LSTAR, 0),
        (CSTAR, 0),
        (SYSCALL_MASK, 0),
        (KERNEL_GS_BASE, 0),
        (TSC, 0),
        (MISC_ENABLE, FAST_STRING),
        (MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let entries = values.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    set(vcpu, &entries)
}

/// Sets them all, or says that one is refused.
pub(super) fn set(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let what = "set the machine-specific registers";
    let msrs = Msrs::from_entries(entries)
        .map_err(|error| KvmError::io(what)(std::io::Error::other(format!("{error:?}"))))?;
    let done = vcpu.set_msrs(&msrs).map_err(KvmError::of(what))?;
    match entries.get(done) {
        None => Ok(()),
        Some(entry) => Err(KvmError::io(what)(std::io::Error::other(format!(
            "{:#x} does not take {:#x}",
            entry.index, entry.data
        )))),
    }
}
