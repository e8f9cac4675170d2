//! The application's calls to Skiff's own services: what is connected inside
//! is connected on to the host.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use skiff_net::Network;
use skiff_wire::agent::{DNS_PORT, GATEWAY_PORT};

use crate::agent::{Agent, Token};

/// Where calls arrive; nothing on a kernel that cannot lead them there.
#[derive(Debug, Default)]
pub(crate) struct Services {
    gateway: Option<OwnedFd>,
    pub(crate) dns_udp: Option<OwnedFd>,
    dns_tcp: Option<OwnedFd>,
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

    /// Connects what has arrived on to the host.
    pub(crate) fn accept_service(&mut self, token: Token) {
        let (listener, port) = match token {
            Token::DnsTcp => (&self.services.dns_tcp, DNS_PORT),
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
