//! The default system-call filter.
//!
//! It allows what Docker's default profile allows without further
//! capabilities. What is not listed answers EPERM; what is younger than the
//! list, and clone3 (whose flags a filter cannot see), answers ENOSYS, so
//! that C libraries fall back.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::failure::{Step, refuse};

mod calls;

const STEP: &str = "seccomp";
/// The youngest call that the list was made for: file_setattr of Linux 6.17.
const YOUNGEST_CALL: u32 = 469;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// Domains whose sockets are refused: AF_ALG and AF_VSOCK.
const REFUSED_DOMAINS: [u64; 2] = [38, 40];
/// personality(2): Linux and 32-bit Linux, with and without UNAME26, and the
/// question.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// Both filters, compiled once.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    allowed: BpfProgram,
    absent: BpfProgram,
}

impl Filters {
    pub(crate) fn compile() -> Step<Self> {
        let arch =
            TargetArch::try_from(std::env::consts::ARCH).map_err(|error| refuse(STEP, error))?;
        let filter = SeccompFilter::new(
            rules()?,
            SeccompAction::Errno(errno(libc::EPERM)),
            SeccompAction::Allow,
            arch,
        )
        .map_err(|error| refuse(STEP, error))?;
        Ok(Self {
            allowed: filter.try_into().map_err(|error| refuse(STEP, error))?,
            absent: absent_filter(),
        })
    }

    /// Holds the calling thread and what it starts to the list. Sets
    /// `no_new_privs`.
    pub(crate) fn apply(&self) -> Step<()> {
        // Of two filters that answer with an error, the later one's counts.
        for filter in [&self.allowed, &self.absent] {
            seccompiler::apply_filter(filter).map_err(|error| refuse(STEP, error))?;
        }
        Ok(())
    }
}

fn errno(number: i32) -> u32 {
    number.cast_unsigned()
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Step<SeccompCondition> {
    SeccompCondition::new(argument, length, operator, value).map_err(|error| refuse(STEP, error))
}

fn rule(conditions: Vec<SeccompCondition>) -> Step<SeccompRule> {
    SeccompRule::new(conditions).map_err(|error| refuse(STEP, error))
}

fn rules() -> Step<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls::allowed().map(|call| (call, Vec::new())).collect();
    // A new namespace would come with every capability in it.
    let same_namespaces = condition(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(CLONE_NAMESPACES),
        0,
    )?;
    rules.insert(libc::SYS_clone, vec![rule(vec![same_namespaces])?]);
    let other_domains = REFUSED_DOMAINS
        .into_iter()
        .map(|domain| condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, domain))
        .collect::<Step<_>>()?;
    rules.insert(libc::SYS_socket, vec![rule(other_domains)?]);
    let personalities = PERSONALITIES
        .into_iter()
        .map(|value| {
            let same = condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
            rule(vec![same])
        })
        .collect::<Step<_>>()?;
    rules.insert(libc::SYS_personality, personalities);
    Ok(rules)
}

/// ENOSYS for clone3 and for every number above [`YOUNGEST_CALL`], x32's
/// among them.
fn absent_filter() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7FFF_0000;
    const ERRNO: u32 = 0x0005_0000;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    vec![
        // The call's number is the first word of the data.
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_EQUAL, 2, 0, clone3),
        step(JUMP_GREATER, 1, 0, YOUNGEST_CALL),
        step(RETURN, 0, 0, ALLOW),
        step(RETURN, 0, 0, ERRNO | errno(libc::ENOSYS)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_fit_the_kernel() {
        let filters = Filters::compile().unwrap();
        assert!(filters.allowed.len() < 4096);
        assert_eq!(filters.absent.len(), 5);
    }

    #[test]
    fn the_list_has_what_programs_need_and_not_what_breaks_out() {
        let rules = rules().unwrap();
        for needed in [
            libc::SYS_read,
            libc::SYS_execve,
            libc::SYS_futex,
            libc::SYS_clone3,
        ] {
            assert!(rules.contains_key(&needed), "{needed}");
        }
        for refused in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_open_by_handle_at,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_pivot_root,
        ] {
            assert!(!rules.contains_key(&refused), "{refused}");
        }
    }
}
