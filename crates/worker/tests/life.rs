//! The life of instances, told by what happens to sandboxes and records.
#![allow(clippy::unwrap_used)]

mod common;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use common::{
    Happened, PATIENCE, Script, eventually, exited, fixture, fixture_with, id, killed, launch,
    launch_with,
};
use skiff_base::chain;
use skiff_types::{ErrorKind, IsolationClass, IsolationRequest, ProbeKind};
use skiff_wire::launcher::Exit;
use skiff_worker::{EndReason, InstanceState, StartFailure, WorkerConfig, WorkerError};
use tokio::time::timeout;

const NO_GRACE: Duration = Duration::ZERO;
const LONG_GRACE: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_instance_starts_serves_and_stops() {
    let mut f = fixture();
    f.backend.script(Script {
        refuses: Some(3),
        ..Script::default()
    });
    let started = f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    assert_eq!(started.class, IsolationClass::Container);
    assert_eq!(
        started.class_reason,
        "container: virtual machines are not set up"
    );
    assert_eq!(started.phases.steps_us, [("exec".to_owned(), 5)]);
    assert!(started.phases.app_us >= 3000, "{:?}", started.phases);
    assert!(started.sandbox.connect(started.port).await.is_ok());
    let listed = f.worker.instances();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, InstanceState::Ready);
    f.worker.stop(id(1), LONG_GRACE, "idle").await.unwrap();
    assert!(f.worker.instances().is_empty());
    let all = f.diary.all();
    assert!(matches!(&all[0], Happened::Layers(0)));
    let Happened::Start(start) = &all[1] else {
        panic!("{all:?}")
    };
    let why = start.fell_back.as_deref();
    assert_eq!(
        (start.memory_mib, why),
        (256, Some("virtual machines are not set up"))
    );
    assert_eq!(all[2], Happened::Create(id(1)));
    assert_eq!(all[3], Happened::Signal(15));
    assert_eq!(all[4], Happened::Destroy(id(1)));
    let Happened::End(end) = &all[5] else {
        panic!("{all:?}")
    };
    assert_eq!(
        (end.cpu_us, end.reason.as_str()),
        (2000, "was stopped: idle")
    );
    assert!(end.lifetime_us > 0);
    assert_eq!(all.len(), 6);
    assert!(f.ends.try_recv().is_err(), "a stop is no event");
}

#[tokio::test]
async fn an_http_probe_waits_for_200_to_399() {
    let f = fixture();
    f.backend.script(Script {
        refuses: Some(1),
        answers: vec![503, 404, 302],
        ..Script::default()
    });
    let launch = launch_with(ProbeKind::Http("/ready".into()), 60);
    f.worker.start(id(1), launch).await.unwrap();
    f.backend.script(Script {
        refuses: Some(0),
        answers: vec![500; 100_000],
        ..Script::default()
    });
    let launch = launch_with(ProbeKind::Http("/ready".into()), 1);
    let error = f.worker.start(id(2), launch).await.unwrap_err();
    assert_eq!(
        chain(&error).to_string(),
        format!(
            "the instance {} of 000000000001/hello-00001 did not start: \
             the application did not answer on port 8080 within 1 s: GET /ready answered 500",
            id(2)
        )
    );
    assert_eq!(error.kind(), ErrorKind::Timeout);
}

async fn fails(script: Script) -> (StartFailure, Vec<String>, Vec<Happened>) {
    let f = fixture();
    f.backend.script(script);
    let launch = launch_with(ProbeKind::Tcp, 30);
    let error = f.worker.start(id(1), launch).await.unwrap_err();
    assert!(error.source().is_some());
    assert_eq!(f.backend.alive(), 0, "nothing is left");
    assert!(f.worker.instances().is_empty());
    assert_eq!((f.diary.starts(), f.diary.ends().len()), (1, 1));
    (*error.failure, error.log, f.diary.all())
}

#[tokio::test]
async fn an_early_exit_ends_the_wait_with_its_cause_and_last_lines() {
    let lines: String = (1..=30).map(|n| format!("line {n}\n")).collect();
    let (failure, log, _) = fails(Script {
        stdout: lines,
        stderr: "no such module".to_owned(),
        exit: Some(exited(3)),
        ..Script::default()
    })
    .await;
    let StartFailure::Ended(reason, 8080) = failure else {
        panic!("{failure:?}")
    };
    assert_eq!(reason, EndReason::Exited { code: 3 });
    assert_eq!(log.len(), 20);
    assert!(log.contains(&"line 30".to_owned()) && log.contains(&"no such module".to_owned()));

    let out_of_memory = Exit {
        out_of_memory: true,
        ..killed(9)
    };
    for (exit, expect) in [
        (out_of_memory, EndReason::OutOfMemory),
        (killed(11), EndReason::Killed { signal: 11 }),
        (exited(0), EndReason::Exited { code: 0 }),
    ] {
        let (failure, _, all) = fails(Script {
            exit: Some(exit),
            ..Script::default()
        })
        .await;
        let StartFailure::Ended(reason, _) = failure else {
            panic!("{failure:?}")
        };
        assert_eq!(reason, expect);
        let oom = |h: &Happened| matches!(h, Happened::End(end) if end.out_of_memory);
        assert_eq!(all.iter().any(oom), exit.out_of_memory);
    }
}

#[tokio::test]
async fn a_refused_creation_names_the_step_and_bills_nothing() {
    let (failure, _, all) = fails(Script {
        refuse: true,
        ..Script::default()
    })
    .await;
    let told = chain(&failure).to_string();
    assert!(told.contains("refused at `exec`: no such file"), "{told}");
    let Some(Happened::End(end)) = all.last() else {
        panic!("{all:?}")
    };
    assert_eq!((end.lifetime_us, end.cpu_us), (0, 0));
}

#[tokio::test]
async fn a_creation_that_hangs_is_given_up() {
    let f = fixture_with(|config| config.step_deadline = Duration::from_millis(20));
    f.backend.script(Script {
        hang: true,
        ..Script::default()
    });
    let error = f.worker.start(id(1), Arc::new(launch())).await.unwrap_err();
    assert!(matches!(*error.failure, StartFailure::TooSlow { .. }));
}

#[tokio::test]
async fn what_cannot_be_is_refused_at_once() {
    let f = fixture_with(|config| config.instances_max = 1);
    let mut microvm = launch();
    microvm.isolation = IsolationRequest::Microvm;
    let error = f.worker.start(id(1), Arc::new(microvm)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        chain(&error)
            .to_string()
            .contains("microvm cannot serve: virtual machines are not set up")
    );
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    let again = f.worker.start(id(1), Arc::new(launch())).await.unwrap_err();
    assert!(matches!(*again.failure, StartFailure::Duplicate));
    let full = f.worker.start(id(2), Arc::new(launch())).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted);
    let stop = f.worker.stop(id(9), NO_GRACE, "").await.unwrap_err();
    assert!(matches!(stop, WorkerError::NotFound(_)));
    assert_eq!(f.diary.starts(), 1);
}

#[tokio::test]
async fn a_stop_escalates_only_as_far_as_it_must() {
    let f = fixture();
    let deaf = Script {
        refuses: Some(0),
        ignores_stop: true,
        ..Script::default()
    };
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    f.worker.stop(id(1), LONG_GRACE, "a").await.unwrap();
    assert_eq!(f.diary.steering(), [Happened::Signal(15)]);

    f.backend.script(deaf);
    f.worker.start(id(2), Arc::new(launch())).await.unwrap();
    let grace = Duration::from_millis(10);
    f.worker.stop(id(2), grace, "b").await.unwrap();
    assert_eq!(
        f.diary.steering()[1..],
        [Happened::Signal(15), Happened::Signal(9)]
    );

    f.worker.start(id(3), Arc::new(launch())).await.unwrap();
    f.worker.stop(id(3), NO_GRACE, "c").await.unwrap();
    assert_eq!(f.diary.steering()[3..], [Happened::Signal(9)]);
    assert_eq!(f.diary.ends().len(), 3);
}

#[tokio::test]
async fn a_second_stop_shortens_the_grace_and_both_wait() {
    let f = fixture();
    f.backend.script(Script {
        refuses: Some(0),
        ignores_stop: true,
        ..Script::default()
    });
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    let patient = f.worker.stop(id(1), LONG_GRACE, "patient");
    let hasty = async {
        eventually("it is asked", || {
            f.diary.steering() == [Happened::Signal(15)]
        })
        .await;
        f.worker.stop(id(1), NO_GRACE, "hasty").await
    };
    let both = futures_util::future::join(patient, hasty);
    let (patient, hasty) = timeout(PATIENCE, both).await.unwrap();
    assert!(patient.is_ok() && hasty.is_ok());
    assert_eq!(f.diary.ends().len(), 1);
    assert_eq!(f.diary.ends()[0].reason, "was stopped: patient");
}

#[tokio::test]
async fn a_stop_ends_a_start() {
    let f = fixture();
    let hangs = Script {
        hang: true,
        ..Script::default()
    };
    for (count, script) in [(1, Script::default()), (2, hangs)] {
        f.backend.script(script);
        let start = f.worker.start(id(1), launch_with(ProbeKind::Tcp, 3000));
        let stop = async {
            eventually("it is begun", || f.diary.starts() == count).await;
            assert_eq!(f.worker.instances()[0].state, InstanceState::Starting);
            f.worker.stop(id(1), LONG_GRACE, "deleted").await
        };
        let both = futures_util::future::join(start, stop);
        let (start, stop) = timeout(PATIENCE, both).await.unwrap();
        assert!(matches!(&*start.unwrap_err().failure, StartFailure::Stopped(r) if r == "deleted"));
        stop.unwrap();
        assert_eq!(f.backend.alive(), 0);
    }
    assert_eq!((f.diary.starts(), f.diary.ends().len()), (2, 2));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing() {
    let f = fixture();
    f.backend.script(Script {
        refuses: Some(20),
        ..Script::default()
    });
    {
        let mut start = Box::pin(f.worker.start(id(1), Arc::new(launch())));
        let listed = eventually("a sandbox", || f.backend.alive() == 1);
        tokio::select! {
            _ = &mut start => panic!("too early"),
            () = listed => {}
        }
    }
    eventually("it is gone", || f.worker.instances().is_empty()).await;
    assert_eq!(f.backend.alive(), 0);
    assert_eq!(f.diary.ends().len(), 1);
}

#[tokio::test]
async fn who_ends_by_itself_is_told_recorded_and_removed() {
    let mut f = fixture();
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    f.backend.sandbox(id(1)).end(exited(7));
    let ended = timeout(PATIENCE, f.ends.recv()).await.unwrap().unwrap();
    assert_eq!(ended.instance, id(1));
    assert_eq!(ended.reason, EndReason::Exited { code: 7 });
    eventually("it is gone", || f.worker.instances().is_empty()).await;
    assert_eq!(f.backend.alive(), 0);
    assert_eq!(f.diary.ends()[0].reason, "exited with code 7");
}

#[tokio::test]
async fn a_paused_instance_is_resumed_to_be_stopped() {
    let f = fixture();
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    f.worker.pause(id(1)).await.unwrap();
    f.worker.pause(id(1)).await.unwrap();
    assert_eq!(f.worker.instances()[0].state, InstanceState::Paused);
    f.worker.resume(id(1)).await.unwrap();
    assert_eq!(f.worker.instances()[0].state, InstanceState::Ready);
    f.worker.pause(id(1)).await.unwrap();
    assert_eq!(f.worker.stats(id(1)).await.unwrap().cpu_us, 1000);
    f.worker.stop(id(1), LONG_GRACE, "idle").await.unwrap();
    let all = [
        Happened::Pause,
        Happened::Resume,
        Happened::Pause,
        Happened::Resume,
        Happened::Signal(15),
    ];
    assert_eq!(f.diary.steering(), all);
    assert!(f.worker.pause(id(1)).await.is_err());
}

#[tokio::test]
async fn a_watcher_is_told_of_every_sandbox_while_it_is_there() {
    let mut watched = fixture();
    let diary = common::Diary::default();
    let mut config = WorkerConfig::new(watched.folder.path().join("watched"));
    config.watcher = Some(Arc::new(diary.clone()));
    (watched.worker, watched.ends) = common::worker_over(&watched.backend, config);
    let start = |n| watched.worker.start(id(n), Arc::new(launch()));
    start(1).await.unwrap();
    watched.worker.stop(id(1), NO_GRACE, "idle").await.unwrap();
    watched.backend.script(Script {
        exit: Some(exited(1)),
        ..Script::default()
    });
    start(2).await.unwrap_err();
    watched.backend.script(Script {
        refuse: true,
        ..Script::default()
    });
    start(3).await.unwrap_err();
    let told = [
        Happened::There(id(1)),
        Happened::Gone(id(1)),
        Happened::There(id(2)),
        Happened::Gone(id(2)),
    ];
    assert_eq!(diary.all(), told);
}

#[tokio::test]
async fn running_instances_are_sampled() {
    let f = fixture_with(|config| config.sample_period = Duration::from_millis(5));
    f.worker.start(id(1), Arc::new(launch())).await.unwrap();
    let sample = Happened::Sample(id(1), 1000);
    eventually("a sample", || f.diary.all().contains(&sample)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_lives_is_recorded_once() {
    const LIVES: u32 = 200;
    let mut f = fixture();
    let lives = (0..LIVES).map(|number| {
        let (worker, backend) = (f.worker.clone(), f.backend.clone());
        async move {
            worker.start(id(number), Arc::new(launch())).await.unwrap();
            match number % 3 {
                0 => backend.sandbox(id(number)).end(exited(1)),
                1 => worker.stop(id(number), NO_GRACE, "now").await.unwrap(),
                _ => {
                    // Its own end and the order to end meet.
                    backend.sandbox(id(number)).end(exited(1));
                    let _ended_already = worker.stop(id(number), LONG_GRACE, "").await;
                }
            }
        }
    });
    futures_util::future::join_all(lives).await;
    eventually("all are gone", || f.worker.instances().is_empty()).await;
    let mut ends: Vec<_> = f.diary.ends().iter().map(|end| end.instance).collect();
    ends.sort();
    ends.dedup();
    assert_eq!(ends.len(), f.diary.ends().len());
    assert_eq!(ends.len(), usize::try_from(LIVES).unwrap());
    assert_eq!(f.diary.starts(), ends.len());
    f.ends.close();
}
