//! The device at a tap of this kernel's, in a network namespace of its own.
//! They need root and /dev/net/tun.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skiff_base::{Clock, SystemClock};
use vm_memory::{Bytes, GuestAddress};

use super::{Net, Settings, Tap, TapError};
use crate::testing::{Bench, Desc, put_descriptors};
use crate::{Progress, Transport};

const NAME: &str = "tap-test";
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const BUFFER: u32 = 0x800;
const BUFFERS: u64 = 0x1_0000;
const PACKET: u64 = 0x9000;
const DEADLINE: Duration = Duration::from_secs(600);

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;

/// Does something in a network namespace that nothing else is in.
fn alone(work: impl FnOnce() + Send + 'static) {
    let alone = std::thread::spawn(|| {
        let flags = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: only this thread's network changes; its files stay.
        unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
        work();
    });
    alone.join().unwrap();
}

fn ioctl(file: impl AsFd, what: libc::Ioctl, set: impl FnOnce(&mut libc::ifreq)) -> libc::ifreq {
    // SAFETY: zeros are a name of no bytes and a union of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from.try_into().unwrap();
    }
    set(&mut request);
    // SAFETY: each of these calls takes a request, which lives during it.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), what, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    request
}

fn tun(flags: i32) -> std::fs::File {
    let mut options = std::fs::File::options();
    let tun = options.read(true).write(true).open("/dev/net/tun").unwrap();
    ioctl(&tun, libc::TUNSETIFF, |request| {
        request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    });
    tun
}

/// Makes the tap, with an address, and tells its MAC. It stays when the file
/// is closed.
fn make_tap() -> [u8; 6] {
    let tun = tun(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    // SAFETY: the call takes a number.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) };
    assert_eq!(result, 0);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    ioctl(&socket, libc::SIOCSIFADDR, |request| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET.try_into().unwrap(),
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(HOST.octets()),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: both have 16 bytes, of which any are a value.
        request.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    });
    ioctl(&socket, libc::SIOCSIFFLAGS, |request| {
        request.ifr_ifru.ifru_flags = libc::IFF_UP.try_into().unwrap();
    });
    let request = ioctl(&socket, libc::SIOCGIFHWADDR, |_| {});
    // SAFETY: the call has filled the address.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    std::array::from_fn(|index| address.sa_data[index].to_ne_bytes()[0])
}

/// A guest with buffers for packets.
fn guest() -> Bench {
    let net = Net::new(Box::new(Tap::open(NAME).unwrap()), Settings::default()).unwrap();
    let mut bench = Bench::new(Box::new(net), 16);
    bench.start();
    for index in 0..16_u16 {
        let address = BUFFERS + u64::from(index) * u64::from(BUFFER);
        bench.driver.describe(index, Desc::write(address, BUFFER));
        bench.driver.offer(index);
    }
    bench
}

/// The next packet of this Ethernet type, with its header.
fn receive(bench: &mut Bench, ethertype: [u8; 2]) -> Vec<u8> {
    let started = SystemClock.now();
    loop {
        assert_eq!(bench.window.notify(0), Progress::Done);
        assert_eq!(bench.window.host_ready(), Progress::Done);
        for (head, bytes) in bench.driver.used() {
            let address = BUFFERS + u64::from(head) * u64::from(BUFFER);
            let mut packet = vec![0; bytes as usize];
            let memory = &bench.driver.memory;
            memory
                .read_slice(&mut packet, GuestAddress(address))
                .unwrap();
            bench.driver.offer(head.try_into().unwrap());
            if packet[12 + 12..12 + 14] == ethertype {
                return packet;
            }
        }
        assert!(SystemClock.now().since(started) < DEADLINE, "none came");
        let device = bench.window.core().device();
        let source = device.source().unwrap();
        let mut polled = [PollFd::new(&source, PollFlags::IN)];
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        poll(&mut polled, Some(&second)).unwrap();
    }
}

fn transmit(bench: &mut Bench, packet: &[u8]) {
    let memory = &bench.driver.memory;
    memory.write_slice(packet, GuestAddress(PACKET)).unwrap();
    let chain = [Desc::read(PACKET, packet.len().try_into().unwrap())];
    put_descriptors(memory, GuestAddress(0x4000), &chain);
    bench.others[0].offer(0);
    assert_eq!(bench.window.notify(1), Progress::Done);
    assert_eq!(bench.others[0].used(), [(0, 0)]);
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// A datagram for the host whose checksum the host is to finish.
fn datagram(host: [u8; 6], port: u16, content: &[u8]) -> Vec<u8> {
    let udp_bytes = u16::try_from(UDP + content.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((udp_bytes + 20).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(GUEST.octets());
    ip.extend(HOST.octets());
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_bytes.to_be_bytes());

    // What is to be finished: from where on, and where it goes.
    let mut packet = vec![1, 0, 0, 0, 0, 0];
    packet.extend(u16::try_from(ETHERNET + IP).unwrap().to_le_bytes());
    packet.extend([6, 0, 0, 0]);
    packet.extend(host);
    packet.extend(GUEST_MAC);
    packet.extend([8, 0]);
    packet.extend(ip);
    packet.extend(7777_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(udp_bytes.to_be_bytes());
    packet.extend(sum(&pseudo).to_be_bytes());
    packet.extend(content);
    packet
}

/// The answer to the host's question for the guest's MAC.
fn arp_answer(question: &[u8]) -> Vec<u8> {
    let (header, arp) = question[12..].split_at(ETHERNET);
    let mut packet = vec![0; 12];
    packet.extend(&header[6..12]);
    packet.extend(GUEST_MAC);
    packet.extend([8, 6]);
    packet.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    packet.extend(GUEST_MAC);
    packet.extend(GUEST.octets());
    packet.extend(&arp[8..18]);
    packet
}

#[test]
fn a_guest_and_a_kernel_exchange_datagrams_and_leave_checksums_to_each_other() {
    alone(|| {
        let host_mac = make_tap();
        let mut bench = guest();
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        transmit(&mut bench, &datagram(host_mac, port, b"from the guest"));
        let mut content = [0; 100];
        let (length, from) = socket.recv_from(&mut content).unwrap();
        assert_eq!(&content[..length], b"from the guest");
        assert_eq!(from, (GUEST, 7777).into());

        // The kernel asks where the guest is, and then sends.
        socket.send_to(b"from the host", from).unwrap();
        let question = receive(&mut bench, [8, 6]);
        transmit(&mut bench, &arp_answer(&question));
        let packet = receive(&mut bench, [8, 0]);
        assert!(packet.ends_with(b"from the host"));
        assert_eq!(packet[0], 1, "the checksum is left to the guest");
        assert_eq!(packet[10..12], [1, 0]);
    });
}

#[test]
fn what_is_no_tap_is_refused() {
    alone(|| {
        for name in ["", "a-name-that-is-too-long", "a\0b"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name { .. })));
        }
        assert!(matches!(Tap::open("tap0"), Err(TapError::Absent { .. })));
        assert!(matches!(Tap::open("lo"), Err(TapError::Attach { .. })));
        make_tap();
        let tap = Tap::open(NAME).unwrap();
        assert_eq!(tap.mtu(), Some(1500));
        // One user at a time.
        assert!(matches!(Tap::open(NAME), Err(TapError::Attach { .. })));
    });
}

#[test]
fn a_tap_that_somebody_else_opened_is_used() {
    alone(|| {
        let good = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        for flags in [
            libc::IFF_TUN,
            libc::IFF_TAP,
            libc::IFF_TAP | libc::IFF_NO_PI,
        ] {
            let tap = Tap::from_descriptor(tun(flags).into());
            assert!(matches!(tap, Err(TapError::Kind(None))), "{flags:x}");
        }
        let file = tempfile::tempfile().unwrap();
        let tap = Tap::from_descriptor(file.into());
        assert!(matches!(tap, Err(TapError::Kind(Some(_)))));
        let tap = Tap::from_descriptor(tun(good).into()).unwrap();
        assert_eq!(tap.mtu(), None);
    });
}
