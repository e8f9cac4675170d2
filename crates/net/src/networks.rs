use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use skiff_types::ServerId;
use skiff_wire::launcher::{MachineNetwork, PoolConfig};

use crate::egress::{self, Egress, EgressPoolState};
use crate::error::{NetError, Step};
use crate::forwarding6;
use crate::inside;
use crate::machine;
use crate::namespace::{Visit, current};
use crate::netlink::Socket;
use crate::network::{Network, NetworkState};
use crate::share;
use crate::table;
use crate::uplink;

/// The most namespaces of one kind that are kept ready.
pub const READY_MAX: u32 = 1024;

/// What a host's operator may change.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Where instances' addresses come from; servers of a host share it.
    pub pool: Ipv4Net,
    /// Where servers of a host claim their parts of the pool; the same for all.
    pub lock_folder: PathBuf,
    /// Where instances' IPv6 addresses come from, at most a /96; without it
    /// they have none. Servers of a host may share it.
    pub ipv6_pool: Option<Ipv6Net>,
    /// Destinations that instances may reach although they are private.
    pub allowed: Vec<IpNet>,
    /// The nft program.
    pub nft: PathBuf,
    /// Instances use the calling thread's own namespace, as it is, instead of
    /// one each. For a virtual machine, whose network is its instance's alone
    /// ([`Network::of_machine`]).
    pub shared: bool,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            pool: Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 0), 16),
            lock_folder: PathBuf::from("/run/skiff-net"),
            ipv6_pool: None,
            allowed: Vec::new(),
            nft: PathBuf::from("nft"),
            shared: false,
        }
    }
}

/// What of [`Networks`] survives an execve, beside the descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworksState {
    ready: Vec<NetworkState>,
    egress: Option<EgressPoolState>,
}

/// What a sweep found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Interfaces.
    pub links: usize,
    /// nftables tables.
    pub tables: usize,
    /// Claims of a part of the pool.
    pub claims: usize,
}

/// Makes, keeps ready and removes the networks of one server's instances.
///
/// Egress is set up when it is first asked for; a host without nftables or a
/// free part of the pool serves instances without egress.
#[derive(Debug)]
pub struct Networks {
    server: ServerId,
    options: NetOptions,
    home: OwnedFd,
    wanted: PoolConfig,
    ready: VecDeque<Network>,
    ready_egress: VecDeque<Network>,
    egress: Option<Egress>,
}

impl Networks {
    /// Nothing is made yet. What an earlier launcher left is still there:
    /// [`Self::sweep`].
    ///
    /// # Errors
    /// When the calling thread's namespace cannot be opened.
    pub fn open(server: ServerId, options: NetOptions) -> Result<Self, NetError> {
        Ok(Self {
            server,
            options,
            home: current().step("open the network namespace of", "this thread")?,
            wanted: PoolConfig {
                networks: 0,
                egress_networks: 0,
            },
            ready: VecDeque::new(),
            ready_egress: VecDeque::new(),
            egress: None,
        })
    }

    /// Puts together what [`Self::into_parts`] took apart.
    ///
    /// # Errors
    /// When the state and the descriptors do not fit, or the kernel refuses.
    pub fn from_parts(
        server: ServerId,
        options: NetOptions,
        state: NetworksState,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, NetError> {
        let bad_state = NetError::BadState { fds: fds.len() };
        let expected = state.ready.len() + usize::from(state.egress.is_some());
        if fds.len() != expected {
            return Err(bad_state);
        }
        let mut networks = Self::open(server, options)?;
        let mut fds = fds.into_iter();
        for (state, fd) in state.ready.into_iter().zip(&mut fds) {
            networks.keep(Network::from_parts(state, fd));
        }
        if let Some((state, claim)) = state.egress.zip(fds.next()) {
            let egress = Egress::from_parts(server, &networks.options, state, claim)?;
            networks.egress = Some(egress);
        }
        Ok(networks)
    }

    /// What a launcher keeps when it executes another program file; the
    /// descriptors are closed by execve unless it says otherwise. Networks
    /// that were taken are the launcher's to keep.
    #[must_use]
    pub fn into_parts(self) -> (NetworksState, Vec<OwnedFd>) {
        let ready = self.ready.into_iter().chain(self.ready_egress);
        let (ready, mut fds): (Vec<_>, Vec<_>) = ready.map(Network::into_parts).unzip();
        let egress = self.egress.map(|egress| {
            let (state, claim) = egress.into_parts();
            fds.push(claim);
            state
        });
        (NetworksState { ready, egress }, fds)
    }

    /// How many to keep ready, at most [`READY_MAX`] of each kind.
    pub fn configure(&mut self, wanted: PoolConfig) {
        self.wanted = PoolConfig {
            networks: wanted.networks.min(READY_MAX),
            egress_networks: wanted.egress_networks.min(READY_MAX),
        };
    }

    /// Prepares one network if one is missing, or frees what the kernel has
    /// removed of released ones, and says whether it did anything. To be
    /// called again at once if it did, within a second or so while
    /// [`Self::leaving`] is not zero, and after each take.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left of the attempt.
    pub fn refill_one(&mut self) -> Result<bool, NetError> {
        if self.options.shared {
            return Ok(false);
        }
        let short = |ready: &VecDeque<_>, wanted: u32| {
            ready.len() < usize::try_from(wanted).unwrap_or(usize::MAX)
        };
        let network = if short(&self.ready, self.wanted.networks) {
            self.prepare()?
        } else if short(&self.ready_egress, self.wanted.egress_networks) {
            self.prepare_egress()?
        } else {
            return self.egress.as_mut().map_or(Ok(false), Egress::collect);
        };
        self.keep(network);
        Ok(true)
    }

    /// How many released networks the kernel has yet to remove.
    #[must_use]
    pub fn leaving(&self) -> usize {
        self.egress.as_ref().map_or(0, Egress::leaving)
    }

    /// A ready network, or one made now.
    ///
    /// # Errors
    /// When none is ready and the kernel refuses to make one.
    pub fn take(&mut self, egress: bool) -> Result<Network, NetError> {
        if self.options.shared {
            return self.share();
        }
        if !egress {
            let ready = self.ready.pop_front();
            return ready.map_or_else(|| self.prepare(), Ok);
        }
        let network = match self.ready_egress.pop_front() {
            Some(network) => network,
            None => self.prepare_egress()?,
        };
        if let (Some(state), Some(egress)) = (&network.state().egress, &self.egress) {
            egress.wait_operational(state)?;
        }
        Ok(network)
    }

    /// A network with a way out for a virtual machine, and the tap that leads
    /// there: with `IFF_NO_PI` and `IFF_VNET_HDR`, the other end's address
    /// being [`skiff_wire::launcher::MACHINE_MAC`]; the machine itself is to
    /// be told [`Self::machine_network`]. The tap is there for as
    /// long as somebody holds its descriptor.
    ///
    /// # Errors
    /// When none can be made; nothing is left of the attempt.
    pub fn take_for_machine(&mut self) -> Result<(Network, OwnedFd), NetError> {
        if self.options.shared {
            return Err(NetError::MachineInMachine);
        }
        let network = self.take(true)?;
        let with_ipv6 = self.options.ipv6_pool.is_some();
        let tap = network.add_tap(with_ipv6);
        match tap.step("make a tap in the network of", self.server) {
            Ok(tap) => Ok((network, tap)),
            Err(error) => {
                // The first error is the one to tell.
                if let Err(undo) = self.release(network) {
                    tracing::warn!(error = %skiff_base::chain(&undo), "a failed network leaves something behind");
                }
                Err(error)
            }
        }
    }

    /// What a machine with such a network is to be told of it.
    #[must_use]
    pub fn machine_network(&self) -> MachineNetwork {
        machine::told(self.options.ipv6_pool.is_some())
    }

    /// Removes a network whose instance has ended. No packet passes any more
    /// when it returns; the kernel removes the namespace and its links soon
    /// after, at the latest when [`Self::refill_one`] insists.
    ///
    /// # Errors
    /// When the kernel refuses to remove what it has on the host.
    pub fn release(&mut self, network: Network) -> Result<(), NetError> {
        let (state, namespace) = network.into_parts();
        drop(namespace);
        match (state.egress, &mut self.egress) {
            (Some(state), Some(egress)) => egress.release(&state),
            _ => Ok(()),
        }
    }

    /// Removes what carries this server's id and belongs to no network that
    /// is ready or taken.
    ///
    /// # Errors
    /// When the kernel refuses to list or remove something.
    pub fn sweep(&mut self) -> Result<SweepReport, NetError> {
        let mut report = SweepReport::default();
        if self.options.shared {
            return Ok(report);
        }
        let socket = Socket::route().step("open a netlink socket for", self.server)?;
        let live = |link: &str| self.egress.as_ref().is_some_and(|egress| egress.owns(link));
        report.links = egress::remove_links(&socket, self.server, |link| !live(link))
            .step("remove the links of", self.server)?;
        if self.egress.is_none() {
            let filter = Socket::netfilter().step("open a netlink socket for", self.server)?;
            let removed = egress::remove_table(&filter, &table::name(self.server))?;
            report.tables = usize::from(removed);
        }
        report.claims = share::sweep(&self.options.lock_folder, self.server)?;
        uplink::stop_if_last(&self.options.lock_folder)?;
        forwarding6::stop_if_last(&self.options.lock_folder)?;
        Ok(report)
    }

    /// Removes everything: the ways out of networks still taken, too.
    ///
    /// # Errors
    /// When the kernel refuses to remove something.
    pub fn close(mut self) -> Result<(), NetError> {
        self.ready.clear();
        self.ready_egress.clear();
        match self.egress {
            Some(egress) => egress.close(self.server, &self.options),
            None => Ok(()),
        }
    }

    fn keep(&mut self, network: Network) {
        if network.address().is_some() {
            self.ready_egress.push_back(network);
        } else {
            self.ready.push_back(network);
        }
    }

    fn prepare(&self) -> Result<Network, NetError> {
        let (visit, namespace) = Visit::new_namespace(self.home.as_fd())
            .step("make a network namespace of", self.server)?;
        inside::prepare(false, |_| {}).step("prepare a network namespace of", self.server)?;
        drop(visit);
        Ok(Network::from_parts(
            NetworkState { egress: None },
            namespace,
        ))
    }

    /// Another holder of the namespace that all share.
    fn share(&self) -> Result<Network, NetError> {
        let namespace = self.home.try_clone();
        let namespace = namespace.step("keep the network namespace of", self.server)?;
        Ok(Network::from_parts(
            NetworkState { egress: None },
            namespace,
        ))
    }

    fn prepare_egress(&mut self) -> Result<Network, NetError> {
        let egress = match &mut self.egress {
            Some(egress) => egress,
            none => none.insert(Egress::open(self.server, &self.options)?),
        };
        egress.collect()?;
        egress.prepare(self.home.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::inside::SERVICE_ADDRESS;
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
    fn instances_of_a_machine_share_its_namespace() {
        let home = current().unwrap();
        let (_visit, machine) = Visit::new_namespace(home.as_fd()).unwrap();
        let options = NetOptions {
            shared: true,
            ..NetOptions::default()
        };
        let mut networks = Networks::open(ServerId::from_parts(1, 2), options).unwrap();
        networks.configure(PoolConfig {
            networks: 2,
            egress_networks: 2,
        });
        assert!(!networks.refill_one().unwrap());
        let own = Network::of_machine().unwrap();
        own.lead_services().unwrap();
        let (one, other) = (networks.take(false).unwrap(), networks.take(true).unwrap());
        let inode = |fd: &dyn Fn() -> OwnedFd| rustix::fs::fstat(fd()).unwrap().st_ino;
        let expected = inode(&|| machine.try_clone().unwrap());
        for network in [&own, &one, &other] {
            assert_eq!(network.address(), None);
            let found = inode(&|| network.as_fd().try_clone_to_owned().unwrap());
            assert_eq!(found, expected);
        }
        let ours = TcpListener::from(own.gateway_listener().unwrap());
        TcpStream::connect((SERVICE_ADDRESS, 80)).unwrap();
        ours.accept().unwrap();
        networks.release(one).unwrap();
        networks.close().unwrap();
        // What is left is the machine's.
        TcpStream::connect((SERVICE_ADDRESS, 80)).unwrap();
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
