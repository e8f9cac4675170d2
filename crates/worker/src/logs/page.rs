//! Pages of a log, and what there is of each instance.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use skiff_types::{InstanceId, LogEvent, LogPage, LogPosition, LogRange, LogSpan, LogStart};

use super::files::LogFile;
use super::line::Line;
use super::query::text_of;

/// What a page's lines have in all, each with [`EVENT_BYTES`] more.
const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Counted of each line beside its text (AWS's figure).
const EVENT_BYTES: usize = 26;
/// More than any line has, with bytes in it that are no UTF-8.
const TAIL_BYTES: u64 = 64 * 1024;

/// The page of these files, which are in the order of instances, what was
/// rotated away first.
pub fn page(range: &LogRange, files: Vec<(LogFile, File, u64)>) -> LogPage {
    let mut page = LogPage::default();
    let mut counts: HashMap<u64, u32> = HashMap::new();
    let mut counted = None;
    for (listed, file, len) in files {
        let is_wanted = |wanted: &BTreeSet<InstanceId>| wanted.contains(&listed.instance);
        if !range.instances.as_ref().is_none_or(is_wanted) {
            continue;
        }
        if counted.replace(listed.instance) != Some(listed.instance) {
            counts.clear();
        }
        let text = text_of(&listed, file, len);
        for line in text.lines().filter_map(Line::parse) {
            // A clock that was set back comes to a millisecond again.
            let count = counts.entry(line.unix_ms).or_default();
            let position = LogPosition {
                unix_ms: line.unix_ms,
                instance: listed.instance,
                ordinal: *count,
            };
            *count = count.saturating_add(1);
            if range.has(position, &line.text) {
                let text = line.text;
                page.events.push(LogEvent { position, text });
            }
        }
        cut(&mut page, range);
    }
    page.events.sort_unstable_by_key(|event| event.position);
    page
}

/// Leaves the events that come first in the range's direction, as far as they
/// fit. What goes now would go with more events, too.
fn cut(page: &mut LogPage, range: &LogRange) {
    page.events.sort_unstable_by_key(|event| event.position);
    if matches!(range.start, LogStart::Before(_)) {
        page.events.reverse();
    }
    let mut bytes = 0usize;
    let fits = |event: &LogEvent| {
        bytes = bytes.saturating_add(event.text.len() + EVENT_BYTES);
        bytes <= PAGE_BYTES_MAX
    };
    let fitting = page.events.iter().map(fits).take_while(|fits| *fits);
    let kept = fitting.take(range.events_max).count();
    page.more |= kept < page.events.len();
    page.events.truncate(kept);
}

/// What is kept of each instance, in the same order; nothing of one without
/// a whole line.
pub fn spans(files: Vec<(LogFile, File, u64)>) -> Vec<LogSpan> {
    let mut spans: Vec<LogSpan> = Vec::new();
    for (listed, file, len) in files {
        let (first, last) = match ends(&file, len) {
            Ok(Some(ends)) => ends,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(path = %listed.path.display(), %error, "a log cannot be read");
                continue;
            }
        };
        match spans.last_mut() {
            Some(span) if span.instance == listed.instance => {
                span.first_unix_ms = span.first_unix_ms.min(first);
                span.last_unix_ms = span.last_unix_ms.max(last);
            }
            _ => spans.push(LogSpan {
                instance: listed.instance,
                first_unix_ms: first,
                last_unix_ms: last.max(first),
            }),
        }
    }
    spans
}

/// When its first and its last whole line were written.
fn ends(file: &File, len: u64) -> io::Result<Option<(u64, u64)>> {
    let head = part(file, 0, len.min(TAIL_BYTES))?;
    let tail = part(file, len.saturating_sub(TAIL_BYTES), len)?;
    let first = head.lines().find_map(Line::parse);
    let last = tail.lines().rev().find_map(Line::parse);
    let ends = first.zip(last);
    Ok(ends.map(|(first, last)| (first.unix_ms, last.unix_ms)))
}

fn part(file: &File, from: u64, to: u64) -> io::Result<String> {
    let len = usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, from)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
