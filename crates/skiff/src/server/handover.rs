//! `skiff server --replace`: one server hands its doors to the next.
//!
//! ```text
//!  next: "doors" ─▶ old: locks and listeners, as descriptors
//!  next leaves root, then: "take" ─▶
//!     old: API stops ▶ accepts nothing more ▶ nothing waits or starts any more
//!          ▶ lets go of instances and state ─▶ "given": who still has requests
//!  next: opens the state, adopts, serves      old: its requests end, then itself
//!  next: the connection's end says that the old one is gone
//! ```
//!
//! The listeners are the same sockets in both: a connection that comes in
//! between waits in the kernel for the next server, and none is refused.

use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use skiff_types::InstanceId;

use super::doors::Doors;

/// Descriptors in one message: SCM_MAX_FD of the kernel, unix(7).
const DESCRIPTORS_MAX: usize = 253;
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long the old server may take between "take" and "given".
pub const GIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long each other word may take.
const WORD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the descriptors are, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    locks: usize,
    api: usize,
    api_tcp: usize,
    gateway: usize,
    #[serde(default)]
    lambda: usize,
}

/// The old server's last word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Instances in which it still has requests.
    pub busy: Vec<InstanceId>,
}

/// Where a server listens for the next one.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

/// What the next server got, and the line to the old one.
#[derive(Debug)]
pub struct Taken {
    pub locks: Vec<OwnedFd>,
    pub doors: Doors,
    pub line: Line,
}

/// A line between two servers.
#[derive(Debug)]
pub struct Line(BufReader<UnixStream>);

impl Line {
    fn new(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(WORD_TIMEOUT))?;
        stream.set_write_timeout(Some(WORD_TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn say(&mut self, word: &str) -> anyhow::Result<()> {
        writeln!(self.0.get_mut(), "{word}").context("the other server does not listen")
    }

    fn hear(&mut self) -> anyhow::Result<String> {
        use std::io::Read as _;
        let mut line = String::new();
        self.0
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .context("the other server does not answer")?;
        if line.is_empty() {
            bail!("the other server hung up");
        }
        Ok(line.trim_end().to_owned())
    }

    /// The next server: asks the old one to let go, and waits until it has.
    ///
    /// # Errors
    /// When it does not in time. One that dies meanwhile has let go, too.
    pub fn take(&mut self) -> anyhow::Result<Given> {
        self.say("take")?;
        self.0.get_ref().set_read_timeout(Some(GIVE_TIMEOUT))?;
        let mut text = String::new();
        let read = self
            .0
            .read_line(&mut text)
            .context("the old server does not let go")?;
        if read == 0 {
            return Ok(Given::default());
        }
        serde_json::from_str(text.trim_end())
            .context("the old server said something else than who is busy")
    }

    /// The next server: waits for the old one's end.
    pub fn wait_for_end(&mut self) {
        use std::io::Read as _;
        // An error means that it is gone as well.
        let _gone = self.0.get_ref().set_read_timeout(None);
        let mut byte = [0];
        while self.0.read(&mut byte).is_ok_and(|count| count > 0) {}
    }

    /// The old server: says that it has let go.
    ///
    /// # Errors
    /// When the next one is gone.
    pub fn give(&mut self, given: &Given) -> anyhow::Result<()> {
        let text = serde_json::to_string(given)?;
        self.say(&text)
    }
}

/// The next server: asks for the doors. `None` when no server listens.
///
/// # Errors
/// When one does and does not answer as it should.
pub fn ask(run_dir: &Path) -> anyhow::Result<Option<Taken>> {
    let Ok(stream) = UnixStream::connect(socket(run_dir)) else {
        return Ok(None);
    };
    let mut line = Line::new(stream)?;
    line.say("doors")?;
    let mut fds = receive(line.0.get_ref())?;
    let manifest: Manifest =
        serde_json::from_str(&line.hear()?).context("the old server's doors cannot be read")?;
    let doors = manifest.api + manifest.api_tcp + manifest.gateway + manifest.lambda;
    let single = manifest.api == 1 && manifest.api_tcp <= 1 && manifest.lambda <= 1;
    if manifest.version != 1 || !single || fds.len() != manifest.locks + doors {
        bail!("the old server hands its doors over in another way: end it and start this one");
    }
    let mut next = |count: usize| fds.drain(..count).collect::<Vec<_>>();
    let locks = next(manifest.locks);
    let api = next(1)
        .pop()
        .map(UnixListener::from)
        .context("there is no operator's socket")?;
    let api_tcp = next(manifest.api_tcp).pop().map(TcpListener::from);
    let gateway = next(manifest.gateway)
        .into_iter()
        .map(TcpListener::from)
        .collect();
    let lambda = next(manifest.lambda).pop().map(TcpListener::from);
    Ok(Some(Taken {
        locks,
        doors: Doors {
            gateway,
            api,
            api_tcp,
            lambda,
        },
        line,
    }))
}

/// The old server: answers one caller up to its "take".
///
/// # Errors
/// When the caller goes away or says something else: nothing has changed then.
pub fn answer(stream: UnixStream, locks: &[BorrowedFd<'_>], doors: &Doors) -> anyhow::Result<Line> {
    let mut line = Line::new(stream)?;
    if line.hear()? != "doors" {
        bail!("a caller at the handover socket speaks another language");
    }
    let manifest = Manifest {
        version: 1,
        locks: locks.len(),
        api: 1,
        api_tcp: usize::from(doors.api_tcp.is_some()),
        gateway: doors.gateway.len(),
        lambda: usize::from(doors.lambda.is_some()),
    };
    let mut fds: Vec<BorrowedFd<'_>> = locks.to_vec();
    fds.push(doors.api.as_fd());
    fds.extend(doors.api_tcp.as_ref().map(|listener| listener.as_fd()));
    fds.extend(doors.gateway.iter().map(|listener| listener.as_fd()));
    fds.extend(doors.lambda.as_ref().map(|listener| listener.as_fd()));
    send(line.0.get_ref(), &fds)?;
    line.say(&serde_json::to_string(&manifest)?)?;
    // The next server leaves root and makes its runtime before it goes on.
    if line.hear()? != "take" {
        bail!("the next server did not take over");
    }
    Ok(line)
}

/// Descriptors travel beside one byte.
fn send(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
    if fds.len() > DESCRIPTORS_MAX {
        bail!(
            "{} doors are more than can be handed over: {DESCRIPTORS_MAX}",
            fds.len()
        );
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        bail!("the doors do not fit into a message");
    }
    sendmsg(
        stream,
        &[IoSlice::new(b"\n")],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .context("the doors cannot be handed over")?;
    Ok(())
}

fn receive(stream: &UnixStream) -> anyhow::Result<Vec<OwnedFd>> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("the old server does not hand over")?;
    if got.bytes == 0 {
        bail!("the old server hung up: it may be ending");
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn doors() -> Doors {
        let folder = tempfile::tempdir().unwrap();
        Doors {
            gateway: vec![
                TcpListener::bind("127.0.0.1:0").unwrap(),
                TcpListener::bind("127.0.0.1:0").unwrap(),
            ],
            api: UnixListener::bind(folder.path().join("api")).unwrap(),
            api_tcp: None,
            lambda: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
        }
    }

    #[test]
    fn the_doors_arrive_and_the_old_server_says_who_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(folder.path())).unwrap();
        let old = std::thread::spawn(move || {
            let doors = doors();
            let lock = std::fs::File::open("/dev/null").unwrap();
            let (stream, _) = listener.accept().unwrap();
            let mut line = answer(stream, &[lock.as_fd()], &doors).unwrap();
            line.give(&Given {
                busy: vec![InstanceId::from_parts(1, 2)],
            })
            .unwrap();
            doors.gateway[1].local_addr().unwrap()
        });
        let mut taken = ask(folder.path()).unwrap().unwrap();
        assert_eq!((taken.locks.len(), taken.doors.gateway.len()), (1, 2));
        assert!(taken.doors.lambda.is_some());
        assert_eq!(
            taken.line.take().unwrap().busy,
            [InstanceId::from_parts(1, 2)]
        );
        let address = old.join().unwrap();
        assert_eq!(taken.doors.gateway[1].local_addr().unwrap(), address);
        // The old one's copy is closed, and the door is open all the same.
        assert!(std::net::TcpStream::connect(address).is_ok());
        taken.line.wait_for_end();
    }

    #[test]
    fn where_nobody_serves_there_is_nothing_to_take() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ask(folder.path()).unwrap().is_none());
    }

    #[test]
    fn a_caller_that_does_not_take_changes_nothing() {
        let (near, far) = UnixStream::pair().unwrap();
        let old = std::thread::spawn(move || answer(far, &[], &doors()).is_err());
        let mut line = Line::new(near).unwrap();
        line.say("doors").unwrap();
        assert_eq!(receive(line.0.get_ref()).unwrap().len(), 4);
        drop(line);
        assert!(old.join().unwrap());
    }
}
