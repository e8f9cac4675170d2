//! Either end of sockets between guest and host, and a client of the monitor's
//! control socket, for the nested bench:
//!
//! ```text
//! peer guest-echo PORT                  in the guest: gives back what it gets
//! peer guest-send PORT BYTES STREAMS    in the guest: sends to the host, expects it back
//! peer guest-wait PORT                  in the guest: waits for one connection's end
//! peer host-echo PATH                   on the host, for a port that the guest connects to
//! peer host-send PATH PORT BYTES STREAMS  on the host: sends to the guest, expects it back
//! peer map PATH DISK SECTOR FILE        on the host: maps a whole file, over a control socket
//! peer unmap PATH DISK SECTOR           on the host: takes it away
//! peer renew PATH                       on the host: makes the guest another one
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's program: it fails by panicking, and speaks to a script"
)]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{Shutdown, shutdown};
use skiff_base::{Clock, SystemClock};
use skiff_flat::testing::deadline;
use skiff_wire::monitor::{Reply, Request};

#[allow(dead_code, reason = "tests use more of it")]
mod client;

const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["guest-echo", port] => {
            let listener = guest_listen(port.parse().unwrap());
            println!("listening");
            loop {
                let stream = guest_accept(&listener);
                std::thread::spawn(move || echo(stream));
            }
        }
        ["guest-wait", port] => {
            let mut stream = guest_accept(&guest_listen(port.parse().unwrap()));
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
        ["guest-send", port, bytes, streams] => {
            let port = port.parse().unwrap();
            all(bytes, streams, || guest_connect(port));
        }
        ["host-echo", path] => {
            let listener = UnixListener::bind(path).unwrap();
            for stream in listener.incoming() {
                let stream = File::from(OwnedFd::from(stream.unwrap()));
                std::thread::spawn(move || echo(stream));
            }
        }
        ["host-send", path, port, bytes, streams] => {
            all(bytes, streams, || host_connect(Path::new(path), port));
        }
        ["map", path, disk, sector, file] => {
            let file = File::open(file).unwrap();
            let request = Request::Map {
                disk: disk.into(),
                first_sector: sector.parse().unwrap(),
                sectors: file.metadata().unwrap().len() / 512,
            };
            control(path, request, &[file.as_fd()]);
        }
        ["renew", path] => control(path, Request::RenewGeneration, &[]),
        ["unmap", path, disk, sector] => {
            let request = Request::Unmap {
                disk: disk.into(),
                first_sector: sector.parse().unwrap(),
            };
            control(path, request, &[]);
        }
        _ => panic!("{words:?} is not what this does"),
    }
}

fn control(path: &str, request: Request, fds: &[BorrowedFd<'_>]) {
    let mut client = client::Client::connect(Path::new(path));
    client.ask(request, fds).unwrap();
    let Ok(Reply::Stats(stats)) = client.ask(Request::Stats, &[]) else {
        panic!("there are no statistics");
    };
    println!("{stats:?}");
}

/// Gives back what comes, to its end.
fn echo(mut stream: File) {
    let mut piece = vec![0; 64 << 10];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&piece[..length]).unwrap(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
    shutdown(&stream, Shutdown::Write).unwrap();
}

/// Sends on many streams at once and expects everything back on each.
fn all(bytes: &str, streams: &str, connect: impl Fn() -> File + Sync) {
    let bytes: usize = bytes.parse().unwrap();
    let streams: usize = streams.parse().unwrap();
    std::thread::scope(|scope| {
        for stream in 0..streams {
            let connect = &connect;
            scope.spawn(move || exchange(connect(), bytes, stream));
        }
    });
    println!("echoed {bytes} {streams}");
}

fn exchange(stream: File, bytes: usize, seed: usize) {
    let content: Vec<u8> = (0..bytes)
        .map(|at| (at / 251 + at + seed).to_le_bytes()[0])
        .collect();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&content).unwrap();
            shutdown(writer.as_fd(), Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        (&stream).read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), content.len());
        assert!(back == content, "the bytes are not those that were sent");
    });
}

/// Connects to a guest's port, as soon as somebody listens there.
fn host_connect(path: &Path, port: &str) -> File {
    let started = SystemClock.now();
    loop {
        if let Some(stream) = try_host_connect(path, port) {
            return stream;
        }
        assert!(
            SystemClock.now().since(started) < deadline(),
            "nobody listens on port {port}"
        );
        std::thread::yield_now();
    }
}

fn try_host_connect(path: &Path, port: &str) -> Option<File> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .ok()?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.extend(byte);
    }
    assert!(
        line.starts_with(b"OK "),
        "{}",
        String::from_utf8_lossy(&line)
    );
    Some(File::from(OwnedFd::from(stream)))
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK.try_into().unwrap(),
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

fn guest_socket() -> OwnedFd {
    // SAFETY: the call takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(socket) }
}

fn guest_connect(port: u32) -> File {
    let socket = guest_socket();
    let address = address(HOST, port);
    let length = size_of_val(&address).try_into().unwrap();
    // SAFETY: the address lives during the call and has this length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    File::from(socket)
}

fn guest_listen(port: u32) -> OwnedFd {
    let socket = guest_socket();
    let address = address(ANY, port);
    let length = size_of_val(&address).try_into().unwrap();
    // SAFETY: the address lives during the call and has this length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    rustix::net::listen(&socket, 64).unwrap();
    socket
}

fn guest_accept(listener: &OwnedFd) -> File {
    // SAFETY: without an address there is no pointer that is used.
    let socket = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else's.
    File::from(unsafe { OwnedFd::from_raw_fd(socket) })
}
