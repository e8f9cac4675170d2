//! A kernel's ELF file into memory.
//!
//! Its bytes are hostile: every length and address is checked before it is
//! used, and no more is read than the limits here allow.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, ReadVolatile};

use super::layout;
use crate::GuestRam;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// A vmlinux has five or six.
const MAX_SEGMENTS: u16 = 64;
/// A vmlinux has under a kilobyte of notes.
const MAX_NOTE_BYTES: u64 = 64 << 10;
const TYPE_LOAD: u32 = 1;
const TYPE_NOTE: u32 = 4;
/// Of notes: the 32-bit entry of PVH.
const XEN_PHYS32_ENTRY: u32 = 18;

/// Why a file is no kernel for us.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read, or is shorter than it says.
    #[error("the kernel's {what} cannot be read")]
    Read {
        /// Which part.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Something else.
    #[error("the kernel is no ELF file of this architecture: {0}")]
    Foreign(&'static str),
    /// A number that no kernel has.
    #[error("the kernel's ELF headers are wrong: {0}")]
    Wrong(&'static str),
    /// It wants memory that the machine does not have.
    #[error(
        "the kernel wants memory up to {end:#x}, and the machine's ends at {memory_end:#x}: \
         give it {} MiB or more", .end.div_ceil(1 << 20)
    )]
    Memory {
        /// Where it ends.
        end: u64,
        /// Where the memory does.
        memory_end: u64,
    },
    /// It wants memory that holds the boot information.
    #[error("the kernel wants memory at {start:#x}, below 1 MiB")]
    Low {
        /// Where it begins.
        start: u64,
    },
    /// A segment cannot be put into memory.
    #[error("the kernel cannot be loaded")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<GuestMemoryError> for ElfError {
    fn from(error: GuestMemoryError) -> Self {
        Self::Load(Box::new(error))
    }
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 32-bit mode without paging, by the PVH protocol.
    Pvh,
    /// In 64-bit mode with the first 4 GiB mapped, by Linux's own.
    Long,
}

/// A kernel in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Its first instruction.
    pub address: u64,
    /// How it is entered.
    pub entry: Entry,
    /// The first address behind it.
    pub end: u64,
}

/// Where a kernel's bytes are.
pub trait Payload {
    /// Reads headers.
    ///
    /// # Errors
    /// When there are fewer bytes.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;
    /// Reads a segment into guest memory.
    ///
    /// # Errors
    /// When there are fewer bytes.
    fn read_into(
        &self,
        offset: u64,
        slice: &mut vm_memory::VolatileSlice<'_>,
    ) -> std::io::Result<()>;
}

impl Payload for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn read_into(
        &self,
        offset: u64,
        slice: &mut vm_memory::VolatileSlice<'_>,
    ) -> std::io::Result<()> {
        rustix::fs::seek(self, rustix::fs::SeekFrom::Start(offset))?;
        let mut file: &Self = self;
        file.read_exact_volatile(slice).map_err(into_io)
    }
}

impl Payload for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.get(offset..)?.get(..buffer.len()))
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn read_into(
        &self,
        offset: u64,
        slice: &mut vm_memory::VolatileSlice<'_>,
    ) -> std::io::Result<()> {
        let mut bytes = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.get(offset..))
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        bytes.read_exact_volatile(slice).map_err(into_io)
    }
}

fn into_io(error: vm_memory::VolatileMemoryError) -> std::io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(error) => error,
        other => std::io::Error::other(other),
    }
}

/// Puts a kernel into memory. It is entered by PVH when it has a note that
/// says where, and by Linux's 64-bit entry otherwise.
///
/// # Errors
/// When the file is not what it must be, or the memory is too small.
pub fn load_kernel<P: Payload + ?Sized>(ram: &GuestRam, payload: &P) -> Result<Kernel, ElfError> {
    let header = Header::read(payload)?;
    let mut kernel = Kernel {
        address: header.entry,
        entry: Entry::Long,
        end: 0,
    };
    let segments = (0..header.segments)
        .map(|number| Segment::read(payload, header.table, number))
        .collect::<Result<Vec<_>, _>>()?;
    // All are checked before one is loaded: what is said about the memory is
    // about all that the kernel wants.
    for segment in segments.iter().filter(|segment| segment.is_loaded()) {
        kernel.end = kernel.end.max(segment.end()?);
    }
    let memory_end = ram.regions().first().map_or(0, |region| region.end());
    if kernel.end > memory_end {
        return Err(ElfError::Memory {
            end: kernel.end,
            memory_end,
        });
    }
    for segment in &segments {
        match segment.kind {
            _ if segment.is_loaded() => segment.load(ram, payload)?,
            TYPE_NOTE => {
                if let Some(address) = segment.pvh_entry(payload)? {
                    kernel.address = u64::from(address);
                    kernel.entry = Entry::Pvh;
                }
            }
            _ => {}
        }
    }
    if !(layout::KERNEL..kernel.end).contains(&kernel.address) {
        return Err(ElfError::Wrong("its entry is outside of it"));
    }
    Ok(kernel)
}

struct Header {
    entry: u64,
    table: u64,
    segments: u16,
}

impl Header {
    fn read<P: Payload + ?Sized>(payload: &P) -> Result<Self, ElfError> {
        const CLASS_64: u8 = 2;
        const LITTLE_ENDIAN: u8 = 1;
        const EXECUTABLE: u16 = 2;
        const X86_64: u16 = 62;

        let bytes: [u8; HEADER_BYTES] = read(payload, 0, "ELF header")?;
        if &bytes[..4] != b"\x7fELF" {
            return Err(ElfError::Foreign("it has another magic number"));
        }
        if bytes[4] != CLASS_64 || bytes[5] != LITTLE_ENDIAN {
            return Err(ElfError::Foreign("it is not 64-bit little-endian"));
        }
        if u16_at(&bytes, 18) != X86_64 {
            return Err(ElfError::Foreign("it is for another processor"));
        }
        if u16_at(&bytes, 16) != EXECUTABLE {
            return Err(ElfError::Foreign("it is no executable"));
        }
        if usize::from(u16_at(&bytes, 54)) != SEGMENT_BYTES {
            return Err(ElfError::Wrong("its program headers have another size"));
        }
        let segments = u16_at(&bytes, 56);
        if segments == 0 || segments > MAX_SEGMENTS {
            return Err(ElfError::Wrong("it has none or too many segments"));
        }
        Ok(Self {
            entry: u64_at(&bytes, 24),
            table: u64_at(&bytes, 32),
            segments,
        })
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    fn read<P: Payload + ?Sized>(payload: &P, table: u64, number: u16) -> Result<Self, ElfError> {
        let place = table
            .checked_add(u64::from(number) * SEGMENT_BYTES as u64)
            .ok_or(ElfError::Wrong("its program headers are nowhere"))?;
        let bytes: [u8; SEGMENT_BYTES] = read(payload, place, "program headers")?;
        Ok(Self {
            kind: u32_at(&bytes, 0),
            offset: u64_at(&bytes, 8),
            address: u64_at(&bytes, 24),
            file_bytes: u64_at(&bytes, 32),
            memory_bytes: u64_at(&bytes, 40),
        })
    }

    const fn is_loaded(&self) -> bool {
        self.kind == TYPE_LOAD && self.memory_bytes > 0
    }

    /// The first address behind it. It lies in one piece of memory, the one
    /// below the hole.
    fn end(&self) -> Result<u64, ElfError> {
        if self.file_bytes > self.memory_bytes {
            return Err(ElfError::Wrong(
                "a segment is larger in the file than in memory",
            ));
        }
        if self.address < layout::KERNEL {
            return Err(ElfError::Low {
                start: self.address,
            });
        }
        self.address
            .checked_add(self.memory_bytes)
            .ok_or(ElfError::Wrong("a segment ends behind the last address"))
    }

    fn load<P: Payload + ?Sized>(&self, ram: &GuestRam, payload: &P) -> Result<(), ElfError> {
        // The rest of it is zero: nothing has written to this memory.
        let length = usize::try_from(self.file_bytes).unwrap_or(usize::MAX);
        let mut slice = ram.memory().get_slice(GuestAddress(self.address), length)?;
        payload
            .read_into(self.offset, &mut slice)
            .map_err(|source| ElfError::Read {
                what: "segment",
                source,
            })
    }

    /// The entry that a note tells, if one of these does.
    fn pvh_entry<P: Payload + ?Sized>(&self, payload: &P) -> Result<Option<u32>, ElfError> {
        if self.file_bytes > MAX_NOTE_BYTES {
            return Err(ElfError::Wrong("its notes are too long"));
        }
        let length = usize::try_from(self.file_bytes).unwrap_or(usize::MAX);
        let mut notes = vec![0; length];
        payload
            .read_at(self.offset, &mut notes)
            .map_err(|source| ElfError::Read {
                what: "notes",
                source,
            })?;
        Ok(find_pvh_entry(&notes))
    }
}

/// Looks through notes. What is cut off is no note.
fn find_pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (header, rest) = notes.split_at_checked(12)?;
        let name_length = usize::try_from(u32_at(header, 0)).ok()?;
        let value_length = usize::try_from(u32_at(header, 4)).ok()?;
        let (name, rest) = rest.split_at_checked(name_length.checked_next_multiple_of(4)?)?;
        let (value, rest) = rest.split_at_checked(value_length.checked_next_multiple_of(4)?)?;
        if u32_at(header, 8) == XEN_PHYS32_ENTRY && name == b"Xen\0" && value_length >= 4 {
            return Some(u32_at(value, 0));
        }
        notes = rest;
    }
}

fn read<const N: usize, P: Payload + ?Sized>(
    payload: &P,
    offset: u64,
    what: &'static str,
) -> Result<[u8; N], ElfError> {
    let mut bytes = [0; N];
    payload
        .read_at(offset, &mut bytes)
        .map_err(|source| ElfError::Read { what, source })?;
    Ok(bytes)
}

/// Fields of the fixed headers above, which are long enough.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        array.copy_from_slice(found);
    }
    array
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::Backing;

    const CODE: &[u8] = b"\xf4 code";

    fn ram() -> GuestRam {
        GuestRam::allocate(&layout::memory(4), Backing::Private).unwrap()
    }

    /// An ELF file of one segment at 1 MiB and, with `pvh`, a note.
    fn image(pvh: Option<u32>) -> Vec<u8> {
        let mut note = Vec::new();
        if let Some(entry) = pvh {
            // Another note first.
            for (name, kind, value) in [
                (b"GNU\0", 1_u32, 5_u32),
                (b"Xen\0", XEN_PHYS32_ENTRY, entry),
            ] {
                note.extend(4_u32.to_le_bytes());
                note.extend(4_u32.to_le_bytes());
                note.extend(kind.to_le_bytes());
                note.extend(name);
                note.extend(value.to_le_bytes());
            }
        }
        let segments: [(u32, u64, u64, &[u8], u64); 2] = [
            (TYPE_LOAD, 0x200, layout::KERNEL, CODE, 0x2000),
            (TYPE_NOTE, 0x300, 0, &note, note.len() as u64),
        ];
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[4] = 2;
        bytes[5] = 1;
        bytes[16] = 2;
        bytes[18] = 62;
        bytes[24..32].copy_from_slice(&(layout::KERNEL + 4).to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 2;
        for (kind, offset, address, content, memory) in segments {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(0_u32.to_le_bytes());
            for value in [
                offset,
                address,
                address,
                content.len() as u64,
                memory,
                0x1000,
            ] {
                bytes.extend(value.to_le_bytes());
            }
        }
        bytes.resize(0x200, 0);
        bytes.extend(CODE);
        bytes.resize(0x300, 0);
        bytes.extend(note);
        bytes
    }

    #[test]
    fn a_kernel_without_a_note_has_the_64_bit_entry() {
        let ram = ram();
        let kernel = load_kernel(&ram, image(None).as_slice()).unwrap();
        assert_eq!(
            kernel,
            Kernel {
                address: layout::KERNEL + 4,
                entry: Entry::Long,
                end: layout::KERNEL + 0x2000,
            }
        );
        let mut loaded = vec![0; CODE.len()];
        ram.memory()
            .read_slice(&mut loaded, GuestAddress(layout::KERNEL))
            .unwrap();
        assert_eq!(loaded, CODE);
    }

    #[test]
    fn a_kernel_with_a_note_is_entered_by_pvh() {
        let kernel = load_kernel(&ram(), image(Some(0x10_0850)).as_slice()).unwrap();
        assert_eq!(kernel.entry, Entry::Pvh);
        assert_eq!(kernel.address, 0x10_0850);
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_it_is() {
        let change = |at: usize, bytes: &[u8]| {
            let mut image = image(None);
            image[at..at + bytes.len()].copy_from_slice(bytes);
            load_kernel(&ram(), image.as_slice())
                .unwrap_err()
                .to_string()
        };
        let first = HEADER_BYTES;
        for (at, bytes, said) in [
            (0, &b"MZ"[..], "magic"),
            (4, &[1], "64-bit"),
            (5, &[2], "64-bit"),
            (16, &[3], "executable"),
            (18, &[183], "processor"),
            (54, &[57], "size"),
            (56, &[0], "segments"),
            (56, &[0xff, 0xff], "segments"),
            (32, &[0xff; 8], "cannot be read"),
            (24, &[0; 8], "entry"),
            (24, &[0xff; 8], "entry"),
            (first + 8, &[0xff; 8], "segment"),
            (first + 24, &[0; 8], "below 1 MiB"),
            (first + 24, &[0xff; 8], "behind the last"),
            (first + 32, &[0xff; 8], "larger in the file"),
            (first + 40, &[0, 0, 0, 0, 1], "MiB or more"),
        ] {
            let text = change(at, bytes);
            assert!(text.contains(said), "{at}: {text}");
        }
    }

    #[test]
    fn a_note_that_is_cut_off_is_none() {
        let image = image(Some(0x10_0850));
        let notes = &image[0x300..];
        assert_eq!(find_pvh_entry(notes), Some(0x10_0850));
        for length in 0..notes.len() {
            assert_eq!(find_pvh_entry(&notes[..length]), None, "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_change_of_a_kernel_panics(
            changes in prop::collection::vec((0_usize..0x340, any::<u8>()), 1..12),
            length in 0_usize..0x400,
        ) {
            let mut image = image(Some(0x10_0850));
            for (at, value) in changes {
                if let Some(byte) = image.get_mut(at) {
                    *byte = value;
                }
            }
            image.truncate(length);
            if let Ok(kernel) = load_kernel(&ram(), image.as_slice()) {
                prop_assert!(kernel.end <= 4 << 20);
                prop_assert!((layout::KERNEL..kernel.end).contains(&kernel.address));
            }
        }
    }
}
