//! Requests to functions' URLs, from the gateway's doors to what serves them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skiff_base::{ByteStream, Tasks};
use skiff_control::{URL_HOST, URL_PATH, UrlDoor};
use skiff_gateway::{Aside, Connect, Gateway};
use skiff_types::limits::FUNCTION_TIMEOUT_S_RANGE;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// What a connection holds on its way.
const PIPE_BYTES: usize = 64 * 1024;
/// How long a request waits while the server comes up.
const START_WAIT: Duration = Duration::from_secs(30);
/// What an invocation may wait for an instance, beside its own time.
const QUEUE_S: u64 = 300;

/// Connections within this process, served once it is known by whom.
#[derive(Debug)]
struct Within {
    door: watch::Receiver<Option<UrlDoor>>,
    tasks: Tasks,
    /// The gateway's threads have other things to do.
    runtime: Handle,
}

impl Connect for Within {
    fn connect(&self) -> ByteStream {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let mut door = self.door.clone();
        let serving = async move {
            let known = async { door.wait_for(Option::is_some).await.ok()?.clone() };
            if let Ok(Some(door)) = tokio::time::timeout(START_WAIT, known).await {
                door.serve(far);
            }
        };
        let runtime = &self.runtime;
        self.tasks.spawn_on("a function's url", serving, runtime);
        ByteStream::Memory(near)
    }
}

/// Has the gateway take them, from before it serves on; who answers is told
/// later.
pub fn lead(gateway: &Gateway, tasks: &Tasks) -> anyhow::Result<watch::Sender<Option<UrlDoor>>> {
    let (told, door) = watch::channel(None);
    let within = Within {
        door,
        tasks: tasks.clone(),
        runtime: Handle::current(),
    };
    let name = URL_HOST.parse().context("the name of functions' URLs")?;
    gateway.put_aside(Aside {
        name,
        label: URL_HOST,
        path: URL_PATH,
        timeout_ms: (u64::from(FUNCTION_TIMEOUT_S_RANGE.1) + QUEUE_S) * 1000,
        connect: Arc::new(within),
    });
    Ok(told)
}
