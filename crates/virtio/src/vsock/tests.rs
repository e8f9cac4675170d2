use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::connection::BUFFER_BYTES;
use super::muxer::{HOST_CID, MAX_CONNECTIONS, MAX_RESETS, Muxer};
use super::packet::{Header, NO_RECEIVE, NO_SEND, Op};
use super::{Vsock, VsockError};
use crate::testing::{Bench, Desc, put_descriptors};
use crate::{Progress, Transport};

const GUEST: u64 = 3;
const GUEST_PORT: u32 = 1000;
const HOST_PORT: u32 = 52;
/// A header as a descriptor has it.
const HEADER: u32 = 44;

/// The host's side of a device, without its rings.
struct Host {
    muxer: Muxer,
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let muxer = Muxer::new(GUEST, &folder.path().join("vsock")).unwrap();
        Self { muxer, folder }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("vsock{suffix}"))
    }

    fn listen(&self, port: u32) -> UnixListener {
        let listener = UnixListener::bind(self.path(&format!("_{port}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A packet of the guest's.
    fn say(&mut self, header: Header, data: &[u8]) {
        let mut data = data;
        self.muxer
            .hear(&header, |piece| data.read(piece).unwrap_or(0));
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        // Accepting a connection and hearing it are rounds of their own.
        self.muxer.poll();
        self.muxer.poll();
        let (header, data) = self.muxer.next(64 << 10)?;
        Some((Header::parse(&header), data.to_vec()))
    }

    /// The next packet must be of this kind.
    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, data) = self.next().expect("there is no packet");
        assert_eq!(header.op, Some(op));
        assert_eq!((header.source_cid, header.target_cid), (HOST_CID, GUEST));
        assert_eq!(header.bytes as usize, data.len());
        (header, data)
    }

    fn expect_nothing(&mut self) {
        assert_eq!(self.next(), None);
    }

    /// A stream that the guest opened, and the host's end of it.
    fn opened(&mut self) -> UnixStream {
        let listener = self.listen(HOST_PORT);
        self.say(packet(Op::Request, 0), &[]);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let (header, _) = self.expect(Op::Response);
        assert_eq!(
            (header.source_port, header.target_port),
            (HOST_PORT, GUEST_PORT)
        );
        assert_eq!(header.buffer, BUFFER_BYTES);
        stream
    }
}

fn packet(op: Op, bytes: usize) -> Header {
    Header {
        source_cid: GUEST,
        target_cid: HOST_CID,
        source_port: GUEST_PORT,
        target_port: HOST_PORT,
        bytes: u32::try_from(bytes).unwrap(),
        op: Some(op),
        is_stream: true,
        flags: 0,
        buffer: 64 << 10,
        forwarded: 0,
    }
}

fn shutdown(flags: u32) -> Header {
    Header {
        flags,
        ..packet(Op::Shutdown, 0)
    }
}

fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return all,
            Ok(length) => all.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0))
}

#[test]
fn a_guest_reaches_a_hosts_socket() {
    let mut host = Host::new();
    let mut stream = host.opened();
    host.say(packet(Op::Data, 5), b"hello");
    assert_eq!(read(&mut stream), b"hello");
    stream.write_all(b"and back").unwrap();
    let (header, data) = host.expect(Op::Data);
    assert_eq!(data, b"and back");
    assert_eq!(header.forwarded, 5);
    host.expect_nothing();
}

#[test]
fn a_host_reaches_a_guests_port() {
    let mut host = Host::new();
    let mut stream = UnixStream::connect(host.path("")).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream.write_all(b"CONNECT 1000\nearly bytes").unwrap();
    let (request, _) = host.expect(Op::Request);
    assert_eq!(request.target_port, GUEST_PORT);
    host.expect_nothing();
    let answer = Header {
        target_port: request.source_port,
        ..packet(Op::Response, 0)
    };
    host.say(answer, &[]);
    assert_eq!(
        read(&mut stream),
        format!("OK {}\n", request.source_port).as_bytes()
    );
    assert_eq!(host.expect(Op::Data).1, b"early bytes");
}

#[test]
fn where_nobody_listens_both_sides_are_told() {
    let mut host = Host::new();
    host.say(packet(Op::Request, 0), &[]);
    host.expect(Op::Reset);
    // The guest refuses.
    let mut stream = UnixStream::connect(host.path("")).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = host.expect(Op::Request);
    let refusal = Header {
        source_port: 7,
        target_port: request.source_port,
        ..packet(Op::Reset, 0)
    };
    host.say(refusal, &[]);
    assert!(is_closed(&mut stream));
    host.expect_nothing();
    assert_eq!(host.muxer.connections(), 0);
}

#[test]
fn a_host_that_says_something_else_is_closed() {
    for line in ["GET / HTTP/1.1\r\n", "CONNECT x\n", &"C".repeat(100)] {
        let mut host = Host::new();
        let mut stream = UnixStream::connect(host.path("")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        host.expect_nothing();
        // Closed, or reset because of what was not read.
        assert!(!matches!(stream.read(&mut [0; 1]), Ok(1)), "{line}");
    }
}

#[test]
fn silent_hosts_keep_nobody_out() {
    let mut host = Host::new();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(UnixStream::connect(host.path("")).unwrap());
        host.expect_nothing();
    }
    assert!(is_closed(&mut silent[0]));
    let mut stream = UnixStream::connect(host.path("")).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    host.expect(Op::Request);
}

#[test]
fn bytes_wait_for_the_guests_credit() {
    let mut host = Host::new();
    let mut stream = host.opened();
    let small = |op, forwarded| Header {
        buffer: 10,
        forwarded,
        ..packet(op, 0)
    };
    host.say(small(Op::CreditUpdate, 0), &[]);
    stream.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(host.expect(Op::Data).1, b"0123456789");
    host.expect(Op::CreditRequest);
    host.expect_nothing();
    // An answer without credit is not asked about again.
    host.say(small(Op::CreditUpdate, 0), &[]);
    host.expect_nothing();
    host.say(small(Op::CreditUpdate, 4), &[]);
    assert_eq!(host.expect(Op::Data).1, b"abcd");
    host.expect(Op::CreditRequest);
    // A guest that has handed on more than it was sent has no room.
    host.say(small(Op::CreditUpdate, 1000), &[]);
    host.expect_nothing();
    host.say(small(Op::CreditUpdate, 14), &[]);
    assert_eq!(host.expect(Op::Data).1, b"ef");
}

#[test]
fn a_guest_has_credit_for_what_the_host_has_taken() {
    let mut host = Host::new();
    let mut stream = host.opened();
    let piece = vec![7; 32 << 10];
    let mut sent: usize = 0;
    let mut told = 0_u32;
    let mut taken = 0;
    for _ in 0..200 {
        // As much as there is credit for.
        while sent - told as usize + piece.len() <= BUFFER_BYTES as usize {
            host.say(packet(Op::Data, piece.len()), &piece);
            sent += piece.len();
        }
        taken += read(&mut stream).len();
        while let Some((header, _)) = host.next() {
            assert_eq!(header.op, Some(Op::CreditUpdate));
            told = header.forwarded;
        }
    }
    taken += read(&mut stream).len();
    assert!(taken > 10 << 20, "only {taken} of {sent} bytes arrived");
    assert!(sent - taken <= BUFFER_BYTES as usize);
}

#[test]
fn a_guest_that_sends_without_credit_is_cut_off() {
    let mut host = Host::new();
    let mut stream = host.opened();
    let piece = vec![7; 64 << 10];
    let mut sent = 0;
    // The host takes nothing: its socket and our buffer fill up.
    while host.muxer.connections() == 1 {
        host.say(packet(Op::Data, piece.len()), &piece);
        sent += piece.len();
        assert!(sent < 64 << 20, "it goes on for ever");
    }
    host.expect(Op::Reset);
    assert!(read(&mut stream).len() < sent);
}

#[test]
fn each_side_ends_its_half() {
    let mut host = Host::new();
    let mut stream = host.opened();
    // The host has no more to say, and still hears.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = host.expect(Op::Shutdown);
    assert_eq!(header.flags, NO_SEND);
    host.say(packet(Op::Data, 4), b"last");
    assert_eq!(read(&mut stream), b"last");
    host.say(shutdown(NO_SEND), &[]);
    host.expect(Op::Reset);
    assert!(is_closed(&mut stream));

    // The guest has no more to say, and still hears.
    let mut host = Host::new();
    let mut stream = host.opened();
    host.say(packet(Op::Data, 4), b"done");
    host.say(shutdown(NO_SEND), &[]);
    assert_eq!(read(&mut stream), b"done");
    assert!(is_closed(&mut stream));
    stream.write_all(b"answer").unwrap();
    assert_eq!(host.expect(Op::Data).1, b"answer");
    drop(stream);
    host.expect(Op::Reset);
    assert_eq!(host.muxer.connections(), 0);
}

#[test]
fn a_guest_that_closes_has_its_bytes_delivered_first() {
    let mut host = Host::new();
    let mut stream = host.opened();
    let piece = vec![7; 64 << 10];
    let mut sent = 0;
    // More than the socket takes at once.
    for _ in 0..4 {
        host.say(packet(Op::Data, piece.len()), &piece);
        sent += piece.len();
    }
    host.say(shutdown(NO_SEND | NO_RECEIVE), &[]);
    let mut taken = 0;
    for _ in 0..20 {
        taken += read(&mut stream).len();
        while host.next().is_some() {}
    }
    assert_eq!(taken, sent);
    assert_eq!(host.muxer.connections(), 0);
}

#[test]
fn streams_take_turns() {
    let mut host = Host::new();
    let listener = host.listen(HOST_PORT);
    let mut streams = Vec::new();
    for port in 0..3 {
        let request = Header {
            source_port: port,
            ..packet(Op::Request, 0)
        };
        host.say(request, &[]);
        streams.push(listener.accept().unwrap().0);
        host.expect(Op::Response);
    }
    for stream in &mut streams {
        stream.write_all(&[1; 20_000]).unwrap();
    }
    host.muxer.poll();
    let mut order = Vec::new();
    while let Some((header, _)) = host.muxer.next(10_000) {
        order.push(Header::parse(&header).target_port);
    }
    assert_eq!(order.len(), 6);
    order[..3].sort_unstable();
    assert_eq!(order[..3], [0, 1, 2]);
}

#[test]
fn connections_have_a_limit() {
    let mut host = Host::new();
    let listener = host.listen(HOST_PORT);
    let mut streams = Vec::new();
    for port in 0..u32::try_from(MAX_CONNECTIONS).unwrap() + 1 {
        let request = Header {
            source_port: port,
            ..packet(Op::Request, 0)
        };
        host.say(request, &[]);
        if let Ok((stream, _)) = listener.accept() {
            streams.push(stream);
        }
        let (header, _) = host.next().unwrap();
        let within = (port as usize) < MAX_CONNECTIONS;
        let expected = if within { Op::Response } else { Op::Reset };
        assert_eq!(header.op, Some(expected), "connection {port}");
    }
    assert_eq!(streams.len(), MAX_CONNECTIONS);
}

#[test]
fn what_belongs_to_nobody_is_reset_or_dropped() {
    let mut host = Host::new();
    for op in [
        Op::Response,
        Op::Data,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        host.say(packet(op, 0), &[]);
        host.expect(Op::Reset);
    }
    host.say(packet(Op::Reset, 0), &[]);
    host.expect_nothing();
    let foreign = Header {
        source_cid: 4,
        ..packet(Op::Data, 0)
    };
    host.say(foreign, &[]);
    host.expect_nothing();
    let elsewhere = Header {
        target_cid: 5,
        ..packet(Op::Request, 0)
    };
    host.say(elsewhere, &[]);
    host.expect_nothing();
    let datagram = Header {
        is_stream: false,
        ..packet(Op::Request, 0)
    };
    host.say(datagram, &[]);
    host.expect(Op::Reset);
}

fn device(folder: &tempfile::TempDir) -> Bench {
    let vsock = Vsock::new(GUEST, &folder.path().join("vsock")).unwrap();
    let mut bench = Bench::new(Box::new(vsock), 8);
    bench.start();
    bench
}

/// Sends a packet by the transmit ring.
fn transmit(bench: &mut Bench, header: Header, data: &[u8]) {
    let memory = bench.driver.memory.clone();
    memory
        .write_slice(&header.to_bytes(), GuestAddress(0x2_0000))
        .unwrap();
    memory.write_slice(data, GuestAddress(0x2_1000)).unwrap();
    let length = u32::try_from(data.len()).unwrap();
    put_descriptors(
        &memory,
        GuestAddress(0x4000),
        &[
            Desc::read(0x2_0000, HEADER).then(1),
            Desc::read(0x2_1000, length),
        ],
    );
    bench.ring_mut(1).offer(0);
    assert_eq!(bench.window.notify(1), Progress::Done);
    assert_eq!(bench.ring_mut(1).used(), [(0, 0)]);
}

#[test]
fn packets_go_through_the_rings() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = device(&folder);
    assert_eq!(bench.read(0x08), 19);
    assert_eq!(bench.read(0x100), 3);
    let listener = UnixListener::bind(folder.path().join("vsock_52")).unwrap();
    transmit(&mut bench, packet(Op::Request, 0), &[]);
    let (mut stream, _) = listener.accept().unwrap();
    transmit(&mut bench, packet(Op::Data, 5), b"hello");
    stream.set_nonblocking(true).unwrap();
    assert_eq!(read(&mut stream), b"hello");
    // The guest had no buffer for the answers until now.
    bench.driver.describe(0, Desc::write(0x3_0000, 100));
    bench.driver.offer(0);
    bench.driver.offer(0);
    assert_eq!(bench.window.notify(0), Progress::Done);
    assert_eq!(bench.driver.used(), [(0, 44)]);
    stream.write_all(&[9; 100]).unwrap();
    assert_eq!(bench.window.host_ready(), Progress::Done);
    // 56 bytes fit behind the header, and the rest waits.
    assert_eq!(bench.driver.used(), [(0, 100)]);
    bench.driver.offer(0);
    assert_eq!(bench.window.notify(0), Progress::Done);
    assert_eq!(bench.driver.used(), [(0, 44 + 44)]);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_heard_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = device(&folder);
    let memory = bench.driver.memory.clone();
    let header = packet(Op::Data, 0).to_bytes();
    memory.write_slice(&header, GuestAddress(0x2_0000)).unwrap();
    put_descriptors(
        &memory,
        GuestAddress(0x4000),
        &[Desc::read(0x2_0000, HEADER)],
    );
    let mut heard = 0;
    for _ in 0..MAX_RESETS * 2 {
        bench.ring_mut(1).offer(0);
        assert_eq!(bench.window.notify(1), Progress::Done);
        let used = bench.ring_mut(1).used().len();
        heard += used;
        if used == 0 {
            break;
        }
    }
    assert_eq!(heard, MAX_RESETS);
    // With buffers it is heard on.
    bench.driver.describe(0, Desc::write(0x3_0000, 100));
    for _ in 0..8 {
        bench.driver.offer(0);
    }
    let mut progress = bench.window.notify(0);
    while progress == Progress::More {
        progress = bench.window.notify(0);
    }
    assert_eq!(bench.ring_mut(1).used().len(), 1);
}

#[test]
fn packets_without_their_header_or_data_need_a_reset() {
    for (header_bytes, said) in [(43, 0), (44, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let mut bench = device(&folder);
        let memory = bench.driver.memory.clone();
        let header = packet(Op::Data, said).to_bytes();
        memory.write_slice(&header, GuestAddress(0x2_0000)).unwrap();
        put_descriptors(
            &memory,
            GuestAddress(0x4000),
            &[Desc::read(0x2_0000, header_bytes)],
        );
        bench.ring_mut(1).offer(0);
        assert_eq!(bench.window.notify(1), Progress::Done);
        assert_eq!(bench.status() & 0x40, 0x40);
    }
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = device(&folder);
    let state = bench.window.state();
    bench.window.restore(&state).unwrap();
    bench.ring_mut(2).describe(0, Desc::write(0x3_0000, 4));
    bench
        .driver
        .memory
        .write_obj(7_u32, GuestAddress(0x3_0000))
        .unwrap();
    bench.ring_mut(2).offer(0);
    assert_eq!(bench.window.host_ready(), Progress::Done);
    assert_eq!(bench.ring_mut(2).used(), [(0, 4)]);
    let event: u32 = bench
        .driver
        .memory
        .read_obj(GuestAddress(0x3_0000))
        .unwrap();
    assert_eq!(event, 0);
}

#[test]
fn addresses_and_paths_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for cid in [0, 2, u64::from(u32::MAX), u64::MAX] {
        let error = Vsock::new(cid, &folder.path().join("a")).unwrap_err();
        assert!(matches!(error, VsockError::Cid { .. }));
    }
    std::fs::write(folder.path().join("a"), b"").unwrap();
    let error = Vsock::new(3, &folder.path().join("a")).unwrap_err();
    assert!(
        error.to_string().contains("remove what is there"),
        "{error}"
    );
    // What a device made goes with it.
    let device = Vsock::new(3, &folder.path().join("b")).unwrap();
    assert_eq!(device.connections(), 0);
    drop(device);
    assert!(!folder.path().join("b").exists());
}

/// What guests and hosts do to a muxer.
#[derive(Debug, Clone)]
enum Act {
    Say(Header, usize),
    Connect(Vec<u8>),
    Accept,
    Write(usize),
    Read,
    Close(usize),
    Take(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let op = prop_oneof![
        3 => Just(Some(Op::Data)),
        3 => Just(Some(Op::Request)),
        1 => prop::sample::select(vec![
            None, Some(Op::Response), Some(Op::Reset), Some(Op::Shutdown),
            Some(Op::CreditUpdate), Some(Op::CreditRequest),
        ]),
    ];
    let number = prop_oneof![Just(0), Just(u32::MAX), 0..0x2_0000_u32, any::<u32>()];
    let said = (
        op,
        0_u32..4,
        number.clone(),
        number.clone(),
        number,
        0_u32..4,
        0..70_000_usize,
    );
    prop_oneof![
        6 => said.prop_map(|(op, source_port, bytes, buffer, forwarded, flags, has)| {
            let header = Header { op, source_port, bytes, buffer, forwarded, flags, ..packet(Op::Data, 0) };
            Act::Say(header, has)
        }),
        1 => prop_oneof![
            Just(b"CONNECT 1\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..50),
        ].prop_map(Act::Connect),
        2 => Just(Act::Accept),
        2 => (1..100_000_usize).prop_map(Act::Write),
        1 => Just(Act::Read),
        1 => (0..4_usize).prop_map(Act::Close),
        4 => (0..70_000_usize).prop_map(Act::Take),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_guest_and_no_host_make_it_grow(acts in prop::collection::vec(act(), 1..80)) {
        let mut host = Host::new();
        let listener = host.listen(HOST_PORT);
        let mut streams: Vec<UnixStream> = Vec::new();
        let mut credit_fields_are_ours = true;
        for act in acts {
            match act {
                Act::Say(header, has) if host.muxer.has_room() => {
                    host.say(header, &vec![1; has]);
                }
                Act::Say(..) => {}
                Act::Connect(line) => {
                    if let Ok(mut stream) = UnixStream::connect(host.path("")) {
                        stream.set_nonblocking(true).unwrap();
                        stream.write_all(&line).unwrap();
                        streams.push(stream);
                    }
                }
                Act::Accept => {
                    if let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(true).unwrap();
                        streams.push(stream);
                    }
                }
                Act::Write(bytes) => {
                    for stream in &mut streams {
                        // Whatever becomes of it.
                        drop(stream.write(&vec![2; bytes]));
                    }
                }
                Act::Read => {
                    for stream in &mut streams {
                        drop(stream.read(&mut vec![0; 1 << 16]));
                    }
                }
                Act::Close(index) => {
                    if index < streams.len() {
                        streams.remove(index);
                    }
                }
                Act::Take(room) => {
                    host.muxer.poll();
                    if let Some((header, data)) = host.muxer.next(room) {
                        let header = Header::parse(&header);
                        prop_assert!(data.len() <= room);
                        prop_assert_eq!(header.bytes as usize, data.len());
                        credit_fields_are_ours &=
                            header.op == Some(Op::Reset) || header.buffer == BUFFER_BYTES;
                    }
                }
            }
            prop_assert!(host.muxer.connections() <= MAX_CONNECTIONS);
        }
        prop_assert!(credit_fields_are_ours);
        // All of it ends: packets run out when nobody does anything more.
        let mut packets = 0;
        while host.next().is_some() {
            packets += 1;
            prop_assert!(packets < 10_000);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_driver_can_at_most_have_it_reset(
        rounds in prop::collection::vec(
            (
                0..3_usize,
                prop::collection::vec(crate::hostile_tests::descriptor(), 1..8),
                prop::collection::vec(0_u16..9, 8),
                0_u16..10,
                prop::collection::vec(any::<u8>(), HEADER as usize),
                any::<bool>(),
            ),
            1..20,
        ),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut bench = device(&folder);
        let listener = UnixListener::bind(folder.path().join("vsock_52")).unwrap();
        for (queue, descriptors, heads, index, header, is_known) in rounds {
            let memory = bench.driver.memory.clone();
            let base = 0x4000 * queue as u64;
            put_descriptors(&memory, GuestAddress(base), &descriptors);
            // Where a chain that is right would have its header.
            let header = if is_known {
                packet(Op::Request, 0).to_bytes().to_vec()
            } else {
                header
            };
            if let Some(first) = descriptors.first() {
                // It may lie outside of memory.
                drop(memory.write_slice(&header, GuestAddress(first.address)));
            }
            for (place, head) in (base + 0x2004..).step_by(2).zip(heads) {
                memory.write_obj(head, GuestAddress(place)).unwrap();
            }
            memory.write_obj(index, GuestAddress(base + 0x2002)).unwrap();
            for queue in 0..4 {
                // The number of calls is the driver's; each is bounded.
                let _again = bench.window.notify(queue) == Progress::More;
            }
            let _again = bench.window.host_ready() == Progress::More;
        }
        // As new: the guest reaches the host.
        drop(listener);
        std::fs::remove_file(folder.path().join("vsock_52")).unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock_52")).unwrap();
        bench.start();
        transmit(&mut bench, packet(Op::Request, 0), &[]);
        listener.set_nonblocking(true).unwrap();
        prop_assert!(listener.accept().is_ok());
    }
}
