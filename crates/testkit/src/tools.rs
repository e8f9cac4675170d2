use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};
use skiff_base::process;

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; 128 and the signal's number when one ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Finished {
    /// The standard output of a command that succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// The standard error of a command that failed.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    #[must_use]
    pub fn failed(self) -> String {
        assert_ne!(self.code, 0, "it should have failed: {}", self.out);
        self.err
    }
}

/// A command that runs; it is ended when this is dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Its process id.
    ///
    /// # Panics
    /// When the id is none.
    #[must_use]
    pub fn pid(&self) -> Pid {
        let raw = i32::try_from(self.0.id()).expect("a process id fits");
        Pid::from_raw(raw).expect("a process id is not 0")
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it takes signals");
    }

    /// Waits for its end, reading what it writes.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    #[must_use]
    pub fn wait(mut self) -> Finished {
        let read = |pipe: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                // Whatever came until the end is what is looked at.
                let _broken = pipe.map(|mut pipe| pipe.read_to_end(&mut text));
                text
            })
        };
        let out = read(self.0.stdout.take().map(|pipe| Box::new(pipe) as _));
        let err = read(self.0.stderr.take().map(|pipe| Box::new(pipe) as _));
        let status = crate::speed::wait_for("the command ends", 60, || {
            self.0.try_wait().expect("it can be waited for")
        });
        // What it leaves behind could hold its streams open for ever.
        crate::speed::wait_for("the command's streams end", 60, || {
            (out.is_finished() && err.is_finished()).then_some(())
        });
        finished(std::process::Output {
            status,
            stdout: out.join().unwrap_or_default(),
            stderr: err.join().unwrap_or_default(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Starts a command; its output can be read as it comes.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
#[must_use]
pub fn started<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Running {
    let child = process::command(program)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Running(child.expect("the command starts"))
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Finished {
    let program = program.as_ref();
    let output = process::command(program)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    finished(output.unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display())))
}

pub(crate) fn finished(output: std::process::Output) -> Finished {
    use std::os::unix::process::ExitStatusExt as _;
    let code = output
        .status
        .code()
        .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished {
        code,
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// The OCI layout of a test image, made by `scripts/fixtures.sh`; of a
/// function, whose name ends in `-function`, by `scripts/fixtures-functions.sh`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    fixtures_beside(name).join(name)
}

/// The tools that this machine lacks for a function's image, if that is why
/// there is none.
///
/// # Panics
/// When those that there are cannot be made.
#[must_use]
pub fn lacking_for(function: &str) -> Option<String> {
    let file = fixtures_beside(function).join(format!("{function}.lacks"));
    let tools = std::fs::read_to_string(file).ok()?;
    Some(tools.trim().to_owned())
}

fn fixtures_beside(name: &str) -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    static FUNCTIONS: OnceLock<PathBuf> = OnceLock::new();
    let (folder, variable, script) = if name.ends_with("-function") {
        let script = "scripts/fixtures-functions.sh";
        (&FUNCTIONS, "SKIFF_FUNCTION_FIXTURES", script)
    } else {
        (&IMAGES, "SKIFF_FIXTURES", "scripts/fixtures.sh")
    };
    folder.get_or_init(|| match std::env::var_os(variable) {
        Some(folder) => folder.into(),
        None => run(workspace().join(script), [""; 0]).ok().trim().into(),
    })
}

/// A Python environment with AWS's clients, made by `scripts/aws.sh`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn aws_clients() -> PathBuf {
    let made = run(workspace().join("scripts/aws.sh"), [""; 0]);
    made.ok().trim().into()
}

/// The binary under test: `SKIFF_BINARY`, else the one that was built beside
/// the test.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn skiff_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SKIFF_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap_or_default();
    let beside = test
        .parent()
        .and_then(Path::parent)
        .map(|folder| folder.join("skiff"))
        .unwrap_or_default();
    assert!(
        beside.exists(),
        "{} is not there: build it with `cargo build -p skiff`",
        beside.display()
    );
    beside
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs its arguments on a terminal of 33 rows and 97 columns of its own,
/// types what is at hand once a prompt is there, shows what came, and ends
/// with the command's exit code if the terminal is as it was.
const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
master, slave = pty.openpty()
def resize(rows, columns):
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
resize(33, 97)
before = termios.tcgetattr(slave)
child = os.fork()
if child == 0:
    os.close(master)
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in 0, 1, 2:
        os.dup2(slave, fd)
    os.execv(sys.argv[2], sys.argv[2:])
seen, typed = b"", 0
prompts = sys.argv[1].encode().split(b"|")
# Ours is open, too: the end is the child's.
while b"the end" not in seen:
    try:
        block = os.read(master, 4096)
    except OSError:
        break
    seen += block
    os.write(1, block)
    if typed < len(prompts) and seen.count(b"ready>") > typed:
        if b"^W" in prompts[typed]:
            resize(12, 40)
        os.write(master, prompts[typed].replace(b"^C", b"\x03").replace(b"^W", b"") + b"\r")
        typed += 1
_, status = os.waitpid(child, 0)
sys.exit(200 if termios.tcgetattr(slave) != before else os.waitstatus_to_exitcode(status))
"#;

/// Starts a command on a terminal of 33 rows and 97 columns. At each `ready>`
/// that it shows, the next of what is between `|` is typed, where `^C` is that
/// key and `^W` makes the terminal 12 by 40 first. It is over when `the end`
/// was shown; its exit code is 200 where the terminal is not as it was.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn started_on_a_terminal(typed: &str, command: &[&str]) -> Running {
    started("python3", [&["-c", ON_A_TERMINAL, typed], command].concat())
}
