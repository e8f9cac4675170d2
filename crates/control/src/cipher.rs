//! The key that encrypts secrets: read from a file outside the data folder,
//! and never shown.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest as _, Sha256};

use crate::error::{ControlError, internal, invalid};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// A key file is 32 raw bytes or 64 hexadecimal digits with a line end.
const FILE_BYTES_MAX: u64 = 66;

/// One key, ready to seal and open.
pub(crate) struct Key {
    id: String,
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What [`Key::seal`] makes.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub nonce: [u8; NONCE_BYTES],
    pub bytes: Vec<u8>,
}

impl Key {
    /// The first 8 hexadecimal digits of the key's SHA-256.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        let sum: [u8; 32] = Sha256::digest(bytes).into();
        Self {
            id: hex(&sum[..4]),
            cipher: XChaCha20Poly1305::new(&(*bytes).into()),
        }
    }

    /// Encrypts; `place` is bound to it, so that one secret's bytes are no
    /// other's.
    pub(crate) fn seal(&self, place: &str, plain: &[u8]) -> Result<Sealed, ControlError> {
        let mut nonce = [0; NONCE_BYTES];
        skiff_base::random::fill(&mut nonce);
        let payload = Payload {
            msg: plain,
            aad: place.as_bytes(),
        };
        let bytes = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| internal(format!("the secret {place} cannot be encrypted")))?;
        Ok(Sealed { nonce, bytes })
    }

    /// Decrypts what was sealed for the same place.
    pub(crate) fn open(
        &self,
        place: &str,
        nonce: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, ControlError> {
        let damaged = || internal(format!("the secret {place} is damaged or was moved"));
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| damaged())?;
        let payload = Payload {
            msg: sealed,
            aad: place.as_bytes(),
        };
        self.cipher
            .decrypt(&XNonce::from(nonce), payload)
            .map_err(|_| damaged())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses a key inside the data folder: who copies that folder must not get
/// the key with it.
pub(crate) fn check_place(key_file: &Path, data_dir: &Path) -> Result<(), ControlError> {
    let folder = key_file
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let folder = resolve(folder);
    if folder.starts_with(resolve(data_dir)) || resolve(key_file).starts_with(resolve(data_dir)) {
        return Err(invalid(format!(
            "the key of the secrets, {}, may not be in the data folder {}: name a file elsewhere",
            key_file.display(),
            data_dir.display()
        )));
    }
    Ok(())
}

/// The real path of the longest part that exists, and the rest behind it.
fn resolve(path: &Path) -> PathBuf {
    let mut missing = PathBuf::new();
    for base in path.ancestors() {
        if let Ok(real) = base.canonicalize() {
            return real.join(missing);
        }
        if let Some(name) = base.file_name() {
            missing = Path::new(name).join(missing);
        }
    }
    path.to_owned()
}

/// Where the next key waits while secrets are being encrypted with it.
pub(crate) fn next_file(key_file: &Path) -> PathBuf {
    let mut name = key_file.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// The key in a file, or nothing when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Key>, ControlError> {
    let told = |e: io::Error| {
        internal(format!(
            "the key file {} cannot be read: {e}",
            path.display()
        ))
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(told(e)),
    };
    let mode = file.metadata().map_err(told)?.mode();
    if mode & 0o007 != 0 {
        return Err(invalid(format!(
            "the key file {} is open to every user (mode {:o}): chmod 600 it",
            path.display(),
            mode & 0o777
        )));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(told)?;
    let key = parse(&bytes).ok_or_else(|| {
        invalid(format!(
            "the key file {} holds no key: 32 bytes or 64 hexadecimal digits are expected",
            path.display()
        ))
    })?;
    Ok(Some(Key::from_bytes(&key)))
}

fn parse(bytes: &[u8]) -> Option<[u8; KEY_BYTES]> {
    if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(bytes) {
        return Some(raw);
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_end();
    if text.len() != KEY_BYTES * 2 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(key)
}

/// A new key in a new file that only its owner reads. A file that exists is
/// never overwritten; a half-written one never has the name.
pub(crate) fn generate(path: &Path) -> Result<Key, ControlError> {
    let told = |e: io::Error| {
        internal(format!(
            "the key file {} cannot be made: {e}",
            path.display()
        ))
    };
    let mut bytes = [0; KEY_BYTES];
    skiff_base::random::fill(&mut bytes);
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(told)?;
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{:08x}", skiff_base::random::u32()));
    let draft = PathBuf::from(draft);
    let written = write_new(&draft, &bytes).and_then(|()| std::fs::hard_link(&draft, path));
    // The draft goes whether or not the link was made.
    let cleaned = std::fs::remove_file(&draft);
    written.and(cleaned).map_err(told)?;
    sync_folder(path).map_err(told)?;
    Ok(Key::from_bytes(&bytes))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(hex(bytes).as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// Puts the next key in the place of the one before, durably.
pub(crate) fn promote(key_file: &Path) -> Result<(), ControlError> {
    let told = |e: io::Error| {
        internal(format!(
            "the new key cannot take the place of {}: {e}",
            key_file.display()
        ))
    };
    std::fs::rename(next_file(key_file), key_file).map_err(told)?;
    sync_folder(key_file).map_err(told)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_sealed_opens_only_at_its_place_with_its_key() {
        let key = Key::from_bytes(&[1; 32]);
        let sealed = key.seal("p/a", b"value").unwrap();
        assert_eq!(
            key.open("p/a", &sealed.nonce, &sealed.bytes).unwrap(),
            b"value"
        );
        assert!(key.open("p/b", &sealed.nonce, &sealed.bytes).is_err());
        assert!(key.open("p/a", &sealed.nonce[1..], &sealed.bytes).is_err());
        assert!(
            Key::from_bytes(&[2; 32])
                .open("p/a", &sealed.nonce, &sealed.bytes)
                .is_err()
        );
        assert!(!format!("{key:?}").contains("01, 01"));
    }

    #[test]
    fn a_generated_key_is_its_owners_alone_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/secret.key");
        assert!(read(&path).unwrap().is_none());
        let key = generate(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().unwrap().id(), key.id());
        assert!(generate(&path).is_err(), "a key is never overwritten");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn open_files_and_nonsense_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, [7; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap_err().message.contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read(&path).unwrap().is_some());
        std::fs::write(&path, "x".repeat(64)).unwrap();
        assert!(read(&path).unwrap_err().message.contains("holds no key"));
    }

    #[test]
    fn the_data_folder_is_no_place_for_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        assert!(check_place(&data.join("key"), &data).is_err());
        assert!(check_place(&data.join("deep/er/key"), &data).is_err());
        assert!(check_place(&dir.path().join("link/key"), &data).is_err());
        assert!(check_place(&data.join("../data/key"), &data).is_err());
        assert!(check_place(&dir.path().join("key"), &data).is_ok());
    }
}
