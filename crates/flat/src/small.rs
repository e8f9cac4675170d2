//! Programs of a few instructions.

use crate::program;

/// What [`HELLO`] writes to the serial port.
pub const HELLO_SAYS: &str = "hello from a guest\n";

program!(
    /// Writes to the serial port, byte for byte and with one instruction for
    /// the rest, and resets.
    HELLO, skiff_flat_hello, skiff_flat_hello_end,
    "lea rsi, [rip + 3f]",
    "mov edx, 0x3f8",
    "mov ecx, 6",
    "2: lodsb",
    "out dx, al",
    "loop 2b",
    "mov ecx, 13",
    "rep outsb",
    "mov al, 0xfe",
    "out 0x64, al",
    "3: .ascii \"hello from a guest\\n\"",
);

program!(
    /// Switches itself off.
    POWER_OFF, skiff_flat_off, skiff_flat_off_end,
    "mov edx, 0x600",
    "mov al, 0x34",
    "out dx, al",
);

program!(
    /// Faults without a table of handlers.
    TRIPLE_FAULT, skiff_flat_fault, skiff_flat_fault_end,
    "lidt [rip + 2f]",
    "ud2",
    "2: .zero 10",
);

program!(
    /// Waits for an interrupt that cannot come.
    HALT, skiff_flat_halt, skiff_flat_halt_end,
    "cli",
    "2: hlt",
    "jmp 2b",
);

program!(
    /// Jumps to where no memory is.
    EMULATE, skiff_flat_emulate, skiff_flat_emulate_end,
    "mov eax, 0xc0800000",
    "jmp rax",
);

/// Where [`COUNT`] counts.
pub const COUNTER: u64 = 0x18_0000;

program!(
    /// Counts in memory for ever.
    COUNT, skiff_flat_count, skiff_flat_count_end,
    "mov ebx, 0x180000",
    "2: inc qword ptr [rbx]",
    "jmp 2b",
);

/// The port that [`ROUNDS`] writes to before each round.
pub const ROUND_PORT: u16 = 0x80;
/// How many instructions a round of [`ROUNDS`] is.
pub const ROUND_INSTRUCTIONS: u32 = 100_000;

program!(
    /// Runs rounds of [`ROUND_INSTRUCTIONS`] instructions for ever, each with
    /// one access to a port.
    ROUNDS, skiff_flat_rounds, skiff_flat_rounds_end,
    "2: out 0x80, al",
    "nop",
    "mov ecx, 49998",
    "3: dec ecx",
    "jnz 3b",
    "jmp 2b",
);

/// What [`NOWHERE`] writes to the serial port when all is as it must be.
pub const NOWHERE_SAYS: &str = "ok";

program!(
    /// Reads and writes device memory and ports where nothing is, says "ok"
    /// when it reads ones, and resets.
    NOWHERE, skiff_flat_nowhere, skiff_flat_nowhere_end,
    "mov ebx, 0xc0800000",
    "mov dword ptr [rbx], 1",
    "mov eax, dword ptr [rbx]",
    "cmp eax, -1",
    "jne 3f",
    "mov edx, 0x1234",
    "out dx, eax",
    "xor eax, eax",
    "in eax, dx",
    "cmp eax, -1",
    "jne 3f",
    "mov edx, 0x3f8",
    "mov al, 'o'",
    "out dx, al",
    "mov al, 'k'",
    "out dx, al",
    "3: mov al, 0xfe",
    "out 0x64, al",
);
