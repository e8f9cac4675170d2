//! Bodies that are not a configuration's sections.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::{
    Drive, MachineConfig, NetworkInterface, Nothing, Off, RateLimiter, RateLimits, Serial,
    TokenBucket,
};

/// What has a name, by which it is put and changed.
pub(super) trait Named {
    fn name(&self) -> &str;
}

impl Named for Drive {
    fn name(&self) -> &str {
        &self.drive_id
    }
}

impl Named for NetworkInterface {
    fn name(&self) -> &str {
        &self.iface_id
    }
}

impl Named for DriveChange {
    fn name(&self) -> &str {
        &self.drive_id
    }
}

impl Named for InterfaceChange {
    fn name(&self) -> &str {
        &self.iface_id
    }
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
pub(super) struct SerialBody {
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
pub(super) struct ActionBody {
    pub(super) action_type: ActionType,
}

#[derive(Deserialize)]
pub(super) enum ActionType {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmBody {
    pub(super) state: VmState,
}

#[derive(Deserialize)]
pub(super) enum VmState {
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
