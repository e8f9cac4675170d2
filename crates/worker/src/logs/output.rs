//! Reads an instance's output.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use skiff_sandbox::Output;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use super::line::Stream;
use super::split::Splitter;
use super::store::LogSink;
use super::tap::OutputTap;

/// What is read at once.
const READ_BYTES: usize = 16 * 1024;
/// Reads after the end: what a pipe can hold, and more.
const LAST_READS_MAX: usize = 256;

/// How long an instance's output is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reader {
    /// Until both ends are closed.
    #[default]
    Open,
    /// The instance has ended: what is in the pipes now is all there is. A
    /// stream that says where its end is, is read until there.
    Ended,
    /// Somebody else will go on: not one byte more.
    Left,
}

/// Reads both streams until they end or `until` says so.
pub async fn read_output(
    output: Output,
    sink: LogSink,
    tap: Option<Arc<OutputTap>>,
    until: watch::Receiver<Reader>,
) {
    let ends = output.ends;
    let to = |stream| Reading {
        stream,
        sink: &sink,
        tap: tap.as_deref(),
    };
    let stdout = read_stream(output.stdout, ends, to(Stream::Stdout), until.clone());
    let stderr = read_stream(output.stderr, ends, to(Stream::Stderr), until);
    futures_util::future::join(stdout, stderr).await;
}

/// Where what is read goes.
struct Reading<'a> {
    stream: Stream,
    sink: &'a LogSink,
    tap: Option<&'a OutputTap>,
}

impl Drop for Reading<'_> {
    /// Nobody waits for more of it.
    fn drop(&mut self) {
        if let Some(tap) = self.tap {
            tap.has_read(self.stream, u64::MAX);
        }
    }
}

async fn read_stream(
    fd: OwnedFd,
    ends: bool,
    reading: Reading<'_>,
    mut until: watch::Receiver<Reader>,
) {
    let (stream, sink) = (reading.stream, reading.sink);
    let mut asked = reading.tap.map(OutputTap::asked);
    let pipe = match Source::new(fd, ends) {
        Ok(pipe) => pipe,
        Err(error) => {
            sink.note(format!("{} cannot be read: {error}", stream.as_str()))
                .await;
            return;
        }
    };
    let mut splitter = Splitter::default();
    let mut reads_left = LAST_READS_MAX;
    let mut answered = 0;
    loop {
        let state = match *until.borrow_and_update() {
            // Its last bytes may still be on their way.
            Reader::Ended if ends => Reader::Open,
            state => state,
        };
        let wanted = asked.as_mut().map_or(0, |asked| *asked.borrow_and_update());
        // Who asks wants what is there, whatever the event loop knows of it.
        let at_once = state != Reader::Open || wanted > answered;
        match (
            state,
            read_some(&pipe, &mut splitter, state, at_once, reading.tap),
        ) {
            (_, Some(Ok(lines))) => sink.append(stream, lines).await,
            (Reader::Open, Some(Err(error))) if would_block(&error) => {
                if let (Some(tap), true) = (reading.tap, wanted > answered) {
                    answered = wanted;
                    tap.has_read(stream, wanted);
                    // The event loop has yet to be told to wait.
                    continue;
                }
                // Either an end of waiting is looked at above.
                tokio::select! {
                    _readable = pipe.readable() => {}
                    changed = until.changed() => if changed.is_err() { break },
                    () = asks(&mut asked) => {}
                }
            }
            _ => break,
        }
        if state == Reader::Ended {
            reads_left -= 1;
            if reads_left == 0 {
                break;
            }
        }
    }
    let mut last = Vec::new();
    splitter.finish(&mut last);
    sink.append(stream, last).await;
}

/// Waits until somebody wants to know all that was written.
async fn asks(asked: &mut Option<watch::Receiver<u64>>) {
    if let Some(asked) = asked
        && asked.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// What output comes from.
enum Source {
    Pipe(Receiver),
    Stream(UnixStream),
}

impl Source {
    fn new(fd: OwnedFd, is_stream: bool) -> io::Result<Self> {
        if !is_stream {
            return Receiver::from_owned_fd(fd).map(Self::Pipe);
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        UnixStream::from_std(fd.into()).map(Self::Stream)
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Stream(stream) => stream.readable().await,
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Stream(stream) => stream.try_read(buffer),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

/// The lines of one read; `None` at the end.
fn read_some(
    pipe: &Source,
    splitter: &mut Splitter,
    state: Reader,
    at_once: bool,
    tap: Option<&OutputTap>,
) -> Option<io::Result<Vec<String>>> {
    // On the stack, and only while it is needed: instances are many and
    // mostly silent.
    let mut buffer = [0; READ_BYTES];
    let read = match state {
        Reader::Left => return None,
        // Through the event loop's knowledge, so that it is told to wait.
        Reader::Open if !at_once => pipe.try_read(&mut buffer),
        // Not through it: it may not know yet of bytes that are there.
        Reader::Open | Reader::Ended => {
            rustix::io::read(pipe.as_fd(), &mut buffer).map_err(io::Error::from)
        }
    };
    match read {
        Ok(0) => None,
        Ok(len) => {
            if let Some(tap) = tap {
                tap.put(&buffer[..len]);
            }
            let mut lines = Vec::new();
            splitter.feed(&buffer[..len], &mut lines);
            if let Some(tap) = tap {
                tap.tell(&lines);
            }
            Some(Ok(lines))
        }
        Err(error) => Some(Err(error)),
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
