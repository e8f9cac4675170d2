//! Instances with IPv6, on a host that is a network namespace of the test's
//! own with a made-up internet behind it.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use skiff_base::process;
use skiff_e2e::good;
use skiff_testkit::{Running, Server, ServerOptions, run, skiff_binary, started, wait_for};

/// Set for the part of the test that runs in the namespace.
const INSIDE: &str = "SKIFF_TEST_NAMESPACE";
/// Of a part of global unicast that is nobody's.
const PUBLIC: Ipv6Addr = Ipv6Addr::new(0x2d00, 0x11, 0x22, 0, 0, 0, 0, 0x33);
const PRIVATE: Ipv6Addr = Ipv6Addr::new(0xfd09, 9, 0, 0, 0, 0, 0, 9);
const HOST: Ipv6Addr = Ipv6Addr::new(0x2d00, 1, 0, 0, 0, 0, 0, 1);
const PORT: u16 = 7000;

#[test]
fn instances_have_ipv6_when_it_is_switched_on() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    // Servers of one host meet in a folder; those of this host are not ours.
    let script =
        "mkdir -p /run/skiff-net && mount -t tmpfs tmpfs /run/skiff-net && exec \"$0\" \"$@\"";
    let mut command = process::command("unshare");
    let status = command
        .args(["--net", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "instances_have_ipv6_when_it_is_switched_on",
            "--nocapture",
        ])
        .env(INSIDE, "1")
        .stderr(std::io::stderr())
        .status();
    assert!(status.unwrap().success());
}

fn inside() {
    let internet = add_internet();
    let far = format!("--net=/proc/{}/ns/net", internet.pid().as_raw_pid());
    let _listener = started(
        "nsenter",
        [
            &far,
            "python3",
            "-m",
            "http.server",
            "--bind",
            "::",
            &PORT.to_string(),
        ],
    );
    for address in [PUBLIC, PRIVATE] {
        let to = SocketAddr::from((address, PORT));
        wait_for("the internet answers the host", 60, || {
            TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()
        });
    }
    let options = ServerOptions::with(&["testapp"]).set("network.ipv6=true");
    let mut server = Server::start(options);
    let host = server.deploy("six", &["--egress", "--min", "1"]);
    assert_reaches(&server, &host);
    let listening = std::net::TcpListener::bind((HOST, PORT)).unwrap();
    for closed in [PRIVATE, HOST] {
        let told = reach(&server, &host, closed);
        assert!(!told.contains("connected"), "{closed}: {told}");
    }
    drop(listening);
    assert!(forwards());

    // Adopted after a crash, with another launcher's program in the bargain.
    let instances = server.instances("six");
    server.kill();
    let launcher = server.launcher();
    let file = server.home().join("skiff.new");
    let _bytes = std::fs::copy(skiff_binary(), &file).unwrap();
    server.install(file.clone());
    server.launch(&[]);
    assert_eq!(server.launcher(), launcher);
    let runs = std::fs::read_link(format!("/proc/{launcher}/exe")).unwrap();
    assert_eq!(runs, file);
    assert_eq!(server.instances("six"), instances);
    assert_reaches(&server, &host);
    server.stop_all();
    assert!(!forwards());
}

/// A namespace behind a link of this one, with addresses of its own.
fn add_internet() -> Running {
    let internet = started("unshare", ["--net", "sleep", "900"]);
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let pid = internet.pid().as_raw_pid().to_string();
    wait_for("the internet has a namespace", 60, || {
        (namespace(&pid)? != namespace("self")?).then_some(())
    });
    let host_address = format!("{HOST}/64");
    let router = Ipv6Addr::from_bits(HOST.to_bits() + 1).to_string();
    let ip = |args: &str| run("ip", args.split(' ')).ok();
    ip("link set lo up");
    ip(&format!(
        "link add up0 type veth peer name down0 netns {pid}"
    ));
    ip(&format!("addr add {host_address} dev up0 nodad"));
    ip("link set up0 up");
    let far = format!("--net=/proc/{pid}/ns/net");
    let ip_far = |args: &str| {
        run(
            "nsenter",
            [&far[..], "ip"].into_iter().chain(args.split(' ')),
        )
        .ok()
    };
    ip_far("link set lo up");
    ip_far(&format!("addr add {router}/64 dev down0 nodad"));
    ip_far(&format!("addr add {PUBLIC}/128 dev lo nodad"));
    ip_far(&format!("addr add {PRIVATE}/128 dev lo nodad"));
    ip_far("link set down0 up");
    ip(&format!("-6 route add default via {router}"));
    internet
}

fn reach(server: &Server, host: &str, address: Ipv6Addr) -> String {
    good(server.get(host, &format!("/connect/{address}/{PORT}")))
}

#[track_caller]
fn assert_reaches(server: &Server, host: &str) {
    let told = reach(server, host, PUBLIC);
    assert!(told.contains("connected"), "{told}");
}

fn forwards() -> bool {
    let value = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
    value.trim() == "1"
}
