//! The archive that a guest's kernel unpacks into its first file system:
//! newc cpio (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! It is not packed, so that no guest has to unpack it, and the same files
//! make the same bytes.

const MAGIC: &str = "070701";
const END: &str = "TRAILER!!!";
const FOLDER: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;

/// Changes whenever other bytes are made of the same files.
pub(crate) const RECIPE: u32 = 1;

/// Builds the initramfs: the folders that a first process needs, a console,
/// the modules under `/modules/NNN-NAME.ko` in the order in which they load,
/// and the agent as `/init`.
pub(crate) fn build(modules: &[(String, Vec<u8>)], agent: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["dev", "modules", "proc", "run", "sys"] {
        archive.add(name, FOLDER | 0o755, (0, 0), &[]);
    }
    archive.add("tmp", FOLDER | 0o1777, (0, 0), &[]);
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    archive.add("dev/null", CHARACTER_DEVICE | 0o666, (1, 3), &[]);
    for (file, content) in modules {
        archive.add(&format!("modules/{file}"), FILE | 0o400, (0, 0), content);
    }
    archive.add("init", FILE | 0o755, (0, 0), agent);
    archive.finish()
}

#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file. A field has 32 bits, which what an install keeps fits in.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        self.header(name, [self.entries, mode, links], device, content.len());
        self.bytes.extend(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.header(END, [0, 0, 1], (0, 0), 0);
        self.bytes
    }

    fn header(
        &mut self,
        name: &str,
        [inode, mode, links]: [u32; 3],
        (major, minor): (u32, u32),
        length: usize,
    ) {
        let name_bytes = name.len() + 1;
        // Owner, group and time are 0; so are the device that it is on and
        // the checksum, which this format has none of.
        let header = format!(
            "{MAGIC}{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{length:08x}\
             {0:08x}{0:08x}{major:08x}{minor:08x}{name_bytes:08x}{0:08x}{name}\0",
            0
        );
        self.bytes.extend(header.as_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry as a reader finds it.
    #[derive(Debug, PartialEq, Eq)]
    struct Entry {
        name: String,
        mode: u32,
        device: (u32, u32),
        content: Vec<u8>,
    }

    /// Reads an archive as the kernel's `init/initramfs.c` does.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let field = |number: usize| {
                let text = str::from_utf8(&bytes[6 + 8 * number..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let length = |number| usize::try_from(field(number)).unwrap();
            let name_end = 110 + length(11);
            assert_eq!(bytes[name_end - 1], 0);
            let name = str::from_utf8(&bytes[110..name_end - 1])
                .unwrap()
                .to_owned();
            let start = name_end.next_multiple_of(4);
            let end = start + length(6);
            if name == END {
                assert_eq!(bytes.len(), end);
                return entries;
            }
            entries.push(Entry {
                name,
                mode: field(1),
                device: (field(9), field(10)),
                content: bytes[start..end].to_vec(),
            });
            bytes = &bytes[end.next_multiple_of(4)..];
        }
    }

    #[test]
    fn it_has_what_a_first_process_needs() {
        let entries = read(&build(&[], b"agent"));
        let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap();
        assert_eq!(find("init").mode, 0o100_755);
        assert_eq!(find("init").content, b"agent");
        assert_eq!(find("dev/console").mode, 0o020_600);
        assert_eq!(find("dev/console").device, (5, 1));
        assert_eq!(find("tmp").mode, 0o041_777);
        for folder in ["dev", "proc", "sys", "run", "modules"] {
            assert_eq!(find(folder).mode, 0o040_755, "{folder}");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_in_comes_out_in_order(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            agent in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let modules: Vec<(String, Vec<u8>)> = contents
                .into_iter()
                .enumerate()
                .map(|(number, content)| (format!("{number:03}-{}.ko", "n".repeat(number)), content))
                .collect();
            let bytes = build(&modules, &agent);
            prop_assert_eq!(&bytes, &build(&modules, &agent));
            let entries = read(&bytes);
            let found: Vec<(String, Vec<u8>)> = entries
                .iter()
                .filter_map(|entry| Some((entry.name.strip_prefix("modules/")?.to_owned(), entry.content.clone())))
                .collect();
            prop_assert_eq!(found, modules);
            prop_assert_eq!(&entries.last().unwrap().content, &agent);
        }
    }
}
