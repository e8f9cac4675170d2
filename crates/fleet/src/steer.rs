//! What is done with one instance.

use std::sync::Arc;
use std::time::Duration;

use skiff_base::Monotonic;
use skiff_gateway::{ColdPhases, WakeError};
use skiff_sched::Input;
use skiff_types::{ErrorKind, InstanceId, RevisionId, StartCause};

use crate::fleet::{Fleet, failure, lock};
use crate::port::{StartFailure, Started};

impl Fleet {
    pub(crate) async fn start(
        &self,
        instance: InstanceId,
        revision: RevisionId,
        cause: StartCause,
        decided: Monotonic,
    ) {
        match self.try_start(instance, &revision, cause, decided).await {
            Ok(()) => {
                self.tell(Input::InstanceReady(instance));
                self.validated(&revision, Ok(instance));
            }
            Err(error) => {
                tracing::warn!(%revision, %instance, error = error.message, "an instance did not start");
                self.validated(&revision, Err(error));
                self.tell(Input::InstanceFailed(instance));
            }
        }
    }

    async fn try_start(
        &self,
        instance: InstanceId,
        revision: &RevisionId,
        cause: StartCause,
        decided: Monotonic,
    ) -> Result<(), StartFailure> {
        let inner = &self.inner;
        let stopping = |_| failure(ErrorKind::Unavailable, "the server is shutting down");
        let _turn = inner.starts.acquire().await.map_err(stopping)?;
        let launch = inner.parts.launches.launch(revision, cause).await?;
        let placed = inner.clock.now();
        let started = inner.parts.worker.start(instance, launch).await?;
        let phases = phases(&started, decided, placed, inner.clock.now());
        // The steering entry comes first: a wake may follow the addition at once.
        self.register(instance);
        let added = inner
            .parts
            .rotation
            .add(revision, started.upstream, Some(phases));
        if let Err(message) = added {
            inner
                .parts
                .worker
                .stop(instance, "not in rotation", true)
                .await;
            self.forget(instance);
            return Err(failure(ErrorKind::Internal, &message));
        }
        Ok(())
    }

    /// Out of rotation, drained, ended: the orderly way.
    pub(crate) async fn end(&self, instance: InstanceId, reason: &str) {
        self.out_of_rotation(instance, self.inner.config.drain)
            .await;
        // A frozen process cannot hear that it should stop.
        if let Err(WakeError(message)) = self.resume(instance).await {
            tracing::debug!(%instance, message, "not woken before its end");
        }
        self.inner.parts.worker.stop(instance, reason, false).await;
        self.forget(instance);
        self.tell(Input::InstanceGone(instance));
    }

    /// The gateway has taken it out already: nothing in it is worth waiting for.
    pub(crate) async fn end_now(&self, instance: InstanceId, reason: &str) {
        self.out_of_rotation(instance, Duration::ZERO).await;
        self.inner.parts.worker.stop(instance, reason, true).await;
        self.forget(instance);
        self.tell(Input::InstanceGone(instance));
    }

    pub(crate) async fn out_of_rotation(&self, instance: InstanceId, deadline: Duration) {
        let drained = self.inner.parts.rotation.drain(instance);
        if tokio::time::timeout(deadline, drained).await.is_err() && !deadline.is_zero() {
            tracing::warn!(%instance, "an instance is ended with requests in it: they outlasted the drain");
        }
    }

    pub(crate) async fn pause(&self, instance: InstanceId) {
        let Some(steering) = self.steering(instance) else {
            return;
        };
        let _alone = steering.lock().await;
        let parts = &self.inner.parts;
        parts.rotation.set_paused(instance, true);
        // A request that came before the mark would freeze with its instance.
        if parts.rotation.in_flight(instance) > 0 {
            parts.rotation.set_paused(instance, false);
            return;
        }
        if let Err(message) = parts.worker.pause(instance).await {
            tracing::warn!(%instance, message, "an instance could not be paused");
            parts.rotation.set_paused(instance, false);
        }
    }

    pub(crate) async fn resume(&self, instance: InstanceId) -> Result<(), WakeError> {
        let gone = || WakeError(format!("the instance {instance} is gone"));
        let steering = self.steering(instance).ok_or_else(gone)?;
        let _alone = steering.lock().await;
        self.inner
            .parts
            .worker
            .resume(instance)
            .await
            .map_err(WakeError)?;
        self.inner.parts.rotation.set_paused(instance, false);
        Ok(())
    }

    pub(crate) fn register(&self, instance: InstanceId) {
        lock(&self.inner.steering).entry(instance).or_default();
    }

    fn steering(&self, instance: InstanceId) -> Option<Arc<tokio::sync::Mutex<()>>> {
        lock(&self.inner.steering).get(&instance).cloned()
    }

    pub(crate) fn forget(&self, instance: InstanceId) {
        lock(&self.inner.steering).remove(&instance);
    }
}

fn phases(
    started: &Started,
    decided: Monotonic,
    placed: Monotonic,
    ready: Monotonic,
) -> ColdPhases {
    ColdPhases {
        placement_us: u64::try_from(placed.since(decided).as_micros()).unwrap_or(u64::MAX),
        image_us: started.image_us,
        sandbox_us: started.sandbox_us,
        app_us: started.app_us,
        decided,
        ready,
        ..ColdPhases::default()
    }
}
