use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::inherited;

/// Where lines go: a file, which grows, or a pipe. None is waited for, and
/// what has no room is not kept, but that a line that was begun is ended.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    /// Of a line that was begun.
    rest: Vec<u8>,
}

impl Sink {
    /// Opens what a path names, and makes a file when nothing is there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = match inherited::named(path)? {
            Some(file) => {
                let flags = rustix::fs::fcntl_getfl(&file)?;
                rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
                file
            }
            // For reading as well: then a pipe needs nobody at its other end.
            None => OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)?,
        };
        Ok(Self {
            file,
            rest: Vec::new(),
        })
    }

    /// Writes a line without its end. Tells whether it had room.
    pub(crate) fn line(&mut self, text: &str) -> bool {
        self.finish();
        if !self.rest.is_empty() {
            return false;
        }
        self.rest.extend(text.bytes());
        self.rest.push(b'\n');
        let length = self.rest.len();
        self.finish();
        let is_begun = self.rest.len() < length;
        if !is_begun {
            self.rest.clear();
        }
        is_begun
    }

    fn finish(&mut self) {
        while !self.rest.is_empty() {
            match self.file.write(&self.rest) {
                Ok(0) => return,
                Ok(written) => drop(self.rest.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn lines_go_behind_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        for text in ["one", "two"] {
            assert!(Sink::open(&path).unwrap().line(text));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert!(Sink::open(&folder.path().join("no/lines")).is_err());
    }

    #[test]
    fn a_pipe_that_nobody_empties_is_not_waited_for_and_has_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let mut sink = Sink::open(&path).unwrap();
        // Longer than what a pipe takes wholly or not at all.
        let line = "x".repeat(10_001);
        let mut written = 0;
        while sink.line(&line) {
            written += 1;
        }
        assert!(written > 0 && !sink.line("y"));
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut reader = options.open(&path).unwrap();
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        let mut empty = |heard: &mut Vec<u8>| {
            while let Ok(read @ 1..) = reader.read(&mut piece) {
                heard.extend(&piece[..read]);
            }
        };
        empty(&mut heard);
        assert!(sink.line("y"));
        empty(&mut heard);
        let heard = String::from_utf8(heard).unwrap();
        let lines: Vec<&str> = heard.lines().collect();
        assert_eq!(lines.len(), written + 1);
        assert_eq!(lines.last(), Some(&"y"));
        assert!(lines[..written].iter().all(|other| *other == line));
    }
}
