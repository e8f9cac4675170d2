use std::path::PathBuf;

use clap::Parser;

/// Runs one virtual machine, and ends when it does: with 0 when the guest was
/// reset or switched off or the monitor was told to end, with 1 when no
/// machine could be made, with 2 when the command line is wrong, with 3 when
/// the guest died.
#[derive(Debug, Parser)]
#[command(name = "skiff-vmm", version)]
#[command(group(clap::ArgGroup::new("confined").args(["folder_fd", "await_fd"])))]
pub struct Arguments {
    /// The machine's configuration; `fd:3` in the place of any file is a
    /// descriptor that the process is started with.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["probe", "api_sock", "await_fd"])]
    pub config_file: Option<PathBuf>,

    /// Makes a socket on which Firecracker's API is served. Without a
    /// configuration the machine is configured and started over it.
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,

    /// Offers no API.
    #[arg(long, required_unless_present_any = ["probe", "api_sock"], conflicts_with = "api_sock")]
    pub no_api: bool,

    /// Finds out whether this host's KVM can serve, says it as one line of
    /// JSON on standard output, and ends: with 0 when it can, with 1 otherwise.
    #[arg(long, exclusive = true)]
    pub probe: bool,

    /// The machine's name, for messages.
    #[arg(long, default_value = "anonymous-instance", value_parser = id)]
    pub id: String,

    /// Makes a socket on which the running machine is controlled.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Is controlled over this connected socket, which it is started with.
    #[arg(long, value_name = "NUMBER", conflicts_with = "control")]
    pub control_fd: Option<i32>,

    /// KVM's device, open.
    #[arg(long, value_name = "NUMBER")]
    pub kvm_fd: Option<i32>,

    /// A folder, as a mount that is nowhere yet, which becomes the root. The
    /// process is the root of a user namespace and has a mount namespace of
    /// that one's.
    #[arg(long, value_name = "NUMBER")]
    pub folder_fd: Option<i32>,

    /// Makes what can be made before the machine is known, and waits for its
    /// name, folder and configuration at this connected socket. Its files take
    /// the places of the descriptors from 3 to this.
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["config_file", "api_sock"])]
    pub await_fd: Option<i32>,

    /// A cgroup's `cgroup.procs`, to be entered; with a folder.
    #[arg(long, value_name = "NUMBER", requires = "confined")]
    pub cgroup_fd: Vec<i32>,

    /// Makes system calls without a filter.
    #[arg(long)]
    pub no_seccomp: bool,

    /// Where unpacked kernels are kept; without, each start unpacks its own.
    #[arg(long, value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,
}

impl Arguments {
    /// Whether it becomes a process that has one folder.
    pub const fn is_confined(&self) -> bool {
        self.folder_fd.is_some() || self.await_fd.is_some()
    }
}

/// The longest name.
const MAX_ID: usize = 64;

fn id(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if text.is_empty() || text.len() > MAX_ID || !text.chars().all(plain) {
        return Err(format!(
            "it must be 1 to {MAX_ID} letters, digits and hyphens"
        ));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        assert!(id("a-1").is_ok());
        for wrong in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(id(wrong).is_err(), "{wrong}");
        }
    }
}
