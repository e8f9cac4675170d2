//! The folders of one server: made, locked and given to its user.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Uid, chownat, flock};
use skiff_base::{Clock as _, SystemClock};
use skiff_config::Config;
use skiff_guest::Kernels;
use skiff_types::ServerId;

use super::user::User;

/// What a server holds while it lives.
#[derive(Debug)]
pub struct Home {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub server: ServerId,
    pub user: User,
    /// Released by the kernel when the last process that has them ends,
    /// however it ends.
    locks: Vec<OwnedFd>,
}

impl Home {
    /// Makes the folders, takes their locks unless a former server has handed
    /// them over, and reads or makes the server's id.
    ///
    /// # Errors
    /// When another server holds a folder, or one cannot be made.
    pub fn prepare(config: &Config, locks: Option<Vec<OwnedFd>>) -> anyhow::Result<Self> {
        let user = User::of_server(&config.user)?;
        let data_dir = folder(&config.data_dir, &user, 0o700)?;
        let run_dir = folder(&config.run_dir, &user, 0o755)?;
        let (locks, server) = user.acting(|| {
            for name in ["events", "images", "ledger", "logs", "state"] {
                make(&data_dir.join(name), 0o700)?;
            }
            // What an install left that was killed goes now.
            Kernels::open(&data_dir.join(KERNELS))?;
            let locks = match locks {
                Some(locks) => locks,
                None => vec![
                    lock(&data_dir.join("lock"))?.into(),
                    lock(&run_dir.join("lock"))?.into(),
                ],
            };
            Ok((locks, server_id(&data_dir.join("server-id"))?))
        })?;
        if let Some(parent) = config
            .secrets
            .key_file
            .as_deref()
            .unwrap_or(DEFAULT_KEY.as_ref())
            .parent()
            && !parent.exists()
        {
            folder(parent, &user, 0o700)?;
        }
        Ok(Self {
            data_dir,
            run_dir,
            server,
            user,
            locks,
        })
    }
}

impl Home {
    /// The locks, for the server that takes over.
    pub fn locks(&self) -> Vec<BorrowedFd<'_>> {
        self.locks.iter().map(OwnedFd::as_fd).collect()
    }
}

/// The kernels for microVMs, in the data folder.
pub const KERNELS: &str = "kernels";

/// Where the key of secrets is when nobody says otherwise.
pub const DEFAULT_KEY: &str = "/etc/skiff/secrets.key";

/// Makes a folder, closed to others if it is new, and gives it to the user.
///
/// # Errors
/// When the kernel refuses.
pub fn folder(path: &Path, user: &User, mode: u32) -> anyhow::Result<PathBuf> {
    make(path, mode)?;
    let path = path
        .canonicalize()
        .with_context(|| format!("the folder {} cannot be reached", path.display()))?;
    user.own(&path)?;
    Ok(path)
}

fn make(path: &Path, mode: u32) -> anyhow::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .with_context(|| format!("the folder {} cannot be made", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("the folder {} cannot be closed to others", path.display()))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let folder = path.parent().unwrap_or(path).display();
        bail!(
            "another server runs on {folder}; end it, take over with --replace, or choose other folders"
        );
    }
    Ok(file)
}

/// Whether a lock's file is there and nobody holds it.
pub fn is_free(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn server_id(path: &Path) -> anyhow::Result<ServerId> {
    let mut text = String::new();
    match File::open(path) {
        Ok(mut file) => {
            file.read_to_string(&mut text)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            text.trim()
                .parse()
                .with_context(|| format!("{} does not hold a server's id", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = ServerId::from_parts(SystemClock.unix_ms(), skiff_base::random::u32());
            write_durably(path, &format!("{id}\n"))?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

fn write_durably(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o644)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(path))?.sync_all()
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// Gives a path to a user and a group; a link itself, not what it leads to.
pub fn give(path: &Path, uid: Uid, gid: Gid) -> anyhow::Result<()> {
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("{} cannot be given to {}", path.display(), uid.as_raw()))
}
