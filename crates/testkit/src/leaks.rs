use std::collections::BTreeMap;
use std::path::Path;

/// How many kernel objects there are on this machine that carry a text.
///
/// A server's id is in every object it makes, so objects of other servers
/// and of tests beside this one do not disturb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaks(pub BTreeMap<&'static str, Vec<String>>);

impl Leaks {
    /// What is left of the server with this id, and below this folder.
    #[must_use]
    pub fn of(server_id: &str, folder: &Path) -> Self {
        let mut found = BTreeMap::new();
        let folder = folder.display().to_string();
        let marks = [server_id, folder.as_str()];
        found.insert("processes", processes(&marks));
        found.insert("mounts", lines_with("/proc/self/mountinfo", &marks));
        found.insert("cgroups", cgroups(server_id));
        found.insert("links", links(server_id));
        found.insert("tables", tables(server_id));
        found.retain(|_, names| !names.is_empty());
        Self(found)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn none(&self) -> bool {
        self.0.is_empty()
    }
}

fn lines_with(path: &str, marks: &[&str]) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let hit = |line: &&str| marks.iter().any(|mark| line.contains(mark));
    text.lines().filter(hit).map(str::to_owned).collect()
}

fn processes(marks: &[&str]) -> Vec<String> {
    let found = processes_with(marks).into_iter();
    found
        .map(|(pid, command)| format!("{pid}: {command}"))
        .collect()
}

/// Processes whose command line has one of the marks; never this one.
pub(crate) fn processes_with(marks: &[&str]) -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.parse().ok().filter(|_| name != own) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if marks.iter().any(|mark| command.contains(mark)) {
            found.push((pid, command));
        }
    }
    found
}

fn cgroups(server_id: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            let path = entry.path();
            if path.to_string_lossy().contains(server_id) {
                found.push(path.display().to_string());
            }
            folders.push(path);
        }
    }
    found
}

fn links(server_id: &str) -> Vec<String> {
    // An interface's name has room for a part of the id only: its random end.
    let end = &server_id[server_id.len().saturating_sub(6)..];
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(end)).collect()
}

fn tables(server_id: &str) -> Vec<String> {
    let tables = crate::tools::run("nft", ["list", "tables"]).out;
    tables
        .lines()
        .filter(|line| line.contains(server_id))
        .map(str::to_owned)
        .collect()
}
