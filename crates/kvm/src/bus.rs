use crate::GuestExit;

/// What follows an access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The vCPU goes on.
    Continue,
    /// The machine is over.
    Exit(GuestExit),
}

/// Where the accesses go that KVM does not serve itself.
///
/// Every address and length is the guest's: an implementation answers reads
/// of nothing with ones and ignores writes to nothing.
pub trait Bus: Send + Sync {
    /// Reads device memory.
    fn read(&self, address: u64, data: &mut [u8]);
    /// Writes device memory.
    fn write(&self, address: u64, data: &[u8]) -> Outcome;
    /// Reads an I/O port.
    #[cfg(target_arch = "x86_64")]
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// Writes an I/O port.
    #[cfg(target_arch = "x86_64")]
    fn port_write(&self, port: u16, data: &[u8]) -> Outcome;
}
