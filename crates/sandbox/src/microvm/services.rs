//! Where a machine's calls to Skiff's own services arrive.
//!
//! What a guest connects to at a port of the host's, its monitor connects to at
//! a socket of that number in the monitor's folder. The sockets are ours; the
//! folder's other inhabitant, the monitor, may do there what it likes, so
//! nothing by a name in it is followed. The launcher removes it with all that
//! is in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use skiff_base::Listener;
use skiff_wire::agent::{DNS_DATAGRAM_PORT, DNS_PORT, GATEWAY_PORT, RUNTIME_PORT};

use super::config::VSOCK;
use crate::{Datagrams, Listeners};

/// Makes the sockets, in the place of those of a former server, whose
/// connections go on.
///
/// # Errors
/// When the folder is gone, or its monitor has put something in the way.
pub fn bind(folder: &Path) -> io::Result<Listeners> {
    let folder = open(folder)?;
    Ok(Listeners {
        gateway: listen(&folder, GATEWAY_PORT)?.into(),
        dns: listen(&folder, DNS_PORT)?.into(),
        dns_datagrams: Datagrams::Carried(listen(&folder, DNS_DATAGRAM_PORT)?.into()),
    })
}

/// As [`bind`], the socket where a function's runtime calls.
///
/// # Errors
/// As [`bind`].
pub fn bind_runtime(folder: &Path) -> io::Result<Listener> {
    listen(&open(folder)?, RUNTIME_PORT).map(Listener::from)
}

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

fn listen(folder: &OwnedFd, port: u32) -> io::Result<UnixListener> {
    let name = format!("{VSOCK}_{port}");
    match rustix::fs::unlinkat(folder, &*name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let listener = UnixListener::bind(by_number(folder).join(&name))?;
    listener.set_nonblocking(true)?;
    let_all_connect(folder, &name)?;
    Ok(listener)
}

/// The folder above keeps all but the monitor out.
fn let_all_connect(folder: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&socket)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(io::Error::other(format!(
            "another file has taken the place of the socket {name}"
        )));
    }
    let mode = Mode::from_raw_mode(0o666);
    Ok(rustix::fs::chmodat(
        CWD,
        by_number(&socket),
        mode,
        AtFlags::empty(),
    )?)
}

/// An open file's path, which is short and leads to it whatever its name has
/// become.
fn by_number(file: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn bind_all(folder: &Path) -> io::Result<[UnixListener; 4]> {
        let listeners = bind(folder)?;
        let Datagrams::Carried(datagrams) = listeners.dns_datagrams else {
            panic!("datagrams have a socket");
        };
        let runtime = bind_runtime(folder)?;
        let all = [listeners.gateway, listeners.dns, datagrams, runtime];
        Ok(all.map(|listener| match listener {
            Listener::Unix(listener) => listener,
            Listener::Tcp(_) => panic!("a socket is another's"),
        }))
    }

    fn paths(folder: &Path) -> [PathBuf; 4] {
        [1026, 1027, 1028, 1029].map(|port| folder.join(format!("vsock_{port}")))
    }

    #[test]
    fn each_port_has_a_socket_that_others_may_connect_to() {
        let folder = tempfile::tempdir().unwrap();
        let listeners = bind_all(folder.path()).unwrap();
        for (listener, path) in listeners.iter().zip(paths(folder.path())) {
            let found = fs::symlink_metadata(&path).unwrap();
            assert!(found.file_type().is_socket());
            assert_eq!(found.permissions().mode() & 0o777, 0o666, "{path:?}");
            let _client = UnixStream::connect(&path).unwrap();
            listener.accept().unwrap();
            assert!(listener.accept().is_err(), "it does not wait");
        }
    }

    #[test]
    fn a_former_servers_sockets_give_way_and_its_end_takes_nothing_along() {
        let folder = tempfile::tempdir().unwrap();
        let former = bind_all(folder.path()).unwrap();
        let [path, ..] = paths(folder.path());
        let before = UnixStream::connect(&path).unwrap();
        let mut served = former[0].accept().unwrap().0;
        let current = bind_all(folder.path()).unwrap();
        drop(former);
        io::Write::write_all(&mut served, b"on").unwrap();
        let mut said = [0; 2];
        io::Read::read_exact(&mut &before, &mut said).unwrap();
        assert_eq!(&said, b"on");
        let _client = UnixStream::connect(&path).unwrap();
        current[0].accept().unwrap();
        // Between two servers nobody waits.
        drop(current);
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn what_a_monitor_puts_in_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "key").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        let own = folder.path().join("own");
        fs::create_dir(&own).unwrap();
        for path in paths(&own) {
            symlink(&precious, path).unwrap();
        }
        let listeners = bind_all(&own).unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"key");
        let opened = fs::File::open(&own).unwrap().into();
        drop(listeners);
        let [path, ..] = paths(&own);
        fs::remove_file(&path).unwrap();
        symlink(&precious, &path).unwrap();
        assert!(let_all_connect(&opened, "vsock_1026").is_err());
        let mode = fs::metadata(&precious).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(bind(&own).is_err());
        let gone = folder.path().join("gone");
        assert!(bind(&gone).is_err() && bind_runtime(&gone).is_err());
    }
}
