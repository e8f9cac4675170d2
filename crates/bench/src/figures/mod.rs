//! The groups of figures, and the run of those that are wanted.

mod burst;
mod cold;
mod events;
mod gateway;
mod lambda;
mod overload;
mod placements;
mod pull;
mod replay;
mod restart;
mod scale;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use anyhow::ensure;

use crate::context::Context;
use crate::report::{Figure, Report, Spec};
use crate::time::now;

/// Figures that are taken together.
#[derive(Clone, Copy, Debug)]
struct Group {
    name: &'static str,
    /// What it has to give.
    specs: &'static [Spec],
    take: fn(&Context, &mut Report) -> anyhow::Result<()>,
}

const GROUPS: &[Group] = &[
    Group {
        name: "gateway",
        specs: gateway::SPECS,
        take: gateway::take,
    },
    Group {
        name: "cold",
        specs: cold::SPECS,
        take: cold::take,
    },
    Group {
        name: "burst",
        specs: burst::SPECS,
        take: burst::take,
    },
    Group {
        name: "placements",
        specs: placements::SPECS,
        take: placements::take,
    },
    Group {
        name: "scale",
        specs: scale::SPECS,
        take: scale::take,
    },
    Group {
        name: "pull",
        specs: pull::SPECS,
        take: pull::take,
    },
    Group {
        name: "overload",
        specs: overload::SPECS,
        take: overload::take,
    },
    Group {
        name: "restart",
        specs: restart::SPECS,
        take: restart::take,
    },
];

/// Those of functions.
const LAMBDA: &[Group] = &[
    Group {
        name: "warm",
        specs: lambda::WARM,
        take: lambda::warm,
    },
    Group {
        name: "rate",
        specs: lambda::RATE,
        take: lambda::rate,
    },
    Group {
        name: "cold",
        specs: lambda::COLD,
        take: lambda::cold,
    },
    Group {
        name: "burst",
        specs: lambda::AT_ONCE,
        take: lambda::at_once,
    },
    Group {
        name: "events",
        specs: events::RATES,
        take: events::rates,
    },
    Group {
        name: "crashes",
        specs: events::CRASHES,
        take: events::crashes,
    },
    Group {
        name: "replay",
        specs: replay::SPECS,
        take: replay::take,
    },
];

/// Takes the groups of `BENCH`, prints the table and writes
/// `target/bench.json`; whether nothing missed its bound.
///
/// # Errors
/// When a group is not known, or the file cannot be written.
pub fn run() -> anyhow::Result<bool> {
    take_all(GROUPS, "bench.json")
}

/// As [`run`], the groups of functions into `target/bench-lambda.json`.
///
/// # Errors
/// As those of [`run`].
pub fn run_lambda() -> anyhow::Result<bool> {
    take_all(LAMBDA, "bench-lambda.json")
}

fn take_all(all: &[Group], name: &str) -> anyhow::Result<bool> {
    let groups = wanted(all, std::env::var("BENCH").ok().as_deref())?;
    let file = file(name)?;
    let context = Context::new()?;
    let mut report = Report::default();
    let start = now();
    for group in groups {
        println!("{} (after {} s)", group.name, now().since(start).as_secs());
        take(&context, &group, &mut report);
        report.write(&file)?;
    }
    println!("\n{}", report.table());
    println!(
        "written to {} after {} s",
        file.display(),
        now().since(start).as_secs()
    );
    Ok(report.good())
}

fn wanted(all: &[Group], names: Option<&str>) -> anyhow::Result<Vec<Group>> {
    let names: Vec<&str> = names
        .unwrap_or_default()
        .split([',', ' '])
        .filter(|name| !name.is_empty())
        .collect();
    for name in &names {
        let known: Vec<&str> = all.iter().map(|group| group.name).collect();
        ensure!(
            known.contains(name),
            "BENCH={name}: it is one of {}",
            known.join(", ")
        );
    }
    let chosen = all
        .iter()
        .filter(|group| names.is_empty() || names.contains(&group.name));
    Ok(chosen.copied().collect())
}

/// `BENCH_OUT`, else of this name beside this binary's profile folder.
fn file(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BENCH_OUT") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).unwrap_or(&own);
    Ok(target.join(name))
}

/// Takes a group; what it did not give is null, with the reason.
fn take(context: &Context, group: &Group, report: &mut Report) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (group.take)(context, report)));
    let reason = match outcome {
        Ok(Ok(())) => "it was not taken".to_owned(),
        Ok(Err(error)) => format!("it could not be taken: {error:#}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("it could not be taken: {}", text.unwrap_or("a panic"))
        }
    };
    for spec in group.specs {
        if !report.has(spec.name) {
            report.broken = true;
            report.add(Figure::missing(*spec, &reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pick_groups() {
        let names = |text| wanted(GROUPS, text).map(|groups| groups.len());
        assert_eq!(names(None).unwrap(), GROUPS.len());
        assert_eq!(names(Some("gateway,cold")).unwrap(), 2);
        assert!(names(Some("gatewy")).is_err());
    }

    #[test]
    fn no_figure_has_two_places() {
        let mut names: Vec<&str> = GROUPS
            .iter()
            .chain(LAMBDA)
            .flat_map(|group| group.specs)
            .map(|spec| spec.name)
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
