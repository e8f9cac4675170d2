use crate::{ENTRY, Program};

/// The memory that a program may use behind its bytes.
const MEMORY_BYTES: u64 = 1 << 20;
const HEADERS: u64 = 64 + 56;

/// A program as an ELF file of one segment, entered at its first byte.
#[must_use]
pub fn elf(program: Program) -> Vec<u8> {
    let code = program.bytes();
    let mut bytes = Vec::new();
    // The file's header: 64-bit, little-endian, an executable for x86_64.
    bytes.extend(b"\x7fELF\x02\x01\x01");
    bytes.resize(16, 0);
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(62_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(ENTRY.to_le_bytes());
    bytes.extend(64_u64.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    for value in [64_u16, 56, 1, 0, 0, 0] {
        bytes.extend(value.to_le_bytes());
    }
    // Its segment: to load, readable, writable and executable.
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(7_u32.to_le_bytes());
    let length = code.len() as u64;
    for value in [HEADERS, ENTRY, ENTRY, length, MEMORY_BYTES, 0x1000] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(code);
    bytes
}
