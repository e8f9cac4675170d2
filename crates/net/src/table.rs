//! The one nftables table of a server, and the program that loads it.
//!
//! The table never changes while it stands but for the elements of
//! [`MEMBERS`]. It only ever refuses: what it accepts, other tables of the
//! host may still drop.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use ipnet::Ipv4Net;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use skiff_base::process::command;
use skiff_types::ServerId;

use crate::error::{NetError, Step};

/// The set of this server's instances: the host's end of the veth pair and
/// the instance's address.
pub(crate) const MEMBERS: &str = "members";

/// Where instances may not connect to (RFC 6890 and its registry): this
/// network, private, shared, loopback, link-local with the clouds' metadata
/// services, protocol assignments, documentation, benchmarking with
/// [`crate::SERVICE_ADDRESS`], multicast, reserved and broadcast.
const DENIED: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Connections an instance may have at a time: the host's connection table
/// is one for all.
pub(crate) const CONNECTIONS_MAX: u32 = 4096;
const NFT_DEADLINE: Duration = Duration::from_secs(20);
/// What of nft's complaint is kept.
const MESSAGE_MAX: u64 = 2048;

/// What the table is made for.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    pub(crate) server: ServerId,
    /// What the names of its links start with.
    pub(crate) prefix: &'a str,
    /// Where its instances' addresses are from.
    pub(crate) share: Ipv4Net,
    /// The whole pool, in which other servers' instances are.
    pub(crate) pool: Ipv4Net,
    /// Exceptions to [`DENIED`].
    pub(crate) allowed: &'a [Ipv4Net],
    /// Links and addresses that are members from the start.
    pub(crate) members: Vec<(String, std::net::Ipv4Addr)>,
}

/// The table's name.
pub(crate) fn name(server: ServerId) -> String {
    format!("skiff_{server}")
}

impl Table<'_> {
    /// Loads the table in place of the one that may be there, at once.
    pub(crate) fn load(&self, nft: &Path) -> Result<(), NetError> {
        run(nft, &self.text())
    }

    fn text(&self) -> String {
        let Self {
            prefix,
            share,
            pool,
            ..
        } = self;
        let name = name(self.server);
        let allowed = elements(self.allowed.iter());
        let denied = elements(DENIED.iter());
        let members = elements(
            self.members
                .iter()
                .map(|(link, ip)| format!("\"{link}\" . {ip}")),
        );
        format!(
            r#"table inet {name}
delete table inet {name}
table inet {name} {{
  set {MEMBERS} {{
    type ifname . ipv4_addr
    {members}
  }}
  set denied {{
    type ipv4_addr; flags interval
    {denied}
  }}
  set allowed {{
    type ipv4_addr; flags interval; auto-merge
    {allowed}
  }}
  set connections {{
    type ipv4_addr; flags dynamic; size 65536
  }}
  chain input {{
    type filter hook input priority filter - 5; policy accept;
    iifname "{prefix}*" meta nfproto ipv4 reject with icmp type admin-prohibited
    iifname "{prefix}*" drop
  }}
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
    iifname "{prefix}*" jump leaving
    oifname "{prefix}*" jump arriving
  }}
  chain leaving {{
    meta nfproto != ipv4 drop
    iifname . ip saddr != @{MEMBERS} drop
    oifname "{prefix}*" reject with icmp type admin-prohibited
    ip daddr {pool} reject with icmp type admin-prohibited
    ip daddr @denied ip daddr != @allowed reject with icmp type admin-prohibited
    ct state established,related accept
    ct state != new drop
    add @connections {{ ip saddr ct count over {CONNECTIONS_MAX} }} reject with icmp type admin-prohibited
    tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    accept
  }}
  chain arriving {{
    meta nfproto != ipv4 drop
    ct state established,related tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    ct state established,related accept
    ip saddr {pool} reject with icmp type admin-prohibited
    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {share} oifname != "{prefix}*" masquerade
  }}
}}
"#
        )
    }
}

/// The `elements` statement of a set; nft has none for no elements.
fn elements(list: impl Iterator<Item = impl ToString>) -> String {
    let list: Vec<String> = list.map(|element| element.to_string()).collect();
    if list.is_empty() {
        return String::new();
    }
    format!("elements = {{ {} }}", list.join(", "))
}

fn run(nft: &Path, text: &str) -> Result<(), NetError> {
    let mut child = command(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .step("start", nft.display())?;
    let result = feed(&mut child, text).and_then(|()| wait(&mut child));
    if result.is_err() {
        // It may have ended by itself; then there is nothing to kill.
        if child.kill().is_ok() {
            child.wait().step("wait for", nft.display())?;
        }
    }
    result
}

fn feed(child: &mut Child, text: &str) -> Result<(), NetError> {
    let Some(mut stdin) = child.stdin.take() else {
        return Ok(());
    };
    // A program that refuses at once closes its end: the status says why.
    match stdin.write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).step("write to", "nft")
        }
        _ => Ok(()),
    }
}

fn wait(child: &mut Child) -> Result<(), NetError> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(NetError::Nft {
        message: "it has no process id".to_owned(),
    })?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).step("open", pid)?;
    let deadline = Timespec {
        tv_sec: i64::try_from(NFT_DEADLINE.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline));
    if ended.step("wait for", "nft")? == 0 {
        return Err(NetError::NftDeadline {
            seconds: NFT_DEADLINE.as_secs(),
        });
    }
    let status = child.wait().step("wait for", "nft")?;
    if status.success() {
        return Ok(());
    }
    let mut message = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr
            .take(MESSAGE_MAX)
            .read_to_end(&mut message)
            .step("read from", "nft")?;
    }
    Err(NetError::Nft {
        message: format!("{status}: {}", String::from_utf8_lossy(&message).trim()),
    })
}
