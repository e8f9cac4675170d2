use super::http::{Method, Request};
use crate::report::Metrics;

/// Counts a request, by the beginning of its path, as Firecracker's metrics
/// name it.
pub(super) fn count(metrics: &mut Metrics, request: &Request, is_done: bool) {
    let path = request.path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    let (group, names) = match request.method {
        Method::Get => ("get_api_requests", of_get(first)),
        Method::Put => ("put_api_requests", of_put(first)),
        Method::Patch => ("patch_api_requests", of_patch(first)),
    };
    let Some((count, fails)) = names else {
        return;
    };
    metrics.count(group, count);
    if let (false, Some(fails)) = (is_done, fails) {
        metrics.count(group, fails);
    }
}

/// The number of requests, and that of those that were refused.
type Names = (&'static str, Option<&'static str>);

fn of_get(path: &str) -> Option<Names> {
    match path {
        "" => Some(("instance_info_count", None)),
        "machine-config" => Some(("machine_cfg_count", None)),
        "version" => Some(("vmm_version_count", None)),
        _ => None,
    }
}

fn of_put(path: &str) -> Option<Names> {
    match path {
        "actions" => Some(("actions_count", Some("actions_fails"))),
        "boot-source" => Some(("boot_source_count", Some("boot_source_fails"))),
        "logger" => Some(("logger_count", Some("logger_fails"))),
        "metrics" => Some(("metrics_count", Some("metrics_fails"))),
        "serial" => Some(("serial_count", Some("serial_fails"))),
        "vsock" => Some(("vsock_count", Some("vsock_fails"))),
        path => of_patch(path),
    }
}

/// Of what can be put and patched.
fn of_patch(path: &str) -> Option<Names> {
    match path {
        "drives" => Some(("drive_count", Some("drive_fails"))),
        "machine-config" => Some(("machine_cfg_count", Some("machine_cfg_fails"))),
        "network-interfaces" => Some(("network_count", Some("network_fails"))),
        _ => None,
    }
}
