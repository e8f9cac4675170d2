use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::Signal;
use rustix::thread::LinkNameSpaceType;
use skiff_base::{Clock, Monotonic, SystemClock};
use skiff_wire::FRAME_BYTES_MAX;
use skiff_wire::launcher::{LINGER, ProcessSpec, Refusal};

use super::plan::{Birth, Plan, Report};
use super::{app, extensions, root};
use crate::channel;
use crate::failure::{Context, Step, refuse};
use crate::seccomp::Filters;
use crate::sys::{self, Cloned};

/// The launcher's end is gone; so is the reason to go on.
const ABANDONED: i32 = 1;
pub(super) const FAILED: i32 = 2;
/// Above every score that a process has by its size unless it takes two
/// thirds of the memory: the application goes first, never the init.
pub(super) const APP_OOM_SCORE: &str = "300";

/// The first process of a sandbox, from its birth to its end.
///
/// It is a copy of the launcher with one thread and never returns.
pub(crate) fn run(birth: &Birth, control: OwnedFd, filters: &Filters) -> ! {
    let code = match live(birth, &control, filters) {
        Ok(code) => code,
        Err(refusal) => {
            report(&control, &Report::Failed(refusal), &[]);
            FAILED
        }
    };
    sys::exit_now(code)
}

pub(super) fn report(control: &OwnedFd, report: &Report, fds: &[BorrowedFd<'_>]) {
    if let Ok(frame) = skiff_wire::encode(report) {
        // A launcher that is gone needs no report.
        channel::send(control, &frame, fds, SendFlags::empty()).ok();
    }
}

fn live(birth: &Birth, control: &OwnedFd, filters: &Filters) -> Step<i32> {
    park(birth, control)?;
    report(control, &Report::Parked, &[]);
    let Some((plan, fds)) = receive_plan(control)? else {
        return Ok(ABANDONED);
    };
    let clock = SystemClock;
    let begun = clock.now();
    let (users, streams) = settle(birth, &plan, fds)?;
    let built = clock.now();
    let user = plan.process.uid;
    let (streams, terminal) = open_streams(birth.owner, user, plan.terminal, streams)?;
    let extensions = match plan.function {
        true => extensions::list()?,
        false => Vec::new(),
    };
    let app = start(
        &plan.process,
        plan.terminal.is_some(),
        &users,
        streams,
        !extensions.is_empty(),
        filters,
    )?;
    let (root_us, exec_us) = (micros(begun, built), micros(built, clock.now()));
    let started = match &app.held {
        None => Report::Started { root_us, exec_us },
        Some(_) => Report::Held {
            root_us,
            exec_us,
            extensions,
        },
    };
    let gate = app.held.as_ref().map(|held| &held.gate);
    let fds = [Some(&app.pidfd), gate, terminal.as_ref()];
    let fds: Vec<_> = fds.into_iter().flatten().map(AsFd::as_fd).collect();
    report(control, &started, &fds);
    drop((plan, terminal));
    // Its work from here on takes no privilege.
    sys::set_capabilities(0).at("exec", "drop the init's capabilities")?;
    let has_extensions = app.held.is_some();
    if let Some(Held { gate, outcome }) = app.held {
        drop(gate);
        // It says itself why it does not run, and its end is reported.
        await_execve(&outcome).ok();
    }
    let status = reap(app.pid)?;
    if has_extensions {
        report(control, &Report::AppEnded(status), &[]);
        linger(control)?;
    }
    report(control, &Report::Exited(status), &[]);
    Ok(0)
}

/// Stays for the extensions' sake, which end with this process: until it is
/// killed, or the launcher has gone, or they have had time enough. They are no
/// children of this process, so that there is nothing to wait for.
fn linger(control: &OwnedFd) -> Step<()> {
    let clock = SystemClock;
    let until = clock.now().plus(LINGER);
    loop {
        let left = until.since(clock.now());
        let left = Timespec::try_from(left).map_err(|error| refuse("init", error))?;
        let mut polled = [PollFd::new(control, PollFlags::empty())];
        match poll(&mut polled, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).at("init", "poll"),
        }
    }
}

pub(super) fn micros(from: Monotonic, to: Monotonic) -> u32 {
    u32::try_from(to.since(from).as_micros()).unwrap_or(u32::MAX)
}

fn park(birth: &Birth, control: &OwnedFd) -> Step<()> {
    const STEP: &str = "park";
    die_with_launcher(control)?;
    keep_only(&mut [control.as_raw_fd()])?;
    rustix::process::setsid().at(STEP, "setsid")?;
    // Each entry may wait for every processor to pass a quiet point; the
    // launcher does not.
    for door in &birth.doors {
        std::fs::write(door, "0").at("cgroup", door.display())?;
    }
    // SAFETY: the process has one thread, and cgroups have no part in its
    // open files.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
        .at(STEP, "unshare the cgroup namespace")?;
    root::prepare(birth)
}

pub(super) fn die_with_launcher(control: &OwnedFd) -> Step<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .at("park", "tie to the launcher")?;
    // It may have died before that call.
    let mut polled = [PollFd::new(control, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).at("park", "poll")?;
    if polled[0].revents().contains(PollFlags::HUP) {
        return Err(refuse("park", "the launcher is gone"));
    }
    Ok(())
}

/// Closes what the copy of the launcher has open, but for these and the
/// standard streams.
pub(super) fn keep_only(kept: &mut [RawFd]) -> Step<()> {
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept.iter().map(|fd| fd.cast_unsigned()) {
        if fd > next {
            close_between(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close_between(next, u32::MAX)
}

fn close_between(first: u32, last: u32) -> Step<()> {
    // SAFETY: the callers use nothing of the launcher's but what they keep.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
        return Err(std::io::Error::last_os_error()).at("park", "close_range");
    }
    Ok(())
}

fn receive_plan(control: &OwnedFd) -> Step<Option<(Plan, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let received = channel::receive(control, &mut buffer, RecvFlags::empty());
    let Some((length, fds)) = received.at("park", "receive the plan")? else {
        return Ok(None);
    };
    let frame = buffer.get(..length).unwrap_or_default();
    let plan = skiff_wire::decode(frame).map_err(|error| refuse("park", error))?;
    buffer.fill(0);
    Ok(Some((plan, fds)))
}

/// The application's standard streams, before there is a terminal.
pub(super) type Streams = Option<[OwnedFd; 3]>;

/// Builds the sandbox around this process; what is left to do takes its user
/// namespace and its streams.
fn settle(birth: &Birth, plan: &Plan, fds: Vec<OwnedFd>) -> Step<(OwnedFd, Streams)> {
    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or_else(|| refuse("park", "a descriptor is missing"))
    };
    let (users, network) = (next()?, next()?);
    let streams = match plan.terminal {
        None => Some([next()?, next()?, next()?]),
        Some(_) => None,
    };
    let disk = plan.disk.map(|disk| Ok((next()?, disk))).transpose()?;
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .at("network", "enter the namespace")?;
    rustix::system::sethostname(plan.hostname.as_bytes()).at("root", "sethostname")?;
    sys::join_new_keyring();
    limit_resources(&plan.process)?;
    root::build(birth, plan, disk, fds.collect())?;
    Ok((users, streams))
}

/// Leaves the host's users for those of the sandbox.
fn enter_users(users: &OwnedFd) -> Step<()> {
    rustix::thread::move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
        .at("user", "enter the namespace")?;
    sys::become_user(0, 0, &[]).at("user", "become its root")?;
    // The change of user cleared both; neither may be left to the image.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .at("user", "tie to the parent")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .at("user", "forbid tracing")
}

/// While the launcher's privilege to raise limits, if it has it, is here.
pub(super) fn limit_resources(process: &ProcessSpec) -> Step<()> {
    sys::limit_resource(libc::RLIMIT_NOFILE, process.nofile).at("rlimit", "open files")?;
    sys::limit_resource(libc::RLIMIT_CORE, 0).at("rlimit", "core")?;
    // The cgroup counts processes; users of ranges need no second limit.
    sys::limit_resource(libc::RLIMIT_NPROC, u64::MAX).at("rlimit", "processes")
}

/// The streams that were given, or those of a new terminal with its
/// controlling side.
pub(super) fn open_streams(
    owner: u32,
    user: u32,
    terminal: Option<(u16, u16)>,
    streams: Streams,
) -> Step<([OwnedFd; 3], Option<OwnedFd>)> {
    match (terminal, streams) {
        (Some((columns, rows)), _) => {
            let (master, slave) = app::open_terminal(columns, rows)?;
            app::own_terminal(&slave, owner, user)?;
            let copy = || slave.try_clone().at("terminal", "dup");
            Ok(([copy()?, copy()?, copy()?], Some(master)))
        }
        (None, Some(streams)) => Ok((streams, None)),
        (None, None) => Err(refuse("exec", "there are no streams")),
    }
}

/// A process that was started.
pub(super) struct App {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    held: Option<Held>,
}

/// What a process that is held waits for, and where it tells how its `execve`
/// went.
struct Held {
    gate: OwnedFd,
    outcome: OwnedFd,
}

/// Forks and waits for the program's `execve`; not for that of one that is
/// held.
pub(super) fn start(
    process: &ProcessSpec,
    terminal: bool,
    users: &OwnedFd,
    streams: [OwnedFd; 3],
    hold: bool,
    filters: &Filters,
) -> Step<App> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at("exec", "pipe");
    let (reader, writer) = pipe()?;
    let gate = hold.then(pipe).transpose()?;
    // SAFETY: this process has one thread.
    match unsafe { sys::clone3(0, None) }.at("exec", "clone")? {
        Cloned::Child => {
            drop(reader);
            // Only the host's root may, so before it is left. Best effort:
            // without it the score is the process's size alone.
            std::fs::write("/proc/self/oom_score_adj", APP_OOM_SCORE).ok();
            let entered = enter_users(users).and_then(|()| wait_at(gate));
            app::run(process, streams, terminal, entered, filters, writer, hold)
        }
        Cloned::Parent { pid, pidfd } => {
            drop((writer, streams));
            enter_users(users)?;
            let held = gate.map(|(_, gate)| gate);
            if held.is_none() {
                await_execve(&reader)?;
            }
            Ok(App {
                pid: pid.as_raw_pid(),
                pidfd,
                held: held.map(|gate| Held {
                    gate,
                    outcome: reader,
                }),
            })
        }
    }
}

/// Waits until a byte comes through the gate, if there is one. It is the
/// sandbox's root meanwhile, and not dumpable: nobody in the sandbox may trace
/// it or open what it has.
fn wait_at(gate: Option<(OwnedFd, OwnedFd)>) -> Step<()> {
    let Some((reader, writer)) = gate else {
        return Ok(());
    };
    drop(writer);
    loop {
        match rustix::io::read(&reader, &mut [0; 1]) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(refuse("exec", "nobody lets it go on any more")),
            result => return result.map(drop).at("exec", "wait"),
        }
    }
}

/// The pipe closes without a word when `execve` has succeeded.
fn await_execve(reader: &OwnedFd) -> Step<()> {
    let mut buffer = vec![0; 4096];
    let length = loop {
        match rustix::io::read(reader, &mut buffer) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.at("exec", "read the outcome")?,
        }
    };
    if length == 0 {
        return Ok(());
    }
    let frame = buffer.get(..length).unwrap_or_default();
    Err(skiff_wire::decode::<Refusal>(frame).unwrap_or_else(|error| refuse("exec", error)))
}

/// Waits for whatever ends in the sandbox until the application does.
pub(super) fn reap(app: i32) -> Step<i32> {
    loop {
        let (pid, status) = sys::wait_any().at("init", "wait")?;
        if pid == app {
            return Ok(status);
        }
    }
}
