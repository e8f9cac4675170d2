//! Requests that are no service's and that this process serves itself.
#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

mod rig;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rig::{CALLER, HOST, Message, Raw, Rig, http_app, ok};
use skiff_base::ByteStream;
use skiff_gateway::{Aside, Connect};
use skiff_types::ProjectId;

/// Answers what it is asked for: the first line and the host.
#[derive(Debug)]
struct Echo;

impl Connect for Echo {
    fn connect(&self) -> ByteStream {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap()).lines();
            let mut head = Vec::new();
            while let Some(Ok(line)) = lines.next() {
                if !line.is_empty() {
                    head.push(line);
                    continue;
                }
                let host = head.iter().find(|line| line.starts_with("host:"));
                let told = ok(&format!("{} {}", head[0], host.unwrap()));
                (&far).write_all(told.as_bytes()).unwrap();
                head.clear();
            }
        });
        ByteStream::Unix(tokio::net::UnixStream::from_std(near).unwrap())
    }
}

fn ask(rig: &Rig, host: &str, path: &str) -> Message {
    let mut client = Raw::connect(rig.address);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    client.message()
}

#[test]
fn what_is_no_service_s_is_served_aside_and_recorded_nowhere() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|_| ok("a service's")));
    assert_eq!(ask(&rig, "id.some-url.example", "/").status(), 404);
    rig.gateway.put_aside(Aside {
        name: "some-url".parse().unwrap(),
        label: "some-url",
        path: "/some/url/",
        timeout_ms: 10_000,
        connect: Arc::new(Echo),
    });
    // By their hosts, whatever follows, and by their paths at any other.
    for (host, path) in [
        ("id.some-url.example:8080", "/a?b"),
        ("ID.Some-URL.local", "/"),
        ("127.0.0.1:8080", "/some/url/id/a?b"),
    ] {
        let told = format!("GET {path} HTTP/1.1 host: {host}");
        assert_eq!(ask(&rig, host, path).text(), told);
    }
    for (host, path) in [("some-url.example", "/"), ("127.0.0.1", "/some/url")] {
        assert_eq!(ask(&rig, host, path).status(), 404, "{host} {path}");
    }
    assert!(rig.records().is_empty() && rig.dead().is_empty());
    assert!(rig.gateway.counts().is_empty() && rig.gateway.loads().is_empty());
    // A service's paths are its own, and instances call services only.
    assert_eq!(ask(&rig, HOST, "/some/url/id").text(), "a service's");
    assert_eq!(rig.records().len(), 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inside = listener.local_addr().unwrap();
    let project = ProjectId::default_project();
    let _inner = rig.gateway.serve_inner(listener.into(), CALLER, project);
    let mut client = Raw::connect(inside);
    client.send("GET / HTTP/1.1\r\nhost: id.some-url.example\r\n\r\n");
    assert_eq!(client.message().status(), 404);
}
