//! What is in memory when a kernel gets its first instruction.
//!
//! ```text
//! load_kernel ─▶ Kernel ─▶ boot: initramfs, command line, ACPI, boot information ─▶ Vcpu::enter
//! ```

mod elf;
mod linux;
mod memory_map;
mod pvh;

use std::fs::File;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, ReadVolatile};

use super::acpi::{self, Devices};
use super::{layout, registers};
use crate::{GuestRam, KvmError, Ram};

pub use elf::{ElfError, Entry, Kernel, Payload, load_kernel};

/// Where the initramfs starts: on a page.
const PAGE: u64 = 0x1000;

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A command line that x86 kernels would cut off.
    #[error("the command line has {length} bytes, and {} is the most", layout::COMMAND_LINE_MAX - 1)]
    CommandLineLong {
        /// How long it is.
        length: usize,
    },
    /// A zero would end the command line early.
    #[error("the command line has a zero byte at {at}")]
    CommandLineZero {
        /// Where.
        at: usize,
    },
    /// The memory does not hold both.
    #[error(
        "an initramfs of {bytes} bytes does not fit above a kernel that ends at {kernel_end:#x}: \
         give the machine more memory"
    )]
    InitrdFits {
        /// The initramfs's length.
        bytes: u64,
        /// Where the kernel ends.
        kernel_end: u64,
    },
    /// The file ended early, or cannot be read.
    #[error("the initramfs cannot be read")]
    InitrdRead(#[source] vm_memory::VolatileMemoryError),
    /// The tables for this many devices are too large.
    #[error("the ACPI tables have {bytes} bytes, too many for their place")]
    Acpi {
        /// Their length.
        bytes: usize,
    },
    /// There is no memory where something must be.
    #[error("guest memory cannot be written")]
    Memory(#[from] GuestMemoryError),
    /// KVM refuses.
    #[error("the first vCPU cannot be set up")]
    Kvm(#[from] KvmError),
}

/// Puts everything but the kernel where the kernel looks for it.
///
/// # Errors
/// When it does not fit.
pub fn boot(
    ram: &GuestRam,
    kernel: &Kernel,
    command_line: &str,
    initrd: Option<&mut File>,
    devices: &Devices,
) -> Result<(), BootError> {
    let memory = ram.memory();
    write_command_line(memory, command_line)?;
    let initrd = initrd
        .map(|file| load_initrd(ram, kernel, file))
        .transpose()?;
    let pointer = acpi::write(memory, devices)?;
    let map = memory_map::of(ram.regions());
    match kernel.entry {
        Entry::Pvh => pvh::write(memory, &map, initrd, pointer),
        Entry::Long => linux::write(memory, &map, initrd, pointer, command_line.len()),
    }
}

/// Sets the first vCPU to the kernel's first instruction.
pub(crate) fn enter(vcpu: &VcpuFd, memory: &Ram, kernel: &Kernel) -> Result<(), BootError> {
    registers::enter(vcpu, memory, kernel)
}

/// Where the initramfs is.
#[derive(Debug, Clone, Copy)]
struct Initrd {
    start: u64,
    bytes: u64,
}

fn write_command_line(memory: &Ram, text: &str) -> Result<(), BootError> {
    if text.len() >= layout::COMMAND_LINE_MAX {
        return Err(BootError::CommandLineLong { length: text.len() });
    }
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(BootError::CommandLineZero { at });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(memory.write_slice(&bytes, GuestAddress(layout::COMMAND_LINE))?)
}

/// Reads the initramfs to the end of low memory, where the kernel's own data
/// structures do not grow into it.
fn load_initrd(ram: &GuestRam, kernel: &Kernel, file: &mut File) -> Result<Initrd, BootError> {
    let bytes = file
        .metadata()
        .map_err(|error| BootError::InitrdRead(vm_memory::VolatileMemoryError::IOError(error)))?
        .len();
    let fits = BootError::InitrdFits {
        bytes,
        kernel_end: kernel.end,
    };
    let low_end = ram
        .regions()
        .first()
        .map_or(0, |region| region.end())
        .min(layout::INITRD_END);
    let Some(start) = low_end.checked_sub(bytes).map(|start| start & !(PAGE - 1)) else {
        return Err(fits);
    };
    if start < kernel.end {
        return Err(fits);
    }
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let slice = vm_memory::GuestMemoryBackend::get_slice(
        ram.memory().as_ref(),
        GuestAddress(start),
        length,
    )?;
    let mut slice = slice;
    file.read_exact_volatile(&mut slice)
        .map_err(BootError::InitrdRead)?;
    Ok(Initrd { start, bytes })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Backing;

    fn ram(mib: u64) -> GuestRam {
        GuestRam::allocate(&layout::memory(mib), Backing::Private).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let descriptor =
            rustix::fs::memfd_create(c"initrd", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(descriptor);
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    fn kernel(end: u64) -> Kernel {
        Kernel {
            address: layout::KERNEL,
            entry: Entry::Long,
            end,
        }
    }

    #[test]
    fn the_initramfs_lies_at_the_end_of_low_memory() {
        let ram = ram(16);
        let initrd = load_initrd(&ram, &kernel(2 << 20), &mut file(&[7; 5000])).unwrap();
        assert_eq!(initrd.start, (16 << 20) - 0x2000);
        assert_eq!(initrd.bytes, 5000);
        let last: u8 = ram
            .memory()
            .read_obj(GuestAddress(initrd.start + 4999))
            .unwrap();
        assert_eq!(last, 7);
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_refused() {
        let error = load_initrd(&ram(4), &kernel(4 << 20), &mut file(&[1])).unwrap_err();
        assert!(error.to_string().contains("more memory"), "{error}");
    }

    #[test]
    fn command_lines_are_bounded() {
        let ram = ram(4);
        let longest = "x".repeat(layout::COMMAND_LINE_MAX - 1);
        write_command_line(ram.memory(), &longest).unwrap();
        let long = "x".repeat(layout::COMMAND_LINE_MAX);
        assert!(matches!(
            write_command_line(ram.memory(), &long),
            Err(BootError::CommandLineLong { length: 2048 })
        ));
        assert!(matches!(
            write_command_line(ram.memory(), "a\0b"),
            Err(BootError::CommandLineZero { at: 1 })
        ));
    }
}
