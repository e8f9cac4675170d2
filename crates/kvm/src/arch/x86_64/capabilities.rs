use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::{cpuid, interrupts, msrs};
use crate::{Host, KvmError};

/// What this machine's KVM offers to guests, read once for all vCPUs.
#[derive(Debug, Clone)]
pub struct Capabilities {
    pub(super) cpuid: CpuId,
    pub(super) saved_msrs: Vec<u32>,
    pub(super) xsave_bytes: usize,
    pub(super) tsc_deadline: bool,
}

impl Capabilities {
    pub(crate) fn read(host: &Host, vm: &VmFd) -> Result<Self, KvmError> {
        let cpuid = host
            .kvm()
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("tell the processor's features"))?;
        let saved_msrs = host
            .kvm()
            .get_msr_index_list()
            .map_err(KvmError::of("list the machine-specific registers"))?
            .as_slice()
            .to_vec();
        // Zero when there is no such extension: then it is the legacy length.
        let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            cpuid,
            saved_msrs,
            xsave_bytes,
            tsc_deadline: host.kvm().check_extension(Cap::TscDeadlineTimer),
        })
    }
}

/// Makes a vCPU what the guest will see: its features, its machine-specific
/// registers at reset, its interrupt pins.
pub(crate) fn configure(
    vcpu: &VcpuFd,
    id: u8,
    count: u8,
    capabilities: &Capabilities,
) -> Result<(), KvmError> {
    let cpuid = cpuid::for_vcpu(capabilities, id, count);
    vcpu.set_cpuid2(&cpuid)
        .map_err(KvmError::of("set the processor's features"))?;
    msrs::reset(vcpu)?;
    interrupts::reset(vcpu)
}
