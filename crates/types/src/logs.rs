//! Pages of a service's log: lines have an order that stays, so that a reader
//! goes on where another page has ended.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::{InstanceId, ProjectId, ServiceName};

/// The text is no place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no place in a log: 16 hexadecimal digits, an id and 8 digits more are expected")]
pub struct ParsePositionError;

/// Where a line is in a service's log: by time, then by instance, then as it
/// was written. No two lines have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Who wrote it.
    pub instance: InstanceId,
    /// How many lines of the instance in this millisecond are before it.
    pub ordinal: u32,
}

impl LogPosition {
    /// Before every line of this millisecond and after all that are older.
    #[must_use]
    pub const fn at(unix_ms: u64) -> Self {
        Self {
            unix_ms,
            instance: InstanceId::from_parts(0, 0),
            ordinal: 0,
        }
    }

    /// Right behind this line.
    #[must_use]
    pub const fn next(self) -> Self {
        Self {
            ordinal: self.ordinal.saturating_add(1),
            ..self
        }
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            unix_ms,
            instance,
            ordinal,
        } = self;
        write!(f, "{unix_ms:016x}{instance}{ordinal:08x}")
    }
}

impl FromStr for LogPosition {
    type Err = ParsePositionError;
    fn from_str(text: &str) -> Result<Self, ParsePositionError> {
        let part = |from: usize, to: usize| text.get(from..to).ok_or(ParsePositionError);
        let position = Self {
            unix_ms: u64::from_str_radix(part(0, 16)?, 16).map_err(|_| ParsePositionError)?,
            instance: part(16, 32)?.parse().map_err(|_| ParsePositionError)?,
            ordinal: u32::from_str_radix(part(32, 40)?, 16).map_err(|_| ParsePositionError)?,
        };
        // Only what was written: no signs, no upper case, no rest.
        match position.to_string() == text {
            true => Ok(position),
            false => Err(ParsePositionError),
        }
    }
}

/// Words that a line must or must not have in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogTerms {
    /// All of these.
    pub all: Vec<String>,
    /// At least one of these, unless there are none.
    pub any: Vec<String>,
    /// None of these.
    pub none: Vec<String>,
}

impl LogTerms {
    /// Whether a line is as it says.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let has = |term: &String| text.contains(term.as_str());
        self.all.iter().all(has)
            && (self.any.is_empty() || self.any.iter().any(has))
            && !self.none.iter().any(has)
    }
}

/// From where, and into which direction, a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// The oldest lines from this position on.
    From(LogPosition),
    /// The newest lines before this position.
    Before(LogPosition),
}

/// Which lines of a service's log a page is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRange {
    /// Whose.
    pub project: ProjectId,
    /// Whose.
    pub service: ServiceName,
    /// Only these instances'; absent means all.
    pub instances: Option<BTreeSet<InstanceId>>,
    /// Not from before, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Only from before, milliseconds since 1970.
    pub until_unix_ms: u64,
    /// From where.
    pub start: LogStart,
    /// Only lines that have these.
    pub terms: LogTerms,
    /// At most so many.
    pub events_max: usize,
}

impl LogRange {
    /// Whether a line belongs to it.
    #[must_use]
    pub fn has(&self, position: LogPosition, text: &str) -> bool {
        let is_ahead = match self.start {
            LogStart::From(start) => position >= start,
            LogStart::Before(start) => position < start,
        };
        is_ahead
            && (self.since_unix_ms..self.until_unix_ms).contains(&position.unix_ms)
            && self.terms.matches(text)
    }
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Where it is.
    pub position: LogPosition,
    /// Without its end.
    pub text: String,
}

/// Part of a log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPage {
    /// The lines.
    pub events: Vec<LogEvent>,
    /// The range has more in its direction.
    pub more: bool,
}

/// From when to when an instance wrote what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpan {
    /// Which.
    pub instance: InstanceId,
    /// Its first line, milliseconds since 1970.
    pub first_unix_ms: u64,
    /// Its last line, milliseconds since 1970.
    pub last_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(unix_ms: u64, number: u32, ordinal: u32) -> LogPosition {
        LogPosition {
            unix_ms,
            instance: InstanceId::from_parts(1, number),
            ordinal,
        }
    }

    #[test]
    fn a_position_reads_back_and_sorts_as_its_text() {
        let sorted = [
            LogPosition::at(0),
            position(1, 1, 0),
            position(1, 1, 1),
            position(1, 2, 0),
            LogPosition::at(2),
            position(1_700_000_000_000, 7, u32::MAX),
        ];
        for pair in sorted.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
            assert!(pair[0].to_string() < pair[1].to_string(), "{pair:?}");
        }
        for position in sorted {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert_eq!(position(1, 1, 1), position(1, 1, 0).next());
    }

    #[test]
    fn what_is_no_position_is_refused() {
        let good = position(10, 1, 0).to_string();
        for text in [
            String::new(),
            "x".repeat(40),
            "ü".repeat(20),
            format!("{good}0"),
            good.replacen('0', "+", 1),
            good.to_uppercase(),
        ] {
            let parsed = text.parse::<LogPosition>();
            assert_eq!(parsed, Err(ParsePositionError), "{text}");
        }
    }

    #[test]
    fn terms_are_all_of_some_any_of_others_and_none_of_the_rest() {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let terms = |all: &[&str], any: &[&str], none: &[&str]| LogTerms {
            all: own(all),
            any: own(any),
            none: own(none),
        };
        for (terms, text, expected) in [
            (terms(&[], &[], &[]), "", true),
            (terms(&["a", "b c"], &[], &[]), "a b c", true),
            (terms(&["a", "b c"], &[], &[]), "a c b", false),
            (terms(&[], &["a", "b"], &[]), "b", true),
            (terms(&[], &["a", "b"], &[]), "c", false),
            (terms(&["a"], &[], &["b"]), "a", true),
            (terms(&["a"], &[], &["b"]), "a b", false),
        ] {
            assert_eq!(terms.matches(text), expected, "{terms:?} {text}");
        }
    }
}
