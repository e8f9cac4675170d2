//! How a driver reaches a device.

pub mod mmio;

use crate::Progress;

/// A device behind the registers of some transport.
pub trait Transport: Send + std::fmt::Debug {
    /// The driver reads registers.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The driver writes registers.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// The driver rang a queue's doorbell, which is not among the registers
    /// where the kernel listens to it.
    fn notify(&mut self, queue: usize) -> Progress;
    /// The host has something for the device.
    fn host_ready(&mut self) -> Progress;
}
