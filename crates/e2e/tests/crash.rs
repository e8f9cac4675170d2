//! Ends by force: of the server, the launcher, an instance, one of two servers.
#![allow(clippy::unwrap_used)]

use rustix::process::{Pid, Signal, kill_process};
use skiff_e2e::{good, processes, under_load};
use skiff_testkit::{Server, ServerOptions, wait_for};

fn start() -> Server {
    Server::start(ServerOptions::with(&["testapp"]))
}

#[track_caller]
fn assert_books(server: &Server) {
    let check = server.cli(&["usage", "--check"]);
    assert_eq!(check.code, 0, "{}{}", check.out, check.err);
}

#[test]
fn kill_9_of_the_server_ends_no_instance() {
    let mut server = start();
    let host = server.deploy("lasting", &[]);
    let other = server.deploy("idle", &["--min", "1"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let before = [server.instances("lasting"), server.instances("idle")];
    let launcher = server.launcher();
    let served = good(server.get(&host, "/requests"));
    let statuses = under_load(&mut server, &host, 3, "/sleep/20", |server| {
        wait_for("some requests are served", 20, || {
            let count: u64 = good(server.get(&host, "/requests")).trim().parse().ok()?;
            (count > served.trim().parse::<u64>().ok()? + 10).then_some(())
        });
        server.kill();
        server.launch(&[]);
        assert!(good(server.get(&host, "/")).starts_with("hello"));
    });
    // While there is no server nobody answers; no other failure is seen.
    assert!(
        statuses.iter().all(|status| [200, 0].contains(status)),
        "{statuses:?}"
    );
    assert_eq!(
        [server.instances("lasting"), server.instances("idle")],
        before
    );
    assert_eq!(server.launcher(), launcher);
    assert!(good(server.get(&other, "/")).starts_with("hello"));
    assert_books(&server);

    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    server.launch(&[]);
    assert_eq!(
        [server.instances("lasting"), server.instances("idle")],
        before
    );
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    assert_books(&server);

    server.signal(Signal::TERM);
    let _code = server.wait();
    server.launch(&["--stop-all"]);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    wait_for("nothing is left", 30, || {
        server.leaks().none().then_some(())
    });
}

#[test]
fn a_server_of_another_program_file_upgrades_the_launcher_in_place() {
    let mut server = start();
    let host = server.deploy("upgraded", &["--min", "1", "--disk", "32"]);
    let served = good(server.get(&host, "/requests"));
    let before = server.instances("upgraded");
    let launcher = server.launcher();
    let program = || std::fs::read_link(format!("/proc/{launcher}/exe")).unwrap();
    let old = program();
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), 0);
    let new = server.home().join("skiff-of-tomorrow");
    let _bytes = std::fs::copy(&old, &new).unwrap();
    server.install(new.clone());
    server.launch(&[]);
    assert_eq!(server.launcher(), launcher, "the same process");
    assert_eq!(program(), new);
    // Nothing of what ran has ended, and the next one starts as ever.
    assert_eq!(server.instances("upgraded"), before);
    let again: u64 = good(server.get(&host, "/requests")).trim().parse().unwrap();
    assert_eq!(again, served.trim().parse::<u64>().unwrap() + 1);
    let fresh = server.deploy("fresh", &["--disk", "32"]);
    assert!(good(server.get(&fresh, "/")).starts_with("hello"));
    assert_books(&server);
    server.stop_all();
}

#[test]
fn what_is_not_wanted_any_more_ends_at_the_restart() {
    let mut server = start();
    let host = server.deploy("kept", &["--min", "1"]);
    let _host = server.deploy("unwanted", &["--min", "1"]);
    server.wait_for_instances("kept", 1);
    let kept = server.instances("kept");
    server.kill();
    // An instance whose service is gone: its cgroup is found, and it ends.
    server.launch(&[]);
    let _out = server.cli(&["rm", "unwanted"]).ok();
    server.kill();
    server.launch(&[]);
    server.wait_for_instances_of_all(1);
    assert_eq!(server.instances("kept"), kept);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
}

#[test]
fn without_its_launcher_the_server_ends_and_the_next_one_sweeps() {
    let mut server = start();
    let host = server.deploy("swept", &["--min", "1"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let launcher = Pid::from_raw(server.launcher()).unwrap();
    kill_process(launcher, Signal::KILL).unwrap();
    assert_ne!(server.wait(), 0);
    assert!(server.log().contains("the launcher is gone"));
    server.launch(&[]);
    assert_ne!(server.launcher(), launcher.as_raw_nonzero().get());
    let reply = wait_for("it serves again", 30, || {
        let reply = server.get(&host, "/");
        (reply.status == 200).then_some(reply)
    });
    assert!(good(reply).starts_with("hello"));
    assert_books(&server);
    server.stop_all();
}

#[test]
fn kill_9_of_an_instance_costs_at_most_its_requests() {
    let mut server = start();
    let host = server.deploy("victim", &["--concurrency", "10"]);
    assert!(good(server.get(&host, "/")).starts_with("hello"));
    let before = server.instances("victim");
    let statuses = under_load(&mut server, &host, 3, "/sleep/20", |server| {
        kill_process(application(server), Signal::KILL).unwrap();
        wait_for("another instance serves", 30, || {
            let now = server.instances("victim");
            (now != before && server.get(&host, "/").status == 200).then_some(())
        });
    });
    assert!(
        statuses
            .iter()
            .all(|status| [200, 502, 503].contains(status)),
        "{statuses:?}"
    );
    assert!(
        statuses.iter().filter(|&&status| status == 502).count() <= 3,
        "{statuses:?}"
    );
    assert_books(&server);
}

fn application(server: &Server) -> Pid {
    let found = processes(server, |pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with(b"/testapp")
    });
    *found.first().expect("the application runs")
}

#[test]
fn two_servers_leave_each_other_alone() {
    let mut one = start();
    let mut two = start();
    let host = one.deploy("twin", &["--min", "1", "--egress"]);
    let _host = two.deploy("twin", &["--min", "1", "--egress"]);
    assert!(good(one.get(&host, "/")).starts_with("hello"));
    let before = two.instances("twin");
    one.kill();
    assert!(good(two.get(&host, "/")).starts_with("hello"));
    one.launch(&[]);
    one.stop_all();
    assert!(good(two.get(&host, "/")).starts_with("hello"));
    assert_eq!(two.instances("twin"), before);
    two.kill();
    two.launch(&[]);
    assert_eq!(two.instances("twin"), before);
    two.stop_all();
}

#[test]
fn a_second_server_on_the_same_folders_is_refused() {
    let server = start();
    let mut second = skiff_base::process::command(skiff_testkit::skiff_binary());
    second.arg("server");
    for setting in [
        format!("data_dir={}", server.data_dir().display()),
        format!("run_dir={}", server.run_dir().display()),
        "gateway.listen=127.0.0.1:0".to_owned(),
    ] {
        second.arg("--set").arg(setting);
    }
    let output = second
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        told.contains("another server runs on") && told.contains("--replace"),
        "{told}"
    );
}
