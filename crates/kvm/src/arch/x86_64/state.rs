//! What a vCPU and a machine hold, as plain values.
//!
//! The order of the calls is KVM's: some read what others set.

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{Capabilities, msrs};
use crate::KvmError;

/// The interrupt of the APIC's timer in TSC-deadline mode.
const TSC_DEADLINE: u32 = 0x6e0;

/// A vCPU between two instructions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    /// The version of this struct.
    pub version: u32,
    mp: kvm_mp_state,
    registers: kvm_regs,
    special: kvm_sregs,
    extended: Vec<u32>,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    apic: kvm_lapic_state,
    tsc_khz: u32,
    cpuid: Vec<kvm_cpuid_entry2>,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;

    pub(crate) fn save(vcpu: &VcpuFd, capabilities: &Capabilities) -> Result<Self, KvmError> {
        let say = KvmError::of("save a vCPU");
        // First: it completes what an interrupt has begun in the kernel.
        let mp = vcpu.get_mp_state().map_err(&say)?;
        Ok(Self {
            version: Self::VERSION,
            mp,
            registers: vcpu.get_regs().map_err(&say)?,
            special: vcpu.get_sregs().map_err(&say)?,
            extended: save_extended(vcpu, capabilities)?,
            extended_control: vcpu.get_xcrs().map_err(&say)?,
            debug: vcpu.get_debug_regs().map_err(&say)?,
            apic: vcpu.get_lapic().map_err(&say)?,
            tsc_khz: vcpu.get_tsc_khz().map_err(&say)?,
            cpuid: vcpu
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map_err(&say)?
                .as_slice()
                .to_vec(),
            msrs: save_msrs(vcpu, &capabilities.saved_msrs)?,
            events: vcpu.get_vcpu_events().map_err(&say)?,
        })
    }

    pub(crate) fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let say = KvmError::of("restore a vCPU");
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|error| {
            KvmError::io("restore a vCPU")(std::io::Error::other(format!("{error:?}")))
        })?;
        vcpu.set_cpuid2(&cpuid).map_err(&say)?;
        vcpu.set_mp_state(self.mp).map_err(&say)?;
        vcpu.set_regs(&self.registers).map_err(&say)?;
        vcpu.set_sregs(&self.special).map_err(&say)?;
        restore_extended(vcpu, &self.extended)?;
        vcpu.set_xcrs(&self.extended_control).map_err(&say)?;
        vcpu.set_debug_regs(&self.debug).map_err(&say)?;
        vcpu.set_lapic(&self.apic).map_err(&say)?;
        self.restore_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(&say)
    }

    /// The deadline last: it arms the timer by the clock that the others set.
    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let (deadline, others): (Vec<_>, Vec<_>) = self
            .msrs
            .iter()
            .copied()
            .partition(|entry| entry.index == TSC_DEADLINE);
        msrs::set(vcpu, &others)?;
        msrs::set(vcpu, &deadline)
    }
}

/// All that KVM lists and can read here, one by one where a batch stops: it
/// lists some that a processor lacks.
fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let what = "save the machine-specific registers";
    let mut saved = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked: Vec<_> = rest
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&asked)
            .map_err(|error| KvmError::io(what)(std::io::Error::other(format!("{error:?}"))))?;
        let read = vcpu.get_msrs(&mut msrs).map_err(KvmError::of(what))?;
        saved.extend_from_slice(msrs.as_slice().get(..read).unwrap_or(msrs.as_slice()));
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    // What reads and cannot be set back as it was is no state: probe it once.
    saved.retain(|entry| msrs::set(vcpu, &[*entry]).is_ok());
    Ok(saved)
}

fn save_extended(vcpu: &VcpuFd, capabilities: &Capabilities) -> Result<Vec<u32>, KvmError> {
    let what = "save a vCPU's extended state";
    let legacy = size_of::<kvm_xsave>();
    if capabilities.xsave_bytes <= legacy {
        let state = vcpu.get_xsave().map_err(KvmError::of(what))?;
        return Ok(state.region.to_vec());
    }
    let extra = (capabilities.xsave_bytes - legacy).div_ceil(size_of::<u32>());
    let mut state = Xsave::new(extra)
        .map_err(|error| KvmError::io(what)(std::io::Error::other(format!("{error:?}"))))?;
    // SAFETY: the buffer has the length that KVM_CAP_XSAVE2 told for this
    // machine, and no feature is enabled after that.
    unsafe { vcpu.get_xsave2(&mut state) }.map_err(KvmError::of(what))?;
    let mut words = state.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(state.as_slice());
    Ok(words)
}

fn restore_extended(vcpu: &VcpuFd, words: &[u32]) -> Result<(), KvmError> {
    let what = "restore a vCPU's extended state";
    let mut legacy = kvm_xsave::default();
    let fixed = legacy.region.len();
    let (Some(region), Some(extra)) = (words.get(..fixed), words.get(fixed..)) else {
        return Err(KvmError::io(what)(std::io::Error::other(
            "the saved one is too short",
        )));
    };
    legacy.region.copy_from_slice(region);
    let mut state = Xsave::new(extra.len())
        .map_err(|error| KvmError::io(what)(std::io::Error::other(format!("{error:?}"))))?;
    state.as_mut_slice().copy_from_slice(extra);
    // SAFETY: only the fixed part is written; the number of entries stays.
    unsafe { state.as_mut_fam_struct() }.xsave = legacy;
    // SAFETY: KVM reads KVM_CAP_XSAVE2 bytes at most, which is the length
    // that was saved on a machine of the same features.
    unsafe { vcpu.set_xsave2(&state) }.map_err(KvmError::of(what))
}

/// What the vCPUs of a machine share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    /// The version of this struct.
    pub version: u32,
    timer: kvm_pit_state2,
    clock: kvm_clock_data,
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    io_apic: kvm_irqchip,
}

impl VmState {
    /// What this build writes and reads.
    pub const VERSION: u32 = 1;

    pub(crate) fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let say = KvmError::of("save a machine");
        let chip = |id| {
            let mut chip = kvm_irqchip {
                chip_id: id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).map(|()| chip)
        };
        let mut clock = vm.get_clock().map_err(&say)?;
        // What KVM tells about the clock is not what it takes back.
        clock.flags = 0;
        Ok(Self {
            version: Self::VERSION,
            timer: vm.get_pit2().map_err(&say)?,
            clock,
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER).map_err(&say)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE).map_err(&say)?,
            io_apic: chip(KVM_IRQCHIP_IOAPIC).map_err(&say)?,
        })
    }

    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        let say = KvmError::of("restore a machine");
        vm.set_pit2(&self.timer).map_err(&say)?;
        vm.set_clock(&self.clock).map_err(&say)?;
        for chip in [&self.pic_master, &self.pic_slave, &self.io_apic] {
            vm.set_irqchip(chip).map_err(&say)?;
        }
        Ok(())
    }
}
