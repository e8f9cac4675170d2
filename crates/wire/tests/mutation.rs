//! Frames with flipped, dropped, doubled and made-up bytes: either side reads
//! a message or refuses, holds no more than the frame's limit, and what it
//! reads it can say again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::Ipv6Addr;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skiff_types::{Digest, InstanceId};
use skiff_wire::agent::{
    Answer, Envelope, OPENING_BYTES_MAX, Opened, Opening, Reply, Request, Window,
};
use skiff_wire::launcher::{
    ExecSpec, Exit, Listed, MachineNetwork, ProcessSpec, Refusal, SandboxSpec, Stats, Stdio,
    Writable,
};
use skiff_wire::{FRAME_BYTES_MAX, FrameReader, decode, encode, framed};

fn sandbox() -> InstanceId {
    InstanceId::from_parts(1_800_000_000_000, 7)
}

fn layer() -> Digest {
    format!("sha256:{:064x}", 11).parse().unwrap()
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        sandbox: sandbox(),
        layers: vec![layer(), layer()],
        process: ProcessSpec {
            args: vec!["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            uid: 1000,
            gid: 1000,
            additional_gids: vec![5, 6],
            nofile: 1024,
        },
        hostname: "box".to_owned(),
        memory_bytes: 64 << 20,
        cpu_millis: 500,
        pids: 64,
        writable: Writable::Tmpfs { bytes: 16 << 20 },
        readonly_root: true,
        egress: false,
        stdio: Stdio::PipedInput,
        label: vec![1, 2, 3],
    }
}

fn requests() -> Vec<Vec<u8>> {
    let window = Window {
        disk: 0,
        first_sector: 2048,
        sectors: 4096,
    };
    let sandbox = sandbox();
    let requests = [
        Request::Hello {
            protocol: 1,
            features: 3,
        },
        Request::AddLayer {
            layer: layer(),
            window,
        },
        Request::Create(Box::new(spec())),
        Request::Signal {
            sandbox,
            signal: -9,
        },
        Request::Reseed { seed: vec![9; 64] },
        Request::List {
            after: Some(sandbox),
        },
        Request::Shutdown,
        Request::Connect(MachineNetwork {
            address: [198, 18, 1, 2].into(),
            address6: Some(Ipv6Addr::LOCALHOST),
            mtu: 1500,
        }),
        Request::ServeRuntime,
        Request::CreateFunction {
            spec: Box::new(spec()),
            window: None,
        },
        Request::Begin { sandbox },
        Request::Exec(Box::new(ExecSpec {
            sandbox,
            exec: 9,
            process: spec().process,
            stdio: Stdio::Terminal {
                columns: 80,
                rows: 24,
            },
        })),
        Request::ResizeExec {
            sandbox,
            exec: 9,
            columns: 80,
            rows: 24,
        },
    ];
    let envelope = |request| framed(&Envelope { id: 300, request }).unwrap();
    requests.into_iter().map(envelope).collect()
}

fn answers() -> Vec<Vec<u8>> {
    let refusal = Refusal {
        step: "layer".to_owned(),
        errno: 22,
        message: "no".to_owned(),
    };
    let exit = Exit {
        code: Some(3),
        signal: None,
        out_of_memory: true,
        cpu_us: 1 << 40,
        memory_peak_bytes: 0,
    };
    let listed = Listed {
        sandbox: sandbox(),
        label: vec![0; 40],
        exit: Some(exit),
        frozen: false,
        monitor: true,
    };
    let reply = |result| Answer::Reply {
        id: 1 << 40,
        result,
    };
    let answers = [
        reply(Ok(Reply::Stats(Stats::default()))),
        reply(Ok(Reply::List(vec![listed.clone(), listed]))),
        reply(Ok(Reply::Created {
            steps_us: vec![("root".to_owned(), 12)],
        })),
        reply(Ok(Reply::Held {
            steps_us: Vec::new(),
            extensions: vec!["one".to_owned(), "two".to_owned()],
        })),
        reply(Err(refusal)),
        Answer::Exited {
            sandbox: sandbox(),
            exit,
        },
    ];
    answers
        .iter()
        .map(|answer| framed(answer).unwrap())
        .collect()
}

fn openings() -> Vec<Vec<u8>> {
    let sandbox = sandbox();
    [
        Opening::Stdin { sandbox },
        Opening::Terminal { sandbox },
        Opening::Forward { port: 8080 },
        Opening::ExecStdout { sandbox, exec: 9 },
    ]
    .iter()
    .map(|opening| framed(opening).unwrap())
    .collect()
}

/// Reads a stream as a side of the protocol does: whatever comes, messages or
/// an error.
fn read<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    mut stream: &[u8],
    limit: usize,
) -> usize {
    let mut reader = FrameReader::new(limit);
    let mut messages = 0;
    while !stream.is_empty() {
        let wanted = reader.wanted();
        assert!(wanted > 0 && wanted <= limit.max(4));
        let (now, later) = stream.split_at(wanted.min(stream.len()));
        stream = later;
        match reader.push(now) {
            Err(_) => return messages,
            Ok(None) => {}
            Ok(Some(frame)) => {
                assert!(frame.len() <= limit);
                let Ok(message) = decode::<T>(&frame) else {
                    return messages;
                };
                assert_eq!(decode::<T>(&encode(&message).unwrap()).unwrap(), message);
                messages += 1;
            }
        }
    }
    messages
}

#[derive(Debug, Clone)]
enum Change {
    Flip(usize, u8),
    Drop(usize, usize),
    Double(usize, usize),
    Insert(usize, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>();
    prop_oneof![
        (at, any::<u8>()).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (at, 1..16usize).prop_map(|(at, length)| Change::Drop(at, length)),
        (at, 1..16usize).prop_map(|(at, length)| Change::Double(at, length)),
        (at, prop::collection::vec(any::<u8>(), 1..16))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

fn mutate(stream: &mut Vec<u8>, change: Change) {
    if stream.is_empty() {
        return;
    }
    let place = |at: usize| at % stream.len();
    match change {
        Change::Flip(at, bits) => {
            let at = place(at);
            stream[at] ^= bits;
        }
        Change::Drop(at, length) => {
            let at = place(at);
            let end = (at + length).min(stream.len());
            stream.drain(at..end);
        }
        Change::Double(at, length) => {
            let at = place(at);
            let end = (at + length).min(stream.len());
            let piece = stream[at..end].to_vec();
            stream.splice(at..at, piece);
        }
        Change::Insert(at, bytes) => {
            let at = place(at);
            stream.splice(at..at, bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn either_side_survives_what_the_other_says(
        which in 0..3usize,
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        changes in prop::collection::vec(change(), 0..4),
    ) {
        let whole = [requests, answers, openings][which]();
        let mut stream: Vec<u8> = order.iter().flat_map(|at| at.get(&whole).clone()).collect();
        let untouched = changes.is_empty();
        for change in changes {
            mutate(&mut stream, change);
        }
        let messages = match which {
            0 => read::<Envelope>(&stream, FRAME_BYTES_MAX),
            1 => read::<Answer>(&stream, FRAME_BYTES_MAX),
            _ => read::<Opening>(&stream, OPENING_BYTES_MAX),
        };
        if untouched {
            prop_assert_eq!(messages, order.len());
        }
    }

    #[test]
    fn noise_is_refused_or_read(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        read::<Envelope>(&noise, FRAME_BYTES_MAX);
        read::<Answer>(&noise, FRAME_BYTES_MAX);
        read::<Opening>(&noise, OPENING_BYTES_MAX);
        read::<Opened>(&noise, OPENING_BYTES_MAX);
    }
}

#[test]
fn every_message_fits_where_it_goes() {
    for opening in openings() {
        assert!(opening.len() <= OPENING_BYTES_MAX);
    }
    let refused: Opened = Err(Refusal {
        step: "stream".to_owned(),
        errno: 0,
        message: "x".repeat(900),
    });
    assert!(framed(&refused).unwrap().len() <= OPENING_BYTES_MAX);
}
