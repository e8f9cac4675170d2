//! Where everything is in guest-physical memory.
//!
//! ```text
//!          0 ┬ GDT, boot information, page tables, command line
//!    0x9fc00 ┼ reserved; ACPI tables from 0xe0000, the generation at 0xff000
//!   0x100000 ┼ kernel, initramfs at the end
//!      3 GiB ┼ device windows, interrupt controllers
//!      4 GiB ┼ the rest of the memory
//! ```

use crate::Region;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The global descriptor table.
pub const GDT: u64 = 0x500;
/// An interrupt descriptor table with nothing in it.
pub const IDT: u64 = 0x520;
/// What PVH tells the kernel.
pub const PVH_INFO: u64 = 0x6000;
/// The initramfs, for PVH.
pub const PVH_MODULES: u64 = 0x6040;
/// The memory map, for PVH.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// What the 64-bit entry tells the kernel.
pub const ZERO_PAGE: u64 = 0x7000;
/// The stack at the 64-bit entry.
pub const STACK: u64 = 0x8ff0;
/// The page tables at the 64-bit entry: one table of four entries above four
/// of 512, each 2 MiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line, its zero included: x86 kernels have 2,048 bytes.
pub const COMMAND_LINE_MAX: usize = 2048;
/// The first memory that is not the kernel's to use.
pub const LOW_END: u64 = 0x9_fc00;
/// The ACPI tables, the pointer to them first.
pub const ACPI: u64 = 0xe_0000;
/// The first address behind them.
pub const ACPI_END: u64 = GENERATION;
/// The machine's generation, of 16 bytes, in a page of its own.
pub const GENERATION: u64 = 0xf_f000;
/// The first address behind what is reserved below the kernel.
pub const RESERVED_END: u64 = 0x10_0000;
/// The first address of a kernel.
pub const KERNEL: u64 = 0x10_0000;
/// Kernels want their initramfs below this.
pub const INITRD_END: u64 = 0x8000_0000;
/// The first address of the hole below 4 GiB.
pub const HOLE: u64 = 3 * GIB;
/// The first address behind the hole.
pub const HOLE_END: u64 = 4 * GIB;
/// The first device's window.
pub const DEVICES: u64 = HOLE;
/// A device's window.
pub const DEVICE_BYTES: u64 = 0x1000;
/// The first interrupt for devices; the ones before are those of the PC.
pub const FIRST_GSI: u32 = 5;
/// The last interrupt: a 24-pin I/O APIC is what KVM has.
pub const LAST_GSI: u32 = 23;
/// The interrupt that tells of a new generation: that of a second serial port,
/// which there is not.
pub const GENERATION_GSI: u32 = 3;
/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Each vCPU's local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on old Intel processors.
pub const TSS: usize = 0xfffb_d000;

/// The serial port's I/O ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// How many they are.
pub const SERIAL_PORTS: u16 = 8;
/// The serial port's interrupt.
pub const SERIAL_GSI: u32 = 4;
/// The keyboard controller's command port, where a PC is reset.
pub const RESET_PORT: u16 = 0x64;
/// What is written there to reset.
pub const RESET_VALUE: u8 = 0xfe;
/// ACPI's sleep control register, where a machine is switched off.
pub const SLEEP_PORT: u16 = 0x600;
/// What ACPI writes there for S5: sleep type 5 and the enable bit.
pub const SLEEP_OFF: u8 = (5 << 2) | (1 << 5);

/// The smallest machine: what is below 1 MiB is no place for a program.
pub const MIN_MEMORY_MIB: u64 = 2;
/// The largest memory that the map and its page tables are made for.
pub const MAX_MEMORY_MIB: u64 = 1 << 20;

/// The regions of a machine with this much memory.
#[must_use]
pub fn memory(mib: u64) -> Vec<Region> {
    let bytes = mib.saturating_mul(MIB);
    let low = Region {
        start: 0,
        bytes: bytes.min(HOLE),
    };
    let high = Region {
        start: HOLE_END,
        bytes: bytes - low.bytes,
    };
    [low, high]
        .into_iter()
        .filter(|region| region.bytes > 0)
        .collect()
}

/// The last interrupt and window that a device can have.
#[must_use]
pub const fn max_devices() -> usize {
    (LAST_GSI - FIRST_GSI + 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_free() {
        let small = memory(128);
        assert_eq!(small.len(), 1);
        assert_eq!(small[0].end(), 128 * MIB);

        let exact = memory(3 * 1024);
        assert_eq!(exact.len(), 1);
        assert_eq!(exact[0].end(), HOLE);

        let large = memory(5 * 1024);
        assert_eq!(large[0].end(), HOLE);
        assert_eq!(large[1].start, HOLE_END);
        assert_eq!(large[1].bytes, 2 * GIB);
    }

    #[test]
    fn device_windows_end_before_the_interrupt_controllers() {
        let end = DEVICES + max_devices() as u64 * DEVICE_BYTES;
        assert!(end <= u64::from(IO_APIC));
    }
}
