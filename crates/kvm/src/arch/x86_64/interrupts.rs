//! A vCPU's local APIC at reset.

use kvm_ioctls::VcpuFd;

use crate::KvmError;

/// Offsets into the APIC's registers.
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// How a pin delivers.
const MODE_EXTERNAL: u32 = 7;
const MODE_NMI: u32 = 4;

/// The PIC's output goes to pin 0, non-maskable interrupts to pin 1, as the
/// firmware of a PC leaves them.
pub(super) fn reset(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut apic = vcpu
        .get_lapic()
        .map_err(KvmError::of("read a local APIC"))?;
    for (offset, mode) in [(LINT0, MODE_EXTERNAL), (LINT1, MODE_NMI)] {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(&apic.regs[offset..offset + 4]) {
            *to = from.to_ne_bytes()[0];
        }
        let value = (u32::from_le_bytes(bytes) & !0x700) | (mode << 8);
        for (to, from) in apic.regs[offset..offset + 4]
            .iter_mut()
            .zip(value.to_le_bytes())
        {
            *to = std::ffi::c_char::from_ne_bytes([from]);
        }
    }
    vcpu.set_lapic(&apic)
        .map_err(KvmError::of("set a local APIC"))
}
