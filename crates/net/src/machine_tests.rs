//! Machines' networks on the made-up host and internet of
//! [`crate::egress_tests`]. A machine is one more namespace, and its monitor a
//! thread that passes packets between two taps.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use ipnet::Ipv4Net;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netdevice::name_to_index;
use skiff_base::{Clock, SystemClock};
use skiff_wire::launcher::MACHINE_MAC;

use crate::egress::INSIDE_NAME;
use crate::egress_tests::{
    CLOSED6, DOUBT, HOST, HOST6, METADATA, PATIENCE, PORT, PORT6, PRIVATE, PUBLIC, PUBLIC6, World,
    assert_refused, connect, in_a_world, outlast_the_test, server, settle, within,
};
use crate::machine::{self, MACHINE_ADDRESS, MACHINE_ADDRESS6, ROUTER_ADDRESS, connect_machine};
use crate::namespace::{Visit, current, set_sysctl};
use crate::netlink::{Request, Socket};
use crate::table::CONNECTIONS_MAX;
use crate::{NetError, NetOptions, Network, Networks, SweepReport, route, tap};

/// virtio's header as a tap has it before anybody asks for more.
const HEADER_BYTES: usize = 10;
const PACKET_BYTES_MAX: usize = HEADER_BYTES + 14 + 65_535;
const SINK_PORT: u16 = 7002;

/// A machine with its monitor. It holds the tap.
struct Machine {
    network: Network,
    /// Whoever has the other end knows when this one closes.
    end: Option<OwnedFd>,
    monitor: Option<JoinHandle<()>>,
}

impl Machine {
    fn start(tap: OwnedFd, with_ipv6: bool) -> Self {
        let home = current().unwrap();
        let (visit, _) = Visit::new_namespace(home.as_fd()).unwrap();
        let own = tap::make(INSIDE_NAME).unwrap();
        let socket = Socket::route().unwrap();
        let index = name_to_index(socket.as_fd(), INSIDE_NAME).unwrap();
        let mut request = Request::new();
        route::set_address_without_arp(&mut request, index, MACHINE_MAC);
        socket.execute(&request).unwrap();
        let network = Network::of_machine().unwrap();
        connect_machine(&machine::told(with_ipv6)).unwrap();
        drop(visit);
        let (ended, end) = rustix::pipe::pipe().unwrap();
        let monitor = std::thread::spawn(move || pass(&ended, own.into(), tap.into()));
        Self {
            network,
            end: Some(end),
            monitor: Some(monitor),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end = None;
        self.monitor.take().map(JoinHandle::join);
    }
}

impl AsFd for Machine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

/// Passes packets between two taps until the pipe's other end is closed.
fn pass(ended: &OwnedFd, mut one: File, mut other: File) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let mut polled = [
            PollFd::new(ended, PollFlags::empty()),
            PollFd::new(&one, PollFlags::IN),
            PollFd::new(&other, PollFlags::IN),
        ];
        poll(&mut polled, None).unwrap();
        if !polled[0].revents().is_empty() {
            return;
        }
        for _ in 0..64 {
            let length = one.read(&mut packet).unwrap_or(0);
            let back = other.read(&mut packet[length..]).unwrap_or(0);
            // A tap that is down takes nothing, as a wire that is cut.
            if length > 0 {
                other.write_all(&packet[..length]).ok();
            }
            if back > 0 {
                one.write_all(&packet[length..length + back]).ok();
            }
            if length + back == 0 {
                break;
            }
        }
    }
}

/// A network with a machine in it.
fn machine(networks: &mut Networks) -> (Network, Machine) {
    let (network, tap) = networks.take_for_machine().unwrap();
    (network, Machine::start(tap, false))
}

/// Nothing comes back from the internet.
fn is_cut_off(machine: &Machine) -> bool {
    let to = SocketAddr::from((PUBLIC, PORT));
    within(machine, || TcpStream::connect_timeout(&to, DOUBT)).is_err()
}

fn reach(machine: &Machine, to: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpStream> {
    connect(&machine.network, to, port)
}

fn sink(world: &World) -> UdpSocket {
    let socket = within(&world.internet, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINK_PORT)).unwrap()
    });
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A frame with virtio's header in front.
fn frame(ethertype: u16, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend(MACHINE_MAC);
    frame.extend(MACHINE_MAC);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(content);
    frame
}

/// A datagram to [`SINK_PORT`], without the checksum that UDP can do without.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, content: &[u8]) -> Vec<u8> {
    let udp_bytes = u16::try_from(8 + content.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_bytes).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let words = packet.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&(!folded).to_be_bytes());
    packet.extend(9000_u16.to_be_bytes());
    packet.extend(SINK_PORT.to_be_bytes());
    packet.extend(udp_bytes.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(content);
    frame(0x0800, &packet)
}

#[test]
fn a_machine_reaches_the_internet_as_an_instance_does() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let (network, machine) = machine(&mut networks);
        let mut client = reach(&machine, PUBLIC, PORT).unwrap();
        let (mut served, from) = world.listener.accept().unwrap();
        assert_eq!(from.ip(), HOST);
        assert_eq!(client.local_addr().unwrap().ip(), MACHINE_ADDRESS);
        // Many packets, both ways, all of them whole.
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let copy = sent.clone();
        let echo = std::thread::spawn(move || {
            let mut received = vec![0; copy.len()];
            served.read_exact(&mut received).unwrap();
            assert!(received == copy);
            served.write_all(&received).unwrap();
            served.shutdown(Shutdown::Both).unwrap();
        });
        client.write_all(&sent).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert!(back == sent);
        echo.join().unwrap();
        drop(network);
        networks.close().unwrap();
    });
}

#[test]
fn a_machine_is_refused_what_an_instance_is() {
    in_a_world(|world| {
        let mut one = world.networks_allowing(1, &["100.64.0.0/10"]);
        let mut two = world.networks(2);
        let host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7001)).unwrap();
        let (network, first) = machine(&mut one);
        for denied in [PRIVATE, METADATA] {
            // The host itself gets there: it is the table that refuses.
            TcpStream::connect((denied, PORT)).unwrap();
            assert_refused(&first.network, denied, PORT);
        }
        assert_refused(&first.network, HOST, 7001);
        let (neighbour, second) = machine(&mut one);
        let listener = within(&second, || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
        });
        let instance = two.take(true).unwrap();
        for neighbour in [&neighbour, &instance] {
            assert_refused(&first.network, neighbour.address().unwrap(), PORT);
        }
        // Nor an instance a machine.
        assert_refused(&instance, network.address().unwrap(), PORT);
        for listener in [host, listener] {
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err());
        }
        reach(&second, PUBLIC, PORT).unwrap();
        connect(&instance, PUBLIC, PORT).unwrap();
    });
}

#[test]
fn a_machines_own_namespace_hears_nothing_from_it() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let (network, machine) = machine(&mut networks);
        let own = network.address().unwrap();
        let listener = within(&network, || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
        });
        let socket = within(&network, || {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINK_PORT)).unwrap()
        });
        for inside in [own, ROUTER_ADDRESS] {
            let to = SocketAddr::from((inside, PORT));
            let silence = within(&machine, || TcpStream::connect_timeout(&to, DOUBT));
            assert_eq!(silence.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            within(&machine, || {
                let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                client.send_to(b"hello", (inside, SINK_PORT)).unwrap();
            });
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
        socket.set_read_timeout(Some(DOUBT)).unwrap();
        assert!(socket.recv(&mut [0; 8]).is_err());
    });
}

#[test]
fn nobody_connects_to_a_machine_from_outside() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let (network, machine) = machine(&mut networks);
        let address = network.address().unwrap();
        let listener = within(&machine, || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
        });
        let outside = within(&world.internet, || {
            let mut request = Request::new();
            route::add_route(
                &mut request,
                crate::egress_tests::DOWN,
                Ipv4Net::from(address),
            );
            Socket::route().unwrap().execute(&request).unwrap();
            TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), DOUBT)
        });
        assert_eq!(outside.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        // From the host itself, which the host's table does not look at.
        let host = TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), DOUBT);
        assert!(host.is_err());
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    });
}

#[test]
fn what_a_machine_forges_goes_nowhere() {
    in_a_world(|world| {
        for link in ["all", "default"] {
            // It is the rules that drop it, not a reverse path filter.
            set_sysctl(&format!("ipv4/conf/{link}/rp_filter"), "0").unwrap();
        }
        let mut networks = world.networks(1);
        let sink = sink(world);
        let neighbour = networks.take(true).unwrap().address().unwrap();
        let (network, tap) = networks.take_for_machine().unwrap();
        let own = network.address().unwrap();
        let mut tap = File::from(tap);
        // Who has the namespace's address? I do, says everybody.
        for last in 1..100 {
            let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
            question.extend(MACHINE_MAC);
            question.extend([10, 0, 0, last]);
            question.extend([0; 6]);
            question.extend(ROUTER_ADDRESS.octets());
            tap.write_all(&frame(0x0806, &question)).unwrap();
        }
        for from in [neighbour, own, HOST, PRIVATE, ROUTER_ADDRESS] {
            let forged = datagram(from, PUBLIC, b"forged");
            tap.write_all(&forged).unwrap();
        }
        for noise in [
            &[0; 60][..],
            &[0; HEADER_BYTES + 14],
            &frame(0x86dd, &[0x60; 80]),
        ] {
            // The kernel may say no at once.
            tap.write_all(noise).ok();
        }
        tap.write_all(&datagram(MACHINE_ADDRESS, PUBLIC, b"honest"))
            .unwrap();
        let mut buffer = [0; 16];
        let (length, from) = sink.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from.ip()),
            (&b"honest"[..], HOST.into())
        );
        sink.set_nonblocking(true).unwrap();
        assert!(sink.recv(&mut buffer).is_err());
        let known = within(&network, || {
            std::fs::read_to_string("/proc/thread-self/net/arp")
        });
        assert_eq!(
            known.unwrap().lines().count(),
            1,
            "what a machine says is believed"
        );
    });
}

/// Sends one datagram from a port of its own: whether it arrives or is refused.
fn is_let_through(machine: &Machine, sink: &UdpSocket, port: u16) -> bool {
    let client = within(machine, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    });
    client.connect((PUBLIC, SINK_PORT)).unwrap();
    client.set_nonblocking(true).unwrap();
    client.send(b"more").unwrap();
    let start = SystemClock.now();
    loop {
        if sink.recv(&mut [0; 8]).is_ok() {
            return true;
        }
        let told = client.recv(&mut [0; 8]).unwrap_err().kind();
        if told != std::io::ErrorKind::WouldBlock {
            assert_eq!(told, std::io::ErrorKind::HostUnreachable);
            return false;
        }
        assert!(SystemClock.now().since(start) < PATIENCE);
        std::thread::yield_now();
    }
}

#[test]
fn a_machine_has_as_many_connections_as_an_instance() {
    in_a_world(|world| {
        let sink = sink(world);
        sink.set_nonblocking(true).unwrap();
        let mut networks = world.networks(1);
        let (network, greedy) = machine(&mut networks);
        outlast_the_test();
        within(&network, outlast_the_test);
        let many = u16::try_from(CONNECTIONS_MAX + 100).unwrap();
        let mut ports = 20_000..20_000 + many;
        // Up to the first refusal: later ones need not be told.
        let refused = ports.position(|port| !is_let_through(&greedy, &sink, port));
        let through = u32::try_from(refused.unwrap()).unwrap();
        assert!(through > CONNECTIONS_MAX / 2, "{through}");
        assert!(through <= CONNECTIONS_MAX, "{through}");
        assert_refused(&greedy.network, PUBLIC, PORT);
        let tracked = within(&network, || {
            std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap()
        });
        let tracked: u32 = tracked.trim().parse().unwrap();
        assert!(tracked <= CONNECTIONS_MAX, "{tracked}");
        let (_network, modest) = self::machine(&mut networks);
        reach(&modest, PUBLIC, PORT).unwrap();
    });
}

#[test]
fn a_machine_that_is_gone_leaves_nothing() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let (network, first) = machine(&mut networks);
        assert_eq!(world.links().len(), 1);
        drop(first);
        networks.release(network).unwrap();
        settle(&mut networks);
        assert_eq!(world.links(), [""; 0]);
        // An upgrade of the launcher changes nothing for one that runs.
        let (network, second) = machine(&mut networks);
        let (state, fds) = networks.into_parts();
        let (taken, taken_fd) = network.into_parts();
        let mut networks = Networks::from_parts(server(1), world.options(), state, fds).unwrap();
        let network = Network::from_parts(taken, taken_fd);
        assert_eq!(networks.sweep().unwrap(), SweepReport::default());
        reach(&second, PUBLIC, PORT).unwrap();
        networks.release(network).unwrap();
        assert!(is_cut_off(&second));
        drop(second);
        settle(&mut networks);
        // A launcher that dies leaves what the next one's sweep finds, though
        // the machine still runs.
        let (_network, orphan) = machine(&mut networks);
        drop(networks);
        let report = world.networks(1).sweep().unwrap();
        let expected = SweepReport {
            links: 1,
            tables: 1,
            claims: 1,
        };
        assert_eq!(report, expected);
        assert_eq!(world.links(), [""; 0]);
        assert!(is_cut_off(&orphan));
    });
}

#[test]
fn a_machine_has_ipv6_where_instances_have() {
    in_a_world(|world| {
        let options = NetOptions {
            ipv6_pool: Some("fd73:6b69:6666::/48".parse().unwrap()),
            ..world.options()
        };
        let mut networks = Networks::open(server(1), options).unwrap();
        let (network, tap) = networks.take_for_machine().unwrap();
        let machine = Machine::start(tap, true);
        let client = reach(&machine, PUBLIC6, PORT6).unwrap();
        assert_eq!(client.local_addr().unwrap().ip(), MACHINE_ADDRESS6);
        let (_, from) = world.listener6.accept().unwrap();
        assert_eq!(from.ip(), HOST6);
        for denied in CLOSED6 {
            assert_refused(&machine.network, denied, PORT6);
        }
        assert_refused(&machine.network, HOST6, PORT6);
        reach(&machine, PUBLIC, PORT).unwrap();
        drop((network, machine));
        networks.close().unwrap();
    });
}

#[test]
fn without_ipv6_a_machines_packets_of_it_go_nowhere() {
    in_a_world(|world| {
        let mut networks = world.networks(1);
        let (_network, tap) = networks.take_for_machine().unwrap();
        let machine = Machine::start(tap, true);
        let to = SocketAddr::from((PUBLIC6, PORT6));
        let silence = within(&machine, || TcpStream::connect_timeout(&to, DOUBT));
        assert!(silence.is_err());
        world.listener6.set_nonblocking(true).unwrap();
        assert!(world.listener6.accept().is_err());
        reach(&machine, PUBLIC, PORT).unwrap();
    });
}

#[test]
fn a_machine_without_a_device_is_told_so() {
    in_a_world(|_| {
        let home = current().unwrap();
        let (_visit, _) = Visit::new_namespace(home.as_fd()).unwrap();
        Network::of_machine().unwrap();
        let refused = connect_machine(&machine::told(false)).unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(rustix::io::Errno::NODEV.raw_os_error())
        );
        let options = NetOptions {
            shared: true,
            ..NetOptions::default()
        };
        let mut networks = Networks::open(server(1), options).unwrap();
        let refused = networks.take_for_machine().unwrap_err();
        assert!(matches!(refused, NetError::MachineInMachine));
    });
}
