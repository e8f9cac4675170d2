//! What requests ask for: Firecracker's paths and bodies.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::fault::Fault;
use super::http::{Method, Request};
use crate::config::{
    BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, NetworkInterface, Nothing, Off,
    RateLimiter, RateLimits, Serial, TokenBucket, Vsock,
};
use crate::report;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Instance,
    Version,
    WholeConfig,
    GetMachineConfig,
    PutMachineConfig(MachineConfig),
    PatchMachineConfig(MachineChange),
    PutBootSource(BootSource),
    PutDrive(Drive),
    PatchDrive(DriveChange),
    PutInterface(NetworkInterface),
    PatchInterface(InterfaceChange),
    PutVsock(Vsock),
    PutEntropy(Entropy),
    PutSerial(Serial),
    PutLogger(Logger),
    PutMetrics(Metrics),
    Start,
    FlushMetrics,
    CtrlAltDel,
    Pause,
    Resume,
}

/// What is to be changed of a disk that is used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriveChange {
    pub(super) drive_id: String,
    pub(super) path_on_host: Option<PathBuf>,
    pub(super) rate_limiter: Option<RateLimits>,
}

/// What is to be changed of an interface that is used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterfaceChange {
    pub(super) iface_id: String,
    #[serde(default)]
    pub(super) rx_rate_limiter: RateLimits,
    #[serde(default)]
    pub(super) tx_rate_limiter: RateLimits,
}

/// A serial port in the API's shape, where it has one limit only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialBody {
    serial_out_path: Option<PathBuf>,
    rate_limiter: Option<TokenBucket>,
}

impl From<SerialBody> for Serial {
    fn from(body: SerialBody) -> Self {
        Self {
            serial_out_path: body.serial_out_path,
            rate_limiter: RateLimiter {
                bandwidth: body.rate_limiter.unwrap_or_default(),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmBody {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

/// What is to be changed of a machine's size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineChange {
    vcpu_count: Option<u8>,
    mem_size_mib: Option<u64>,
    smt: Option<Off>,
    track_dirty_pages: Option<Off>,
    huge_pages: Option<Nothing>,
    cpu_template: Option<Nothing>,
}

impl MachineChange {
    pub(super) fn apply(&self, config: &mut MachineConfig) {
        config.vcpu_count = self.vcpu_count.unwrap_or(config.vcpu_count);
        config.mem_size_mib = self.mem_size_mib.unwrap_or(config.mem_size_mib);
    }
}

/// Paths of Firecracker's whose requests have nothing here.
const ABSENT: &[(&str, &str)] = &[
    ("balloon", "balloon"),
    ("cpu-config", "CPU templates"),
    ("hotplug", "memory that is plugged in later"),
    ("mmds", "metadata service"),
    ("pmem", "persistent memory"),
    ("snapshot", "snapshots in its API"),
];

impl Action {
    /// Reads a request.
    ///
    /// # Errors
    /// When it is none of this API, or its body is wrong.
    pub(super) fn read(request: &Request) -> Result<Self, Fault> {
        use Method::{Get, Patch, Put};

        let (method, body) = (request.method, request.body.as_slice());
        let path = request.path.trim_start_matches('/');
        let parts: Vec<&str> = path.split_terminator('/').collect();
        if let Some(first) = parts.first()
            && let Some((_, what)) = ABSENT.iter().find(|(path, _)| path == first)
        {
            return Err(Fault::Absent(what));
        }
        if method == Get && !body.is_empty() {
            return Err(Fault::Body);
        }
        if method != Get && body.is_empty() {
            return Err(Fault::NoBody(method.word()));
        }
        match (method, parts.as_slice()) {
            (Get, []) => Ok(Self::Instance),
            (Get, ["version"]) => Ok(Self::Version),
            (Get, ["vm", "config"]) => Ok(Self::WholeConfig),
            (Get, ["machine-config"]) => Ok(Self::GetMachineConfig),
            (Put, ["machine-config"]) => json(body).map(Self::PutMachineConfig),
            (Patch, ["machine-config"]) => match json(body)? {
                change if change == MachineChange::default() => Err(Fault::NoBody("PATCH")),
                change => Ok(Self::PatchMachineConfig(change)),
            },
            (Put, ["boot-source"]) => json(body).map(Self::PutBootSource),
            (Put, ["drives", id]) => {
                let drive: Drive = json(body)?;
                same(id, &drive.drive_id)?;
                Ok(Self::PutDrive(drive))
            }
            (Patch, ["drives", id]) => {
                let change: DriveChange = json(body)?;
                same(id, &change.drive_id)?;
                Ok(Self::PatchDrive(change))
            }
            (Put, ["network-interfaces", id]) => {
                let interface: NetworkInterface = json(body)?;
                same(id, &interface.iface_id)?;
                Ok(Self::PutInterface(interface))
            }
            (Patch, ["network-interfaces", id]) => {
                let change: InterfaceChange = json(body)?;
                same(id, &change.iface_id)?;
                Ok(Self::PatchInterface(change))
            }
            (Put, ["vsock"]) => json(body).map(Self::PutVsock),
            (Put, ["entropy"]) => json(body).map(Self::PutEntropy),
            (Put, ["serial"]) => json(body).map(|body: SerialBody| Self::PutSerial(body.into())),
            (Put, ["logger"]) => json(body).map(Self::PutLogger),
            (Put, ["metrics"]) => json(body).map(Self::PutMetrics),
            (Put, ["actions"]) => json(body).map(|body: ActionBody| match body.action_type {
                ActionType::InstanceStart => Self::Start,
                ActionType::FlushMetrics => Self::FlushMetrics,
                ActionType::SendCtrlAltDel => Self::CtrlAltDel,
            }),
            (Patch, ["vm"]) => json(body).map(|body: VmBody| match body.state {
                VmState::Paused => Self::Pause,
                VmState::Resumed => Self::Resume,
            }),
            _ => Err(Fault::Unknown {
                method: method.word(),
                path: request.path.clone(),
            }),
        }
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(Fault::Json)
}

/// A device has the same name in the path and in the body.
fn same(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        return Ok(());
    }
    Err(Fault::Names {
        path: path.into(),
        body: body.into(),
    })
}

/// How requests are counted: by the beginning of their path, as Firecracker's
/// metrics name them.
const COUNTED: &[(Method, &str, &str, Option<&str>)] = &[
    (Method::Get, "", "instance_info_count", None),
    (Method::Get, "machine-config", "machine_cfg_count", None),
    (Method::Get, "version", "vmm_version_count", None),
    (
        Method::Put,
        "actions",
        "actions_count",
        Some("actions_fails"),
    ),
    (
        Method::Put,
        "boot-source",
        "boot_source_count",
        Some("boot_source_fails"),
    ),
    (Method::Put, "drives", "drive_count", Some("drive_fails")),
    (Method::Put, "logger", "logger_count", Some("logger_fails")),
    (
        Method::Put,
        "machine-config",
        "machine_cfg_count",
        Some("machine_cfg_fails"),
    ),
    (
        Method::Put,
        "metrics",
        "metrics_count",
        Some("metrics_fails"),
    ),
    (
        Method::Put,
        "network-interfaces",
        "network_count",
        Some("network_fails"),
    ),
    (Method::Put, "serial", "serial_count", Some("serial_fails")),
    (Method::Put, "vsock", "vsock_count", Some("vsock_fails")),
    (Method::Patch, "drives", "drive_count", Some("drive_fails")),
    (
        Method::Patch,
        "machine-config",
        "machine_cfg_count",
        Some("machine_cfg_fails"),
    ),
    (
        Method::Patch,
        "network-interfaces",
        "network_count",
        Some("network_fails"),
    ),
];

/// Counts a request.
pub(super) fn count(metrics: &mut report::Metrics, request: &Request, is_done: bool) {
    let path = request.path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    let mut table = COUNTED.iter();
    let found = table.find(|(method, path, ..)| *method == request.method && *path == first);
    let Some((method, _, count, fails)) = found else {
        return;
    };
    let group = match method {
        Method::Get => "get_api_requests",
        Method::Put => "put_api_requests",
        Method::Patch => "patch_api_requests",
    };
    metrics.count(group, count);
    if let (false, Some(fails)) = (is_done, fails) {
        metrics.count(group, fails);
    }
}
