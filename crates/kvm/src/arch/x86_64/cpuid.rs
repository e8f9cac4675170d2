//! The processor that a guest sees: the host's, with its own place in its own
//! topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::Capabilities;

const FEATURES: u32 = 0x1;
const POWER: u32 = 0x6;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_2: u32 = 0x1f;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Bits of leaf 1.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_THREADS: u32 = 1 << 28;
/// The length of a cache line in units of 8 bytes, for CLFLUSH.
const CACHE_LINE: u32 = 8;

/// Levels of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The features of vCPU `id` of `count`, each a core of one package.
pub(super) fn for_vcpu(capabilities: &Capabilities, id: u8, count: u8) -> CpuId {
    let mut cpuid = capabilities.cpuid.clone();
    for entry in cpuid.as_mut_slice() {
        adapt(entry, id, count, capabilities.tsc_deadline);
    }
    cpuid
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, count: u8, tsc_deadline: bool) {
    let apic_id = u32::from(id);
    match entry.function {
        FEATURES => {
            entry.ebx =
                (entry.ebx & 0xff) | (CACHE_LINE << 8) | (u32::from(count) << 16) | (apic_id << 24);
            entry.ecx |= ECX_HYPERVISOR;
            // KVM has it without telling it among the supported features.
            // There is no other timer that a hardware-reduced ACPI machine
            // can use before its APIC's is calibrated.
            if tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            if count > 1 {
                entry.edx |= EDX_THREADS;
            } else {
                entry.edx &= !EDX_THREADS;
            }
        }
        // Turbo and the energy bias are the host's business.
        POWER => {
            entry.eax &= !0b10;
            entry.ecx &= !0b1000;
        }
        // No performance counters: they would tell of the host.
        PERFORMANCE => {
            entry.eax = 0;
            entry.ebx = 0;
            entry.ecx = 0;
            entry.edx = 0;
        }
        TOPOLOGY | TOPOLOGY_2 => topology(entry, apic_id, count),
        AMD_SIZES => {
            let bits = core_bits(count);
            entry.ecx = (entry.ecx & !0xf0ff) | u32::from(count.saturating_sub(1)) | (bits << 12);
        }
        AMD_TOPOLOGY => {
            entry.eax = apic_id;
            entry.ebx = (entry.ebx & !0xffff) | apic_id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u8) {
    entry.edx = apic_id;
    match entry.index {
        0 => {
            entry.eax = 0;
            entry.ebx = 1;
            entry.ecx = LEVEL_THREAD << 8;
        }
        1 => {
            entry.eax = core_bits(count);
            entry.ebx = u32::from(count);
            entry.ecx = (LEVEL_CORE << 8) | 1;
        }
        index => {
            entry.eax = 0;
            entry.ebx = 0;
            entry.ecx = index;
        }
    }
}

/// How many bits of an APIC id tell the core.
const fn core_bits(count: u8) -> u32 {
    (count as u32).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0x7eff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        adapt(&mut entry, id, count, true);
        entry
    }

    #[test]
    fn a_vcpu_knows_its_place() {
        let features = adapted(FEATURES, 0, 3, 4);
        assert_eq!(features.ebx >> 24, 3);
        assert_eq!((features.ebx >> 16) & 0xff, 4);
        assert_ne!(features.ecx & ECX_HYPERVISOR, 0);
        assert_ne!(features.ecx & ECX_TSC_DEADLINE, 0);
        assert_ne!(features.edx & EDX_THREADS, 0);
        assert_eq!(adapted(FEATURES, 0, 0, 1).edx & EDX_THREADS, 0);
        assert_eq!(adapted(TOPOLOGY, 1, 3, 4).edx, 3);
        assert_eq!(adapted(TOPOLOGY, 1, 3, 4).eax, 2);
        assert_eq!(adapted(AMD_TOPOLOGY, 0, 3, 4).eax, 3);
        assert_eq!(adapted(AMD_SIZES, 0, 3, 4).ecx & 0xff, 3);
    }

    #[test]
    fn core_bits_hold_every_id() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5), (255, 8)] {
            assert_eq!(core_bits(count), bits, "{count} vCPUs");
        }
    }

    #[test]
    fn performance_counters_are_hidden() {
        let entry = adapted(PERFORMANCE, 0, 0, 1);
        assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0));
    }
}
