//! An HTTP endpoint that keeps the records of events that have ended.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use serde_json::Value;

use super::runtime_api::read_request;
use crate::response::find;

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The most that one of its records tells.
    pub tries: usize,
}

type Records = BTreeMap<String, Ended>;

/// One, which ends with this process.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    records: Arc<Mutex<Records>>,
}

impl Sink {
    /// # Errors
    /// When no port can be had.
    pub fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let records: Arc<Mutex<Records>> = Arc::default();
        let kept = Arc::clone(&records);
        std::thread::Builder::new().spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                // What is not acknowledged is sent again.
                std::thread::spawn(move || drop(serve(stream, &kept)));
            }
        })?;
        Ok(Self { address, records })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// By the number that the event says.
    pub fn ended(&self) -> Records {
        locked(&self.records).clone()
    }
}

fn serve(mut stream: TcpStream, records: &Mutex<Records>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    while let Some(length) = read_request(&mut stream, &mut bytes)? {
        let head = find(&bytes, b"\r\n\r\n").context("no head")? + 4;
        let (id, tries) = record(&bytes[head..length])?;
        let mut kept = locked(records);
        let ended = kept.entry(id).or_insert(Ended { tries });
        ended.tries = ended.tries.max(tries);
        drop(kept);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        bytes.drain(..length);
    }
    Ok(())
}

/// Whose event it is, and its tries.
fn record(body: &[u8]) -> anyhow::Result<(String, usize)> {
    let record: Value = serde_json::from_slice(body)?;
    let said = record["requestPayload"]["say"].as_str();
    let id = said.and_then(|said| said.strip_prefix("try "));
    let tries = record["requestContext"]["approximateInvokeCount"].as_u64();
    Ok((
        id.context("an event of others")?.to_owned(),
        usize::try_from(tries.context("no count")?)?,
    ))
}

fn locked(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}
