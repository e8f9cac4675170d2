//! From a kernel and an initramfs to a machine that runs sandboxes.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::MountFlags;

/// The kernel's modules, loaded in the order of their names.
const MODULES: &str = "/modules";
/// What the root becomes: an initramfs itself cannot be left by a sandbox.
const NEW_ROOT: &str = "/root";
/// Files of the initramfs that are not needed any more.
const MODULES_MAX: usize = 1024;
/// Streams, layers and their devices.
const OPEN_FILES: u64 = 65_536;
/// Above the sandboxes' processes, whoever is to blame.
const LAUNCHER_OOM_SCORE: &str = "-900";

/// The machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A step of it.
    #[error("{step} fails for {about}")]
    Step {
        /// Which.
        step: &'static str,
        /// On what.
        about: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

trait Context<T> {
    fn at(self, step: &'static str, about: impl std::fmt::Display) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn at(self, step: &'static str, about: impl std::fmt::Display) -> Result<T, BootError> {
        self.map_err(|error| BootError::Step {
            step,
            about: about.to_string(),
            source: error.into(),
        })
    }
}

/// Makes a machine of what the kernel has started this process in: its file
/// systems, its modules, and a root that can be left.
///
/// # Errors
/// When a step fails; the machine is of no use then.
pub fn boot() -> Result<(), BootError> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount(
        "devtmpfs",
        "/dev",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        None,
    )?;
    mount("proc", "/proc", plain, None)?;
    mount("sysfs", "/sys", plain, None)?;
    let modules = load_modules()?;
    leave_initramfs(&modules)?;
    mount("tmpfs", "/run", plain, Some(c"mode=0755,size=16m"))?;
    mount("cgroup2", "/sys/fs/cgroup", plain, None)?;
    rustix::system::sethostname(b"guest").at("sethostname", "guest")?;
    // The launcher and what it starts inherit both.
    let limit = rustix::process::Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)
        .at("setrlimit", "open files")?;
    fs::write("/proc/self/oom_score_adj", LAUNCHER_OOM_SCORE).at("write", "oom_score_adj")
}

fn mount(
    kind: &str,
    place: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), BootError> {
    make_folder(Path::new(place))?;
    match rustix::mount::mount(kind, place, kind, flags, options) {
        // The kernel has done it already (CONFIG_DEVTMPFS_MOUNT).
        Err(Errno::BUSY) => Ok(()),
        result => result.at("mount", place),
    }
}

fn make_folder(path: &Path) -> Result<(), BootError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at("mkdir", path.display()),
    }
}

/// Loads each; returns their files.
fn load_modules() -> Result<Vec<PathBuf>, BootError> {
    let entries = match fs::read_dir(MODULES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.at("read", MODULES)?,
    };
    let mut files = Vec::new();
    for entry in entries.take(MODULES_MAX) {
        files.push(entry.at("read", MODULES)?.path());
    }
    files.sort();
    for path in &files {
        let file = fs::File::open(path).at("open", path.display())?;
        match rustix::system::finit_module(&file, c"", 0) {
            // One for what this processor has not, as a faster checksum, is
            // done without: whatever needs it can do it another way.
            Err(Errno::EXIST | Errno::NODEV) => {}
            result => result.at("load the module", path.display())?,
        }
    }
    Ok(files)
}

/// Moves to a tmpfs as root: pivot_root(2), which sandboxes are made with,
/// refuses to leave an initramfs. What was in that is memory, and given back.
fn leave_initramfs(modules: &[PathBuf]) -> Result<(), BootError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", NEW_ROOT, plain, Some(c"mode=0755,size=4m"))?;
    for name in ["dev", "proc", "sys"] {
        let place = Path::new(NEW_ROOT).join(name);
        make_folder(&place)?;
        let from = Path::new("/").join(name);
        rustix::mount::mount_move(&from, &place).at("move", from.display())?;
    }
    for path in modules
        .iter()
        .map(PathBuf::as_path)
        .chain([Path::new("/init")])
    {
        // One that stays takes memory, and nothing else.
        fs::remove_file(path).ok();
    }
    rustix::process::chdir(NEW_ROOT).at("enter", NEW_ROOT)?;
    rustix::mount::mount_move(".", "/").at("move", NEW_ROOT)?;
    rustix::process::chroot(".").at("chroot", NEW_ROOT)?;
    rustix::process::chdir("/").at("enter", "/")
}

/// A word of the kernel's command line that begins with this and `=`.
#[must_use]
pub fn kernel_word(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    let value = |word: &str| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    line.split_whitespace().find_map(value)
}
