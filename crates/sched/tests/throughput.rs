//! An event's work must not grow with the number of revisions.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use skiff_base::{Clock, Monotonic, SystemClock};
use skiff_sched::{Action, Config, Input, RevisionPlan, Scheduler};
use skiff_types::{CpuMode, InstanceId, ProjectId, RevisionId, Scaling, WorkerId};

fn scheduler(revisions: u32) -> (Scheduler, Vec<RevisionId>) {
    let mut count = 0;
    let ids = Box::new(move || {
        count += 1;
        InstanceId::from_parts(1, count)
    });
    let mut scheduler = Scheduler::new(Config::default(), ids);
    let mut out = vec![];
    let now = Monotonic::from_nanos(1);
    let worker = WorkerId::from_parts(1, 1);
    let (memory_mib, cpu_millis) = (24_000, 2000);
    scheduler.handle(
        now,
        Input::WorkerUp {
            worker,
            memory_mib,
            cpu_millis,
        },
        &mut out,
    );
    let names = (0..revisions).map(|n| RevisionId {
        project: ProjectId::default_project(),
        service: format!("service-{n}").parse().unwrap(),
        number: 1,
    });
    let names: Vec<_> = names.collect();
    for revision in &names {
        let plan = RevisionPlan {
            revision: revision.clone(),
            scaling: Scaling {
                concurrency: 1,
                min: 0,
                max: 100,
                keep_alive_s: 0,
            },
            memory_mib: 64,
            overhead_mib: 0,
            cpu_millis: 100,
            cpu_mode: CpuMode::Always,
            serving: true,
            function: false,
        };
        scheduler.handle(now, Input::RevisionUpsert(plan), &mut out);
    }
    (scheduler, names)
}

/// Whole cycles, from a request that waits to an instance that is gone, in a second.
fn cycles_per_s(revisions: u32) -> u128 {
    const CYCLES: usize = 50_000;
    let (mut scheduler, names) = scheduler(revisions);
    let mut out = vec![];
    let started = SystemClock.now();
    for n in 0..CYCLES {
        let now = Monotonic::from_nanos(1_000_000_000 + n as u64 * 20_000);
        let revision = &names[n * 7919 % names.len()];
        let queued = |waiting| Input::Queued {
            revision: revision.clone(),
            waiting,
            in_flight: 0,
        };
        out.clear();
        scheduler.handle(now, queued(1), &mut out);
        let Some(Action::Start { instance, .. }) = out.first() else {
            panic!("{out:?}");
        };
        let instance = *instance;
        scheduler.handle(now, Input::InstanceReady(instance), &mut out);
        scheduler.handle(
            now,
            Input::InFlight {
                instance,
                in_flight: 1,
            },
            &mut out,
        );
        scheduler.handle(now, queued(0), &mut out);
        scheduler.handle(
            now,
            Input::InFlight {
                instance,
                in_flight: 0,
            },
            &mut out,
        );
        assert!(matches!(out.last(), Some(Action::Stop { .. })));
        scheduler.handle(now, Input::InstanceGone(instance), &mut out);
        while scheduler.next_deadline().is_some_and(|at| at <= now) {
            scheduler.handle(now, Input::Tick, &mut out);
        }
    }
    let took = SystemClock
        .now()
        .since(started)
        .max(Duration::from_nanos(1));
    CYCLES as u128 * 1_000_000_000 / took.as_nanos()
}

#[test]
fn ten_thousand_revisions_cost_little_more_than_ten() {
    let few = cycles_per_s(10);
    let many = cycles_per_s(10_000);
    println!("start/stop cycles per second: {few} with 10 revisions, {many} with 10,000");
    // Unoptimised and on a busy machine; a scan of all revisions would be a
    // thousand times slower, not ten.
    assert!(
        many * 10 > few,
        "{few} with 10 revisions, {many} with 10,000"
    );
}
