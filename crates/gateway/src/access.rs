//! The access log: one line for each request through a bounded buffer and a
//! thread of its own; a full buffer drops lines and counts them.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use skiff_types::RevisionId;

use crate::h1::write::put_number;

/// Batches that may wait for the disk.
const BATCHES_MAX: usize = 64;
/// A lane hands its lines on at this size, and at every tick.
pub(crate) const BATCH_BYTES: usize = 32 * 1024;
/// Of a path or a host that is written.
const FIELD_BYTES_MAX: usize = 1024;

/// The way to the writing thread.
#[derive(Debug)]
pub(crate) struct AccessLog {
    sender: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a line tells that the record does not: client, method, host and path,
/// as they are written.
#[derive(Debug)]
pub(crate) struct AccessLine(Vec<u8>);

/// The figures of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures<'a> {
    pub(crate) unix_ms: u64,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration_us: u64,
    pub(crate) revision: Option<&'a RevisionId>,
}

impl AccessLog {
    pub(crate) fn start(file: File) -> Self {
        let (sender, receiver) = sync_channel(BATCHES_MAX);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(file, &receiver));
        if let Err(error) = &thread {
            tracing::error!(%error, "the access log's thread cannot start: no lines are written");
        }
        Self {
            sender: Some(sender),
            thread: thread.ok(),
        }
    }

    /// How many lines of the batch were not taken.
    pub(crate) fn send(&self, batch: Vec<u8>) -> usize {
        let lines = |batch: &[u8]| batch.iter().filter(|&&b| b == b'\n').count();
        let Some(sender) = &self.sender else {
            return lines(&batch);
        };
        match sender.try_send(batch) {
            Ok(()) => 0,
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => lines(&batch),
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the access log's thread panicked");
        }
    }
}

fn write(mut file: File, batches: &Receiver<Vec<u8>>) {
    let mut failing = false;
    while let Ok(batch) = batches.recv() {
        match file.write_all(&batch) {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "the access log cannot be written");
                }
                failing = true;
            }
        }
    }
}

impl AccessLine {
    /// Of a request; the path is without its query, which may hold secrets.
    pub(crate) fn new(client: &str, method: &str, host: &[u8], target: &str) -> Self {
        let path = target.split('?').next().unwrap_or_default();
        let mut middle =
            Vec::with_capacity(client.len() + method.len() + host.len() + path.len() + 4);
        field(&mut middle, client.as_bytes());
        field(&mut middle, method.as_bytes());
        field(&mut middle, host);
        field(&mut middle, path.as_bytes());
        Self(middle)
    }

    /// `MS CLIENT METHOD HOST PATH STATUS IN OUT DURATION_US REVISION`, parted by blanks.
    pub(crate) fn append(&self, out: &mut Vec<u8>, figures: Figures<'_>) {
        put_number(out, figures.unix_ms);
        out.extend_from_slice(&self.0);
        for value in [
            figures.status.into(),
            figures.bytes_in,
            figures.bytes_out,
            figures.duration_us,
        ] {
            out.push(b' ');
            put_number(out, value);
        }
        match figures.revision {
            Some(revision) => {
                field(out, revision.project.as_str().as_bytes());
                out.push(b'/');
                out.extend_from_slice(revision.service.as_str().as_bytes());
                out.push(b'-');
                put_number(out, revision.number.into());
            }
            None => out.extend_from_slice(b" -"),
        }
        out.push(b'\n');
    }
}

fn field(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b' ');
    let text = &text[..text.len().min(FIELD_BYTES_MAX)];
    // A header's value may hold blanks and high bytes; a line must not break.
    if text.iter().all(u8::is_ascii_graphic) {
        out.extend_from_slice(text);
    } else {
        out.extend(
            text.iter()
                .map(|&b| if b.is_ascii_graphic() { b } else { b'?' }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_ten_fields_whatever_the_client_sends() {
        let line = AccessLine::new("127.0.0.1", "GET", b"h \xff", "/a?secret=1");
        let mut out = Vec::new();
        line.append(
            &mut out,
            Figures {
                unix_ms: 1,
                status: 200,
                bytes_in: 0,
                bytes_out: 12,
                duration_us: 345,
                revision: None,
            },
        );
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "1 127.0.0.1 GET h?? /a 200 0 12 345 -\n");
    }
}
