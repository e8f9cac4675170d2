//! Where logs are: `FOLDER/PROJECT/SERVICE/REVISION/INSTANCE.log`, and
//! `INSTANCE.1.log` for what was rotated away.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use skiff_types::{InstanceId, ProjectId, RevisionId, ServiceName};

/// The current file's end.
const CURRENT: &str = ".log";
/// The rotated file's end.
const ROTATED: &str = ".1.log";

/// One file of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub instance: InstanceId,
    pub revision: String,
    pub rotated: bool,
    pub path: PathBuf,
}

/// A service's folder.
pub fn service_folder(folder: &Path, project: &ProjectId, service: &ServiceName) -> PathBuf {
    folder.join(project.as_str()).join(service.as_str())
}

/// The file that an instance's lines go to.
pub fn current(folder: &Path, revision: &RevisionId, instance: InstanceId) -> PathBuf {
    service_folder(folder, &revision.project, &revision.service)
        .join(revision.name())
        .join(format!("{instance}{CURRENT}"))
}

/// Where the current file goes when it is full.
pub fn rotated(current: &Path) -> PathBuf {
    current.with_extension(ROTATED.trim_start_matches('.'))
}

/// The files of a service. What is no log is passed over.
pub fn list(service_folder: &Path) -> Vec<LogFile> {
    let mut files = Vec::new();
    for (revision, folder) in entries(service_folder) {
        for (name, path) in entries(&folder) {
            let (stem, rotated) = match name.strip_suffix(ROTATED) {
                Some(stem) => (stem, true),
                None => (name.strip_suffix(CURRENT).unwrap_or(&name), false),
            };
            if let Ok(instance) = stem.parse() {
                files.push(LogFile {
                    instance,
                    revision: revision.clone(),
                    rotated,
                    path,
                });
            }
        }
    }
    files
}

/// Names and paths in a folder; none when it cannot be read.
pub fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return vec![];
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

/// Opens for appending, with its length. A torn last line is ended first.
pub fn open(path: &Path) -> io::Result<(File, u64)> {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = File::options();
    let mut file = options.append(true).read(true).create(true).open(path)?;
    let mut len = file.metadata()?.len();
    let mut last = [b'\n'];
    if len > 0 {
        file.read_exact_at(&mut last, len - 1)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
        len += 1;
    }
    Ok((file, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let project = ProjectId::default_project();
        let revision = RevisionId::parse(&project, "hello-00001").unwrap();
        let instance = InstanceId::from_parts(5, 6);
        let path = current(folder.path(), &revision, instance);
        drop(open(&path).unwrap());
        std::fs::write(rotated(&path), "").unwrap();
        std::fs::write(path.with_file_name("other.txt"), "").unwrap();
        let found = list(&service_folder(folder.path(), &project, &revision.service));
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|file| file.instance == instance));
        assert!(found.iter().all(|file| file.revision == "hello-00001"));
        assert_eq!(found.iter().filter(|file| file.rotated).count(), 1);
    }

    #[test]
    fn a_torn_line_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, "1 stdout whole\n2 std").unwrap();
        let (_file, len) = open(&path).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, "1 stdout whole\n2 std\n");
        assert_eq!(usize::try_from(len).unwrap(), written.len());
    }
}
