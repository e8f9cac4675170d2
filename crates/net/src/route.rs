//! The handful of rtnetlink(7) messages that an instance's network needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;

use crate::netlink::{ACK, CREATE, DUMP, EXCL, Request, Socket, attributes};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const IF_OPER_UP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Nobody else can have the address: the kernel need not ask.
const IFA_F_NODAD: u32 = 2;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTMSG_LEN: usize = 12;
const IFINFOMSG_LEN: usize = 16;

/// The loopback interface's index in every namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// Set in the group of every server's links, and kept away from the small
/// numbers people choose.
pub(crate) const GROUP_BIT: u32 = 1 << 30;

/// A veth pair: one end here, the other in another namespace.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    /// Of the end here.
    pub(crate) name: &'a str,
    /// Of the end here, which must be free.
    pub(crate) index: u32,
    /// Of the end there.
    pub(crate) peer_name: &'a str,
    /// Of the end there.
    pub(crate) peer_group: u32,
    /// Where the other end goes.
    pub(crate) peer_namespace: BorrowedFd<'a>,
    /// Of both ends: without ARP a frame bears its sender's own address as
    /// its destination, and the other end takes it because it has the same.
    pub(crate) mac: [u8; 6],
}

fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG_LEN] {
    let mut fixed = [0; IFINFOMSG_LEN];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// Makes the pair; both ends are down.
pub(crate) fn add_veth(request: &mut Request, veth: &Veth<'_>) {
    let fixed = ifinfomsg(veth.index, IFF_NOARP, IFF_NOARP);
    request.message(RTM_NEWLINK, ACK | CREATE | EXCL, &fixed, |link| {
        link.text(IFLA_IFNAME, veth.name);
        link.attribute(IFLA_ADDRESS, &veth.mac);
        link.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| {
                    peer.raw(&ifinfomsg(0, IFF_NOARP, IFF_NOARP));
                    peer.text(IFLA_IFNAME, veth.peer_name);
                    peer.attribute(IFLA_ADDRESS, &veth.mac);
                    peer.attribute(IFLA_GROUP, &veth.peer_group.to_ne_bytes());
                    let fd = veth.peer_namespace.as_raw_fd();
                    peer.attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                });
            });
        });
    });
}

/// Gives a link its address, which is its other end's too, as with [`Veth::mac`].
pub(crate) fn set_address_without_arp(request: &mut Request, index: u32, mac: [u8; 6]) {
    let fixed = ifinfomsg(index, IFF_NOARP, IFF_NOARP);
    request.message(RTM_NEWLINK, ACK, &fixed, |link| {
        link.attribute(IFLA_ADDRESS, &mac);
    });
}

/// Sets a link's largest packet, and has it take its own address for
/// everybody's.
pub(crate) fn set_mtu_without_arp(request: &mut Request, index: u32, mtu: u32) {
    let fixed = ifinfomsg(index, IFF_NOARP, IFF_NOARP);
    request.message(RTM_NEWLINK, ACK, &fixed, |link| {
        link.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    });
}

/// Brings a link up.
pub(crate) fn set_up(request: &mut Request, index: u32) {
    let fixed = ifinfomsg(index, IFF_UP, IFF_UP);
    request.message(RTM_NEWLINK, ACK, &fixed, |_| {});
}

/// Removes a link, and with it a veth's other end.
pub(crate) fn delete_link(request: &mut Request, name: &str) {
    request.message(RTM_DELLINK, ACK, &ifinfomsg(0, 0, 0), |link| {
        link.text(IFLA_IFNAME, name);
    });
}

/// Removes every link of a group in the time that one takes.
pub(crate) fn delete_group(request: &mut Request, group: u32) {
    request.message(RTM_DELLINK, ACK, &ifinfomsg(0, 0, 0), |links| {
        links.attribute(IFLA_GROUP, &group.to_ne_bytes());
    });
}

/// Gives a link an address, alone in its network.
pub(crate) fn add_address(request: &mut Request, index: u32, address: impl Into<IpAddr>) {
    let net = IpNet::from(address.into());
    let mut fixed = [0; 8];
    fixed[0] = family(net);
    fixed[1] = net.prefix_len();
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    request.message(RTM_NEWADDR, ACK | CREATE | EXCL, &fixed, |message| {
        let bytes = octets(net.addr());
        message.attribute(IFA_LOCAL, &bytes);
        message.attribute(IFA_ADDRESS, &bytes);
        if net.addr().is_ipv6() {
            let flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE;
            message.attribute(IFA_FLAGS, &flags.to_ne_bytes());
        }
    });
}

/// Routes a prefix to a link, which must be up.
pub(crate) fn add_route(request: &mut Request, index: u32, to: impl Into<IpNet>) {
    route(request, index, to.into(), RT_TABLE_MAIN, RTN_UNICAST);
}

/// Has an IPv6 address heard at once. The kernel's own route to an address
/// it was given comes a moment later, in the background, and what arrives
/// until then is lost.
pub(crate) fn add_local_route(request: &mut Request, index: u32, address: Ipv6Addr) {
    let to = IpAddr::from(address).into();
    route(request, index, to, RT_TABLE_LOCAL, RTN_LOCAL);
}

fn route(request: &mut Request, index: u32, to: IpNet, table: u8, kind: u8) {
    let mut fixed = [0; RTMSG_LEN];
    fixed[0] = family(to);
    fixed[1] = to.prefix_len();
    fixed[4] = table;
    fixed[5] = RTPROT_STATIC;
    // IPv6 knows one scope of routes.
    fixed[6] = match to {
        IpNet::V4(_) => RT_SCOPE_LINK,
        IpNet::V6(_) => RT_SCOPE_UNIVERSE,
    };
    fixed[7] = kind;
    request.message(RTM_NEWROUTE, ACK | CREATE | EXCL, &fixed, |route| {
        if to.prefix_len() > 0 {
            route.attribute(RTA_DST, &octets(to.network()));
        }
        route.attribute(RTA_OIF, &index.to_ne_bytes());
    });
}

fn family(net: IpNet) -> u8 {
    match net {
        IpNet::V4(_) => AF_INET,
        IpNet::V6(_) => AF_INET6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) group: u32,
}

/// Every interface of the socket's namespace.
pub(crate) fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut request = Request::new();
    request.message(RTM_GETLINK, DUMP, &ifinfomsg(0, 0, 0), |_| {});
    let mut links = Vec::new();
    socket.dump(&request, |kind, payload| {
        if kind == RTM_NEWLINK {
            links.extend(read_link(payload));
        }
    })?;
    Ok(links)
}

/// Whether a link carries packets: after its peer came up the kernel takes a
/// moment, in the background, and drops what is sent until then.
pub(crate) fn is_operational(socket: &Socket, index: u32) -> io::Result<bool> {
    let mut request = Request::new();
    request.message(RTM_GETLINK, ACK, &ifinfomsg(index, 0, 0), |_| {});
    let mut up = false;
    socket.dump(&request, |_, payload| {
        let mut found = attributes(payload.get(IFINFOMSG_LEN..).unwrap_or_default());
        up |= found.any(|(kind, value)| kind == IFLA_OPERSTATE && value == [IF_OPER_UP]);
    })?;
    Ok(up)
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let index = read_u32(payload.get(4..8)?)?;
    let (mut found, mut group) = (None, 0);
    for (kind, value) in attributes(payload.get(IFINFOMSG_LEN..)?) {
        match kind {
            IFLA_IFNAME => found = value.strip_suffix(&[0]),
            IFLA_GROUP => group = read_u32(value)?,
            _ => {}
        }
    }
    let name = String::from_utf8_lossy(found?).into_owned();
    Some(Link { index, name, group })
}

/// One route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) index: u32,
}

/// Every route of the main table of the socket's namespace that leads to one
/// interface; not those that keep a network for more special ones
/// (unreachable, blackhole, prohibit).
pub(crate) fn routes(socket: &Socket) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut fixed = [0; RTMSG_LEN];
        fixed[0] = family;
        let mut request = Request::new();
        request.message(RTM_GETROUTE, DUMP, &fixed, |_| {});
        socket.dump(&request, |kind, payload| {
            if kind == RTM_NEWROUTE {
                routes.extend(read_route(payload));
            }
        })?;
    }
    Ok(routes)
}

fn read_route(payload: &[u8]) -> Option<Route> {
    let (family, prefix) = (*payload.first()?, *payload.get(1)?);
    if payload.get(4) != Some(&RT_TABLE_MAIN) || payload.get(7) != Some(&RTN_UNICAST) {
        return None;
    }
    let mut to = match family {
        AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut index = None;
    for (kind, value) in attributes(payload.get(RTMSG_LEN..)?) {
        match kind {
            RTA_DST => to = read_address(value)?,
            RTA_OIF => index = read_u32(value),
            _ => {}
        }
    }
    Some(Route {
        to: IpNet::new(to, prefix).ok()?,
        index: index?,
    })
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}
