use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use skiff_virtio::{Bucket, BucketChange, Limits, LimitsChange};

/// Firecracker's, less what turns modules off and what is not there to be
/// turned off: no keyboard controller is probed for.
pub const DEFAULT_ARGUMENTS: &str = "reboot=k panic=1 8250.nr_uarts=0 swiotlb=noforce pci=off";

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An ELF vmlinux, or a bzImage.
    pub kernel_image_path: PathBuf,
    /// An initramfs.
    #[serde(default)]
    pub initrd_path: Option<PathBuf>,
    /// The command line.
    #[serde(default = "default_arguments", deserialize_with = "arguments")]
    pub boot_args: String,
}

pub(super) fn default_arguments() -> String {
    DEFAULT_ARGUMENTS.into()
}

/// The default where it is null, as a configuration of Firecracker's can be.
fn arguments<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let told = Option::deserialize(from)?;
    Ok(told.unwrap_or_else(default_arguments))
}

/// How large a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// How many vCPUs it has.
    pub vcpu_count: u8,
    /// How much memory it has.
    pub mem_size_mib: u64,
    /// Whether two vCPUs are one core's.
    #[serde(default)]
    pub smt: Off,
    /// Whether it is noted which memory the guest writes.
    #[serde(default)]
    pub track_dirty_pages: Off,
    /// Which large pages its memory is made of.
    #[serde(default)]
    pub huge_pages: Nothing,
    /// Which processor the guest is shown.
    #[serde(default, skip_serializing)]
    pub cpu_template: Option<Nothing>,
}

/// What Firecracker's clients may leave out or switch off, and no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "bool", into = "bool")]
pub struct Off;

impl TryFrom<bool> for Off {
    type Error = &'static str;

    fn try_from(on: bool) -> Result<Self, Self::Error> {
        if on {
            return Err("this monitor does not have it: it can only be false");
        }
        Ok(Self)
    }
}

impl From<Off> for bool {
    fn from(Off: Off) -> Self {
        false
    }
}

/// What Firecracker has and this monitor has not: it can be null, which says
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lacking {}

impl<'de> Deserialize<'de> for Lacking {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(
            "this monitor does not have it: leave it out",
        ))
    }
}

/// The only kind of something that this monitor has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nothing {
    /// None in particular.
    #[default]
    None,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: Off,
            track_dirty_pages: Off,
            huge_pages: Nothing::None,
            cpu_template: None,
        }
    }
}

/// A source of randomness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// How much the guest may ask of it.
    #[serde(default, skip_serializing)]
    pub rate_limiter: Option<Lacking>,
}

/// Sockets between guest and host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u64,
    /// A name, which means nothing.
    #[serde(default, skip_serializing)]
    pub vsock_id: Option<String>,
    /// The host's side: connections to it go to the guest, and the guest's go
    /// to this path with "_" and the port behind it.
    pub uds_path: PathBuf,
}

/// A serial port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// Where its output goes: a file that is there or can be made, a pipe, a
    /// terminal; the monitor's standard output when nothing is said.
    #[serde(default)]
    pub serial_out_path: Option<PathBuf>,
    /// How much output there may be: what is over it is dropped.
    #[serde(default)]
    pub rate_limiter: RateLimiter,
}

/// Limits on what a device is asked for. One that is not there, or has no
/// size or no time, is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// In bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucket>,
    /// In requests or packets.
    #[serde(default)]
    pub ops: Option<TokenBucket>,
}

impl RateLimits {
    /// As the devices have it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let limit = |bucket: &Option<TokenBucket>| {
            let bucket = bucket.as_ref()?;
            (!bucket.is_none()).then(|| bucket.bucket())
        };
        Limits {
            bytes: limit(&self.bandwidth),
            operations: limit(&self.ops),
        }
    }
}

impl RateLimits {
    /// What becomes of a device's limits when these are told: what is not
    /// there stays.
    #[must_use]
    pub fn change(&self) -> LimitsChange {
        let change = |bucket: &Option<TokenBucket>| match bucket {
            None => BucketChange::Keep,
            Some(bucket) if bucket.is_none() => BucketChange::Lift,
            Some(bucket) => BucketChange::Set(bucket.bucket()),
        };
        LimitsChange {
            bytes: change(&self.bandwidth),
            operations: change(&self.ops),
        }
    }

    /// These limits, with those of `told` that are there.
    pub(crate) fn changed(self, told: &Self) -> Self {
        Self {
            bandwidth: told.bandwidth.clone().or(self.bandwidth),
            ops: told.ops.clone().or(self.ops),
        }
    }
}

/// A limit on output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// In bytes.
    #[serde(default)]
    pub bandwidth: TokenBucket,
}

/// A token bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many tokens it holds.
    pub size: u64,
    /// How many more there are once.
    #[serde(default)]
    pub one_time_burst: u64,
    /// How many milliseconds it takes to fill.
    pub refill_time: u64,
}

impl Default for TokenBucket {
    /// A boot with all messages at once, and then what people can read.
    fn default() -> Self {
        Self {
            size: 64 << 10,
            one_time_burst: 1 << 20,
            refill_time: 1000,
        }
    }
}

impl TokenBucket {
    /// Whether it is no limit.
    const fn is_none(&self) -> bool {
        self.size == 0 || self.refill_time == 0
    }

    /// As the devices have it.
    #[must_use]
    pub const fn bucket(&self) -> Bucket {
        Bucket {
            size: self.size,
            one_time_burst: self.one_time_burst,
            refill: Duration::from_millis(self.refill_time),
        }
    }
}
