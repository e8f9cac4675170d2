//! The last steps before the application: it becomes its user, keeps what
//! little it may, and executes.

use std::ffi::CString;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use skiff_wire::launcher::{ProcessSpec, Refusal};

use crate::failure::{Context, Step, refuse};
use crate::seccomp::Filters;
use crate::sys;

const STEP: &str = "exec";
/// Where the error pipe is while everything above is closed.
const ERROR_PIPE: i32 = 3;

/// Capabilities in the sandbox's own user namespace: Docker's default without
/// `NET_RAW`, `MKNOD` and `AUDIT_WRITE`. `CHOWN`, `DAC_OVERRIDE`, `FOWNER`,
/// `FSETID`, `KILL`, `SETGID`, `SETUID`, `SETPCAP`, `NET_BIND_SERVICE`,
/// `SYS_CHROOT`, `SETFCAP`.
const CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 18
    | 1 << 31;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the application unless something went wrong `before`; tells
/// `errors` why not, and its own standard error too if it is `late`: then
/// nobody waits for it.
pub(super) fn run(
    process: &ProcessSpec,
    streams: [OwnedFd; 3],
    terminal: bool,
    before: Step<()>,
    filters: &Filters,
    errors: OwnedFd,
    late: bool,
) -> ! {
    let refusal = match arrange(streams, errors).and(before) {
        Ok(()) => start(process, terminal, filters),
        Err(refusal) => refusal,
    };
    if late {
        // Best effort: whoever reads it may be gone.
        rustix::io::write(rustix::stdio::stderr(), format!("{refusal}\n").as_bytes()).ok();
    }
    // SAFETY: the descriptor was put there, or else the write fails.
    let errors = unsafe { OwnedFd::from_raw_fd(ERROR_PIPE) };
    if let Ok(frame) = skiff_wire::encode(&refusal) {
        // The reader has gone only when the launcher ends the sandbox anyway.
        rustix::io::write(&errors, &frame).ok();
    }
    sys::exit_now(127)
}

/// Leaves open the three streams and, above them, the error pipe.
fn arrange(streams: [OwnedFd; 3], errors: OwnedFd) -> Step<()> {
    // Everything goes above the numbers that are about to be replaced.
    let lift = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, ERROR_PIPE + 1).at(STEP, "dup");
    let [stdin, stdout, stderr] = streams;
    let errors = lift(errors)?;
    let streams = [lift(stdin)?, lift(stdout)?, lift(stderr)?];
    for (number, stream) in (0..).zip(streams) {
        place(stream, number, false)?;
    }
    place(errors, ERROR_PIPE, true)?;
    sys::close_from(4).at(STEP, "close_range")
}

fn place(fd: OwnedFd, number: i32, close_on_exec: bool) -> Step<()> {
    sys::duplicate(fd.as_fd(), number, close_on_exec).at(STEP, "dup3")?;
    // close_range closes it with everything else.
    std::mem::forget(fd);
    Ok(())
}

fn start(process: &ProcessSpec, terminal: bool, filters: &Filters) -> Refusal {
    match prepare(process, terminal, filters).and_then(|()| execute(process)) {
        Ok(never) => match never {},
        Err(refusal) => refusal,
    }
}

fn prepare(process: &ProcessSpec, terminal: bool, filters: &Filters) -> Step<()> {
    sys::reset_signals();
    rustix::process::setsid().at(STEP, "setsid")?;
    if terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .at(STEP, "controlling terminal")?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let groups = &process.additional_gids;
    // What drops the bounding set needs a capability that the user may not
    // have: first it, then the user, then what is left.
    sys::bound_capabilities(CAPABILITIES).at(STEP, "drop capabilities")?;
    sys::become_user(process.uid, process.gid, groups).at(STEP, "become the user")?;
    let kept = if process.uid == 0 { CAPABILITIES } else { 0 };
    sys::set_capabilities(kept).at(STEP, "drop capabilities")?;
    enter_folder(process)?;
    filters.apply()
}

/// As the user, and never to a folder outside of the root.
fn enter_folder(process: &ProcessSpec) -> Step<()> {
    rustix::process::chdir(process.cwd.as_str()).at("cwd", format!("enter {}", process.cwd))?;
    let now = rustix::process::getcwd(Vec::new()).at("cwd", &process.cwd)?;
    if now.to_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(refuse(
        "cwd",
        format!("{} is outside of the root", process.cwd),
    ))
}

enum Never {}

fn execute(process: &ProcessSpec) -> Step<Never> {
    let args = strings(&process.args)?;
    let env = strings(&process.env)?;
    let args = sys::pointers(&args);
    let env = sys::pointers(&env);
    let name = process
        .args
        .first()
        .ok_or_else(|| refuse(STEP, "there is no program"))?;
    let mut worst = Errno::NOENT;
    for candidate in candidates(name, &process.env) {
        let program = string(&candidate)?;
        match sys::execute(&program, &args, &env) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => worst = Errno::ACCESS,
            errno => {
                worst = errno;
                break;
            }
        }
    }
    Err(worst).at(STEP, format!("execute `{name}`"))
}

fn strings(list: &[String]) -> Step<Vec<CString>> {
    list.iter().map(|text| string(text)).collect()
}

fn string(text: &str) -> Step<CString> {
    CString::new(text).map_err(|_| refuse(STEP, "a string has a zero byte"))
}

/// Where a program may be (execvp(3)).
fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|folder| if folder.is_empty() { "." } else { folder })
        .map(|folder| format!("{folder}/{name}"))
        .collect()
}

/// The terminal's own side, from the sandbox's `/dev/pts`.
pub(super) fn open_terminal(columns: u16, rows: u16) -> Step<(OwnedFd, OwnedFd)> {
    const TERMINAL: &str = "terminal";
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master =
        rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).at(TERMINAL, "/dev/pts/ptmx")?;
    rustix::pty::unlockpt(&master).at(TERMINAL, "unlock")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC,
    )
    .at(TERMINAL, "open the other side")?;
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master.as_fd(), size).at(TERMINAL, "set the size")?;
    Ok((master, slave))
}

/// Gives the terminal to the user who runs on it.
pub(super) fn own_terminal(slave: &OwnedFd, owner: u32, uid: u32) -> Step<()> {
    let uid = rustix::fs::Uid::from_raw(owner + uid);
    rustix::fs::fchown(slave, Some(uid), None).at("terminal", "chown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up_in_the_path_given() {
        let env = vec!["HOME=/".to_owned(), "PATH=/a:/b::/c/d".to_owned()];
        assert_eq!(candidates("x", &env), ["/a/x", "/b/x", "./x", "/c/d/x"]);
        assert_eq!(candidates("./x", &env), ["./x"]);
        assert_eq!(candidates("x", &[]).len(), 6);
    }
}
