//! A figure, the table and the file.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::stats::{self, Interval};

/// What a figure may not go beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Shown, not judged.
    None,
}

impl Bound {
    /// Fails only what lies wholly beyond.
    fn holds(self, interval: Interval) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(interval.low <= bound),
            Self::AtLeast(bound) => Some(interval.high >= bound),
            Self::None => None,
        }
    }

    fn text(self) -> Option<String> {
        match self {
            Self::AtMost(bound) => Some(format!("<= {bound}")),
            Self::AtLeast(bound) => Some(format!(">= {bound}")),
            Self::None => None,
        }
    }
}

/// A figure before it is taken: its name, unit and bound.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub unit: &'static str,
    pub bound: Bound,
    pub peer: Option<&'static str>,
}

/// A figure as taken.
#[derive(Clone, Debug)]
pub struct Figure {
    pub spec: Spec,
    samples: Vec<f64>,
    peer_samples: Vec<f64>,
    /// Of the ratio, or of the value where there is no peer.
    interval: Option<Interval>,
    reason: Option<String>,
    phases: Vec<Phase>,
}

/// A part of what a figure measures, in its unit.
#[derive(Clone, Debug)]
pub struct Phase {
    pub name: String,
    pub samples: Vec<f64>,
    pub peer_samples: Vec<f64>,
}

impl Phase {
    fn json(&self) -> Value {
        let of = |samples: &[f64]| {
            let known = !samples.is_empty();
            let p50 = known.then(|| stats::median(samples));
            (known.then(|| stats::mean(samples)), p50)
        };
        let ((mean, p50), (peer_mean, peer_p50)) = (of(&self.samples), of(&self.peer_samples));
        json!({
            "phase": self.name,
            "mean": mean,
            "p50": p50,
            "peer_mean": peer_mean,
            "peer_p50": peer_p50,
        })
    }

    /// As a figure's row, of means.
    fn row(&self, unit: &str) -> String {
        let mean = |samples: &[f64]| number((!samples.is_empty()).then(|| stats::mean(samples)));
        format!(
            "  {:<40} {:>10} {:>10} {unit:>6} mean",
            self.name,
            mean(&self.samples),
            mean(&self.peer_samples),
        )
    }
}

impl Figure {
    /// The ratio of two medians.
    pub fn ratio(spec: Spec, samples: Vec<f64>, peer_samples: Vec<f64>) -> Self {
        let interval = stats::ratio_interval(&samples, &peer_samples);
        Self {
            interval: Some(interval),
            reason: shown_only(spec),
            spec,
            samples,
            peer_samples,
            phases: Vec::new(),
        }
    }

    /// A median of its own.
    pub fn absolute(spec: Spec, samples: Vec<f64>) -> Self {
        Self::absolute_beside(spec, samples, Vec::new())
    }

    /// A median of its own that is judged alone; the peer's is shown.
    pub fn absolute_beside(spec: Spec, samples: Vec<f64>, peer_samples: Vec<f64>) -> Self {
        let interval = stats::median_interval(&samples);
        Self {
            interval: Some(interval),
            reason: shown_only(spec),
            spec,
            samples,
            peer_samples,
            phases: Vec::new(),
        }
    }

    /// Taken, and not judged: why not.
    pub fn unjudged(mut self, reason: impl Into<String>) -> Self {
        self.interval = None;
        self.reason = Some(reason.into());
        self
    }

    /// With why it is shown and not judged.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// With the parts that it consists of.
    pub fn of_phases(mut self, phases: Vec<Phase>) -> Self {
        self.phases = phases;
        self
    }

    /// Whether the peer is wholly beyond this figure's bound.
    pub fn peer_misses(&self) -> bool {
        let peers = stats::median_interval(&self.peer_samples);
        !self.peer_samples.is_empty() && self.spec.bound.holds(peers) == Some(false)
    }

    /// Not taken.
    pub fn missing(spec: Spec, reason: impl Into<String>) -> Self {
        Self {
            spec,
            samples: Vec::new(),
            peer_samples: Vec::new(),
            interval: None,
            reason: Some(reason.into()),
            phases: Vec::new(),
        }
    }

    pub fn pass(&self) -> Option<bool> {
        let interval = self.interval?;
        // An interval of nothing says nothing.
        (interval.low.is_finite() && interval.high.is_finite())
            .then(|| self.spec.bound.holds(interval))
            .flatten()
    }

    fn value(&self) -> Option<f64> {
        (!self.samples.is_empty()).then(|| stats::median(&self.samples))
    }

    fn peer_value(&self) -> Option<f64> {
        (!self.peer_samples.is_empty()).then(|| stats::median(&self.peer_samples))
    }

    fn ratio_value(&self) -> Option<f64> {
        Some(self.value()? / self.peer_value()?)
    }

    fn json(&self) -> Value {
        let pass = self.pass();
        let mut value = json!({
            "figure": self.spec.name,
            "value": self.value(),
            "unit": self.spec.unit,
            "bound": self.spec.bound.text(),
            "peer": self.spec.peer,
            "peer_value": self.peer_value(),
            "ratio": self.ratio_value(),
            "samples": self.samples,
            "peer_samples": self.peer_samples,
            "pass": pass,
        });
        if pass.is_none() {
            let reason = self.reason.as_deref().unwrap_or("too few samples");
            value["reason"] = json!(reason);
        }
        if !self.phases.is_empty() {
            let phases: Vec<Value> = self.phases.iter().map(Phase::json).collect();
            value["phases"] = json!(phases);
        }
        value
    }
}

fn shown_only(spec: Spec) -> Option<String> {
    (spec.bound == Bound::None).then(|| "shown only: it has no bound".to_owned())
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
    /// Something could not be taken that should have been.
    pub broken: bool,
}

impl Report {
    pub fn add(&mut self, figure: Figure) {
        println!("  {}", row(&figure));
        self.figures.push(figure);
    }

    pub fn has(&self, name: &str) -> bool {
        self.figures.iter().any(|figure| figure.spec.name == name)
    }

    /// Whether nothing failed.
    pub fn good(&self) -> bool {
        !self.broken
            && self
                .figures
                .iter()
                .all(|figure| figure.pass() != Some(false))
    }

    pub fn table(&self) -> String {
        let mut text = format!("{}\n", header());
        for figure in &self.figures {
            text.push_str(&row(figure));
            text.push('\n');
            for phase in &figure.phases {
                text.push_str(&phase.row(figure.spec.unit));
                text.push('\n');
            }
        }
        text
    }

    /// Writes the file as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let list: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        let text = serde_json::to_string_pretty(&list)?;
        let beside = path.with_extension("json.new");
        std::fs::write(&beside, text + "\n")
            .and_then(|()| std::fs::rename(&beside, path))
            .with_context(|| path.display().to_string())
    }
}

fn header() -> String {
    format!(
        "{:<42} {:>10} {:>10} {:>6} {:<8} {:>15} {:<8} result",
        "figure", "value", "peer", "unit", "ratio", "95 % interval", "bound"
    )
}

fn row(figure: &Figure) -> String {
    let mut text = format!(
        "{:<42} {:>10} {:>10} {:>6} {:<8}",
        figure.spec.name,
        number(figure.value()),
        number(figure.peer_value()),
        figure.spec.unit,
        number(figure.ratio_value()),
    );
    let interval = figure.interval.map_or_else(String::new, |interval| {
        format!(
            "{}–{}",
            number(Some(interval.low)),
            number(Some(interval.high))
        )
    });
    let result = match (figure.pass(), &figure.reason) {
        (Some(true), _) => "ok".to_owned(),
        (Some(false), _) => "MISSED".to_owned(),
        (None, reason) => format!("null: {}", reason.as_deref().unwrap_or("too few samples")),
    };
    let bound = figure.spec.bound.text().unwrap_or_default();
    let _infallible = write!(text, " {interval:>15} {bound:<8} {result}");
    text
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Spec = Spec {
        name: "some",
        unit: "ms",
        bound: Bound::AtMost(1.0),
        peer: Some("other"),
    };

    #[test]
    fn what_its_peer_misses_can_be_left_unjudged() {
        let beside = |peer: f64| Figure::absolute_beside(SPEC, vec![3.0; 4], vec![peer; 4]);
        assert!(!beside(0.9).peer_misses());
        assert!(beside(1.1).peer_misses());
        assert!(!Figure::absolute(SPEC, vec![3.0; 4]).peer_misses());
        assert_eq!(beside(1.1).pass(), Some(false));
        let unjudged = beside(1.1).unjudged("the peer misses it");
        assert_eq!(unjudged.pass(), None);
        let value = unjudged.json();
        assert_eq!(value["value"], 3.0);
        assert_eq!(value["reason"], "the peer misses it");
    }

    #[test]
    fn fails_only_when_the_interval_lies_wholly_beyond() {
        let of = |samples: [f64; 4]| Figure::ratio(SPEC, samples.to_vec(), vec![1.0; 4]).pass();
        assert_eq!(of([0.5, 0.6, 0.7, 0.8]), Some(true));
        assert_eq!(of([0.5, 1.6, 1.7, 0.8]), Some(true));
        assert_eq!(of([1.5, 1.6, 1.7, 1.8]), Some(false));
        let spec = Spec {
            bound: Bound::AtLeast(1.0),
            ..SPEC
        };
        assert_eq!(
            Figure::ratio(spec, vec![0.5; 3], vec![1.0; 3]).pass(),
            Some(false)
        );
    }

    #[test]
    fn what_was_not_taken_is_neither_met_nor_missed() {
        let mut report = Report::default();
        report.add(Figure::missing(SPEC, "other is not there"));
        assert!(report.good());
        let value = report.figures[0].json();
        assert!(value["pass"].is_null() && value["value"].is_null());
        assert_eq!(value["reason"], "other is not there");
        report.add(Figure::ratio(SPEC, vec![2.0; 3], vec![1.0; 3]));
        assert!(!report.good());
        assert!(report.figures[1].json().get("reason").is_none());
    }

    #[test]
    fn phases_have_their_mean_and_median() {
        let phase = Phase {
            name: "kernel".to_owned(),
            samples: vec![1.0, 2.0, 6.0],
            peer_samples: Vec::new(),
        };
        let figure = Figure::absolute(SPEC, vec![9.0; 3]).of_phases(vec![phase]);
        let phase = &figure.json()["phases"][0];
        assert_eq!(phase["phase"], "kernel");
        assert_eq!(
            (phase["mean"].as_f64(), phase["p50"].as_f64()),
            (Some(3.0), Some(2.0))
        );
        assert!(phase["peer_mean"].is_null() && phase["peer_p50"].is_null());
        let mut report = Report::default();
        report.add(figure);
        assert!(report.table().contains("kernel"));
    }

    #[test]
    fn the_file_has_the_form_that_is_promised() {
        let value = Figure::ratio(SPEC, vec![0.5; 3], vec![1.0; 3]).json();
        let keys: Vec<&str> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut expected = [
            "figure",
            "value",
            "unit",
            "bound",
            "peer",
            "peer_value",
            "ratio",
            "samples",
            "peer_samples",
            "pass",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
