//! A Debian package: an `ar` archive whose member `data.tar` has the files
//! (deb(5)). Its bytes are hostile: it is read once, in order, and nothing of
//! it is held but a header.

use std::io::{self, Read};

use crate::packed::Packing;

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_BYTES: usize = 60;
/// A package has three, and signatures have been seen.
const MAX_MEMBERS: usize = 16;

/// Why a package's files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It does not begin as one.
    #[error("it is no Debian package")]
    Magic,
    /// Its archive is broken.
    #[error("its archive is broken: {0}")]
    Archive(&'static str),
    /// A version of the format that is not known.
    #[error("it has version {0:?} of the format, and 2.0 is known")]
    Version(String),
    /// A way of packing that is not known.
    #[error("its files are packed as {0:?}; gzip, xz and zstd can be unpacked")]
    Packing(String),
    /// It ends without files.
    #[error("it has no files")]
    NoData,
}

/// The tar of a package's files, unpacked as it is read.
pub(crate) fn data<'a>(package: impl Read + 'a) -> Result<Box<dyn Read + 'a>, PackageError> {
    let mut archive = Archive::open(package)?;
    let mut first = true;
    while let Some(member) = archive.next()? {
        if first {
            archive.check_version(&member)?;
        } else if let Some(ending) = member.name.strip_prefix("data.tar") {
            let packing = match Packing::split(&member.name) {
                ("data.tar", packing) => packing,
                _ => return Err(PackageError::Packing(ending.to_owned())),
            };
            let content = archive.reader.take(archive.content);
            return packing.open(content).map_err(PackageError::Read);
        }
        first = false;
    }
    Err(PackageError::NoData)
}

struct Archive<R> {
    reader: R,
    /// Bytes of the member that have not been read.
    content: u64,
    /// Whether a filling byte follows them.
    padded: bool,
    members: usize,
}

struct Member {
    name: String,
    bytes: u64,
}

impl<R: Read> Archive<R> {
    fn open(mut reader: R) -> Result<Self, PackageError> {
        let mut magic = [0; MAGIC.len()];
        if read_up_to(&mut reader, &mut magic)? < magic.len() || &magic != MAGIC {
            return Err(PackageError::Magic);
        }
        Ok(Self {
            reader,
            content: 0,
            padded: false,
            members: 0,
        })
    }

    /// The next member, past what is left of the last one.
    fn next(&mut self) -> Result<Option<Member>, PackageError> {
        self.skip()?;
        let mut header = [0; HEADER_BYTES];
        match read_up_to(&mut self.reader, &mut header)? {
            0 => return Ok(None),
            HEADER_BYTES => {}
            _ => return Err(PackageError::Archive("it ends within a header")),
        }
        self.members += 1;
        if self.members > MAX_MEMBERS {
            return Err(PackageError::Archive("it has too many members"));
        }
        let member = Member::parse(&header)?;
        self.content = member.bytes;
        self.padded = member.bytes % 2 == 1;
        Ok(Some(member))
    }

    fn skip(&mut self) -> Result<(), PackageError> {
        let bytes = self.content + u64::from(self.padded);
        let skipped = io::copy(&mut (&mut self.reader).take(bytes), &mut io::sink())
            .map_err(PackageError::Read)?;
        // Some writers leave the last filling byte out.
        if skipped < self.content {
            return Err(PackageError::Archive("it ends within a member"));
        }
        (self.content, self.padded) = (0, false);
        Ok(())
    }

    /// The first member says which version of the format this is.
    fn check_version(&mut self, member: &Member) -> Result<(), PackageError> {
        if member.name != "debian-binary" {
            return Err(PackageError::Magic);
        }
        let mut text = [0; 16];
        let length = usize::try_from(self.content).map_or(text.len(), |left| left.min(text.len()));
        let read = read_up_to(&mut self.reader, &mut text[..length])?;
        self.content -= read as u64;
        let text = String::from_utf8_lossy(&text[..read]);
        if text.starts_with("2.") {
            return Ok(());
        }
        Err(PackageError::Version(text.trim().to_owned()))
    }
}

impl Member {
    /// A name of 16 bytes, which may end with a slash; numbers that nobody
    /// needs; the size in 10 decimal digits; a mark.
    fn parse(header: &[u8; HEADER_BYTES]) -> Result<Self, PackageError> {
        let wrong = PackageError::Archive;
        if &header[58..] != b"`\n" {
            return Err(wrong("a header has no end mark"));
        }
        let text = |bytes| str::from_utf8(bytes).map(str::trim_end);
        let name = text(&header[..16]).map_err(|_| wrong("a name is no text"))?;
        let size = text(&header[48..58])
            .ok()
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .ok_or(wrong("a size is no number"))?;
        Ok(Self {
            name: name.strip_suffix('/').unwrap_or(name).to_owned(),
            bytes: size,
        })
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, PackageError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PackageError::Read(error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{ar, gzip, xz, zstd};

    fn read(package: &[u8]) -> Result<Vec<u8>, PackageError> {
        let mut bytes = Vec::new();
        data(package)?
            .read_to_end(&mut bytes)
            .map_err(PackageError::Read)?;
        Ok(bytes)
    }

    #[test]
    fn each_packing_of_the_files_is_read() {
        for (name, packed) in [
            ("data.tar", b"the files".to_vec()),
            ("data.tar.gz", gzip(b"the files")),
            ("data.tar.xz", xz(b"the files")),
            ("data.tar.zst/", zstd(b"the files")),
        ] {
            let members = [
                ("debian-binary", &b"2.0\n"[..]),
                ("control.tar.xz", b"odd"),
                (name, &packed),
                ("_more", b"ignored"),
            ];
            assert_eq!(read(&ar(&members)).unwrap(), b"the files", "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let version = ("debian-binary", &b"2.0\n"[..]);
        let table: [(Vec<u8>, &str); 8] = [
            (b"!<arc".to_vec(), "no Debian package"),
            (b"PK\x03\x04 something else".to_vec(), "no Debian package"),
            (ar(&[("control.tar", b"")]), "no Debian package"),
            (ar(&[("debian-binary", b"3.0\n")]), "version \"3.0\""),
            (ar(&[version, ("control.tar", b"")]), "no files"),
            (ar(&[version, ("data.tar.bz2", b"")]), "\".bz2\""),
            (ar(&[version; 20]), "too many members"),
            ([ar(&[version]), vec![b'x'; 59]].concat(), "within a header"),
        ];
        for (package, says) in table {
            let error = read(&package).unwrap_err().to_string();
            assert!(error.contains(says), "{error} / {says}");
        }
        let mut endless = ar(&[version, ("control.tar", b"")]);
        let at = endless.len() - 12;
        endless[at..at + 10].copy_from_slice(b"9999999999");
        let error = read(&endless).unwrap_err().to_string();
        assert!(error.contains("within a member"), "{error}");
        endless[at] = b'-';
        let error = read(&endless).unwrap_err().to_string();
        assert!(error.contains("no number"), "{error}");
    }

    proptest! {
        #[test]
        fn no_change_of_a_package_panics_or_grows(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let members = [
                ("debian-binary", &b"2.0\n"[..]),
                ("control.tar", b"some control"),
                ("data.tar", b"some files"),
            ];
            let mut package = ar(&members);
            for (at, value) in changes {
                let at = at.index(package.len());
                package[at] = value;
            }
            package.truncate(cut.index(package.len()) + 1);
            if let Ok(bytes) = read(&package) {
                prop_assert!(bytes.len() <= package.len());
            }
        }
    }
}
