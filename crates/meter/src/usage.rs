//! The bill.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skiff_types::api::{Usage, UsageRow};
use skiff_types::{InstanceId, ProjectId, ProjectName, ServiceName};

use crate::fold::{Fold, Payer, Period, Periods, Totals};

/// What things cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// The unit of all prices.
    pub currency: String,
    /// For a million requests.
    pub per_million_requests: f64,
    /// For a GiB of an instance's memory for a second.
    pub per_gib_second: f64,
    /// For a second of one processor.
    pub per_cpu_second: f64,
    /// For a GB (10⁹ bytes) sent to clients.
    pub per_gb_out: f64,
}

impl Default for Prices {
    fn default() -> Self {
        Self {
            currency: "EUR".to_owned(),
            per_million_requests: 0.40,
            per_gib_second: 0.000_002_5,
            per_cpu_second: 0.000_024,
            per_gb_out: 0.0,
        }
    }
}

impl Prices {
    fn cost(&self, totals: &Totals) -> f64 {
        totals.requests as f64 / 1e6 * self.per_million_requests
            + mib_s(totals) / 1024.0 * self.per_gib_second
            + totals.cpu_us as f64 / 1e6 * self.per_cpu_second
            + totals.bytes_out as f64 / 1e9 * self.per_gb_out
    }
}

fn mib_s(totals: &Totals) -> f64 {
    totals.memory_mib_us as f64 / 1e6
}

/// What is asked of the bill.
#[derive(Clone, Debug, Default)]
pub struct UsageQuery {
    /// From, milliseconds since 1970; brought forward to the begin of its
    /// minute, or of its hour when it is over two hours old.
    pub from_unix_ms: u64,
    /// Up to; brought to the end of its minute or hour, at most now.
    pub to_unix_ms: u64,
    /// Now.
    pub now_unix_ms: u64,
    /// This project only.
    pub project: Option<ProjectId>,
    /// This service only.
    pub service: Option<ServiceName>,
    /// Instances that are known to live now: they are billed up to now.
    pub alive: BTreeSet<InstanceId>,
}

impl UsageQuery {
    fn wants(&self, payer: &Payer) -> bool {
        let same = |wanted: &Option<ProjectId>| wanted.as_ref().is_none_or(|w| *w == payer.project);
        let service = self.service.as_ref().is_none_or(|w| *w == payer.service);
        same(&self.project) && service
    }

    fn overlaps(&self, period: Period) -> bool {
        period.from_ms < self.to_unix_ms && period.to_ms() > self.from_unix_ms
    }
}

/// What was used in a period and what it costs. `name` tells a project's
/// name; one that no longer has a name is called by its id.
#[must_use]
pub fn usage(
    fold: &Fold,
    query: &UsageQuery,
    prices: &Prices,
    name: impl Fn(&ProjectId) -> Option<ProjectName>,
) -> Usage {
    let mut open = Periods::default();
    for (id, life) in &fold.lives {
        if query.alive.contains(id) && query.wants(&life.payer) {
            let mut life = life.clone();
            let age = life.age_us(query.now_unix_ms.min(query.to_unix_ms));
            life.bill(age, 0, &mut open);
        }
    }
    let mut sums: BTreeMap<&Payer, Totals> = BTreeMap::new();
    let (mut from, mut to) = (query.from_unix_ms, query.to_unix_ms);
    for (period, payers) in fold.periods.0.iter().chain(&open.0) {
        if !query.overlaps(*period) {
            continue;
        }
        from = from.min(period.from_ms);
        to = to.max(period.to_ms());
        for (payer, totals) in payers.iter().filter(|(payer, _)| query.wants(payer)) {
            sums.entry(payer).or_default().add(totals);
        }
    }
    let row = |(payer, totals): (&Payer, Totals)| row(payer, &totals, prices, &name);
    let mut rows: Vec<_> = sums.into_iter().filter_map(row).collect();
    rows.sort_by(|a, b| (&a.project, &a.service).cmp(&(&b.project, &b.service)));
    let gaps = fold.gaps();
    let gaps = gaps.into_iter().filter(|(a, b)| *a < to && *b > from);
    Usage {
        from_unix_ms: from,
        to_unix_ms: to.min(query.now_unix_ms.max(from)),
        currency: prices.currency.clone(),
        rows,
        gaps: gaps.collect(),
    }
}

fn row(
    payer: &Payer,
    totals: &Totals,
    prices: &Prices,
    name: impl Fn(&ProjectId) -> Option<ProjectName>,
) -> Option<UsageRow> {
    let by_id = || format!("p{}", payer.project).parse().ok();
    Some(UsageRow {
        project: name(&payer.project).or_else(by_id)?,
        service: payer.service.to_string(),
        class: payer.class(),
        requests: totals.requests,
        cold_starts: totals.cold_starts,
        request_ms: totals.duration_us / 1000,
        bytes_in: totals.bytes_in,
        bytes_out: totals.bytes_out,
        memory_mib_s: mib_s(totals),
        cpu_s: totals.cpu_us as f64 / 1e6,
        cost: prices.cost(totals),
        fell_back: totals.fell_back.iter().cloned().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, InstanceEnd, InstanceSample, InstanceStart, Record, RequestEntry};
    use skiff_types::IsolationClass;

    const HOUR: u64 = 3_600_000;
    const T0: u64 = 500_000 * HOUR;

    fn fold(entries: Vec<Entry>) -> Fold {
        let mut fold = Fold::default();
        for (seq, entry) in (0..).zip(entries) {
            let crc = 0;
            fold.apply(1, &Record { seq, crc, entry });
        }
        fold.finish();
        fold
    }

    fn id(n: u32) -> InstanceId {
        InstanceId::from_parts(1, n)
    }

    fn start(n: u32, unix_ms: u64) -> Entry {
        Entry::InstanceStart(InstanceStart {
            instance: id(n),
            project: ProjectId::default_project(),
            service: "hello".parse().unwrap(),
            revision: 1,
            class: IsolationClass::Container,
            memory_mib: 1024,
            unix_ms,
        })
    }

    fn sample(n: u32, unix_ms: u64, age_s: u64, cpu_s: u64) -> Entry {
        Entry::InstanceSample(InstanceSample {
            instance: id(n),
            unix_ms,
            lifetime_us: age_s * 1_000_000,
            cpu_us: cpu_s * 1_000_000,
        })
    }

    fn end(n: u32, unix_ms: u64, age_s: u64, cpu_s: u64) -> Entry {
        Entry::InstanceEnd(InstanceEnd {
            instance: id(n),
            unix_ms,
            lifetime_us: age_s * 1_000_000,
            cpu_us: cpu_s * 1_000_000,
            reason: "idle".into(),
        })
    }

    fn request(unix_ms: u64) -> Entry {
        Entry::Request(RequestEntry {
            instance: Some(id(1)),
            project: ProjectId::default_project(),
            service: "hello".parse().unwrap(),
            revision: 1,
            class: IsolationClass::Container,
            start_unix_ms: unix_ms,
            duration_us: 5000,
            bytes_in: 10,
            bytes_out: 1_000_000_000,
            status: 200,
            cold: true,
        })
    }

    fn bill(fold: &Fold, from: u64, to: u64, alive: &[u32]) -> Usage {
        let query = UsageQuery {
            from_unix_ms: from,
            to_unix_ms: to,
            now_unix_ms: T0 + 100 * HOUR,
            alive: alive.iter().map(|n| id(*n)).collect(),
            ..UsageQuery::default()
        };
        let prices = Prices {
            currency: "EUR".into(),
            per_million_requests: 1_000_000.0,
            per_gib_second: 1.0,
            per_cpu_second: 10.0,
            per_gb_out: 100.0,
        };
        usage(fold, &query, &prices, |_| "default".parse().ok())
    }

    #[test]
    fn a_life_and_a_request_are_billed_whole() {
        let entries = vec![start(1, T0), request(T0 + 1000), end(1, T0 + 90_000, 90, 3)];
        let bill = bill(&fold(entries), T0, T0 + HOUR, &[]);
        let row = &bill.rows[0];
        assert_eq!((row.requests, row.cold_starts, row.request_ms), (1, 1, 5));
        assert!((row.memory_mib_s - 90.0 * 1024.0).abs() < 1e-6);
        assert!(
            (row.cost - (1.0 + 90.0 + 30.0 + 100.0)).abs() < 1e-6,
            "{row:?}"
        );
    }

    #[test]
    fn a_period_takes_its_own_part_of_a_life() {
        let day = 24 * 3600;
        let entries = vec![start(1, T0 + 60_000), end(1, T0 + 25 * HOUR, day, 0)];
        let fold = fold(entries);
        let of = |from, to| bill(&fold, from, to, &[]).rows[0].memory_mib_s / 1024.0;
        assert!((of(T0, T0 + HOUR) - (3600.0 - 60.0)).abs() < 1e-6);
        assert!((of(T0 + HOUR, T0 + 2 * HOUR) - 3600.0).abs() < 1e-6);
        assert!((of(T0, T0 + 30 * HOUR) - 24.0 * 3600.0).abs() < 1e-6);
    }

    #[test]
    fn a_life_without_an_end_is_billed_to_its_last_sample_or_to_now() {
        let entries = vec![start(1, T0), sample(1, T0 + 30_000, 30, 2)];
        let fold = fold(entries);
        let gone = &bill(&fold, T0, T0 + HOUR, &[]).rows[0];
        assert!((gone.memory_mib_s - 30.0 * 1024.0).abs() < 1e-6);
        let alive = &bill(&fold, T0, T0 + HOUR, &[1]).rows[0];
        assert!((alive.memory_mib_s - 3600.0 * 1024.0).abs() < 1e-6);
        assert!((alive.cpu_s - 2.0).abs() < 1e-6);
        assert_eq!(
            fold.open_lives().collect::<Vec<_>>(),
            [(id(1), 30_000_000, 2_000_000)]
        );
    }

    fn fell_back(n: u32, unix_ms: u64, why: &str) -> Entry {
        let Entry::InstanceStart(start) = start(n, unix_ms) else {
            unreachable!("a start")
        };
        let why = why.to_owned();
        Entry::FellBack { start, why }
    }

    #[test]
    fn a_fall_back_is_billed_with_its_reasons_in_its_time() {
        let hour = |n: u32| T0 + u64::from(n) * HOUR;
        let entries = vec![
            fell_back(1, hour(0), "no kernel"),
            end(1, hour(0) + 60_000, 60, 0),
            fell_back(2, hour(1), "no /dev/kvm"),
            end(2, hour(1) + 60_000, 60, 0),
            start(3, hour(5)),
            fell_back(4, hour(6), "too slow"),
        ];
        let fold = fold(entries);
        let of = |from, to, alive: &[u32]| bill(&fold, from, to, alive).rows[0].clone();
        let both = of(hour(0), hour(2), &[]);
        assert_eq!(both.fell_back, ["no /dev/kvm", "no kernel"]);
        assert!((both.memory_mib_s - 120.0 * 1024.0).abs() < 1e-6);
        assert_eq!(of(hour(1), hour(2), &[]).fell_back, ["no /dev/kvm"]);
        assert_eq!(of(hour(5), hour(6), &[3]).fell_back, [""; 0]);
        // One that lives is told of before it is sampled.
        assert_eq!(of(hour(6), hour(7), &[4]).fell_back, ["too slow"]);
    }

    #[test]
    fn reasons_have_a_bound_whatever_their_order() {
        let bill_of = |numbers: &mut dyn Iterator<Item = u32>| {
            let lives = numbers.flat_map(|n| {
                [
                    fell_back(n, T0, &format!("reason {n:02}")),
                    end(n, T0 + 1000, 1, 0),
                ]
            });
            bill(&fold(lives.collect()), T0, T0 + HOUR, &[]).rows[0]
                .fell_back
                .clone()
        };
        let up = bill_of(&mut (1..=20));
        assert_eq!(up.len(), 8);
        assert_eq!(up, bill_of(&mut (1..=20).rev()));
    }

    #[test]
    fn a_clock_that_jumps_never_bills_twice() {
        let entries = vec![
            start(1, T0),
            sample(1, T0 + HOUR, 30, 2),
            sample(1, T0 + 10_000, 40, 2),
            end(1, T0 + 5000, 50, 2),
        ];
        let bill = bill(&fold(entries), 0, T0 + 2 * HOUR, &[]);
        assert!((bill.rows[0].memory_mib_s - 50.0 * 1024.0).abs() < 1e-6);
    }

    #[test]
    fn a_crash_of_the_machine_is_a_gap_and_one_of_the_server_is_none() {
        let server = |unix_ms, boot| Entry::ServerStart { unix_ms, boot };
        for (boot, gaps) in [(7, vec![]), (8, vec![(T0 + 1000, T0 + 9000)])] {
            let mut fold = Fold::default();
            let mut apply = |writer, seq, entry| {
                fold.apply(writer, &Record { seq, crc: 0, entry });
            };
            apply(1, 0, server(T0, 7));
            apply(1, 1, start(1, T0 + 1000));
            apply(2, 0, server(T0 + 9000, boot));
            assert_eq!(bill(&fold, T0, T0 + HOUR, &[]).gaps, gaps);
        }
    }

    #[test]
    fn an_absurd_age_ends_the_work_early() {
        let mut absurd = vec![start(1, T0)];
        absurd.push(Entry::InstanceSample(InstanceSample {
            instance: id(1),
            unix_ms: u64::MAX,
            lifetime_us: u64::MAX,
            cpu_us: u64::MAX,
        }));
        let fold = fold(absurd);
        assert!(fold.periods.0.len() < 100_000);
    }
}
