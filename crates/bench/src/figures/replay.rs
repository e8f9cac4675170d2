//! A replay of invocations as Azure's functions have them, signed and in open
//! loop: how many waited for an instance, how much longer than the function
//! itself they took, and how much of the instances' memory was not at work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::lambda::{RUST, image, server, shown};
use crate::api::Api;
use crate::context::{Context, at_once};
use crate::report::{Figure, Report, Spec};
use crate::signed::{Door, MEMORY_MIB};
use crate::stats::quantile;
use crate::time::{now, stretched, wait_until};
use crate::trace::{Invocation, MINUTES, PACE, Trace};

/// The whole trace.
const WHOLE: Duration = Duration::from_secs(MINUTES as u64 * 60 / PACE as u64);
/// More than are ever under way.
const CALLERS: usize = 128;
/// How long before an invocation is due its caller connects and signs.
const AHEAD: Duration = Duration::from_millis(500);
const TIMEOUT_S: u32 = 900;
/// Errors that are shown one by one.
const ERRORS_SHOWN: u32 = 3;
/// How long the bill may take to have the last request.
const BILLED: Duration = Duration::from_secs(60);

const COLD: Spec = shown("replay_cold_start_share", "");
const P50: Spec = shown("replay_slowdown_p50", "");
const P99: Spec = shown("replay_slowdown_p99", "");
const WASTED: Spec = shown("replay_memory_wasted_share", "");
const ERRORS: Spec = shown("replay_errors", "");
pub const SPECS: &[Spec] = &[COLD, P50, P99, WASTED, ERRORS];

/// What the server bills.
#[derive(Clone, Copy, Debug, Default)]
struct Bill {
    requests: u64,
    cold_starts: u64,
    memory_mib_s: f64,
}

/// What came of an invocation that was due: its response time since then.
#[derive(Debug)]
struct Outcome {
    one: Invocation,
    took: anyhow::Result<Duration>,
}

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let trace = match Trace::draw(context) {
        Ok(trace) => trace.first(context.shortened(WHOLE)),
        Err(error) => {
            for spec in SPECS {
                let reason = format!("OrcBench draws no trace: {error:#}");
                report.add(Figure::missing(*spec, reason));
            }
            return Ok(());
        }
    };
    let server = server(context, &[], &[RUST]);
    let (api, door) = (Api::of(&server), Door::of(&server)?);
    let names = functions(&door, trace.functions)?;
    let before = Bill::of(&api)?;
    let outcomes = replay(&door, &names, &trace)?;
    let billed = before.grown(&api, outcomes.iter().filter(|it| it.took.is_ok()).count())?;
    let asked = trace.described();
    println!("    {asked}; {billed:?}");
    for (spec, value) in figures(&outcomes, billed) {
        let figure = Figure::absolute(spec, vec![value]);
        report.add(figure.because(format!("shown only: {asked}")));
    }
    Ok(())
}

fn functions(door: &Door, count: usize) -> anyhow::Result<Vec<String>> {
    let named = (0..count).map(|seed| {
        let name = format!("replay-{seed}");
        door.caller(seed)?
            .create_with(&name, &image(RUST), TIMEOUT_S)?;
        Ok(name)
    });
    named.collect()
}

fn figures(outcomes: &[Outcome], billed: Bill) -> [(Spec, f64); 5] {
    let (mut slowdowns, mut worked, mut errors) = (Vec::new(), Duration::ZERO, 0);
    for Outcome { one, took } in outcomes {
        match took {
            Ok(took) => {
                slowdowns.push(took.as_secs_f64() / one.service.as_secs_f64());
                worked += one.service;
            }
            Err(error) => {
                errors += 1;
                if errors <= ERRORS_SHOWN {
                    println!("    {error:#}");
                }
            }
        }
    }
    let worked_mib_s = worked.as_secs_f64() * f64::from(MEMORY_MIB);
    [
        (COLD, billed.cold_starts as f64 / billed.requests as f64),
        (P50, quantile(&slowdowns, 500)),
        (P99, quantile(&slowdowns, 990)),
        (WASTED, 1.0 - worked_mib_s / billed.memory_mib_s),
        (ERRORS, f64::from(errors)),
    ]
}

/// Invokes what the trace has when it is due, and waits until all have ended.
fn replay(door: &Door, names: &[String], trace: &Trace) -> anyhow::Result<Vec<Outcome>> {
    let next = &AtomicUsize::new(0);
    let start = now().plus(AHEAD);
    let taken = at_once((0..CALLERS).map(|_| {
        move || {
            let mut answers = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(one) = trace.invocations.get(index) else {
                    return Ok(answers);
                };
                let due = start.plus(one.due).as_nanos();
                let seed = names.len() + index;
                let took = invoke(door, seed, &names[one.function], *one, due);
                answers.push(Outcome { one: *one, took });
            }
        }
    }))?;
    Ok(taken.into_iter().flatten().collect())
}

/// By a caller of its own, which is ready when it is due.
fn invoke(
    door: &Door,
    seed: usize,
    name: &str,
    one: Invocation,
    due_ns: u64,
) -> anyhow::Result<Duration> {
    let until = |ns: u64| Duration::from_nanos(ns.saturating_sub(now().as_nanos()));
    std::thread::sleep(until(due_ns).saturating_sub(AHEAD));
    let mut caller = door.caller(seed)?;
    let event = format!(r#"{{"sleep_us":{}}}"#, one.service.as_micros());
    let request = caller.sign_invoke(name, &event)?;
    std::thread::sleep(until(due_ns));
    caller
        .invoke_signed(&request, &event)
        .with_context(|| name.to_owned())?;
    Ok(Duration::from_nanos(
        now().as_nanos().saturating_sub(due_ns),
    ))
}

impl Bill {
    /// Of all so far; instances are billed up to now.
    fn of(api: &Api) -> anyhow::Result<Self> {
        let told: Value = serde_json::from_str(&api.call("GET", "/v1/usage", "")?)?;
        let rows = told["rows"].as_array().context("the bill has no rows")?;
        rows.iter().try_fold(Self::default(), |sum, row| {
            let count = |name: &str| row[name].as_u64().with_context(|| format!("no {name}"));
            let memory = row["memory_mib_s"].as_f64().context("no memory_mib_s")?;
            Ok(Self {
                requests: sum.requests + count("requests")?,
                cold_starts: sum.cold_starts + count("cold_starts")?,
                memory_mib_s: sum.memory_mib_s + memory,
            })
        })
    }

    /// What came to it, once that has as many requests as were answered.
    fn grown(self, api: &Api, answered: usize) -> anyhow::Result<Self> {
        let mut grown = Self::default();
        wait_until("the bill has each request", stretched(BILLED), || {
            let now = Self::of(api)?;
            grown = Self {
                requests: now.requests - self.requests,
                cold_starts: now.cold_starts - self.cold_starts,
                memory_mib_s: now.memory_mib_s - self.memory_mib_s,
            };
            Ok(grown.requests >= answered as u64)
        })?;
        Ok(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_what_was_answered() {
        let outcome = |took_ms: Option<u64>| Outcome {
            one: Invocation {
                due: Duration::ZERO,
                function: 0,
                service: Duration::from_millis(100),
            },
            took: took_ms
                .map(Duration::from_millis)
                .context("it was not answered"),
        };
        let outcomes = [Some(150), Some(150), None].map(outcome);
        let billed = Bill {
            requests: 4,
            cold_starts: 1,
            memory_mib_s: f64::from(MEMORY_MIB),
        };
        let values = figures(&outcomes, billed).map(|(_, value)| value);
        for (value, expected) in values.into_iter().zip([0.25, 1.5, 1.5, 0.8, 1.0]) {
            assert!((value - expected).abs() < 1e-9, "{values:?}");
        }
    }
}
