//! The class null through a worker: what an instance costs beside its sandbox.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Diary, eventually, id, launch};
use skiff_base::{Clock, SystemClock};
use skiff_sandbox::{NullBackend, NullOptions};
use skiff_types::{IsolationClass, IsolationRequest, Launch};
use skiff_worker::{Backends, Seat, Worker, WorkerConfig};

fn null_launch() -> Arc<Launch> {
    let mut launch = launch();
    launch.isolation = IsolationRequest::Null;
    Arc::new(launch)
}

fn worker(backend: &Arc<NullBackend>) -> (Worker, Diary, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let missing = || Seat::Missing("not in this test".to_owned());
    let backends = Backends {
        microvm: missing(),
        container: missing(),
        null: missing(),
    };
    let diary = Diary::default();
    let (worker, _ends) = Worker::new(
        WorkerConfig::new(folder.path().to_owned()),
        backends.with_null(backend.clone()),
        Arc::new(diary.clone()),
        Arc::new(SystemClock),
    )
    .unwrap();
    (worker, diary, folder)
}

/// The bound is far below what the whole server must do, for a build without
/// optimisation on a machine with other work.
#[tokio::test]
async fn lives_of_the_class_null_are_cheap_and_leave_no_file() {
    const LIVES: u32 = 5_000;
    let backend = Arc::new(NullBackend::default());
    let (worker, diary, folder) = worker(&backend);
    let start = SystemClock.now();
    for number in 0..LIVES {
        let started = worker.start(id(number), null_launch()).await.unwrap();
        assert_eq!(started.class, IsolationClass::Null);
        worker
            .stop(id(number), Duration::ZERO, "idle")
            .await
            .unwrap();
    }
    let took = SystemClock.now().since(start);
    let per_second = f64::from(LIVES) / took.as_secs_f64();
    println!("{per_second:.0} lives a second");
    assert!(per_second > 500.0, "{per_second:.0} lives a second");
    assert_eq!(diary.ends().len(), usize::try_from(LIVES).unwrap());
    eventually("all are gone", || backend.alive() == 0).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_sandbox_that_is_ready_late_is_waited_for() {
    let backend = Arc::new(NullBackend::new(NullOptions {
        ready_delay: Duration::from_millis(100),
        ..NullOptions::default()
    }));
    let (worker, _diary, _folder) = worker(&backend);
    let started = worker.start(id(1), null_launch()).await.unwrap();
    assert!(started.phases.app_us >= 50_000, "{:?}", started.phases);
}
