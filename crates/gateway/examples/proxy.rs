//! A gateway in front of one fixed upstream, for benches: `proxy LISTEN
//! UPSTREAM [ACCESS_LOG]`. Everything is on: records (into a
//! buffer), access log, header rewriting, slots.

use std::error::Error;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, SystemClock};
use skiff_gateway::{
    ColdPhases, Demand, Gateway, GatewayConfig, Records, RequestRecord, RevisionRoute,
    ServiceRoute, Upstream, WakeError,
};
use skiff_types::{InstanceId, IsolationClass, ProjectId, Protocol, RevisionId};

#[derive(Debug)]
struct Fixed(SocketAddr);

impl Upstream for Fixed {
    fn instance(&self) -> InstanceId {
        InstanceId::from_parts(1, 1)
    }
    fn class(&self) -> IsolationClass {
        IsolationClass::Null
    }
    fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>> {
        async {
            let stream = tokio::net::TcpStream::connect(self.0).await?;
            Ok(ByteStream::Tcp(stream))
        }
        .boxed()
    }
}

#[derive(Debug)]
struct Nobody;

impl Demand for Nobody {
    fn queued(&self, _: &RevisionId, _: u32, _: u32) {}
    fn busy(&self, _: InstanceId) {}
    fn idle(&self, _: InstanceId) {}
    fn dead(&self, _: InstanceId, _: &str) {}
    fn wake(&self, _: InstanceId) -> BoxFuture<'_, Result<(), WakeError>> {
        async { Ok(()) }.boxed()
    }
}

/// A stand-in for the ledger: the same bytes into a buffer that is emptied
/// when it is full.
#[derive(Debug)]
struct Buffered(Mutex<Vec<u8>>);

impl Records for Buffered {
    fn request(&self, record: &RequestRecord) {
        let Ok(mut buffer) = self.0.lock() else {
            return;
        };
        if buffer.len() > 1 << 20 {
            buffer.clear();
        }
        for field in [
            record.start_unix_ms,
            record.duration_us,
            record.bytes_in,
            record.bytes_out,
            record.status.into(),
        ] {
            buffer.extend_from_slice(&field.to_le_bytes());
        }
    }
    fn cold_start(&self, _: &RevisionId, _: InstanceId, _: IsolationClass, _: &ColdPhases) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let usage = "proxy LISTEN UPSTREAM [ACCESS_LOG]";
    let listen: SocketAddr = words.next().ok_or(usage)?.parse()?;
    let upstream: SocketAddr = words.next().ok_or(usage)?.parse()?;
    let access_log = words.next().map(std::fs::File::create).transpose()?;
    let config = GatewayConfig {
        access_log,
        ..GatewayConfig::default()
    };
    let records = Arc::new(Buffered(Mutex::default()));
    let gateway = Gateway::new(config, Arc::new(Nobody), records, Arc::new(SystemClock));
    let revision = RevisionId {
        project: ProjectId::default_project(),
        service: "bench".parse()?,
        number: 1,
    };
    gateway.put_revision(RevisionRoute {
        id: revision.clone(),
        protocol: Protocol::Http1,
        concurrency: 1000,
        timeout_ms: 300_000,
        outlives_client: false,
        queue_requests: 1000,
        queue_ms: 30_000,
        liveness_period_ms: 0,
        liveness_path: None,
    });
    gateway.put_service(&ServiceRoute {
        project: revision.project.clone(),
        service: revision.service.clone(),
        hosts: vec![listen.ip().to_string(), "bench.skiff.localhost".to_owned()],
        traffic: vec![(revision.clone(), 100)],
        tags: Vec::new(),
    })?;
    gateway.add_instance(&revision, Arc::new(Fixed(upstream)), None)?;
    let threads = std::env::var("THREADS").map_or(Ok(1), |threads| threads.parse())?;
    let handle = gateway.serve(vec![TcpListener::bind(listen)?], threads)?;
    writeln!(io::stdout(), "listening on {:?}", handle.addresses())?;
    loop {
        std::thread::park();
    }
}
