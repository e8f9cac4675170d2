use oci_spec::runtime::{PosixRlimitType, Process};
use skiff_wire::launcher::ProcessSpec;

/// The process has something that a sandbox does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// A field that must be there is not.
    #[error("the process has no `{0}`")]
    Missing(&'static str),
    /// A path is not UTF-8.
    #[error("the process's working folder is not UTF-8")]
    Cwd,
}

/// Open files where the process sets no limit.
const NOFILE_DEFAULT: u64 = 1024 * 1024;

/// What runs, from the OCI runtime-spec's `process`.
///
/// Skiff's own are the capabilities, `no_new_privs` and the filter: what the
/// process says of them is not looked at.
///
/// # Errors
/// When there is no program, or a path cannot be told.
pub fn process_from_oci(process: &Process) -> Result<ProcessSpec, ProcessError> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(ProcessError::Missing("args"));
    }
    let user = process.user();
    let nofile = process.rlimits().iter().flatten();
    let nofile = nofile
        .filter(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
        .map(|limit| limit.hard())
        .next_back();
    Ok(ProcessSpec {
        args,
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().to_str().ok_or(ProcessError::Cwd)?.to_owned(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        nofile: nofile.unwrap_or(NOFILE_DEFAULT),
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{PosixRlimitBuilder, ProcessBuilder, UserBuilder};

    use super::*;

    #[test]
    fn a_process_is_taken_over() {
        let user = UserBuilder::default()
            .uid(1000u32)
            .gid(1001u32)
            .additional_gids(vec![5, 6])
            .build()
            .unwrap();
        let limit = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .hard(512u64)
            .soft(256u64)
            .build()
            .unwrap();
        let process = ProcessBuilder::default()
            .args(vec!["/bin/true".to_owned()])
            .env(vec!["A=b".to_owned()])
            .cwd("/srv")
            .user(user)
            .rlimits(vec![limit])
            .build()
            .unwrap();
        let spec = process_from_oci(&process).unwrap();
        assert_eq!(
            spec,
            ProcessSpec {
                args: vec!["/bin/true".to_owned()],
                env: vec!["A=b".to_owned()],
                cwd: "/srv".to_owned(),
                uid: 1000,
                gid: 1001,
                additional_gids: vec![5, 6],
                nofile: 512,
            }
        );
    }

    #[test]
    fn a_process_without_a_program_is_refused() {
        let process = ProcessBuilder::default().args(Vec::new()).build().unwrap();
        assert_eq!(
            process_from_oci(&process),
            Err(ProcessError::Missing("args"))
        );
    }
}
