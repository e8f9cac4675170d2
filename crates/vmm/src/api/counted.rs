use super::http::{Method, Request};
use crate::report::Metrics;

const GETS: [&str; 3] = ["", "machine-config", "version"];
const PUTS: [&str; 6] = [
    "actions",
    "boot-source",
    "logger",
    "metrics",
    "serial",
    "vsock",
];
const PATCHES: [&str; 3] = ["drives", "machine-config", "network-interfaces"];

/// Has every number be there from the first line on.
pub(super) fn begin(metrics: &mut Metrics) {
    let gets = GETS.map(|path| (Method::Get, path));
    let puts = PUTS.map(|path| (Method::Put, path));
    let also = PATCHES.map(|path| (Method::Put, path));
    let patches = PATCHES.map(|path| (Method::Patch, path));
    for (method, path) in [&gets[..], &puts, &also, &patches].concat() {
        let (group, names) = names(method, path);
        if let Some((count, fails)) = names {
            metrics.add(group, count, 0);
            fails
                .into_iter()
                .for_each(|name| metrics.add(group, name, 0));
        }
    }
    for name in ["pause_vm", "resume_vm"] {
        metrics.note("latencies_us", name, 0);
    }
}

/// Counts a request, by the beginning of its path, as Firecracker's metrics
/// name it.
pub(super) fn count(metrics: &mut Metrics, request: &Request, is_done: bool) {
    let path = request.path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    let (group, names) = names(request.method, first);
    let Some((count, fails)) = names else {
        return;
    };
    metrics.add(group, count, 1);
    if let (false, Some(fails)) = (is_done, fails) {
        metrics.add(group, fails, 1);
    }
}

/// The number of requests, and that of those that were refused.
type Names = (&'static str, Option<&'static str>);

fn names(method: Method, path: &str) -> (&'static str, Option<Names>) {
    match method {
        Method::Get => ("get_api_requests", of_get(path)),
        Method::Put => ("put_api_requests", of_put(path)),
        Method::Patch => ("patch_api_requests", of_patch(path)),
    }
}

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
