//! Drivers of the first virtio device, which must be a disk or a network
//! interface.

use crate::program;

/// What [`BLOCK`] says behind the 16 bytes that it read: three requests, each
/// done, and an interrupt for each.
pub const BLOCK_SAYS: &str = "|000|3\n";
/// The sector that [`BLOCK`] copies sector 1 to.
pub const BLOCK_WRITES: usize = 2;
/// How many requests [`BLOCK_LOAD`] and [`NET_LOAD`] make.
pub const LOAD_REQUESTS: u32 = 2000;
/// What they say when all are done.
pub const LOAD_SAYS: &str = "0\n";

/// Assembles a driver: it takes the device's interrupt, does its work on one
/// of its queues, and its end is its own.
///
/// Of the work's registers r9 counts requests, r10 interrupts, and r8 is where
/// the device is. At 65 is what makes descriptor 0's chain available and waits
/// until it is used.
macro_rules! driver {
    ($(#[$doc:meta])* $name:ident, $start:ident, $end:ident, $queue:literal, $($work:literal,)+) => {
        program!(
            $(#[$doc])*
            $name, $start, $end,
            // No interrupt by the PICs.
            "mov al, 0xff",
            "out 0x21, al",
            "out 0xa1, al",
            // Vector 0x20 goes to the handler below.
            "lea rax, [rip + 70f]",
            "mov edi, 0x190200",
            "mov word ptr [rdi], ax",
            "mov word ptr [rdi + 2], 8",
            "mov word ptr [rdi + 4], 0x8e00",
            "shr rax, 16",
            "mov word ptr [rdi + 6], ax",
            "mov qword ptr [rdi + 8], 0",
            "lidt [rip + 80f]",
            // The local APIC is on, and pin 5 of the I/O APIC gives vector 0x20.
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov ecx, 0xfec00000",
            "mov dword ptr [rcx], 0x1b",
            "mov dword ptr [rcx + 0x10], 0",
            "mov dword ptr [rcx], 0x1a",
            "mov dword ptr [rcx + 0x10], 0x20",
            // The device's registers, as the table below says.
            "mov r8d, 0xc0000000",
            "lea rsi, [rip + 90f]",
            "mov ecx, 19",
            "2: lodsd",
            "mov edx, eax",
            "lodsd",
            "mov dword ptr [r8 + rdx], eax",
            "loop 2b",
            // r9 counts requests, r10 interrupts.
            "xor r9d, r9d",
            "xor r10d, r10d",
            $($work,)+
            // Makes the chain that begins with descriptor 0 available, and waits.
            "65: mov ebx, 0x182000",
            "mov eax, r9d",
            "and eax, 7",
            "mov word ptr [rbx + rax * 2 + 4], 0",
            "inc r9d",
            "mov word ptr [rbx + 2], r9w",
            concat!("mov dword ptr [r8 + 0x50], ", $queue),
            // Sleep until as many interrupts as requests have come.
            "62: cli",
            "cmp r10d, r9d",
            "je 63f",
            "sti",
            "hlt",
            "jmp 62b",
            "63: ret",
            // The interrupt: read why, acknowledge, and tell the APIC.
            "70: push rax",
            "push rbx",
            "mov eax, dword ptr [r8 + 0x60]",
            "mov dword ptr [r8 + 0x64], eax",
            "inc r10d",
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xb0], 0",
            "pop rbx",
            "pop rax",
            "iretq",
            // The table of handlers: only vector 0x20 is there.
            "80: .word 0x20f",
            ".quad 0x190000",
            // Registers and what is written to them: reset, acknowledge, driver;
            // VERSION_1 and nothing else; a queue of 8; ready.
            "90: .long 0x70, 0, 0x70, 1, 0x70, 3",
            ".long 0x24, 1, 0x20, 1, 0x24, 0, 0x20, 0",
            ".long 0x70, 0xb",
            concat!(".long 0x30, ", $queue, ", 0x38, 8"),
            ".long 0x80, 0x181000, 0x84, 0",
            ".long 0x90, 0x182000, 0x94, 0",
            ".long 0xa0, 0x183000, 0xa4, 0",
            ".long 0x44, 1",
            ".long 0x70, 0xf, 0x70, 0xf",
        );
    };
}

driver!(
    /// Reads sector 1 of the disk, writes what it read to sector 2, flushes,
    /// says the first 16 bytes and how the requests ended, and resets.
    BLOCK, skiff_flat_block, skiff_flat_block_end, "0",
    // Read sector 1 into the buffer.
    "mov edi, 0",
    "mov esi, 1",
    "mov edx, 3",
    "call 60f",
    // Write it to sector 2.
    "mov edi, 1",
    "mov esi, 2",
    "mov edx, 1",
    "call 60f",
    // Flush: the header is followed by the status.
    "mov edi, 4",
    "mov esi, 0",
    "mov edx, 0",
    "call 60f",
    // Say it.
    "mov esi, 0x184000",
    "mov edx, 0x3f8",
    "mov ecx, 16",
    "rep outsb",
    "mov al, '|'",
    "out dx, al",
    "mov esi, 0x185000",
    "mov ecx, 3",
    "3: lodsb",
    "add al, '0'",
    "out dx, al",
    "loop 3b",
    "mov al, '|'",
    "out dx, al",
    "mov eax, r10d",
    "add al, '0'",
    "out dx, al",
    "mov al, 10",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    // One request: edi its kind, esi its sector, edx the flags of the data's
    // descriptor, or 0 for none. Its status goes to 0x185000 + r9.
    "60: mov eax, 0x186000",
    "mov dword ptr [rax], edi",
    "mov dword ptr [rax + 4], 0",
    "mov qword ptr [rax + 8], rsi",
    // Descriptor 0 is the header.
    "mov ebx, 0x181000",
    "mov qword ptr [rbx], rax",
    "mov dword ptr [rbx + 8], 16",
    "mov word ptr [rbx + 12], 1",
    "mov word ptr [rbx + 14], 2",
    "test edx, edx",
    "jz 61f",
    "mov word ptr [rbx + 14], 1",
    // Descriptor 1 is the data.
    "61: mov qword ptr [rbx + 16], 0x184000",
    "mov dword ptr [rbx + 24], 512",
    "mov word ptr [rbx + 28], dx",
    "mov word ptr [rbx + 30], 2",
    // Descriptor 2 is the status.
    "lea rax, [r9 + 0x185000]",
    "mov byte ptr [rax], 0x7f",
    "mov qword ptr [rbx + 32], rax",
    "mov dword ptr [rbx + 40], 1",
    "mov dword ptr [rbx + 44], 2",
    "jmp 65f",
);

driver!(
    /// Reads sector 1 of the disk again and again, says whether all was done,
    /// and halts.
    BLOCK_LOAD, skiff_flat_block_load, skiff_flat_block_load_end, "0",
    // Header, data, status: the same for all.
    "mov eax, 0x186000",
    "mov qword ptr [rax], 0",
    "mov qword ptr [rax + 8], 1",
    "mov ebx, 0x181000",
    "mov qword ptr [rbx], rax",
    "mov dword ptr [rbx + 8], 16",
    "mov dword ptr [rbx + 12], 0x10001",
    "mov qword ptr [rbx + 16], 0x184000",
    "mov dword ptr [rbx + 24], 512",
    "mov dword ptr [rbx + 28], 0x20003",
    "mov qword ptr [rbx + 32], 0x185000",
    "mov dword ptr [rbx + 40], 1",
    "mov dword ptr [rbx + 44], 2",
    "xor r11d, r11d",
    "4: mov byte ptr [0x185000], 0x7f",
    "call 65f",
    "or r11b, byte ptr [0x185000]",
    "cmp r9d, 2000",
    "jne 4b",
    "mov edx, 0x3f8",
    "mov al, r11b",
    "add al, '0'",
    "out dx, al",
    "mov al, 10",
    "out dx, al",
    "5: cli",
    "hlt",
    "jmp 5b",
);

driver!(
    /// Sends the same 60 bytes over the network interface again and again, says
    /// that it has, and halts.
    NET_LOAD, skiff_flat_net_load, skiff_flat_net_load_end, "1",
    // A header of zeros, and a frame to nobody of a kind that is nothing's.
    "mov ebx, 0x184000",
    "mov word ptr [rbx + 24], 0xb588",
    "mov ebx, 0x181000",
    "mov qword ptr [rbx], 0x184000",
    "mov dword ptr [rbx + 8], 72",
    "mov dword ptr [rbx + 12], 0",
    "4: call 65f",
    "cmp r9d, 2000",
    "jne 4b",
    "mov edx, 0x3f8",
    "mov al, '0'",
    "out dx, al",
    "mov al, 10",
    "out dx, al",
    "5: cli",
    "hlt",
    "jmp 5b",
);
