//! The network of a virtual machine with a way out: an instance's namespace,
//! and in it a tap that the machine's monitor holds.
//!
//! ```text
//!  machine ──tap──▶ namespace ──veth──▶ host
//!  198.18.1.2        │ its address becomes the instance's
//! ```
//! Every machine has the same address and the same link address, so that one
//! that goes on elsewhere is told nothing; to the host its packets are those
//! of any instance, and the host's table judges them. The tap does without ARP
//! as the veth pair does, and for one more reason: what a machine says of
//! addresses would end up in a table that all of the host's namespaces share.
//!
//! The namespace hears nothing from the machine itself: what is for it is
//! dropped. It keeps track of as many connections as the host allows an
//! instance.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use ipnet::{Ipv4Net, Ipv6Net};
use rustix::net::netdevice::name_to_index;
use skiff_wire::launcher::{MACHINE_MAC, MACHINE_MTU, MachineNetwork};

use crate::egress::{INSIDE_INDEX, INSIDE_NAME};
use crate::ipv6;
use crate::namespace::set_sysctl;
use crate::netlink::{Request, Socket};
use crate::nft::{self, Chain, Hook, Rule};
use crate::route;
use crate::table::CONNECTIONS_MAX;
use crate::tap;

const TAP_NAME: &str = "tap0";
/// Every machine's, from the range that [`crate::SERVICE_ADDRESS`] is from.
pub(crate) const MACHINE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
pub(crate) const MACHINE_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b69, 0x6667, 0, 0, 0, 0, 2);
/// The namespace's own, for what it has to refuse.
pub(crate) const ROUTER_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const ROUTER_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b69, 0x6667, 0, 0, 0, 0, 1);

const TABLE: &str = "machine";
const INPUT: Chain<'_> = chain("input");
const FORWARD: Chain<'_> = chain("forward");
const SOURCE_NAT: Chain<'_> = chain("source_nat");

const fn chain(name: &str) -> Chain<'_> {
    Chain {
        family: nft::NFPROTO_INET,
        table: TABLE,
        name,
    }
}

/// What a machine is to be told.
pub(crate) fn told(with_ipv6: bool) -> MachineNetwork {
    MachineNetwork {
        address: MACHINE_ADDRESS,
        address6: with_ipv6.then_some(MACHINE_ADDRESS6),
        mtu: MACHINE_MTU,
    }
}

/// Makes the tap and leads what comes by it out. The calling thread is inside
/// a namespace with a way out.
pub(crate) fn add_tap(with_ipv6: bool) -> io::Result<OwnedFd> {
    let tap = tap::make(TAP_NAME)?;
    let socket = Socket::route()?;
    let index = name_to_index(socket.as_fd(), TAP_NAME)?;
    for link in [TAP_NAME, INSIDE_NAME] {
        set_sysctl(&format!("ipv4/conf/{link}/forwarding"), "1")?;
    }
    if with_ipv6 {
        // The namespace is the instance's alone: it has no other links.
        set_sysctl("ipv6/conf/all/forwarding", "1")?;
    }
    // Before the link is up.
    Socket::netfilter()?.execute(&rules(index))?;
    let mut request = Request::new();
    route::set_address_without_arp(&mut request, index, MACHINE_MAC);
    route::add_address(&mut request, index, ROUTER_ADDRESS);
    route::set_up(&mut request, index);
    route::add_route(&mut request, index, Ipv4Net::from(MACHINE_ADDRESS));
    if with_ipv6 {
        route::add_address(&mut request, index, ROUTER_ADDRESS6);
        route::add_route(&mut request, index, Ipv6Net::from(MACHINE_ADDRESS6));
    }
    socket.execute(&request)?;
    Ok(tap)
}

fn rules(tap: u32) -> Request {
    let mut request = Request::new();
    nft::batch(&mut request, |batch| {
        nft::add_table(batch, nft::NFPROTO_INET, TABLE);
        nft::add_chain(batch, INPUT, Hook::Input);
        nft::add_rule(batch, INPUT, |rule| {
            rule.comes_by(tap);
            rule.drop();
        });
        nft::add_chain(batch, FORWARD, Hook::Forward);
        add_forward_rules(batch, tap);
        nft::add_chain(batch, SOURCE_NAT, Hook::SourceNat);
        nft::add_rule(batch, SOURCE_NAT, |rule| {
            rule.leaves_by(INSIDE_INDEX);
            rule.masquerade();
        });
    });
    request
}

/// What none of these accepts is dropped.
fn add_forward_rules(batch: &mut Request, tap: u32) {
    let mut from_machine = |fill: &dyn Fn(&mut Rule<'_>)| {
        nft::add_rule(batch, FORWARD, |rule| {
            rule.comes_by(tap);
            fill(rule);
        });
    };
    for address in [IpAddr::from(MACHINE_ADDRESS), MACHINE_ADDRESS6.into()] {
        from_machine(&|rule| {
            rule.source_is_not(address);
            rule.drop();
        });
    }
    from_machine(&|rule| {
        rule.leaves_by(INSIDE_INDEX);
        rule.state_is(nft::STATE_KNOWN);
        rule.accept();
    });
    from_machine(&|rule| {
        rule.state_is_not(nft::STATE_NEW);
        rule.drop();
    });
    from_machine(&|rule| {
        rule.connections_are_over(CONNECTIONS_MAX);
        rule.reject();
    });
    from_machine(&|rule| {
        rule.leaves_by(INSIDE_INDEX);
        rule.accept();
    });
    nft::add_rule(batch, FORWARD, |rule| {
        rule.comes_by(INSIDE_INDEX);
        rule.leaves_by(tap);
        rule.state_is(nft::STATE_KNOWN);
        rule.accept();
    });
}

/// Gives the one interface of the calling thread's machine its addresses, and
/// leads everything that is not in the machine out by it. To be called once
/// in a machine, after [`crate::Network::of_machine`].
///
/// # Errors
/// When the kernel refuses: with ENODEV a machine that has no interface.
pub fn connect_machine(network: &MachineNetwork) -> io::Result<()> {
    let socket = Socket::route()?;
    let index = name_to_index(socket.as_fd(), INSIDE_NAME)?;
    if network.address6.is_some() {
        set_sysctl("ipv6/conf/all/disable_ipv6", "0")?;
        ipv6::set_up_link(INSIDE_NAME)?;
    }
    let mut request = Request::new();
    route::set_mtu_without_arp(&mut request, index, network.mtu.into());
    route::add_address(&mut request, index, network.address);
    route::set_up(&mut request, index);
    route::add_route(&mut request, index, Ipv4Net::default());
    if let Some(address6) = network.address6 {
        route::add_address(&mut request, index, address6);
        route::add_local_route(&mut request, index, address6);
        route::add_route(&mut request, index, Ipv6Net::default());
    }
    socket.execute(&request)
}
