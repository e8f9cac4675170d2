//! Randomness from the kernel.

/// Fills the buffer. The kernel's generator cannot fail once it is seeded,
/// and getrandom(2) waits for that.
///
/// # Panics
/// When the kernel has no getrandom(2), which no supported one lacks.
pub fn fill(buffer: &mut [u8]) {
    assert!(
        getrandom::fill(buffer).is_ok(),
        "the kernel gives no randomness"
    );
}

/// 32 random bits.
#[must_use]
pub fn u32() -> u32 {
    let mut bytes = [0; 4];
    fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

/// 64 random bits.
#[must_use]
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// The root of a trace that begins at this second since 1970 (AWS X-Ray,
/// "Tracing header").
#[must_use]
pub fn trace_root(unix_s: u64) -> String {
    format!("Root=1-{unix_s:08x}-{:016x}{:08x}", u64(), u32())
}
