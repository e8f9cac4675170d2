//! The forwarder that answers instances' DNS queries.
//!
//! It serves sockets that the launcher opened inside the namespaces, or that
//! the monitors of virtual machines connect to, so that an instance without
//! egress has names, too. Names of the project's own
//! services come from a callback; the rest goes to the configured resolvers,
//! and only for instances with egress. Each instance has its rate and its
//! number of queries at a time; there is nothing to wait in.

mod bucket;
mod message;
#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skiff_base::{Acceptor, ByteStream, Clock, Listener, Tasks};
use skiff_types::ProjectId;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use bucket::Bucket;
use message::{Plan, QUERY_MAX, Question};
pub use upstream::upstreams_of;

/// UDP queries of one instance at a time.
const INSTANCE_QUERIES_MAX: usize = 64;
/// TCP connections of one instance at a time.
const INSTANCE_CONNECTIONS_MAX: usize = 8;
/// Queries at upstream resolvers at a time, of all instances.
const UPSTREAM_QUERIES_MAX: usize = 1024;
/// Queries an instance may make at once, and in each second.
const BURST: u32 = 200;
const PER_SECOND: u32 = 100;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// After an error of a socket, which the next call may meet again.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Where a project's service is found.
pub type Lookup = Arc<dyn Fn(&ProjectId, &str) -> Option<Ipv4Addr> + Send + Sync>;

/// Whose queries come from a pair of sockets.
#[derive(Debug, Clone)]
pub struct DnsClient {
    /// Whose services it may know.
    pub project: ProjectId,
    /// Whether it may ask for other names.
    pub egress: bool,
}

/// Where an instance's queries arrive.
#[derive(Debug)]
pub struct DnsSockets {
    /// Those that it sends as datagrams.
    pub datagrams: DnsDatagrams,
    /// Those over TCP.
    pub streams: Listener,
}

/// Where an instance's datagrams arrive.
#[derive(Debug)]
pub enum DnsDatagrams {
    /// As what they are, at a non-blocking socket.
    Socket(std::net::UdpSocket),
    /// Each on a connection of its own, behind its length as over TCP.
    Carried(Listener),
}

/// What was done, for metrics.
#[derive(Debug, Default)]
pub struct DnsCounts {
    /// Answered from here.
    pub answered: AtomicU64,
    /// Answered by an upstream resolver.
    pub forwarded: AtomicU64,
    /// No upstream resolver helped.
    pub failed: AtomicU64,
    /// Over a limit, or no query at all.
    pub dropped: AtomicU64,
}

/// Answers the DNS queries of a worker's instances.
#[derive(Clone)]
pub struct DnsForwarder {
    shared: Arc<Shared>,
}

struct Shared {
    lookup: Lookup,
    upstreams: Vec<SocketAddr>,
    clock: Arc<dyn Clock>,
    upstream_queries: Semaphore,
    counts: DnsCounts,
}

impl fmt::Debug for DnsForwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsForwarder")
            .field("upstreams", &self.shared.upstreams)
            .finish_non_exhaustive()
    }
}

/// Serves one instance until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the serving"]
pub struct DnsServing {
    _stop: oneshot::Sender<()>,
}

impl DnsForwarder {
    /// Serves nobody yet. Of the upstream resolvers the first three are asked.
    #[must_use]
    pub fn new(lookup: Lookup, upstreams: Vec<SocketAddr>, clock: Arc<dyn Clock>) -> Self {
        Self {
            shared: Arc::new(Shared {
                lookup,
                upstreams,
                clock,
                upstream_queries: Semaphore::new(UPSTREAM_QUERIES_MAX),
                counts: DnsCounts::default(),
            }),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> &DnsCounts {
        &self.shared.counts
    }

    /// Serves an instance.
    ///
    /// # Errors
    /// When the runtime cannot take the sockets.
    pub fn serve(
        &self,
        tasks: &Tasks,
        client: DnsClient,
        sockets: DnsSockets,
    ) -> io::Result<DnsServing> {
        let datagrams = match sockets.datagrams {
            DnsDatagrams::Socket(socket) => Datagrams::Socket(UdpSocket::from_std(socket)?),
            DnsDatagrams::Carried(listener) => Datagrams::Carried(listener.into_acceptor()?),
        };
        let streams = sockets.streams.into_acceptor()?;
        let (stop, stopped) = oneshot::channel();
        let bucket = Bucket::new(BURST, PER_SECOND, self.shared.clock.now());
        let instance = Arc::new(Instance {
            shared: self.shared.clone(),
            client,
            bucket: Mutex::new(bucket),
            datagrams,
        });
        tasks.spawn("dns", serve(instance, streams, stopped));
        Ok(DnsServing { _stop: stop })
    }
}

struct Instance {
    shared: Arc<Shared>,
    client: DnsClient,
    bucket: Mutex<Bucket>,
    datagrams: Datagrams,
}

enum Datagrams {
    Socket(UdpSocket),
    Carried(Acceptor),
}

/// What came as a datagram.
enum Arrived {
    /// This long, in the buffer.
    Bare(usize, SocketAddr),
    Carried(ByteStream),
}

impl Datagrams {
    async fn next(&self, buffer: &mut [u8]) -> io::Result<Arrived> {
        match self {
            Self::Socket(socket) => {
                let (len, from) = socket.recv_from(buffer).await?;
                Ok(Arrived::Bare(len, from))
            }
            Self::Carried(acceptor) => Ok(Arrived::Carried(acceptor.accept().await?.0)),
        }
    }
}

async fn serve(instance: Arc<Instance>, streams: Acceptor, mut stopped: oneshot::Receiver<()>) {
    // Dropping the sets at the end cuts off what is under way.
    let mut queries = JoinSet::new();
    let mut connections = JoinSet::new();
    let mut buffer = vec![0; QUERY_MAX + 1];
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            Some(_) = queries.join_next() => {}
            Some(_) = connections.join_next() => {}
            arrived = instance.datagrams.next(&mut buffer), if queries.len() < INSTANCE_QUERIES_MAX => {
                match arrived {
                    Ok(Arrived::Bare(len, from)) => {
                        if let Some(forward) = instance.first_look(&buffer[..len], from).await {
                            queries.spawn(instance.clone().forward_udp(forward, from));
                        }
                    }
                    Ok(Arrived::Carried(stream)) => {
                        queries.spawn(instance.clone().serve_stream(stream, true));
                    }
                    Err(error) => pause("receive a query", &error).await,
                }
            }
            accepted = streams.accept(), if connections.len() < INSTANCE_CONNECTIONS_MAX => {
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(instance.clone().serve_stream(stream, false));
                    }
                    Err(error) => pause("accept a connection", &error).await,
                }
            }
        }
    }
}

async fn pause(step: &'static str, error: &io::Error) {
    tracing::debug!(%error, "cannot {step} of an instance's DNS");
    sleep(ERROR_PAUSE).await;
}

impl Instance {
    /// Decides, within the instance's rate.
    fn plan(&self, bytes: &[u8]) -> Plan {
        let now = self.shared.clock.now();
        let allowed = self
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(now);
        if !allowed {
            return Plan::Ignore;
        }
        let lookup = |name: &str| (self.shared.lookup)(&self.client.project, name);
        message::plan(bytes, self.client.egress, lookup)
    }

    /// Answers a datagram if that takes no waiting.
    async fn first_look(&self, bytes: &[u8], from: SocketAddr) -> Option<Question> {
        match self.plan(bytes) {
            Plan::Forward(question) => return Some(question),
            Plan::Answer(answer) => {
                count(&self.shared.counts.answered);
                self.send(&answer, from).await;
            }
            Plan::Ignore => count(&self.shared.counts.dropped),
        }
        None
    }

    async fn forward_udp(self: Arc<Self>, question: Question, from: SocketAddr) {
        if let Some(answer) = self.forward(&question, true).await {
            self.send(&answer, from).await;
        }
    }

    async fn send(&self, answer: &[u8], to: SocketAddr) {
        let Datagrams::Socket(socket) = &self.datagrams else {
            return;
        };
        if let Err(error) = socket.send_to(answer, to).await {
            tracing::debug!(%error, "an instance's DNS answer was lost");
        }
    }

    async fn forward(&self, question: &Question, udp: bool) -> Option<Vec<u8>> {
        let counts = &self.shared.counts;
        let Ok(_permit) = self.shared.upstream_queries.try_acquire() else {
            count(&counts.dropped);
            return question.failure();
        };
        let answer = upstream::ask(&self.shared.upstreams, question, udp).await;
        match answer.and_then(|answer| question.relay(answer, udp)) {
            Some(answer) => {
                count(&counts.forwarded);
                Some(answer)
            }
            None => {
                count(&counts.failed);
                question.failure()
            }
        }
    }

    /// Answers queries one after the other until the client goes or idles; if
    /// they were datagrams, as datagrams are answered.
    async fn serve_stream(self: Arc<Self>, mut stream: ByteStream, udp: bool) {
        while let Ok(Ok(bytes)) =
            timeout(TCP_IDLE, upstream::read_frame(&mut stream, QUERY_MAX)).await
        {
            let answer = match self.plan(&bytes) {
                Plan::Answer(answer) => {
                    count(&self.shared.counts.answered);
                    Some(answer)
                }
                Plan::Forward(question) => self.forward(&question, udp).await,
                Plan::Ignore => {
                    count(&self.shared.counts.dropped);
                    None
                }
            };
            let Some(answer) = answer else { return };
            let written = timeout(TCP_IDLE, upstream::write_frame(&mut stream, &answer)).await;
            if !matches!(written, Ok(Ok(()))) {
                return;
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
