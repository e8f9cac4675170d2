//! A launcher that makes nothing and speaks the protocol.
#![allow(clippy::unwrap_used, dead_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use skiff_sandbox::CreateSpec;
use skiff_types::{InstanceId, ServerId};
use skiff_wire::launcher::{
    Answer, Envelope, Exit, ProcessSpec, Refusal, Reply, Request, Writable,
};
use skiff_wire::{FRAME_BYTES_MAX, FRAME_FDS_MAX};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the fake does with a request.
#[derive(Debug)]
pub enum Act {
    Say(Answer, Vec<OwnedFd>),
    Raw(Vec<u8>, Vec<OwnedFd>),
    Close,
}

pub fn reply(id: u64, reply: Reply) -> Act {
    reply_with(id, reply, vec![])
}

pub fn reply_with(id: u64, reply: Reply, fds: Vec<OwnedFd>) -> Act {
    let result = Ok(reply);
    Act::Say(Answer::Reply { id, result }, fds)
}

pub fn refuse(id: u64, step: &str, message: &str) -> Act {
    let result = Err(Refusal {
        step: step.to_owned(),
        errno: 2,
        message: message.to_owned(),
    });
    Act::Say(Answer::Reply { id, result }, vec![])
}

pub fn exited(sandbox: InstanceId, exit: Exit) -> Act {
    Act::Say(Answer::Exited { sandbox, exit }, vec![])
}

/// What a launcher that does everything would say.
pub fn obey(envelope: &Envelope) -> Vec<Act> {
    let id = envelope.id;
    match &envelope.request {
        Request::Hello { .. } => vec![reply(
            id,
            Reply::Hello {
                pid: 1,
                version: "fake".to_owned(),
            },
        )],
        Request::Create(_) => {
            let steps_us = vec![("exec".to_owned(), 7)];
            let fds = vec![null(), null()];
            vec![reply_with(id, Reply::Created { steps_us }, fds)]
        }
        Request::Sockets { count, .. } => {
            let fds = (0..*count).map(|_| tcp()).collect();
            vec![reply_with(id, Reply::Descriptors, fds)]
        }
        Request::Output { .. } => {
            let fds = vec![null(), null()];
            vec![reply_with(id, Reply::Descriptors, fds)]
        }
        Request::List { .. } => vec![reply(id, Reply::List(vec![]))],
        _ => vec![reply(id, Reply::Done)],
    }
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn tcp() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
}

/// The thread that answers, and what it was asked.
pub struct FakeLauncher {
    pub asked: Arc<Mutex<Vec<Request>>>,
    thread: JoinHandle<()>,
}

impl FakeLauncher {
    /// Answers until the other side closes.
    pub fn start(
        mut act: impl FnMut(&Envelope, Vec<OwnedFd>) -> Vec<Act> + Send + 'static,
    ) -> (Self, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        let asked = Arc::new(Mutex::new(vec![]));
        let notes = asked.clone();
        let thread = std::thread::spawn(move || {
            rustix::net::sockopt::set_socket_send_buffer_size(&far, 2 * FRAME_BYTES_MAX).unwrap();
            while let Some((envelope, fds)) = receive(&far) {
                notes.lock().unwrap().push(envelope.request.clone());
                for act in act(&envelope, fds) {
                    match act {
                        Act::Say(answer, fds) => {
                            send(far.as_fd(), &skiff_wire::encode(&answer).unwrap(), &fds);
                        }
                        Act::Raw(frame, fds) => send(far.as_fd(), &frame, &fds),
                        Act::Close => return,
                    }
                }
            }
        });
        (Self { asked, thread }, near)
    }

    pub fn obedient() -> (Self, OwnedFd) {
        Self::start(|envelope, _| obey(envelope))
    }

    pub fn count(&self, which: impl Fn(&Request) -> bool) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|request| which(request)).count()
    }

    /// Waits for the thread: the client must be gone.
    pub fn join(self) {
        self.thread.join().unwrap();
    }
}

fn send(socket: BorrowedFd<'_>, frame: &[u8], fds: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // The client may have closed in the meantime.
    let _gone = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(frame)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
}

fn receive(socket: &OwnedFd) -> Option<(Envelope, Vec<OwnedFd>)> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let message =
        rustix::net::recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect();
    let bytes = message.bytes;
    (bytes > 0).then(|| (skiff_wire::decode(&buffer[..bytes]).unwrap(), fds))
}

pub fn server() -> ServerId {
    ServerId::from_parts(1, 1)
}

pub fn id(number: u32) -> InstanceId {
    InstanceId::from_parts(1, number)
}

pub fn exit(code: i32) -> Exit {
    Exit {
        code: Some(code),
        signal: None,
        out_of_memory: false,
        cpu_us: 1,
        memory_peak_bytes: 2,
    }
}

pub fn spec(instance: InstanceId) -> CreateSpec {
    CreateSpec {
        instance,
        layers: vec![],
        process: ProcessSpec {
            args: vec!["/app".to_owned()],
            env: vec![],
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            additional_gids: vec![],
            nofile: 1024,
        },
        hostname: "a".to_owned(),
        memory_bytes: 64 << 20,
        cpu_millis: 1000,
        pids: 100,
        writable: Writable::Tmpfs { bytes: 1 << 20 },
        readonly_root: false,
        egress: false,
        function: false,
        label: vec![1, 2, 3],
    }
}
