//! A client's connection and its process in an instance, joined.
//!
//! ```text
//!  client ─frames─▶ take ─window─▶ feed ─▶ process ─▶ copy ─frames─▶ client
//!            │ gone, or wrong                │ has ended, and said all
//!            └───────▶ the process is dropped, which ends it ◀┘
//! ```

use std::future::{Future, pending};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use skiff_types::api::ExecTerminal;
use skiff_wire::exec::{Frame, HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, WINDOW_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, SimplexStream, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::limit::{EXEC_ALIVE_PERIOD, EXEC_FRAMES_MAX, EXEC_LAST_WORDS, EXEC_SILENCE};
use crate::port::{ExecEnd, ExecProcess, Executed};

/// Read of a process at a time.
const PIECE_BYTES: usize = 32 * 1024;
const _: () = assert!(PIECE_BYTES <= PAYLOAD_BYTES_MAX);

/// Frames on their way to the client.
type Outgoing = mpsc::Sender<Frame>;

/// Joins them until the process has ended and the client has been told, the
/// client has gone, or the server stops.
pub(crate) async fn serve<S>(stream: S, executed: Executed, stopped: impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite,
{
    let (from, to) = tokio::io::split(stream);
    let (frames, queue) = mpsc::channel(EXEC_FRAMES_MAX);
    let mut written = pin!(write(to, queue));
    tokio::select! {
        () = join(from, executed, frames, stopped) => {}
        // Nobody reads any more.
        _ = &mut written => return,
    }
    // Late or gone: it has had its time.
    drop(timeout(EXEC_LAST_WORDS, written).await);
}

async fn join(
    from: impl AsyncRead + Unpin,
    executed: Executed,
    frames: Outgoing,
    stopped: impl Future<Output = ()>,
) {
    let Executed {
        process,
        input,
        output,
        errors,
        ..
    } = executed;
    let has_terminal = errors.is_none();
    let (typed, typing) = tokio::io::simplex(WINDOW_BYTES);
    let window = AtomicUsize::new(0);
    let others = async {
        let feeding = feed(typed, input, has_terminal, &window, &frames);
        tokio::join!(feeding, show_life(&frames));
        // Neither ends the connection.
        pending::<()>().await;
    };
    tokio::select! {
        () = run(&*process, output, errors, &frames) => {}
        () = others => {}
        why = take(from, typing, &window, &*process) => {
            tracing::debug!(%why, "a client has let go of its process");
        }
        () = stopped => send(&frames, Frame::Broken("the server is stopping".to_owned())).await,
    }
}

/// Says what the process writes, and how it ends.
async fn run(
    process: &dyn ExecProcess,
    output: Box<dyn AsyncRead + Send + Unpin>,
    errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
    frames: &Outgoing,
) {
    let ended = watch::Sender::new(false);
    let copied = copy(output, Frame::Output, ended.subscribe(), frames);
    let copied_errors = async {
        if let Some(errors) = errors {
            copy(errors, Frame::Errors, ended.subscribe(), frames).await;
        }
    };
    let end = async {
        let end = process.exited().await;
        ended.send_replace(true);
        end
    };
    let ((), (), end) = tokio::join!(copied, copied_errors, end);
    let last = match end {
        ExecEnd::Exited(code) => Frame::Exited(code),
        ExecEnd::Killed(signal) => Frame::Killed(signal),
        ExecEnd::Unknown => {
            Frame::Broken("the instance is gone, and the process with it".to_owned())
        }
    };
    send(frames, last).await;
}

/// Copies until the output's end, or until nothing comes any more of a
/// process that has ended.
async fn copy(
    mut output: impl AsyncRead + Unpin,
    kind: fn(Vec<u8>) -> Frame,
    mut ended: watch::Receiver<bool>,
    frames: &Outgoing,
) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let silence = async {
            // An error cannot be: the sender lives as long as this.
            drop(ended.wait_for(|ended| *ended).await);
            tokio::time::sleep(EXEC_SILENCE).await;
        };
        let read = tokio::select! {
            biased;
            read = output.read(&mut piece) => read,
            () = silence => return,
        };
        match read {
            Ok(count @ 1..) => send(frames, kind(piece[..count].to_vec())).await,
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "a process's output breaks off");
                return;
            }
        }
    }
}

/// Gives the process what was typed, and the client room for more.
async fn feed(
    mut typed: impl AsyncRead + Unpin,
    mut input: Box<dyn AsyncWrite + Send + Unpin>,
    has_terminal: bool,
    window: &AtomicUsize,
    frames: &Outgoing,
) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match typed.read(&mut piece).await {
            Ok(count @ 1..) => {
                // A process that does not want it any more is no failure.
                if input.write_all(&piece[..count]).await.is_err() {
                    return;
                }
                window.fetch_sub(count, Ordering::SeqCst);
                let taken = u32::try_from(count).unwrap_or(u32::MAX);
                send(frames, Frame::Taken(taken)).await;
            }
            // A terminal's end would be the whole terminal's.
            Ok(_) | Err(_) if has_terminal => pending().await,
            Ok(_) | Err(_) => {
                // A stream says its end; a pipe's is that it is dropped.
                drop(input.shutdown().await);
                return;
            }
        }
    }
}

async fn show_life(frames: &Outgoing) {
    let mut period = interval(EXEC_ALIVE_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        send(frames, Frame::Alive).await;
    }
}

/// Takes what the client says until it has gone or says something wrong, and
/// says why.
async fn take(
    mut from: impl AsyncRead + Unpin,
    typing: WriteHalf<SimplexStream>,
    window: &AtomicUsize,
    process: &dyn ExecProcess,
) -> io::Error {
    let mut typing = Some(typing);
    loop {
        let taken = match read_frame(&mut from).await {
            Ok(frame) => take_one(frame, &mut typing, window, process).await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            return error;
        }
    }
}

async fn take_one(
    frame: Frame,
    typing: &mut Option<WriteHalf<SimplexStream>>,
    window: &AtomicUsize,
    process: &dyn ExecProcess,
) -> io::Result<()> {
    match frame {
        Frame::Input(bytes) => {
            let waiting = window.fetch_add(bytes.len(), Ordering::SeqCst) + bytes.len();
            if waiting > WINDOW_BYTES {
                return Err(wrong("there is more input than the window has room for"));
            }
            let Some(typing) = typing else {
                return Err(wrong("there is input behind its end"));
            };
            // There is room, so that it does not wait; a process that wants
            // no more is no failure.
            drop(typing.write_all(&bytes).await);
        }
        Frame::InputEnd => {
            if let Some(mut typing) = typing.take() {
                drop(typing.shutdown().await);
            }
        }
        Frame::Resize { columns, rows } => {
            if let Err(error) = process.resize(ExecTerminal { columns, rows }).await {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
        _ => return Err(wrong("the frame is not a client's")),
    }
    Ok(())
}

async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head).await?;
    let head = Head::parse(head).map_err(wrong)?;
    let mut payload = vec![0; head.length];
    from.read_exact(&mut payload).await?;
    Frame::decode(head, payload).map_err(wrong)
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        to.write_all(&frame.encode().map_err(io::Error::other)?)
            .await?;
        to.flush().await?;
    }
    to.shutdown().await
}

/// Who does not read any more is found by the writing.
async fn send(frames: &Outgoing, frame: Frame) {
    drop(frames.send(frame).await);
}

fn wrong(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
