use std::io;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why an instance's network could not be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a step.
    #[error("cannot {step} ({subject})")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// To what.
        subject: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file of the lock folder.
    #[error("cannot {step} {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another server holds the lock folder for too long.
    #[error("the lock {} was not free in time", path.display())]
    LockBusy {
        /// The lock file.
        path: PathBuf,
    },
    /// Every part of the pool belongs to another server or is in use on this host.
    #[error("no part of the address pool {pool} is free on this host")]
    PoolTaken {
        /// The pool.
        pool: Ipv4Net,
    },
    /// This server's part of the pool is used up.
    #[error("all {limit} addresses of {share} are in use")]
    AddressesExhausted {
        /// This server's part.
        share: Ipv4Net,
        /// How many it has.
        limit: usize,
    },
    /// The pool cannot be divided.
    #[error("the address pool {pool} is too small: a prefix of at most /{limit} is needed")]
    PoolTooSmall {
        /// The pool.
        pool: Ipv4Net,
        /// The longest prefix that serves.
        limit: u8,
    },
    /// The IPv6 pool leaves no room for the rest of an address.
    #[error("the IPv6 pool {pool} is too small: a prefix of at most /{limit} is needed")]
    Ipv6PoolTooSmall {
        /// The pool.
        pool: Ipv6Net,
        /// The longest prefix that serves.
        limit: u8,
    },
    /// The host reaches somebody else by the IPv6 pool's addresses.
    #[error("the host routes {route}, which holds the IPv6 pool {pool}: name another pool")]
    Ipv6PoolRouted {
        /// The pool.
        pool: Ipv6Net,
        /// The route's destination.
        route: IpNet,
    },
    /// The kernel was built or started without IPv6.
    #[error(
        "IPv6 is asked for, and this host's kernel has none (is ipv6.disable=1 on its command line?)"
    )]
    NoIpv6,
    /// The nft program did not take the table.
    #[error("nft failed: {message}")]
    Nft {
        /// What it wrote.
        message: String,
    },
    /// The nft program did not end in time.
    #[error("nft did not end within {seconds} seconds")]
    NftDeadline {
        /// The deadline.
        seconds: u64,
    },
    /// A virtual machine's own launcher was asked for another machine's network.
    #[error("a machine's network cannot be made in a machine")]
    MachineInMachine,
    /// The saved state is not one this program wrote.
    #[error("the saved state of networks does not fit its {fds} descriptors")]
    BadState {
        /// How many came along.
        fds: usize,
    },
}

/// Puts a step's name and subject to an error of the kernel's.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str, subject: impl ToString) -> Result<T, NetError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str, subject: impl ToString) -> Result<T, NetError> {
        self.map_err(|source| NetError::Kernel {
            step,
            subject: subject.to_string(),
            source: source.into(),
        })
    }
}
