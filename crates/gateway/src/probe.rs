//! Liveness: an instance that fails three probes in a row is dead.

use std::sync::Arc;
use std::time::Duration;

use skiff_base::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::revision::{Instance, Revision};
use crate::shared::Shared;

/// Failures in a row that make an instance dead.
const FAILURES_MAX: u32 = 3;
/// How long one probe may take, unless the period is shorter.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of an answer's first line that is looked at: `HTTP/1.1 200`.
const STATUS_LINE_BYTES: usize = 12;

/// Probes until the instance is out of rotation.
pub(crate) async fn run(shared: Arc<Shared>, revision: Arc<Revision>, instance: Arc<Instance>) {
    let period = Duration::from_millis(revision.route.liveness_period_ms);
    let path = revision.route.liveness_path.clone();
    let mut failures = 0;
    loop {
        tokio::time::sleep(period).await;
        if instance.is_out() {
            return;
        }
        // What is paused cannot answer, and need not.
        if instance.is_paused() {
            continue;
        }
        let probe = probe(&instance, path.as_deref());
        let answered = tokio::time::timeout(period.min(PROBE_TIMEOUT), probe).await;
        // It may have been paused meanwhile.
        if answered.unwrap_or(false) || instance.is_paused() {
            failures = 0;
            continue;
        }
        failures += 1;
        if failures == FAILURES_MAX {
            shared.dead(
                &revision,
                &instance,
                "its liveness probe failed three times",
            );
            return;
        }
    }
}

async fn probe(instance: &Instance, path: Option<&str>) -> bool {
    let stream = match instance.upstream.connect().await {
        Ok(stream) => stream,
        Err(error) => return crate::forward::is_our_own(&error),
    };
    match path {
        None => true,
        Some(path) => get(stream, path).await.unwrap_or(false),
    }
}

async fn get(mut stream: ByteStream, path: &str) -> std::io::Result<bool> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: skiff-probe\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LINE_BYTES];
    stream.read_exact(&mut line).await?;
    Ok(line.starts_with(b"HTTP/1.") && matches!(line[9], b'2' | b'3'))
}
