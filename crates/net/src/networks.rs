use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use skiff_types::ServerId;
use skiff_wire::launcher::PoolConfig;

use crate::error::{NetError, Step};
use crate::inside;
use crate::namespace::{Visit, current};
use crate::network::{Network, NetworkState};

/// The most namespaces of one kind that are kept ready.
pub const READY_MAX: u32 = 1024;

/// What a host's operator may change.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Where instances' addresses come from; servers of a host share it.
    pub pool: Ipv4Net,
    /// Where servers of a host claim their parts of the pool; the same for all.
    pub lock_folder: PathBuf,
    /// Destinations that instances may reach although they are private.
    pub allowed: Vec<Ipv4Net>,
    /// The nft program.
    pub nft: PathBuf,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            pool: Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 0), 16),
            lock_folder: PathBuf::from("/run/skiff-net"),
            allowed: Vec::new(),
            nft: PathBuf::from("nft"),
        }
    }
}

/// Makes, keeps ready and removes the networks of one server's instances.
#[derive(Debug)]
pub struct Networks {
    server: ServerId,
    home: OwnedFd,
    wanted: PoolConfig,
    ready: VecDeque<Network>,
}

impl Networks {
    /// Nothing is made yet.
    ///
    /// # Errors
    /// When the calling thread's namespace cannot be opened.
    pub fn open(server: ServerId, _options: NetOptions) -> Result<Self, NetError> {
        Ok(Self {
            server,
            home: current().step("open the network namespace of", "this thread")?,
            wanted: PoolConfig {
                networks: 0,
                egress_networks: 0,
            },
            ready: VecDeque::new(),
        })
    }

    /// How many to keep ready, at most [`READY_MAX`] of each kind.
    pub fn configure(&mut self, wanted: PoolConfig) {
        self.wanted = PoolConfig {
            networks: wanted.networks.min(READY_MAX),
            egress_networks: wanted.egress_networks.min(READY_MAX),
        };
    }

    /// Prepares one network if one is missing, and says whether it did.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left of the attempt.
    pub fn refill_one(&mut self) -> Result<bool, NetError> {
        if self.ready.len() >= usize::try_from(self.wanted.networks).unwrap_or(usize::MAX) {
            return Ok(false);
        }
        let network = self.prepare()?;
        self.ready.push_back(network);
        Ok(true)
    }

    /// A ready network, or one made now.
    ///
    /// # Errors
    /// When none is ready and the kernel refuses to make one.
    pub fn take(&mut self, egress: bool) -> Result<Network, NetError> {
        if egress {
            return Err(NetError::NoEgress);
        }
        match self.ready.pop_front() {
            Some(network) => Ok(network),
            None => self.prepare(),
        }
    }

    /// Removes a network whose instance has ended.
    ///
    /// # Errors
    /// When the kernel refuses to remove what it leaves.
    pub fn release(&mut self, network: Network) -> Result<(), NetError> {
        drop(network);
        Ok(())
    }

    fn prepare(&self) -> Result<Network, NetError> {
        let (visit, namespace) = Visit::new_namespace(self.home.as_fd())
            .step("make a network namespace of", self.server)?;
        inside::prepare(|_| {}).step("prepare a network namespace of", self.server)?;
        drop(visit);
        Ok(Network::from_parts(
            NetworkState { egress: None },
            namespace,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::inside::SERVICE_ADDRESS;
    use crate::netlink::Socket;
    use crate::route;

    fn networks() -> Networks {
        Networks::open(ServerId::from_parts(1, 2), NetOptions::default()).unwrap()
    }

    fn within<T>(network: &Network, work: impl FnOnce() -> T) -> T {
        let home = current().unwrap();
        let _visit = Visit::enter(home.as_fd(), network.as_fd()).unwrap();
        work()
    }

    #[test]
    fn without_egress_there_is_only_loopback() {
        let network = networks().take(false).unwrap();
        let links = within(&network, || {
            route::links(&Socket::route().unwrap()).unwrap()
        });
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["lo"]);
    }

    #[test]
    fn the_service_address_is_ours_even_when_the_application_binds_the_port() {
        let network = networks().take(false).unwrap();
        let ours = TcpListener::from(network.gateway_listener().unwrap());
        ours.set_nonblocking(false).unwrap();
        let (theirs, mut client) = within(&network, || {
            (
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap(),
                TcpStream::connect((SERVICE_ADDRESS, 80)).unwrap(),
            )
        });
        let (mut served, from) = ours.accept().unwrap();
        assert_eq!(client.peer_addr().unwrap().port(), 80);
        assert_eq!(from, client.local_addr().unwrap());
        client.write_all(b"question").unwrap();
        let mut buffer = [0; 8];
        served.read_exact(&mut buffer).unwrap();
        served.write_all(b"answered").unwrap();
        client.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"answered");
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.accept().is_err());
        within(&network, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).unwrap()
        });
        theirs.set_nonblocking(false).unwrap();
        theirs.accept().unwrap();
    }

    #[test]
    fn dns_arrives_even_when_the_application_binds_the_port() {
        let network = networks().take(false).unwrap();
        let (udp, _tcp) = network.dns_sockets().unwrap();
        let ours = UdpSocket::from(udp);
        ours.set_nonblocking(false).unwrap();
        let client = within(&network, || {
            let _theirs = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
            let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            client.connect((SERVICE_ADDRESS, 53)).unwrap();
            client
        });
        client.send(b"name?").unwrap();
        let mut buffer = [0; 16];
        let (len, from) = ours.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"name?");
        ours.send_to(b"address", from).unwrap();
        let len = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"address");
    }

    #[test]
    fn sockets_belong_to_the_namespace_and_the_thread_stays_home() {
        let network = networks().take(false).unwrap();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);
        let listener = TcpListener::from(network.tcp_listen(address).unwrap());
        let socket = network.tcp_socket().unwrap();
        let connected = rustix::net::connect(&socket, &address);
        assert!(
            connected.is_ok() || connected == Err(rustix::io::Errno::INPROGRESS),
            "{connected:?}"
        );
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn the_pool_fills_to_its_size_and_no_further() {
        let mut networks = networks();
        assert!(!networks.refill_one().unwrap());
        networks.configure(PoolConfig {
            networks: 2,
            egress_networks: 0,
        });
        assert!(networks.refill_one().unwrap());
        assert!(networks.refill_one().unwrap());
        assert!(!networks.refill_one().unwrap());
        networks.take(false).unwrap();
        assert!(networks.refill_one().unwrap());
    }

    #[test]
    fn preparing_and_taking_is_timed() {
        use skiff_base::{Clock, SystemClock};
        let mut networks = networks();
        networks.configure(PoolConfig {
            networks: 50,
            egress_networks: 0,
        });
        let start = SystemClock.now();
        while networks.refill_one().unwrap() {}
        let refilled = SystemClock.now();
        let taken: Vec<_> = (0..50).map(|_| networks.take(false).unwrap()).collect();
        let end = SystemClock.now();
        for network in &taken {
            network.tcp_sockets(1).unwrap();
        }
        println!(
            "refill {:?} each, take {:?} each, a socket {:?}",
            refilled.since(start) / 50,
            end.since(refilled) / 50,
            SystemClock.now().since(end) / 50,
        );
    }
}
