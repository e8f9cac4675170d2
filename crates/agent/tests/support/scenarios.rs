//! Each leaves the machine as it found it.

use std::path::PathBuf;

use skiff_sandbox::AgentClient;
use skiff_types::InstanceId;
use skiff_wire::FRAME_BYTES_MAX;
use skiff_wire::agent::{
    CONTROL_PORT, DNS_DATAGRAM_PORT, DNS_PORT, FEATURE_DISK, FEATURE_EXEC, FEATURE_EXTENSIONS,
    FEATURE_NETWORK, FEATURE_RUNTIME, FEATURE_SERVICES, GATEWAY_PORT, Opening, PROTOCOL,
    RUNTIME_PORT, STREAM_PORT, Window,
};
use skiff_wire::launcher::{ExecSpec, FIRST_PROCESS, MachineNetwork, Stdio, Writable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{Machine, connect, exit_of, read_all, read_line, refusal, until, within, write};

/// Runs every scenario in turn.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        /// The name of each, and what it does.
        #[macro_export]
        macro_rules! each_scenario {
            ($with:ident) => {
                $($with!($name);)*
            };
        }
    };
}

scenarios!(
    it_greets,
    a_sandbox_runs_and_its_exit_is_told,
    an_input_goes_in_and_comes_back,
    too_much_memory_is_told,
    a_frozen_sandbox_stands_still,
    a_port_is_reached,
    a_host_that_comes_back_misses_nothing,
    an_output_is_taken_up_again,
    a_terminal_is_one,
    a_signal_ends_it,
    a_further_process_runs,
    layers_come_and_go,
    what_is_written_may_be_on_disk,
    the_gateway_is_reached_from_inside,
    a_function_s_runtime_reaches_the_host,
    a_function_is_held_for_its_extensions,
    names_are_looked_up_on_the_host,
    a_look_up_over_tcp_is_carried,
    noise_ends_its_own_connection_alone,
    there_are_only_so_many_streams,
    what_cannot_be_is_refused,
);

pub async fn it_greets(machine: &Machine) {
    let hello = machine.client.hello();
    assert_eq!(hello.protocol, PROTOCOL);
    let features = FEATURE_SERVICES
        | FEATURE_EXEC
        | FEATURE_DISK
        | FEATURE_NETWORK
        | FEATURE_RUNTIME
        | FEATURE_EXTENSIONS;
    assert_eq!(hello.features, features);
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));
    assert!(
        hello
            .kernel
            .starts_with(|first: char| first.is_ascii_digit())
    );
    assert_eq!(machine.client.list().await.unwrap(), []);
}

pub async fn a_sandbox_runs_and_its_exit_is_told(machine: &Machine) {
    let script = "cat /greeting; hostname; touch /made && echo err >&2; exit 3";
    let mut spec = machine.shell(script);
    spec.process.uid = 0;
    let sandbox = machine.start(spec).await;
    let exit = machine.exit(sandbox).await;
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert!(!exit.out_of_memory && exit.cpu_us > 0, "{exit:?}");
    // What nobody took is there until the sandbox is destroyed.
    let mut stdout = machine.stdout(sandbox).await;
    assert_eq!(read_all(&mut stdout).await, "hello from a layer\nbox\n");
    let mut stderr = machine.open(Opening::Stderr { sandbox }).await;
    assert_eq!(read_all(&mut stderr).await, "err\n");
    let listed = machine.client.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].sandbox, listed[0].exit), (sandbox, Some(exit)));
    assert_eq!(listed[0].label, b"label");
    machine.destroy(sandbox).await;
    machine.destroy(sandbox).await;
    assert_eq!(machine.client.list().await.unwrap(), []);
}

pub async fn an_input_goes_in_and_comes_back(machine: &Machine) {
    let mut spec = machine.spec(&["cat"]);
    spec.stdio = Stdio::PipedInput;
    let sandbox = machine.start(spec).await;
    let mut stdin = machine.stdin(sandbox).await;
    let mut stdout = machine.stdout(sandbox).await;
    let content: Vec<u8> = (0..1_000_000u32)
        .map(|at| (at % 251).to_le_bytes()[0])
        .collect();
    let mut back = Vec::new();
    let writing = async {
        stdin.write_all(&content).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let reading = stdout.read_to_end(&mut back);
    let ((), read) = within("the bytes", async { tokio::join!(writing, reading) }).await;
    read.unwrap();
    assert!(back == content, "{} bytes came back", back.len());
    assert_eq!(machine.exit(sandbox).await.code, Some(0));
    machine.destroy(sandbox).await;
}

pub async fn too_much_memory_is_told(machine: &Machine) {
    let mut spec = machine.spec(&["tail", "/dev/zero"]);
    spec.memory_bytes = 24 << 20;
    let sandbox = machine.start(spec).await;
    let exit = machine.exit(sandbox).await;
    assert_eq!((exit.signal, exit.out_of_memory), (Some(9), true));
    machine.destroy(sandbox).await;
    // The limit is the application's, and not the machine's.
    let (exit, text) = machine
        .run("head -c 8000000 /dev/zero | tail -c 8000000 | wc -c")
        .await;
    assert_eq!((exit.code, &*text), (Some(0), "8000000\n"));
}

pub async fn a_frozen_sandbox_stands_still(machine: &Machine) {
    let script = "n=0; while true; do n=$((n + 1)); done";
    let sandbox = machine.start(machine.shell(script)).await;
    let cpu = async || machine.client.stats(sandbox).await.unwrap().cpu_us;
    let used = cpu().await;
    until("the shell to run", async || {
        (cpu().await > used).then_some(())
    })
    .await;
    machine.client.freeze(sandbox).await.unwrap();
    let stats = machine.client.stats(sandbox).await.unwrap();
    assert!(stats.pids > 0 && stats.memory_bytes > 0, "{stats:?}");
    assert!(machine.client.list().await.unwrap()[0].frozen);
    for _ in 0..50 {
        assert_eq!(cpu().await, stats.cpu_us);
    }
    machine.client.thaw(sandbox).await.unwrap();
    until("it to go on", async || {
        (cpu().await > stats.cpu_us).then_some(())
    })
    .await;
    machine.destroy(sandbox).await;
}

pub async fn a_port_is_reached(machine: &Machine) {
    let server = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    let sandbox = machine.start(machine.spec(&server)).await;
    let open = async || {
        machine
            .client
            .open(Opening::Forward { port: 8080 })
            .await
            .ok()
    };
    let mut stream = until("the server to listen", open).await;
    for _ in 0..20 {
        write(&mut stream, "GET /page HTTP/1.0\r\n\r\n").await;
        stream.shutdown().await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:.40}");
        assert!(
            answer.ends_with(&"page ".repeat(20_000)),
            "{}",
            answer.len()
        );
        stream = open().await.unwrap();
    }
    drop(stream);
    machine.destroy(sandbox).await;
    let refused = machine.client.open(Opening::Forward { port: 8080 }).await;
    assert_eq!(refusal(refused), ("stream".to_owned(), 111));
}

pub async fn a_host_that_comes_back_misses_nothing(machine: &Machine) {
    let waits = |machine: &Machine| {
        let mut spec = machine.shell("read line; exit $line");
        spec.stdio = Stdio::PipedInput;
        spec
    };
    let first = connect(&machine.socket).await;
    // The latest connection is the one that counts.
    within("the earlier to end", machine.client.closed()).await;
    let (early, late) = (waits(machine), waits(machine));
    let (early_id, late_id) = (early.sandbox, late.sandbox);
    first.create(early).await.unwrap();
    first.create(late).await.unwrap();
    let mut early_input = first
        .open(Opening::Stdin { sandbox: early_id })
        .await
        .unwrap();
    let mut late_input = first
        .open(Opening::Stdin { sandbox: late_id })
        .await
        .unwrap();
    drop(first);
    // Streams are no part of it.
    write(&mut early_input, "4\n").await;
    let second = connect(&machine.socket).await;
    assert_eq!(exit_of(&second, early_id).await.code, Some(4));
    drop(second);
    let third = connect(&machine.socket).await;
    assert_eq!(exit_of(&third, early_id).await.code, Some(4));
    let listed = third.list().await.unwrap();
    assert_eq!(listed.len(), 2);
    write(&mut late_input, "5\n").await;
    assert_eq!(exit_of(&third, late_id).await.code, Some(5));
    for sandbox in [early_id, late_id] {
        third.destroy(sandbox).await.unwrap();
    }
}

pub async fn an_output_is_taken_up_again(machine: &Machine) {
    let mut spec = machine.shell("echo one; read line; echo two; read line; echo three");
    spec.stdio = Stdio::PipedInput;
    let sandbox = machine.start(spec).await;
    let mut stdin = machine.stdin(sandbox).await;
    let mut stdout = machine.stdout(sandbox).await;
    assert_eq!(read_line(&mut stdout).await, "one");
    drop(stdout);
    let mut stdout = machine.stdout(sandbox).await;
    write(&mut stdin, "\n").await;
    assert_eq!(read_line(&mut stdout).await, "two");
    // The latest has the rest, the one before its end.
    let mut latest = machine.stdout(sandbox).await;
    assert_eq!(read_all(&mut stdout).await, "");
    write(&mut stdin, "\n").await;
    assert_eq!(read_all(&mut latest).await, "three\n");
    assert_eq!(machine.exit(sandbox).await.code, Some(0));
    machine.destroy(sandbox).await;
}

pub async fn a_terminal_is_one(machine: &Machine) {
    let script = "test -t 0 && stty size; read line; stty size; echo got $line";
    let mut spec = machine.shell(script);
    spec.stdio = Stdio::Terminal {
        columns: 101,
        rows: 33,
    };
    let sandbox = machine.start(spec).await;
    let mut terminal = machine.open(Opening::Terminal { sandbox }).await;
    assert_eq!(read_line(&mut terminal).await, "33 101");
    machine.client.resize(sandbox, 90, 20).await.unwrap();
    write(&mut terminal, "words\n").await;
    assert_eq!(read_line(&mut terminal).await, "words");
    assert_eq!(read_line(&mut terminal).await, "20 90");
    assert_eq!(read_line(&mut terminal).await, "got words");
    assert_eq!(read_all(&mut terminal).await, "");
    assert_eq!(machine.exit(sandbox).await.code, Some(0));
    machine.destroy(sandbox).await;
}

pub async fn a_signal_ends_it(machine: &Machine) {
    let sandbox = machine.start(machine.spec(&["sleep", "100000"])).await;
    machine.client.signal(sandbox, 15).await.unwrap();
    assert_eq!(machine.exit(sandbox).await.signal, Some(15));
    let again = machine.client.signal(sandbox, 15).await;
    assert_eq!(refusal(again).0, "lookup");
    machine.destroy(sandbox).await;
    let gone = machine.client.signal(sandbox, 15).await;
    assert_eq!(refusal(gone), ("lookup".to_owned(), 3));
}

pub async fn a_further_process_runs(machine: &Machine) {
    let client = &machine.client;
    let sandbox = machine.start(machine.spec(&["sleep", "100000"])).await;
    let spec = |exec, script: &str, stdio| ExecSpec {
        sandbox,
        exec,
        process: machine.shell(script).process,
        stdio,
    };
    let script = "hostname; cat; exit 6";
    client
        .exec(spec(1, script, Stdio::PipedInput))
        .await
        .unwrap();
    let again = client.exec(spec(1, script, Stdio::PipedInput)).await;
    assert_eq!(refusal(again).0, "request");
    assert_eq!(refusal(client.forget_exec(sandbox, 1).await).0, "forget");
    let mut stdin = machine.open(Opening::ExecStdin { sandbox, exec: 1 }).await;
    let mut stdout = machine.open(Opening::ExecStdout { sandbox, exec: 1 }).await;
    assert_eq!(read_line(&mut stdout).await, "box");
    write(&mut stdin, "words").await;
    drop(stdin);
    assert_eq!(read_all(&mut stdout).await, "words");
    assert_eq!(exec_exit(client, sandbox, 1).await, (Some(6), None));
    let terminal = Stdio::Terminal {
        columns: 77,
        rows: 22,
    };
    let script = "stty size; read line; stty size; sleep 100000";
    client.exec(spec(2, script, terminal)).await.unwrap();
    let mut terminal = machine
        .open(Opening::ExecTerminal { sandbox, exec: 2 })
        .await;
    assert_eq!(read_line(&mut terminal).await, "22 77");
    client.resize_exec(sandbox, 2, 66, 11).await.unwrap();
    write(&mut terminal, "\n").await;
    assert_eq!(read_line(&mut terminal).await, "");
    assert_eq!(read_line(&mut terminal).await, "11 66");
    client.signal_exec(sandbox, 2, 9).await.unwrap();
    assert_eq!(exec_exit(client, sandbox, 2).await, (None, Some(9)));
    client.forget_exec(sandbox, 2).await.unwrap();
    let gone = client
        .open(Opening::ExecTerminal { sandbox, exec: 2 })
        .await;
    assert_eq!(refusal(gone), ("lookup".to_owned(), 3));
    // What is not forgotten is told to whoever comes.
    let client = connect(&machine.socket).await;
    assert_eq!(exec_exit(&client, sandbox, 1).await, (Some(6), None));
    let absent = client.exec(spec(3, "true", Stdio::Given)).await;
    assert_eq!(refusal(absent).0, "request");
    let mut absent = spec(3, "true", Stdio::Piped);
    absent.process.args = vec!["/absent".to_owned()];
    assert_eq!(refusal(client.exec(absent).await), ("exec".to_owned(), 2));
    client.destroy(sandbox).await.unwrap();
}

async fn exec_exit(
    client: &AgentClient,
    sandbox: InstanceId,
    exec: u64,
) -> (Option<i32>, Option<i32>) {
    let mut exit = client.exec_exits().watch(sandbox, exec);
    let known = within("an exit", exit.wait_for(Option::is_some)).await;
    let exit = (*known.unwrap()).unwrap();
    (exit.code, exit.signal)
}

pub async fn layers_come_and_go(machine: &Machine) {
    let client = &machine.client;
    let base = machine.disk.layers[0].clone();
    let digest = |number: u32| format!("sha256:{number:064x}").parse().unwrap();
    // What is there stays as it is.
    client
        .add_layer(base.digest.clone(), base.window)
        .await
        .unwrap();
    let moved = client
        .add_layer(base.digest.clone(), machine.disk.empty())
        .await;
    assert_eq!(refusal(moved).0, "layer");
    let sandbox = machine.start(machine.spec(&["sleep", "100000"])).await;
    assert_eq!(
        refusal(client.remove_layer(base.digest.clone()).await).0,
        "layer"
    );
    // What is no layer leaves nothing: it can be tried more often than there
    // are parts of a disk.
    for number in 0..machine.attempts {
        let added = client
            .add_layer(digest(100 + number), machine.disk.empty())
            .await;
        assert_eq!(refusal(added).0, "layer");
    }
    for (disk, first_sector) in [(9, 0), (255, 0), (0, u64::MAX), (0, 1 << 60)] {
        let window = skiff_wire::agent::Window {
            disk,
            first_sector,
            sectors: 1024,
        };
        let added = client.add_layer(digest(99), window).await;
        assert_eq!(refusal(added).0, "layer");
    }
    machine.destroy(sandbox).await;
    for _ in 0..3 {
        client.remove_layer(base.digest.clone()).await.unwrap();
        client.remove_layer(base.digest.clone()).await.unwrap();
        assert!(client.create(machine.spec(&["true"])).await.is_err());
        client
            .add_layer(base.digest.clone(), base.window)
            .await
            .unwrap();
    }
    assert_eq!(machine.run("cat /greeting").await.1, "hello from a layer\n");
}

/// The host's side of a service.
fn service(machine: &Machine, port: u32) -> (UnixListener, PathBuf) {
    let mut path = machine.socket.clone().into_os_string();
    path.push(format!("_{port}"));
    (UnixListener::bind(&path).unwrap(), path.into())
}

pub async fn the_gateway_is_reached_from_inside(machine: &Machine) {
    let (gateway, path) = service(machine, GATEWAY_PORT);
    let asking = machine.run("wget -q -O - http://198.18.0.1/words");
    let answering = async {
        let (mut stream, _) = gateway.accept().await.unwrap();
        assert_eq!(read_line(&mut stream).await, "GET /words HTTP/1.1");
        while !read_line(&mut stream).await.is_empty() {}
        write(&mut stream, "HTTP/1.0 200 OK\r\n\r\nanswered\n").await;
    };
    let ((exit, text), ()) = within("a call", async { tokio::join!(asking, answering) }).await;
    assert_eq!((exit.code, &*text), (Some(0), "answered\n"));
    std::fs::remove_file(path).unwrap();
    // Without a host there is no answer, and nothing hangs.
    let (exit, _) = machine.run("wget -q -T 20 -O - http://198.18.0.1/").await;
    assert_ne!(exit.code, Some(0));
}

pub async fn a_function_s_runtime_reaches_the_host(machine: &Machine) {
    let next = "wget -q -O - http://127.0.0.1:9001/next";
    // Nobody listens in a machine that has no function.
    assert_ne!(machine.run(next).await.0.code, Some(0));
    for _ in 0..2 {
        machine.client.serve_runtime().await.unwrap();
    }
    let (api, path) = service(machine, RUNTIME_PORT);
    let asking = machine.run(next);
    let answering = async {
        let (mut stream, _) = api.accept().await.unwrap();
        assert_eq!(read_line(&mut stream).await, "GET /next HTTP/1.1");
        while !read_line(&mut stream).await.is_empty() {}
        write(&mut stream, "HTTP/1.0 200 OK\r\n\r\nan event\n").await;
    };
    let ((exit, text), ()) = within("a call", async { tokio::join!(asking, answering) }).await;
    assert_eq!((exit.code, &*text), (Some(0), "an event\n"));
    // The end of a call is told to both sides.
    let asking = machine.run(next);
    let ending = async {
        let (stream, _) = api.accept().await.unwrap();
        drop(stream);
    };
    let ((exit, _), ()) = within("an end", async { tokio::join!(asking, ending) }).await;
    assert_ne!(exit.code, Some(0));
    let sandbox = machine.start(machine.shell(next)).await;
    let (mut stream, _) = within("a call", api.accept()).await.unwrap();
    assert_eq!(read_line(&mut stream).await, "GET /next HTTP/1.1");
    machine.client.signal(sandbox, 9).await.unwrap();
    machine.exit(sandbox).await;
    let _rest = read_all(&mut stream).await;
    machine.destroy(sandbox).await;
    std::fs::remove_file(path).unwrap();
    // Without a host there is no answer, and nothing hangs.
    assert_ne!(machine.run(next).await.0.code, Some(0));
}

pub async fn a_function_is_held_for_its_extensions(machine: &Machine) {
    let client = &machine.client;
    client.serve_runtime().await.unwrap();
    let spec = machine.shell("echo begun; exit 4");
    let sandbox = spec.sandbox;
    let extensions = client.create_function(spec, None).await.unwrap();
    assert_eq!(extensions, ["early"]);
    assert_eq!(client.extensions(sandbox).await.unwrap(), extensions);
    let early = ExecSpec {
        sandbox,
        exec: 1,
        process: machine.spec(&["/opt/extensions/early"]).process,
        stdio: Stdio::Piped,
    };
    client.exec(early).await.unwrap();
    let mut said = machine.open(Opening::ExecStdout { sandbox, exec: 1 }).await;
    assert_eq!(read_all(&mut said).await, "early\n");
    let mut stdout = machine.stdout(sandbox).await;
    client.begin(sandbox).await.unwrap();
    let mut first = client.exec_exits().watch(sandbox, FIRST_PROCESS);
    let known = within("its own end", first.wait_for(Option::is_some)).await;
    assert_eq!(known.unwrap().unwrap().code, Some(4));
    client.signal(sandbox, 9).await.unwrap();
    assert_eq!(read_all(&mut stdout).await, "begun\n");
    assert_eq!(machine.exit(sandbox).await.code, Some(4));
    machine.destroy(sandbox).await;
}

pub async fn names_are_looked_up_on_the_host(machine: &Machine) {
    let (forwarder, path) = service(machine, DNS_DATAGRAM_PORT);
    let asking = machine.run("nslookup -type=a name.example 198.18.0.1");
    let answering = async {
        let (mut stream, _) = forwarder.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut message = vec![0; length.into()];
        stream.read_exact(&mut message).await.unwrap();
        // The question becomes an answer with one address (RFC 1035, 4.1).
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[6..8].copy_from_slice(&[0, 1]);
        message.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        stream
            .write_u16(message.len().try_into().unwrap())
            .await
            .unwrap();
        write(&mut stream, message).await;
    };
    let ((exit, text), ()) = within("a look-up", async { tokio::join!(asking, answering) }).await;
    assert_eq!(exit.code, Some(0), "{text}");
    assert!(text.contains("192.0.2.7"), "{text}");
    std::fs::remove_file(path).unwrap();
}

pub async fn a_look_up_over_tcp_is_carried(machine: &Machine) {
    let (forwarder, path) = service(machine, DNS_PORT);
    let asking = machine.run("printf '\\0\\4echo' | nc 198.18.0.1 53 | tail -c 4");
    let answering = async {
        let (mut stream, _) = forwarder.accept().await.unwrap();
        let mut message = [0; 6];
        stream.read_exact(&mut message).await.unwrap();
        write(&mut stream, message).await;
    };
    let ((exit, text), ()) = within("a look-up", async { tokio::join!(asking, answering) }).await;
    assert_eq!((exit.code, &*text), (Some(0), "echo"));
    std::fs::remove_file(path).unwrap();
}

async fn dial(machine: &Machine, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(&machine.socket).await.unwrap();
    write(&mut stream, format!("CONNECT {port}\n")).await;
    assert!(read_line(&mut stream).await.starts_with("OK "));
    stream
}

pub async fn noise_ends_its_own_connection_alone(machine: &Machine) {
    let sandbox = machine.start(machine.spec(&["sleep", "100000"])).await;
    let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_le_bytes();
    let unknown = skiff_wire::framed(&200u8).unwrap();
    for noise in [&[0; 8][..], &[0xFF; 64], &too_long, &unknown] {
        for port in [CONTROL_PORT, STREAM_PORT] {
            let mut stream = dial(machine, port).await;
            write(&mut stream, noise).await;
            let mut rest = Vec::new();
            // It may be closed before the last byte is read.
            within("the end", stream.read_to_end(&mut rest)).await.ok();
            assert!(rest.is_empty(), "{rest:?}");
        }
    }
    // Whoever does not greet first is nobody.
    let mut rude = dial(machine, CONTROL_PORT).await;
    let envelope = skiff_wire::agent::Envelope {
        id: 1,
        request: skiff_wire::agent::Request::Shutdown,
    };
    write(&mut rude, skiff_wire::framed(&envelope).unwrap()).await;
    assert_eq!(read_all(&mut rude).await, "");
    let client = connect(&machine.socket).await;
    assert_eq!(client.list().await.unwrap().len(), 1);
    client.destroy(sandbox).await.unwrap();
}

/// More than its memory, and no more than its disk.
pub async fn what_is_written_may_be_on_disk(machine: &Machine) {
    let script = "head -c 40000000 /dev/zero >/file && wc -c </file; \
                  dd if=/dev/zero of=/more bs=1M count=40 2>&1 | head -n 1";
    let mut spec = machine.shell(script);
    spec.process.uid = 0;
    spec.writable = Writable::Disk { bytes: 48 << 20 };
    let window = machine.disk.scratch.window;
    let sandbox = spec.sandbox;
    let client = &machine.client;
    client.create_on_disk(spec.clone(), window).await.unwrap();
    let mut stdout = machine.stdout(sandbox).await;
    let text = read_all(&mut stdout).await;
    assert!(text.starts_with("40000000\n"), "{text}");
    assert!(
        text.trim_end().ends_with("No space left on device"),
        "{text}"
    );
    let exit = machine.exit(sandbox).await;
    assert!(!exit.out_of_memory, "{exit:?}");
    let twice = client.create_on_disk(spec.clone(), window).await;
    assert_eq!(refusal(twice).0, "request");
    machine.destroy(sandbox).await;
    // Its place has been let go of; what it wrote is nobody else's root.
    spec.sandbox = machine.spec(&[]).sandbox;
    let used = client.create_on_disk(spec, window).await;
    assert_eq!(refusal(used), ("root".to_owned(), 17));
}

pub async fn there_are_only_so_many_streams(machine: &Machine) {
    let sandbox = machine.start(machine.spec(&["sleep", "100000"])).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(dial(machine, STREAM_PORT).await);
    }
    let mut stdout = machine.stdout(sandbox).await;
    drop(silent);
    let client = connect(&machine.socket).await;
    client.destroy(sandbox).await.unwrap();
    assert_eq!(read_all(&mut stdout).await, "");
}

pub async fn what_cannot_be_is_refused(machine: &Machine) {
    let client = connect(&machine.socket).await;
    let mut given = machine.spec(&["true"]);
    given.stdio = Stdio::Given;
    assert_eq!(refusal(client.create(given).await).0, "request");
    let mut disk = machine.spec(&["true"]);
    disk.writable = Writable::Disk { bytes: 64 << 20 };
    assert_eq!(refusal(client.create(disk.clone()).await).0, "request");
    let scratch = machine.disk.scratch.window;
    let tmpfs = client.create_on_disk(machine.spec(&["true"]), scratch);
    assert_eq!(refusal(tmpfs.await).0, "request");
    for window in [
        Window { disk: 9, ..scratch },
        Window {
            sectors: 0,
            ..scratch
        },
    ] {
        let absent = client.create_on_disk(disk.clone(), window).await;
        assert_eq!(refusal(absent).0, "disk");
    }
    // No file system lies there.
    let empty = client.create_on_disk(disk, machine.disk.empty()).await;
    assert_eq!(refusal(empty).0, "disk");
    // There is no interface.
    let network = MachineNetwork {
        address: [198, 18, 1, 2].into(),
        address6: None,
        mtu: 1500,
    };
    let absent = refusal(client.connect_machine(network).await);
    assert_eq!(absent, ("network".to_owned(), 19));
    let absent = refusal(client.create(machine.spec(&["/absent"])).await);
    assert_eq!(absent, ("exec".to_owned(), 2));
    let sandbox = machine.spec(&["true"]).sandbox;
    for opening in [
        Opening::Stdout { sandbox },
        Opening::Stdin { sandbox },
        Opening::Terminal { sandbox },
    ] {
        assert_eq!(
            refusal(client.open(opening).await),
            ("lookup".to_owned(), 3)
        );
    }
    let piped = machine.spec(&["sleep", "100000"]);
    let sandbox = piped.sandbox;
    client.create(piped).await.unwrap();
    for opening in [Opening::Stdin { sandbox }, Opening::Terminal { sandbox }] {
        assert_eq!(refusal(client.open(opening).await).0, "stream");
    }
    assert_eq!(refusal(client.resize(sandbox, 1, 1).await).0, "stream");
    client.destroy(sandbox).await.unwrap();
}
