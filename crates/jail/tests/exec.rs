//! Further processes in sandboxes that run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use skiff_types::InstanceId;
use skiff_wire::launcher::{ExecSpec, ProcessSpec, Refusal, Reply, Request, Stdio};
use support::{Client, Launcher, Running, busybox, read_line, shell, spec, wait_for};

fn start() -> (Launcher, Client) {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    (launcher, client)
}

fn process(script: &str) -> ProcessSpec {
    shell(&[busybox()], script).process
}

/// Starts it; its streams.
fn exec(
    client: &mut Client,
    sandbox: InstanceId,
    exec: u64,
    process: ProcessSpec,
    stdio: Stdio,
) -> Result<Vec<OwnedFd>, Refusal> {
    let spec = ExecSpec {
        sandbox,
        exec,
        process,
        stdio,
    };
    let (result, fds) = client.ask_full(Request::Exec(Box::new(spec)), &[]);
    assert_eq!(result?, Reply::Executed);
    Ok(fds)
}

/// What a script writes in a sandbox that runs; it must succeed.
fn run(client: &mut Client, sandbox: InstanceId, script: &str) -> String {
    let number = skiff_base::random::u64();
    let streams = exec(client, sandbox, number, process(script), Stdio::Piped).unwrap();
    let running = Running {
        sandbox,
        steps_us: Vec::new(),
        outputs: streams,
    };
    let (out, err) = running.read();
    assert_eq!(client.exec_exit(number), (Some(0), None), "{out}{err}");
    assert_eq!(err, "");
    out
}

#[test]
fn it_runs_where_the_first_process_does() {
    let (_launcher, mut client) = start();
    let links = "for name in /proc/self/ns/*; do readlink $name; done";
    let script = format!("echo $$ >/first; {links} >/links; echo on; sleep 100000");
    let running = client.create(shell(&[busybox()], &script)).unwrap();
    assert_eq!(running.line(), "on");
    let sandbox = running.sandbox;
    let own = run(&mut client, sandbox, links);
    assert!(own.lines().count() >= 8, "{own}");
    assert_eq!(own, run(&mut client, sandbox, "cat /links"));
    assert_eq!(run(&mut client, sandbox, "hostname"), "box\n");
    let groups = "test \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/$(cat /first)/cgroup)\"";
    run(&mut client, sandbox, groups);
    // As confined: capabilities, the filter, and what is open.
    let same = |line: &str| format!("grep {line} /proc/self/status /proc/$(cat /first)/status");
    for line in [
        "CapEff",
        "CapBnd",
        "Seccomp:",
        "NoNewPrivs",
        "Uid",
        "Groups",
    ] {
        let script = format!("{} | cut -d: -f2- | tr '\\t' ' '", same(line));
        let lines = run(&mut client, sandbox, &script);
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines.len(), 2, "{line}");
        assert_eq!(lines[0], lines[1], "{line}");
    }
    let open = run(&mut client, sandbox, "ls /proc/self/fd");
    assert_eq!(
        open.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
    client.destroy(sandbox);
}

#[test]
fn its_memory_is_the_sandboxs() {
    let (_launcher, mut client) = start();
    let mut wanted = spec(&[busybox()], &["sleep", "100000"]);
    wanted.memory_bytes = 24 << 20;
    let sandbox = client.create(wanted).unwrap().sandbox;
    let greedy = spec(&[busybox()], &["tail", "/dev/zero"]).process;
    exec(&mut client, sandbox, 1, greedy, Stdio::Piped).unwrap();
    assert_eq!(client.exec_exit(1), (None, Some(9)));
    assert_eq!(client.stats(sandbox).oom_kills, 1);
    client.destroy(sandbox);
}

#[test]
fn its_streams_and_signals_are_its_own() {
    let (_launcher, mut client) = start();
    let sandbox = client
        .create(spec(&[busybox()], &["sleep", "100000"]))
        .unwrap()
        .sandbox;
    let input = Stdio::PipedInput;
    let mut fds = exec(&mut client, sandbox, 1, process("cat; exit 7"), input).unwrap();
    let mut stdin = File::from(fds.pop().unwrap());
    stdin.write_all(b"words\n").unwrap();
    assert_eq!(read_line(&fds[0]), "words");
    let again = exec(&mut client, sandbox, 1, process("true"), Stdio::Piped);
    assert_eq!(again.unwrap_err().step, "request");
    drop(stdin);
    assert_eq!(client.exec_exit(1), (Some(7), None));
    let terminal = Stdio::Terminal {
        columns: 91,
        rows: 17,
    };
    let script = "test -t 0 && stty size; sleep 100000";
    let fds = exec(&mut client, sandbox, 1, process(script), terminal).unwrap();
    assert_eq!(read_line(&fds[0]).trim_end(), "17 91");
    let signal = Request::SignalExec {
        sandbox,
        exec: 1,
        signal: 9,
    };
    assert_eq!(client.ask(signal.clone()), Ok(Reply::Done));
    assert_eq!(client.exec_exit(1), (None, Some(9)));
    assert_eq!(client.ask(signal).unwrap_err().step, "lookup");
    // What it started hangs up with it, which takes a moment.
    wait_for("the init and its application alone", || {
        (client.stats(sandbox).pids == 2).then_some(())
    });
    client.destroy(sandbox);
}

#[test]
fn what_cannot_run_leaves_nothing() {
    let (_launcher, mut client) = start();
    let sandbox = client
        .create(spec(&[busybox()], &["sleep", "100000"]))
        .unwrap()
        .sandbox;
    let absent = spec(&[busybox()], &["/absent"]).process;
    let refused = exec(&mut client, sandbox, 1, absent, Stdio::Piped).unwrap_err();
    assert_eq!((&*refused.step, refused.errno), ("exec", libc_enoent()));
    let mut nowhere = process("true");
    nowhere.cwd = "/nowhere".to_owned();
    let refused = exec(&mut client, sandbox, 1, nowhere, Stdio::Piped).unwrap_err();
    assert_eq!(refused.step, "cwd");
    assert_eq!(client.ask(Request::Freeze { sandbox }), Ok(Reply::Done));
    let frozen = exec(&mut client, sandbox, 1, process("true"), Stdio::Piped);
    assert_eq!(frozen.unwrap_err().step, "exec");
    assert_eq!(client.ask(Request::Thaw { sandbox }), Ok(Reply::Done));
    run(&mut client, sandbox, "true");
    client.destroy(sandbox);
    let gone = exec(&mut client, sandbox, 1, process("true"), Stdio::Piped);
    assert_eq!(gone.unwrap_err().step, "lookup");
}

fn libc_enoent() -> i32 {
    rustix::io::Errno::NOENT.raw_os_error()
}

#[test]
fn it_ends_with_its_sandbox_and_outlives_a_launchers_program() {
    let (launcher, mut client) = start();
    let mut wanted = shell(&[busybox()], "read line");
    wanted.stdio = Stdio::PipedInput;
    let mut running = client.create(wanted).unwrap();
    let sandbox = running.sandbox;
    let lasting = || process("echo on; sleep 100000");
    let first = exec(&mut client, sandbox, 1, lasting(), Stdio::Piped).unwrap();
    assert_eq!(read_line(&first[0]), "on");
    let program = File::open(env!("CARGO_BIN_EXE_skiff-jail-launcher")).unwrap();
    let upgraded = client.ask_full(Request::Upgrade, &[&program.into()]).0;
    assert_eq!(upgraded, Ok(Reply::Done));
    let second = exec(&mut client, sandbox, 2, lasting(), Stdio::Piped).unwrap();
    assert_eq!(read_line(&second[0]), "on");
    // The application's own end takes both along.
    drop(running.outputs.pop());
    let mut ends = vec![client.exec_exit(1), client.exec_exit(2)];
    ends.dedup();
    assert_eq!(ends, [(None, Some(9))]);
    client.destroy(sandbox);
    drop(client);
    launcher.shut_down();
}

#[test]
fn it_ends_with_who_started_it() {
    let (launcher, mut client) = start();
    let sandbox = client
        .create(spec(&[busybox()], &["sleep", "100000"]))
        .unwrap()
        .sandbox;
    let lasting = || process("echo on; exec sleep 100000");
    let own = exec(&mut client, sandbox, 1, lasting(), Stdio::Piped).unwrap();
    assert_eq!(read_line(&own[0]), "on");
    let mut other = launcher.connect();
    let others = exec(&mut other, sandbox, 2, lasting(), Stdio::Piped).unwrap();
    assert_eq!(read_line(&others[0]), "on");
    drop(other);
    assert_eq!(client.exec_exit(2), (None, Some(9)));
    run(&mut client, sandbox, "true");
    let signal = Request::SignalExec {
        sandbox,
        exec: 1,
        signal: 0,
    };
    assert_eq!(client.ask(signal), Ok(Reply::Done), "another one's lives");
    client.destroy(sandbox);
}
