//! What users do, with the real binary and real clients: the suites are in
//! `tests/`, one file a subject. This holds what several of them ask for.
//!
//! The suites need root, the tools of `scripts/setup.sh` and the binary
//! (`cargo build -p skiff`). Tests of one file share a server where they do
//! not disturb each other; each uses services of its own.

pub mod aws;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Pid;
use serde_json::Value;
use skiff_base::{Clock as _, SystemClock};
use skiff_testkit::{Reply, Server, deadline, fixture, run};

/// Runs something so many times at once; answers in the order of the index.
///
/// # Panics
/// When one of them does.
pub fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count)
            .map(|index| scope.spawn(move || work(index)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("none of them panics"))
            .collect()
    })
}

/// A copy of the test application's image, in this folder under this name, with
/// one more layer: a tar's bytes.
///
/// # Panics
/// When cp or umoci does not succeed.
#[must_use]
pub fn layout_with_layer(folder: &Path, name: &str, layer: &[u8]) -> PathBuf {
    let layout = folder.join(name);
    let app = fixture("testapp");
    let _out = run("cp", ["-a".as_ref(), app.as_os_str(), layout.as_os_str()]).ok();
    let tar = folder.join(format!("{name}.tar"));
    std::fs::write(&tar, layer).expect("the folder takes a file");
    let image = format!("{}:1", layout.display());
    let tar = tar.to_string_lossy();
    let _out = run("umoci", ["raw", "add-layer", "--image", &image, &tar]).ok();
    layout
}

/// How long something took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let clock = SystemClock;
    let start = clock.now();
    let done = work();
    (done, clock.now().since(start))
}

/// A connection to the gateway.
///
/// # Panics
/// When it does not accept.
#[must_use]
pub fn connect(server: &Server) -> TcpStream {
    let stream =
        TcpStream::connect(format!("127.0.0.1:{}", server.port())).expect("the gateway accepts");
    stream
        .set_read_timeout(Some(deadline(20)))
        .and_then(|()| stream.set_nodelay(true))
        .expect("a socket takes options");
    stream
}

/// Sends raw bytes to the gateway and reads until it closes.
///
/// # Panics
/// When it neither answers nor closes in time.
#[must_use]
pub fn raw(server: &Server, request: &[u8]) -> String {
    let mut stream = connect(server);
    stream.write_all(request).expect("the gateway reads");
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply) {
        Ok(_) => {}
        // It closed with some of our bytes unread: what it said arrived.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&reply)),
    }
    String::from_utf8_lossy(&reply).into_owned()
}

/// Reads until the text ends so.
///
/// # Panics
/// When it does not come.
#[must_use]
pub fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(end.as_bytes()) {
        let count = stream
            .read(&mut byte)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&read)));
        assert_ne!(count, 0, "closed after {}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// The body of a reply that succeeded.
///
/// # Panics
/// When it did not.
#[track_caller]
#[must_use]
pub fn good(reply: Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body
}

/// Hands an event to a function, with more of curl's flags.
///
/// # Panics
/// When curl cannot be started.
#[must_use]
pub fn invoke_with(server: &Server, host: &str, event: &str, flags: &[&str]) -> Reply {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(event.as_bytes()).expect("the event");
    let data = format!("@{}", file.path().display());
    let own = ["-X", "POST", "-H", "Expect:", "--data-binary", &data];
    server.curl(host, "/", &[&own, flags].concat())
}

/// Hands an event to a function.
///
/// # Panics
/// When curl cannot be started.
#[must_use]
pub fn invoke(server: &Server, host: &str, event: &str) -> Reply {
    invoke_with(server, host, event, &[])
}

/// What a function answered.
///
/// # Panics
/// When it has failed, or answered no JSON.
#[track_caller]
#[must_use]
pub fn answer(reply: Reply) -> Value {
    assert_eq!(reply.header("x-amz-function-error"), None, "{reply:?}");
    serde_json::from_str(&good(reply)).expect("it answers with JSON")
}

/// A function's error.
///
/// # Panics
/// When it has none.
#[track_caller]
#[must_use]
pub fn failure(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{reply:?}");
    let error = reply.header("x-amz-function-error");
    assert_eq!(error, Some("Unhandled"), "{reply:?}");
    serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply:?}"))
}

/// Asks for a path in a loop from so many clients while something is done to
/// the server; the statuses, 0 where there was none.
///
/// # Panics
/// When curl cannot be started.
pub fn under_load(
    server: &mut Server,
    host: &str,
    clients: usize,
    path: &str,
    act: impl FnOnce(&mut Server),
) -> Vec<u16> {
    let done = AtomicBool::new(false);
    let url = format!("http://127.0.0.1:{}{path}", server.port());
    let header = format!("Host: {host}");
    std::thread::scope(|scope| {
        let (done, url, header) = (&done, &url, &header);
        let load = scope.spawn(move || {
            at_once(clients, |_| {
                let mut statuses = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    let flags = [
                        "-s",
                        "-o",
                        "/dev/null",
                        "-m",
                        "60",
                        "-w",
                        "%{http_code}",
                        "-H",
                        header,
                        url,
                    ];
                    let reply = skiff_testkit::run("curl", flags);
                    statuses.push(reply.out.trim().parse().unwrap_or(0));
                }
                statuses
            })
            .concat()
        });
        act(server);
        done.store(true, Ordering::SeqCst);
        load.join().expect("the clients end")
    })
}

/// The processes in a server's sandboxes, of its class of containers, that are
/// such: from the cgroups that carry its id.
pub fn processes(server: &Server, are_such: impl Fn(i32) -> bool) -> Vec<Pid> {
    let find = format!(
        "find /sys/fs/cgroup -path '*{}*' -name cgroup.procs -exec cat {{}} + | sort -u",
        server.id()
    );
    let found = run("sh", ["-c", &find]);
    let pids = found.out.lines().filter_map(|line| line.parse().ok());
    let such = pids.filter(|pid| are_such(*pid));
    such.filter_map(Pid::from_raw).collect()
}

/// The most memory that the server's process has had, KiB.
///
/// # Panics
/// When it has ended.
#[must_use]
pub fn peak_kib(server: &Server) -> u64 {
    let status = format!("/proc/{}/status", server.pid());
    let status = std::fs::read_to_string(status).expect("the server is there");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.split_whitespace().next()?.parse().ok());
    kib.expect("a process tells its memory")
}
