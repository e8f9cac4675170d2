//! What the scheduler decides, case by case.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use skiff_base::Monotonic;
use skiff_sched::{
    Action, AdoptedState, Config, Input, RevisionPlan, Scheduler, Shortage, StopReason,
};
use skiff_types::api::Quota;
use skiff_types::{CpuMode, InstanceId, ProjectId, RevisionId, Scaling, StartCause, WorkerId};

struct Bench {
    scheduler: Scheduler,
    now: Monotonic,
    out: Vec<Action>,
}

fn revision(name: &str) -> RevisionId {
    RevisionId {
        project: ProjectId::default_project(),
        service: name.parse().unwrap(),
        number: 1,
    }
}

fn worker(n: u32) -> WorkerId {
    WorkerId::from_parts(1, n)
}

fn plan(name: &str, change: impl FnOnce(&mut RevisionPlan)) -> Input {
    let mut plan = RevisionPlan {
        revision: revision(name),
        scaling: Scaling {
            concurrency: 1,
            min: 0,
            max: 10,
            keep_alive_s: 60,
        },
        memory_mib: 100,
        overhead_mib: 0,
        cpu_millis: 100,
        cpu_mode: CpuMode::Always,
        serving: true,
        function: false,
    };
    change(&mut plan);
    Input::RevisionUpsert(plan)
}

fn queued(name: &str, waiting: u32) -> Input {
    Input::Queued {
        revision: revision(name),
        waiting,
        in_flight: 0,
    }
}

impl Bench {
    /// One worker with room for `memory_mib`.
    fn new(memory_mib: u64) -> Self {
        let config = Config {
            memory_overcommit_percent: 100,
            cpu_overcommit_percent: 100,
            ..Config::default()
        };
        let mut count = 0;
        let ids = Box::new(move || {
            count += 1;
            InstanceId::from_parts(1, count)
        });
        let mut bench = Self {
            scheduler: Scheduler::new(config, ids),
            now: Monotonic::from_nanos(1_000_000_000_000),
            out: vec![],
        };
        bench.give(Input::WorkerUp {
            worker: worker(1),
            memory_mib,
            cpu_millis: 100_000,
        });
        bench
    }

    fn give(&mut self, input: Input) -> Vec<Action> {
        self.scheduler.handle(self.now, input, &mut self.out);
        std::mem::take(&mut self.out)
    }

    /// Lets time pass, ticking at every deadline.
    fn pass(&mut self, seconds: f64) -> Vec<Action> {
        let until = self.now.plus(Duration::from_secs_f64(seconds));
        let mut all = vec![];
        while let Some(at) = self.scheduler.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            all.extend(self.give(Input::Tick));
        }
        self.now = until;
        all
    }

    fn started(&mut self, input: Input) -> Vec<InstanceId> {
        starts(&self.give(input))
    }

    fn ready(&mut self, instances: &[InstanceId]) {
        for id in instances {
            assert_eq!(self.give(Input::InstanceReady(*id)), []);
        }
    }

    fn load(&mut self, instance: InstanceId, in_flight: u32) -> Vec<Action> {
        self.give(Input::InFlight {
            instance,
            in_flight,
        })
    }
}

fn starts(actions: &[Action]) -> Vec<InstanceId> {
    let start = |action: &Action| match action {
        Action::Start { instance, .. } => Some(*instance),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn stops(actions: &[Action]) -> Vec<(InstanceId, StopReason)> {
    let stop = |action: &Action| match action {
        Action::Stop { instance, reason } => Some((*instance, *reason)),
        _ => None,
    };
    actions.iter().filter_map(stop).collect()
}

fn refusal(actions: &[Action]) -> Shortage {
    let refuse = |action: &Action| match action {
        Action::Refuse { shortage, .. } => Some(*shortage),
        _ => None,
    };
    actions.iter().find_map(refuse).unwrap()
}

#[test]
fn a_queue_starts_what_it_needs_at_once_and_counts_what_is_starting() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |_| {}));
    assert_eq!(bench.started(queued("a", 1)).len(), 1);
    assert_eq!(bench.started(queued("a", 3)).len(), 2);
    assert_eq!(bench.started(queued("a", 3)).len(), 0);
    // Seventy of a hundred are planned for one instance.
    bench.give(plan("b", |p| p.scaling.concurrency = 100));
    assert_eq!(bench.started(queued("b", 70)).len(), 1);
    assert_eq!(bench.started(queued("b", 71)).len(), 1);
}

#[test]
fn max_is_never_exceeded_and_is_named() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.max = 2));
    let out = bench.give(queued("a", 5));
    assert_eq!(starts(&out).len(), 2);
    let shortage = bench.scheduler.shortage(&revision("a"));
    assert_eq!(shortage, Some(Shortage::MaxInstances { max: 2 }));
    assert_eq!(bench.give(queued("a", 6)), [], "nothing is new");
    // A stopping instance counts until it is gone.
    let ids = starts(&out);
    assert!(
        !bench.scheduler.is_limited(&revision("a")),
        "two are coming"
    );
    assert_eq!(bench.give(Input::InstanceReady(ids[0])), []);
    let out = bench.give(Input::InstanceReady(ids[1]));
    assert_eq!(out, [Action::Limit(revision("a"))]);
    assert!(bench.scheduler.is_limited(&revision("a")));
    assert_eq!(
        bench.give(queued("a", 0)),
        [],
        "whether anybody waits or not"
    );
    assert!(bench.scheduler.is_limited(&revision("a")));
    bench.give(queued("a", 6));
    let out = bench.give(plan("a", |p| p.scaling.max = 3));
    assert_eq!(starts(&out).len(), 1);
    assert!(!bench.scheduler.is_limited(&revision("a")), "one is coming");
    let out = bench.give(plan("a", |p| p.scaling.max = 1));
    assert_eq!(stops(&out).len(), 2);
    assert_eq!(starts(&bench.give(queued("a", 6))).len(), 0);
}

#[test]
fn silence_for_the_keep_alive_ends_the_last_instance() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |_| {}));
    let ids = bench.started(queued("a", 1));
    bench.ready(&ids);
    bench.load(ids[0], 1);
    bench.give(queued("a", 0));
    assert_eq!(bench.pass(300.0), [], "a long request is no silence");
    bench.load(ids[0], 0);
    assert_eq!(bench.pass(59.9), []);
    assert_eq!(stops(&bench.pass(0.2)), [(ids[0], StopReason::Idle)]);
    assert_eq!(bench.give(Input::InstanceGone(ids[0])), []);
    assert_eq!(bench.pass(600.0), []);
    assert_eq!(bench.scheduler.next_deadline(), None, "no timer is left");
}

#[test]
fn without_keep_alive_an_instance_stops_as_soon_as_it_is_idle() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.keep_alive_s = 0));
    let ids = bench.started(queued("a", 1));
    bench.ready(&ids);
    // The queue is told empty before the request is told to be in it.
    assert_eq!(bench.give(queued("a", 0)), []);
    assert_eq!(bench.load(ids[0], 1), []);
    assert_eq!(stops(&bench.load(ids[0], 0)), [(ids[0], StopReason::Idle)]);
    assert_eq!(starts(&bench.pass(1.1)), [], "nothing is made in advance");
    assert_eq!(bench.scheduler.next_deadline(), None, "no timer is left");
}

#[test]
fn an_instance_whose_request_went_away_stops_after_the_grace() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.keep_alive_s = 0));
    let ids = bench.started(queued("a", 1));
    bench.give(queued("a", 0));
    bench.ready(&ids);
    assert_eq!(bench.pass(0.9), []);
    assert_eq!(stops(&bench.pass(0.2)), [(ids[0], StopReason::Idle)]);
}

fn causes(actions: &[Action]) -> Vec<StartCause> {
    let of = |action: &Action| match action {
        Action::Start { cause, .. } => Some(*cause),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn what_starts_for_the_floor_is_told_from_what_a_request_waits_for() {
    use StartCause::{Demand, Floor};
    let mut bench = Bench::new(10_000);
    let first = bench.give(plan("a", |p| p.scaling.min = 2));
    assert_eq!(causes(&first), [Floor, Floor]);
    assert_eq!(causes(&bench.give(queued("a", 3))), [Demand]);
    bench.give(plan("b", |_| {}));
    assert_eq!(causes(&bench.give(queued("b", 1))), [Demand]);
    // The one that is coming is for the request, the other one for nobody.
    let other = bench.give(plan("b", |p| p.scaling.min = 2));
    assert_eq!(causes(&other), [Floor]);
}

/// Of a function, whose instances end with their failed starts.
fn function(change: impl FnOnce(&mut RevisionPlan)) -> Input {
    plan("f", |p| {
        p.function = true;
        change(p);
    })
}

#[test]
fn a_start_that_an_event_waits_for_is_tried_once_again_at_once() {
    use StartCause::{Again, Demand};
    let mut bench = Bench::new(10_000);
    bench.give(function(|_| {}));
    let first = bench.started(queued("f", 2));
    for id in &first {
        assert_eq!(causes(&bench.give(Input::InstanceFailed(*id))), [Again]);
    }
    assert_eq!(bench.scheduler.shortage(&revision("f")), None);
    // What fails within its events' time is their answer, and no bad start.
    let second = bench.scheduler.counts(&revision("f")).unwrap();
    assert_eq!((second.starting, second.waiting), (2, 2));
    bench.give(queued("f", 0));
    assert_eq!(causes(&bench.give(queued("f", 3))), [Demand]);
}

#[test]
fn a_second_try_that_fails_before_its_event_is_there_backs_off() {
    use StartCause::{Again, Demand};
    let mut bench = Bench::new(10_000);
    bench.give(function(|_| {}));
    let first = bench.started(queued("f", 1));
    let out = bench.give(Input::InstanceFailed(first[0]));
    assert_eq!(causes(&out), [Again]);
    bench.give(Input::InstanceFailed(starts(&out)[0]));
    let shortage = bench.scheduler.shortage(&revision("f"));
    assert!(
        matches!(shortage, Some(Shortage::CrashLoop { failures: 1, .. })),
        "{shortage:?}"
    );
    bench.now = bench.now.plus(Duration::from_secs(1));
    assert_eq!(causes(&bench.give(Input::Tick)), [Demand]);
}

#[test]
fn nothing_is_tried_again_that_no_event_waits_for() {
    for (serving, min, waiting) in [(false, 0, 1), (true, 1, 0)] {
        let mut bench = Bench::new(10_000);
        let mut out = bench.give(function(|p| {
            p.serving = serving;
            p.scaling.min = min;
        }));
        out.extend(bench.give(queued("f", waiting)));
        let first = starts(&out);
        assert_eq!(causes(&bench.give(Input::InstanceFailed(first[0]))), []);
        let shortage = bench.scheduler.shortage(&revision("f"));
        assert!(shortage.is_some(), "serving {serving}, min {min}");
    }
    // Nor for an event that was given up meanwhile.
    let mut bench = Bench::new(10_000);
    bench.give(function(|_| {}));
    let first = bench.started(queued("f", 1));
    bench.give(queued("f", 0));
    assert_eq!(bench.give(Input::InstanceFailed(first[0])), []);
}

#[test]
fn min_is_held_without_traffic_until_the_revision_no_longer_serves() {
    let mut bench = Bench::new(10_000);
    let ids = bench.started(plan("a", |p| p.scaling.min = 2));
    assert_eq!(ids.len(), 2);
    bench.ready(&ids);
    assert_eq!(bench.pass(600.0), []);
    let out = bench.give(Input::InstanceGone(ids[0]));
    assert_eq!(starts(&out).len(), 1, "a lost one is replaced");
    bench.ready(&starts(&out));
    bench.load(ids[1], 1);
    bench.give(plan("a", |p| p.serving = false));
    assert_eq!(stops(&bench.pass(2.0)).len(), 1, "the idle one");
    assert_eq!(
        stops(&bench.load(ids[1], 0)).len(),
        1,
        "the busy one when it is done"
    );
}

#[test]
fn the_longest_idle_ones_go_first() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |_| {}));
    let ids = bench.started(queued("a", 3));
    bench.ready(&ids);
    for id in &ids {
        bench.load(*id, 1);
    }
    bench.give(queued("a", 0));
    for id in [ids[2], ids[0], ids[1]] {
        bench.load(id, 0);
        bench.pass(1.0);
    }
    let ended: Vec<_> = stops(&bench.pass(120.0)).into_iter().map(|s| s.0).collect();
    assert_eq!(ended, [ids[2], ids[0], ids[1]]);
}

#[test]
fn a_lower_average_drains_busy_instances_after_the_keep_alive() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.concurrency = 100));
    let ids = bench.started(queued("a", 280));
    assert_eq!(ids.len(), 4);
    bench.ready(&ids);
    for id in &ids {
        bench.load(*id, 70);
    }
    bench.give(queued("a", 0));
    assert_eq!(stops(&bench.pass(120.0)), []);
    for id in &ids {
        bench.load(*id, 1);
    }
    let out = bench.pass(300.0);
    assert_eq!(stops(&out).len(), 3, "{out:?}");
    assert!(stops(&out).iter().all(|s| s.1 == StopReason::ScaleDown));
}

#[test]
fn a_steady_load_over_the_target_adds_an_instance_before_anybody_waits() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.concurrency = 10));
    let ids = bench.started(queued("a", 1));
    bench.ready(&ids);
    bench.load(ids[0], 9);
    bench.give(queued("a", 0));
    assert_eq!(starts(&bench.pass(10.0)).len(), 1);
}

#[test]
fn idle_instances_pause_only_when_processor_time_is_per_request() {
    for (mode, paused) in [(CpuMode::Always, false), (CpuMode::Request, true)] {
        let mut bench = Bench::new(10_000);
        bench.give(plan("a", |p| p.cpu_mode = mode));
        let ids = bench.started(queued("a", 1));
        bench.ready(&ids);
        bench.load(ids[0], 1);
        bench.give(queued("a", 0));
        assert_eq!(bench.pass(5.0), [], "an open stream counts as a request");
        bench.load(ids[0], 0);
        let expected: &[Action] = if paused {
            &[Action::Pause(ids[0])]
        } else {
            &[]
        };
        assert_eq!(bench.pass(1.0), expected);
        let expected: &[Action] = if paused {
            &[Action::Resume(ids[0])]
        } else {
            &[]
        };
        assert_eq!(bench.load(ids[0], 1), expected);
    }
}

#[test]
fn failing_starts_back_off_and_say_so() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |_| {}));
    let ids = bench.started(queued("a", 3));
    assert_eq!(bench.give(Input::InstanceFailed(ids[0])), [], "two may do");
    let crash = |failures, ms| Shortage::CrashLoop {
        failures,
        retry_in: Duration::from_millis(ms),
    };
    // What was started together fails together.
    bench.give(Input::InstanceFailed(ids[1]));
    let out = bench.give(Input::InstanceFailed(ids[2]));
    assert_eq!(refusal(&out), crash(1, 500));
    assert_eq!(starts(&out), []);
    assert_eq!(bench.pass(0.4), []);
    let again = starts(&bench.pass(0.2));
    assert_eq!(again.len(), 1, "one at a time");
    let out = bench.give(Input::InstanceFailed(again[0]));
    assert_eq!(refusal(&out), crash(2, 1000));
    let again = starts(&bench.pass(1.1));
    // While failures are remembered, they start one after the other.
    let out = bench.give(Input::InstanceReady(again[0]));
    assert_eq!(starts(&out).len(), 1);
    assert_eq!(bench.give(queued("a", 3)), []);
}

#[test]
fn an_instance_that_is_ended_for_another_cause_has_not_crashed() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.concurrency = 1));
    let ids = bench.started(queued("a", 1));
    bench.give(Input::InstanceReady(ids[0]));
    bench.give(queued("a", 0));
    let out = bench.give(Input::InstanceRetired(ids[0]));
    assert_eq!(out, [], "whoever retires it ends it");
    let next = bench.started(queued("a", 1));
    assert_eq!(next.len(), 1, "it is replaced at once");
    assert_eq!(bench.give(Input::InstanceGone(ids[0])), []);
    assert_eq!(bench.scheduler.shortage(&revision("a")), None);
}

#[test]
fn a_function_s_instance_may_end_with_its_event() {
    for (function, used, replaced) in [
        (true, true, true),
        (true, false, false),
        (false, true, false),
    ] {
        let mut bench = Bench::new(10_000);
        bench.give(plan("a", |p| p.function = function));
        let ids = bench.started(queued("a", 1));
        bench.give(Input::InstanceReady(ids[0]));
        if used {
            bench.give(Input::InFlight {
                instance: ids[0],
                in_flight: 1,
            });
        }
        bench.give(queued("a", 0));
        bench.give(Input::InstanceFailed(ids[0]));
        let next = starts(&bench.give(queued("a", 1)));
        assert_eq!(!next.is_empty(), replaced, "{function} {used}");
    }
}

#[test]
fn an_average_of_past_requests_starts_nothing_in_silence() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.keep_alive_s = 1));
    let ids = bench.started(queued("a", 1));
    bench.give(Input::InstanceReady(ids[0]));
    bench.pass(0.5);
    bench.give(queued("a", 0));
    let out = bench.pass(1.2);
    assert!(matches!(out[..], [Action::Stop { .. }]), "{out:?}");
    bench.give(Input::InstanceGone(ids[0]));
    for _ in 0..20 {
        assert_eq!(starts(&bench.pass(0.5)), []);
    }
}

#[test]
fn a_crash_loop_does_not_spin() {
    let mut bench = Bench::new(10_000);
    let first = bench.started(plan("a", |p| p.scaling.min = 1));
    bench.give(Input::InstanceFailed(first[0]));
    let mut tries = 1;
    for _ in 0..1000 {
        bench.now = bench.now.plus(Duration::from_millis(100));
        for id in starts(&bench.pass(0.0)) {
            tries += 1;
            bench.give(Input::InstanceFailed(id));
        }
    }
    // In a hundred seconds: 0.5, 1, 2, 4, 8, 16, 32, ... seconds apart.
    assert!((5..=8).contains(&tries), "{tries}");
}

#[test]
fn short_capacity_is_named_and_given_out_when_it_appears() {
    let mut bench = Bench::new(150);
    bench.give(plan("a", |_| {}));
    bench.give(plan("b", |_| {}));
    let first = bench.started(queued("a", 1));
    bench.ready(&first);
    bench.load(first[0], 1);
    bench.give(queued("a", 0));
    let shortage = refusal(&bench.give(queued("b", 1)));
    assert_eq!(
        shortage,
        Shortage::Memory {
            needed_mib: 100,
            free_mib: 50
        }
    );
    assert_eq!(bench.scheduler.shortage(&revision("b")), Some(shortage));
    assert_eq!(bench.give(queued("b", 2)), [], "told once");
    bench.give(queued("b", 0));
    let again = refusal(&bench.give(queued("b", 1)));
    assert_eq!(again, shortage, "whoever comes later is told, too");
    // The instance that holds the room becomes idle: it gives way.
    let out = bench.load(first[0], 0);
    assert_eq!(stops(&out), [(first[0], StopReason::Reclaimed)]);
    let out = bench.give(Input::InstanceGone(first[0]));
    assert_eq!(starts(&out).len(), 1);
    assert_eq!(bench.scheduler.shortage(&revision("b")), None);
}

#[test]
fn a_quota_is_named_and_its_change_is_taken_up() {
    let mut bench = Bench::new(10_000);
    let quota = |instances| Input::QuotaSet {
        project: ProjectId::default_project(),
        quota: Quota {
            instances: Some(instances),
            ..Quota::default()
        },
    };
    bench.give(quota(1));
    bench.give(plan("a", |_| {}));
    let out = bench.give(queued("a", 3));
    let ids = starts(&out);
    assert_eq!((ids.len(), out.len()), (1, 1), "the others wait for it");
    let short = Some(Shortage::QuotaInstances { limit: 1 });
    assert_eq!(bench.scheduler.shortage(&revision("a")), short);
    let out = bench.give(Input::InstanceReady(ids[0]));
    assert_eq!(out, [Action::Limit(revision("a"))]);
    bench.load(ids[0], 1);
    assert_eq!(bench.give(queued("a", 2)), [], "they wait while it serves");
    // Who has none, and can get none, is told.
    bench.give(plan("b", |_| {}));
    let out = bench.give(queued("b", 1));
    assert_eq!(refusal(&out), Shortage::QuotaInstances { limit: 1 });
    assert_eq!(bench.started(quota(2)).len(), 1);
}

#[test]
fn idle_instances_give_way_and_nobody_is_refused() {
    let mut bench = Bench::new(300);
    bench.give(plan("kept", |p| p.scaling.min = 1));
    bench.give(plan("old", |p| p.scaling.keep_alive_s = 3600));
    bench.give(plan("young", |p| p.scaling.keep_alive_s = 3600));
    let kept = bench.scheduler.instance_count();
    assert_eq!(kept, 1, "for its floor");
    let old = bench.started(queued("old", 1));
    bench.ready(&old);
    bench.give(queued("old", 0));
    bench.pass(5.0);
    let young = bench.started(queued("young", 1));
    bench.ready(&young);
    bench.give(queued("young", 0));
    // The longest unused one goes, and what needs its room waits for that.
    bench.give(plan("new", |_| {}));
    let out = bench.give(queued("new", 1));
    assert_eq!(
        out,
        [Action::Stop {
            instance: old[0],
            reason: StopReason::Reclaimed
        }]
    );
    assert_eq!(bench.give(queued("new", 1)), [], "it is on its way");
    // Another one takes the next, and a third finds nothing.
    bench.give(plan("newer", |_| {}));
    let out = bench.give(queued("newer", 1));
    assert_eq!(stops(&out), [(young[0], StopReason::Reclaimed)]);
    bench.give(plan("newest", |_| {}));
    let short = refusal(&bench.give(queued("newest", 1)));
    assert!(matches!(
        short,
        Shortage::Memory {
            needed_mib: 100,
            free_mib: 0
        }
    ));
    assert_eq!(starts(&bench.give(Input::InstanceGone(old[0]))).len(), 1);
    assert_eq!(starts(&bench.give(Input::InstanceGone(young[0]))).len(), 1);
}

#[test]
fn room_that_is_about_to_be_free_is_waited_for() {
    let mut bench = Bench::new(250);
    bench.give(plan("a", |p| p.scaling.keep_alive_s = 0));
    bench.give(plan("b", |_| {}));
    bench.give(plan("c", |p| p.memory_mib = 150));
    let a = bench.started(queued("a", 1));
    bench.ready(&a);
    bench.load(a[0], 1);
    bench.give(queued("a", 0));
    let b = bench.started(queued("b", 1));
    bench.ready(&b);
    bench.give(queued("b", 0));
    assert_eq!(
        stops(&bench.load(a[0], 0)).len(),
        1,
        "its keep-alive is over"
    );
    assert_eq!(bench.give(queued("c", 1)), [], "that is enough: b stays");
    assert_eq!(starts(&bench.give(Input::InstanceGone(a[0]))).len(), 1);
}

#[test]
fn a_lost_worker_takes_its_instances_and_others_replace_them() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.min = 2));
    let out = bench.give(Input::WorkerDown(worker(1)));
    assert_eq!(refusal(&out), Shortage::NoWorker);
    assert_eq!(bench.scheduler.instance_count(), 0);
    let out = bench.give(Input::WorkerUp {
        worker: worker(2),
        memory_mib: 1000,
        cpu_millis: 1000,
    });
    assert_eq!(starts(&out).len(), 2);
}

#[test]
fn what_was_found_running_is_kept_if_it_is_wanted() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.min = 1));
    let mine = InstanceId::from_parts(9, 1);
    let adopt = |instance, name: &str| Input::Adopted {
        instance,
        revision: revision(name),
        worker: worker(1),
        state: AdoptedState::Ready,
    };
    assert_eq!(bench.give(adopt(mine, "a")), []);
    let orphan = InstanceId::from_parts(9, 2);
    let out = bench.give(adopt(orphan, "gone"));
    assert_eq!(stops(&out), [(orphan, StopReason::Orphan)]);
    assert_eq!(bench.scheduler.counts(&revision("a")).unwrap().ready, 1);
}

#[test]
fn a_removed_revision_stops_all_and_is_forgotten() {
    let mut bench = Bench::new(10_000);
    let ids = bench.started(plan("a", |p| p.scaling.min = 2));
    bench.ready(&ids);
    bench.load(ids[0], 1);
    let out = bench.give(Input::RevisionRemove(revision("a")));
    assert_eq!(stops(&out).len(), 2);
    assert_eq!(bench.give(queued("a", 5)), []);
    bench.give(Input::InstanceGone(ids[0]));
    bench.give(Input::InstanceGone(ids[1]));
    assert_eq!(bench.scheduler.counts(&revision("a")), None);
    assert_eq!(
        bench.scheduler.worker_free(worker(1)),
        Some((10_000, 100_000))
    );
}

#[test]
fn a_request_may_be_told_before_the_readiness_of_its_instance() {
    let mut bench = Bench::new(10_000);
    bench.give(plan("a", |p| p.scaling.keep_alive_s = 0));
    let ids = bench.started(queued("a", 1));
    assert_eq!(bench.load(ids[0], 1), []);
    assert_eq!(bench.give(Input::InstanceReady(ids[0])), []);
    bench.give(queued("a", 0));
    assert_eq!(bench.pass(30.0), [], "it is busy");
    assert_eq!(stops(&bench.load(ids[0], 0)), [(ids[0], StopReason::Idle)]);
}
