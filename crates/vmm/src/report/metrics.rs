use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use skiff_base::{Clock, Monotonic};
use skiff_wire::monitor::{DiskStats, NetworkStats, Stats};

use super::Sink;

/// How often metrics are told without being asked for.
const PERIOD: Duration = Duration::from_secs(60);

/// Numbers by their group and their name.
type Totals = BTreeMap<(String, &'static str), u64>;

/// Metrics, of which each line tells what has been since the last one.
#[derive(Debug)]
pub(crate) struct Metrics {
    clock: Arc<dyn Clock>,
    sink: Option<Sink>,
    /// What is counted here.
    counts: Totals,
    /// What is not counted, but was so last.
    latest: Totals,
    /// What was told until now.
    told: Totals,
    missed: u64,
    due: Monotonic,
}

impl Metrics {
    /// Metrics that are told nobody.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            due: clock.now(),
            clock,
            sink: None,
            counts: Totals::new(),
            latest: Totals::new(),
            told: Totals::new(),
            missed: 0,
        }
    }

    /// Has them told here.
    pub(crate) fn tell(&mut self, sink: Sink) {
        self.sink = Some(sink);
        self.due = self.clock.now().plus(PERIOD);
    }

    /// Whether they are told anybody.
    pub(crate) const fn are_told(&self) -> bool {
        self.sink.is_some()
    }

    /// How long it is until the next line, if there is to be one.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.sink.as_ref()?;
        Some(self.due.since(self.clock.now()))
    }

    /// Counts something; with 0 it is there.
    pub(crate) fn add(&mut self, group: &'static str, name: &'static str, more: u64) {
        *self.counts.entry((group.into(), name)).or_default() += more;
    }

    /// Notes what was so last.
    pub(crate) fn note(&mut self, group: &'static str, name: &'static str, value: u64) {
        self.latest.insert((group.into(), name), value);
    }

    /// Writes a line. Tells whether it was written, or is nobody's; what was
    /// not is in the next one.
    pub(crate) fn flush(&mut self, stats: &Stats, missed_logs: u64) -> bool {
        self.due = self.clock.now().plus(PERIOD);
        if self.sink.is_none() {
            return true;
        }
        let totals = self.totals(stats, missed_logs);
        let line = self.line(&totals);
        let has_room = self.sink.as_mut().is_some_and(|sink| sink.line(&line));
        if has_room {
            self.told = totals;
        } else {
            self.missed += 1;
        }
        has_room
    }

    fn totals(&self, stats: &Stats, missed_logs: u64) -> Totals {
        let mut totals = self.counts.clone();
        let mut add = |group: &str, name, value| {
            *totals.entry((group.to_owned(), name)).or_default() += value;
        };
        add("logger", "missed_metrics_count", self.missed);
        add("logger", "missed_log_count", missed_logs);
        let dropped = stats.serial_dropped_bytes;
        add("uart", "rate_limiter_dropped_bytes", dropped);
        add("vmm", "cpu_us", stats.cpu_us);
        for disk in &stats.disks {
            for (name, value) in of_disk(disk) {
                add(&format!("block_{}", disk.disk), name, value);
                add("block", name, value);
            }
        }
        for network in &stats.networks {
            for (name, value) in of_network(network) {
                add(&format!("net_{}", network.interface), name, value);
                add("net", name, value);
            }
        }
        totals
    }

    fn line(&self, totals: &Totals) -> String {
        let mut line = Map::new();
        line.insert("utc_timestamp_ms".into(), json!(self.clock.unix_ms()));
        let since = totals.iter().map(|(key, total)| {
            let told = self.told.get(key).copied().unwrap_or(0);
            (key, total.saturating_sub(told))
        });
        let latest = self.latest.iter().map(|(key, value)| (key, *value));
        for ((group, name), value) in since.chain(latest) {
            let group = line.entry(group.clone()).or_insert_with(|| json!({}));
            if let Value::Object(group) = group {
                group.insert((*name).into(), json!(value));
            }
        }
        Value::Object(line).to_string()
    }
}

const fn of_disk(disk: &DiskStats) -> [(&'static str, u64); 3] {
    [
        ("read_bytes", disk.read_bytes),
        ("write_bytes", disk.written_bytes),
        ("execute_fails", disk.failed),
    ]
}

const fn of_network(network: &NetworkStats) -> [(&'static str, u64); 6] {
    [
        ("rx_packets_count", network.received_packets),
        ("rx_bytes_count", network.received_bytes),
        ("rx_fails", network.received_dropped),
        ("tx_packets_count", network.sent_packets),
        ("tx_bytes_count", network.sent_bytes),
        ("tx_fails", network.sent_dropped),
    ]
}

#[cfg(test)]
mod tests {
    use skiff_base::ManualClock;

    use super::*;

    #[test]
    fn each_line_tells_what_has_been_since_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let clock = ManualClock::default();
        let mut metrics = Metrics::new(Arc::new(clock.clone()));
        let mut stats = Stats::default();
        assert_eq!(metrics.wait(), None);
        assert!(metrics.flush(&stats, 0) && !metrics.are_told());

        metrics.tell(Sink::open(&path).unwrap());
        assert_eq!(metrics.wait(), Some(PERIOD));
        clock.advance(PERIOD);
        assert_eq!(metrics.wait(), Some(Duration::ZERO));
        for (disk, read_bytes) in [("a", 5), ("b", 7)] {
            stats.disks.push(DiskStats {
                disk: disk.into(),
                read_bytes,
                failed: 1,
                ..DiskStats::default()
            });
        }
        stats.networks.push(NetworkStats {
            interface: "eth0".into(),
            sent_packets: 3,
            ..NetworkStats::default()
        });
        metrics.add("put_api_requests", "drive_count", 2);
        metrics.note("latencies_us", "pause_vm", 9);
        assert!(metrics.flush(&stats, 2));
        assert_eq!(metrics.wait(), Some(PERIOD));
        stats.disks[1].read_bytes = 17;
        stats.serial_dropped_bytes = 4;
        assert!(metrics.flush(&stats, 2));

        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        let first = json!({
            "utc_timestamp_ms": 60_000,
            "block": {"read_bytes": 12, "write_bytes": 0, "execute_fails": 2},
            "block_a": {"read_bytes": 5, "write_bytes": 0, "execute_fails": 1},
            "block_b": {"read_bytes": 7, "write_bytes": 0, "execute_fails": 1},
            "latencies_us": {"pause_vm": 9},
            "logger": {"missed_log_count": 2, "missed_metrics_count": 0},
            "net": {
                "rx_packets_count": 0, "rx_bytes_count": 0, "rx_fails": 0,
                "tx_packets_count": 3, "tx_bytes_count": 0, "tx_fails": 0,
            },
            "net_eth0": {
                "rx_packets_count": 0, "rx_bytes_count": 0, "rx_fails": 0,
                "tx_packets_count": 3, "tx_bytes_count": 0, "tx_fails": 0,
            },
            "put_api_requests": {"drive_count": 2},
            "uart": {"rate_limiter_dropped_bytes": 0},
            "vmm": {"cpu_us": 0},
        });
        assert_eq!(lines[0], first);
        assert_eq!(lines[1]["block"]["read_bytes"], 10);
        assert_eq!(lines[1]["block_a"]["read_bytes"], 0);
        assert_eq!(lines[1]["latencies_us"]["pause_vm"], 9);
        assert_eq!(lines[1]["logger"]["missed_log_count"], 0);
        assert_eq!(lines[1]["put_api_requests"]["drive_count"], 0);
        assert_eq!(lines[1]["uart"]["rate_limiter_dropped_bytes"], 4);
    }

    #[test]
    fn what_had_no_room_is_in_the_next_line() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer: std::os::fd::OwnedFd = writer.into();
        rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(writer);
        let sink = Sink::open(format!("fd:{number}").as_ref()).unwrap();
        let mut metrics = Metrics::new(Arc::new(ManualClock::default()));
        metrics.tell(sink);
        let mut stats = Stats::default();
        let mut written = 0_usize;
        while metrics.flush(&stats, 0) {
            written += 1;
        }
        assert!(written > 0);
        stats.cpu_us = 5;
        assert!(!metrics.flush(&stats, 0));
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
        let mut next =
            || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        // The last of them may be there in part: the next line ends it.
        for _ in 1..written {
            assert_eq!(next()["vmm"]["cpu_us"], 0);
        }
        assert!(metrics.flush(&stats, 0));
        assert_eq!(next()["vmm"]["cpu_us"], 0);
        let last = next();
        assert_eq!(last["vmm"]["cpu_us"], 5);
        assert_eq!(last["logger"]["missed_metrics_count"], 2);
    }
}
