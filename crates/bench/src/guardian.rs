//! Ends everything of a run when this process has ended, however it ended.

use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use anyhow::Context as _;
use skiff_base::process;

/// Acts when its standard input closes: at the latest the kernel does that.
#[derive(Debug)]
pub struct Guardian {
    line: Option<ChildStdin>,
    child: Child,
}

/// A process is of the run when its command line or its environment names the
/// run's folder. Servers have guardians of their own, which end them in order.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
own() {
  for entry in /proc/[0-9]*; do
    [ "${entry#/proc/}" = "$$" ] && continue
    if tr '\0' '\n' <"$entry/cmdline" | grep -qF -- "$GUARDED/" ||
       tr '\0' '\n' <"$entry/environ" | grep -qxF -- "SKIFF_BENCH_HOME=$GUARDED"; then
      echo "${entry#/proc/}"
    fi
  done 2>/dev/null
}
for signal in TERM KILL KILL; do
  pids=$(own)
  [ -z "$pids" ] && break
  for pid in $pids; do kill -$signal "$pid" 2>/dev/null; done
  for _ in 1 2 3 4 5 6 7 8 9 10; do [ -z "$(own)" ] && break; sleep 0.1; done
done
name=$(basename "$GUARDED" | tr . -)
for _ in 1 2 3; do
  awk -v home="$GUARDED/" 'index($5, home) == 1 {print $5}' /proc/self/mountinfo | sort -r |
    while read -r mount; do umount -l "$mount"; done 2>/dev/null
done
find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
rm -rf -- "$GUARDED"
"#;

impl Guardian {
    /// Of a folder.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn of(folder: &Path) -> anyhow::Result<Self> {
        let mut child = process::command("/bin/sh")
            .args(["-c", SCRIPT])
            // Not an argument: it would find itself.
            .env("GUARDED", folder)
            .stdin(Stdio::piped())
            .spawn()
            .context("/bin/sh cannot be started")?;
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
