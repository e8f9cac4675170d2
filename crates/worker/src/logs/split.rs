/// A longer line is split; so much of a line without an end is held.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Appends the lines that these bytes end.
    pub fn feed(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                self.cut_long(lines);
                self.cut(self.partial.len(), lines);
            } else {
                self.cut_long(lines);
            }
        }
        if self.partial.is_empty() {
            // Most instances are silent most of the time.
            self.partial = Vec::new();
        }
    }

    /// The last line, when it has no end.
    pub fn finish(&mut self, lines: &mut Vec<String>) {
        if !self.partial.is_empty() {
            self.cut(self.partial.len(), lines);
        }
    }

    fn cut_long(&mut self, lines: &mut Vec<String>) {
        while self.partial.len() > LINE_BYTES_MAX {
            self.cut(character_end(&self.partial[..LINE_BYTES_MAX]), lines);
        }
    }

    fn cut(&mut self, len: usize, lines: &mut Vec<String>) {
        let mut line = &self.partial[..len];
        if let [rest @ .., b'\r'] = line {
            line = rest;
        }
        lines.push(String::from_utf8_lossy(line).into_owned());
        self.partial.drain(..len);
    }
}

/// Where to cut so that no character is cut: before one of which only the
/// first bytes are here.
fn character_end(bytes: &[u8]) -> usize {
    let start = bytes
        .iter()
        .rev()
        .take(4)
        .position(|byte| byte & 0xc0 != 0x80)
        .map_or(bytes.len(), |back| bytes.len() - 1 - back);
    match std::str::from_utf8(&bytes[start..]) {
        Err(error) if error.error_len().is_none() => start,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines = vec![];
        for piece in pieces {
            splitter.feed(piece, &mut lines);
            assert!(splitter.partial.len() <= LINE_BYTES_MAX);
        }
        splitter.finish(&mut lines);
        lines
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_end() {
        assert_eq!(
            split(&[b"one\ntw", b"o\r\n", b"\nthree"]),
            ["one", "two", "", "three"]
        );
        assert_eq!(split(&[]), Vec::<String>::new());
        assert_eq!(split(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn a_long_line_is_split_between_characters() {
        let long = format!("a{}\nend\n", "ä".repeat(LINE_BYTES_MAX));
        let lines = split(&[long.as_bytes()]);
        assert_eq!(
            lines.concat(),
            format!("a{}end", "ä".repeat(LINE_BYTES_MAX))
        );
        assert!(lines.iter().all(|line| line.len() <= LINE_BYTES_MAX));
        assert_eq!(lines.len(), 4);
        let exact = format!("{}\nb\n", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(split(&[exact.as_bytes()]).len(), 2);
    }
}
