//! Egress on a host that is a namespace of the test's own, with a made-up
//! internet behind it: no packet leaves the machine.

use std::io;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use skiff_base::{Clock, SystemClock};
use skiff_types::ServerId;
use skiff_wire::launcher::PoolConfig;

use crate::egress::link_prefix;
use crate::namespace::{Visit, current, get_sysctl, set_sysctl};
use crate::netlink::{Request, Socket};
use crate::route::{self, Veth};
use crate::table::CONNECTIONS_MAX;
use crate::{NetOptions, Network, Networks, SweepReport};

/// Nobody announces it: were it ever to leak, it would go nowhere.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
/// Of a part of global unicast that is nobody's.
pub(crate) const PUBLIC6: Ipv6Addr = Ipv6Addr::new(0x2d00, 0x11, 0x22, 0, 0, 0, 0, 0x33);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2d00, 1, 0, 0, 0, 0, 0, 1);
/// What the internet has of IPv6 beside [`PUBLIC6`]: a private network,
/// Amazon's metadata, [`PRIVATE`] behind a translator and behind 6to4, and
/// documentation.
pub(crate) const CLOSED6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd09, 9, 0, 0, 0, 0, 0, 9),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0a09, 0x0909),
    Ipv6Addr::new(0x2002, 0x0a09, 0x0909, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
];
pub(crate) const PORT: u16 = 7000;
pub(crate) const PORT6: u16 = 7006;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// For what is expected to be dropped without a word.
pub(crate) const DOUBT: Duration = Duration::from_millis(300);
/// The internet's end of the line to the host.
pub(crate) const DOWN: u32 = 50;

/// The world of a test.
pub(crate) struct World {
    pub(crate) internet: OwnedFd,
    pub(crate) listener: TcpListener,
    pub(crate) listener6: TcpListener,
    folder: tempfile::TempDir,
}

/// Runs a test in a new namespace that stands for the host.
pub(crate) fn in_a_world(test: impl FnOnce(&World)) {
    let home = current().unwrap();
    let (_visit, host) = Visit::new_namespace(home.as_fd()).unwrap();
    let (visit, internet) = Visit::new_namespace(host.as_fd()).unwrap();
    let mut request = Request::new();
    route::set_up(&mut request, route::LOOPBACK);
    for address in [PUBLIC, PRIVATE, METADATA] {
        route::add_address(&mut request, route::LOOPBACK, address);
    }
    for address in std::iter::once(PUBLIC6).chain(CLOSED6) {
        add_address6(&mut request, route::LOOPBACK, address);
    }
    let line = Veth {
        name: "down0",
        index: DOWN,
        peer_name: "up0",
        peer_group: 0,
        peer_namespace: host.as_fd(),
        mac: [2, 0, 0, 0, 0, 1],
    };
    route::add_veth(&mut request, &line);
    route::set_up(&mut request, DOWN);
    // It knows the host's addresses only: replies to anybody else are lost.
    route::add_route(&mut request, DOWN, Ipv4Net::from(HOST));
    route::add_route(&mut request, DOWN, Ipv6Net::from(HOST6));
    Socket::route().unwrap().execute(&request).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let listener6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT6)).unwrap();
    drop(visit);
    let up = index_of("up0");
    let mut request = Request::new();
    route::set_up(&mut request, route::LOOPBACK);
    route::set_up(&mut request, up);
    route::add_address(&mut request, up, HOST);
    add_address6(&mut request, up, HOST6);
    route::add_route(&mut request, up, Ipv4Net::default());
    route::add_route(&mut request, up, Ipv6Net::default());
    Socket::route().unwrap().execute(&request).unwrap();
    // As strict as a distribution may have it.
    set_sysctl("ipv4/conf/all/rp_filter", "1").unwrap();
    within(&internet, || wait_operational(DOWN));
    test(&World {
        internet,
        listener,
        listener6,
        folder: tempfile::tempdir().unwrap(),
    });
}

/// An address that is heard at once.
pub(crate) fn add_address6(request: &mut Request, link: u32, address: Ipv6Addr) {
    route::add_address(request, link, address);
    route::add_local_route(request, link, address);
}

impl World {
    pub(crate) fn networks(&self, number: u32) -> Networks {
        self.networks_allowing(number, &[])
    }

    pub(crate) fn networks_allowing(&self, number: u32, allowed: &[&str]) -> Networks {
        let allowed = allowed.iter().map(|net| net.parse().unwrap()).collect();
        let options = NetOptions {
            allowed,
            ..self.options()
        };
        Networks::open(server(number), options).unwrap()
    }

    pub(crate) fn options(&self) -> NetOptions {
        NetOptions {
            lock_folder: self.folder.path().to_owned(),
            ..NetOptions::default()
        }
    }

    /// Names of the links that the host has beside its own.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = route::links(&Socket::route().unwrap()).unwrap();
        let names = links.into_iter().map(|link| link.name);
        names.filter(|name| name.starts_with("sk")).collect()
    }
}

pub(crate) fn index_of(name: &str) -> u32 {
    let links = route::links(&Socket::route().unwrap()).unwrap();
    links.iter().find(|link| link.name == name).unwrap().index
}

pub(crate) fn wait_operational(index: u32) {
    let socket = Socket::route().unwrap();
    let start = SystemClock.now();
    while !route::is_operational(&socket, index).unwrap() {
        assert!(SystemClock.now().since(start) < PATIENCE);
        std::thread::yield_now();
    }
}

/// Waits until nothing is leaving.
pub(crate) fn settle(networks: &mut Networks) {
    let start = SystemClock.now();
    while networks.leaving() > 0 {
        assert!(SystemClock.now().since(start) < PATIENCE);
        networks.refill_one().unwrap();
        std::thread::yield_now();
    }
}

pub(crate) fn server(number: u32) -> ServerId {
    ServerId::from_parts(1_700_000_000_000, number)
}

pub(crate) fn within<T>(place: &impl AsFd, work: impl FnOnce() -> T) -> T {
    let home = current().unwrap();
    let _visit = Visit::enter(home.as_fd(), place.as_fd()).unwrap();
    work()
}

pub(crate) fn connect(
    network: &Network,
    to: impl Into<IpAddr>,
    port: u16,
) -> io::Result<TcpStream> {
    within(network, || {
        TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), PATIENCE)
    })
}

/// A refusal that comes at once, not a silence.
pub(crate) fn assert_refused(network: &Network, to: impl Into<IpAddr>, port: u16) {
    let to = to.into();
    let error = connect(network, to, port).unwrap_err();
    // What the kernel makes of "administratively prohibited" in each family.
    let expected = match to {
        IpAddr::V4(_) => io::ErrorKind::HostUnreachable,
        IpAddr::V6(_) => io::ErrorKind::PermissionDenied,
    };
    assert_eq!(error.kind(), expected, "{to}: {error}");
}

#[test]
fn the_public_internet_is_reached_with_the_hosts_address() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let network = networks.take(true).unwrap();
        let client = connect(&network, PUBLIC, PORT).unwrap();
        let (served, from) = world.listener.accept().unwrap();
        assert_eq!(from.ip(), HOST);
        assert_eq!(
            client.local_addr().unwrap().ip(),
            network.address().unwrap()
        );
        served.shutdown(Shutdown::Both).unwrap();
        networks.close().unwrap();
    });
}

#[test]
fn private_metadata_and_host_addresses_are_refused() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let network = networks.take(true).unwrap();
        let host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7001)).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7001)).unwrap();
        for denied in [PRIVATE, METADATA] {
            // The host itself gets there: it is the table that refuses.
            TcpStream::connect((denied, PORT)).unwrap();
            assert_refused(&network, denied, PORT);
        }
        assert_refused(&network, HOST, 7001);
        within(&network, || {
            let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            client.send_to(b"hello", (HOST, 7001)).unwrap();
        });
        host.set_nonblocking(true).unwrap();
        assert!(host.accept().is_err());
        socket.set_read_timeout(Some(DOUBT)).unwrap();
        assert!(socket.recv(&mut [0; 8]).is_err());
    });
}

#[test]
fn an_operator_may_allow_a_private_range() {
    in_a_world(|world| {
        let mut networks = world.networks_allowing(1, &["10.9.0.0/16", "169.254.0.0/16"]);
        let network = networks.take(true).unwrap();
        connect(&network, PRIVATE, PORT).unwrap();
        // This host and its link stay closed all the same.
        assert_refused(&network, METADATA, PORT);
    });
}

#[test]
fn neighbours_are_refused_of_the_same_server_and_of_another() {
    in_a_world(|world| {
        // Whatever an operator allows, instances are not part of it.
        let mut one = world.networks_allowing(1, &["100.64.0.0/10"]);
        let mut two = world.networks(2);
        let network = one.take(true).unwrap();
        for neighbour in [one.take(true).unwrap(), two.take(true).unwrap()] {
            let address = neighbour.address().unwrap();
            assert_ne!(network.address(), neighbour.address());
            let listener = within(&neighbour, || {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
            });
            assert_refused(&network, address, PORT);
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err());
            connect(&neighbour, PUBLIC, PORT).unwrap();
        }
    });
}

#[test]
fn nobody_connects_in_from_outside() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let network = networks.take(true).unwrap();
        let address = network.address().unwrap();
        let listener = within(&network, || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
        });
        let outside = within(&world.internet, || {
            let mut request = Request::new();
            route::add_route(&mut request, 50, Ipv4Net::from(address));
            Socket::route().unwrap().execute(&request).unwrap();
            TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), DOUBT)
        });
        assert_eq!(outside.unwrap_err().kind(), io::ErrorKind::TimedOut);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    });
}

#[test]
fn an_address_that_is_not_the_instances_own_is_dropped() {
    in_a_world(|world| {
        // It is the table that drops it, not a host's reverse path filter.
        set_sysctl("ipv4/conf/all/rp_filter", "0").unwrap();
        let mut networks = world.networks(1);
        let network = networks.take(true).unwrap();
        let other = networks.take(true).unwrap().address().unwrap();
        let sink = within(&world.internet, || {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7002)).unwrap()
        });
        let forged = within(&network, || {
            let mut request = Request::new();
            route::add_address(&mut request, 100, other);
            Socket::route().unwrap().execute(&request).unwrap();
            let socket = UdpSocket::bind((other, 0)).unwrap();
            socket.send_to(b"forged", (PUBLIC, 7002))
        });
        forged.unwrap();
        within(&network, || {
            let address = network.address().unwrap();
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.send_to(b"honest", (PUBLIC, 7002)).unwrap();
        });
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 16];
        let len = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"honest");
    });
}

#[test]
fn ipv6_is_off_inside_and_on_the_hosts_end() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let network = networks.take(true).unwrap();
        within(&network, || {
            assert!(std::net::TcpListener::bind("[::1]:0").is_err());
        });
        let link = &network.state().egress.as_ref().unwrap().link;
        let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "1\n");
    });
}

#[test]
fn releasing_leaves_nothing_of_the_instance_and_closing_nothing_at_all() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let network = networks.take(true).unwrap();
        let inside = network.tcp_socket().unwrap();
        assert_eq!(world.links().len(), 1);
        networks.release(network).unwrap();
        // The socket holds the namespace: the kernel alone would not do it.
        settle(&mut networks);
        assert_eq!(world.links(), [""; 0]);
        let taken = [networks.take(true).unwrap(), networks.take(true).unwrap()];
        networks.close().unwrap();
        assert_eq!(world.links(), [""; 0]);
        assert_eq!(world.networks(1).sweep().unwrap(), SweepReport::default());
        drop((inside, taken));
    });
}

#[test]
fn after_a_crash_a_sweep_removes_this_servers_remains_only() {
    in_a_world(|world| {
        let (mut dead, mut other) = (world.networks(1), world.networks(2));
        // The processes of the dead launcher's instance still live.
        let orphan = dead.take(true).unwrap();
        let _second = dead.take(true).unwrap();
        let neighbour = other.take(true).unwrap();
        drop(dead);
        let report = world.networks(1).sweep().unwrap();
        let expected = SweepReport {
            links: 2,
            tables: 1,
            claims: 1,
        };
        assert_eq!(report, expected);
        let links = world.links();
        assert_eq!(links.len(), 1);
        assert!(links[0].starts_with(&link_prefix(server(2))));
        connect(&neighbour, PUBLIC, PORT).unwrap();
        assert_eq!(other.sweep().unwrap(), SweepReport::default());
        assert!(connect(&orphan, PUBLIC, PORT).is_err());
    });
}

#[test]
fn an_upgrade_keeps_networks_ready_taken_and_claimed() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        networks.configure(PoolConfig {
            networks: 1,
            egress_networks: 1,
        });
        while networks.refill_one().unwrap() {}
        let taken = networks.take(true).unwrap();
        while networks.refill_one().unwrap() {}
        let (state, fds) = networks.into_parts();
        let (taken_state, taken_fd) = taken.into_parts();
        let mut networks = Networks::from_parts(server(1), world.options(), state, fds).unwrap();
        networks.configure(PoolConfig {
            networks: 0,
            egress_networks: 0,
        });
        assert_eq!(networks.sweep().unwrap(), SweepReport::default());
        let taken = Network::from_parts(taken_state, taken_fd);
        connect(&taken, PUBLIC, PORT).unwrap();
        assert_eq!(world.links().len(), 2);
        let ready = networks.take(true).unwrap();
        connect(&ready, PUBLIC, PORT).unwrap();
        assert_eq!(world.links().len(), 2);
        networks.release(taken).unwrap();
        networks.release(ready).unwrap();
        settle(&mut networks);
        networks.close().unwrap();
        assert_eq!(world.links(), [""; 0]);
    });
}

#[test]
fn a_part_of_the_pool_that_the_host_routes_elsewhere_is_avoided() {
    in_a_world(|world| {
        let socket = Socket::route().unwrap();
        let up = index_of("up0");
        let mut request = Request::new();
        let busy: Ipv4Net = "100.96.0.0/21".parse().unwrap();
        route::add_route(&mut request, up, busy);
        socket.execute(&request).unwrap();
        let network = world.networks(1).take(true).unwrap();
        let address = network.address().unwrap();
        assert!(
            "100.96.16.0/20"
                .parse::<Ipv4Net>()
                .unwrap()
                .contains(&address)
        );
    });
}

/// Whether the host forwards what comes in from outside.
fn forwards() -> bool {
    get_sysctl("ipv4/conf/up0/forwarding").unwrap().as_deref() == Some("1")
}

#[test]
fn forwarding_ends_with_the_last_server_even_after_a_crash() {
    in_a_world(|world| {
        assert!(!forwards());
        let (mut one, mut two) = (world.networks(1), world.networks(2));
        one.take(true).unwrap();
        two.take(true).unwrap();
        assert!(forwards());
        one.close().unwrap();
        assert!(forwards());
        drop(two);
        world.networks(2).sweep().unwrap();
        assert!(!forwards());
    });
}

#[test]
fn forwarding_stays_when_it_is_the_hosts_own_setting() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        networks.take(true).unwrap();
        set_sysctl("ipv4/conf/all/forwarding", "1").unwrap();
        networks.close().unwrap();
        assert!(forwards());
    });
}

/// No connection of this namespace may end before the last has begun.
pub(crate) fn outlast_the_test() {
    set_sysctl("netfilter/nf_conntrack_udp_timeout", "3600").unwrap();
}

#[test]
fn an_instance_has_so_many_connections_and_its_neighbours_theirs() {
    in_a_world(|world| {
        let sink = within(&world.internet, || {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7002)).unwrap()
        });
        sink.set_nonblocking(true).unwrap();
        let mut networks = world.networks(1);
        let greedy = networks.take(true).unwrap();
        let modest = networks.take(true).unwrap();
        outlast_the_test();
        within(&greedy, outlast_the_test);
        let mut arrived = 0;
        let many = u16::try_from(CONNECTIONS_MAX + 100).unwrap();
        for port in 20_000..20_000 + many {
            within(&greedy, || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                socket.send_to(b"more", (PUBLIC, 7002)).unwrap();
            });
            arrived += u32::from(sink.recv(&mut [0; 8]).is_ok());
        }
        while sink.recv(&mut [0; 8]).is_ok() {
            arrived += 1;
        }
        assert!(arrived > CONNECTIONS_MAX / 2, "{arrived}");
        assert!(arrived <= CONNECTIONS_MAX, "{arrived}");
        connect(&modest, PUBLIC, PORT).unwrap();
    });
}

#[test]
fn other_links_are_not_forwarded_for() {
    in_a_world(|world| {
        let _network = world.networks(1).take(true).unwrap();
        for (link, expected) in [("up0", "1\n"), ("lo", "0\n"), ("all", "0\n")] {
            let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
            assert_eq!(std::fs::read_to_string(path).unwrap(), expected, "{link}");
        }
        set_sysctl("ipv4/conf/no-such-link/forwarding", "1").unwrap();
    });
}

#[test]
fn the_first_packets_of_a_fresh_network_are_not_lost() {
    in_a_world(|world| {
        let sink = within(&world.internet, || {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7002)).unwrap()
        });
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut networks = world.networks(1);
        for _ in 0..50 {
            let network = networks.take(true).unwrap();
            let client = within(&network, || {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()
            });
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"there", (PUBLIC, 7002)).unwrap();
            let mut buffer = [0; 8];
            let (_, from) = sink.recv_from(&mut buffer).unwrap();
            sink.send_to(b"back", from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 4);
            networks.release(network).unwrap();
        }
    });
}

#[test]
fn preparing_taking_and_releasing_is_timed() {
    in_a_world(|world| time("egress", world.networks(1)));
}

/// Prints what a network costs.
pub(crate) fn time(what: &str, mut networks: Networks) {
    let start = SystemClock.now();
    let first = networks.take(true).unwrap();
    let opened = SystemClock.now();
    networks.configure(PoolConfig {
        networks: 0,
        egress_networks: 50,
    });
    while networks.refill_one().unwrap() {}
    let refilled = SystemClock.now();
    let taken: Vec<_> = (0..50).map(|_| networks.take(true).unwrap()).collect();
    let taken_at = SystemClock.now();
    for network in taken {
        networks.release(network).unwrap();
    }
    let released = SystemClock.now();
    networks.configure(PoolConfig {
        networks: 0,
        egress_networks: 0,
    });
    settle(&mut networks);
    let settled = SystemClock.now();
    networks.release(first).unwrap();
    networks.close().unwrap();
    println!(
        "{what}: first {:?}, refill {:?} each, take {:?} each, release {:?} each, settled in {:?}, close {:?}",
        opened.since(start),
        refilled.since(opened) / 50,
        taken_at.since(refilled) / 50,
        released.since(taken_at) / 50,
        settled.since(released),
        SystemClock.now().since(settled),
    );
}
