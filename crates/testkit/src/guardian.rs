use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use skiff_base::process;

/// Ends the server and the launcher of a folder, and removes the folder, when
/// the process of the tests has ended, however it ended: a server that many
/// tests share is never dropped.
#[derive(Debug)]
pub(crate) struct Guardian {
    /// Closed by the kernel at the latest; then the guardian acts.
    line: Option<ChildStdin>,
    child: Child,
}

/// A process is of the folder when its command line names it.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
own() {
  for entry in /proc/[0-9]*; do
    tr '\0' ' ' <"$entry/cmdline" 2>/dev/null | grep -qF -- "$GUARDED" && echo "${entry#/proc/}"
  done
}
for pid in $(own); do
  if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q ' launcher '; then kill -TERM "$pid"; else kill -KILL "$pid"; fi
done 2>/dev/null
for _ in $(seq 300); do [ -z "$(own)" ] && break; sleep 0.1; done
for pid in $(own); do kill -KILL "$pid"; done 2>/dev/null
rm -rf -- "$GUARDED"
"#;

impl Guardian {
    pub(crate) fn of(folder: &Path) -> Self {
        let mut child = process::command("/bin/sh")
            .args(["-c", SCRIPT])
            // Not an argument: it would find itself.
            .env("GUARDED", folder)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let line = child.stdin.take();
        Self { line, child }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.line.take());
        let _ended = self.child.wait();
    }
}
