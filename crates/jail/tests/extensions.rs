//! Functions that are held for their extensions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::fd::OwnedFd;
use std::path::Path;

use skiff_base::{Clock as _, SystemClock};
use skiff_types::InstanceId;
use skiff_wire::launcher::{
    EXTENSIONS_MAX, ExecSpec, FIRST_PROCESS, LINGER, Reply, Request, SandboxSpec, Stdio,
};
use support::{Client, Launcher, Layer, Running, add_busybox, layer, shell};

/// An image with these extensions.
fn extended(names: &[&str]) -> Layer {
    layer(|root| {
        add_busybox(root);
        let folder = root.join("opt/extensions");
        std::fs::create_dir_all(folder.join("a folder")).unwrap();
        for name in names {
            std::fs::write(folder.join(name), "").unwrap();
        }
    })
}

fn start(layer: &Layer) -> (Launcher, Client) {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(layer);
    (launcher, client)
}

/// Makes a function that is held; its streams, and what it is held for.
fn hold(client: &mut Client, spec: SandboxSpec) -> (Vec<OwnedFd>, Vec<String>) {
    let (result, fds) = client.ask_full(Request::CreateServed(Box::new(spec)), &[]);
    match result {
        Ok(Reply::Held { extensions, .. }) => (fds, extensions),
        other => panic!("{other:?}"),
    }
}

/// What a script writes beside a function's first process.
fn beside(client: &mut Client, layer: &Layer, sandbox: InstanceId, script: &str) -> String {
    let exec = skiff_base::random::u64();
    let request = ExecSpec {
        sandbox,
        exec,
        process: shell(&[layer], script).process,
        stdio: Stdio::Piped,
    };
    let (result, outputs) = client.ask_full(Request::Exec(Box::new(request)), &[]);
    assert_eq!(result, Ok(Reply::Executed));
    let steps_us = Vec::new();
    let (out, err) = Running {
        sandbox,
        steps_us,
        outputs,
    }
    .read();
    assert_eq!(client.exec_exit(exec), (Some(0), None), "{out}{err}");
    out
}

fn kill(client: &mut Client, sandbox: InstanceId) {
    let signal = 9;
    let killed = client.ask(Request::Signal { sandbox, signal });
    assert_eq!(killed, Ok(Reply::Done));
}

#[test]
fn a_function_begins_when_it_is_told_to() {
    let image = extended(&["two", "one"]);
    let (launcher, mut client) = start(&image);
    let mut spec = shell(&[&image], "echo begun; cat /began; exit 3");
    spec.process.uid = 7;
    let sandbox = spec.sandbox;
    let (outputs, extensions) = hold(&mut client, spec);
    assert_eq!(extensions, ["one", "two"]);
    // What is held can be neither traced nor looked into, by its sandbox's root.
    let script = "echo before > /began; for file in environ maps; do
        cat /proc/self/$file >/dev/null || echo own; cat /proc/2/$file 2>/dev/null && echo open
        done; ls /proc/2/fd/ 2>/dev/null && echo listed; readlink /proc/2/exe; echo closed";
    let told = beside(&mut client, &image, sandbox, script);
    assert_eq!(told, "closed\n");
    let known = client.ask(Request::Extensions { sandbox });
    assert_eq!(known, Ok(Reply::Extensions(extensions)));
    assert_eq!(client.ask(Request::Begin { sandbox }), Ok(Reply::Done));
    assert_eq!(client.exec_exit(FIRST_PROCESS), (Some(3), None));
    // What is beside it goes on, until all is ended.
    let told = beside(&mut client, &image, sandbox, "cat /began");
    assert_eq!(told, "before\n");
    let signal = 15;
    assert!(client.ask(Request::Signal { sandbox, signal }).is_err());
    kill(&mut client, sandbox);
    let exit = client.exit_of(sandbox);
    let running = Running {
        sandbox,
        steps_us: Vec::new(),
        outputs,
    };
    assert_eq!(running.read().0, "begun\nbefore\n");
    assert_eq!(exit.code, Some(3));
    assert!(client.ask(Request::Begin { sandbox }).is_err());
    client.destroy(sandbox);
    launcher.shut_down();
}

#[test]
fn a_function_that_cannot_begin_says_why() {
    let image = extended(&["one"]);
    let (launcher, mut client) = start(&image);
    let mut spec = shell(&[&image], "");
    spec.process.args = vec!["/no/such/program".to_owned()];
    let sandbox = spec.sandbox;
    let (outputs, _) = hold(&mut client, spec);
    assert_eq!(client.ask(Request::Begin { sandbox }), Ok(Reply::Done));
    assert_eq!(client.exec_exit(FIRST_PROCESS), (Some(127), None));
    // It waits for its extensions as long as they may take, and ends.
    let (clock, ended) = (SystemClock, SystemClock.now());
    assert_eq!(client.exit_of(sandbox).code, Some(127));
    let lingered = clock.now().since(ended);
    assert!(lingered > LINGER / 2, "{lingered:?}");
    let running = Running {
        sandbox,
        steps_us: Vec::new(),
        outputs,
    };
    let (_, err) = running.read();
    assert!(err.contains("/no/such/program"), "{err}");
    client.destroy(sandbox);
    launcher.shut_down();
}

#[test]
fn a_function_that_is_held_ends_as_any_other() {
    let image = extended(&["one"]);
    let (launcher, mut client) = start(&image);
    let spec = shell(&[&image], "echo begun");
    let sandbox = spec.sandbox;
    let (_outputs, _) = hold(&mut client, spec);
    kill(&mut client, sandbox);
    assert_eq!(client.exit_of(sandbox).signal, Some(9));
    client.destroy(sandbox);
    let spec = shell(&[&image], "echo begun");
    let sandbox = spec.sandbox;
    let (_outputs, _) = hold(&mut client, spec);
    client.destroy(sandbox);
    launcher.shut_down();
}

#[test]
fn a_function_with_extensions_ends_with_the_connection_that_made_it() {
    let image = extended(&["one"]);
    let (launcher, mut client) = start(&image);
    let mut other = launcher.connect();
    let held = shell(&[&image], "sleep 1000");
    let plain = shell(&[&image], "sleep 1000");
    let (sandbox, stays) = (held.sandbox, plain.sandbox);
    let (_outputs, _) = hold(&mut client, held);
    assert_eq!(client.ask(Request::Begin { sandbox }), Ok(Reply::Done));
    let _running = client.create(plain).unwrap();
    drop(client);
    assert_eq!(other.exit_of(sandbox).signal, Some(9));
    let listed = other.list();
    let exit = |wanted| {
        listed
            .iter()
            .find(|one| one.sandbox == wanted)
            .unwrap()
            .exit
    };
    assert!(exit(sandbox).is_some() && exit(stays).is_none());
    for sandbox in [sandbox, stays] {
        other.destroy(sandbox);
    }
    launcher.shut_down();
}

#[test]
fn only_functions_with_extensions_are_held_and_not_with_too_many() {
    let names: Vec<_> = (0..=EXTENSIONS_MAX).map(|n| n.to_string()).collect();
    let image = extended(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let (launcher, mut client) = start(&image);
    let plain = client.create(shell(&[&image], "echo begun")).unwrap();
    assert_eq!(plain.read().0, "begun\n");
    let spec = shell(&[&image], "echo begun");
    let refusal = client
        .ask(Request::CreateServed(Box::new(spec)))
        .unwrap_err();
    assert_eq!(refusal.step, "extensions", "{refusal}");
    assert!(refusal.message.contains("more than 10 files"), "{refusal}");
    let bare = layer(|root: &Path| add_busybox(root));
    client.add_layer(&bare);
    let spec = shell(&[&bare], "echo begun");
    let reply = client.ask(Request::CreateServed(Box::new(spec)));
    assert!(matches!(reply, Ok(Reply::Created { .. })), "{reply:?}");
    launcher.shut_down();
}
