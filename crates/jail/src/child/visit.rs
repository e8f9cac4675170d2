//! A further process in a sandbox that runs, from its request to its program.
//!
//! ```text
//!  helper (launcher's copy): cgroups, namespaces of the sandbox
//!   │ fork ──▶ process: user, capabilities, filter, execve
//!  waits for its end, reports, ends
//! ```
//!
//! The helper has no number in the sandbox's pid namespace, and no capability
//! once the process runs. The process has a number, but until its `execve` nobody in the sandbox may trace it or open
//! what it has: it is the host's root first, and not dumpable afterwards.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::thread::ThreadNameSpaceType;
use skiff_base::{Clock, SystemClock};
use skiff_wire::launcher::ProcessSpec;

use super::init::{
    FAILED, Streams, die_with_launcher, keep_only, limit_resources, micros, open_streams, reap,
    report, start,
};
use super::plan::Report;
use crate::failure::{Context, Step};
use crate::seccomp::Filters;
use crate::sys;

const STEP: &str = "exec";

/// What is to run, and where.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) process: ProcessSpec,
    /// Columns and rows.
    pub(crate) terminal: Option<(u16, u16)>,
    /// `cgroup.procs` files to enter by.
    pub(crate) doors: Vec<PathBuf>,
    /// The first id of the sandbox's range.
    pub(crate) owner: u32,
    /// The sandbox's init.
    pub(crate) init: OwnedFd,
    pub(crate) users: OwnedFd,
    pub(crate) streams: Streams,
}

/// Starts the process, and ends when it does.
pub(crate) fn run_visit(visit: Visit, control: &OwnedFd, filters: &Filters) -> ! {
    let code = match enter(visit, control, filters) {
        Ok(()) => 0,
        Err(refusal) => {
            report(control, &Report::Failed(refusal), &[]);
            FAILED
        }
    };
    sys::exit_now(code)
}

fn enter(visit: Visit, control: &OwnedFd, filters: &Filters) -> Step<()> {
    let clock = SystemClock;
    let begun = clock.now();
    die_with_launcher(control)?;
    let fds = [control, &visit.init, &visit.users].into_iter();
    let fds = fds.chain(visit.streams.iter().flatten());
    keep_only(&mut fds.map(AsRawFd::as_raw_fd).collect::<Vec<_>>())?;
    for door in &visit.doors {
        std::fs::write(door, "0").at("cgroup", door.display())?;
    }
    sys::join_new_keyring();
    limit_resources(&visit.process)?;
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK;
    rustix::thread::move_into_thread_name_spaces(visit.init.as_fd(), namespaces)
        .at(STEP, "enter the sandbox's namespaces")?;
    let user = visit.process.uid;
    let (streams, terminal) = open_streams(visit.owner, user, visit.terminal, visit.streams)?;
    let started = start(
        &visit.process,
        terminal.is_some(),
        &visit.users,
        streams,
        false,
        filters,
    )?;
    let (pid, process) = (started.pid, started.pidfd);
    let started = Report::Started {
        root_us: 0,
        exec_us: micros(begun, clock.now()),
    };
    let fds = [Some(&process), terminal.as_ref()];
    let fds: Vec<_> = fds.into_iter().flatten().map(AsFd::as_fd).collect();
    report(control, &started, &fds);
    drop((process, terminal));
    sys::set_capabilities(0).at(STEP, "drop the helper's capabilities")?;
    let status = reap(pid)?;
    report(control, &Report::Exited(status), &[]);
    Ok(())
}
