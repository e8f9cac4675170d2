//! The way out of instances: veth pairs, addresses, the table's members.
//!
//! ```text
//!  free ──prepare──▶ live ──release──▶ leaving ──its link is gone──▶ free
//! ```
//! Removing a veth pair takes the kernel tens of milliseconds, for one as for
//! a hundred; it does so by itself, in the background, once nothing holds the
//! namespace any more. So a released network loses its place in the table and
//! is left to the kernel; what is still there a while later is removed by us.
//!
//! The host has no address on its end of a pair and the pair does without
//! ARP: the instance's default route and the host's route to the instance's
//! one address name the interface only. So it is with IPv6, where an operator
//! wants it; but there the host's end has an address, the same on every pair,
//! for refusals to come from on a host that has no other.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use serde::{Deserialize, Serialize};
use skiff_base::{Clock, Monotonic, SystemClock};
use skiff_types::ServerId;

use crate::error::{NetError, Step};
use crate::forwarding6;
use crate::inside;
use crate::ipv6;
use crate::namespace::{Visit, set_sysctl};
use crate::netlink::{Request, Socket};
use crate::network::{EgressState, Network, NetworkState};
use crate::networks::NetOptions;
use crate::nft::{self, Set};
use crate::route::{self, GROUP_BIT, Link, Veth};
use crate::share::Share;
use crate::table::{self, Ipv6Table, MEMBERS, MEMBERS6, Table};
use crate::uplink::{self, overlaps};

/// The instance's interface; a namespace that is new has none of this index.
pub(crate) const INSIDE_NAME: &str = "eth0";
pub(crate) const INSIDE_INDEX: u32 = 100;
/// IFNAMSIZ, and with it nftables' length of an interface name.
const NAME_LEN: usize = 16;
/// How long a link may take to carry packets: then it goes out as it is.
const OPERATIONAL_DEADLINE: Duration = Duration::from_millis(500);
const OPERATIONAL_RETRY: Duration = Duration::from_micros(100);
/// How long a released network is left to the kernel.
const LEAVING_MAX: Duration = Duration::from_secs(1);

/// What of an [`Egress`] survives an execve, beside its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EgressPoolState {
    share: Ipv4Net,
    live: BTreeSet<u32>,
    leaving: Vec<u32>,
    next: u32,
}

/// One server's part of the pool and what is made of it.
#[derive(Debug)]
pub(crate) struct Egress {
    prefix: String,
    group: u32,
    table: String,
    share: Share,
    /// Where IPv6 addresses are from. It stays what it was at the launcher's
    /// start, so that either every network has one or none.
    ipv6_pool: Option<Ipv6Net>,
    /// Leaving ones included.
    live: BTreeSet<u32>,
    /// With the time of their release, oldest first.
    leaving: VecDeque<(u32, Monotonic)>,
    next: u32,
    route: Socket,
    filter: Socket,
}

/// What the names of a server's links start with: nine characters, of which
/// the last seven hold the random part of the id.
pub(crate) fn link_prefix(server: ServerId) -> String {
    let text = server.to_string();
    format!("sk{}", &text[text.len() - 7..])
}

/// The group of a server's links: a hash (FNV-1a) of its id.
fn link_group(server: ServerId) -> u32 {
    let text = server.to_string();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash | GROUP_BIT
}

impl Egress {
    /// Claims a part of the pool and loads the table.
    pub(crate) fn open(server: ServerId, options: &NetOptions) -> Result<Self, NetError> {
        let socket = Socket::route().step("open a netlink socket for", server)?;
        let routes = foreign_routes(&socket, server).step("read the routes for", server)?;
        let share = claim(server, options, &routes)?;
        let state = EgressPoolState {
            share: share.net(),
            live: BTreeSet::new(),
            leaving: Vec::new(),
            next: 1,
        };
        let (_, claim) = share.into_parts();
        Self::from_parts(server, options, state, claim)
    }

    /// Puts together what [`Self::into_parts`] took apart, and loads the
    /// table as this program writes it.
    pub(crate) fn from_parts(
        server: ServerId,
        options: &NetOptions,
        state: EgressPoolState,
        claim: OwnedFd,
    ) -> Result<Self, NetError> {
        let now = SystemClock.now();
        let egress = Self {
            prefix: link_prefix(server),
            group: link_group(server),
            table: table::name(server),
            share: Share::from_parts(state.share, claim),
            ipv6_pool: options.ipv6_pool,
            live: state.live,
            leaving: state.leaving.iter().map(|offset| (*offset, now)).collect(),
            next: state.next,
            route: Socket::route().step("open a netlink socket for", server)?,
            filter: Socket::netfilter().step("open a netlink socket for", server)?,
        };
        uplink::forward(&options.lock_folder, &egress.route, &options.allowed)?;
        let members = egress
            .live
            .iter()
            .filter(|offset| !state.leaving.contains(offset));
        let members = members.map(|offset| (egress.link_name(*offset), egress.address(*offset)));
        Table {
            server,
            prefix: &egress.prefix,
            share: state.share,
            pool: options.pool,
            ipv6: ipv6_table(options)?,
            allowed: &options.allowed,
            members: members.collect(),
        }
        .load(&options.nft)?;
        if options.ipv6_pool.is_some() {
            // Now that the table's guard stands.
            forwarding6::turn_on(&options.lock_folder)?;
        }
        Ok(egress)
    }

    pub(crate) fn into_parts(self) -> (EgressPoolState, OwnedFd) {
        let (share, claim) = self.share.into_parts();
        let state = EgressPoolState {
            share,
            live: self.live,
            leaving: self.leaving.into_iter().map(|(offset, _)| offset).collect(),
            next: self.next,
        };
        (state, claim)
    }

    /// Makes a network with a way out.
    pub(crate) fn prepare(&mut self, home: BorrowedFd<'_>) -> Result<Network, NetError> {
        let offset = self.next_free()?;
        let (address, link) = (self.address(offset), self.link_name(offset));
        let made = self.build(home, address, &link);
        match made {
            Ok(namespace) => {
                self.live.insert(offset);
                let egress = Some(EgressState { address, link });
                Ok(Network::from_parts(NetworkState { egress }, namespace))
            }
            Err(error) => {
                // The first error is the one to tell.
                if let Err(undo) = self.remove(address, &link) {
                    tracing::warn!(error = %skiff_base::chain(&undo), "a failed network leaves something behind");
                }
                Err(error)
            }
        }
    }

    fn build(
        &self,
        home: BorrowedFd<'_>,
        address: Ipv4Addr,
        link: &str,
    ) -> Result<OwnedFd, NetError> {
        let (visit, namespace) =
            Visit::new_namespace(home).step("make a network namespace for", link)?;
        let veth = Veth {
            name: INSIDE_NAME,
            index: INSIDE_INDEX,
            peer_name: link,
            peer_group: self.group,
            peer_namespace: home,
            mac: mac(address),
        };
        inside::prepare(self.ipv6_pool.is_some(), |request| {
            route::add_veth(request, &veth);
        })
        .step("prepare the network namespace of", link)?;
        drop(visit);
        self.connect_host(address, link).step("connect", link)?;
        let visit = Visit::enter(home, namespace.as_fd()).step("enter the namespace of", link)?;
        connect_inside(address, self.address6(address)).step("set up the inside of", link)?;
        drop(visit);
        Ok(namespace)
    }

    /// The host's half. The member comes before the link is up.
    fn connect_host(&self, address: Ipv4Addr, link: &str) -> io::Result<()> {
        let index = name_to_index(self.route.as_fd(), link)?;
        set_sysctl(&format!("ipv4/conf/{link}/forwarding"), "1")?;
        let address6 = self.address6(address);
        match address6 {
            Some(_) => ipv6::set_up_link(link)?,
            None => set_sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "1")?,
        }
        self.change_members(address, link, nft::add_elements)?;
        let mut request = Request::new();
        route::set_up(&mut request, index);
        route::add_route(&mut request, index, Ipv4Net::from(address));
        if let Some((address6, own)) = address6.zip(self.address6(self.address(0))) {
            route::add_address(&mut request, index, own);
            route::add_route(&mut request, index, Ipv6Net::from(address6));
        }
        self.route.execute(&request)
    }

    /// Waits until what the host sends to the instance arrives. The end that
    /// came up first is activated in the background; without this the first
    /// answer to a fresh instance can be lost, which costs it a second.
    pub(crate) fn wait_operational(&self, egress: &EgressState) -> Result<(), NetError> {
        let link = &egress.link;
        let index = name_to_index(self.route.as_fd(), link).step("look for", link)?;
        let start = SystemClock.now();
        while !route::is_operational(&self.route, index).step("look at", link)? {
            if SystemClock.now().since(start) > OPERATIONAL_DEADLINE {
                tracing::warn!(link, "the link is slow to come up");
                break;
            }
            std::thread::sleep(OPERATIONAL_RETRY);
        }
        Ok(())
    }

    /// Takes an instance's network off the host. Its namespace's descriptor
    /// was closed by the caller.
    pub(crate) fn release(&mut self, egress: &EgressState) -> Result<(), NetError> {
        self.remove_member(egress.address, &egress.link)?;
        let offset = self.offset(egress.address);
        if self.live.contains(&offset) {
            self.leaving.push_back((offset, SystemClock.now()));
        }
        Ok(())
    }

    /// Frees the addresses whose links are gone, and removes at most one link
    /// that stayed too long. Says whether it did anything.
    pub(crate) fn collect(&mut self) -> Result<bool, NetError> {
        let mut gone = Vec::new();
        let mut overdue = None;
        let now = SystemClock.now();
        for (offset, since) in &self.leaving {
            let link = self.link_name(*offset);
            match name_to_index(self.route.as_fd(), &link) {
                Err(Errno::NODEV) => gone.push(*offset),
                Err(error) => return Err(error).step("look for", link),
                Ok(_) if overdue.is_none() && now.since(*since) > LEAVING_MAX => {
                    overdue = Some(link);
                }
                Ok(_) => {}
            }
        }
        self.leaving.retain(|(offset, _)| !gone.contains(offset));
        for offset in &gone {
            self.live.remove(offset);
        }
        if let Some(link) = &overdue {
            delete_link(&self.route, link).step("remove", link)?;
        }
        Ok(overdue.is_some() || !gone.is_empty())
    }

    /// How many networks the kernel has yet to remove.
    pub(crate) fn leaving(&self) -> usize {
        self.leaving.len()
    }

    fn remove(&self, address: Ipv4Addr, link: &str) -> Result<(), NetError> {
        self.remove_member(address, link)?;
        delete_link(&self.route, link).step("remove", link)
    }

    fn remove_member(&self, address: Ipv4Addr, link: &str) -> Result<(), NetError> {
        let removed = self.change_members(address, link, nft::delete_elements);
        ignore_missing(removed).step("remove the member", link)?;
        Ok(())
    }

    /// Adds or removes both members of an instance, or neither.
    fn change_members(
        &self,
        address: Ipv4Addr,
        link: &str,
        change: impl Fn(&mut Request, Set<'_>, &[Vec<u8>]),
    ) -> io::Result<()> {
        let set = |name| Set {
            table: &self.table,
            name,
        };
        let mut request = Request::new();
        nft::batch(&mut request, |batch| {
            change(batch, set(MEMBERS), &[key(link, &address.octets())]);
            if let Some(address6) = self.address6(address) {
                change(batch, set(MEMBERS6), &[key(link, &address6.octets())]);
            }
        });
        self.filter.execute(&request)
    }

    /// Whether a link of this server's is in use.
    pub(crate) fn owns(&self, link: &str) -> bool {
        self.live
            .iter()
            .any(|offset| self.link_name(*offset) == link)
    }

    /// Removes the table and gives the addresses back.
    pub(crate) fn close(self, server: ServerId, options: &NetOptions) -> Result<(), NetError> {
        remove_links(&self.route, server, |_| true).step("remove the links of", server)?;
        remove_table(&self.filter, &self.table)?;
        self.share.end(&options.lock_folder)?;
        uplink::stop_if_last(&options.lock_folder)?;
        forwarding6::stop_if_last(&options.lock_folder)
    }

    /// Addresses are used in a ring, so that one comes back late: what is
    /// still on its way to its last owner finds nobody.
    fn next_free(&mut self) -> Result<u32, NetError> {
        let size = 1 << (32 - self.share.net().prefix_len());
        // Neither the first nor the last, which some programs think special.
        let usable = 1..size - 1;
        for _ in usable.clone() {
            let offset = self.next;
            self.next = if offset + 1 < usable.end {
                offset + 1
            } else {
                1
            };
            if !self.live.contains(&offset) {
                return Ok(offset);
            }
        }
        Err(NetError::AddressesExhausted {
            share: self.share.net(),
            limit: usable.len(),
        })
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.share.net().network().to_bits() + offset)
    }

    fn offset(&self, address: Ipv4Addr) -> u32 {
        address
            .to_bits()
            .wrapping_sub(self.share.net().network().to_bits())
    }

    fn link_name(&self, offset: u32) -> String {
        format!("{}{offset}", self.prefix)
    }

    fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let pool = self.ipv6_pool?;
        Some(ipv6::address(pool, address))
    }
}

/// The instance's half. The calling thread is inside.
fn connect_inside(address: Ipv4Addr, address6: Option<Ipv6Addr>) -> io::Result<()> {
    let mut request = Request::new();
    route::add_address(&mut request, INSIDE_INDEX, address);
    route::set_up(&mut request, INSIDE_INDEX);
    route::add_route(&mut request, INSIDE_INDEX, Ipv4Net::default());
    if let Some(address6) = address6 {
        route::add_address(&mut request, INSIDE_INDEX, address6);
        route::add_local_route(&mut request, INSIDE_INDEX, address6);
        route::add_route(&mut request, INSIDE_INDEX, Ipv6Net::default());
    }
    Socket::route()?.execute(&request)
}

/// Claims a part of the pool that `routes` leave alone, and with it the part
/// of the IPv6 pool that belongs to it.
fn claim(server: ServerId, options: &NetOptions, routes: &[IpNet]) -> Result<Share, NetError> {
    if let Some(pool) = options.ipv6_pool {
        check_ipv6(pool, routes)?;
    }
    Share::claim(&options.lock_folder, options.pool, server, |net| {
        let part6 = options.ipv6_pool.map(|pool| ipv6::share(pool, net).into());
        let mut parts = std::iter::once(net.into()).chain(part6);
        parts.any(|part| routes.iter().any(|to| overlaps(*to, part)))
    })
}

fn check_ipv6(pool: Ipv6Net, routes: &[IpNet]) -> Result<(), NetError> {
    if !ipv6::is_supported() {
        return Err(NetError::NoIpv6);
    }
    if pool.prefix_len() > ipv6::POOL_PREFIX_MAX {
        return Err(NetError::Ipv6PoolTooSmall {
            pool,
            limit: ipv6::POOL_PREFIX_MAX,
        });
    }
    let holds_pool = |route: &&IpNet| route.contains(&IpNet::from(pool));
    match routes.iter().find(holds_pool) {
        Some(route) => Err(NetError::Ipv6PoolRouted {
            pool,
            route: *route,
        }),
        None => Ok(()),
    }
}

fn ipv6_table(options: &NetOptions) -> Result<Option<Ipv6Table>, NetError> {
    let Some(pool) = options.ipv6_pool else {
        return Ok(None);
    };
    let guard = forwarding6::is_ours(&options.lock_folder)?;
    Ok(Some(Ipv6Table { pool, guard }))
}

/// Removes a server's links that are `doomed` and says how many.
pub(crate) fn remove_links(
    socket: &Socket,
    server: ServerId,
    doomed: impl Fn(&str) -> bool,
) -> io::Result<usize> {
    let (prefix, group) = (link_prefix(server), link_group(server));
    let is_doomed = |link: &Link| link.name.starts_with(&prefix) && doomed(&link.name);
    let (doomed, others): (Vec<Link>, Vec<Link>) =
        route::links(socket)?.into_iter().partition(is_doomed);
    // Nothing else may be in the group, whoever put it there.
    let whole = others.iter().all(|link| link.group != group);
    if whole && doomed.iter().all(|link| link.group == group) && doomed.len() > 1 {
        let mut request = Request::new();
        route::delete_group(&mut request, group);
        ignore_missing(socket.execute(&request))?;
    } else {
        for link in &doomed {
            delete_link(socket, &link.name)?;
        }
    }
    Ok(doomed.len())
}

/// Removes a link unless it is gone.
pub(crate) fn delete_link(socket: &Socket, link: &str) -> io::Result<()> {
    let mut request = Request::new();
    route::delete_link(&mut request, link);
    ignore_missing(socket.execute(&request)).map(|_| ())
}

/// Removes a server's table and says whether there was one.
pub(crate) fn remove_table(filter: &Socket, table: &str) -> Result<bool, NetError> {
    let mut request = Request::new();
    nft::batch(&mut request, |batch| nft::delete_table(batch, table));
    ignore_missing(filter.execute(&request)).step("remove the table", table)
}

/// Whether there was something to remove.
fn ignore_missing(result: io::Result<()>) -> io::Result<bool> {
    let missing = [Errno::NOENT, Errno::NODEV].map(|errno| Some(errno.raw_os_error()));
    match result {
        Ok(()) => Ok(true),
        Err(error) if missing.contains(&error.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The host's routes that are not to this server's own links: their
/// prefixes, without the default.
fn foreign_routes(socket: &Socket, server: ServerId) -> io::Result<Vec<IpNet>> {
    let prefix = link_prefix(server);
    let links = route::links(socket)?;
    let own: BTreeSet<u32> = links
        .iter()
        .filter(|link| link.name.starts_with(&prefix))
        .map(|link| link.index)
        .collect();
    let routes = route::routes(socket)?;
    let foreign = routes
        .into_iter()
        .filter(|route| route.to.prefix_len() > 0 && !own.contains(&route.index));
    Ok(foreign.map(|route| route.to).collect())
}

/// A locally administered address of the pair, told apart by the instance's.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x73, a, b, c, d]
}

/// An element of [`MEMBERS`] or [`MEMBERS6`].
fn key(link: &str, address: &[u8]) -> Vec<u8> {
    let mut key = link.as_bytes().to_vec();
    key.resize(NAME_LEN, 0);
    key.extend_from_slice(address);
    key
}
