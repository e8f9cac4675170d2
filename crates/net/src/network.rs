use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::inside::{self, DNS_LISTEN_PORT, GATEWAY_LISTEN_PORT, SERVICE_ADDRESS};
use crate::machine;
use crate::namespace::{Visit, current};

/// Connections that wait at a listener of ours.
const BACKLOG: i32 = 128;

/// What an instance has of a network beside its namespace's descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Its way out, if it has one.
    pub egress: Option<EgressState>,
}

/// An instance's way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressState {
    /// The instance's address, unique on this host.
    pub address: Ipv4Addr,
    /// The host's end of the veth pair.
    pub link: String,
}

/// One instance's network: a namespace and what leads into it.
///
/// Dropping it closes the descriptor; `Networks::release` is what removes it.
#[derive(Debug)]
pub struct Network {
    namespace: OwnedFd,
    state: NetworkState,
}

impl Network {
    /// Puts together what [`Self::into_parts`] took apart.
    #[must_use]
    pub fn from_parts(state: NetworkState, namespace: OwnedFd) -> Self {
        Self { namespace, state }
    }

    /// The calling thread's own namespace, a whole machine's, with its loopback
    /// set up as an instance's is. To be called once in a machine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_machine() -> io::Result<Self> {
        inside::prepare_links(false, |_| {})?;
        Ok(Self::from_parts(NetworkState { egress: None }, current()?))
    }

    /// Leads a machine's calls to Skiff's services to where
    /// [`Self::gateway_listener`] and [`Self::dns_sockets`] listen. Every other
    /// network does it from the beginning.
    ///
    /// # Errors
    /// When the kernel refuses; one without nftables does.
    pub fn lead_services(&self) -> io::Result<()> {
        self.inside(inside::lead_services)
    }

    /// Makes a tap inside for a machine.
    pub(crate) fn add_tap(&self, with_ipv6: bool) -> io::Result<OwnedFd> {
        self.inside(|| machine::add_tap(with_ipv6))
    }

    /// What a launcher keeps when it executes another program file.
    #[must_use]
    pub fn into_parts(self) -> (NetworkState, OwnedFd) {
        (self.state, self.namespace)
    }

    /// What it has beside the namespace.
    #[must_use]
    pub fn state(&self) -> &NetworkState {
        &self.state
    }

    /// The instance's address, if it has egress.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.state.egress.as_ref().map(|egress| egress.address)
    }

    /// What `/etc/resolv.conf` says inside.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        format!("nameserver {SERVICE_ADDRESS}\noptions timeout:2 attempts:3\n")
    }

    /// A TCP socket inside the namespace, non-blocking and not yet connected.
    ///
    /// # Errors
    /// Those of socket(2) and setns(2).
    pub fn tcp_socket(&self) -> io::Result<OwnedFd> {
        self.inside(|| open(SocketType::STREAM))
    }

    /// `count` sockets as from [`Self::tcp_socket`], for one visit.
    ///
    /// # Errors
    /// Those of socket(2) and setns(2).
    pub fn tcp_sockets(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        self.inside(|| (0..count).map(|_| open(SocketType::STREAM)).collect())
    }

    /// A TCP socket inside the namespace that listens, non-blocking.
    ///
    /// # Errors
    /// Those of bind(2), listen(2) and setns(2).
    pub fn tcp_listen(&self, address: SocketAddrV4) -> io::Result<OwnedFd> {
        self.inside(|| {
            let socket = open(SocketType::STREAM)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &address)?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        })
    }

    /// A UDP socket inside the namespace bound to an address, non-blocking.
    ///
    /// # Errors
    /// Those of bind(2) and setns(2).
    pub fn udp_bind(&self, address: SocketAddrV4) -> io::Result<OwnedFd> {
        self.inside(|| {
            let socket = open(SocketType::DGRAM)?;
            bind(&socket, &address)?;
            Ok(socket)
        })
    }

    /// Where connections to [`SERVICE_ADDRESS`] port 80 arrive, whatever the
    /// application binds. Inside, only port [`GATEWAY_LISTEN_PORT`] is taken.
    ///
    /// # Errors
    /// Those of [`Self::tcp_listen`].
    pub fn gateway_listener(&self) -> io::Result<OwnedFd> {
        self.tcp_listen(SocketAddrV4::new(SERVICE_ADDRESS, GATEWAY_LISTEN_PORT))
    }

    /// Where DNS queries to [`SERVICE_ADDRESS`] port 53 arrive, UDP and TCP,
    /// whatever the application binds. Inside, only port [`DNS_LISTEN_PORT`]
    /// is taken.
    ///
    /// # Errors
    /// Those of [`Self::udp_bind`] and [`Self::tcp_listen`].
    pub fn dns_sockets(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let address = SocketAddrV4::new(SERVICE_ADDRESS, DNS_LISTEN_PORT);
        Ok((self.udp_bind(address)?, self.tcp_listen(address)?))
    }

    /// Runs `work` while the calling thread is inside.
    fn inside<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = current()?;
        let visit = Visit::enter(home.as_fd(), self.namespace.as_fd())?;
        let result = work();
        drop(visit);
        result
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn open(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = (kind == SocketType::STREAM).then_some(ipproto::TCP);
    Ok(socket_with(AddressFamily::INET, kind, flags, protocol)?)
}
