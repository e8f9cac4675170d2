//! Our own terminal, joined to the one of a process in a sandbox.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use skiff_types::api::ExecTerminal;
use tokio::sync::oneshot;

const BLOCK: usize = 16 * 1024;

/// Our own terminal's size.
///
/// # Errors
/// When standard input is none.
pub fn size() -> anyhow::Result<ExecTerminal> {
    let size =
        tcgetwinsize(std::io::stdin()).context("--tty needs a terminal as standard input")?;
    Ok(ExecTerminal {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// For what the process wrote last to be shown.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Our terminal, raw until this is dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes it raw.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn make() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("the terminal cannot be asked")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("the terminal cannot be made raw")?;
        Ok(Self { before })
    }
}

/// Our terminal, joined to another one.
#[derive(Debug)]
pub struct Attached {
    raw: Raw,
    /// Closes when there is nothing more to show.
    shown: oneshot::Receiver<()>,
}

impl Attached {
    /// Waits until everything was shown that a process wrote which has ended.
    pub async fn finish(mut self) {
        // Closed or late: either way there is nothing more to wait for.
        let _shown = tokio::time::timeout(LAST_WORDS, &mut self.shown).await;
        drop(self.raw);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone away needs no mending.
        let _gone = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Copies between our terminal and the sandbox's, on two threads that end
/// with the process.
///
/// # Errors
/// When our terminal cannot be made raw.
pub fn attach(terminal: OwnedFd) -> anyhow::Result<Attached> {
    let raw = Raw::make()?;
    let (ended, shown) = oneshot::channel();
    let keep = Attached { raw, shown };
    let input = File::from(terminal.try_clone()?);
    std::thread::Builder::new()
        .name("terminal in".to_owned())
        .spawn(move || pump_in(input))?;
    std::thread::Builder::new()
        .name("terminal out".to_owned())
        .spawn(move || {
            pump_out(File::from(terminal));
            drop(ended);
        })?;
    Ok(keep)
}

fn pump_in(mut terminal: File) {
    let mut block = [0; BLOCK];
    let mut stdin = std::io::stdin().lock();
    while let Ok(count @ 1..) = stdin.read(&mut block) {
        if terminal.write_all(&block[..count]).is_err() {
            return;
        }
    }
}

fn pump_out(mut terminal: File) {
    let mut block = [0; BLOCK];
    // EIO is how a terminal tells that its other side is closed.
    while let Ok(count @ 1..) = terminal.read(&mut block) {
        let mut stdout = std::io::stdout().lock();
        if stdout
            .write_all(&block[..count])
            .and_then(|()| stdout.flush())
            .is_err()
        {
            return;
        }
    }
}
