//! How answers look on a terminal.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;
use skiff_base::{Date, UtcTime};

use super::args::Output;

/// Writes a line to standard output. A reader that has gone away ends the
/// command, as it ends every Unix tool.
pub fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{}", text.as_ref())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

/// Writes a line to standard error.
pub fn note(text: impl AsRef<str>) {
    let mut err = std::io::stderr().lock();
    // Nobody is left to be told when standard error is gone.
    let _gone = writeln!(err, "{}", text.as_ref());
}

/// Writes the value as JSON, or what `text` makes of it.
///
/// # Errors
/// When the value cannot be written as JSON.
pub fn show<T: Serialize>(output: Output, value: &T, text: impl FnOnce(&T)) -> anyhow::Result<()> {
    match output {
        Output::Json => line(serde_json::to_string_pretty(value)?),
        Output::Text => text(value),
    }
    Ok(())
}

/// Writes rows under a head, columns aligned.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        line(cells.join("  ").trim_end());
    }
}

/// Bytes as people read them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut rest = count;
    let mut tenths = 0;
    let mut unit = 0;
    while rest >= 1024 && unit + 1 < UNITS.len() {
        tenths = (rest % 1024) * 10 / 1024;
        rest /= 1024;
        unit += 1;
    }
    if unit == 0 {
        format!("{rest} B")
    } else {
        format!("{rest}.{tenths} {}", UNITS[unit])
    }
}

/// A time as people read it, UTC.
pub fn time(unix_ms: u64) -> String {
    let UtcTime {
        date: Date { year, month, day },
        hour,
        minute,
        second,
        ..
    } = UtcTime::of_unix_ms(unix_ms);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// A length of time in milliseconds with two digits behind the point.
pub fn millis(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

/// A progress bar on a terminal, nothing elsewhere.
#[derive(Debug)]
pub struct Bar(Option<indicatif::ProgressBar>);

impl Bar {
    /// A bar with this word before it.
    pub fn new(word: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = indicatif::ProgressBar::new(0);
        let style = indicatif::ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(word.to_owned());
        Self(Some(bar))
    }

    /// Moves it.
    pub fn set(&self, bytes: u64, total: Option<u64>) {
        if let Some(bar) = &self.0 {
            bar.set_length(total.unwrap_or(bytes));
            bar.set_position(bytes);
        }
    }

    /// Takes it away.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
        assert_eq!(millis(12_345), "12.34 ms");
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(1_709_210_096_000), "2024-02-29 12:34:56");
        assert_eq!(time(1_798_761_599_000), "2026-12-31 23:59:59");
    }
}
