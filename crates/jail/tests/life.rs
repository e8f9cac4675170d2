//! Crashes, sweeps, upgrades, clients that come, go and misbehave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use skiff_wire::launcher::{Reply, Request, SandboxSpec, Stdio};
use support::{
    Client, Launcher, busybox, cgroups_of, new_server, read_line, shell, spec, wait_for,
};

fn start() -> (Launcher, Client) {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    (launcher, client)
}

/// Processes whose command line has this word.
fn processes_with(word: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
        .collect()
}

/// A sleep that no other test has.
fn unique_sleep() -> (SandboxSpec, String) {
    let word = format!("{}.{}", 100_000, skiff_base::random::u32());
    let script = format!("echo up; sleep {word}");
    (shell(&[busybox()], &script), word)
}

/// What the launcher's descriptors are.
fn descriptors(launcher: &Launcher) -> Vec<String> {
    let folder = format!("/proc/{}/fd", launcher.pid());
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect()
}

/// What the launcher holds: descriptors, mounts, children, cgroups.
fn holdings(launcher: &Launcher) -> [usize; 4] {
    let pid = launcher.pid();
    let count = |path: String| std::fs::read_dir(path).unwrap().count();
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let groups: usize = cgroups_of(launcher.server)
        .iter()
        .map(|path| subfolders(path).len())
        .sum();
    [
        count(format!("/proc/{pid}/fd")),
        mounts.lines().count(),
        children.split_whitespace().count(),
        groups,
    ]
}

fn subfolders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn nothing_is_left_of_what_was_destroyed() {
    let (launcher, mut client) = start();
    // One round first: what is made once, such as a user namespace, stays.
    client.shell(&[busybox()], "true");
    let before = holdings(&launcher);
    let running: Vec<_> = (0..5)
        .map(|_| client.create(unique_sleep().0).unwrap())
        .collect();
    for one in &running {
        one.line();
    }
    assert!(holdings(&launcher) > before);
    for one in running {
        client.destroy(one.sandbox);
    }
    for _ in 0..3 {
        client.shell(&[busybox()], "true");
        client.create(spec(&[busybox()], &["missing"])).unwrap_err();
    }
    let after = holdings(&launcher);
    assert_eq!(after[1..], before[1..]);
    // Five sandboxes at once have used five ranges, whose namespaces stay.
    let held = descriptors(&launcher);
    assert_eq!(after[0], before[0] + 4, "{held:?}");
    launcher.shut_down();
}

#[test]
fn a_sandbox_that_is_not_there_can_be_destroyed_and_nothing_else() {
    let (_launcher, mut client) = start();
    let sandbox = support::new_sandbox();
    client.destroy(sandbox);
    for request in [
        Request::Signal { sandbox, signal: 9 },
        Request::Freeze { sandbox },
        Request::Thaw { sandbox },
        Request::Stats { sandbox },
        Request::Sockets { sandbox, count: 1 },
        Request::Output { sandbox },
    ] {
        let refusal = client.ask(request).unwrap_err();
        assert_eq!(refusal.errno, libc::ESRCH);
    }
}

#[test]
fn sandboxes_die_with_the_launcher_and_the_next_one_sweeps() {
    let folder = tempfile::tempdir().unwrap();
    let server = new_server();
    let mut launcher = Launcher::start_at(server, folder.path());
    let mut client = launcher.connect();
    client.add_layer(busybox());
    client.configure(2);
    let (spec, word) = unique_sleep();
    let (frozen_spec, frozen_word) = unique_sleep();
    let running = client.create(spec).unwrap();
    running.line();
    let frozen = client.create(frozen_spec).unwrap();
    frozen.line();
    let sandbox = frozen.sandbox;
    assert_eq!(client.ask(Request::Freeze { sandbox }), Ok(Reply::Done));
    // Another server's sandbox, which nobody may touch.
    let (other, mut other_client) = start();
    let (other_spec, other_word) = unique_sleep();
    other_client.create(other_spec).unwrap().line();
    launcher.kill();
    wait_for("the sandbox to die", || {
        processes_with(&word).is_empty().then_some(())
    });
    assert!(!cgroups_of(server).is_empty());
    let again = Launcher::start_at(server, folder.path());
    assert_eq!(processes_with(&frozen_word), Vec::<u32>::new());
    assert!(
        cgroups_of(server)
            .iter()
            .all(|path| subfolders(path).is_empty())
    );
    assert!(!processes_with(&other_word).is_empty());
    assert!(again.connect().list().is_empty());
    again.shut_down();
    drop(other_client);
    other.shut_down();
}

#[test]
fn a_run_folder_has_one_launcher() {
    let launcher = Launcher::start();
    let second = skiff_base::process::command(env!("CARGO_BIN_EXE_skiff-jail-launcher"))
        .arg(launcher.server.to_string())
        .arg(&launcher.folder)
        .arg(std::env::temp_dir().join("skiff-jail-test-locks"))
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another launcher holds"), "{said}");
}

#[test]
fn sandboxes_outlive_their_client_and_the_next_one_takes_them_up() {
    let (launcher, mut client) = start();
    let script = "trap 'echo two; exit 3' USR1; echo one; while :; do sleep 0.05; done";
    let mut wanted = shell(&[busybox()], script);
    wanted.label = b"what the server says".to_vec();
    let running = client.create(wanted).unwrap();
    let sandbox = running.sandbox;
    assert_eq!(running.line(), "one");
    drop((client, running));
    // Writing to a pipe that nobody reads does not kill it.
    let mut client = launcher.connect();
    let signal = Request::Signal {
        sandbox,
        signal: 10,
    };
    assert_eq!(client.ask(signal), Ok(Reply::Done));
    let exit = client.exit_of(sandbox);
    assert_eq!(exit.code, Some(3));
    let listed = client.list();
    assert_eq!(listed[0].label, b"what the server says");
    assert_eq!(listed[0].exit, Some(exit));
    let (result, outputs) = client.ask_full(Request::Output { sandbox }, &[]);
    assert_eq!(result, Ok(Reply::Descriptors));
    assert_eq!(read_line(&outputs[0]), "two");
    client.destroy(sandbox);
    assert!(client.list().is_empty());
}

#[test]
fn an_upgrade_keeps_sandboxes_clients_and_output() {
    let (launcher, mut client) = start();
    client.configure(2);
    let mut other = launcher.connect();
    let script = "echo before; trap 'echo signalled; exit 5' USR1; while :; do sleep 0.05; done";
    let running = client.create(shell(&[busybox()], script)).unwrap();
    assert_eq!(running.line(), "before");
    let sandbox = running.sandbox;
    for round in 0..2 {
        let program = File::open(env!("CARGO_BIN_EXE_skiff-jail-launcher")).unwrap();
        let (result, _) = client.ask_full(Request::Upgrade, &[&program.into()]);
        assert_eq!(result, Ok(Reply::Done), "{round}");
        assert_eq!(other.list().len(), 1);
        // What was mounted and prepared still serves.
        assert_eq!(client.shell(&[busybox()], "echo new"), "new\n");
    }
    let before = holdings(&launcher);
    let program = File::open(env!("CARGO_BIN_EXE_skiff-jail-launcher")).unwrap();
    client
        .ask_full(Request::Upgrade, &[&program.into()])
        .0
        .unwrap();
    let settled = wait_for("the pool to fill", || {
        let now = holdings(&launcher);
        (now[2] >= before[2]).then_some(now)
    });
    assert!(settled[0] <= before[0] + 2, "{before:?} {settled:?}");
    let signal = Request::Signal {
        sandbox,
        signal: 10,
    };
    assert_eq!(client.ask(signal), Ok(Reply::Done));
    assert_eq!(client.exit_of(sandbox).code, Some(5));
    assert_eq!(other.exit_of(sandbox).code, Some(5));
    assert_eq!(running.line(), "signalled");
    client.destroy(sandbox);
    drop((client, other));
    launcher.shut_down();
}

#[test]
fn an_upgrade_to_what_is_no_program_is_refused_and_changes_nothing() {
    let (launcher, mut client) = start();
    let running = client.create(unique_sleep().0).unwrap();
    running.line();
    let mut bad = tempfile::tempfile().unwrap();
    bad.write_all(b"not a program").unwrap();
    // It has the mark of a launcher, and cannot be executed.
    let mut broken = tempfile::tempfile().unwrap();
    broken
        .write_all(b"\x7fELF [skiff-launcher-state:00001]")
        .unwrap();
    for program in [bad, broken] {
        let (result, _) = client.ask_full(Request::Upgrade, &[&OwnedFd::from(program)]);
        assert_eq!(result.unwrap_err().step, "upgrade");
        assert_eq!(client.list().len(), 1);
        assert_eq!(client.shell(&[busybox()], "echo works"), "works\n");
    }
    client.destroy(running.sandbox);
    launcher.shut_down();
}

#[test]
fn who_sends_nonsense_is_dropped_alone() {
    let (launcher, mut client) = start();
    let hello = Request::Hello {
        server: launcher.server,
    };
    let envelope = skiff_wire::launcher::Envelope {
        id: 1,
        request: hello,
    };
    let good = skiff_wire::encode(&envelope).unwrap();
    let mut trailing = good.clone();
    trailing.push(0);
    let mut version = good.clone();
    version[0] = 99;
    let no_hello = skiff_wire::encode(&skiff_wire::launcher::Envelope {
        id: 1,
        request: Request::Shutdown,
    });
    for frame in [
        vec![0xff; 100],
        trailing,
        version,
        good[..good.len() - 1].to_vec(),
        no_hello.unwrap(),
    ] {
        let mut stranger = launcher.stranger();
        stranger.send_raw(&frame, &[]).unwrap();
        assert!(stranger.receive().is_none(), "{frame:?}");
    }
    let mut wrong = launcher.stranger();
    let other_server = Request::Hello {
        server: new_server(),
    };
    assert_eq!(wrong.ask(other_server).unwrap_err().step, "hello");
    assert_eq!(
        client.shell(&[busybox()], "echo still here"),
        "still here\n"
    );
}

#[test]
fn who_does_not_read_is_dropped_alone() {
    let (launcher, mut client) = start();
    let mut deaf = launcher.connect();
    let mut asked = 0;
    let envelope = |id| skiff_wire::launcher::Envelope {
        id,
        request: Request::List { after: None },
    };
    let dropped = wait_for("the deaf client to be dropped", || {
        asked += 1;
        let frame = skiff_wire::encode(&envelope(asked)).unwrap();
        deaf.send_raw(&frame, &[]).is_err().then_some(asked)
    });
    assert!(dropped > 1000, "after {dropped} requests");
    while deaf.receive().is_some() {}
    assert_eq!(
        client.shell(&[busybox()], "echo still here"),
        "still here\n"
    );
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let (_launcher, mut client) = start();
    let good = || shell(&[busybox()], "true");
    type Change = fn(&mut SandboxSpec);
    let changes: [(&str, Change); 12] = [
        ("layers", |spec| spec.layers.clear()),
        ("program", |spec| spec.process.args.clear()),
        ("zero byte", |spec| spec.process.env.push("A=\0".to_owned())),
        ("folder", |spec| spec.process.cwd = "srv".to_owned()),
        ("folder", |spec| spec.process.cwd = "/a/../b".to_owned()),
        ("id", |spec| spec.process.uid = 65_536),
        ("id", |spec| spec.process.additional_gids = vec![u32::MAX]),
        ("host name", |spec| spec.hostname = "a b".to_owned()),
        ("memory", |spec| spec.memory_bytes = 0),
        ("processes", |spec| spec.pids = 0),
        ("cpu", |spec| spec.cpu_millis = 0),
        ("label", |spec| spec.label = vec![0; 20_000]),
    ];
    for (word, change) in changes {
        let mut spec = good();
        change(&mut spec);
        let refusal = client.create(spec).unwrap_err();
        assert!(refusal.message.contains(word), "{word}: {refusal}");
    }
    let mut unknown = good();
    unknown.layers[0] = format!("sha256:{:064}", 0).parse().unwrap();
    assert_eq!(client.create(unknown).unwrap_err().step, "layer");
    assert!(client.list().is_empty());
}

#[test]
fn a_layer_in_use_stays() {
    let (_launcher, mut client) = start();
    let running = client.create(unique_sleep().0).unwrap();
    running.line();
    let remove = || Request::RemoveLayer {
        layer: busybox().digest.clone(),
    };
    let refusal = client.ask(remove()).unwrap_err();
    assert!(refusal.message.contains("used by 1"), "{refusal}");
    client.destroy(running.sandbox);
    assert_eq!(client.ask(remove()), Ok(Reply::Done));
    assert_eq!(client.ask(remove()), Ok(Reply::Done));
    assert!(client.create(shell(&[busybox()], "true")).is_err());
}

#[test]
fn a_removed_layer_is_not_held_by_what_is_prepared() {
    let (launcher, mut client) = start();
    client.configure(2);
    wait_for("the pool", || (holdings(&launcher)[2] == 2).then_some(()));
    let layer = support::layer(|root| std::fs::write(root.join("x"), "x").unwrap());
    client.add_layer(&layer);
    let digest = layer.digest.clone();
    client.shell(&[busybox(), &layer], "cat /x");
    wait_for("the pool", || (holdings(&launcher)[2] == 2).then_some(()));
    let request = Request::RemoveLayer { layer: digest };
    assert_eq!(client.ask(request), Ok(Reply::Done));
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path().join("mountinfo");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let name = layer.digest.to_string().replace(':', "-");
        assert!(!text.contains(&name), "{text}");
    }
}

#[test]
fn what_is_no_erofs_file_is_no_layer() {
    let (_launcher, mut client) = start();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 100_000]).unwrap();
    let request = Request::AddLayer {
        layer: format!("sha256:{:064}", 7).parse().unwrap(),
    };
    let (result, _) = client.ask_full(request, &[&file.into()]);
    assert_eq!(result.unwrap_err().step, "layer");
}

#[test]
fn streams_can_be_given() {
    let (_launcher, mut client) = start();
    let mut wanted = shell(&[busybox()], "read line; echo got $line; echo err >&2");
    wanted.stdio = Stdio::Given;
    let (stdin, feed) = rustix::pipe::pipe().unwrap();
    let (read, stdout) = rustix::pipe::pipe().unwrap();
    let sandbox = wanted.sandbox;
    let request = Request::Create(Box::new(wanted));
    let (result, fds) = client.ask_full(request, &[&stdin, &stdout, &stdout]);
    assert!(matches!(result, Ok(Reply::Created { .. })) && fds.is_empty());
    drop((stdin, stdout));
    File::from(feed).write_all(b"words\n").unwrap();
    assert_eq!(read_line(&read), "got words");
    assert_eq!(read_line(&read), "err");
    assert_eq!(client.exit_of(sandbox).code, Some(0));
    let mut wrong = shell(&[busybox()], "true");
    wrong.stdio = Stdio::Given;
    assert!(client.create(wrong).is_err());
}

#[test]
fn a_terminal_is_one() {
    let (_launcher, mut client) = start();
    let script = "test -t 0 && tty; stty size; read line; echo got $line";
    let mut wanted = shell(&[busybox()], script);
    wanted.process.uid = 1000;
    wanted.stdio = Stdio::Terminal {
        columns: 101,
        rows: 33,
    };
    let running = client.create(wanted).unwrap();
    assert_eq!(running.line().trim_end(), "/dev/pts/0");
    assert_eq!(running.line().trim_end(), "33 101");
    rustix::io::write(&running.outputs[0], b"hello\n").unwrap();
    assert_eq!(running.line().trim_end(), "hello");
    assert_eq!(running.line().trim_end(), "got hello");
    assert_eq!(client.exit_of(running.sandbox).code, Some(0));
}

#[test]
fn standard_output_can_be_opened_by_its_name() {
    let (_launcher, mut client) = start();
    let script = "echo out >/dev/stdout; echo err >/dev/stderr";
    let mut wanted = shell(&[busybox()], script);
    wanted.process.uid = 1000;
    let (exit, out, err) = client.run(wanted);
    assert_eq!((exit.code, &*out, &*err), (Some(0), "out\n", "err\n"));
}

#[test]
fn sockets_reach_the_application_from_outside() {
    let (_launcher, mut client) = start();
    // A port that elsewhere takes a privilege.
    let script = "echo up; while :; do echo hello | nc -l -p 80; done";
    let mut wanted = shell(&[busybox()], script);
    wanted.process.uid = 1000;
    let running = client.create(wanted).unwrap();
    running.line();
    let sandbox = running.sandbox;
    let text = wait_for("a connection", || {
        let (result, mut fds) = client.ask_full(Request::Sockets { sandbox, count: 3 }, &[]);
        assert_eq!((result, fds.len()), (Ok(Reply::Descriptors), 3));
        let socket = fds.remove(0);
        rustix::io::ioctl_fionbio(&socket, false).unwrap();
        let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 80);
        rustix::net::connect(&socket, &address).ok()?;
        Some(read_line(&socket))
    });
    assert_eq!(text, "hello");
    let (result, fds) = client.ask_full(Request::Listeners { sandbox }, &[]);
    assert_eq!((result, fds.len()), (Ok(Reply::Descriptors), 3));
    client.destroy(sandbox);
}

#[test]
fn what_an_application_leaves_behind_dies_with_it() {
    let (_launcher, mut client) = start();
    let word = format!("100000.{}", skiff_base::random::u32());
    let script = format!("sleep {word} >/dev/null 2>&1 & exit 0");
    let running = client.create(shell(&[busybox()], &script)).unwrap();
    client.exit_of(running.sandbox);
    assert_eq!(processes_with(&word), Vec::<u32>::new());
}

#[test]
fn an_input_is_written_until_it_is_closed() {
    let (_launcher, mut client) = start();
    let mut wanted = shell(&[busybox()], "cat; cat /dev/stdin; echo end");
    wanted.stdio = Stdio::PipedInput;
    wanted.process.uid = 1000;
    let mut running = client.create(wanted).unwrap();
    assert_eq!(running.outputs.len(), 3);
    let mut input = File::from(running.outputs.pop().unwrap());
    input.write_all(b"one\n").unwrap();
    assert_eq!(running.line(), "one");
    input.write_all(b"two\n").unwrap();
    drop(input);
    let sandbox = running.sandbox;
    assert_eq!(client.exit_of(sandbox).code, Some(0));
    assert_eq!(running.read().0, "two\nend\n");
}
