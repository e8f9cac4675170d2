//! To the kernel's own log: it is there before anything else is, and a host
//! sees it on the machine's console.

use std::fmt::Write as _;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The kernel takes no longer line.
const LINE_CHARS_MAX: usize = 900;

/// Takes words of the command line: `skiff.log=debug`.
pub fn begin() {
    let level = skiff_agent::kernel_word("skiff.log").and_then(|level| level.parse().ok());
    let log = Log(level.unwrap_or(Level::WARN));
    // Only a second call fails.
    tracing::subscriber::set_global_default(log).ok();
}

/// One line. Where there is no kernel's log there is nobody to tell.
pub fn say(line: &str) {
    let mut line: String = format!("skiff-agent: {line}")
        .chars()
        .take(LINE_CHARS_MAX)
        .collect();
    line.push('\n');
    let log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    if log
        .and_then(|mut log| log.write_all(line.as_bytes()))
        .is_err()
    {
        std::io::stderr().write_all(line.as_bytes()).ok();
    }
}

struct Log(Level);

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        // A string takes what it is given.
        written.ok();
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.0
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().as_str().to_lowercase());
        event.record(&mut line);
        say(&line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
