//! One worker ends, the next takes over.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{
    Happened, PATIENCE, Script, eventually, exited, fixture, id, launch, launch_with, revision,
    worker_over,
};
use skiff_types::{ProbeKind, ProjectId};
use skiff_worker::{EndReason, InstanceState, LogQuery, ShutdownMode, StartFailure, WorkerConfig};
use tokio::time::timeout;

fn query() -> LogQuery {
    LogQuery::service(ProjectId::default_project(), revision().service)
}

#[tokio::test]
async fn a_new_worker_adopts_what_is_wanted_and_ends_the_rest() {
    let f = fixture();
    for number in 1..=4 {
        f.worker
            .start(id(number), Arc::new(launch()))
            .await
            .unwrap();
    }
    f.worker.pause(id(4)).await.unwrap();
    let mut follow = f.worker.follow(query()).await.unwrap();
    f.backend.sandbox(id(1)).print("before\nhalf a");
    while timeout(PATIENCE, follow.next())
        .await
        .unwrap()
        .unwrap()
        .text
        != "before"
    {}
    f.worker
        .shutdown(ShutdownMode::LeaveRunning, PATIENCE)
        .await;
    assert_eq!(f.backend.alive(), 4);
    assert!(f.diary.ends().is_empty());
    // What was written in between waits in the pipes.
    f.backend.sandbox(id(1)).print("while nobody was there\n");
    f.backend.sandbox(id(3)).end(exited(5));

    let config = WorkerConfig::new(f.folder.path().join("logs"));
    let (next, mut ends) = worker_over(&f.backend, config);
    let adopted = next.adopt(|_, instance| instance != id(2)).await.unwrap();
    let mut ids: Vec<_> = adopted.iter().map(|a| (a.instance, a.paused)).collect();
    ids.sort();
    assert_eq!(ids, [(id(1), false), (id(4), true)]);
    assert!(
        adopted
            .iter()
            .all(|a| a.revision == revision() && a.port == 8080)
    );
    assert!(adopted.iter().all(|a| a.memory_mib == 256));
    let mut reasons: Vec<_> = f
        .diary
        .ends()
        .into_iter()
        .map(|e| (e.instance, e.reason))
        .collect();
    reasons.sort();
    let expect = [
        (id(2), "was left by a former server".to_owned()),
        (id(3), "exited with code 5".to_owned()),
    ];
    assert_eq!(reasons, expect);
    assert_eq!(f.backend.alive(), 2);
    let states: Vec<_> = next.instances().iter().map(|i| i.state).collect();
    assert_eq!(states, [InstanceState::Ready, InstanceState::Paused]);

    next.resume(id(4)).await.unwrap();
    f.backend.sandbox(id(4)).end(exited(9));
    let ended = timeout(PATIENCE, ends.recv()).await.unwrap().unwrap();
    assert_eq!(ended.reason, EndReason::Exited { code: 9 });
    next.shutdown(ShutdownMode::StopAll, PATIENCE).await;
    assert_eq!(f.backend.alive(), 0);
    assert_eq!((f.diary.starts(), f.diary.ends().len()), (4, 4));
    let lines = next.logs(query()).await.unwrap();
    assert!(lines.iter().any(|line| line.text == "half a"));
    let waited = lines
        .iter()
        .find(|line| line.text == "while nobody was there");
    assert_eq!(waited.unwrap().instance, id(1));
}

#[tokio::test]
async fn a_worker_that_was_killed_is_followed_as_well() {
    let f = fixture();
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    let config = WorkerConfig::new(f.folder.path().join("logs"));
    drop(f.worker);
    let (next, _ends) = worker_over(&f.backend, config);
    assert_eq!(next.adopt(|_, _| true).await.unwrap().len(), 1);
    assert!(f.diary.ends().is_empty());
    next.stop(id(1), Duration::ZERO, "over").await.unwrap();
    assert_eq!(f.diary.ends().len(), 1);
}

#[tokio::test]
async fn one_that_was_still_starting_is_adopted_once_it_answers() {
    let f = fixture();
    f.backend.script(Script::default());
    let start = f.worker.start(id(1), launch_with(ProbeKind::Tcp, 3000));
    let listed = eventually("a sandbox", || f.backend.alive() == 1);
    tokio::select! {
        _ = start => panic!("it does not answer"),
        () = listed => {}
    }
    drop(f.worker);
    let mut config = WorkerConfig::new(f.folder.path().join("logs"));
    config.adopt_deadline = Duration::from_secs(1);
    let (next, _ends) = worker_over(&f.backend, config);
    assert!(next.adopt(|_, _| true).await.unwrap().is_empty());
    assert_eq!(f.backend.alive(), 0);
    assert_eq!(f.diary.ends().len(), 1);
}

#[tokio::test]
async fn a_planned_end_ends_what_is_starting_and_refuses_more() {
    let f = fixture();
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    f.backend.script(Script::default());
    let start = f.worker.start(id(2), launch_with(ProbeKind::Tcp, 3000));
    let shutdown = async {
        eventually("a second sandbox", || f.backend.alive() == 2).await;
        f.worker
            .shutdown(ShutdownMode::LeaveRunning, PATIENCE)
            .await;
    };
    let (start, ()) = futures_util::future::join(start, shutdown).await;
    assert!(matches!(
        *start.unwrap_err().failure,
        StartFailure::Stopped(_)
    ));
    assert_eq!(f.backend.alive(), 1);
    let late = f.worker.start(id(3), Arc::new(launch())).await.unwrap_err();
    assert!(matches!(*late.failure, StartFailure::Ending));
}

#[tokio::test]
async fn what_does_not_stop_in_time_is_killed() {
    let f = fixture();
    f.backend.script(Script {
        refuses: Some(0),
        ignores_stop: true,
        ..Script::default()
    });
    for number in 0..20 {
        f.worker
            .start(id(number), Arc::new(launch()))
            .await
            .unwrap();
    }
    let deadline = Duration::from_secs(4);
    f.worker.shutdown(ShutdownMode::StopAll, deadline).await;
    assert_eq!(f.backend.alive(), 0);
    assert_eq!(f.diary.ends().len(), 20);
    assert!(f.diary.steering().contains(&Happened::Signal(9)));
}
