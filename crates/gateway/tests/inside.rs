//! Instances' calls to the services of their project, over TCP and over a
//! monitor's local socket.
#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

mod rig;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rig::{CALLER, HOST, Message, Raw, Rig, app, http_app, ok, wait_for};
use skiff_gateway::{GatewayConfig, InnerHandle};
use skiff_types::ProjectId;

const INSIDE: &str = "hello.skiff.internal";

fn ask<S: Read + Write>(mut client: Raw<S>, host: &str) -> Message {
    client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    client.message()
}

/// A local socket that an instance of this project calls at.
struct Local {
    path: PathBuf,
    _folder: tempfile::TempDir,
    handle: InnerHandle,
}

impl Local {
    fn serve(rig: &Rig, project: ProjectId) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway");
        let listener = UnixListener::bind(&path).unwrap();
        let handle = rig.gateway.serve_inner(listener.into(), CALLER, project);
        Self {
            path,
            _folder: folder,
            handle: handle.unwrap(),
        }
    }

    fn of_default_project(rig: &Rig) -> Self {
        Self::serve(rig, ProjectId::default_project())
    }
}

#[test]
fn a_listener_inside_serves_its_project_alone() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| ok(request.field("host").unwrap())));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inside = listener.local_addr().unwrap();
    let handle = rig
        .gateway
        .serve_inner(listener.into(), CALLER, ProjectId::default_project())
        .unwrap();
    let ask = |address, host| ask(Raw::connect(address), host);
    assert_eq!(ask(inside, INSIDE).text(), INSIDE);
    assert_eq!(ask(inside, HOST).status(), 404);
    assert_eq!(ask(rig.address, INSIDE).status(), 404);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let stranger = other.local_addr().unwrap();
    let project: ProjectId = "000000000002".parse().unwrap();
    let _other = rig
        .gateway
        .serve_inner(other.into(), CALLER, project)
        .unwrap();
    assert_eq!(ask(stranger, INSIDE).status(), 404);
    drop(handle);
    wait_for("the listener's end", || TcpStream::connect(inside).is_err());
}

#[test]
fn a_local_socket_serves_its_project_alone() {
    let rig = Rig::new(|_| {});
    rig.add(http_app(|request| {
        ok(request.field("x-forwarded-for").unwrap())
    }));
    let local = Local::of_default_project(&rig);
    let ask = |local: &Local, host| ask(Raw::local(&local.path), host);
    assert_eq!(ask(&local, INSIDE).text(), CALLER.to_string());
    assert_eq!(ask(&local, HOST).status(), 404);
    let stranger = Local::serve(&rig, "000000000002".parse().unwrap());
    assert_eq!(ask(&stranger, INSIDE).status(), 404);
    drop(local.handle);
    wait_for("the listener's end", || {
        UnixStream::connect(&local.path).is_err()
    });
}

#[test]
fn a_local_socket_takes_http2_and_upgrades() {
    let rig = Rig::new(|_| {});
    rig.add(app(|mut raw: Raw| {
        let Some(request) = raw.try_message() else {
            return;
        };
        if request.field("upgrade").is_none() {
            return raw.send(ok("plain"));
        }
        raw.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
        let said = raw.take(4);
        raw.send(said);
        raw.rest();
    }));
    let local = Local::of_default_project(&rig);
    let mut client = Raw::local(&local.path);
    client.send(format!(
        "GET / HTTP/1.1\r\nhost: {INSIDE}\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    ));
    assert_eq!(client.head().unwrap().status(), 101);
    client.send("word");
    assert_eq!(client.take(4), b"word");
    drop(client);
    // RFC 9113 §3.4, in two pieces; the answer begins with a SETTINGS frame.
    let mut client = Raw::local(&local.path);
    client.send("PRI * HTTP/2.0\r\n");
    client.send("\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let head = client.take(9);
    assert_eq!((head[3], &head[5..]), (4, &[0; 4][..]));
    assert_eq!(ask(Raw::local(&local.path), INSIDE).text(), "plain");
}

#[test]
fn one_instance_has_only_so_many_connections() {
    let config = GatewayConfig {
        inner_connections: 2,
        ..GatewayConfig::default()
    };
    let rig = Rig::with(config, 1, |_| {});
    rig.add(http_app(|_| ok("hello")));
    let local = Local::of_default_project(&rig);
    let neighbour = Local::of_default_project(&rig);
    let held = [Raw::local(&local.path), Raw::local(&local.path)];
    wait_for("two", || rig.gateway.metrics().connections == 2);
    let refused = Raw::local(&local.path).message();
    assert_eq!(refused.status(), 503);
    assert_eq!(rig.gateway.metrics().rejected_connections, 1);
    assert_eq!(ask(Raw::local(&neighbour.path), INSIDE).text(), "hello");
    assert_eq!(ask(rig.client(), HOST).text(), "hello");
    drop(held);
    wait_for("room", || {
        let mut client = Raw::local(&local.path);
        client.send(format!("GET / HTTP/1.1\r\nhost: {INSIDE}\r\n\r\n"));
        client.message().status() == 200
    });
}
