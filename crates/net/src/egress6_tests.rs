//! IPv6 on the same made-up host and internet as [`crate::egress_tests`].

use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ipnet::{Ipv4Net, Ipv6Net};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with, sockopt,
};
use skiff_base::{Clock, SystemClock};
use skiff_wire::launcher::PoolConfig;

use crate::egress_tests::{
    CLOSED6, DOUBT, DOWN, HOST6, PATIENCE, PORT6, PUBLIC, PUBLIC6, World, add_address6,
    assert_refused, connect, in_a_world, index_of, server, settle, time, wait_operational, within,
};
use crate::namespace::{Visit, current, get_sysctl, set_sysctl};
use crate::netlink::{Request, Socket};
use crate::route::{self, Veth};
use crate::{NetError, NetOptions, Network, Networks, SweepReport, forwarding6, ipv6};

const POOL: &str = "fd73:6b69:6666::/48";
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The instance's interface.
const INSIDE: u32 = 100;
/// Another interface of the host's, at its far end.
const LAN: u32 = 60;
const NEIGHBOUR4: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 8);
const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0x2d00, 2, 0, 0, 0, 0, 0, 2);

fn options(world: &World) -> NetOptions {
    NetOptions {
        ipv6_pool: Some(POOL.parse().unwrap()),
        ..world.options()
    }
}

fn networks(world: &World, number: u32) -> Networks {
    Networks::open(server(number), options(world)).unwrap()
}

fn networks_allowing(world: &World, number: u32, allowed: &str) -> Networks {
    let options = NetOptions {
        allowed: vec![allowed.parse().unwrap()],
        ..options(world)
    };
    Networks::open(server(number), options).unwrap()
}

fn address6(network: &Network) -> Ipv6Addr {
    ipv6::address(POOL.parse().unwrap(), network.address().unwrap())
}

fn udp(place: &impl AsFd, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    within(place, || {
        UdpSocket::bind(SocketAddr::new(address.into(), port)).unwrap()
    })
}

/// The kernel's list of IPv6 addresses where this thread is.
fn addresses6() -> Vec<Ipv6Addr> {
    let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let bits = |line: &str| u128::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    let mut found: Vec<_> = text
        .lines()
        .map(|line| Ipv6Addr::from(bits(line)))
        .collect();
    found.sort();
    found
}

/// How many IPv6 default routes there are where this thread is.
fn default_routes6() -> usize {
    let routes = route::routes(&Socket::route().unwrap()).unwrap();
    let all: ipnet::IpNet = Ipv6Net::default().into();
    routes.iter().filter(|route| route.to == all).count()
}

fn wait_for_default_routes6(count: usize) {
    let start = SystemClock.now();
    while default_routes6() != count {
        assert!(SystemClock.now().since(start) < PATIENCE);
        std::thread::yield_now();
    }
}

/// Sends a router advertisement (RFC 4861 section 4.2), perhaps with a prefix
/// to make addresses of, from [`ROUTER`], which the link must have.
fn advertise(link: u32, lifetime_s: u16, prefix: Option<Ipv6Addr>) {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend_from_slice(&lifetime_s.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    if let Some(prefix) = prefix {
        message.extend_from_slice(&[3, 4, 64, 0xc0]);
        message.extend_from_slice(&3600u32.to_be_bytes());
        message.extend_from_slice(&3600u32.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&prefix.octets());
    }
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(ipproto::ICMPV6);
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, protocol).unwrap();
    sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
    bind(&socket, &SocketAddrV6::new(ROUTER, 0, 0, link)).unwrap();
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, link);
    sendto(&socket, &message, SendFlags::empty(), &to).unwrap();
}

fn add_address(link: u32, address: Ipv6Addr) {
    let mut request = Request::new();
    add_address6(&mut request, link, address);
    Socket::route().unwrap().execute(&request).unwrap();
}

#[test]
fn the_public_internet_is_reached_over_ipv6_with_the_hosts_address() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        let client = connect(&network, PUBLIC6, PORT6).unwrap();
        let (_served, from) = world.listener6.accept().unwrap();
        assert_eq!(from.ip(), HOST6);
        assert_eq!(client.local_addr().unwrap().ip(), address6(&network));
        // It is there beside IPv4.
        let client = connect(&network, PUBLIC, PORT6).unwrap();
        assert_eq!(
            client.local_addr().unwrap().ip(),
            network.address().unwrap()
        );
        networks.close().unwrap();
    });
}

#[test]
fn closed_ranges_and_the_host_are_refused() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        for denied in CLOSED6 {
            // The host itself gets there: it is the table that refuses.
            TcpStream::connect((denied, PORT6)).unwrap();
            assert_refused(&network, denied, PORT6);
        }
        // The kernel makes IPv4 of it.
        let mapped = Ipv4Addr::new(10, 9, 9, 9).to_ipv6_mapped();
        let error = connect(&network, mapped, PORT6).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable);
        let host = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7001)).unwrap();
        let elsewhere = Ipv6Addr::new(0x2d00, 1, 0, 0, 0, 0, 0, 2);
        add_address(route::LOOPBACK, elsewhere);
        for address in [HOST6, elsewhere] {
            TcpStream::connect((address, 7001)).unwrap();
            host.accept().unwrap();
            assert_refused(&network, address, 7001);
        }
        // Of the host's end of the link.
        let end = ipv6::address(POOL.parse().unwrap(), Ipv4Addr::new(100, 96, 0, 0));
        assert_refused(&network, end, 7001);
        host.set_nonblocking(true).unwrap();
        assert!(host.accept().is_err());
    });
}

#[test]
fn a_host_without_ipv6_of_its_own_says_so_at_once() {
    in_a_world(|world| {
        ip("-6 route del default");
        ip("-6 addr flush dev up0");
        let network = networks(world, 1).take(true).unwrap();
        let told = connect(&network, PUBLIC6, PORT6).unwrap_err();
        assert_eq!(told.kind(), std::io::ErrorKind::NetworkUnreachable);
    });
}

#[test]
fn the_hosts_end_of_the_link_hears_nothing() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        let link = index_of(&network.state().egress.as_ref().unwrap().link);
        let sink = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7003)).unwrap();
        sink.set_read_timeout(Some(DOUBT)).unwrap();
        add_address(link, ROUTER);
        let client = udp(&network, Ipv6Addr::UNSPECIFIED, 0);
        for to in [ALL_NODES, ROUTER] {
            let to = SocketAddrV6::new(to, 7003, 0, INSIDE);
            // A refusal of the one before may be told here.
            let _told = client.send_to(b"hello", to);
        }
        assert!(sink.recv(&mut [0; 8]).is_err());
        // The socket does hear what the table does not stop.
        let own = SocketAddrV6::new(ROUTER, 7003, 0, link);
        let here = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        here.send_to(b"hello", own).unwrap();
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        sink.recv(&mut [0; 8]).unwrap();
    });
}

#[test]
fn an_operator_may_allow_a_private_range_but_no_metadata() {
    in_a_world(|world| {
        let mut networks = networks_allowing(world, 1, "fd00::/8");
        let network = networks.take(true).unwrap();
        let [private, metadata, translated, ..] = CLOSED6;
        connect(&network, private, PORT6).unwrap();
        assert_refused(&network, metadata, PORT6);
        assert_refused(&network, translated, PORT6);
    });
}

#[test]
fn neighbours_are_refused_of_the_same_server_and_of_another() {
    in_a_world(|world| {
        // Whatever an operator allows, instances are not part of it.
        let mut one = networks_allowing(world, 1, "fd00::/8");
        let mut two = networks(world, 2);
        let mut three = Networks::open(
            server(3),
            NetOptions {
                ipv6_pool: Some("fd99::/96".parse().unwrap()),
                ..options(world)
            },
        )
        .unwrap();
        let network = one.take(true).unwrap();
        let elsewhere = three.take(true).unwrap();
        let neighbours = [one.take(true).unwrap(), two.take(true).unwrap()];
        for neighbour in &neighbours {
            assert_closed(&network, neighbour, address6(neighbour));
            connect(neighbour, PUBLIC6, PORT6).unwrap();
        }
        // Of another pool: it is the other server that lets nobody in.
        let address = "fd99::".parse().unwrap();
        let address = ipv6::address(
            Ipv6Net::new_assert(address, 96),
            elsewhere.address().unwrap(),
        );
        let listener = within(&elsewhere, || TcpListener::bind((address, PORT6)).unwrap());
        within(&network, || {
            let to = SocketAddr::from((address, PORT6));
            TcpStream::connect_timeout(&to, DOUBT).unwrap_err();
        });
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
        connect(&elsewhere, PUBLIC6, PORT6).unwrap();
    });
}

fn assert_closed(network: &Network, neighbour: &Network, address: Ipv6Addr) {
    let listener = within(neighbour, || {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT6)).unwrap()
    });
    within(neighbour, || TcpStream::connect((address, PORT6)).unwrap());
    listener.accept().unwrap();
    assert_refused(network, address, PORT6);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn nobody_connects_in_from_outside() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        let address = address6(&network);
        let sink = udp(&network, address, 7002);
        within(&world.internet, || {
            let mut request = Request::new();
            route::add_route(&mut request, DOWN, Ipv6Net::from(address));
            Socket::route().unwrap().execute(&request).unwrap();
        });
        let outside = udp(&world.internet, PUBLIC6, 7002);
        outside.send_to(b"unasked", (address, 7002)).unwrap();
        sink.set_read_timeout(Some(DOUBT)).unwrap();
        assert!(sink.recv(&mut [0; 8]).is_err());
        // An answer comes in by the same way.
        sink.send_to(b"asked", (PUBLIC6, 7002)).unwrap();
        let (_, from) = outside.recv_from(&mut [0; 8]).unwrap();
        outside.send_to(b"answer", from).unwrap();
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        sink.recv(&mut [0; 8]).unwrap();
    });
}

#[test]
fn an_address_that_is_not_the_instances_own_is_dropped() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        let other = address6(&networks.take(true).unwrap());
        let sink = udp(&world.internet, Ipv6Addr::UNSPECIFIED, 7002);
        within(&network, || add_address(INSIDE, other));
        let forged = udp(&network, other, 0);
        forged.send_to(b"forged", (PUBLIC6, 7002)).unwrap();
        let honest = udp(&network, address6(&network), 0);
        honest.send_to(b"honest", (PUBLIC6, 7002)).unwrap();
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 16];
        let len = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"honest");
    });
}

#[test]
fn an_instance_has_its_own_address_and_believes_no_router() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        let expected = [Ipv6Addr::LOCALHOST, address6(&network)];
        assert_eq!(within(&network, addresses6), expected);
        // Not even the host's end.
        let link = index_of(&network.state().egress.as_ref().unwrap().link);
        add_address(link, ROUTER);
        advertise(link, 1800, Some(Ipv6Addr::new(0x2d00, 3, 0, 0, 0, 0, 0, 0)));
        connect(&network, PUBLIC6, PORT6).unwrap();
        assert_eq!(within(&network, addresses6), expected);
        assert_eq!(within(&network, default_routes6), 1);
        // And without egress there is none at all.
        let closed = networks.take(false).unwrap();
        assert_eq!(within(&closed, addresses6), [] as [Ipv6Addr; 0]);
    });
}

#[test]
fn a_host_that_prefers_to_be_without_gives_its_instances_ipv6_all_the_same() {
    in_a_world(|world| {
        // As an administrator may have it for interfaces to come.
        set_sysctl("ipv6/conf/default/disable_ipv6", "1").unwrap();
        set_sysctl("ipv6/conf/default/accept_ra", "2").unwrap();
        let network = networks(world, 1).take(true).unwrap();
        connect(&network, PUBLIC6, PORT6).unwrap();
        let link = &network.state().egress.as_ref().unwrap().link;
        let heeds = get_sysctl(&format!("ipv6/conf/{link}/accept_ra")).unwrap();
        assert_eq!(heeds.as_deref(), Some("0"));
    });
}

fn forwards6() -> bool {
    let value = get_sysctl("ipv6/conf/all/forwarding").unwrap();
    value.as_deref() == Some("1")
}

/// The settings of every interface that forwarding touches.
fn settings6() -> Vec<String> {
    ["up0", "lo", "default"]
        .iter()
        .flat_map(|link| [(link, "forwarding"), (link, "accept_ra")])
        .map(|(link, setting)| {
            let value = get_sysctl(&format!("ipv6/conf/{link}/{setting}")).unwrap();
            format!("{link} {setting} {}", value.unwrap())
        })
        .collect()
}

#[test]
fn without_a_pool_the_host_stays_as_it_is() {
    in_a_world(|world| {
        let before = settings6();
        let network = world.networks(1).take(true).unwrap();
        assert!(!forwards6());
        assert_eq!(settings6(), before);
        assert!(connect(&network, PUBLIC6, PORT6).is_err());
    });
}

#[test]
fn the_host_heeds_its_routers_before_during_and_after() {
    in_a_world(|world| {
        within(&world.internet, || {
            add_address(DOWN, ROUTER);
            advertise(DOWN, 1800, None);
        });
        wait_for_default_routes6(2);
        let before = settings6();
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        assert!(forwards6());
        assert_eq!(settings6(), before);
        assert_eq!(default_routes6(), 2);
        connect(&network, PUBLIC6, PORT6).unwrap();
        // A lifetime of zero takes the route back: it is heeded.
        within(&world.internet, || advertise(DOWN, 0, None));
        wait_for_default_routes6(1);
        within(&world.internet, || advertise(DOWN, 1800, None));
        wait_for_default_routes6(2);
        networks.close().unwrap();
        assert!(!forwards6());
        assert_eq!(settings6(), before);
        assert_eq!(default_routes6(), 2);
    });
}

#[test]
fn an_interface_that_is_a_router_stays_one() {
    in_a_world(|world| {
        set_sysctl("ipv6/conf/lo/forwarding", "1").unwrap();
        let before = settings6();
        let mut networks = networks(world, 1);
        networks.take(true).unwrap();
        assert_eq!(settings6(), before);
        networks.close().unwrap();
        assert_eq!(settings6(), before);
    });
}

#[test]
fn forwarding_ends_with_the_last_server_even_after_a_crash() {
    in_a_world(|world| {
        let (mut one, mut two) = (networks(world, 1), networks(world, 2));
        one.take(true).unwrap();
        two.take(true).unwrap();
        one.close().unwrap();
        assert!(forwards6());
        drop(two);
        networks(world, 2).sweep().unwrap();
        assert!(!forwards6());
    });
}

#[test]
fn forwarding_stays_when_it_is_the_hosts_own_setting() {
    in_a_world(|world| {
        // Before, and after.
        set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
        let mut before = networks(world, 1);
        before.take(true).unwrap();
        before.close().unwrap();
        assert!(forwards6());
        set_sysctl("ipv6/conf/all/forwarding", "0").unwrap();
        let mut after = networks(world, 1);
        after.take(true).unwrap();
        set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
        after.close().unwrap();
        assert!(forwards6());
    });
}

#[test]
fn a_flip_that_was_interrupted_is_completed() {
    in_a_world(|world| {
        let folder = world.options().lock_folder;
        let before = settings6();
        let noted = "default 0 1\nlo 0 1\nup0 0 1\n";
        for (all, accept_ra) in [("0", "2"), ("1", "2"), ("1", "1")] {
            std::fs::write(folder.join(forwarding6::NOTE), noted).unwrap();
            set_sysctl("ipv6/conf/up0/accept_ra", accept_ra).unwrap();
            set_sysctl("ipv6/conf/all/forwarding", all).unwrap();
            assert!(forwarding6::is_ours(&folder).unwrap());
            forwarding6::turn_on(&folder).unwrap();
            assert!(forwards6());
            assert_eq!(settings6(), before);
            assert!(forwarding6::is_ours(&folder).unwrap());
            forwarding6::stop_if_last(&folder).unwrap();
            assert!(!forwards6());
            assert_eq!(settings6(), before);
        }
        let hostile = "../../../x 0 1\nall 1 1\nup0 9 9\nup0\n\n. 1 1\n";
        std::fs::write(folder.join(forwarding6::NOTE), hostile).unwrap();
        forwarding6::turn_on(&folder).unwrap();
        assert_eq!(settings6(), before);
    });
}

/// A network at another interface of the host's, with a neighbour in it who
/// sends all it has to the host.
fn add_lan() -> OwnedFd {
    let host = current().unwrap();
    let (visit, lan) = Visit::new_namespace(host.as_fd()).unwrap();
    let line = Veth {
        name: "far0",
        index: LAN,
        peer_name: "lan0",
        peer_group: 0,
        peer_namespace: host.as_fd(),
        mac: [2, 0, 0, 0, 0, 2],
    };
    let mut request = Request::new();
    route::add_veth(&mut request, &line);
    route::set_up(&mut request, LAN);
    route::add_address(&mut request, LAN, NEIGHBOUR4);
    add_address6(&mut request, LAN, NEIGHBOUR6);
    route::add_route(&mut request, LAN, Ipv4Net::default());
    route::add_route(&mut request, LAN, Ipv6Net::default());
    Socket::route().unwrap().execute(&request).unwrap();
    drop(visit);
    let near = index_of("lan0");
    let mut request = Request::new();
    route::set_up(&mut request, near);
    route::add_route(&mut request, near, Ipv4Net::from(NEIGHBOUR4));
    route::add_route(&mut request, near, Ipv6Net::from(NEIGHBOUR6));
    Socket::route().unwrap().execute(&request).unwrap();
    within(&lan, || wait_operational(LAN));
    lan
}

#[test]
fn the_host_does_not_become_a_router_for_others() {
    in_a_world(|world| {
        let lan = add_lan();
        let network = networks(world, 1).take(true).unwrap();
        let sink = udp(&world.internet, Ipv6Addr::UNSPECIFIED, 7002);
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let others = udp(&lan, Ipv6Addr::UNSPECIFIED, 0);
        let ours = udp(&network, Ipv6Addr::UNSPECIFIED, 0);
        others.send_to(b"others", (PUBLIC6, 7002)).unwrap();
        ours.send_to(b"ours", (PUBLIC6, 7002)).unwrap();
        let mut buffer = [0; 16];
        let len = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"ours");
    });
}

/// Runs ip(8) where this thread is.
fn ip(args: &str) {
    let done = skiff_base::process::command("ip")
        .args(args.split(' '))
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {args}: {said}");
}

/// A machine at a port of the host's bridge.
fn add_to_bridge(name: &str, address: Ipv6Addr) -> OwnedFd {
    let host = current().unwrap();
    let (visit, machine) = Visit::new_namespace(host.as_fd()).unwrap();
    let (pid, fd) = (std::process::id(), host.as_raw_fd());
    ip(&format!(
        "link add eth0 type veth peer name {name} netns /proc/{pid}/fd/{fd}"
    ));
    ip(&format!("addr add {address}/64 dev eth0 nodad"));
    ip("link set eth0 up");
    drop(visit);
    ip(&format!("link set {name} master br0 up"));
    machine
}

#[test]
fn a_bridge_of_the_hosts_passes_what_it_passed() {
    in_a_world(|world| {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let far = Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 2);
        let one = add_to_bridge("port1", Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 1));
        let two = add_to_bridge("port2", far);
        let _network = networks(world, 1).take(true).unwrap();
        // Whether what is bridged is filtered as what is forwarded is.
        set_sysctl("bridge/bridge-nf-call-ip6tables", "1").unwrap();
        let listener = within(&two, || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT6)).unwrap()
        });
        let to = SocketAddr::from((far, PORT6));
        within(&one, || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        listener.accept().unwrap();
    });
}

#[test]
fn a_host_that_was_a_router_stays_one() {
    in_a_world(|world| {
        set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
        let lan = add_lan();
        let _network = networks(world, 1).take(true).unwrap();
        let sink = udp(&world.internet, Ipv6Addr::UNSPECIFIED, 7002);
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let others = udp(&lan, Ipv6Addr::UNSPECIFIED, 0);
        others.send_to(b"others", (PUBLIC6, 7002)).unwrap();
        let mut buffer = [0; 16];
        let len = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"others");
    });
}

#[test]
fn what_is_allowed_is_reached_at_another_interface() {
    in_a_world(|world| {
        let lan = add_lan();
        let listener = within(&lan, || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7005)).unwrap()
        });
        // Its address is what the host's packets to the network come from.
        let mut networks = networks_allowing(world, 1, "10.0.0.0/8");
        let network = networks.take(true).unwrap();
        for address in [IpAddr::from(NEIGHBOUR4), IpAddr::from(NEIGHBOUR6)] {
            connect(&network, address, 7005).unwrap();
            listener.accept().unwrap();
        }
    });
}

#[test]
fn releasing_leaves_nothing_of_the_instance_and_closing_nothing_at_all() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        let network = networks.take(true).unwrap();
        let (link, address) = (
            network.state().egress.clone().unwrap().link,
            address6(&network),
        );
        assert!(ruleset().contains(&format!("\"{link}\" . {address}")));
        networks.release(network).unwrap();
        assert!(!ruleset().contains(&link));
        settle(&mut networks);
        assert_eq!(world.links(), [""; 0]);
        networks.close().unwrap();
        assert_eq!(ruleset(), "");
        assert_eq!(world.networks(1).sweep().unwrap(), SweepReport::default());
    });
}

/// What nft lists where this thread is.
fn ruleset() -> String {
    let listed = skiff_base::process::command("nft")
        .args(["list", "ruleset"])
        .stdout(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(listed.status.success());
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn an_upgrade_keeps_networks_ready_and_taken() {
    in_a_world(|world| {
        let mut networks = networks(world, 1);
        networks.configure(PoolConfig {
            networks: 0,
            egress_networks: 1,
        });
        let taken = networks.take(true).unwrap();
        while networks.refill_one().unwrap() {}
        let (state, fds) = networks.into_parts();
        let (taken_state, taken_fd) = taken.into_parts();
        let mut networks = Networks::from_parts(server(1), options(world), state, fds).unwrap();
        let taken = Network::from_parts(taken_state, taken_fd);
        connect(&taken, PUBLIC6, PORT6).unwrap();
        let ready = networks.take(true).unwrap();
        connect(&ready, PUBLIC6, PORT6).unwrap();
        assert_refused(&ready, address6(&taken), PORT6);
        networks.release(taken).unwrap();
        networks.release(ready).unwrap();
        settle(&mut networks);
        networks.close().unwrap();
        assert_eq!(world.links(), [""; 0]);
        assert!(!forwards6());
    });
}

#[test]
fn a_pool_that_the_host_routes_elsewhere_is_refused_or_its_part_avoided() {
    in_a_world(|world| {
        let route_up = |to: &str| {
            let mut request = Request::new();
            let to: Ipv6Net = to.parse().unwrap();
            route::add_route(&mut request, index_of("up0"), to);
            Socket::route().unwrap().execute(&request).unwrap();
        };
        // Of 100.96.0.0/20.
        route_up("fd73:6b69:6666::6460:0/120");
        let network = networks(world, 1).take(true).unwrap();
        let part: Ipv4Net = "100.96.16.0/20".parse().unwrap();
        assert!(part.contains(&network.address().unwrap()));
        route_up("fd73:6b69::/32");
        let refused = networks(world, 2).take(true).unwrap_err();
        assert!(
            matches!(refused, NetError::Ipv6PoolRouted { .. }),
            "{refused}"
        );
        let options = NetOptions {
            ipv6_pool: Some("fd98::/100".parse().unwrap()),
            ..options(world)
        };
        let refused = Networks::open(server(3), options).unwrap().take(true);
        assert!(matches!(refused, Err(NetError::Ipv6PoolTooSmall { .. })));
    });
}

#[test]
fn the_first_packets_of_a_fresh_network_are_not_lost() {
    in_a_world(|world| {
        let sink = udp(&world.internet, Ipv6Addr::UNSPECIFIED, 7002);
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut networks = networks(world, 1);
        for _ in 0..50 {
            let network = networks.take(true).unwrap();
            let client = udp(&network, Ipv6Addr::UNSPECIFIED, 0);
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"there", (PUBLIC6, 7002)).unwrap();
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
    in_a_world(|world| time("egress with IPv6", networks(world, 1)));
}
