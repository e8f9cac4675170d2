//! Another program in the same process: pids, mounts and children stay, and
//! the state goes over in a file in memory.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::event::epoll::EventFlags;
use rustix::fs::{MemfdFlags, SeekFrom};
use skiff_net::Networks;

use super::client::ReplyTo;
use super::kept::{Kept, Saved};
use super::sandbox::State;
use super::{Launcher, Token};
use crate::failure::{Context, Step, refuse};
use crate::handle;
use crate::sys;

const STEP: &str = "upgrade";
/// What the saved state begins with, and what a program must contain to be
/// handed it: one that knows another state would end every sandbox. Raise the
/// number with every change of what is kept.
static STATE_MARK: &[u8] = b"[skiff-launcher-state:00008]";
/// Of a program, looked through at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Far above what the largest number of sandboxes takes.
const STATE_BYTES_MAX: u64 = 256 * 1024 * 1024;

impl Launcher {
    /// Returns only if the other program cannot be executed.
    pub(super) fn upgrade(&mut self, to: ReplyTo, program: &OwnedFd) -> Step<()> {
        if self.kept.shutting_down {
            return Err(refuse(STEP, "the launcher is ending"));
        }
        probe(program)?;
        self.drop_disks();
        self.drop_monitors();
        let result = self.execute(to, program);
        // Whatever was marked to stay open is the next exec's to close.
        handle::unsave_all().at(STEP, "close_range")?;
        result
    }

    fn execute(&mut self, to: ReplyTo, program: &OwnedFd) -> Step<()> {
        let fresh = Networks::open(self.options.server, self.options.network.clone());
        let fresh = fresh.map_err(|error| refuse(STEP, skiff_base::chain(&error)))?;
        let networks = std::mem::replace(&mut self.networks, fresh);
        let (networks, fds) = networks.into_parts();
        let state = Saving {
            kept: &self.kept,
            networks: &networks,
            network_fds: fds
                .iter()
                .map(handle::save)
                .collect::<Result<_, _>>()
                .at(STEP, "keep")?,
            upgraded: to,
        };
        let result = save(&state).and_then(|file| exec(&self.options, program, &file));
        drop(state);
        let server = self.options.server;
        let options = self.options.network.clone();
        self.networks = Networks::from_parts(server, options, networks, fds)
            .map_err(|error| refuse(STEP, skiff_base::chain(&error)))?;
        self.networks.configure(self.kept.pool);
        result
    }

    /// Watches the seats that an earlier program had, and takes up what was
    /// under way.
    pub(super) fn watch_seats(&mut self) -> Step<()> {
        for (number, seat) in &self.kept.seats {
            if seat.dead {
                self.tidying.insert(*number);
            } else {
                self.watch(&seat.pidfd, Token::Process(*number), EventFlags::IN)?;
            }
            if let Some(control) = &seat.control {
                self.watch(control, Token::Control(*number), EventFlags::IN)?;
            }
        }
        self.watch_execs()?;
        for (id, sandbox) in &self.kept.sandboxes {
            if matches!(sandbox.state, State::Starting { .. }) {
                self.starting.insert(*id);
            }
            if sandbox.freeze_waiter.is_some() {
                self.freezing.insert(*id);
            }
        }
        Ok(())
    }
}

/// [`Saved`], from what is still in use.
#[derive(serde::Serialize)]
struct Saving<'a> {
    kept: &'a Kept,
    networks: &'a skiff_net::NetworksState,
    network_fds: Vec<i32>,
    upgraded: ReplyTo,
}

/// Refuses what cannot take this launcher's state up, before anything is
/// touched.
fn probe(program: &OwnedFd) -> Step<()> {
    let mark = std::hint::black_box(STATE_MARK);
    let mut window = Vec::with_capacity(CHUNK_BYTES + mark.len());
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0u64;
    loop {
        let length = rustix::io::pread(program, &mut chunk, offset).at(STEP, "read the program")?;
        if length == 0 {
            let message = "the file is not a launcher that knows this one's state";
            return Err(refuse(STEP, message));
        }
        offset += u64::try_from(length).unwrap_or(0);
        // The mark may lie across two chunks.
        let kept = window.len().saturating_sub(mark.len());
        window.drain(..kept);
        window.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if contains(&window, mark) {
            return Ok(());
        }
    }
}

fn contains(text: &[u8], mark: &[u8]) -> bool {
    let Some(&first) = mark.first() else {
        return true;
    };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(mark) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

fn save(state: &Saving<'_>) -> Step<OwnedFd> {
    let bytes = postcard::to_extend(state, std::hint::black_box(STATE_MARK).to_vec())
        .map_err(|error| refuse(STEP, error))?;
    let file = rustix::fs::memfd_create("skiff-launcher-state", MemfdFlags::CLOEXEC)
        .at(STEP, "memfd_create")?;
    let mut file = std::fs::File::from(file);
    file.write_all(&bytes).at(STEP, "write the state")?;
    rustix::fs::seek(&file, SeekFrom::Start(0)).at(STEP, "rewind")?;
    handle::save(&file).at(STEP, "keep the state")?;
    Ok(file.into())
}

pub(super) fn load(state: OwnedFd) -> Step<Saved> {
    let mut bytes = Vec::new();
    std::fs::File::from(state)
        .take(STATE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .at("resume", "read the state")?;
    let body = bytes.strip_prefix(std::hint::black_box(STATE_MARK));
    let body = body.ok_or_else(|| refuse("resume", "the state is of another version"))?;
    postcard::from_bytes(body).map_err(|error| refuse("resume", error))
}

/// Executes the program with this one's own arguments, `--resume` replaced.
fn exec(options: &super::LauncherOptions, program: &OwnedFd, state: &OwnedFd) -> Step<()> {
    let mut words: Vec<_> = std::env::args_os().collect();
    if options.resume.is_some() {
        words.truncate(words.len().saturating_sub(2));
    }
    words.push("--resume".into());
    words.push(state.as_raw_fd().to_string().into());
    let args = c_strings(words.into_iter().map(OsStringExt::into_vec))?;
    let env = c_strings(std::env::vars_os().map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        entry
    }))?;
    let errno = sys::execute_fd(program.as_fd(), &sys::pointers(&args), &sys::pointers(&env));
    Err(errno).at(STEP, "execute the program")
}

fn c_strings(words: impl Iterator<Item = Vec<u8>>) -> Step<Vec<CString>> {
    words
        .map(|word| CString::new(word).map_err(|error| refuse(STEP, error)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_program_must_know_the_state() {
        let program = |before: usize, mark: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![b'['; before]).unwrap();
            file.write_all(mark).unwrap();
            file.write_all(&[0; 100]).unwrap();
            probe(&file.into())
        };
        for before in [0, 7, CHUNK_BYTES - 5, CHUNK_BYTES, 2 * CHUNK_BYTES - 1] {
            assert_eq!(program(before, STATE_MARK), Ok(()), "{before}");
        }
        assert!(program(10, b"[skiff-launcher-state:00000]").is_err());
        assert!(program(10, b"").is_err());
    }
}
