//! What requests ask for: Firecracker's paths and bodies.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::fault::Fault;
use super::http::{Method, Request};
use crate::config::{BootSource, MachineConfig, Nothing, Off};

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
    Start,
    FlushMetrics,
    CtrlAltDel,
    Pause,
    Resume,
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
