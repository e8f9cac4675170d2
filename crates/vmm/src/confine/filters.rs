//! Which system calls each thread may make; any other ends the process.

use std::collections::BTreeMap;

use rustix::time::ClockId;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Of a thread's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It waits for the guest's end, or for signals.
    Main,
    /// It runs a vCPU.
    Vcpu,
    /// It works on devices' queues.
    Devices,
    /// It answers control requests.
    Control,
    /// It serves the API.
    Api,
}

/// There is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It cannot be put together.
    #[error("the filter of system calls cannot be made")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("the filter of system calls cannot be installed")]
    Install(#[from] seccompiler::Error),
}

/// The filters of all threads.
#[derive(Debug, Clone)]
pub struct Filters {
    main: BpfProgram,
    vcpu: BpfProgram,
    devices: BpfProgram,
    control: BpfProgram,
    api: BpfProgram,
}

impl Filters {
    /// Puts them together.
    ///
    /// # Errors
    /// When one is not usable on this processor.
    pub fn compile() -> Result<Self, FilterError> {
        // The first reading of a clock asks where the kernel's page of them
        // is, by a call that no thread may make later.
        let _now = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        Ok(Self {
            main: compile(Part::Main)?,
            vcpu: compile(Part::Vcpu)?,
            devices: compile(Part::Devices)?,
            control: compile(Part::Control)?,
            api: compile(Part::Api)?,
        })
    }

    /// Holds the calling thread to its part's. Sets `no_new_privs`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self, part: Part) -> Result<(), FilterError> {
        let filter = match part {
            Part::Main => &self.main,
            Part::Vcpu => &self.vcpu,
            Part::Devices => &self.devices,
            Part::Control => &self.control,
            Part::Api => &self.api,
        };
        Ok(seccompiler::apply_filter(filter)?)
    }
}

/// What the C library and Rust's do in any thread: memory, locks, time, the
/// thread's end, and the kick that has a vCPU look up.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Kicks vCPUs, reports, removes sockets' names.
const MAIN: &[i64] = &[
    libc::SYS_rt_sigtimedwait,
    libc::SYS_tgkill,
    libc::SYS_unlink,
];

/// The guest's configuration accesses reach devices from here, one that is
/// reset lets go of its streams, and the serial port looks whether its output
/// has room.
const VCPU: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_shutdown,
    libc::SYS_writev,
];

const DEVICES: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
    libc::SYS_writev,
];

const CONTROL: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_fstat,
    libc::SYS_getrusage,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_unlink,
];

/// A limit that is changed wakes what waits for it, and a file that is put
/// behind a disk is looked at.
const API: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_tgkill,
    libc::SYS_timerfd_settime,
    libc::SYS_unlink,
];

/// fcntl(2) requests that are about a descriptor and nobody else.
const FCNTLS: &[i32] = &[
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
];

/// ioctl(2) requests of KVM's, by their type: bits 8 to 15.
const KVM_TYPE: u64 = 0xAE00;
const IOCTL_TYPE: u64 = 0xFF00;
/// Makes a descriptor wait for nothing.
const FIONBIO: u64 = 0x5421;
/// Says what a guest's driver can be spared; known once it is there.
const TUNSETOFFLOAD: u64 = 0x4004_54D0;

fn compile(part: Part) -> Result<BpfProgram, FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(
        rules(part)?,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?;
    Ok(filter.try_into()?)
}

fn rules(part: Part) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let own = match part {
        Part::Main => MAIN,
        Part::Vcpu => VCPU,
        Part::Devices => DEVICES,
        Part::Control => CONTROL,
        Part::Api => API,
    };
    let calls = COMMON.iter().chain(own);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.map(|call| (*call, Vec::new())).collect();
    // Memory that can be executed is never made.
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    let not_executable = || when(2, SeccompCmpOp::MaskedEq(executable), 0);
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    let fcntls = FCNTLS
        .iter()
        .map(|request| when(1, SeccompCmpOp::Eq, u64::from(request.cast_unsigned())));
    rules.insert(libc::SYS_fcntl, fcntls.collect::<Result<_, _>>()?);
    let ioctls = match part {
        Part::Vcpu => vec![
            when(1, SeccompCmpOp::MaskedEq(IOCTL_TYPE), KVM_TYPE)?,
            when(1, SeccompCmpOp::Eq, TUNSETOFFLOAD)?,
        ],
        Part::Devices => vec![when(1, SeccompCmpOp::Eq, FIONBIO)?],
        // A pause tells KVM's clock of it.
        Part::Control | Part::Api => vec![
            when(1, SeccompCmpOp::MaskedEq(IOCTL_TYPE), KVM_TYPE)?,
            when(1, SeccompCmpOp::Eq, FIONBIO)?,
        ],
        Part::Main => Vec::new(),
    };
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, ioctls);
    }
    if part == Part::Api {
        rules.insert(libc::SYS_openat, vec![existing_files()?]);
    }
    if part == Part::Devices {
        let unix = u64::from(libc::AF_UNIX.cast_unsigned());
        rules.insert(libc::SYS_socket, vec![when(0, SeccompCmpOp::Eq, unix)?]);
    }
    Ok(rules)
}

/// Files that are there, to be read or written: none is made or cut.
fn existing_files() -> Result<SeccompRule, seccompiler::BackendError> {
    let harmless = libc::O_ACCMODE | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let others = u64::from((!harmless).cast_unsigned());
    when(2, SeccompCmpOp::MaskedEq(others), 0)
}

fn when(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let length = SeccompCmpArgLen::Dword;
    SeccompRule::new(vec![SeccompCondition::new(
        argument, length, operator, value,
    )?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [Part; 5] = [
        Part::Main,
        Part::Vcpu,
        Part::Devices,
        Part::Control,
        Part::Api,
    ];

    #[test]
    fn every_filter_compiles_and_fits_the_kernel() {
        for part in PARTS {
            assert!(compile(part).unwrap().len() < 4096, "{part:?}");
        }
    }

    #[test]
    fn no_part_opens_files_starts_programs_or_reaches_other_processes() {
        for part in PARTS {
            let rules = rules(part).unwrap();
            for refused in [
                libc::SYS_open,
                libc::SYS_openat2,
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_fork,
                libc::SYS_kill,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_pidfd_getfd,
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_mount,
                libc::SYS_pivot_root,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
                libc::SYS_userfaultfd,
                libc::SYS_prctl,
            ] {
                assert!(!rules.contains_key(&refused), "{part:?} {refused}");
            }
            // The API's thread, which a monitor of the launcher's has not, may
            // open what is to be behind a disk.
            let opens = rules.contains_key(&libc::SYS_openat);
            assert_eq!(opens, part == Part::Api, "{part:?}");
        }
    }
}
