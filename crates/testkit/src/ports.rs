use std::net::{Ipv4Addr, TcpListener};

use skiff_base::random;

/// Ports that the kernel gives to nobody who does not name them (ip(7),
/// `ip_local_port_range`, begins at 32,768), and few programs name.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A TCP port of the loopback interface for a program that has to be told
/// one. Nobody holds it, but nobody comes by it by chance either.
///
/// # Panics
/// When none of a thousand is free.
#[must_use]
pub fn unused_port() -> u16 {
    let free = (0..1_000).find_map(|_| {
        let offset = random::u32() % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("less than a port's number");
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        Some(port)
    });
    free.expect("a free port")
}
