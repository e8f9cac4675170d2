//! The server's metrics in Prometheus' text format.

use skiff_base::prometheus::{head, value};
use skiff_gateway::MetricsSnapshot;

/// All metrics.
pub fn text(gateway: &MetricsSnapshot, instances: usize, log_lines_dropped: u64) -> String {
    let mut out = String::new();
    let g = gateway;
    head(
        &mut out,
        "skiff_answers_total",
        "counter",
        "Answers by class of status.",
    );
    for (class, count) in g.answers_by_class.iter().enumerate().skip(1) {
        value(
            &mut out,
            "skiff_answers_total",
            &format!("{{class=\"{class}xx\"}}"),
            *count,
        );
    }
    head(
        &mut out,
        "skiff_rejected_total",
        "counter",
        "Requests that reached no instance, by reason.",
    );
    for (reason, count) in [
        ("queue_full", g.rejected_queue_full),
        ("queue_deadline", g.rejected_queue_deadline),
        ("overload", g.rejected_overload),
        ("quota", g.rejected_quota),
        ("no_route", g.rejected_no_route),
        ("bad_request", g.rejected_bad_request),
        ("refused", g.rejected_refused),
        ("connections", g.rejected_connections),
    ] {
        value(
            &mut out,
            "skiff_rejected_total",
            &format!("{{reason=\"{reason}\"}}"),
            count,
        );
    }
    for (name, help, count) in [
        (
            "skiff_client_gone_total",
            "Requests whose client left before the answer began.",
            g.client_gone,
        ),
        (
            "skiff_timeouts_total",
            "Requests that ran out of their time.",
            g.timeouts,
        ),
        (
            "skiff_retries_total",
            "Requests sent again, no byte of which was processed.",
            g.retries,
        ),
        (
            "skiff_dead_instances_total",
            "Instances taken out of rotation because they do not answer.",
            g.dead_instances,
        ),
        (
            "skiff_cold_starts_total",
            "Requests that waited for an instance to start.",
            g.cold_starts,
        ),
        (
            "skiff_upstream_connects_total",
            "Connections made to instances.",
            g.upstream_connects,
        ),
        (
            "skiff_access_lines_dropped_total",
            "Access log lines that found the buffer full.",
            g.access_lines_dropped,
        ),
        (
            "skiff_log_lines_dropped_total",
            "Instances' log lines lost to a full or slow disk.",
            log_lines_dropped,
        ),
    ] {
        head(&mut out, name, "counter", help);
        value(&mut out, name, "", count);
    }
    for (name, help, count) in [
        ("skiff_connections", "Client connections.", g.connections),
        (
            "skiff_waiting_requests",
            "Requests waiting for a slot.",
            g.waiting,
        ),
        (
            "skiff_in_flight_requests",
            "Requests in instances.",
            g.in_flight,
        ),
        (
            "skiff_instances",
            "Instances that are not gone.",
            u64::try_from(instances).unwrap_or(u64::MAX),
        ),
    ] {
        head(&mut out, name, "gauge", help);
        value(&mut out, name, "", count);
    }
    out
}
