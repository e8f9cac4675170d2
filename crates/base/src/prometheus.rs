//! Metrics in Prometheus' text format ("Exposition formats").

use std::fmt::Write as _;

/// Adds a metric, whose values come next.
pub fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing into a String cannot fail.
    let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Adds a value of a metric with its labels, `{name="value"}` or none.
pub fn value(out: &mut String, name: &str, labels: &str, count: u64) {
    let _infallible = writeln!(out, "{name}{labels} {count}");
}

/// Adds a metric with its values, each behind its labels.
pub fn metric(out: &mut String, name: &str, kind: &str, help: &str, values: &[(&str, u64)]) {
    head(out, name, kind, help);
    for (labels, count) in values {
        value(out, name, labels, *count);
    }
}
