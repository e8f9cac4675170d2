//! What is set up inside every instance's namespace.

use std::io;
use std::net::Ipv4Addr;

use crate::ipv6;
use crate::namespace::set_sysctl;
use crate::netlink::{Request, Socket};
use crate::nft::{self, Chain, Hook};
use crate::route;

/// Where an instance finds Skiff's services. From RFC 2544's range, which no
/// network carries; it exists on the namespace's loopback only.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where `gateway_listener` listens for what is sent to port 80.
pub const GATEWAY_LISTEN_PORT: u16 = 61080;
/// Where `dns_sockets` listen for what is sent to port 53.
pub const DNS_LISTEN_PORT: u16 = 61053;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const CHAIN: Chain<'_> = Chain {
    family: nft::NFPROTO_IPV4,
    table: "skiff",
    name: "services",
};

/// What an application connects to, and where we listen for it: a socket of
/// ours on the port itself would keep the application from binding
/// `0.0.0.0` with that port.
const SERVICES: [(u8, u16, u16); 3] = [
    (IPPROTO_TCP, 80, GATEWAY_LISTEN_PORT),
    (IPPROTO_TCP, 53, DNS_LISTEN_PORT),
    (IPPROTO_UDP, 53, DNS_LISTEN_PORT),
];

/// Settings and links common to all, and whether there is IPv6. The calling
/// thread is inside.
pub(crate) fn prepare(with_ipv6: bool, fill: impl FnOnce(&mut Request)) -> io::Result<()> {
    prepare_links(with_ipv6, fill)?;
    lead_services()
}

/// Leads what is sent to [`SERVICE_ADDRESS`] to where it is listened for.
pub(crate) fn lead_services() -> io::Result<()> {
    Socket::netfilter()?.execute(&service_rules())
}

/// Settings and links, without the services' rules.
pub(crate) fn prepare_links(with_ipv6: bool, fill: impl FnOnce(&mut Request)) -> io::Result<()> {
    // The application may bind any port and may ping, with no capability.
    set_sysctl("ipv4/ip_unprivileged_port_start", "0")?;
    set_sysctl("ipv4/ping_group_range", "0 2147483647")?;
    if with_ipv6 {
        ipv6::set_up_inside()?;
    } else {
        set_sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    }
    let mut request = Request::new();
    route::set_up(&mut request, route::LOOPBACK);
    route::add_address(&mut request, route::LOOPBACK, SERVICE_ADDRESS);
    fill(&mut request);
    Socket::route()?.execute(&request)
}

/// Rewrites the ports of [`SERVICES`] in both directions, statelessly: the
/// instance's loopback traffic is not tracked for it.
fn service_rules() -> Request {
    let mut request = Request::new();
    nft::batch(&mut request, |batch| {
        nft::add_table(batch, CHAIN.family, CHAIN.table);
        nft::add_chain(batch, CHAIN, Hook::Output);
        for (protocol, port, listen_port) in SERVICES {
            nft::add_rule(batch, CHAIN, |rule| {
                rule.destination_is(SERVICE_ADDRESS);
                rule.protocol_is(protocol);
                rule.destination_port_is(port);
                rule.set_destination_port(protocol, listen_port);
            });
            nft::add_rule(batch, CHAIN, |rule| {
                rule.source_is(SERVICE_ADDRESS);
                rule.protocol_is(protocol);
                rule.source_port_is(listen_port);
                rule.set_source_port(protocol, port);
            });
        }
    });
    request
}
