//! Registers at a kernel's entry.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::boot::{BootError, Entry, Kernel};
use super::layout;
use crate::{KvmError, Ram};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_ENABLED: u64 = 1 << 8;
const EFER_LONG_ACTIVE: u64 = 1 << 10;
/// Bit 1 is always one.
const FLAGS: u64 = 2;

/// What the x87 unit and SSE are set to at reset.
const FPU_CONTROL: u16 = 0x37f;
const SSE_CONTROL: u32 = 0x1f80;

/// Flags of a segment in a descriptor: the access byte in bits 0 to 7, the
/// size and granularity in bits 12 to 15.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TASK_32: u16 = 0x008b;
const TASK_64: u16 = 0x808b;
const LIMIT: u32 = 0xf_ffff;

/// Sets the first vCPU to the kernel's first instruction. The others wait for
/// it to start them.
pub(super) fn enter(vcpu: &VcpuFd, memory: &Ram, kernel: &Kernel) -> Result<(), BootError> {
    let mut registers = kvm_regs {
        rflags: FLAGS,
        rip: kernel.address,
        ..Default::default()
    };
    match kernel.entry {
        Entry::Pvh => registers.rbx = layout::PVH_INFO,
        Entry::Long => {
            registers.rsi = layout::ZERO_PAGE;
            registers.rsp = layout::STACK;
            registers.rbp = layout::STACK;
        }
    }
    vcpu.set_regs(&registers)
        .map_err(KvmError::of("set a vCPU's registers"))?;
    vcpu.set_fpu(&kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: SSE_CONTROL,
        ..Default::default()
    })
    .map_err(KvmError::of("set a vCPU's floating-point unit"))?;

    let mut special = vcpu
        .get_sregs()
        .map_err(KvmError::of("read a vCPU's special registers"))?;
    segments(&mut special, memory, kernel.entry)?;
    match kernel.entry {
        Entry::Pvh => special.cr0 = CR0_PROTECTED | CR0_EXTENSION,
        Entry::Long => {
            page_tables(memory)?;
            special.cr3 = layout::PAGE_TABLES;
            special.cr4 |= CR4_PAE;
            special.cr0 |= CR0_PROTECTED | CR0_EXTENSION | CR0_PAGING;
            special.efer |= EFER_LONG_ENABLED | EFER_LONG_ACTIVE;
        }
    }
    vcpu.set_sregs(&special)
        .map_err(KvmError::of("set a vCPU's special registers"))?;
    Ok(())
}

fn segments(special: &mut kvm_sregs, memory: &Ram, entry: Entry) -> Result<(), BootError> {
    let (code, task) = match entry {
        Entry::Pvh => (CODE_32, TASK_32),
        Entry::Long => (CODE_64, TASK_64),
    };
    let task_limit = if entry == Entry::Pvh { 0x67 } else { LIMIT };
    let table = [
        0,
        descriptor(code, LIMIT),
        descriptor(DATA, LIMIT),
        descriptor(task, task_limit),
    ];
    for (address, value) in (layout::GDT..).step_by(8).zip(table) {
        memory.write_obj(value.to_le(), GuestAddress(address))?;
    }
    memory.write_obj(0_u64, GuestAddress(layout::IDT))?;

    special.gdt.base = layout::GDT;
    special.gdt.limit = 4 * 8 - 1;
    special.idt.base = layout::IDT;
    special.idt.limit = 8 - 1;
    special.cs = segment(code, LIMIT, 1);
    let data = segment(DATA, LIMIT, 2);
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.tr = segment(task, task_limit, 3);
    Ok(())
}

/// A descriptor of base 0.
fn descriptor(flags: u16, limit: u32) -> u64 {
    let limit = u64::from(limit);
    ((limit & 0xf_0000) << 32) | (u64::from(flags) << 40) | (limit & 0xffff)
}

/// The same as a register, at its place in the table.
fn segment(flags: u16, limit: u32, place: u16) -> kvm_segment {
    let bit = |at: u16| u8::from(flags & (1 << at) != 0);
    let granular = bit(15);
    kvm_segment {
        base: 0,
        limit: if granular == 1 {
            (limit << 12) | 0xfff
        } else {
            limit
        },
        selector: place * 8,
        type_: (flags & 0xf).to_le_bytes()[0],
        s: bit(4),
        dpl: 0,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: granular,
        ..Default::default()
    }
}

/// The first 4 GiB at their own addresses, in pages of 2 MiB.
fn page_tables(memory: &Ram) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 0x1000;
    const PAGE: u64 = 2 << 20;

    let pointers = layout::PAGE_TABLES + TABLE;
    let directories = pointers + TABLE;
    memory.write_obj(
        (pointers | PRESENT_WRITABLE).to_le(),
        GuestAddress(layout::PAGE_TABLES),
    )?;
    for gib in 0..4 {
        let directory = directories + gib * TABLE;
        memory.write_obj(
            (directory | PRESENT_WRITABLE).to_le(),
            GuestAddress(pointers + gib * 8),
        )?;
        for page in 0..512 {
            let entry = ((gib * 512 + page) * PAGE) | PRESENT_WRITABLE | LARGE;
            memory.write_obj(entry.to_le(), GuestAddress(directory + page * 8))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, GuestRam};

    #[test]
    fn descriptors_are_those_of_the_linux_boot_protocol() {
        assert_eq!(descriptor(CODE_64, LIMIT), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(CODE_32, LIMIT), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA, LIMIT), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(TASK_32, 0x67), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn a_segment_is_its_descriptor_unpacked() {
        let code = segment(CODE_64, LIMIT, 1);
        assert_eq!(code.limit, 0xffff_ffff);
        assert_eq!(
            (code.l, code.db, code.g, code.present, code.s),
            (1, 0, 1, 1, 1)
        );
        assert_eq!(code.type_, 0xb);
        assert_eq!(code.selector, 8);
        assert_eq!(segment(TASK_32, 0x67, 3).limit, 0x67);
        assert_eq!(segment(TASK_32, 0x67, 3).s, 0);
    }

    #[test]
    fn page_tables_map_every_address_to_itself() {
        let ram = GuestRam::allocate(&layout::memory(2), Backing::Private).unwrap();
        let memory = ram.memory();
        page_tables(memory).unwrap();
        let read = |address: u64| -> u64 { memory.read_obj(GuestAddress(address)).unwrap() };
        for address in [0, 0x12_3456, 0xc000_1000_u64, 0xffff_ffff] {
            let pointer = read(layout::PAGE_TABLES) & !0xfff;
            let directory = read(pointer + (address >> 30) * 8) & !0xfff;
            let page = read(directory + ((address >> 21) & 511) * 8);
            assert_eq!(page & !0xfff, address & !0x1f_ffff);
            assert_eq!(page & 0x83, 0x83);
        }
    }
}
