//! Boot information of Linux's 64-bit entry (`Documentation/x86/boot.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::memory_map::Entry;
use super::{BootError, Initrd, layout};
use crate::Ram;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;
/// The first version that takes the ACPI tables' address.
const VERSION: u16 = 0x020e;
const LOADER_OTHER: u8 = 0xff;
const ALIGNMENT: u32 = 0x100_0000;

pub(super) fn write(
    memory: &Ram,
    map: &[Entry],
    initrd: Option<Initrd>,
    acpi: GuestAddress,
    command_line_length: usize,
) -> Result<(), BootError> {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.version = VERSION;
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.kernel_alignment = ALIGNMENT;
    params.hdr.cmd_line_ptr = low(layout::COMMAND_LINE);
    params.hdr.cmdline_size = u32::try_from(command_line_length).unwrap_or(u32::MAX);
    params.acpi_rsdp_addr = acpi.0;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.start);
        params.hdr.ramdisk_size = low(initrd.bytes);
    }
    for (to, entry) in params.e820_table.iter_mut().zip(map) {
        *to = boot_e820_entry {
            addr: entry.region.start,
            size: entry.region.bytes,
            r#type: entry.kind.number(),
        };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

/// An address below 2 GiB, which everything here is.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::memory_map;
    use super::*;
    use crate::{Backing, GuestRam};

    #[test]
    fn a_kernel_finds_what_it_needs() {
        let ram = GuestRam::allocate(&layout::memory(64), Backing::Private).unwrap();
        let map = memory_map::of(ram.regions());
        let initrd = Initrd {
            start: 0x300_0000,
            bytes: 77,
        };
        let acpi = GuestAddress(layout::ACPI);
        write(ram.memory(), &map, Some(initrd), acpi, 5).unwrap();
        // By the offsets of the protocol, not by the struct.
        let word = |offset: u64| -> u32 {
            ram.memory()
                .read_obj(GuestAddress(layout::ZERO_PAGE + offset))
                .unwrap()
        };
        assert_eq!(word(0x202), HEADER);
        assert_eq!(word(0x218), 0x300_0000);
        assert_eq!(word(0x21c), 77);
        assert_eq!(u64::from(word(0x228)), layout::COMMAND_LINE);
        assert_eq!(u64::from(word(0x70)), layout::ACPI);
        assert_eq!(word(0x1e8) & 0xff, 3);
    }
}
