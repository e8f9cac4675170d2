//! Machines whose guest does not come up, by a launcher and a monitor that
//! speak their protocols and boot nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use common::{Act, FakeLauncher, exit, exited, id, obey, reply_with, server, spec};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind,
    listen, recv, send, socket_with,
};
use skiff_sandbox::{
    Backend as _, ContainerBackend, Exits, GuestFiles, LauncherClient, MicrovmBackend, SandboxError,
};
use skiff_wire::launcher::{Envelope, Reply, Request, monitor_folder};
use skiff_wire::monitor;

fn null() -> OwnedFd {
    fs::File::open("/dev/null").unwrap().into()
}

/// A monitor's control socket, which says hello to whoever asks.
fn monitor_in(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let address = SocketAddrUnix::new(folder.join("control")).unwrap();
    bind(&socket, &address).unwrap();
    listen(&socket, 1).unwrap();
    std::thread::spawn(move || {
        let client = accept(&socket).unwrap();
        let mut frame = vec![0; monitor::FRAME_BYTES_MAX];
        loop {
            let (bytes, _) = recv(&client, &mut frame[..], RecvFlags::empty()).unwrap();
            if bytes == 0 {
                return;
            }
            let asked: monitor::Envelope = skiff_wire::decode(&frame[..bytes]).unwrap();
            let hello = monitor::Reply::Hello {
                version: monitor::VERSION,
                pid: 1,
                program: "fake".to_owned(),
            };
            let answer = monitor::Answer {
                id: asked.id,
                result: Ok(hello),
            };
            let answer = skiff_wire::encode(&answer).unwrap();
            send(&client, &answer, SendFlags::NOSIGNAL).unwrap();
        }
    });
}

/// Removes a folder in which sockets may still appear.
fn remove(folder: &Path) {
    while let Err(error) = fs::remove_dir_all(folder) {
        assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
    }
}

/// Makes monitors in this folder, and removes them.
fn launch(run_dir: &Path, envelope: &Envelope) -> Vec<Act> {
    match &envelope.request {
        Request::CreateMonitor(spec) => {
            monitor_in(&monitor_folder(run_dir, spec.sandbox));
            let created = Reply::MonitorCreated {
                steps_us: vec![],
                network: None,
            };
            vec![reply_with(envelope.id, created, vec![null(), null()])]
        }
        Request::Destroy { sandbox } => {
            remove(&monitor_folder(run_dir, *sandbox));
            obey(envelope)
        }
        _ => obey(envelope),
    }
}

async fn machines(socket: OwnedFd, run_dir: &Path, boot: Duration) -> MicrovmBackend {
    let client = LauncherClient::over(socket, server(), Exits::default()).await;
    let containers = ContainerBackend::new(client.unwrap());
    let machines = MicrovmBackend::beside(&containers, run_dir.to_owned(), boot);
    machines.boot_from(GuestFiles {
        kernel: "/dev/null".into(),
        initramfs: "/dev/null".into(),
    });
    machines
}

fn made(request: &Request) -> bool {
    matches!(request, Request::CreateMonitor(_))
}

fn removed(request: &Request) -> bool {
    matches!(request, Request::Destroy { .. })
}

#[tokio::test]
async fn a_machine_that_stands_still_is_booted_once_more_and_then_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().to_owned();
    let (launcher, socket) = FakeLauncher::start(move |envelope, _| launch(&run_dir, envelope));
    let machines = machines(socket, folder.path(), Duration::from_millis(50)).await;
    let error = machines.create(spec(id(1))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the sandbox {} did not finish `boot` in time", id(1))
    );
    assert_eq!((launcher.count(made), launcher.count(removed)), (2, 2));
    assert!(!monitor_folder(folder.path(), id(1)).exists());
}

/// How often a machine is made whose monitor ends with this code.
async fn made_with(code: i32) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().to_owned();
    let (launcher, socket) = FakeLauncher::start(move |envelope, _| {
        let mut acts = launch(&run_dir, envelope);
        if let Request::CreateMonitor(spec) = &envelope.request {
            acts.push(exited(spec.sandbox, exit(code)));
        }
        acts
    });
    let machines = machines(socket, folder.path(), common::PATIENCE).await;
    let error = machines.create(spec(id(1))).await.unwrap_err();
    let SandboxError::Refused { step, message, .. } = error else {
        panic!("{error:?}")
    };
    let expected = format!("the monitor has ended with {code}");
    assert_eq!((step.as_str(), message), ("monitor", expected));
    assert_eq!(launcher.count(removed), launcher.count(made));
    launcher.count(made)
}

#[tokio::test]
async fn a_machine_whose_guest_dies_is_booted_once_more_too() {
    assert_eq!(made_with(3).await, 2);
}

#[tokio::test]
async fn a_machine_that_cannot_be_made_is_not_booted_again() {
    assert_eq!(made_with(1).await, 1);
}
