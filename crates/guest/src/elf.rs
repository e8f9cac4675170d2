//! What an install looks for in ELF files: whether one is a kernel of this
//! architecture, and what a module says of itself. Their bytes are hostile.

/// `e_type` of programs and of modules.
const EXECUTABLE: u16 = 2;
const RELOCATABLE: u16 = 1;
const POSITION_INDEPENDENT: u16 = 3;
const X86_64: u16 = 62;
const SEGMENT_BYTES: u64 = 56;
const SECTION_BYTES: u64 = 64;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_INTERPRETER: u32 = 3;
/// `SHT_NOBITS`: a section without bytes.
const SECTION_EMPTY: u32 = 8;

/// Why a file is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It has no ELF header.
    #[error("it is no ELF file")]
    Magic,
    /// Its header or a table reaches outside of it.
    #[error("it ends within its headers")]
    Short,
    /// It is for another processor.
    #[error("it is not for x86_64")]
    Architecture,
    /// It is an ELF file of another kind.
    #[error("it is no {0}")]
    Kind(&'static str),
    /// A kernel's entry is in none of its segments.
    #[error("its entry is in none of its segments")]
    Entry,
    /// A program that the kernel cannot start alone.
    #[error(
        "it is dynamically linked, and a guest's first process has no libraries: link it statically"
    )]
    Dynamic,
    /// A module without its description.
    #[error("it has no section .modinfo")]
    Modinfo,
}

/// Checks that this is an x86_64 kernel with a 64-bit entry.
pub(crate) fn check_kernel(bytes: &[u8]) -> Result<(), ElfError> {
    let header = Header::parse(bytes)?;
    if header.kind != EXECUTABLE {
        return Err(ElfError::Kind("kernel"));
    }
    let mut entered = false;
    for segment in header.segments(bytes) {
        let segment = segment?;
        let held = segment.address..segment.address.saturating_add(segment.memory_bytes);
        entered |= segment.kind == SEGMENT_LOAD && held.contains(&header.entry);
    }
    if entered {
        Ok(())
    } else {
        Err(ElfError::Entry)
    }
}

/// Checks that this is an x86_64 program that needs no loader.
pub(crate) fn check_static_program(bytes: &[u8]) -> Result<(), ElfError> {
    let header = Header::parse(bytes)?;
    if header.kind != EXECUTABLE && header.kind != POSITION_INDEPENDENT {
        return Err(ElfError::Kind("program"));
    }
    for segment in header.segments(bytes) {
        if segment?.kind == SEGMENT_INTERPRETER {
            return Err(ElfError::Dynamic);
        }
    }
    Ok(())
}

/// The `name=value` strings of a module's `.modinfo` section.
pub(crate) fn modinfo(bytes: &[u8]) -> Result<impl Iterator<Item = &[u8]>, ElfError> {
    let header = Header::parse(bytes)?;
    if header.kind != RELOCATABLE {
        return Err(ElfError::Kind("module"));
    }
    let names = header
        .section(bytes, header.names_section)?
        .content(bytes)?;
    for number in 0..header.sections {
        let section = header.section(bytes, number)?;
        if section.name(names) == Some(b".modinfo") {
            let content = section.content(bytes)?;
            return Ok(content.split(|byte| *byte == 0));
        }
    }
    Err(ElfError::Modinfo)
}

struct Header {
    kind: u16,
    entry: u64,
    segment_table: u64,
    segments: u16,
    section_table: u64,
    sections: u16,
    names_section: u16,
}

struct Segment {
    kind: u32,
    address: u64,
    memory_bytes: u64,
}

struct Section {
    name: u32,
    kind: u32,
    offset: u64,
    bytes: u64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, ElfError> {
        const CLASS_64: u8 = 2;
        const LITTLE_ENDIAN: u8 = 1;
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::Magic);
        }
        let [class, endianness] = array_at(bytes, 4)?;
        if class != CLASS_64 || endianness != LITTLE_ENDIAN || u16_at(bytes, 18)? != X86_64 {
            return Err(ElfError::Architecture);
        }
        let header = Self {
            kind: u16_at(bytes, 16)?,
            entry: u64_at(bytes, 24)?,
            segment_table: u64_at(bytes, 32)?,
            section_table: u64_at(bytes, 40)?,
            segments: u16_at(bytes, 56)?,
            sections: u16_at(bytes, 60)?,
            names_section: u16_at(bytes, 62)?,
        };
        Ok(header)
    }

    fn segments(&self, bytes: &[u8]) -> impl Iterator<Item = Result<Segment, ElfError>> {
        (0..self.segments).map(move |number| {
            let at = place(self.segment_table, number, SEGMENT_BYTES)?;
            Ok(Segment {
                kind: u32_at(bytes, at)?,
                address: u64_at(bytes, at + 24)?,
                memory_bytes: u64_at(bytes, at + 40)?,
            })
        })
    }

    fn section(&self, bytes: &[u8], number: u16) -> Result<Section, ElfError> {
        let at = place(self.section_table, number, SECTION_BYTES)?;
        Ok(Section {
            name: u32_at(bytes, at)?,
            kind: u32_at(bytes, at + 4)?,
            offset: u64_at(bytes, at + 24)?,
            bytes: u64_at(bytes, at + 32)?,
        })
    }
}

impl Section {
    fn content<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], ElfError> {
        if self.kind == SECTION_EMPTY {
            return Ok(&[]);
        }
        let start = usize::try_from(self.offset).map_err(|_| ElfError::Short)?;
        let length = usize::try_from(self.bytes).map_err(|_| ElfError::Short)?;
        bytes
            .get(start..)
            .and_then(|rest| rest.get(..length))
            .ok_or(ElfError::Short)
    }

    fn name<'a>(&self, names: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.name).ok()?;
        names.get(start..)?.split(|byte| *byte == 0).next()
    }
}

/// Where an entry of a table is. What is added to it is under a hundred bytes,
/// which a file that can be in memory leaves room for.
fn place(table: u64, number: u16, entry_bytes: u64) -> Result<usize, ElfError> {
    table
        .checked_add(u64::from(number) * entry_bytes)
        .and_then(|at| usize::try_from(at).ok())
        .filter(|at| *at < usize::MAX / 2)
        .ok_or(ElfError::Short)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or(ElfError::Short)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ElfError> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ElfError> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ElfError> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    #[test]
    fn a_kernel_is_an_executable_that_is_entered_in_a_segment() {
        let good = testing::vmlinux("6.1.0", &[]);
        assert_eq!(check_kernel(&good), Ok(()));
        let change = |at: usize, bytes: &[u8]| {
            let mut kernel = good.clone();
            kernel[at..at + bytes.len()].copy_from_slice(bytes);
            check_kernel(&kernel).unwrap_err()
        };
        assert_eq!(change(0, b"MZ"), ElfError::Magic);
        assert_eq!(change(4, &[1]), ElfError::Architecture);
        assert_eq!(change(18, &[183, 0]), ElfError::Architecture);
        assert_eq!(change(16, &[1]), ElfError::Kind("kernel"));
        assert_eq!(change(24, &[0; 8]), ElfError::Entry);
        assert_eq!(change(32, &[0xff; 8]), ElfError::Short);
        assert_eq!(change(56, &[0xff; 2]), ElfError::Short);
        assert_eq!(check_kernel(&good[..40]), Err(ElfError::Short));
    }

    #[test]
    fn a_program_with_a_loader_is_refused() {
        assert_eq!(check_static_program(&testing::static_program(b"")), Ok(()));
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check_static_program(&own), Err(ElfError::Dynamic));
        let module = testing::module("erofs", &["depends="]);
        assert_eq!(
            check_static_program(&module),
            Err(ElfError::Kind("program"))
        );
    }

    #[test]
    fn a_module_describes_itself() {
        let module = testing::module("erofs", &["depends=libcrc32c", "alias=fs-erofs"]);
        let lines: Vec<_> = modinfo(&module).unwrap().collect();
        assert!(lines.contains(&&b"depends=libcrc32c"[..]));
        assert!(lines.contains(&&b"alias=fs-erofs"[..]));
        let kernel = testing::vmlinux("6.1.0", &[]);
        assert_eq!(modinfo(&kernel).err(), Some(ElfError::Kind("module")));
    }

    proptest! {
        #[test]
        fn no_change_of_a_file_panics(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            for mut bytes in [testing::vmlinux("6.1.0", &[]), testing::module("a", &["depends=b"])] {
                for (at, value) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *value;
                }
                bytes.truncate(cut.index(bytes.len()) + 1);
                if check_kernel(&bytes).is_ok() {
                    prop_assert!(bytes.len() >= 64);
                }
                if let Ok(lines) = modinfo(&bytes) {
                    prop_assert!(lines.map(<[u8]>::len).sum::<usize>() <= bytes.len());
                }
            }
        }
    }
}
