//! The one nftables table of a server, and the program that loads it.
//!
//! The table never changes while it stands but for the elements of
//! [`MEMBERS`]. It only ever refuses: what it accepts, other tables of the
//! host may still drop.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use skiff_base::process::command;
use skiff_types::ServerId;

use crate::error::{NetError, Step};
use crate::ipv6;

/// The set of this server's instances: the host's end of the veth pair and
/// the instance's address.
pub(crate) const MEMBERS: &str = "members4";
/// The same with the IPv6 address.
pub(crate) const MEMBERS6: &str = "members6";

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

/// What of it stays closed whatever is allowed: this host, this link with the
/// metadata services, Alibaba's metadata service, and everybody.
const CLOSED: [&str; 6] = [
    "0.0.0.0/8",
    "100.100.100.200/32",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// The same of IPv6: all but global unicast (RFC 4291 section 2.4), which
/// leaves out loopback, mapped and translated IPv4 (64:ff9b::/96), unique
/// local, link-local and multicast; and of global unicast the protocol
/// assignments with Teredo, documentation, and 6to4, behind which is any IPv4
/// address.
const DENIED6: [&str; 7] = [
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
];

/// Loopback with IPv4 in IPv6 (::/96, ::ffff:0:0/96), link-local, site-local,
/// multicast; and the networks of Amazon's, Google's, Oracle's and Scaleway's
/// metadata services, which would be private ones. Translation (64:ff9b::/96)
/// may be allowed.
const CLOSED6: [&str; 8] = [
    "::/64",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "fd20:ce::/32",
    "fd00:c1::/32",
    "fd00:42::/32",
];

/// Drops what the host would forward for anybody but instances, of whichever
/// server. What a bridge passes from port to port comes by here, too, as if it
/// were forwarded (br_netfilter), and is left alone.
const GUARD: &str = r#"
    meta nfproto ipv6 meta iifkind "bridge" meta oifkind "bridge" accept
    meta nfproto ipv6 iifname != "sk*" oifname != "sk*" drop"#;

/// Connections of either family an instance may have at a time: the host's
/// connection table is one for all.
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
    /// Unless there is none.
    pub(crate) ipv6: Option<Ipv6Table>,
    /// Exceptions to [`DENIED`] and [`DENIED6`], but for what is closed.
    pub(crate) allowed: &'a [IpNet],
    /// Links and addresses that are members from the start.
    pub(crate) members: Vec<(String, Ipv4Addr)>,
}

/// What IPv6 adds to a table.
#[derive(Debug)]
pub(crate) struct Ipv6Table {
    /// The whole pool, in which other servers' instances may be.
    pub(crate) pool: Ipv6Net,
    /// Whether to drop what the host would forward for anybody else.
    pub(crate) guard: bool,
}

/// The table's name.
pub(crate) fn name(server: ServerId) -> String {
    format!("skiff_{server}")
}

/// What the rules of a family are made of.
struct Family<'a> {
    /// Ends the names of its sets and chains.
    number: u8,
    /// nft's word for a packet's header.
    ip: &'static str,
    icmp: &'static str,
    share: IpNet,
    pool: IpNet,
    denied: &'a [&'static str],
    closed: &'a [&'static str],
    allowed: Vec<IpNet>,
    members: Vec<String>,
}

impl Table<'_> {
    /// Loads the table in place of the one that may be there, at once.
    pub(crate) fn load(&self, nft: &Path) -> Result<(), NetError> {
        run(nft, &self.text())
    }

    fn text(&self) -> String {
        let prefix = self.prefix;
        let name = name(self.server);
        let families: Vec<Family<'_>> = std::iter::once(self.ipv4())
            .chain(self.ipv6.as_ref().map(|ipv6| self.ipv6(ipv6)))
            .collect();
        let each = |text: &dyn Fn(&Family<'_>) -> String| -> String {
            families.iter().map(text).collect()
        };
        let parts = each(&|family| family.sets_and_chains(prefix));
        let input = each(&|family| family.refusal(prefix));
        let leaving = each(&|family| family.jump("iifname", prefix, "leaving"));
        let arriving = each(&|family| family.jump("oifname", prefix, "arriving"));
        let masquerade = each(&|family| family.masquerade(prefix));
        let guard = match &self.ipv6 {
            Some(Ipv6Table { guard: true, .. }) => GUARD,
            _ => "",
        };
        format!(
            r#"table inet {name}
delete table inet {name}
table inet {name} {{
{parts}
  chain input {{
    type filter hook input priority filter - 5; policy accept;
{input}
    iifname "{prefix}*" drop
  }}
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
{leaving}
    iifname "{prefix}*" drop
{arriving}
    oifname "{prefix}*" drop
    {guard}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{masquerade}
  }}
}}
"#
        )
    }

    fn ipv4(&self) -> Family<'_> {
        Family {
            number: 4,
            ip: "ip",
            icmp: "icmp",
            share: self.share.into(),
            pool: self.pool.into(),
            denied: &DENIED,
            closed: &CLOSED,
            allowed: self.allowed_of(|net| matches!(net, IpNet::V4(_))),
            members: self.members_as(IpAddr::from),
        }
    }

    fn ipv6(&self, ipv6: &Ipv6Table) -> Family<'_> {
        Family {
            number: 6,
            ip: "ip6",
            icmp: "icmpv6",
            share: ipv6::share(ipv6.pool, self.share).into(),
            pool: ipv6.pool.trunc().into(),
            denied: &DENIED6,
            closed: &CLOSED6,
            allowed: self.allowed_of(|net| matches!(net, IpNet::V6(_))),
            members: self.members_as(|address| ipv6::address(ipv6.pool, address).into()),
        }
    }

    fn allowed_of(&self, family: impl Fn(&IpNet) -> bool) -> Vec<IpNet> {
        let of_family = self.allowed.iter().copied().filter(family);
        of_family.map(|net| net.trunc()).collect()
    }

    fn members_as(&self, address: impl Fn(Ipv4Addr) -> IpAddr) -> Vec<String> {
        let members = self.members.iter();
        members
            .map(|(link, ip)| format!("\"{link}\" . {}", address(*ip)))
            .collect()
    }
}

impl Family<'_> {
    fn sets_and_chains(&self, prefix: &str) -> String {
        let Self {
            number, ip, pool, ..
        } = self;
        let reject = self.reject();
        let members = elements(self.members.iter());
        let denied = elements(self.denied.iter());
        let closed = elements(self.closed.iter());
        let allowed = elements(self.allowed.iter());
        format!(
            r#"
  set members{number} {{
    type ifname . ipv{number}_addr
    {members}
  }}
  set denied{number} {{
    type ipv{number}_addr; flags interval
    {denied}
  }}
  set closed{number} {{
    type ipv{number}_addr; flags interval
    {closed}
  }}
  set allowed{number} {{
    type ipv{number}_addr; flags interval; auto-merge
    {allowed}
  }}
  set connections{number} {{
    type ipv{number}_addr; flags dynamic; size 65536
  }}
  chain leaving{number} {{
    iifname . {ip} saddr != @members{number} drop
    oifname "{prefix}*" {reject}
    {ip} daddr {pool} {reject}
    {ip} daddr @closed{number} {reject}
    {ip} daddr @denied{number} {ip} daddr != @allowed{number} {reject}
    ct state established,related accept
    ct state != new drop
    add @connections{number} {{ {ip} saddr ct count over {CONNECTIONS_MAX} }} {reject}
    tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    accept
  }}
  chain arriving{number} {{
    ct state established,related tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    ct state established,related accept
    {ip} saddr {pool} {reject}
    drop
  }}
"#
        )
    }

    fn reject(&self) -> String {
        format!("reject with {} type admin-prohibited", self.icmp)
    }

    /// Of what is sent to the host itself.
    fn refusal(&self, prefix: &str) -> String {
        let (number, reject) = (self.number, self.reject());
        format!("    iifname \"{prefix}*\" meta nfproto ipv{number} {reject}\n")
    }

    fn jump(&self, side: &str, prefix: &str, chain: &str) -> String {
        let number = self.number;
        format!("    {side} \"{prefix}*\" meta nfproto ipv{number} jump {chain}{number}\n")
    }

    fn masquerade(&self, prefix: &str) -> String {
        let Self { ip, share, .. } = self;
        format!("    {ip} saddr {share} oifname != \"{prefix}*\" masquerade\n")
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
