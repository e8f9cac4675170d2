//! Which log files go.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use skiff_types::InstanceId;

use super::files;
use super::store::LogLimits;

/// Files of one service, whatever their lengths.
const FILES_MAX: usize = 1000;

#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    path: PathBuf,
    bytes: u64,
    /// Since it was last written to.
    age: Duration,
    /// Its instance may still write to it.
    in_use: bool,
}

/// Removes the files that are over the limits, and folders left empty.
pub fn collect(folder: &Path, limits: &LogLimits, unix_ms: u64, live: &HashSet<InstanceId>) {
    for (_, project) in files::entries(folder) {
        for (_, service) in files::entries(&project) {
            let candidates = files::list(&service)
                .into_iter()
                .filter_map(|file| {
                    let in_use = !file.rotated && live.contains(&file.instance);
                    candidate(file.path, unix_ms, in_use)
                })
                .collect();
            for path in doomed(candidates, limits) {
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "a log was not removed");
                }
            }
            for (_, revision) in files::entries(&service) {
                remove_if_empty(&revision);
            }
            remove_if_empty(&service);
        }
        remove_if_empty(&project);
    }
}

fn candidate(path: PathBuf, unix_ms: u64, in_use: bool) -> Option<Candidate> {
    let metadata = path.symlink_metadata().ok()?;
    let written = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Candidate {
        path,
        bytes: metadata.len(),
        age: Duration::from_millis(unix_ms).saturating_sub(written),
        in_use,
    })
}

/// The newest are kept while they fit; what may still be written to always.
fn doomed(mut candidates: Vec<Candidate>, limits: &LogLimits) -> Vec<PathBuf> {
    candidates.sort_by_key(|file| (!file.in_use, file.age));
    let (mut bytes, mut count) = (0u64, 0usize);
    let keeps = |file: &Candidate| {
        bytes = bytes.saturating_add(file.bytes);
        count += 1;
        file.in_use || file.age <= limits.age && bytes <= limits.service_bytes && count <= FILES_MAX
    };
    let (_kept, doomed): (Vec<_>, Vec<_>) = candidates.into_iter().partition(keeps);
    doomed.into_iter().map(|file| file.path).collect()
}

fn remove_if_empty(folder: &Path) {
    // It fails for a folder that is not empty, which is what is wanted.
    let _not_empty = std::fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64, age_s: u64, in_use: bool) -> Candidate {
        Candidate {
            path: name.into(),
            bytes,
            age: Duration::from_secs(age_s),
            in_use,
        }
    }

    fn goes(files: Vec<Candidate>) -> Vec<String> {
        let limits = LogLimits {
            service_bytes: 100,
            age: Duration::from_secs(1000),
            ..LogLimits::default()
        };
        let doomed = doomed(files, &limits);
        doomed
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn the_old_and_what_does_not_fit_go_but_nothing_in_use() {
        assert!(goes(vec![file("a", 50, 1, false), file("b", 50, 2, false)]).is_empty());
        assert_eq!(
            goes(vec![file("a", 60, 2, false), file("b", 50, 1, false)]),
            ["a"]
        );
        assert_eq!(goes(vec![file("a", 1, 1001, false)]), ["a"]);
        assert!(goes(vec![file("a", 500, 5000, true)]).is_empty());
        assert_eq!(
            goes(vec![file("a", 90, 5000, true), file("b", 50, 1, false)]),
            ["b"]
        );
        let many = (0..1500)
            .map(|n| file(&n.to_string(), 0, n, false))
            .collect();
        assert_eq!(goes(many).len(), 500);
    }

    #[test]
    fn empty_folders_go_with_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let revision = folder.path().join("000000000001/hello/hello-00001");
        std::fs::create_dir_all(&revision).unwrap();
        let instance = InstanceId::from_parts(1, 1);
        std::fs::write(revision.join(format!("{instance}.log")), "x").unwrap();
        let limits = LogLimits::default();
        let year_3000 = 32_503_680_000_000;
        let live = HashSet::from([instance]);
        collect(folder.path(), &limits, year_3000, &live);
        assert!(revision.exists());
        collect(folder.path(), &limits, year_3000, &HashSet::new());
        assert!(files::entries(folder.path()).is_empty());
    }
}
