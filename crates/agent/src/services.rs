//! The application's calls to Skiff's own services: what is connected inside
//! is connected on to the host.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::net::sockopt;
use skiff_net::Network;
use skiff_wire::agent::{DNS_PORT, GATEWAY_PORT, RUNTIME_PORT};
use skiff_wire::launcher::{RUNTIME_API, Refusal};

use crate::agent::{Agent, Token};
use crate::requests::{kernel, refuse};

/// Where calls arrive; nothing on a kernel that cannot lead them there.
#[derive(Debug, Default)]
pub(crate) struct Services {
    gateway: Option<OwnedFd>,
    pub(crate) dns_udp: Option<OwnedFd>,
    dns_tcp: Option<OwnedFd>,
    /// There from when the host has asked for it.
    runtime: Option<OwnedFd>,
}

impl Services {
    /// Sets the machine's network up. What fails is told: a machine without
    /// services runs all else.
    pub(crate) fn open() -> Self {
        Self::try_open().unwrap_or_else(|error| {
            tracing::warn!(%error, "applications do not reach Skiff's services");
            Self::default()
        })
    }

    fn try_open() -> io::Result<Self> {
        let network = Network::of_machine()?;
        network.lead_services()?;
        let (udp, tcp) = network.dns_sockets()?;
        Ok(Self {
            gateway: Some(network.gateway_listener()?),
            dns_udp: Some(udp),
            dns_tcp: Some(tcp),
            runtime: None,
        })
    }

    pub(crate) fn are_served(&self) -> bool {
        self.gateway.is_some()
    }
}

impl Agent {
    pub(crate) fn watch_services(&self) -> rustix::io::Result<()> {
        let Services {
            gateway,
            dns_udp,
            dns_tcp,
            runtime: _,
        } = &self.services;
        for (socket, token) in [
            (gateway, Token::Gateway),
            (dns_udp, Token::DnsUdp),
            (dns_tcp, Token::DnsTcp),
        ] {
            if let Some(socket) = socket {
                self.watch(socket, token, EventFlags::IN)?;
            }
        }
        Ok(())
    }

    /// Has a function's runtime find the host where it looks for it.
    pub(crate) fn serve_runtime(&mut self) -> Result<(), Refusal> {
        if self.services.runtime.is_some() {
            return Ok(());
        }
        let listener = listen_for_runtime().map_err(|error| Refusal {
            errno: error.raw_os_error().unwrap_or(0),
            ..refuse("runtime", format!("listen at {RUNTIME_API}: {error}"))
        })?;
        self.watch(&listener, Token::Runtime, EventFlags::IN)
            .map_err(|errno| kernel("runtime", "watch a socket", errno))?;
        self.services.runtime = Some(listener);
        Ok(())
    }

    /// Connects what has arrived on to the host.
    pub(crate) fn accept_service(&mut self, token: Token) {
        let (listener, port) = match token {
            Token::DnsTcp => (&self.services.dns_tcp, DNS_PORT),
            Token::Runtime => (&self.services.runtime, RUNTIME_PORT),
            _ => (&self.services.gateway, GATEWAY_PORT),
        };
        let Some(listener) = listener else {
            return;
        };
        for guest in self.accept(listener) {
            match self.outside.connect(port) {
                Ok(host) => self.add_service_stream(guest, host),
                // Dropping it tells the application.
                Err(error) => tracing::debug!(%error, port, "the host cannot be reached"),
            }
        }
    }
}

/// Whose connections send at once what they have, as the sockets that they
/// come from do: an answer's end does not wait for its beginning to be
/// acknowledged.
fn listen_for_runtime() -> io::Result<OwnedFd> {
    let listener = TcpListener::bind(RUNTIME_API)?;
    listener.set_nonblocking(true)?;
    sockopt::set_tcp_nodelay(&listener, true)?;
    Ok(listener.into())
}
