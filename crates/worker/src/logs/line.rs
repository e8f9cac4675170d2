/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The application's standard output.
    Stdout,
    /// The application's standard error.
    Stderr,
    /// Skiff's own words on the instance.
    Skiff,
}

impl Stream {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Skiff => "skiff",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::Skiff]
            .into_iter()
            .find(|stream| stream.as_str() == text)
    }
}

/// One line of an instance, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub unix_ms: u64,
    pub stream: Stream,
    pub text: String,
}

impl Line {
    /// Appends `UNIX_MS STREAM TEXT` and a line end.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.unix_ms.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.as_str().as_bytes());
        out.push(b' ');
        // What comes here was split at line ends; our own words might not be.
        out.extend(self.text.bytes().map(|b| if b == b'\n' { b' ' } else { b }));
        out.push(b'\n');
    }

    /// Reads what [`Line::write`] wrote; `None` for a torn line.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        Some(Self {
            unix_ms: parts.next()?.parse().ok()?,
            stream: Stream::parse(parts.next()?)?,
            text: parts.next()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back() {
        for text in ["", "hello", " two  blanks ", "ünïcode\r"] {
            let line = Line {
                unix_ms: 1_700_000_000_000,
                stream: Stream::Stderr,
                text: text.to_owned(),
            };
            let mut out = vec![];
            line.write(&mut out);
            let written = String::from_utf8(out).unwrap();
            assert_eq!(Line::parse(written.strip_suffix('\n').unwrap()), Some(line));
        }
    }

    #[test]
    fn a_torn_line_is_none() {
        for text in ["", "17", "17 std", "17 stdout", "x stdout y"] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
