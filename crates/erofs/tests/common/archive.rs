//! Writes tar streams, right and wrong ones.

/// A tar stream under construction.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    pub bytes: Vec<u8>,
}

/// One ustar entry; fields are written as they stand.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub type_flag: u8,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub device: (u32, u32),
    pub content: Vec<u8>,
    /// What the header says, if not the content's length.
    pub size: Option<u64>,
    pub pax: Vec<(String, Vec<u8>)>,
}

pub fn entry(type_flag: u8, name: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        type_flag,
        link: Vec::new(),
        mode: if type_flag == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 0,
        device: (0, 0),
        content: Vec::new(),
        size: None,
        pax: Vec::new(),
    }
}

pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    Entry {
        content: content.as_ref().to_vec(),
        ..entry(b'0', name)
    }
}

pub fn directory(name: impl AsRef<[u8]>) -> Entry {
    entry(b'5', name)
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        link: target.as_ref().to_vec(),
        mode: 0o777,
        ..entry(b'2', name)
    }
}

pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        link: target.as_ref().to_vec(),
        ..entry(b'1', name)
    }
}

impl Entry {
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }
}

pub fn pax_records(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let digits = (1..8)
            .find(|digits| (body + digits).to_string().len() == *digits)
            .unwrap();
        bytes.extend(format!("{} {key}=", body + digits).into_bytes());
        bytes.extend(value);
        bytes.push(b'\n');
    }
    bytes
}

impl Archive {
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
        let mut archive = Self::default();
        for entry in entries {
            archive.add(&entry);
        }
        archive.end()
    }

    pub fn add(&mut self, entry: &Entry) -> &mut Self {
        let mut entry = entry.clone();
        if entry.name.len() > 100 {
            entry.pax.push(("path".into(), entry.name.clone()));
            entry.name.truncate(100);
        }
        if entry.link.len() > 100 {
            entry.pax.push(("linkpath".into(), entry.link.clone()));
            entry.link.truncate(100);
        }
        if !entry.pax.is_empty() {
            self.raw(&Entry {
                content: pax_records(&entry.pax),
                ..self::entry(b'x', "pax")
            });
        }
        self.raw(&entry)
    }

    /// The header and content alone.
    pub fn raw(&mut self, entry: &Entry) -> &mut Self {
        let mut block = [0; 512];
        block[..entry.name.len()].copy_from_slice(&entry.name);
        block[157..157 + entry.link.len()].copy_from_slice(&entry.link);
        block[156] = entry.type_flag;
        let size = entry.size.unwrap_or(entry.content.len() as u64);
        number(&mut block[100..108], i64::from(entry.mode));
        number(&mut block[108..116], entry.uid.cast_signed());
        number(&mut block[116..124], entry.gid.cast_signed());
        number(&mut block[124..136], size.cast_signed());
        number(&mut block[136..148], entry.mtime);
        block[257..265].copy_from_slice(b"ustar\x0000");
        number(&mut block[329..337], i64::from(entry.device.0));
        number(&mut block[337..345], i64::from(entry.device.1));
        seal(&mut block);
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(&entry.content);
        let padded = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(padded, 0);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

/// Octal where it fits, else base 256.
fn number(field: &mut [u8], value: i64) {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    if value >= 0 && digits.len() < field.len() {
        field[..digits.len()].copy_from_slice(digits.as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    field.fill(if value < 0 { 0xff } else { 0 });
    let shared = field.len().min(bytes.len());
    let start = field.len() - shared;
    field[start..].copy_from_slice(&bytes[bytes.len() - shared..]);
    field[0] |= 0x80;
}

/// Computes a header's checksum anew.
pub fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
