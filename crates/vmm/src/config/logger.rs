use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Lacking;

/// A log for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// Where it goes: a file that is there or can be made, or a pipe. Nowhere
    /// when nothing has been said.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// What is said: all that is as grave as this.
    #[serde(default)]
    pub level: Level,
    /// Whether each line says how grave it is.
    #[serde(default)]
    pub show_level: bool,
    /// Whether each line says where in the program it was said.
    #[serde(default)]
    pub show_log_origin: bool,
    /// The only part of the program that says anything.
    #[serde(default, skip_serializing)]
    pub module: Option<Lacking>,
}

/// How grave something is, from nothing down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum Level {
    /// Nothing is said.
    Off,
    /// Something was not done.
    Error,
    /// Something is odd.
    #[serde(rename = "Warning")]
    Warn,
    /// Something was done.
    #[default]
    Info,
    /// How it was done.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// As it is in a line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    /// Upper and lower case are the same.
    fn try_from(text: String) -> Result<Self, String> {
        let levels = [
            Self::Off,
            Self::Error,
            Self::Warn,
            Self::Info,
            Self::Debug,
            Self::Trace,
        ];
        if text.eq_ignore_ascii_case("warning") {
            return Ok(Self::Warn);
        }
        let found = levels
            .into_iter()
            .find(|level| text.eq_ignore_ascii_case(level.word()));
        found.ok_or_else(|| {
            format!("{text:?} is none of Off, Error, Warning, Info, Debug and Trace")
        })
    }
}

/// Where lines of metrics go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// A file that is there or can be made, or a pipe.
    pub metrics_path: PathBuf,
}
