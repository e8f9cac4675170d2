//! The IPv6 half of a way out: addresses and the settings of both ends.
//!
//! An instance's address is the pool's first 96 bits and the instance's IPv4
//! address, so that the claim of a part of the IPv4 pool is one of a part of
//! this pool, too, and nothing more has to be remembered.
//!
//! The pair does without neighbour discovery as it does without ARP: on a
//! link with IFF_NOARP the kernel takes its own link address for everybody's,
//! and both ends have the same. Neither end has a link-local address or heeds
//! router advertisements; an instance's only addresses are `::1` and its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::namespace::set_sysctl;

/// Bits that the IPv4 address leaves for the pool.
pub(crate) const POOL_PREFIX_MAX: u8 = 96;

/// What any link of ours is told before it has IPv6.
const LINK: [(&str, &str); 5] = [
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_redirects", "0"),
    ("disable_ipv6", "0"),
];

/// The address of the instance that has this IPv4 address.
pub(crate) fn address(pool: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(pool.network().to_bits() | u128::from(address.to_bits()))
}

/// The part of the pool that belongs to a part of the IPv4 pool.
pub(crate) fn share(pool: Ipv6Net, share: Ipv4Net) -> Ipv6Net {
    let prefix = POOL_PREFIX_MAX + share.prefix_len();
    Ipv6Net::new_assert(address(pool, share.network()), prefix)
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn is_supported() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").exists()
}

/// Inside, before there is any link but loopback.
pub(crate) fn set_up_inside() -> io::Result<()> {
    // Loopback's, too, which is there already.
    set_sysctl("ipv6/conf/all/disable_ipv6", "0")?;
    set_up_link("default")
}

/// The host's end, or whatever has such settings.
pub(crate) fn set_up_link(link: &str) -> io::Result<()> {
    for (setting, value) in LINK {
        set_sysctl(&format!("ipv6/conf/{link}/{setting}"), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_pools_prefix_and_the_ipv4_address() {
        let cases = [
            ("fd73:6b69:6666::/48", "fd73:6b69:6666::6460:1005"),
            ("2001:db8:1:2:3:4::/96", "2001:db8:1:2:3:4:6460:1005"),
        ];
        for (pool, expected) in cases {
            let pool = pool.parse().unwrap();
            let made = address(pool, Ipv4Addr::new(100, 96, 16, 5));
            assert_eq!(made, expected.parse::<Ipv6Addr>().unwrap());
            let part = share(pool, "100.96.16.0/20".parse().unwrap());
            assert_eq!(part.prefix_len(), 116);
            assert!(part.contains(&made));
            assert!(!part.contains(&address(pool, Ipv4Addr::new(100, 96, 32, 5))));
        }
    }
}
