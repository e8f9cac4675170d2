use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use skiff_base::process;

/// Cleans up after a folder's processes when this one has ended, however it
/// ended.
#[derive(Debug)]
pub struct Guardian {
    /// Closed by the kernel at the latest; then the guardian acts.
    line: Option<ChildStdin>,
    child: Child,
}

impl Guardian {
    /// One whose shell reads its standard input to the end and then does its
    /// work on the folder, `$GUARDED`.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn of(folder: &Path, script: &str) -> io::Result<Self> {
        let mut child = process::command("/bin/sh")
            .args(["-c", script])
            // Not an argument: it would find itself.
            .env("GUARDED", folder)
            .stdin(Stdio::piped())
            .spawn()?;
        let line = child.stdin.take();
        Ok(Self { line, child })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.line.take());
        let _ended = self.child.wait();
    }
}
