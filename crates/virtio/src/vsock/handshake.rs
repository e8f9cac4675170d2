//! A host's connection before it has said where it wants to go.

use std::io::Read;
use std::os::unix::net::UnixStream;

/// "CONNECT 4294967295\n" is the longest line that is right.
const MAX_LINE: usize = 32;

/// Where a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not whole.
    Waits,
    /// The host wants this port.
    Port(u32),
    /// The host hung up, or says something else.
    Failed,
}

/// A connection that says its first line.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) stream: UnixStream,
    line: Vec<u8>,
}

impl Handshake {
    pub(super) const fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// Reads on. No byte behind the line is taken: it is the guest's.
    pub(super) fn advance(&mut self) -> Progress {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    return parse(&self.line).map_or(Progress::Failed, Progress::Port);
                }
                Ok(1) if self.line.len() < MAX_LINE => self.line.extend(byte),
                Ok(_) => return Progress::Failed,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Progress::Waits;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Failed,
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let command = words.next()?;
    let port = words.next()?;
    if !command.eq_ignore_ascii_case("connect") || words.next().is_some() {
        return None;
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_is_a_port() {
        for (line, port) in [
            ("CONNECT 52", Some(52)),
            ("connect 4294967295", Some(u32::MAX)),
            ("CONNECT 4294967296", None),
            ("CONNECT +5", None),
            ("CONNECT -1", None),
            ("CONNECT", None),
            ("CONNECT 1 2", None),
            ("HELLO 1", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), port, "{line}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }
}
