//! The sockets a server listens on, opened while it may.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use anyhow::Context as _;
use rustix::fs::Mode;
use skiff_config::Config;
use socket2::{Domain, Protocol, Socket, Type};

use super::home::{Home, give};
use super::{launcher, user};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Everything a server listens on.
#[derive(Debug)]
pub struct Doors {
    /// One for each address and thread: the kernel spreads connections.
    pub gateway: Vec<TcpListener>,
    /// The operator's.
    pub api: UnixListener,
    /// The operator's, over TCP.
    pub api_tcp: Option<TcpListener>,
    /// For AWS's clients.
    pub lambda: Option<TcpListener>,
}

impl Doors {
    /// The same sockets, for the server that takes over.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn copies(&self) -> std::io::Result<Self> {
        Ok(Self {
            gateway: self
                .gateway
                .iter()
                .map(TcpListener::try_clone)
                .collect::<Result<_, _>>()?,
            api: self.api.try_clone()?,
            api_tcp: self
                .api_tcp
                .as_ref()
                .map(TcpListener::try_clone)
                .transpose()?,
            lambda: self
                .lambda
                .as_ref()
                .map(TcpListener::try_clone)
                .transpose()?,
        })
    }

    /// Opens them.
    ///
    /// # Errors
    /// Which address cannot be listened on, and why.
    pub fn open(config: &Config, home: &Home, threads: usize) -> anyhow::Result<Self> {
        let mut given = Given::from_systemd()?;
        if given.gateway.is_empty() {
            for address in &config.gateway.listen {
                let sockets = shared(*address, threads);
                let sockets = sockets.with_context(|| refused("gateway.listen", *address))?;
                given.gateway.extend(sockets);
            }
        }
        let gateway = given.gateway;
        let api = match given.api {
            Some(api) => api,
            None => api_socket(config, home)?,
        };
        Ok(Self {
            gateway,
            api,
            api_tcp: one("api.listen", config.api.listen)?,
            lambda: one("lambda.listen", config.lambda.listen)?,
        })
    }
}

/// Sockets that systemd has opened for the server, systemd.socket(5): stream
/// sockets of the internet are the gateway's, one of a path the operator's.
#[derive(Debug, Default)]
struct Given {
    gateway: Vec<TcpListener>,
    api: Option<UnixListener>,
}

impl Given {
    fn from_systemd() -> anyhow::Result<Self> {
        let mut passed = listenfd::ListenFd::from_env();
        let mut given = Self::default();
        for index in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
                listener.set_nonblocking(true)?;
                given.gateway.push(listener);
                continue;
            }
            let listener = passed.take_unix_listener(index).ok().flatten();
            let listener = listener.with_context(|| {
                format!("the socket {index} that systemd passes is neither TCP nor Unix")
            })?;
            listener.set_nonblocking(true)?;
            given.api = Some(listener);
        }
        Ok(given)
    }
}

fn refused(key: &str, address: SocketAddr) -> String {
    format!("{key}: {address} cannot be listened on")
}

/// One socket, where an address is set.
fn one(key: &str, address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let bind = |address| bind(address, false).with_context(|| refused(key, address));
    address.map(bind).transpose()
}

/// As many sockets on one address. A socket that does not share finds out
/// first whether somebody else is there: sharing ones would not.
fn shared(address: SocketAddr, count: usize) -> std::io::Result<Vec<TcpListener>> {
    let first = bind(address, false)?;
    let address = first.local_addr()?;
    drop(first);
    (0..count.max(1)).map(|_| bind(address, true)).collect()
}

fn bind(address: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn api_socket(config: &Config, home: &Home) -> anyhow::Result<UnixListener> {
    let path = config.api_socket();
    let closed_to_others = if config.api.group.is_empty() {
        0o177
    } else {
        0o117
    };
    let listener = home.user.acting(|| {
        // Nobody else may connect, not even between bind and chmod.
        let umask = rustix::process::umask(Mode::from_raw_mode(closed_to_others));
        let listener = launcher::listen(&path);
        rustix::process::umask(umask);
        listener
    })?;
    listener
        .set_nonblocking(true)
        .context("the operator's socket cannot be prepared")?;
    if home.user.change && !config.api.group.is_empty() {
        give(&path, home.user.uid, user::group(&config.api.group)?)?;
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_refused_although_sockets_are_shared() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = shared(any, 2).unwrap();
        assert_eq!(first.len(), 2);
        let address = first[0].local_addr().unwrap();
        assert_eq!(
            shared(address, 2).unwrap_err().kind(),
            std::io::ErrorKind::AddrInUse
        );
    }
}
