use std::fmt;

/// A day of the Gregorian calendar, from 1970 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// As it is written.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
}

/// Days before 1970, counted from March of the year 0: years that begin in
/// March have the day that some of them have as their last.
const BEFORE_1970: u64 = 719_468;
/// Of 400 years, after which everything repeats.
const DAYS_OF_ERA: u64 = 146_097;

impl Date {
    /// The day that is so many days after 1970-01-01.
    #[must_use]
    pub const fn of_days(days: u64) -> Self {
        let days = days + BEFORE_1970;
        let (era, day) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let year = era * 400 + year + (month >= 10) as u64;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self { year, month, day }
    }

    /// How many days after 1970-01-01 it is; `None` when there is no such day,
    /// it is before, or after the year 9999.
    #[must_use]
    pub fn days(self) -> Option<u64> {
        let known = (1970..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day);
        if !known {
            return None;
        }
        let early = u64::from(self.month < 3);
        let year = self.year - early;
        let month = self.month + 12 * early - 3;
        let (era, year) = (year / 400, year % 400);
        let day = 365 * year + year / 4 - year / 100 + (153 * month + 2) / 5 + self.day - 1;
        let days = era * DAYS_OF_ERA + day - BEFORE_1970;
        (Self::of_days(days) == self).then_some(days)
    }
}

/// A moment as calendars and clocks have it in UTC, from 1970 on. It is written
/// as RFC 3339 has it, with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UtcTime {
    /// Its day.
    pub date: Date,
    /// 0 to 23.
    pub hour: u64,
    /// 0 to 59.
    pub minute: u64,
    /// 0 to 59.
    pub second: u64,
    /// 0 to 999.
    pub millisecond: u64,
}

impl UtcTime {
    /// The moment that is so many milliseconds after 1970 began.
    #[must_use]
    pub const fn of_unix_ms(unix_ms: u64) -> Self {
        let seconds = unix_ms / 1000;
        Self {
            date: Date::of_days(seconds / 86_400),
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            millisecond: unix_ms % 1000,
        }
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            date: Date { year, month, day },
            hour,
            minute,
            second,
            millisecond,
        } = self;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_rfc_3339_has_it() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (1_709_251_199_007, "2024-02-29T23:59:59.007Z"),
        ] {
            assert_eq!(UtcTime::of_unix_ms(unix_ms).to_string(), text);
        }
    }

    fn date(year: u64, month: u64, day: u64) -> Date {
        Date { year, month, day }
    }

    #[test]
    fn days_follow_each_other() {
        let leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let mut expected = date(1970, 1, 1);
        // Beyond the era's end, and whatever a leap year does.
        for days in 0..DAYS_OF_ERA + 1000 {
            assert_eq!(Date::of_days(days), expected, "{days}");
            assert_eq!(expected.days(), Some(days), "{expected:?}");
            let february = if leap(expected.year) { 29 } else { 28 };
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let month = usize::try_from(expected.month - 1).unwrap();
            expected.day += 1;
            if expected.day > lengths[month] {
                expected = date(expected.year, expected.month + 1, 1);
            }
            if expected.month > 12 {
                expected = date(expected.year + 1, 1, 1);
            }
        }
    }

    #[test]
    fn what_is_no_day_has_no_number() {
        for none in [
            date(2026, 2, 29),
            date(2100, 2, 29),
            date(2026, 4, 31),
            date(2026, 0, 1),
            date(2026, 13, 1),
            date(2026, 1, 0),
            date(1969, 12, 31),
            date(10_000, 1, 1),
            date(u64::MAX, 1, 1),
        ] {
            assert_eq!(none.days(), None, "{none:?}");
        }
    }
}
