use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

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

/// The OCI layout of a test image, made by `scripts/fixtures.sh`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    static FOLDER: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let folder = FOLDER.get_or_init(|| match std::env::var_os("SKIFF_FIXTURES") {
        Some(folder) => folder.into(),
        None => run(workspace().join("scripts/fixtures.sh"), [""; 0])
            .ok()
            .trim()
            .into(),
    });
    folder.join(name)
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
