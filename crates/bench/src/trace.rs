//! Invocations as OrcBench draws them from its models of Azure's functions of
//! 2019 (R. Hancock et al., "OrcBench: A Representative Serverless Benchmark",
//! CLOUD'22; the data: M. Shahrad et al., "Serverless in the Wild", ATC'20).

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::context::Context;
use crate::sample_image::text;

const PACKAGE: &str = "orcbench==0.1.4";
/// Minutes that are drawn: as many as its models were made of.
pub const MINUTES: u32 = 30;
/// The share of Azure's functions: of its kinds of them those that have at
/// least one function then, some tens in all.
const SHARE: &str = "0.006";
const SEED: &str = "1";
/// How many times as fast as in the trace everything is, service times too.
pub const PACE: u32 = 15;
/// A service time is drawn from a normal distribution, which has negative ones.
const SERVICE_MIN: Duration = Duration::from_millis(1);
/// What OrcBench writes before the first invocation, in the same line.
const HEADER: &str = "Logical Time Clock (minutes), Function ID, Runtime (ms), Model";

/// One of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// When it is due, since the trace's begin.
    pub due: Duration,
    pub function: usize,
    /// How long the function itself takes for it, in whole microseconds.
    pub service: Duration,
}

/// Invocations in the order in which they are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Their functions are numbered from 0 to here.
    pub functions: usize,
    pub invocations: Vec<Invocation>,
}

impl Trace {
    /// Fetches OrcBench from the package index and lets it draw.
    ///
    /// # Errors
    /// When it cannot be had, or draws what is not understood.
    pub fn draw(context: &Context) -> anyhow::Result<Self> {
        let folder = text(&context.home().join("orcbench"));
        context.run("/usr/bin/python3", &["-m", "venv", &folder])?;
        let pip = format!("{folder}/bin/pip");
        let install = ["install", "--quiet", "--disable-pip-version-check", PACKAGE];
        context.run(&pip, &install)?;
        let out = format!("{folder}/trace");
        let minutes = MINUTES.to_string();
        let what = ["trace", "--scale", SHARE, "--seed", SEED];
        let how_long = ["--runtime", minutes.as_str(), "--out", &out];
        let orcbench = format!("{folder}/bin/orcbench");
        context.run(&orcbench, &[&what[..], &how_long].concat())?;
        Self::parse(&std::fs::read_to_string(&out)?)
    }

    /// Those that are due within a while.
    pub fn first(mut self, window: Duration) -> Self {
        self.invocations.retain(|one| one.due < window);
        let functions = self.invocations.iter().map(|one| one.function + 1);
        self.functions = functions.max().unwrap_or(0);
        self
    }

    /// What it asks, in words.
    pub fn described(&self) -> String {
        let service: Duration = self.invocations.iter().map(|one| one.service).sum();
        let last = self.invocations.last().map_or(service, |one| one.due);
        format!(
            "{} invocations of {} functions by OrcBench, {PACE} times as fast, {:.1} at work in the mean",
            self.invocations.len(),
            self.functions,
            service.as_secs_f64() / last.as_secs_f64(),
        )
    }

    /// Of what OrcBench wrote, at [`PACE`].
    fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.strip_prefix(HEADER).context("it has another header")?;
        let mut known = HashMap::new();
        let mut invocations = Vec::new();
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let one = invocation(line, &mut known);
            invocations.push(one.with_context(|| format!("it has a line {line:?}"))?);
        }
        invocations.sort_by_key(|one| one.due);
        ensure!(!invocations.is_empty(), "it has no invocations");
        Ok(Self {
            functions: known.len(),
            invocations,
        })
    }
}

fn invocation<'a>(
    line: &'a str,
    known: &mut HashMap<&'a str, usize>,
) -> anyhow::Result<Invocation> {
    let mut words = line.split(", ");
    let mut word = || words.next().context("it ends early");
    let minutes: f64 = word()?.parse()?;
    let name = word()?;
    let service_ms: f64 = word()?.parse()?;
    let due = Duration::try_from_secs_f64(minutes * 60.0)? / PACE;
    let service = Duration::try_from_secs_f64(service_ms.max(0.0) / 1e3)? / PACE;
    let micros = u64::try_from(service.max(SERVICE_MIN).as_micros())?;
    let next = known.len();
    Ok(Invocation {
        due,
        function: *known.entry(name).or_insert(next),
        service: Duration::from_micros(micros),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lines: &str) -> anyhow::Result<Trace> {
        Trace::parse(&format!("{HEADER}{lines}"))
    }

    #[test]
    fn a_trace_is_read_at_its_pace() {
        let lines = "0.5, a, 3000.0015, 0-model\n0.25, b, -7.5, 1-model\n1, a, 30, 0-model\n";
        let one = |due_s, function, service_us| Invocation {
            due: Duration::from_secs(due_s),
            function,
            service: Duration::from_micros(service_us),
        };
        let trace = written(lines).unwrap();
        let all = vec![one(1, 1, 1000), one(2, 0, 200_000), one(4, 0, 2000)];
        assert_eq!((trace.functions, &trace.invocations), (2, &all));
        assert!(trace.described().ends_with("0.1 at work in the mean"));
        let first = trace.first(Duration::from_secs(2));
        assert_eq!(first.invocations, all[..1]);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        assert!(Trace::parse("0.5, a, 3000, 0-model").is_err());
        for lines in [
            "",
            "0.5, a",
            "0.5, a, NaN!, 0-model",
            "-1, a, 5, m",
            "x, a, 5, m",
        ] {
            assert!(written(lines).is_err(), "{lines}");
        }
    }
}
