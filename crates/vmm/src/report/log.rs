use std::panic::Location;
use std::sync::Arc;

use skiff_base::{Clock, UtcTime};

use super::Sink;
use crate::config::{Level, Logger};

/// The longest message.
const MAX_MESSAGE: usize = 2 << 10;

/// A log for people.
#[derive(Debug)]
pub(crate) struct Log {
    id: String,
    clock: Arc<dyn Clock>,
    settings: Logger,
    sink: Option<Sink>,
    missed: u64,
}

impl Log {
    /// One that says nothing. `id` is the machine's name.
    pub(crate) fn new(id: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            id: id.into(),
            clock,
            settings: Logger::default(),
            sink: None,
            missed: 0,
        }
    }

    /// Has it say what these settings are about; without a path, where it
    /// said it before.
    ///
    /// # Errors
    /// When the path cannot be opened.
    pub(crate) fn set(&mut self, settings: &Logger) -> std::io::Result<()> {
        if let Some(path) = &settings.log_path {
            self.sink = Some(Sink::open(path)?);
        }
        self.settings = settings.clone();
        Ok(())
    }

    /// Lines that had no room.
    pub(crate) const fn missed(&self) -> u64 {
        self.missed
    }

    #[track_caller]
    pub(crate) fn say(&mut self, level: Level, message: &str) {
        let Some(sink) = &mut self.sink else {
            return;
        };
        if level > self.settings.level {
            return;
        }
        let mut line = UtcTime::of_unix_ms(self.clock.unix_ms()).to_string();
        line.push_str(&format!(" [{}", self.id));
        if self.settings.show_level {
            line.push_str(&format!(":{}", level.word()));
        }
        if self.settings.show_log_origin {
            let origin = Location::caller();
            line.push_str(&format!(":{}:{}", origin.file(), origin.line()));
        }
        line.push_str("] ");
        // A message is one line, whatever a client has put into it.
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        line.extend(message.chars().map(plain).take(MAX_MESSAGE));
        self.missed += u64::from(!sink.line(&line));
    }
}

#[cfg(test)]
mod tests {
    use skiff_base::ManualClock;

    use super::*;

    #[test]
    fn a_time_is_written_as_people_read_it() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(UtcTime::of_unix_ms(unix_ms).to_string(), text);
        }
    }

    #[test]
    fn each_message_is_a_line_of_its_level() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::new("vm-1", Arc::new(ManualClock::default()));
        log.say(Level::Error, "before");
        let settings = |level, shows| Logger {
            log_path: Some(path.clone()),
            level,
            show_level: shows,
            ..Logger::default()
        };
        log.set(&settings(Level::Info, true)).unwrap();
        log.say(Level::Info, "a\nb\u{7}c");
        log.say(Level::Debug, "nobody hears it");
        log.set(&settings(Level::Warn, false)).unwrap();
        log.say(Level::Error, "bad");
        log.say(Level::Info, "nor this");
        log.set(&settings(Level::Off, false)).unwrap();
        log.say(Level::Error, "nor that");
        let said = std::fs::read_to_string(&path).unwrap();
        let time = "1970-01-01T00:00:00.000Z";
        assert_eq!(
            said,
            format!("{time} [vm-1:INFO] a b c\n{time} [vm-1] bad\n")
        );
        assert_eq!(log.missed(), 0);
        let nowhere = Logger {
            log_path: Some(folder.path().join("no/log")),
            ..Logger::default()
        };
        assert!(log.set(&nowhere).is_err());
    }
}
