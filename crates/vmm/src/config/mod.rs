//! What a machine is made of, in Firecracker's words and shape.

mod drive;
mod interface;
mod read;
mod sections;

use serde::{Deserialize, Serialize};

pub use drive::{Drive, MAX_CAPACITY_MIB, WindowDisk};
pub use interface::{Mac, NetworkInterface};
pub use read::ConfigError;
pub use sections::{
    BootSource, Entropy, MachineConfig, RateLimiter, RateLimits, Serial, TokenBucket, Vsock,
};

/// The most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 32;

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// What boots.
    pub boot_source: BootSource,
    /// The disks of windows, in the guest's order and before all others.
    #[serde(default)]
    pub window_disks: Vec<WindowDisk>,
    /// The disks, in the guest's order.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// The network interfaces, in the guest's order.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// How large it is.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// Sockets between guest and host, when there is this section.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// A source of randomness, when there is this section.
    #[serde(default)]
    pub entropy: Option<Entropy>,
    /// A serial port, when there is this section.
    #[serde(default)]
    pub serial: Option<Serial>,
}
