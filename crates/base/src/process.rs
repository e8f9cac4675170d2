//! Child processes: the one place that starts them.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// A command with nothing inherited by accident: no standard input, and
/// output only where the caller puts it.
///
/// What is started must be owned: wait for it, or keep its pidfd.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the replacement that the lint names"
)]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}
