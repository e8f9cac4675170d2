//! The life of one instance, run by one task.
//!
//! ```text
//!             start ──▶ layers ──▶ record ──▶ sandbox ──▶ probe ──▶ READY ◀──▶ PAUSED
//!                         │                      │          │         │           │
//!             failed or told to stop ────────────┴──────────┤         │ told to stop
//!                         │                                 │         ▼           │
//!  adopt ──▶ probe ───────┼─────────────────────────────────┤     stop signal ◀───┘
//!                         │                                 │         │ grace over
//!                         ▼                                 ▼         ▼
//!                     gone, no                    SIGKILL, its exit waited for ◀── ended by itself
//!                     sandbox made                          │
//!                                                           ▼
//!                        last output read, sandbox destroyed, end recorded, out of the table
//! ```
//!
//! A worker that leaves its instances running ends these tasks where they
//! wait in READY or PAUSED; the next server adopts the sandboxes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use skiff_base::{Backoff, chain};
use skiff_sandbox::{Backend, Created, Sandbox, SandboxError};
use skiff_types::{InstanceId, IsolationClass, IsolationRequest, Launch, Probe, RevisionId};
use skiff_wire::launcher::{Exit, ProcessSpec};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::error::{EndReason, StartError, StartFailure};
use crate::instance::{Instance, InstanceState, StopOrder};
use crate::logs::{OutputTap, Reader, read_output};
use crate::probe::until_ready;
use crate::records::{InstanceEnd, InstanceStart};
use crate::spec::{create_spec, layer_files};
use crate::worker::Inner;

const SIGKILL: i32 = 9;
/// Reading what is left in the pipes of an instance that has ended.
const LAST_OUTPUT_DEADLINE: Duration = Duration::from_secs(5);
/// One try to destroy a sandbox, or to steer it on its way out.
const STEER_DEADLINE: Duration = Duration::from_secs(60);
/// How long the runtime of an adopted function may take to ask again: most end
/// instead, and one that works on has lost its caller.
const FUNCTION_ADOPT_DEADLINE: Duration = Duration::from_secs(3);
/// Tries to destroy a sandbox; what is left then is swept by the launcher's
/// next server.
const DESTROY_TRIES: u32 = 5;

/// How long each phase of a start took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Making the layers ready, microseconds.
    pub image_us: u64,
    /// Making the sandbox, to the application's execve, microseconds.
    pub sandbox_us: u64,
    /// From execve to the probe's first success, microseconds.
    pub app_us: u64,
    /// The steps within the sandbox's making, microseconds.
    pub steps_us: Vec<(String, u32)>,
}

/// An instance that answers its probe.
#[derive(Clone, Debug)]
pub struct Started {
    /// Which.
    pub instance: InstanceId,
    /// How it is reached.
    pub sandbox: Arc<dyn Sandbox>,
    /// Where it listens.
    pub port: u16,
    /// What isolates it.
    pub class: IsolationClass,
    /// Why it is this class.
    pub class_reason: String,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// How long it took.
    pub phases: Phases,
}

/// An instance that served has ended by itself.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub instance: InstanceId,
    /// Of what.
    pub revision: RevisionId,
    /// How its first process ended.
    pub exit: Exit,
    /// What that means.
    pub reason: EndReason,
}

/// The task's own view of an instance.
#[derive(Debug)]
pub struct Life {
    pub inner: Arc<Inner>,
    pub instance: Arc<Instance>,
    pub orders: watch::Receiver<Option<StopOrder>>,
    /// How long its output is read, and the end of the task that reads.
    pub output: Option<(watch::Sender<Reader>, oneshot::Receiver<()>)>,
    /// Nothing in it runs, so that it does not even die.
    frozen: bool,
}

/// What ended a wait.
enum Wait<T> {
    Done(T),
    Ordered(StopOrder),
}

impl Life {
    pub fn new(inner: Arc<Inner>, instance: Arc<Instance>) -> Self {
        let orders = instance.order.subscribe();
        Self {
            inner,
            instance,
            orders,
            output: None,
            frozen: false,
        }
    }

    /// Starts the instance, answers, and stays until it has ended.
    pub async fn start(
        mut self,
        backend: Arc<dyn Backend>,
        launch: Arc<Launch>,
        reply: oneshot::Sender<Result<Started, StartError>>,
    ) {
        match self.make_ready(&*backend, &launch).await {
            Ok(started) => {
                // The launch holds secrets, and is not needed any more.
                drop(launch);
                if reply.send(Ok(started)).is_err() {
                    self.instance.order_stop(StopOrder {
                        grace: Duration::ZERO,
                        reason: "whoever asked for it has gone away".to_owned(),
                    });
                }
                self.serve().await;
            }
            Err(failure) => {
                let error = self.fail(failure).await;
                // Who has gone away does not need it; the log has it.
                let _gone = reply.send(Err(error));
            }
        }
    }

    /// Watches over an instance that a former server has started. Answers
    /// whether it serves, and stays until it has ended.
    pub async fn adopt(mut self, found: Created, reply: oneshot::Sender<bool>) {
        let probe = self.instance.label.probe.clone();
        let mut paused = found.paused;
        let sandbox = self.hold(found, None);
        if paused && self.instance.label.function.is_some() {
            // Its call for the next event ended with the former server: whether
            // it calls again is what makes it ready.
            steer("thaw", &self.instance, sandbox.resume()).await;
            (paused, self.frozen) = (false, false);
        }
        let patience = match self.instance.label.function {
            Some(_) => FUNCTION_ADOPT_DEADLINE.min(self.inner.config.adopt_deadline),
            None => self.inner.config.adopt_deadline,
        };
        let seconds = u32::try_from(patience.as_secs());
        let probe = Probe {
            start_timeout_s: seconds.unwrap_or(u32::MAX),
            ..probe
        };
        let answers = if paused {
            self.instance.set_state(InstanceState::Paused);
            Ok(())
        } else {
            self.probe(&probe).await
        };
        match answers {
            Ok(()) => {
                if !paused {
                    self.instance.set_state(InstanceState::Ready);
                }
                self.instance
                    .note("was taken over by a new server".to_owned())
                    .await;
                let _gone = reply.send(true);
                self.serve().await;
            }
            Err(failure) => {
                self.fail(failure).await;
                let _gone = reply.send(false);
            }
        }
    }

    async fn make_ready(
        &mut self,
        backend: &dyn Backend,
        launch: &Launch,
    ) -> Result<Started, StartFailure> {
        let clock = self.inner.clock.clone();
        let begin = clock.now();
        let layers = layer_files(launch);
        self.step("layers", backend.prepare(&layers))
            .await?
            .map_err(StartFailure::Image)?;
        let prepared = clock.now();
        let label = self.instance.label.encode();
        let label = label.map_err(|error| StartFailure::Invalid(error.to_string()))?;
        let nofile = self.inner.config.nofile;
        let spec = create_spec(self.instance.id, launch, layers, nofile, label);
        let made_with = launch.function.as_ref().map(|_| spec.process.clone());
        self.record_start(launch.isolation);
        let created = self
            .step("sandbox", backend.create(spec))
            .await?
            .map_err(StartFailure::Sandbox)?;
        let made = clock.now();
        let steps_us = created.steps_us.clone();
        let sandbox = self.hold(created, made_with);
        let class_reason = self.instance.label.class_reason.clone();
        self.instance
            .note(format!("starts in a {class_reason}"))
            .await;
        self.probe(&launch.probe).await?;
        self.instance.set_state(InstanceState::Ready);
        let us = |from: skiff_base::Monotonic, to: skiff_base::Monotonic| {
            u64::try_from(to.since(from).as_micros()).unwrap_or(u64::MAX)
        };
        Ok(Started {
            instance: self.instance.id,
            sandbox,
            port: self.instance.label.port,
            class: self.instance.class,
            class_reason,
            created_unix_ms: self.instance.label.created_unix_ms,
            phases: Phases {
                image_us: us(begin, prepared),
                sandbox_us: us(prepared, made),
                app_us: us(made, clock.now()),
                steps_us,
            },
        })
    }

    /// One step of Skiff's own, which an order to stop cuts off.
    async fn step<T>(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<Result<T, SandboxError>, StartFailure> {
        let work = timeout(self.inner.config.step_deadline, work);
        match or_order(&mut self.orders, work).await {
            Wait::Done(Ok(done)) => Ok(done),
            Wait::Done(Err(_late)) => Err(StartFailure::TooSlow { what }),
            Wait::Ordered(order) => Err(StartFailure::Stopped(order.reason)),
        }
    }

    /// Takes the sandbox over and begins to read its output. What a function
    /// was made with goes along.
    pub fn hold(&mut self, created: Created, made_with: Option<ProcessSpec>) -> Arc<dyn Sandbox> {
        self.frozen = created.paused;
        let tap = self.tap();
        let held = &self.instance.sandbox;
        let sandbox = held
            .get_or_init(|| self.in_front_of(created.sandbox, tap.clone(), made_with))
            .clone();
        if let Some(watcher) = &self.inner.config.watcher {
            let label = &self.instance.label;
            watcher.there(&label.revision, label.egress, &sandbox);
        }
        if let (Some(output), Some(sink)) = (created.output, self.instance.sink.clone()) {
            let (until, reader) = watch::channel(Reader::Open);
            let (ended, end) = oneshot::channel();
            self.inner.tasks.spawn("output", async move {
                read_output(output, sink, tap, reader).await;
                let _gone = ended.send(());
            });
            self.output = Some((until, end));
        }
        sandbox
    }

    /// Where the output of a function's invocations is also kept.
    fn tap(&self) -> Option<Arc<OutputTap>> {
        self.instance.label.function.as_ref()?;
        let sink = self.instance.sink.clone()?;
        Some(Arc::new(OutputTap::new(sink)))
    }

    /// What takes a function's requests for it; any other sandbox itself.
    fn in_front_of(
        &self,
        sandbox: Arc<dyn Sandbox>,
        tap: Option<Arc<OutputTap>>,
        made_with: Option<ProcessSpec>,
    ) -> Arc<dyn Sandbox> {
        let label = &self.instance.label;
        match (&self.inner.config.functions, &label.function) {
            (Some(host), Some(function)) => host.host(function, made_with, sandbox, tap),
            _ => sandbox,
        }
    }

    /// Waits until the application answers, ends or is told to.
    async fn probe(&mut self, probe: &Probe) -> Result<(), StartFailure> {
        let Some(sandbox) = self.instance.sandbox.get().cloned() else {
            return Ok(());
        };
        let port = self.instance.label.port;
        let seconds = probe.start_timeout_s;
        let mut last = String::new();
        let asked = async {
            let ready = until_ready(&*sandbox, port, &probe.kind, &mut last);
            tokio::select! {
                // An application that has ended never answers, whatever the
                // kernel still accepts on its behalf.
                biased;
                exit = sandbox.exited() => Err(StartFailure::Ended(EndReason::of(&exit), port)),
                () = ready => Ok(()),
            }
        };
        let deadline = Duration::from_secs(seconds.into());
        match or_order(&mut self.orders, timeout(deadline, asked)).await {
            Wait::Done(Ok(done)) => done,
            Wait::Done(Err(_late)) => Err(StartFailure::NotReady {
                port,
                seconds,
                last,
            }),
            Wait::Ordered(order) => Err(StartFailure::Stopped(order.reason)),
        }
    }

    async fn fail(mut self, failure: StartFailure) -> StartError {
        self.instance.set_state(InstanceState::Stopping);
        let exit = self.kill().await;
        self.last_output().await;
        let reason = match &failure {
            StartFailure::Ended(reason, _) => reason.clone(),
            StartFailure::Stopped(reason) => EndReason::Stopped(reason.clone()),
            _ => EndReason::StartFailed,
        };
        let log = match &self.instance.sink {
            Some(sink) => sink.recent(),
            None => vec![],
        };
        self.instance
            .note(format!("did not start: {}", chain(&failure)))
            .await;
        let error = StartError {
            instance: self.instance.id,
            revision: self.instance.label.revision.clone(),
            failure: Box::new(failure),
            log,
        };
        self.bury(exit, &reason).await;
        error
    }

    async fn serve(mut self) {
        if let Some(sink) = &self.instance.sink {
            sink.forget_recent();
        }
        let Some(sandbox) = self.instance.sandbox.get().cloned() else {
            return;
        };
        let mut left = self.inner.left.subscribe();
        let left = async { left.wait_for(|left| *left).await.is_ok() };
        let ended = tokio::select! {
            ended = or_order(&mut self.orders, sandbox.exited()) => Some(ended),
            _left = left => None,
        };
        match ended {
            Some(Wait::Done(exit)) => self.ended_by_itself(exit).await,
            Some(Wait::Ordered(order)) => self.stop(&*sandbox, order).await,
            None => self.leave().await,
        }
    }

    async fn ended_by_itself(mut self, exit: Exit) {
        self.instance.set_state(InstanceState::Stopping);
        let reason = EndReason::of(&exit);
        let event = Ended {
            instance: self.instance.id,
            revision: self.instance.label.revision.clone(),
            exit,
            reason: reason.clone(),
        };
        // Told before the clean-up: no request should go to it.
        let unsent = self.inner.events.try_send(event).err();
        self.last_output().await;
        self.instance.note(reason.to_string()).await;
        let inner = self.inner.clone();
        self.bury(Some(exit), &reason).await;
        if let Some(tokio::sync::mpsc::error::TrySendError::Full(event)) = unsent {
            let _no_reader = inner.events.send(event).await;
        }
    }

    async fn stop(mut self, sandbox: &dyn Sandbox, order: StopOrder) {
        let reason = EndReason::Stopped(order.reason.clone());
        let exit = match self.ask_to_stop(sandbox, order.grace).await {
            Some(exit) => Some(exit),
            None => self.kill().await,
        };
        self.last_output().await;
        self.instance.note(reason.to_string()).await;
        self.bury(exit, &reason).await;
    }

    /// Its stop signal and its grace; `None` when it still runs after it.
    async fn ask_to_stop(&mut self, sandbox: &dyn Sandbox, grace: Duration) -> Option<Exit> {
        let instance = self.instance.clone();
        let before = {
            let _switch = instance.switch.lock().await;
            instance.set_state(InstanceState::Stopping)
        };
        self.frozen = before == InstanceState::Paused;
        if grace.is_zero() {
            return None;
        }
        if self.frozen {
            // What does not run hears no signal.
            steer("resume", &instance, sandbox.resume()).await;
        }
        let signal = sandbox.signal(instance.label.stop_signal);
        steer("stop signal", &instance, signal).await;
        let mut exited = pin!(sandbox.exited());
        let mut over = pin!(sleep(grace));
        loop {
            tokio::select! {
                exit = &mut exited => return Some(exit),
                () = &mut over => return None,
                Ok(()) = self.orders.changed() => {
                    let shorter = self.orders.borrow().as_ref().map(|order| order.grace);
                    over.set(sleep(shorter.unwrap_or(grace)));
                }
            }
        }
    }

    /// Kills what runs and waits for its exit, which carries the last reading.
    async fn kill(&mut self) -> Option<Exit> {
        let sandbox = self.instance.sandbox.get()?.clone();
        if let Some(exit) = futures_util::FutureExt::now_or_never(sandbox.exited()) {
            return Some(exit);
        }
        steer("SIGKILL", &self.instance, sandbox.signal(SIGKILL)).await;
        if self.frozen {
            // With cgroup v1 it dies once it is thawed.
            steer("thaw", &self.instance, sandbox.resume()).await;
        }
        let deadline = self.inner.config.kill_deadline;
        timeout(deadline, sandbox.exited()).await.ok()
    }

    async fn last_output(&mut self) {
        if let Some((until, end)) = self.output.take() {
            until.send_replace(Reader::Ended);
            if timeout(LAST_OUTPUT_DEADLINE, end).await.is_err() {
                tracing::warn!(instance = %self.instance.id, "its last output was not read in time");
            }
        }
    }

    /// Ends this task and leaves the instance running.
    async fn leave(mut self) {
        if let Some((until, end)) = self.output.take() {
            until.send_replace(Reader::Left);
            let _late = timeout(LAST_OUTPUT_DEADLINE, end).await;
        }
        self.tell_gone();
        self.inner.table.remove(self.instance.id);
        self.instance.done.send_replace(true);
    }

    fn tell_gone(&self) {
        if let (Some(host), Some(_)) = (&self.inner.config.functions, &self.instance.label.function)
        {
            host.let_go(self.instance.id);
        }
        if let (Some(watcher), Some(_)) = (&self.inner.config.watcher, self.instance.sandbox.get())
        {
            watcher.gone(self.instance.id);
        }
    }

    fn record_start(&self, asked: IsolationRequest) {
        let class = self.instance.class;
        self.inner.records.instance_start(&InstanceStart {
            instance: self.instance.id,
            revision: self.instance.label.revision.clone(),
            class,
            fell_back: fell_back(asked, class, &self.instance.label.class_reason),
            memory_mib: self.instance.label.memory_mib,
            unix_ms: self.instance.label.created_unix_ms,
        });
        self.instance.mark_started();
    }

    /// Ends what nobody wants, whether it still runs or has ended already.
    pub async fn end_as(mut self, reason: EndReason) {
        self.instance.set_state(InstanceState::Stopping);
        let exit = self.kill().await;
        self.last_output().await;
        self.instance.note(reason.to_string()).await;
        self.bury(exit, &reason).await;
    }

    /// Destroys the sandbox, records the end and lets go of the instance.
    async fn bury(self, exit: Option<Exit>, reason: &EndReason) {
        let ended_at = self.inner.clock.now();
        let unix_ms = self.inner.clock.unix_ms();
        let instance = &self.instance;
        let mut cpu_us = instance.last_cpu_us.load(Ordering::Relaxed);
        if let Some(sandbox) = instance.sandbox.get() {
            match exit {
                Some(exit) => cpu_us = cpu_us.max(exit.cpu_us),
                None => cpu_us = cpu_us.max(last_reading(instance).await),
            }
            self.tell_gone();
            destroy(instance.id, &**sandbox).await;
        }
        if let Some(sink) = &instance.sink {
            sink.close().await;
        }
        let lifetime_us = match instance.sandbox.get() {
            Some(_) => instance.lifetime_us(ended_at),
            None => 0,
        };
        if instance.end_once() {
            self.inner.records.instance_end(&InstanceEnd {
                instance: instance.id,
                revision: instance.label.revision.clone(),
                unix_ms,
                lifetime_us,
                cpu_us,
                reason: reason.to_string(),
                out_of_memory: exit.is_some_and(|exit| exit.out_of_memory),
            });
        }
        self.inner.table.remove(instance.id);
        instance.done.send_replace(true);
    }
}

/// The reason without its class, if the class is not what is best.
fn fell_back(asked: IsolationRequest, class: IsolationClass, reason: &str) -> Option<String> {
    if asked != IsolationRequest::Auto || class == IsolationClass::Microvm {
        return None;
    }
    let why = reason.split_once(": ").map_or(reason, |(_, why)| why);
    Some(why.to_owned())
}

/// Waits for the work, or for an order to stop.
async fn or_order<T>(
    orders: &mut watch::Receiver<Option<StopOrder>>,
    work: impl Future<Output = T>,
) -> Wait<T> {
    let ordered = async {
        let order = orders.wait_for(Option::is_some).await;
        let order = order.ok().and_then(|order| order.clone());
        match order {
            Some(order) => order,
            // The instance holds the sender for as long as its life.
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        order = ordered => Wait::Ordered(order),
        done = work => Wait::Done(done),
    }
}

/// Steers an instance on its way out: a failure is only worth a line, since
/// harder means follow.
async fn steer(
    what: &'static str,
    instance: &Instance,
    work: impl Future<Output = Result<(), SandboxError>>,
) {
    match timeout(STEER_DEADLINE, work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(instance = %instance.id, what, error = %chain(&error), "not steered");
        }
        Err(_late) => tracing::warn!(instance = %instance.id, what, "not steered in time"),
    }
}

async fn last_reading(instance: &Instance) -> u64 {
    match timeout(STEER_DEADLINE, instance.stats()).await {
        Ok(Ok(stats)) => stats.cpu_us,
        _ => 0,
    }
}

/// Removes a sandbox, trying again when that fails.
pub async fn destroy(instance: InstanceId, sandbox: &dyn Sandbox) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    for _ in 0..DESTROY_TRIES {
        match timeout(STEER_DEADLINE, sandbox.destroy()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::warn!(%instance, error = %chain(&error), "a sandbox was not destroyed");
            }
            Err(_late) => tracing::warn!(%instance, "a sandbox was not destroyed in time"),
        }
        sleep(backoff.next(skiff_base::random::u32())).await;
    }
    tracing::error!(%instance, "a sandbox is left: the next server will sweep it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_asked_for_and_is_not_the_best_is_a_fall_back() {
        use {IsolationClass as Class, IsolationRequest as Asked};
        for (asked, class, reason, expected) in [
            (
                Asked::Auto,
                Class::Container,
                "container: no: KVM",
                Some("no: KVM"),
            ),
            (Asked::Auto, Class::Microvm, "microvm: they come up", None),
            (
                Asked::Container,
                Class::Container,
                "container: asked for",
                None,
            ),
            (Asked::Microvm, Class::Microvm, "microvm: asked for", None),
            (Asked::Null, Class::Null, "null: asked for", None),
        ] {
            assert_eq!(fell_back(asked, class, reason).as_deref(), expected);
        }
    }
}
