use std::net::{TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::unix::net::UnixListener;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use skiff_base::ManualClock;
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::*;
use crate::SERVICE_ADDRESS;

const PATIENCE: Duration = Duration::from_secs(20);
const DATAGRAM_MAX: usize = 4096;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(name).unwrap();
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().unwrap()
}

/// One port for UDP and TCP. A free one of the first may be another test's of
/// the second: then the next is tried.
fn bind_both() -> (StdUdpSocket, StdTcpListener) {
    for _ in 0..100 {
        let udp = StdUdpSocket::bind(any()).unwrap();
        if let Ok(tcp) = StdTcpListener::bind(udp.local_addr().unwrap()) {
            udp.set_nonblocking(true).unwrap();
            tcp.set_nonblocking(true).unwrap();
            return (udp, tcp);
        }
    }
    panic!("no port is free for both");
}

/// A resolver: every name has so many addresses; before each answer it sends
/// one with a wrong id, as a forger would.
async fn resolver(records: usize) -> (SocketAddr, Tasks) {
    let (udp, tcp) = bind_both();
    let address = udp.local_addr().unwrap();
    let udp = UdpSocket::from_std(udp).unwrap();
    let tcp = TcpListener::from_std(tcp).unwrap();
    let tasks = Tasks::new();
    tasks.spawn("udp", async move {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
            let mut forged = response(&buffer[..len], 1);
            forged[0] ^= 1;
            udp.send_to(&forged, from).await.unwrap();
            let answer = response(&buffer[..len], records);
            udp.send_to(&answer, from).await.unwrap();
        }
    });
    tasks.spawn("tcp", async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let bytes = upstream::read_frame(&mut stream, DATAGRAM_MAX)
                .await
                .unwrap();
            let answer = response(&bytes, records);
            upstream::write_frame(&mut stream, &answer).await.unwrap();
        }
    });
    (address, tasks)
}

fn response(query: &[u8], records: usize) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    let name = query.queries[0].name.clone();
    message.add_queries(query.queries);
    for _ in 0..records {
        message.add_answer(Record::from_rdata(
            name.clone(),
            60,
            RData::A(A::from(ADDRESS)),
        ));
    }
    message.to_vec().unwrap()
}

struct Served {
    forwarder: DnsForwarder,
    client: UdpSocket,
    server: SocketAddr,
    tasks: Tasks,
    serving: DnsServing,
    clock: ManualClock,
}

async fn serve_client(egress: bool, upstreams: Vec<SocketAddr>) -> Served {
    let (udp, tcp) = bind_both();
    let server = udp.local_addr().unwrap();
    let clock = ManualClock::default();
    let lookup: Lookup = Arc::new(|project, name| {
        (*project == ProjectId::default_project() && name == "hello").then_some(SERVICE_ADDRESS)
    });
    let forwarder = DnsForwarder::new(lookup, upstreams, Arc::new(clock.clone()));
    let tasks = Tasks::new();
    let client = DnsClient {
        project: ProjectId::default_project(),
        egress,
    };
    let sockets = DnsSockets {
        datagrams: DnsDatagrams::Socket(udp),
        streams: tcp.into(),
    };
    let serving = forwarder.serve(&tasks, client, sockets).unwrap();
    Served {
        forwarder,
        client: UdpSocket::bind(any()).await.unwrap(),
        server,
        tasks,
        serving,
        clock,
    }
}

impl Served {
    async fn ask(&self, name: &str) -> Message {
        self.client
            .send_to(&query(7, name), self.server)
            .await
            .unwrap();
        let mut buffer = vec![0; DATAGRAM_MAX];
        let received = timeout(PATIENCE, self.client.recv(&mut buffer)).await;
        let len = received.unwrap().unwrap();
        let message = Message::from_vec(&buffer[..len]).unwrap();
        assert_eq!(message.metadata.id, 7);
        message
    }
}

fn addresses(message: &Message) -> Vec<std::net::IpAddr> {
    let answers = message.answers.iter();
    answers.filter_map(|record| record.data.ip_addr()).collect()
}

#[tokio::test]
async fn internal_names_come_from_the_callback_without_egress() {
    let served = serve_client(false, Vec::new()).await;
    let answer = served.ask("hello.skiff.internal.").await;
    assert_eq!(addresses(&answer), [SERVICE_ADDRESS]);
    let answer = served.ask("example.com.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn other_names_come_from_the_resolver_and_forgeries_do_not() {
    let (resolver, _tasks) = resolver(2).await;
    let served = serve_client(true, vec![resolver]).await;
    let answer = served.ask("example.com.").await;
    assert_eq!(addresses(&answer), [ADDRESS, ADDRESS]);
    assert_eq!(
        served.forwarder.counts().forwarded.load(Ordering::Relaxed),
        1
    );
}

#[tokio::test]
async fn a_resolver_that_fails_is_followed_by_the_next() {
    // It hears its peer alone: whatever others send is refused.
    let deaf = UdpSocket::bind(any()).await.unwrap();
    deaf.connect((Ipv4Addr::LOCALHOST, 9)).await.unwrap();
    let closed = deaf.local_addr().unwrap();
    let (resolver, _tasks) = resolver(1).await;
    let served = serve_client(true, vec![closed, resolver]).await;
    assert_eq!(addresses(&served.ask("example.com.").await), [ADDRESS]);
    let served = serve_client(true, vec![closed]).await;
    let answer = served.ask("example.com.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_long_answer_is_had_over_tcp() {
    let (resolver, _tasks) = resolver(100).await;
    let served = serve_client(true, vec![resolver]).await;
    let answer = served.ask("example.com.").await;
    assert!(answer.metadata.truncation);
    let mut stream = TcpStream::connect(served.server).await.unwrap();
    for id in [8, 9] {
        upstream::write_frame(&mut stream, &query(id, "example.com."))
            .await
            .unwrap();
        let read = timeout(PATIENCE, upstream::read_frame(&mut stream, DATAGRAM_MAX)).await;
        let answer = Message::from_vec(&read.unwrap().unwrap()).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (id, 100));
    }
}

/// Served as a virtual machine is.
struct Carried {
    folder: tempfile::TempDir,
    _serving: DnsServing,
    _tasks: Tasks,
}

impl Carried {
    fn serve(egress: bool, upstreams: Vec<SocketAddr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bind = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let sockets = DnsSockets {
            datagrams: DnsDatagrams::Carried(bind("datagrams").into()),
            streams: bind("streams").into(),
        };
        let lookup: Lookup = Arc::new(|_, name| (name == "hello").then_some(SERVICE_ADDRESS));
        let forwarder = DnsForwarder::new(lookup, upstreams, Arc::new(ManualClock::default()));
        let tasks = Tasks::new();
        let client = DnsClient {
            project: ProjectId::default_project(),
            egress,
        };
        Self {
            _serving: forwarder.serve(&tasks, client, sockets).unwrap(),
            _tasks: tasks,
            folder,
        }
    }

    async fn connect(&self, door: &str) -> UnixStream {
        UnixStream::connect(self.folder.path().join(door))
            .await
            .unwrap()
    }

    async fn ask(&self, door: &str, name: &str) -> Message {
        let mut stream = self.connect(door).await;
        upstream::write_frame(&mut stream, &query(7, name))
            .await
            .unwrap();
        let read = timeout(PATIENCE, upstream::read_frame(&mut stream, DATAGRAM_MAX)).await;
        Message::from_vec(&read.unwrap().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn a_carried_datagram_is_answered_as_one() {
    let (resolver, _tasks) = resolver(100).await;
    let served = Carried::serve(true, vec![resolver]);
    for door in ["datagrams", "streams"] {
        let answer = served.ask(door, "hello.skiff.internal.").await;
        assert_eq!(addresses(&answer), [SERVICE_ADDRESS]);
    }
    let answer = served.ask("datagrams", "example.com.").await;
    assert!(answer.metadata.truncation);
    let answer = served.ask("streams", "example.com.").await;
    assert_eq!(answer.answers.len(), 100);
    let closed = Carried::serve(false, vec![resolver]);
    let answer = closed.ask("datagrams", "example.com.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn connections_that_say_nothing_leave_the_neighbours_room() {
    let served = Carried::serve(false, Vec::new());
    let mut silent = Vec::new();
    for _ in 0..INSTANCE_QUERIES_MAX {
        silent.push(served.connect("datagrams").await);
    }
    // One more waits until there is room.
    let mut waits = served.connect("datagrams").await;
    let asked = query(7, "hello.skiff.internal.");
    upstream::write_frame(&mut waits, &asked).await.unwrap();
    let answer = served.ask("streams", "hello.skiff.internal.").await;
    assert_eq!(addresses(&answer), [SERVICE_ADDRESS]);
    let neighbour = Carried::serve(false, Vec::new());
    neighbour.ask("datagrams", "hello.skiff.internal.").await;
    drop(silent);
    let read = timeout(PATIENCE, upstream::read_frame(&mut waits, DATAGRAM_MAX)).await;
    let answer = Message::from_vec(&read.unwrap().unwrap()).unwrap();
    assert_eq!(addresses(&answer), [SERVICE_ADDRESS]);
}

#[tokio::test]
async fn over_its_rate_an_instance_hears_nothing_until_time_passes() {
    let served = serve_client(false, Vec::new()).await;
    for _ in 0..BURST {
        served.ask("hello.skiff.internal.").await;
    }
    let ignored = query(7, "hello.skiff.internal.");
    served
        .client
        .send_to(&ignored, served.server)
        .await
        .unwrap();
    let counts = served.forwarder.counts();
    let dropped = async {
        while counts.dropped.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, dropped).await.unwrap();
    served.clock.advance(Duration::from_secs(1));
    served.ask("hello.skiff.internal.").await;
    assert_eq!(
        counts.answered.load(Ordering::Relaxed),
        u64::from(BURST) + 1
    );
}

#[tokio::test]
async fn dropping_the_serving_ends_it() {
    let served = serve_client(true, Vec::new()).await;
    assert_eq!(served.tasks.len(), 1);
    drop(served.serving);
    served.tasks.drain(PATIENCE).await.unwrap();
    StdUdpSocket::bind(served.server).unwrap();
}
