//! When a schedule fires (EventBridge Scheduler, "Schedule types"):
//! `rate(VALUE UNIT)`, `cron(MINUTES HOURS DAY MONTH WEEKDAY YEAR)` and
//! `at(YYYY-MM-DDTHH:MM:SS)`, the last two in a time zone.
//!
//! It knows no clock. Around a change of the clocks: a fixed time in the hour
//! that is left out comes right after it, and one in the hour that comes twice
//! fires once; what repeats within the hour goes on with it.

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// The longest expression, bytes (botocore's model).
const EXPRESSION_BYTES_MAX: usize = 256;
/// The longest name of a time zone, bytes (botocore's model).
const ZONE_BYTES_MAX: usize = 50;
/// The longest rate's value: a century of minutes, about.
const RATE_MAX: u64 = 52_560_000;

/// How far a start may lie back when a schedule is made, milliseconds (AWS's
/// bound).
pub(crate) const START_BACK_MS_MAX: u64 = 5 * 60_000;

/// A text does not say when.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpressionError {
    #[error(
        "`{0}` does not say when: rate(VALUE UNIT), cron(MINUTES HOURS DAY MONTH WEEKDAY YEAR) or at(YYYY-MM-DDTHH:MM:SS) is expected"
    )]
    Form(String),
    #[error(
        "a rate has a value of 1 to {RATE_MAX} and a unit: minute, hour or day, with an s unless it is 1"
    )]
    Rate,
    #[error("the cron expression `{0}` is not one: {1}")]
    Cron(String, String),
    #[error("a cron expression has a ? as its day or as its weekday, and not as both")]
    Days,
    #[error("`{0}` is no time as 2026-11-26T19:00:00 is")]
    At(String),
    #[error("`{0}` is no time zone as Europe/Berlin is")]
    Zone(String),
}

/// When a schedule fires.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    kind: Kind,
    zone: TimeZone,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Every so many milliseconds.
    Rate(u64),
    Cron(Box<Cron>),
    At(u64),
}

/// From when to when a schedule fires, milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// When it was made or last changed: times before are not caught up with.
    pub made: u64,
    /// When its expression was given; rates count from here, or from the start.
    pub begun: u64,
    pub start: Option<u64>,
    pub end: Option<u64>,
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

impl Expression {
    /// Reads one.
    ///
    /// # Errors
    /// What of it has not its form.
    pub(crate) fn parse(text: &str, zone: &str) -> Result<Self, ExpressionError> {
        let form = || ExpressionError::Form(short(text));
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(form());
        }
        let zone = match zone {
            "" | "UTC" => TimeZone::UTC,
            name if name.len() > ZONE_BYTES_MAX => {
                return Err(ExpressionError::Zone(short(name)));
            }
            name => TimeZone::get(name).map_err(|_| ExpressionError::Zone(short(name)))?,
        };
        let inner = |name: &str| {
            text.strip_prefix(name)?
                .strip_prefix('(')?
                .strip_suffix(')')
        };
        let kind = if let Some(text) = inner("rate") {
            Kind::Rate(rate(text)?)
        } else if let Some(text) = inner("cron") {
            Kind::Cron(Box::new(cron(text)?))
        } else if let Some(text) = inner("at") {
            Kind::At(at(text, &zone)?)
        } else {
            return Err(form());
        };
        Ok(Self { kind, zone })
    }

    /// Whether it fires once only.
    pub(crate) const fn is_once(&self) -> bool {
        matches!(self.kind, Kind::At(_))
    }

    /// The first time it fires after `after`; `None` when it never does again.
    pub(crate) fn next(&self, after: u64, window: Window) -> Option<u64> {
        let from = window.start.unwrap_or(window.made);
        let found = match &self.kind {
            Kind::Rate(every) => {
                let first = window.start.unwrap_or(window.begun);
                match after < first {
                    true => first,
                    false => first + ((after - first) / every + 1) * every,
                }
            }
            Kind::Cron(cron) => {
                // A start is a time that counts, too.
                let after = after.max(from.saturating_sub(1));
                let next = cron.find_next_occurrence(&self.zoned(after)?, false);
                unix_ms(&next.ok()?)?
            }
            Kind::At(time) => *time,
        };
        let counts = found > after && self.is_within(found, window);
        counts.then_some(found)
    }

    /// The last time up to `now` that it fired or should have.
    pub(crate) fn latest(&self, now: u64, window: Window) -> Option<u64> {
        let upto = window.end.map_or(now, |end| end.min(now));
        let found = match &self.kind {
            Kind::Rate(every) => {
                let first = window.start.unwrap_or(window.begun);
                let since = upto.checked_sub(first)?;
                first + since / every * every
            }
            Kind::Cron(cron) => {
                let last = cron.find_previous_occurrence(&self.zoned(upto)?, true);
                unix_ms(&last.ok()?)?
            }
            Kind::At(time) => *time,
        };
        let counts = found <= upto && self.is_within(found, window);
        counts.then_some(found)
    }

    fn is_within(&self, time: u64, window: Window) -> bool {
        let start = window.start.unwrap_or(0);
        let from = match self.kind {
            // One that is to start now comes a moment after its start.
            Kind::Rate(_) if window.made.saturating_sub(start) <= START_BACK_MS_MAX => start,
            _ => start.max(window.made),
        };
        time >= from && window.end.is_none_or(|end| time <= end)
    }

    fn zoned(&self, time: u64) -> Option<Zoned> {
        let time = Timestamp::from_millisecond(i64::try_from(time).ok()?).ok()?;
        Some(time.to_zoned(self.zone.clone()))
    }
}

fn unix_ms(time: &Zoned) -> Option<u64> {
    u64::try_from(time.timestamp().as_millisecond()).ok()
}

fn rate(text: &str) -> Result<u64, ExpressionError> {
    let (value, unit) = text.trim().split_once(' ').ok_or(ExpressionError::Rate)?;
    let value: u64 = value.parse().map_err(|_| ExpressionError::Rate)?;
    let minutes = match (value, unit.trim()) {
        (1, "minute") | (_, "minutes") => 1,
        (1, "hour") | (_, "hours") => 60,
        (1, "day") | (_, "days") => 24 * 60,
        _ => return Err(ExpressionError::Rate),
    };
    match value {
        1..=RATE_MAX => Ok(value * minutes * 60_000),
        _ => Err(ExpressionError::Rate),
    }
}

fn cron(text: &str) -> Result<Cron, ExpressionError> {
    let wrong = |why: &str| ExpressionError::Cron(short(text), why.to_owned());
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 6 {
        return Err(wrong("six fields are expected"));
    }
    if (fields[2] == "?") == (fields[4] == "?") {
        return Err(ExpressionError::Days);
    }
    if text.contains(['@', '+']) {
        return Err(wrong("there are no such signs in it"));
    }
    // The seconds come first; AWS's weekdays are Quartz', from Sunday, 1.
    let text = format!("0 {}", fields.join(" "));
    let parser = CronParser::builder()
        .seconds(Seconds::Required)
        .alternative_weekdays(true)
        .sloppy_ranges(true)
        .build();
    let cron = parser.parse(&text);
    cron.map_err(|error| wrong(&error.to_string()))
}

fn at(text: &str, zone: &TimeZone) -> Result<u64, ExpressionError> {
    let wrong = || ExpressionError::At(short(text));
    let time: DateTime = text.trim().parse().map_err(|_| wrong())?;
    let time = time.to_zoned(zone.clone()).map_err(|_| wrong())?;
    unix_ms(&time).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;

    fn ms(text: &str) -> u64 {
        let time: Timestamp = text.parse().unwrap();
        u64::try_from(time.as_millisecond()).unwrap()
    }

    fn window(made: &str) -> Window {
        let made = ms(made);
        Window {
            made,
            begun: made,
            start: None,
            end: None,
        }
    }

    fn next(text: &str, zone: &str, after: &str) -> Option<String> {
        let expression = Expression::parse(text, zone).unwrap();
        let next = expression.next(ms(after), window("2020-01-01T00:00:00Z"))?;
        let next = Timestamp::from_millisecond(i64::try_from(next).unwrap());
        Some(next.unwrap().to_string())
    }

    #[test]
    fn expressions_say_when_they_fire_next() {
        let after = "2026-11-26T22:58:30Z";
        for (text, zone, expected) in [
            ("rate(1 minute)", "", Some("2026-11-26T22:59:00Z")),
            ("rate(2 days)", "", Some("2026-11-27T00:00:00Z")),
            ("cron(0 12 * * ? *)", "", Some("2026-11-27T12:00:00Z")),
            (
                "cron(0 12 * * ? *)",
                "Europe/Berlin",
                Some("2026-11-27T11:00:00Z"),
            ),
            (
                "cron(0/15 * ? * MON-FRI *)",
                "",
                Some("2026-11-26T23:00:00Z"),
            ),
            // Weekdays are 1 for Sunday.
            ("cron(0 0 ? * 1 *)", "", Some("2026-11-29T00:00:00Z")),
            ("cron(0 8 L * ? *)", "", Some("2026-11-30T08:00:00Z")),
            ("cron(0 8 ? * 6#1 *)", "", Some("2026-12-04T08:00:00Z")),
            ("cron(0 8 1 1 ? 2028)", "", Some("2028-01-01T08:00:00Z")),
            ("cron(0 8 1 1 ? 2025)", "", None),
            ("cron(0 8 30 2 ? *)", "", None),
            (
                "at(2026-12-24T18:00:00)",
                "Europe/Berlin",
                Some("2026-12-24T17:00:00Z"),
            ),
            ("at(2026-11-26T18:00:00)", "", None),
        ] {
            assert_eq!(
                next(text, zone, after).as_deref(),
                expected,
                "{text} {zone}"
            );
        }
    }

    #[test]
    fn changes_of_the_clocks_leave_nothing_out_and_double_nothing() {
        let berlin = "Europe/Berlin";
        // 2:30 is not there on this day: it comes after the gap.
        let gap = next("cron(30 2 * * ? *)", berlin, "2027-03-27T12:00:00Z");
        assert_eq!(gap.as_deref(), Some("2027-03-28T01:00:00Z"));
        // 2:30 is there twice, and fires once.
        let once = next("cron(30 2 * * ? *)", berlin, "2026-10-24T12:00:00Z");
        assert_eq!(once.as_deref(), Some("2026-10-25T00:30:00Z"));
        let then = next("cron(30 2 * * ? *)", berlin, "2026-10-25T00:30:00Z");
        assert_eq!(then.as_deref(), Some("2026-10-26T01:30:00Z"));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for (text, zone) in [
            ("", ""),
            ("rate(0 minutes)", ""),
            ("rate(1 minutes ago)", ""),
            ("rate(2 minute)", ""),
            ("rate(99999999999999999999 days)", ""),
            ("cron(* * * * * *)", ""),
            ("cron(* * ? * ? *)", ""),
            ("cron(* * * * ?)", ""),
            ("cron(61 * * * ? *)", ""),
            ("cron(@daily)", ""),
            ("at(yesterday)", ""),
            ("at(2026-13-01T00:00:00)", ""),
            ("rate(1 minute)", "Europe/Nowhere"),
            ("every minute", ""),
        ] {
            assert!(Expression::parse(text, zone).is_err(), "{text} {zone}");
        }
    }

    #[test]
    fn a_window_has_its_bounds_and_a_rate_its_begin() {
        let rate = Expression::parse("rate(1 hour)", "").unwrap();
        let made = ms("2026-11-26T12:34:00Z");
        let open = window("2026-11-26T12:34:00Z");
        assert_eq!(rate.latest(made, open), Some(made), "it begins at once");
        assert_eq!(rate.next(made, open), Some(made + HOUR));
        assert_eq!(rate.latest(made + HOUR - 1, open), Some(made));
        assert_eq!(
            rate.latest(made + 3 * HOUR + 5, open),
            Some(made + 3 * HOUR)
        );
        let bounded = Window {
            start: Some(made + 10 * MINUTE),
            end: Some(made + 2 * HOUR),
            ..open
        };
        assert_eq!(rate.next(made, bounded), Some(made + 10 * MINUTE));
        assert_eq!(rate.next(made + 2 * HOUR, bounded), None);
        assert_eq!(
            rate.latest(made + 9 * HOUR, bounded),
            Some(made + HOUR + 10 * MINUTE)
        );
        // A change of something else leaves its times as they are.
        let changed = Window {
            made: made + 20 * MINUTE,
            ..open
        };
        assert_eq!(rate.latest(changed.made, changed), None);
        assert_eq!(rate.next(changed.made, changed), Some(made + HOUR));
        // What lies before it was made is not caught up with.
        let cron = Expression::parse("cron(0 12 * * ? *)", "").unwrap();
        assert_eq!(cron.latest(made, open), None);
        assert_eq!(cron.next(made, open), Some(ms("2026-11-27T12:00:00Z")));
        let once = |text| {
            Expression::parse(text, "")
                .unwrap()
                .latest(made + HOUR, open)
        };
        assert_eq!(once("at(2026-11-26T12:00:00)"), None);
        assert_eq!(
            once("at(2026-11-26T13:00:00)"),
            Some(ms("2026-11-26T13:00:00Z"))
        );
    }

    #[test]
    fn a_start_that_lies_back_catches_up_with_nothing() {
        let (start, made) = (ms("2026-10-01T00:10:00Z"), ms("2026-11-26T10:00:00Z"));
        let old = Window {
            start: Some(start),
            ..window("2026-11-26T10:00:00Z")
        };
        let check = |text: &str, next: &str| {
            let expression = Expression::parse(text, "").unwrap();
            assert_eq!(expression.latest(made, old), None, "{text}");
            assert_eq!(expression.next(made, old), Some(ms(next)), "{text}");
            assert_eq!(expression.latest(ms(next), old), Some(ms(next)), "{text}");
        };
        check("cron(0 6 * * ? *)", "2026-11-27T06:00:00Z");
        check("rate(1 hour)", "2026-11-26T10:10:00Z");
        // A client's "now" is a second that has begun already.
        let now = Window {
            start: Some(made - 700),
            ..old
        };
        let rate = Expression::parse("rate(1 hour)", "").unwrap();
        assert_eq!(rate.latest(made, now), Some(made - 700));
        assert_eq!(rate.next(made, now), Some(made - 700 + HOUR));
    }

    proptest::proptest! {
        #[test]
        fn the_next_time_is_the_latest_when_it_has_come(
            seed in 0usize..5, after in 1_700_000_000_000u64..1_900_000_000_000,
        ) {
            let texts = ["rate(7 minutes)", "cron(*/5 * ? * MON *)", "cron(30 2 * * ? *)", "cron(0 0 L * ? *)", "rate(3 days)"];
            let expression = Expression::parse(texts[seed], "America/New_York").unwrap();
            let window = window("2020-09-13T12:26:40Z");
            let next = expression.next(after, window).unwrap();
            proptest::prop_assert!(next > after);
            proptest::prop_assert_eq!(expression.latest(next, window), Some(next));
            let before = expression.latest(next - 1, window);
            proptest::prop_assert!(before.is_none_or(|before| before <= after));
        }

        #[test]
        fn no_text_makes_the_reader_panic(inner in "[-0-9A-Z?*/,#L ]{0,40}", zone in "[A-Za-z/_]{0,20}") {
            for text in [format!("cron({inner})"), format!("rate({inner})"), format!("at({inner})")] {
                if let Ok(expression) = Expression::parse(&text, &zone) {
                    let window = window("1970-01-01T00:00:00Z");
                    let _next = expression.next(1_700_000_000_000, window);
                    let _latest = expression.latest(1_700_000_000_000, window);
                }
            }
        }
    }
}
