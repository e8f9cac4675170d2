use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use skiff_virtio::block::{SectorRange, WindowError};
use skiff_wire::monitor::{
    DiskStats, Envelope, FRAME_BYTES_MAX, Reason, Reply, Request, Stats, VERSION,
};

#[path = "../../tests/support/client.rs"]
mod client;

use super::{ControlError, ControlThread, Controlled, Endpoint};
use crate::MachineError;
use client::Client;

/// What was asked of it, in words.
#[derive(Debug, Default)]
struct Fake {
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn add(&self, what: impl Into<String>) -> Result<(), MachineError> {
        self.asked.lock().unwrap().push(what.into());
        Ok(())
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Controlled for Fake {
    fn map(&self, disk: &str, range: SectorRange, mut file: File) -> Result<(), MachineError> {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let SectorRange {
            first_sector,
            sectors,
        } = range;
        self.add(format!("map {disk} {first_sector} {sectors} {text}"))
    }

    fn unmap(&self, disk: &str, first: u64) -> Result<(), MachineError> {
        let source = match first {
            0 => WindowError::Busy { first },
            1 => WindowError::Absent { first },
            _ => return self.add(format!("unmap {disk} {first}")),
        };
        Err(MachineError::Window {
            id: disk.into(),
            source,
        })
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.add("pause")
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.add("resume")
    }

    fn renew_generation(&self) -> Result<(), MachineError> {
        self.add("renew")
    }

    fn stats(&self) -> Stats {
        Stats {
            cpu_us: 5,
            disks: vec![DiskStats {
                disk: "d".repeat(64),
                ..DiskStats::default()
            }],
            ..Stats::default()
        }
    }

    fn stop(&self) {
        self.add("stop").unwrap();
    }
}

struct Bench {
    machine: Arc<Fake>,
    _thread: ControlThread,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn listening() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let machine = Arc::<Fake>::default();
    let endpoint = Endpoint::listen(&path, false).unwrap();
    let thread = ControlThread::spawn(endpoint, Arc::clone(&machine), || true).unwrap();
    Bench {
        machine,
        _thread: thread,
        path,
        _folder: folder,
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

fn file(text: &str) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    File::create(&path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    File::open(path).unwrap()
}

fn map(first_sector: u64) -> Request {
    Request::Map {
        disk: "layers".into(),
        first_sector,
        sectors: 8,
    }
}

fn unmap(first_sector: u64) -> Request {
    Request::Unmap {
        disk: "layers".into(),
        first_sector,
    }
}

#[test]
fn each_request_is_done_and_answered() {
    let bench = listening();
    let mut client = Client::connect(&bench.path);
    let file = file("content");
    let ask = |client: &mut Client, request| client.ask(request, &[]);
    assert_eq!(client.ask(map(2048), &[file.as_fd()]), Ok(Reply::Done));
    let requests = [
        unmap(9),
        Request::Pause,
        Request::RenewGeneration,
        Request::Resume,
    ];
    for request in requests {
        assert_eq!(ask(&mut client, request), Ok(Reply::Done));
    }
    let stats = ask(&mut client, Request::Stats);
    assert!(matches!(stats, Ok(Reply::Stats(Stats { cpu_us: 5, .. }))));
    assert_eq!(ask(&mut client, Request::Stop), Ok(Reply::Done));
    assert_eq!(
        bench.machine.asked(),
        [
            "map layers 2048 8 content",
            "unmap layers 9",
            "pause",
            "renew",
            "resume",
            "stop"
        ]
    );
    for (first, reason, said) in [
        (0, Reason::Busy, "disk layers: a request still uses"),
        (1, Reason::Invalid, "disk layers: no window begins"),
    ] {
        let refusal = ask(&mut client, unmap(first)).unwrap_err();
        assert_eq!(refusal.reason, reason);
        assert!(refusal.message.starts_with(said), "{refusal}");
    }
}

#[test]
fn descriptors_come_where_they_belong_or_are_refused() {
    let bench = listening();
    let mut client = Client::connect(&bench.path);
    let file = file("");
    let many: Vec<BorrowedFd<'_>> = std::iter::repeat_n(file.as_fd(), 16).collect();
    for (request, fds) in [
        (map(0), &many[..0]),
        (map(0), &many[..2]),
        (map(0), &many[..]),
        (Request::Pause, &many[..1]),
    ] {
        let refusal = client.ask(request, fds).unwrap_err();
        assert_eq!(refusal.reason, Reason::Invalid);
        assert!(refusal.message.contains("descriptors came"), "{refusal}");
    }
    assert_eq!(bench.machine.asked(), Vec::<String>::new());
    assert_eq!(client.ask(map(0), &many[..1]), Ok(Reply::Done));
}

#[test]
fn who_does_not_say_hello_is_refused() {
    let bench = listening();
    let socket = client::connected(&bench.path).unwrap();
    for (id, request) in [
        (7, Request::Stop),
        (
            8,
            Request::Hello {
                version: VERSION + 1,
            },
        ),
        (9, Request::Pause),
    ] {
        let frame = skiff_wire::encode(&Envelope { id, request }).unwrap();
        client::send(&socket, &frame, &[]);
        let answer = client::receive(&socket).unwrap();
        assert_eq!(answer.id, id);
        assert_eq!(answer.result.unwrap_err().reason, Reason::Invalid);
    }
    assert_eq!(bench.machine.asked(), Vec::<String>::new());
    Client::new(socket).ask(Request::Pause, &[]).unwrap();
}

#[test]
fn a_bad_frame_ends_its_connection_and_no_other() {
    let bench = listening();
    let frame = skiff_wire::encode(&Envelope {
        id: 1,
        request: Request::Stop,
    })
    .unwrap();
    let mut longer = frame.clone();
    longer.push(0);
    let frames = [
        vec![],
        vec![0],
        vec![skiff_wire::VERSION],
        frame[..2].to_vec(),
        longer,
        vec![skiff_wire::VERSION; FRAME_BYTES_MAX + 1],
    ];
    for frame in frames {
        let socket = client::connected(&bench.path).unwrap();
        let file = file("");
        client::send(&socket, &frame, &[file.as_fd()]);
        assert!(client::receive(&socket).is_none(), "{} bytes", frame.len());
    }
    assert_eq!(bench.machine.asked(), Vec::<String>::new());
    Client::connect(&bench.path)
        .ask(Request::Pause, &[])
        .unwrap();
}

#[test]
fn the_next_client_is_heard_when_the_first_has_gone() {
    let bench = listening();
    let first = Client::connect(&bench.path);
    let path = bench.path.clone();
    let second = std::thread::spawn(move || {
        Client::connect(&path).ask(Request::Resume, &[]).unwrap();
    });
    let mut first = first;
    first.ask(Request::Pause, &[]).unwrap();
    drop(first);
    second.join().unwrap();
    assert_eq!(bench.machine.asked(), ["pause", "resume"]);
}

#[test]
fn who_takes_no_answers_is_not_heard_for_ever() {
    let machine = Arc::<Fake>::default();
    let (ours, theirs) = pair();
    let thread = ControlThread::spawn(Endpoint::Connection(theirs), Arc::clone(&machine), || true);
    let thread = thread.unwrap();
    Client::new(ours.try_clone().unwrap());
    // Until neither the requests nor their answers have room.
    let frame = skiff_wire::encode(&Envelope {
        id: 1,
        request: Request::Pause,
    })
    .unwrap();
    let flags = rustix::net::SendFlags::DONTWAIT;
    let (mut sent, mut heard) = (0_usize, None);
    loop {
        match rustix::net::send(&ours, &frame, flags) {
            Ok(_) => sent += 1,
            Err(errno) => {
                assert_eq!(errno, rustix::io::Errno::AGAIN);
                // Full twice with nothing heard between: it stands still.
                let now = machine.asked().len();
                if heard.replace(now) == Some(now) {
                    break;
                }
                std::thread::yield_now();
            }
        }
    }
    // It has kept one answer, and goes on when they are taken.
    for _ in 0..sent {
        assert_eq!(client::receive(&ours).unwrap().result, Ok(Reply::Done));
    }
    assert_eq!(machine.asked().len(), sent);
    drop(thread);
}

#[test]
fn a_socket_is_for_its_user_and_goes_with_its_thread() {
    let Bench {
        _thread: thread,
        path,
        _folder: folder,
        ..
    } = listening();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Endpoint::listen(&path, false).unwrap_err();
    assert!(matches!(error, ControlError::Listen { .. }));
    let client = Client::connect(&path);
    drop(thread);
    assert!(!path.exists());
    drop((client, folder));
}

/// As a process that is started gets it.
fn handed(descriptor: OwnedFd) -> RawFd {
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty()).unwrap();
    descriptor.into_raw_fd()
}

#[test]
fn what_is_no_connection_is_not_inherited() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    let lonely = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    for descriptor in [
        -1,
        0,
        2,
        i32::MAX,
        handed(stream.into()),
        handed(file.into()),
        handed(lonely),
    ] {
        let error = Endpoint::inherit(descriptor).unwrap_err();
        assert!(matches!(error, ControlError::Inherited { .. }));
    }
    let (ours, theirs) = pair();
    let descriptor = handed(theirs);
    let endpoint = Endpoint::inherit(descriptor).unwrap();
    let _thread = ControlThread::spawn(endpoint, Arc::<Fake>::default(), || true).unwrap();
    Client::new(ours);
}
