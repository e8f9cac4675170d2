//! A function's external extensions: which files they are.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use skiff_wire::launcher::{EXTENSIONS, EXTENSIONS_MAX};

use crate::failure::{Context, Step, refuse};

const STEP: &str = "extensions";
/// Looked at, folders included.
const ENTRIES_MAX: usize = 256;

/// The names of all that is in the folder but for folders, in order; none when
/// there is no such folder. Inside the sandbox's root, whose links lead nowhere
/// else.
pub(super) fn list() -> Step<Vec<String>> {
    list_in(EXTENSIONS)
}

fn list_in(path: &str) -> Step<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let folder = match rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve) {
        Ok(folder) => folder,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno).at(STEP, format!("open {path}")),
    };
    let mut names = Vec::new();
    let entries = Dir::read_from(&folder).at(STEP, format!("read {path}"))?;
    for (count, entry) in entries.enumerate() {
        let entry = entry.at(STEP, format!("read {path}"))?;
        if count >= ENTRIES_MAX {
            let message = format!("{path} has more than {ENTRIES_MAX} entries");
            return Err(refuse(STEP, message));
        }
        if is_folder(&folder, &entry)? {
            continue;
        }
        if names.len() >= EXTENSIONS_MAX {
            let message = format!("{path} has more than {EXTENSIONS_MAX} files");
            return Err(refuse(STEP, message));
        }
        let name = entry.file_name().to_str();
        let name = name.map_err(|_| refuse(STEP, format!("a name in {path} is not UTF-8")))?;
        names.push(name.to_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// A link is none, wherever it leads.
fn is_folder(folder: &OwnedFd, entry: &DirEntry) -> Step<bool> {
    let kind = match entry.file_type() {
        FileType::Unknown => {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(folder.as_fd(), entry.file_name(), flags);
            FileType::from_raw_mode(stat.at(STEP, "look at a file")?.st_mode)
        }
        kind => kind,
    };
    Ok(kind == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_extensions_and_folders_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let path = folder.path().to_str().unwrap();
        assert_eq!(list_in(at("none").to_str().unwrap()), Ok(vec![]));
        std::fs::create_dir(at("folder")).unwrap();
        for name in ["b", "a"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/", at("link")).unwrap();
        let names = ["a", "b", "link"].map(str::to_owned);
        assert_eq!(list_in(path), Ok(names.into()));
        assert_eq!(list_in(at("a").to_str().unwrap()), Ok(vec![]));
        std::os::unix::fs::symlink("/proc/self/cwd", at("magic")).unwrap();
        let refused = list_in(at("magic").to_str().unwrap()).unwrap_err();
        assert_eq!(refused.errno, libc::ELOOP, "{refused}");
    }

    #[test]
    fn there_are_ten_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        for number in 0..EXTENSIONS_MAX {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(list_in(path).unwrap().len(), EXTENSIONS_MAX);
        std::fs::write(folder.path().join("one more"), "").unwrap();
        let refused = list_in(path).unwrap_err();
        assert!(refused.message.contains("more than 10 files"), "{refused}");
        for number in 0..ENTRIES_MAX {
            std::fs::create_dir(folder.path().join(format!("folder{number}"))).unwrap();
        }
        assert!(list_in(path).is_err());
    }
}
