use serde::{Deserialize, Serialize};

use super::RateLimits;

/// A network interface: of a tap that is there, or that was opened already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name, for messages and statistics.
    pub iface_id: String,
    /// The tap's name, in the monitor's network namespace.
    #[serde(default)]
    pub host_dev_name: Option<String>,
    /// The number of a descriptor that the monitor is started with: a tap
    /// with `IFF_NO_PI` and `IFF_VNET_HDR`.
    #[serde(default)]
    pub tap_fd: Option<i32>,
    /// The guest's address; without, it makes one up.
    #[serde(default)]
    pub guest_mac: Option<Mac>,
    /// The largest packet; without, that of the tap of this name.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// What the guest may receive.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimits>,
    /// What the guest may send.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimits>,
}

/// An Ethernet address: six bytes in hexadecimal with colons between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let is_mac = bytes.iter_mut().all(|byte| {
            let is_byte = |part: &&str| {
                part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit())
            };
            let part = parts.next().filter(is_byte);
            let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = value.unwrap_or_default();
            value.is_some()
        });
        if is_mac && parts.next().is_none() {
            Ok(Self(bytes))
        } else {
            Err(format!("{text:?} is no address such as 06:00:ac:10:00:02"))
        }
    }
}

impl From<Mac> for String {
    fn from(Mac(bytes): Mac) -> Self {
        bytes.map(|byte| format!("{byte:02x}")).join(":")
    }
}
