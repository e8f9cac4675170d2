//! The handful of rtnetlink(7) messages that an instance's network needs.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;

use crate::netlink::{ACK, CREATE, DUMP, EXCL, Request, Socket, attributes};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const IF_OPER_UP: u8 = 6;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTMSG_LEN: usize = 12;
const IFINFOMSG_LEN: usize = 16;

/// The loopback interface's index in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

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

/// Gives a link an address.
pub(crate) fn add_address(request: &mut Request, index: u32, net: Ipv4Net) {
    let mut fixed = [0; 8];
    fixed[0] = AF_INET;
    fixed[1] = net.prefix_len();
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    request.message(RTM_NEWADDR, ACK | CREATE | EXCL, &fixed, |address| {
        address.attribute(IFA_LOCAL, &net.addr().octets());
        address.attribute(IFA_ADDRESS, &net.addr().octets());
    });
}

/// Routes a prefix to a link, through a gateway if there is one.
pub(crate) fn add_route(request: &mut Request, index: u32, to: Ipv4Net, gateway: Option<Ipv4Addr>) {
    let mut fixed = [0; RTMSG_LEN];
    fixed[0] = AF_INET;
    fixed[1] = to.prefix_len();
    fixed[4] = RT_TABLE_MAIN;
    fixed[5] = RTPROT_STATIC;
    fixed[6] = if gateway.is_some() {
        RT_SCOPE_UNIVERSE
    } else {
        RT_SCOPE_LINK
    };
    fixed[7] = RTN_UNICAST;
    request.message(RTM_NEWROUTE, ACK | CREATE | EXCL, &fixed, |route| {
        if to.prefix_len() > 0 {
            route.attribute(RTA_DST, &to.network().octets());
        }
        if let Some(gateway) = gateway {
            route.attribute(RTA_GATEWAY, &gateway.octets());
        }
        route.attribute(RTA_OIF, &index.to_ne_bytes());
    });
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
    pub(crate) to: Ipv4Net,
    pub(crate) index: u32,
}

/// Every IPv4 route of the main table of the socket's namespace that has an
/// interface.
pub(crate) fn routes(socket: &Socket) -> io::Result<Vec<Route>> {
    let mut fixed = [0; RTMSG_LEN];
    fixed[0] = AF_INET;
    let mut request = Request::new();
    request.message(RTM_GETROUTE, DUMP, &fixed, |_| {});
    let mut routes = Vec::new();
    socket.dump(&request, |kind, payload| {
        if kind == RTM_NEWROUTE {
            routes.extend(read_route(payload));
        }
    })?;
    Ok(routes)
}

fn read_route(payload: &[u8]) -> Option<Route> {
    if payload.first() != Some(&AF_INET) || payload.get(4) != Some(&RT_TABLE_MAIN) {
        return None;
    }
    let (mut to, mut index) = (Ipv4Addr::UNSPECIFIED, None);
    for (kind, value) in attributes(payload.get(RTMSG_LEN..)?) {
        match kind {
            RTA_DST => to = Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?),
            RTA_OIF => index = read_u32(value),
            _ => {}
        }
    }
    Some(Route {
        to: Ipv4Net::new(to, *payload.get(1)?).ok()?,
        index: index?,
    })
}

fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}
