//! What requests ask for: Firecracker's paths and bodies.

use serde::de::DeserializeOwned;

use super::bodies::{
    ActionBody, ActionType, DriveChange, InterfaceChange, MachineChange, Named, SerialBody, VmBody,
    VmState,
};
use super::fault::Fault;
use super::http::{Method, Request};
use crate::config::{
    BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, NetworkInterface, Serial, Vsock,
};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// To be told something: always.
    Ask(Question),
    /// To be another machine: before it is started.
    Set(Setting),
    /// To be made, and to run.
    Start,
    /// To do something: once it is started.
    Order(Order),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Instance,
    Version,
    Config,
    MachineConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Setting {
    BootSource(BootSource),
    Drive(Drive),
    Entropy(Entropy),
    Interface(NetworkInterface),
    Logger(Logger),
    MachineConfig(MachineConfig),
    MachineChange(MachineChange),
    Metrics(Metrics),
    Serial(Serial),
    Vsock(Vsock),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    CtrlAltDel,
    FlushMetrics,
    ChangeDrive(DriveChange),
    LimitInterface(InterfaceChange),
    Pause,
    Resume,
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
        let (method, body) = (request.method, request.body.as_slice());
        let path = request.path.trim_start_matches('/');
        let parts: Vec<&str> = path.split_terminator('/').collect();
        if let Some(first) = parts.first()
            && let Some((_, what)) = ABSENT.iter().find(|(path, _)| path == first)
        {
            return Err(Fault::Absent(what));
        }
        let found = match (method, body) {
            (Method::Get, []) => question(&parts).map(Self::Ask),
            (Method::Get, _) => return Err(Fault::Body),
            (_, []) => return Err(Fault::NoBody(method.word())),
            (Method::Put, body) => put(&parts, body)?,
            (Method::Patch, body) => patch(&parts, body)?,
        };
        found.ok_or_else(|| Fault::Unknown {
            method: method.word(),
            path: request.path.clone(),
        })
    }
}

fn question(parts: &[&str]) -> Option<Question> {
    match parts {
        [] => Some(Question::Instance),
        ["version"] => Some(Question::Version),
        ["vm", "config"] => Some(Question::Config),
        ["machine-config"] => Some(Question::MachineConfig),
        _ => None,
    }
}

fn put(parts: &[&str], body: &[u8]) -> Result<Option<Action>, Fault> {
    let setting = match parts {
        ["actions"] => return json(body).map(|body: ActionBody| Some(body.into())),
        ["boot-source"] => Setting::BootSource(json(body)?),
        ["drives", id] => Setting::Drive(named(id, body)?),
        ["entropy"] => Setting::Entropy(json(body)?),
        ["network-interfaces", id] => Setting::Interface(named(id, body)?),
        ["logger"] => Setting::Logger(json(body)?),
        ["machine-config"] => Setting::MachineConfig(json(body)?),
        ["metrics"] => Setting::Metrics(json(body)?),
        ["serial"] => Setting::Serial(json::<SerialBody>(body)?.into()),
        ["vsock"] => Setting::Vsock(json(body)?),
        _ => return Ok(None),
    };
    Ok(Some(Action::Set(setting)))
}

fn patch(parts: &[&str], body: &[u8]) -> Result<Option<Action>, Fault> {
    let order = match parts {
        ["drives", id] => Order::ChangeDrive(named(id, body)?),
        ["network-interfaces", id] => Order::LimitInterface(named(id, body)?),
        ["machine-config"] => {
            let change: MachineChange = json(body)?;
            if change == MachineChange::default() {
                return Err(Fault::Nothing);
            }
            return Ok(Some(Action::Set(Setting::MachineChange(change))));
        }
        ["vm"] => match json::<VmBody>(body)?.state {
            VmState::Paused => Order::Pause,
            VmState::Resumed => Order::Resume,
        },
        _ => return Ok(None),
    };
    Ok(Some(Action::Order(order)))
}

impl From<ActionBody> for Action {
    fn from(body: ActionBody) -> Self {
        match body.action_type {
            ActionType::InstanceStart => Self::Start,
            ActionType::FlushMetrics => Self::Order(Order::FlushMetrics),
            ActionType::SendCtrlAltDel => Self::Order(Order::CtrlAltDel),
        }
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(Fault::Json)
}

/// A device, which has the same name in the path and in the body.
fn named<T: DeserializeOwned + Named>(path: &str, body: &[u8]) -> Result<T, Fault> {
    let device: T = json(body)?;
    if device.name() == path {
        return Ok(device);
    }
    Err(Fault::Names {
        path: path.into(),
        body: device.name().into(),
    })
}
