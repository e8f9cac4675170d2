//! Boot information of the PVH protocol (Xen, `docs/misc/pvh.pandoc`).

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::memory_map::Entry;
use super::{BootError, Initrd, layout};
use crate::Ram;

const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;

pub(super) fn write(
    memory: &Ram,
    map: &[Entry],
    initrd: Option<Initrd>,
    acpi: GuestAddress,
) -> Result<(), BootError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: acpi.0,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES;
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.bytes,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
    }
    let size = size_of::<hvm_memmap_table_entry>();
    for (address, entry) in (layout::PVH_MEMORY_MAP..).step_by(size).zip(map) {
        let entry = hvm_memmap_table_entry {
            addr: entry.region.start,
            size: entry.region.bytes,
            type_: entry.kind.number(),
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(address))?;
    }
    memory.write_obj(info, GuestAddress(layout::PVH_INFO))?;
    Ok(())
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
        write(ram.memory(), &map, Some(initrd), GuestAddress(layout::ACPI)).unwrap();
        let info: hvm_start_info = ram
            .memory()
            .read_obj(GuestAddress(layout::PVH_INFO))
            .unwrap();
        assert_eq!(info.magic, MAGIC);
        assert_eq!(info.rsdp_paddr, layout::ACPI);
        assert_eq!(info.memmap_entries, 3);
        let module: hvm_modlist_entry = ram
            .memory()
            .read_obj(GuestAddress(info.modlist_paddr))
            .unwrap();
        assert_eq!((module.paddr, module.size), (0x300_0000, 77));
        let last: hvm_memmap_table_entry = ram
            .memory()
            .read_obj(GuestAddress(info.memmap_paddr + 2 * 24))
            .unwrap();
        assert_eq!(last.addr + last.size, 64 << 20);
    }
}
