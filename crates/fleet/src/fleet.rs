use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skiff_base::{Clock, Monotonic, Tasks};
use skiff_gateway::{Demand, WakeError};
use skiff_sched::{Action, AdoptedState, Config, Counts, Input, RevisionPlan, Scheduler, Shortage};
use skiff_types::api::Quota;
use skiff_types::{ErrorKind, InstanceId, ProjectId, RevisionId, WorkerId};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::port::{Adopted, Parts, StartFailure};

/// Between two looks at how many requests are in instances that are busy.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// From so many crashes in a row on, what waits is told at once.
const CRASHES_TOLD: u32 = 3;
/// Between two looks whether everything has come to rest.
const GIVE_UP_STEP: Duration = Duration::from_millis(5);
/// Callers that may wait for the first instance of one revision.
const VALIDATIONS_MAX: usize = 64;

/// What the fleet is told once.
#[derive(Clone, Copy, Debug)]
pub struct FleetConfig {
    /// The scheduler's settings.
    pub scheduler: Config,
    /// The one worker.
    pub worker: WorkerId,
    /// What the worker has for instances, MiB.
    pub memory_mib: u64,
    /// What the worker has for instances, thousandths of a CPU.
    pub cpu_millis: u64,
    /// Instances that may be starting at once; the rest wait their turn.
    pub starts_at_once: usize,
    /// How long an instance that is taken out of rotation may finish its requests.
    pub drain: Duration,
}

/// A revision's instances, and why they are fewer than it needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// Its instances and requests.
    pub counts: Counts,
    /// What is short.
    pub shortage: Option<Shortage>,
}

/// Scheduler, workers and rotation as one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: FleetConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) parts: Parts,
    pub(crate) starts: Semaphore,
    pub(crate) steering: Mutex<HashMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    decisions: Mutex<Decisions>,
    /// Held while the rotation is told of a limit.
    limits: Mutex<()>,
    /// Instances in which a former server still has requests.
    elsewhere: Mutex<HashSet<InstanceId>>,
    /// Decisions are not carried out any more: the next server decides.
    given_up: AtomicBool,
    validations: Mutex<HashMap<RevisionId, Vec<Validation>>>,
    /// Plans whose floors wait for [`Fleet::begin`].
    held: Mutex<Option<Vec<RevisionPlan>>>,
    tasks: Tasks,
    runtime: Handle,
    due: Notify,
}

/// The scheduler, and when [`Fleet::run`] looks at it next.
#[derive(Debug)]
struct Decisions {
    scheduler: Scheduler,
    looks_at: Monotonic,
}

type Validation = oneshot::Sender<Result<InstanceId, StartFailure>>;

impl Fleet {
    /// A fleet of one worker. Its tasks run on the calling runtime. Nothing
    /// is started for a revision's floor before [`Fleet::begin`].
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(config: FleetConfig, parts: Parts, clock: Arc<dyn Clock>) -> Self {
        let ids = Arc::clone(&clock);
        let next_id =
            Box::new(move || InstanceId::from_parts(ids.unix_ms(), skiff_base::random::u32()));
        let fleet = Self {
            inner: Arc::new(Inner {
                config,
                clock,
                parts,
                starts: Semaphore::new(config.starts_at_once),
                steering: Mutex::default(),
                decisions: Mutex::new(Decisions {
                    scheduler: Scheduler::new(config.scheduler, next_id),
                    // Nobody has to be told of a deadline before it runs.
                    looks_at: Monotonic::default(),
                }),
                validations: Mutex::default(),
                held: Mutex::new(Some(Vec::new())),
                limits: Mutex::default(),
                elsewhere: Mutex::default(),
                given_up: AtomicBool::new(false),
                tasks: Tasks::new(),
                runtime: Handle::current(),
                due: Notify::new(),
            }),
        };
        fleet.tell(Input::WorkerUp {
            worker: config.worker,
            memory_mib: config.memory_mib,
            cpu_millis: config.cpu_millis,
        });
        fleet
    }

    /// Gives the scheduler its ticks and samples. Ends when it is dropped.
    pub async fn run(&self) {
        let mut sample = tokio::time::interval(SAMPLE_EVERY);
        sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wait = {
                let mut decisions = lock(&self.inner.decisions);
                let now = self.inner.clock.now();
                let due = decisions.scheduler.next_deadline();
                let wait = due.map_or(SAMPLE_EVERY, |due| due.since(now));
                decisions.looks_at = now.plus(wait);
                wait
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => self.tell(Input::Tick),
                () = self.inner.due.notified() => {}
                _ = sample.tick() => self.sample(),
            }
        }
    }

    /// A revision that may have instances; again when something changes.
    pub fn put_revision(&self, plan: RevisionPlan) {
        if let Some(held) = lock(&self.inner.held).as_mut() {
            let mut without_floor = plan.clone();
            without_floor.scaling.min = 0;
            held.push(plan);
            self.tell(Input::RevisionUpsert(without_floor));
            return;
        }
        self.tell(Input::RevisionUpsert(plan));
    }

    /// From now on revisions get the instances that they always have. Until
    /// then what a former server left can be adopted first.
    pub fn begin(&self) {
        for plan in lock(&self.inner.held).take().unwrap_or_default() {
            if self.knows(&plan.revision) {
                self.tell(Input::RevisionUpsert(plan));
            }
        }
    }

    /// Whether the revision may have instances.
    #[must_use]
    pub fn knows(&self, revision: &RevisionId) -> bool {
        let decisions = lock(&self.inner.decisions);
        decisions.scheduler.counts(revision).is_some()
    }

    /// How a revision stands.
    #[must_use]
    pub fn standing(&self, revision: &RevisionId) -> Standing {
        let decisions = lock(&self.inner.decisions);
        Standing {
            counts: decisions.scheduler.counts(revision).unwrap_or_default(),
            shortage: decisions.scheduler.shortage(revision),
        }
    }

    /// It may have none any more.
    pub fn remove_revision(&self, revision: &RevisionId) {
        self.tell(Input::RevisionRemove(revision.clone()));
    }

    /// What a project's instances may use at once.
    pub fn set_quota(&self, project: &ProjectId, quota: Quota) {
        self.tell(Input::QuotaSet {
            project: project.clone(),
            quota,
        });
    }

    /// Starts one instance, if there is none, and waits until it serves.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn start_one(&self, revision: &RevisionId) -> Result<InstanceId, StartFailure> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut validations = lock(&self.inner.validations);
            let waiting = validations.entry(revision.clone()).or_default();
            if waiting.len() >= VALIDATIONS_MAX {
                return Err(failure(
                    ErrorKind::Exhausted,
                    "too many wait for the first instance of this revision",
                ));
            }
            waiting.push(sender);
        }
        self.tell(Input::Queued {
            revision: revision.clone(),
            waiting: 1,
            in_flight: 0,
        });
        receiver.await.unwrap_or_else(|_| {
            Err(failure(
                ErrorKind::Unavailable,
                "the server is shutting down",
            ))
        })
    }

    /// Takes over an instance that was running before. Its revision was put
    /// before; one that is not wanted any more is ended.
    pub fn adopt(&self, adopted: Adopted) {
        let instance = adopted.upstream.instance();
        let state = if adopted.paused {
            AdoptedState::Paused
        } else {
            AdoptedState::Ready
        };
        self.register(instance);
        let added = self
            .inner
            .parts
            .rotation
            .add(&adopted.revision, adopted.upstream, None);
        if let Err(message) = added {
            tracing::warn!(%instance, message, "an instance that was adopted is ended");
            let fleet = self.clone();
            self.spawn("unwanted", async move {
                fleet.end_now(instance, "not in rotation").await
            });
            return;
        }
        if adopted.paused {
            self.inner.parts.rotation.set_paused(instance, true);
        }
        self.tell(Input::Adopted {
            instance,
            revision: adopted.revision,
            worker: self.inner.config.worker,
            state,
        });
        let in_flight = self.in_flight(instance);
        if in_flight > 0 {
            self.tell(Input::InFlight {
                instance,
                in_flight,
            });
        }
    }

    /// An instance has ended by itself: nothing of it is left.
    pub fn ended(&self, instance: InstanceId) {
        let fleet = self.clone();
        self.spawn("ended", async move {
            fleet.out_of_rotation(instance, Duration::ZERO).await;
            fleet.forget(instance);
            fleet.tell(Input::InstanceGone(instance));
        });
    }

    /// A former server still has requests in these: they are not idle until
    /// [`Fleet::settle`].
    pub fn busy_elsewhere(&self, instances: impl IntoIterator<Item = InstanceId>) {
        lock(&self.inner.elsewhere).extend(instances);
    }

    /// The former server is gone.
    pub fn settle(&self) {
        lock(&self.inner.elsewhere).clear();
        self.sample();
    }

    fn in_flight(&self, instance: InstanceId) -> u32 {
        let own = self.inner.parts.rotation.in_flight(instance);
        own + u32::from(lock(&self.inner.elsewhere).contains(&instance))
    }

    /// Waits until nothing waits for an instance and none is starting, at
    /// most until the deadline; from then on nothing is decided here.
    pub async fn give_up(&self, deadline: Duration) {
        let start = self.inner.clock.now();
        while self.inner.clock.now().since(start) < deadline {
            let waiting = self
                .inner
                .parts
                .rotation
                .loads()
                .iter()
                .any(|load| load.waiting > 0);
            let starting = self.inner.starts.available_permits() < self.inner.config.starts_at_once;
            if !waiting && !starting {
                break;
            }
            tokio::time::sleep(GIVE_UP_STEP).await;
        }
        self.inner.given_up.store(true, Ordering::SeqCst);
        self.inner.starts.close();
    }

    /// Instances that have requests now.
    #[must_use]
    pub fn busy_instances(&self) -> Vec<InstanceId> {
        let known: Vec<InstanceId> = lock(&self.inner.steering).keys().copied().collect();
        known
            .into_iter()
            .filter(|instance| self.in_flight(*instance) > 0)
            .collect()
    }

    /// Instances that are not gone.
    #[must_use]
    pub fn instance_count(&self) -> usize {
        lock(&self.inner.decisions).scheduler.instance_count()
    }

    /// Starts nothing more; what is under way ends or is cut off.
    pub async fn stop(&self, deadline: Duration) {
        self.inner.starts.close();
        if let Err(error) = self.inner.tasks.drain(deadline).await {
            tracing::warn!(%error, "the fleet stops");
        }
    }

    pub(crate) fn tell(&self, input: Input) {
        let mut actions = Vec::new();
        let now = self.inner.clock.now();
        let earlier = {
            let mut decisions = lock(&self.inner.decisions);
            decisions.scheduler.handle(now, input, &mut actions);
            let due = decisions.scheduler.next_deadline();
            // Told once: it then looks by itself.
            let earlier = due.filter(|due| *due < decisions.looks_at);
            if let Some(due) = earlier {
                decisions.looks_at = due;
            }
            earlier.is_some()
        };
        if earlier {
            self.inner.due.notify_one();
        }
        for action in actions {
            self.carry_out(action);
        }
    }

    fn carry_out(&self, action: Action) {
        if self.inner.given_up.load(Ordering::SeqCst) {
            return;
        }
        let fleet = self.clone();
        match action {
            Action::Start {
                instance,
                revision,
                cause,
                ..
            } => {
                let decided = self.inner.clock.now();
                self.spawn("start", async move {
                    fleet.start(instance, revision, cause, decided).await
                });
            }
            Action::Stop { instance, reason } => {
                self.spawn(
                    "stop",
                    async move { fleet.end(instance, reason.as_str()).await },
                );
            }
            Action::Pause(instance) => {
                self.spawn("pause", async move { fleet.pause(instance).await })
            }
            Action::Resume(instance) => self.spawn("resume", async move {
                if let Err(WakeError(message)) = fleet.resume(instance).await {
                    tracing::warn!(%instance, message, "an instance could not be resumed");
                }
            }),
            // Never at once: the gateway may be holding the revision's lock.
            Action::Refuse { revision, shortage } => {
                self.spawn("refuse", async move { fleet.refuse(&revision, shortage) });
            }
            Action::Limit(revision) => {
                self.spawn("limit", async move { fleet.tell_limit(&revision) });
            }
        }
    }

    /// Tells what holds now: tasks may run in another order than they were told.
    fn tell_limit(&self, revision: &RevisionId) {
        let _in_turn = lock(&self.inner.limits);
        let limited = lock(&self.inner.decisions).scheduler.is_limited(revision);
        self.inner.parts.rotation.set_limited(revision, limited);
    }

    fn refuse(&self, revision: &RevisionId, shortage: Shortage) {
        if lock(&self.inner.decisions)
            .scheduler
            .shortage(revision)
            .is_none()
        {
            // An instance is coming since this was decided.
            return;
        }
        let message = shortage.to_string();
        // At its maximum a revision still serves, and one crash is made good
        // sooner than a client would ask again: what waits gets its turn.
        let soon = match shortage {
            Shortage::MaxInstances { .. } => true,
            Shortage::CrashLoop { failures, .. } => failures < CRASHES_TOLD,
            _ => false,
        };
        if !soon {
            self.inner
                .parts
                .rotation
                .refuse(revision, shortage.kind(), &message);
        }
        if !matches!(shortage, Shortage::CrashLoop { .. }) {
            self.validated(revision, Err(failure(shortage.kind(), &message)));
        }
    }

    /// Answers those who wait for the first instance of the revision.
    pub(crate) fn validated(
        &self,
        revision: &RevisionId,
        result: Result<InstanceId, StartFailure>,
    ) {
        let Some(waiting) = lock(&self.inner.validations).remove(revision) else {
            return;
        };
        for sender in waiting {
            // Who has gone away needs no answer.
            let _gone = sender.send(result.clone());
        }
        self.tell(Input::Queued {
            revision: revision.clone(),
            waiting: 0,
            in_flight: 0,
        });
    }

    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.inner.tasks.spawn_on(name, task, &self.inner.runtime);
    }

    fn sample(&self) {
        for load in self.inner.parts.rotation.loads() {
            self.tell(Input::Queued {
                revision: load.revision,
                waiting: load.waiting,
                in_flight: load.in_flight,
            });
        }
        // Those without requests, too: what busy and idle said may have come in
        // the wrong order.
        let known: Vec<InstanceId> = lock(&self.inner.steering).keys().copied().collect();
        for instance in known {
            let in_flight = self.in_flight(instance);
            self.tell(Input::InFlight {
                instance,
                in_flight,
            });
        }
    }
}

impl Demand for Fleet {
    fn queued(&self, revision: &RevisionId, waiting: u32, in_flight: u32) {
        self.tell(Input::Queued {
            revision: revision.clone(),
            waiting,
            in_flight,
        });
    }

    fn busy(&self, instance: InstanceId) {
        self.tell(Input::InFlight {
            instance,
            in_flight: 1,
        });
    }

    fn idle(&self, instance: InstanceId) {
        let in_flight = u32::from(lock(&self.inner.elsewhere).contains(&instance));
        self.tell(Input::InFlight {
            instance,
            in_flight,
        });
    }

    fn dead(&self, instance: InstanceId, reason: &str) {
        tracing::warn!(%instance, reason, "an instance does not answer and is ended");
        self.tell(Input::InstanceRetired(instance));
        let (fleet, reason) = (self.clone(), reason.to_owned());
        self.spawn(
            "dead",
            async move { fleet.end_now(instance, &reason).await },
        );
    }

    fn wake(&self, instance: InstanceId) -> BoxFuture<'_, Result<(), WakeError>> {
        Box::pin(self.resume(instance))
    }
}

pub(crate) fn failure(kind: ErrorKind, message: &str) -> StartFailure {
    StartFailure {
        kind,
        message: message.to_owned(),
        log: Vec::new(),
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
