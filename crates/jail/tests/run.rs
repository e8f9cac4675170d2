//! A sandbox from its creation to its end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{Launcher, busybox, shell, spec};

#[test]
fn a_static_binary_runs_to_completion() {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    let script = "echo out; echo err >&2; exit 7";
    let (exit, out, err) = client.run(shell(&[busybox()], script));
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    assert_eq!((&*out, &*err), ("out\n", "err\n"));
    launcher.shut_down();
}

#[test]
fn an_application_that_is_killed_tells_its_signal() {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    let (exit, ..) = client.run(shell(&[busybox()], "kill -USR1 $$"));
    assert_eq!((exit.code, exit.signal), (None, Some(10)));
    assert!(!exit.out_of_memory);
}

#[test]
fn the_process_is_what_the_spec_says() {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    let script = "pwd; id -u; id -g; id -G; echo $GREETING; hostname; ulimit -n";
    let mut wanted = shell(&[busybox()], script);
    wanted.process.cwd = "/srv/deep/down".to_owned();
    wanted.process.uid = 1000;
    wanted.process.gid = 1001;
    wanted.process.additional_gids = vec![7, 8];
    wanted.process.env.push("GREETING=hello there".to_owned());
    wanted.process.nofile = 77;
    wanted.hostname = "my-host.1".to_owned();
    let (exit, out, err) = client.run(wanted);
    assert_eq!((exit.code, &*err), (Some(0), ""));
    assert_eq!(
        out,
        "/srv/deep/down\n1000\n1001\n1001 7 8\nhello there\nmy-host.1\n77\n"
    );
}

#[test]
fn a_program_that_is_not_there_is_refused_by_its_name() {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    let refusal = client
        .create(spec(&[busybox()], &["no-such-program"]))
        .unwrap_err();
    assert_eq!((&*refusal.step, refusal.errno), ("exec", libc::ENOENT));
    assert!(refusal.message.contains("no-such-program"), "{refusal}");
    assert!(client.list().is_empty());
    launcher.shut_down();
}
