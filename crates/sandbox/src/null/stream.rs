//! A connection to a sandbox of the class null: what is written to it is
//! answered on the spot. There is no task behind it and nothing to wake, so
//! that the class costs next to nothing beside what it measures.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::Inline;
use skiff_wire::launcher::Exit;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::http::Responder;

/// Answers that nobody has read, before no more is taken.
const UNREAD_BYTES_MAX: usize = 4 * 1024;
/// What is taken at once: an answer is a few times as long as its request.
const WRITE_BYTES_MAX: usize = 4 * 1024;

pub struct NullStream {
    responder: Responder,
    /// Answers, and how much of them has been read.
    answers: Vec<u8>,
    read: usize,
    /// How long each answer takes, and when the present one is due.
    delay: Duration,
    due: Option<Pin<Box<Sleep>>>,
    exit: watch::Receiver<Option<Exit>>,
    /// The sandbox's end, while a reader waits.
    ended: Option<BoxFuture<'static, ()>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl fmt::Debug for NullStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NullStream")
            .field("unread", &self.unread())
            .finish_non_exhaustive()
    }
}

impl Inline for NullStream {}

impl NullStream {
    pub fn new(exit: watch::Receiver<Option<Exit>>, delay: Duration) -> Self {
        Self {
            responder: Responder::default(),
            answers: Vec::new(),
            read: 0,
            delay,
            due: None,
            exit,
            ended: None,
            reader: None,
            writer: None,
        }
    }

    fn unread(&self) -> usize {
        self.answers.len() - self.read
    }

    fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Ready once the sandbox has ended.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = self.ended.get_or_insert_with(|| {
            let mut exit = self.exit.clone();
            Box::pin(async move {
                // An error says that the sandbox is gone, which is as good.
                let _gone = exit.wait_for(Option::is_some).await.is_err();
            })
        });
        ready!(ended.as_mut().poll(cx));
        // Asked again, it looks again: a future is polled to its end once.
        self.ended = None;
        Poll::Ready(())
    }

    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let taken = self.unread().min(buffer.remaining());
        buffer.put_slice(&self.answers[self.read..self.read + taken]);
        self.read += taken;
        if self.unread() == 0 {
            self.answers.clear();
            self.read = 0;
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

impl AsyncRead for NullStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(due) = &mut self.due {
            if due.as_mut().poll(cx).is_ready() {
                self.due = None;
            } else {
                return self.poll_end(cx).map(Ok);
            }
        }
        if self.unread() > 0 {
            self.take(buffer);
            return Poll::Ready(Ok(()));
        }
        if self.responder.is_closed() {
            return Poll::Ready(Ok(()));
        }
        if self.poll_end(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for NullStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.responder.is_closed() || self.has_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.unread() >= UNREAD_BYTES_MAX {
            self.writer = Some(cx.waker().clone());
            ready!(self.poll_end(cx));
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        let stream = &mut *self;
        stream.responder.feed(bytes, &mut stream.answers);
        if stream.unread() > 0 && !stream.delay.is_zero() {
            let delay = stream.delay;
            stream.due.get_or_insert_with(|| Box::pin(sleep(delay)));
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    fn stream(delay: Duration) -> (NullStream, watch::Sender<Option<Exit>>) {
        let (sender, exit) = watch::channel(None);
        (NullStream::new(exit, delay), sender)
    }

    fn killed() -> Option<Exit> {
        Some(Exit {
            code: None,
            signal: Some(9),
            out_of_memory: false,
            cpu_us: 0,
            memory_peak_bytes: 0,
        })
    }

    #[tokio::test]
    async fn whoever_writes_and_does_not_read_is_stopped() {
        let (stream, _sandbox) = stream(Duration::ZERO);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut requests = GET.repeat(9_999);
        requests.extend_from_slice(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n");
        let mut writing = Box::pin(writer.write_all(&requests));
        assert!((&mut writing).now_or_never().is_none());
        let mut all = String::new();
        let (written, read) = tokio::join!(writing, reader.read_to_string(&mut all));
        assert!(written.is_ok() && read.is_ok());
        assert_eq!(all.matches("200 OK").count(), 10_000);
    }

    #[tokio::test]
    async fn the_sandboxs_end_wakes_who_reads() {
        let (mut stream, sandbox) = stream(Duration::from_secs(3600));
        let reading = async {
            stream.write_all(GET).await?;
            stream.read(&mut [0; 8]).await
        };
        let ending = async { sandbox.send_replace(killed()) };
        let (read, _before) = tokio::join!(reading, ending);
        assert_eq!(read.unwrap(), 0);
    }

    #[tokio::test]
    async fn nothing_is_taken_after_the_end() {
        let (mut stream, sandbox) = stream(Duration::ZERO);
        stream.write_all(GET).await.unwrap();
        sandbox.send_replace(killed());
        assert!(stream.write_all(GET).await.is_err());
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert!(
            all.starts_with(b"HTTP/1.1 200 OK"),
            "what was answered is read"
        );
    }
}
