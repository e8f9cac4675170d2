//! What a machine is made of, in Firecracker's words and shape.

mod drive;
mod interface;
mod logger;
mod read;
mod sections;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use drive::{CacheType, Drive, IoEngine, MAX_CAPACITY_MIB, WindowDisk};
pub use interface::{Mac, NetworkInterface};
pub use logger::{Level, Logger, Metrics};
pub use read::ConfigError;
use sections::default_arguments;
pub use sections::{
    BootSource, Entropy, Lacking, MachineConfig, Nothing, Off, RateLimiter, RateLimits, Serial,
    TokenBucket, Vsock,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
    /// A log, when there is this section.
    #[serde(default)]
    pub logger: Option<Logger>,
    /// Metrics, when there is this section.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Memory that a guest gives back.
    #[serde(default, skip_serializing)]
    pub balloon: Option<Lacking>,
    /// What its processors are to the guest.
    #[serde(default, skip_serializing)]
    pub cpu_config: Option<Lacking>,
    /// Memory that is plugged in later.
    #[serde(default, skip_serializing)]
    pub memory_hotplug: Option<Lacking>,
    /// Metadata for the guest.
    #[serde(default, skip_serializing)]
    pub mmds_config: Option<Lacking>,
    /// Persistent memory.
    #[serde(default, skip_serializing)]
    pub pmem: Vec<Lacking>,
}

impl Config {
    /// A machine of which nothing has been said: it has no kernel yet.
    pub(crate) fn unsaid() -> Self {
        Self {
            boot_source: BootSource {
                kernel_image_path: PathBuf::new(),
                initrd_path: None,
                boot_args: default_arguments(),
            },
            window_disks: Vec::new(),
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            machine_config: MachineConfig::default(),
            vsock: None,
            entropy: None,
            // Firecracker's machines have one.
            serial: Some(Serial::default()),
            logger: None,
            metrics: None,
            balloon: None,
            cpu_config: None,
            memory_hotplug: None,
            mmds_config: None,
            pmem: Vec::new(),
        }
    }

    /// Whether it has been said what boots.
    pub(crate) fn has_kernel(&self) -> bool {
        !self.boot_source.kernel_image_path.as_os_str().is_empty()
    }
}
