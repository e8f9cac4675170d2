//! `skiff exec`: a command in an instance that runs, joined to our own
//! standard streams or our terminal.

use std::io::Read as _;
use std::pin::pin;

use anyhow::{Context as _, anyhow, bail};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use skiff_types::InstanceId;
use skiff_types::api::{Exec, ExecTerminal};
use skiff_wire::exec::{Frame, HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, PROTOCOL, WINDOW_BYTES};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use super::Scope;
use super::args;
use super::terminal::{self, Raw};

/// Read of standard input at a time.
const PIECE_BYTES: usize = 16 * 1024;
const _: () = assert!(PIECE_BYTES <= PAYLOAD_BYTES_MAX);
/// Pieces of standard input that wait to be sent.
const PIECES_MAX: usize = 4;

type Stream = TokioIo<Upgraded>;

/// `skiff exec`; answers the command's exit code, 128 and the number for a
/// signal.
///
/// # Errors
/// When it cannot be started, or the connection breaks.
pub async fn exec(scope: &Scope, args: args::Exec) -> anyhow::Result<u8> {
    let size = args.tty.then(terminal::size).transpose()?;
    let (interactive, wanted) = (args.interactive, wanted(args, size)?);
    let stream = scope
        .client
        .upgrade(&scope.path("exec"), PROTOCOL, &wanted)
        .await?;
    // Only now: what is refused is told in lines.
    let raw = size.map(|_| Raw::make()).transpose()?;
    let (from, to) = tokio::io::split(TokioIo::new(stream));
    let window = Semaphore::new(WINDOW_BYTES);
    let mut shown = pin!(show(from, &window));
    let code = tokio::select! {
        biased;
        code = &mut shown => code,
        // What the command has said last may still be on its way.
        error = say(to, &window, interactive, size) => shown.await.map_err(|_| error),
    };
    drop(raw);
    code
}

fn wanted(args: args::Exec, terminal: Option<ExecTerminal>) -> anyhow::Result<Exec> {
    // A service's name begins with a letter, an instance's id does not.
    let is_id = args
        .target
        .starts_with(|first: char| first.is_ascii_digit());
    let (service, instance) = if is_id {
        (None, Some(args.target.parse::<InstanceId>()?))
    } else {
        (Some(args.target.parse()?), None)
    };
    Ok(Exec {
        service,
        instance,
        command: args.command,
        env: args.env,
        workdir: args.workdir,
        terminal,
    })
}

/// Writes what the command writes, until it has ended.
async fn show(mut from: ReadHalf<Stream>, window: &Semaphore) -> anyhow::Result<u8> {
    loop {
        match read_frame(&mut from).await? {
            Frame::Output(bytes) => write_all(std::io::stdout().lock(), &bytes)?,
            Frame::Errors(bytes) => write_all(std::io::stderr().lock(), &bytes)?,
            Frame::Taken(count) => {
                let count = usize::try_from(count)?;
                if window.available_permits() + count > WINDOW_BYTES {
                    bail!("the server takes more than was sent");
                }
                window.add_permits(count);
            }
            Frame::Exited(code) => {
                return u8::try_from(code & 0xff).context("an exit code has 8 bits");
            }
            Frame::Killed(number) => {
                return u8::try_from((128 + number) & 0xff).context("an exit code has 8 bits");
            }
            Frame::Broken(why) => bail!("{why}"),
            Frame::Alive => {}
            frame => bail!("the server sent what only a client sends: {frame:?}"),
        }
    }
}

fn write_all(mut to: impl std::io::Write, bytes: &[u8]) -> anyhow::Result<()> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .context("the command's output cannot be written")
}

async fn read_frame(from: &mut ReadHalf<Stream>) -> anyhow::Result<Frame> {
    let broke = "the server broke off";
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head).await.context(broke)?;
    let head = Head::parse(head)?;
    let mut payload = vec![0; head.length];
    from.read_exact(&mut payload).await.context(broke)?;
    Ok(Frame::decode(head, payload)?)
}

/// Sends what is typed and the terminal's sizes, until the connection breaks.
async fn say(
    mut to: WriteHalf<Stream>,
    window: &Semaphore,
    interactive: bool,
    size: Option<ExecTerminal>,
) -> anyhow::Error {
    let said = async {
        let mut sizes = signal(SignalKind::window_change())?;
        let mut typed = if interactive {
            Some(read_input()?)
        } else {
            None
        };
        if typed.is_none() {
            send(&mut to, &Frame::InputEnd).await?;
        }
        loop {
            tokio::select! {
                _ = sizes.recv(), if size.is_some() => {
                    let ExecTerminal { columns, rows } = terminal::size()?;
                    send(&mut to, &Frame::Resize { columns, rows }).await?;
                }
                piece = next(&mut typed, window) => match piece {
                    Some(piece) => send(&mut to, &Frame::Input(piece)).await?,
                    None => {
                        typed = None;
                        send(&mut to, &Frame::InputEnd).await?;
                    }
                },
            }
        }
    };
    let never: anyhow::Result<std::convert::Infallible> = said.await;
    match never {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// The next piece that there is room for; `None` at the input's end. Waits for
/// ever without an input.
async fn next(typed: &mut Option<mpsc::Receiver<Vec<u8>>>, window: &Semaphore) -> Option<Vec<u8>> {
    let Some(pieces) = typed else {
        return std::future::pending().await;
    };
    // Room first: a piece that was taken out of the channel must not be lost.
    let room = window
        .acquire_many(u32::try_from(PIECE_BYTES).unwrap_or(u32::MAX))
        .await;
    let room = room.ok()?;
    let piece = pieces.recv().await?;
    room.forget();
    window.add_permits(PIECE_BYTES - piece.len().min(PIECE_BYTES));
    Some(piece)
}

/// Reads our standard input on a thread that ends with the process.
fn read_input() -> anyhow::Result<mpsc::Receiver<Vec<u8>>> {
    let (pieces, typed) = mpsc::channel(PIECES_MAX);
    let read = move || {
        let mut block = [0; PIECE_BYTES];
        let mut stdin = std::io::stdin().lock();
        while let Ok(count @ 1..) = stdin.read(&mut block) {
            if pieces.blocking_send(block[..count].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("standard input".to_owned())
        .spawn(read)?;
    Ok(typed)
}

async fn send(to: &mut WriteHalf<Stream>, frame: &Frame) -> anyhow::Result<()> {
    let bytes = frame.encode()?;
    to.write_all(&bytes)
        .await
        .map_err(|error| anyhow!(error).context("the server broke off"))?;
    to.flush().await.context("the server broke off")
}
