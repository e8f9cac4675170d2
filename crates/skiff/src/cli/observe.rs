//! Logs, cold starts and the bill.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use http::Method;
use skiff_base::{Clock as _, Date};
use skiff_types::api::{ColdStart, LogLine, Usage, UsageCheck, UsageRow};

use super::args::{self, Output};
use super::client::full;
use super::{Scope, output, segment};

/// `skiff logs`.
pub async fn logs(scope: &Scope, args: args::Logs) -> anyhow::Result<()> {
    let mut path = scope.path(&format!(
        "services/{}/logs?tail={}&follow={}",
        args.name, args.tail, args.follow
    ));
    if let Some(revision) = &args.revision {
        path += &format!("&revision={}", segment(revision));
    }
    if let Some(instance) = &args.instance {
        path += &format!("&instance={}", segment(instance));
    }
    let mut lines = scope
        .client
        .stream::<LogLine>(Method::GET, &path, "application/json", full(""))
        .await?;
    while let Some(line) = lines.next().await? {
        match scope.output {
            Output::Json => output::line(serde_json::to_string(&line)?),
            Output::Text => {
                let instance = line.instance.to_string();
                output::line(format!(
                    "{} {} {:6} {}",
                    output::time(line.unix_ms),
                    &instance[10..],
                    line.stream,
                    line.text
                ));
            }
        }
    }
    Ok(())
}

/// `skiff trace`.
pub async fn trace(scope: &Scope, args: args::Trace) -> anyhow::Result<()> {
    let mut path = scope.path(&format!("traces?limit={}", args.last));
    if let Some(name) = &args.name {
        path += &format!("&service={name}");
    }
    let starts: Vec<ColdStart> = scope.client.get(&path).await?;
    output::show(scope.output, &starts, |starts| {
        for start in starts {
            output::line(format!(
                "{}  {}  {} ({})  {}",
                output::time(start.unix_ms),
                start.revision,
                start.instance,
                start.class.as_str(),
                output::millis(start.total_us)
            ));
            for (phase, us) in &start.phases_us {
                output::line(format!("  {phase:<12}{:>12}", output::millis(*us)));
            }
        }
    })
}

/// `skiff usage`.
pub async fn usage(scope: &Scope, args: args::Usage) -> anyhow::Result<()> {
    let now = skiff_base::SystemClock.unix_ms();
    let from = point(&args.since, now)?;
    let to = point(&args.until, now)?;
    if args.check {
        let path = format!("/v1/usage/check?from_unix_ms={from}&to_unix_ms={to}");
        let check: UsageCheck = scope.client.call(Method::POST, &path, None::<&()>).await?;
        output::show(scope.output, &check, |check| {
            for row in &check.checks {
                output::line(format!(
                    "{:4}  {}: {}",
                    if row.ok { "ok" } else { "FAIL" },
                    row.name,
                    row.detail
                ));
            }
        })?;
        if !check.ok {
            bail!("the ledger and its sources differ");
        }
        return Ok(());
    }
    let mut path = format!("/v1/usage?from_unix_ms={from}&to_unix_ms={to}");
    if !args.all_projects {
        path += &format!("&project={}", scope.project);
    }
    if let Some(name) = &args.name {
        path += &format!("&service={name}");
    }
    let usage: Usage = scope.client.get(&path).await?;
    output::show(scope.output, &usage, show_usage)
}

fn show_usage(usage: &Usage) {
    let row = |r: &UsageRow| {
        vec![
            r.project.to_string(),
            r.service.clone(),
            r.class.as_str().to_owned(),
            r.requests.to_string(),
            r.cold_starts.to_string(),
            format!("{:.3}", r.memory_mib_s / 1024.0),
            format!("{:.3}", r.cpu_s),
            output::bytes(r.bytes_out),
            format!("{:.6} {}", r.cost, usage.currency),
        ]
    };
    let rows: Vec<_> = usage.rows.iter().map(row).collect();
    output::table(
        &[
            "PROJECT", "SERVICE", "CLASS", "REQUESTS", "COLD", "GIB-S", "CPU-S", "OUT", "COST",
        ],
        &rows,
    );
    let total: f64 = usage.rows.iter().map(|row| row.cost).sum();
    output::line(format!("total {total:.6} {}", usage.currency));
    for (why, services) in fall_backs(&usage.rows) {
        output::line(format!(
            "in a container for want of virtual machines: {services} ({why})"
        ));
    }
    for (from, to) in &usage.gaps {
        output::line(format!(
            "nothing is known from {} to {}",
            output::time(*from),
            output::time(*to)
        ));
    }
}

/// Each reason for a class that was not asked for, and the services it held of.
fn fall_backs(rows: &[UsageRow]) -> BTreeMap<&str, String> {
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    for row in rows {
        for why in &row.fell_back {
            let services = found.entry(why).or_default();
            if !services.is_empty() {
                services.push_str(", ");
            }
            services.push_str(&format!("{}/{}", row.project, row.service));
        }
    }
    found
}

/// A point in time: `12h` ago, or a UTC date.
fn point(text: &str, now: u64) -> anyhow::Result<u64> {
    let refuse =
        || format!("`{text}` is not a time: 30m, 12h, 7d or a date as 2026-01-31 is expected");
    if let [year, month, day] = text.split('-').collect::<Vec<_>>()[..] {
        let parse = |part: &str| part.parse::<u64>().with_context(refuse);
        let date = Date {
            year: parse(year)?,
            month: parse(month)?,
            day: parse(day)?,
        };
        return date
            .days()
            .map(|days| days * 86_400_000)
            .with_context(refuse);
    }
    let unit = text.chars().last().with_context(refuse)?;
    let scale = match unit {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => bail!(refuse()),
    };
    let count: u64 = text[..text.len() - 1].parse().with_context(refuse)?;
    Ok(now.saturating_sub(count.saturating_mul(scale)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_while_ago_or_a_date() {
        assert_eq!(point("2h", 10_000_000).unwrap(), 2_800_000);
        assert_eq!(point("1970-01-02", 0).unwrap(), 86_400_000);
        assert_eq!(point("2024-02-29", 0).unwrap(), 1_709_164_800_000);
        for bad in ["", "x", "2024-02-30", "12", "5w", "1-1-1"] {
            assert!(point(bad, 0).is_err(), "{bad}");
        }
    }
}
