use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, Listener, Tasks};
use skiff_sandbox::{ExecRequest, Executed, Listeners, Sandbox, SandboxError};
use skiff_types::{InstanceId, IsolationClass};
use skiff_wire::launcher::{Exit, Stats};

use crate::bridge::{Bridge, Reason, SIGKILL};
use crate::invoke;

/// What a connection of the gateway's holds on its way.
const PIPE_BYTES: usize = 64 * 1024;
/// How long subscribers may take what they are told before it stands.
const TELEMETRY_WAIT: Duration = Duration::from_secs(1);

/// A function's sandbox: connections to it end in this process.
#[derive(Debug)]
pub(crate) struct FunctionSandbox {
    pub inner: Arc<dyn Sandbox>,
    pub bridge: Arc<Bridge>,
    pub freezer: Arc<Freezer>,
    pub tasks: Tasks,
}

/// Freezes an instance, once nothing in it has anything to do.
#[derive(Debug, Default)]
pub(crate) struct Freezer {
    wanted: AtomicBool,
    steering: tokio::sync::Mutex<()>,
}

impl Freezer {
    async fn freeze(&self, bridge: &Bridge) -> Result<(), SandboxError> {
        let _alone = self.steering.lock().await;
        // One that has ended has extensions at most, which come to their ends.
        if !self.wanted.load(Ordering::SeqCst) || bridge.has_ended() {
            return Ok(());
        }
        bridge.journal.telemetry.stand(true);
        let paused = bridge.sandbox.pause().await;
        bridge.journal.telemetry.stand(paused.is_ok());
        paused
    }

    async fn thaw(&self, bridge: &Bridge) -> Result<(), SandboxError> {
        self.wanted.store(false, Ordering::SeqCst);
        let _alone = self.steering.lock().await;
        bridge.sandbox.resume().await?;
        bridge.journal.telemetry.stand(false);
        Ok(())
    }
}

impl FunctionSandbox {
    fn open(&self) -> io::Result<ByteStream> {
        self.bridge
            .takes_events()
            .map_err(|why| io::Error::new(io::ErrorKind::ConnectionRefused, why))?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let serving = invoke::serve(theirs, self.bridge.clone(), self.tasks.clone());
        self.tasks.spawn("events", serving);
        Ok(ByteStream::Memory(ours))
    }

    /// What works beyond its answer is not frozen in it: an extension, or an
    /// invocation whose caller has hung up.
    async fn freeze(&self) -> Result<(), SandboxError> {
        self.freezer.wanted.store(true, Ordering::SeqCst);
        if self.bridge.is_settled() && self.bridge.journal.telemetry.is_idle() {
            return self.freezer.freeze(&self.bridge).await;
        }
        let (bridge, freezer) = (self.bridge.clone(), self.freezer.clone());
        self.tasks.spawn("freeze", async move {
            bridge.settled().await;
            bridge.journal.telemetry.hurry(TELEMETRY_WAIT).await;
            if let Err(error) = freezer.freeze(&bridge).await {
                tracing::debug!(instance = %bridge.sandbox.id(), %error, "not frozen");
            }
        });
        Ok(())
    }

    /// A runtime is asked nothing at its end, as AWS has it; extensions have
    /// some time.
    async fn end(&self, signal: i32) -> Result<(), SandboxError> {
        self.bridge.give_up();
        if signal != SIGKILL && self.bridge.has_extensions() {
            self.bridge.shut_down(Reason::Spindown).await;
        }
        self.inner.signal(SIGKILL).await
    }
}

impl Sandbox for FunctionSandbox {
    fn id(&self) -> InstanceId {
        self.inner.id()
    }

    fn class(&self) -> IsolationClass {
        self.inner.class()
    }

    fn connect(&self, _port: u16) -> BoxFuture<'_, io::Result<ByteStream>> {
        let opened = self.open();
        Box::pin(async { opened })
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.end(signal))
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.freeze())
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        Box::pin(self.freezer.thaw(&self.bridge))
    }

    fn stats(&self) -> BoxFuture<'_, Result<Stats, SandboxError>> {
        self.inner.stats()
    }

    /// One whose runtime did not come up stays until the invocation that it
    /// was started for knows.
    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            let exit = self.inner.exited().await;
            self.bridge.has_exited(exit);
            self.bridge.end_is_told().await;
            exit
        })
    }

    fn listeners(&self) -> BoxFuture<'_, Result<Option<Listeners>, SandboxError>> {
        self.inner.listeners()
    }

    fn runtime_listener(&self) -> BoxFuture<'_, Result<Option<Listener>, SandboxError>> {
        self.inner.runtime_listener()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Executed, SandboxError>> {
        self.inner.exec(request)
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), SandboxError>> {
        self.freezer.wanted.store(false, Ordering::SeqCst);
        self.bridge.give_up();
        self.inner.destroy()
    }
}
