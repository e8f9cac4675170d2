//! The fleet with a scripted worker and a rotation that keeps a record.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use skiff_base::{ByteStream, SystemClock, Tasks};
use skiff_fleet::{
    Fleet, FleetConfig, Launches, Parts, Rotation, StartFailure, Started, WorkerPort,
};
use skiff_gateway::{ColdPhases, Demand, Load, Upstream};
use skiff_sched::RevisionPlan;
use skiff_types::{
    CpuMode, ErrorKind, InstanceId, IsolationClass, IsolationRequest, Launch, Probe, ProjectId,
    Resources, RevisionId, Scaling, StartCause, WorkerId,
};

#[derive(Debug)]
struct FakeUpstream(InstanceId);

impl Upstream for FakeUpstream {
    fn instance(&self) -> InstanceId {
        self.0
    }
    fn class(&self) -> IsolationClass {
        IsolationClass::Null
    }
    fn connect(&self) -> BoxFuture<'_, io::Result<ByteStream>> {
        async { Ok(ByteStream::Memory(tokio::io::duplex(64).0)) }.boxed()
    }
}

/// Everything that was asked of the parts, in order.
#[derive(Debug, Default)]
struct World {
    record: Mutex<Vec<String>>,
    in_flight: Mutex<HashMap<InstanceId, u32>>,
    fails: AtomicBool,
    /// A request comes in the moment that an instance is marked as paused.
    pausing_meets_a_request: AtomicBool,
    last: Mutex<Option<InstanceId>>,
}

impl World {
    fn note(&self, text: impl Into<String>) {
        self.record.lock().unwrap().push(text.into());
    }

    fn count(&self, word: &str) -> usize {
        self.record
            .lock()
            .unwrap()
            .iter()
            .filter(|entry| entry.as_str() == word)
            .count()
    }

    async fn wait_for(&self, word: &str) {
        for _ in 0..2000 {
            if self.count(word) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("`{word}` did not come: {:?}", self.record.lock().unwrap());
    }
}

impl WorkerPort for World {
    fn start(
        &self,
        instance: InstanceId,
        _: Arc<Launch>,
    ) -> BoxFuture<'_, Result<Started, StartFailure>> {
        async move {
            self.note("start");
            if self.fails.load(Ordering::SeqCst) {
                let message = "it exited with 3".to_owned();
                return Err(StartFailure {
                    kind: ErrorKind::Failed,
                    message,
                    log: vec!["bye".to_owned()],
                });
            }
            *self.last.lock().unwrap() = Some(instance);
            let upstream = Arc::new(FakeUpstream(instance));
            Ok(Started {
                upstream,
                image_us: 1,
                sandbox_us: 2,
                app_us: 3,
            })
        }
        .boxed()
    }
    fn stop(&self, _: InstanceId, reason: &str, at_once: bool) -> BoxFuture<'_, ()> {
        self.note(format!("stop {reason} {at_once}"));
        async {}.boxed()
    }
    fn pause(&self, _: InstanceId) -> BoxFuture<'_, Result<(), String>> {
        self.note("pause");
        async { Ok(()) }.boxed()
    }
    fn resume(&self, _: InstanceId) -> BoxFuture<'_, Result<(), String>> {
        self.note("resume");
        async { Ok(()) }.boxed()
    }
}

impl Rotation for World {
    fn add(
        &self,
        _: &RevisionId,
        _: Arc<dyn Upstream>,
        cold: Option<ColdPhases>,
    ) -> Result<(), String> {
        self.note(format!("add {}", cold.map_or(0, |cold| cold.app_us)));
        Ok(())
    }
    fn drain(&self, _: InstanceId) -> BoxFuture<'_, ()> {
        self.note("drain");
        async {}.boxed()
    }
    fn set_paused(&self, instance: InstanceId, paused: bool) {
        if paused && self.pausing_meets_a_request.load(Ordering::SeqCst) {
            self.in_flight.lock().unwrap().insert(instance, 1);
        }
        self.note(format!("paused {paused}"));
    }
    fn refuse(&self, _: &RevisionId, _: ErrorKind, message: &str) {
        self.note(format!("refuse {message}"));
    }
    fn set_limited(&self, _: &RevisionId, limited: bool) {
        self.note(format!("limited {limited}"));
    }
    fn in_flight(&self, instance: InstanceId) -> u32 {
        self.in_flight
            .lock()
            .unwrap()
            .get(&instance)
            .copied()
            .unwrap_or(0)
    }
    fn loads(&self) -> Vec<Load> {
        Vec::new()
    }
}

impl Launches for World {
    fn launch(
        &self,
        revision: &RevisionId,
        cause: StartCause,
    ) -> BoxFuture<'_, Result<Arc<Launch>, StartFailure>> {
        if cause == StartCause::Floor {
            self.note("of the floor");
        }
        let launch = Launch {
            revision: revision.clone(),
            isolation: IsolationRequest::Null,
            layers: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            stop_signal: 15,
            port: 8080,
            probe: Probe::default(),
            resources: Resources::default(),
            egress: false,
            function: None,
        };
        async { Ok(Arc::new(launch)) }.boxed()
    }
}

struct Bench {
    world: Arc<World>,
    fleet: Fleet,
    revision: RevisionId,
    _ticks: Tasks,
}

fn fleet_of(world: &Arc<World>) -> Fleet {
    let parts = Parts {
        worker: world.clone(),
        rotation: world.clone(),
        launches: world.clone(),
    };
    let config = FleetConfig {
        scheduler: skiff_sched::Config::default(),
        worker: WorkerId::from_parts(1, 1),
        memory_mib: 1024,
        cpu_millis: 2000,
        starts_at_once: 4,
        drain: Duration::from_secs(10),
    };
    Fleet::new(config, parts, Arc::new(SystemClock))
}

fn plan(scaling: Scaling) -> RevisionPlan {
    RevisionPlan {
        revision: RevisionId {
            project: ProjectId::default_project(),
            service: "hello".parse().unwrap(),
            number: 1,
        },
        scaling,
        memory_mib: 64,
        overhead_mib: 0,
        cpu_millis: 100,
        cpu_mode: CpuMode::Always,
        serving: true,
        function: false,
    }
}

fn bench(change: impl FnOnce(&mut RevisionPlan)) -> Bench {
    let world = Arc::new(World::default());
    let fleet = fleet_of(&world);
    let ticks = Tasks::new();
    let ticking = fleet.clone();
    ticks.spawn("ticks", async move { ticking.run().await });
    let mut plan = plan(Scaling {
        concurrency: 1,
        keep_alive_s: 0,
        ..Scaling::default()
    });
    let revision = plan.revision.clone();
    change(&mut plan);
    fleet.put_revision(plan);
    fleet.begin();
    Bench {
        world,
        fleet,
        revision,
        _ticks: ticks,
    }
}

fn last(bench: &Bench) -> InstanceId {
    bench.world.last.lock().unwrap().unwrap()
}

#[tokio::test]
async fn the_rotation_is_told_when_nothing_can_be_added() {
    let bench = bench(|plan| plan.scaling.max = 1);
    bench.fleet.queued(&bench.revision, 5, 0);
    bench.world.wait_for("limited true").await;
    assert_eq!(bench.world.count("add 3"), 1, "the only one is there");
    bench.fleet.busy(last(&bench));
    bench.fleet.queued(&bench.revision, 0, 1);
    bench.fleet.idle(last(&bench));
    bench.world.wait_for("stop idle false").await;
    bench.world.wait_for("limited false").await;
}

#[tokio::test]
async fn a_waiting_request_starts_an_instance_and_silence_ends_it() {
    let bench = bench(|_| {});
    bench.fleet.queued(&bench.revision, 1, 0);
    bench.world.wait_for("add 3").await;
    bench.fleet.busy(last(&bench));
    bench.fleet.queued(&bench.revision, 0, 1);
    bench.fleet.idle(last(&bench));
    bench.world.wait_for("stop idle false").await;
    assert_eq!(bench.world.count("drain"), 1);
    assert_eq!(bench.world.count("start"), 1);
    while bench.fleet.instance_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_revision_is_validated_by_one_instance() {
    let bench = bench(|plan| plan.serving = false);
    let instance = bench.fleet.start_one(&bench.revision).await.unwrap();
    assert_eq!(instance, last(&bench));
    assert_eq!(bench.world.count("add 3"), 1);
}

#[tokio::test]
async fn a_failed_start_is_told_with_its_log() {
    let bench = bench(|plan| plan.serving = false);
    bench.world.fails.store(true, Ordering::SeqCst);
    let failure = bench.fleet.start_one(&bench.revision).await.unwrap_err();
    assert_eq!(
        (failure.message.as_str(), failure.log.len()),
        ("it exited with 3", 1)
    );
    assert_eq!(bench.world.count("add 3"), 0);
}

#[tokio::test]
async fn what_cannot_be_placed_is_refused_by_what_is_short() {
    let bench = bench(|plan| plan.memory_mib = 1 << 20);
    let failure = bench.fleet.start_one(&bench.revision).await.unwrap_err();
    assert!(
        failure.message.starts_with("memory is short"),
        "{}",
        failure.message
    );
    assert_eq!(bench.world.count("start"), 0);
}

#[tokio::test]
async fn a_dead_instance_is_ended_without_grace() {
    let bench = bench(|plan| plan.scaling.keep_alive_s = 60);
    bench.fleet.queued(&bench.revision, 1, 0);
    bench.world.wait_for("add 3").await;
    bench.fleet.dead(last(&bench), "timeout");
    bench.world.wait_for("stop timeout true").await;
}

#[tokio::test]
async fn an_idle_instance_is_paused_and_woken_before_a_request() {
    let bench = bench(|plan| {
        plan.cpu_mode = CpuMode::Request;
        plan.scaling.keep_alive_s = 60;
    });
    bench.fleet.queued(&bench.revision, 1, 0);
    bench.world.wait_for("add 3").await;
    bench.fleet.queued(&bench.revision, 0, 1);
    bench.fleet.busy(last(&bench));
    bench.fleet.idle(last(&bench));
    bench.world.wait_for("pause").await;
    bench.fleet.wake(last(&bench)).await.unwrap();
    let record = bench.world.record.lock().unwrap().clone();
    let tail: Vec<&str> = record
        .iter()
        .rev()
        .take(4)
        .rev()
        .map(String::as_str)
        .collect();
    assert_eq!(tail, ["paused true", "pause", "resume", "paused false"]);
}

#[tokio::test]
async fn an_instance_with_a_request_in_it_is_not_paused() {
    let bench = bench(|plan| {
        plan.cpu_mode = CpuMode::Request;
        plan.scaling.keep_alive_s = 60;
    });
    bench.fleet.queued(&bench.revision, 1, 0);
    bench.world.wait_for("add 3").await;
    let world = &bench.world;
    world.pausing_meets_a_request.store(true, Ordering::SeqCst);
    bench.fleet.queued(&bench.revision, 0, 1);
    bench.fleet.busy(last(&bench));
    bench.fleet.idle(last(&bench));
    bench.world.wait_for("paused false").await;
    assert_eq!(bench.world.count("pause"), 0);
}

#[tokio::test]
async fn a_floor_waits_until_adoption_is_over() {
    let world = Arc::new(World::default());
    let fleet = fleet_of(&world);
    let plan = plan(Scaling {
        min: 1,
        ..Scaling::default()
    });
    let revision = plan.revision.clone();
    fleet.put_revision(plan);
    let upstream = Arc::new(FakeUpstream(InstanceId::from_parts(7, 7)));
    fleet.adopt(skiff_fleet::Adopted {
        revision: revision.clone(),
        upstream,
        paused: false,
    });
    fleet.begin();
    assert!(fleet.knows(&revision));
    assert_eq!(fleet.instance_count(), 1);
    assert_eq!(world.count("start"), 0);
    assert_eq!(world.count("add 0"), 1);
}

#[tokio::test]
async fn an_instance_knows_whether_a_request_waits_for_it() {
    let bench = bench(|_| {});
    bench.fleet.start_one(&bench.revision).await.unwrap();
    assert_eq!(bench.world.count("of the floor"), 0);
    bench.fleet.put_revision(plan(Scaling {
        min: 2,
        ..Scaling::default()
    }));
    bench.world.wait_for("of the floor").await;
    assert_eq!(bench.world.count("of the floor"), 1);
    let standing = bench.fleet.standing(&bench.revision);
    assert_eq!(standing.counts.ready + standing.counts.starting, 2);
    assert_eq!(standing.shortage, None);
}
