use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

const NOW: Monotonic = Monotonic::from_nanos(1_000_000_000_000);

fn pool<W>(concurrency: u32, queue_max: u32) -> Pool<W> {
    Pool::new(concurrency, queue_max, Duration::from_millis(300))
}

fn slot<W>(acquired: &Acquired, _: &Pool<W>) -> Key {
    match acquired {
        Acquired::Slot { key, .. } => *key,
        other => panic!("a slot was expected, not {other:?}"),
    }
}

#[test]
fn the_warmest_idle_instance_comes_first() {
    let mut pool: Pool<u32> = pool(10, 10);
    let (a, _) = pool.add(NOW);
    let (b, _) = pool.add(NOW);
    let first = slot(&pool.acquire(NOW, 0, || 0), &pool);
    assert_eq!(first, b, "added last, so warmest");
    let second = slot(&pool.acquire(NOW, 0, || 0), &pool);
    assert_eq!(second, a, "idle comes before busy");
    pool.release(b, NOW);
    pool.release(a, NOW);
    assert_eq!(slot(&pool.acquire(NOW, 0, || 0), &pool), a, "used last");
}

#[test]
fn of_two_busy_instances_the_less_loaded_is_taken() {
    let mut pool: Pool<u32> = pool(3, 10);
    let (a, _) = pool.add(NOW);
    let (b, _) = pool.add(NOW);
    pool.acquire(NOW, 0, || 0);
    pool.acquire(NOW, 0, || 0);
    // Both have one; the third goes to either, the fourth to the other.
    let third = slot(&pool.acquire(NOW, 1 << 32, || 0), &pool);
    let fourth = slot(&pool.acquire(NOW, 1 << 32, || 0), &pool);
    assert_ne!(third, fourth);
    assert_eq!(pool.in_flight_of(a), 2);
    assert_eq!(pool.in_flight_of(b), 2);
}

#[test]
fn at_zero_it_holds_no_memory_for_instances() {
    let mut pool: Pool<u32> = pool(3, 10);
    for _ in 0..2 {
        let (a, _) = pool.add(NOW);
        let (b, _) = pool.add(NOW);
        pool.acquire(NOW, 0, || 0);
        assert!(pool.retire(a), "nothing is in flight in it");
        assert!(!pool.retire(b), "it took the request");
        assert!(!pool.has_no_members());
        assert!(matches!(pool.release(b, NOW), Released::Gone));
        assert!(pool.has_no_members());
        let held = [pool.members.capacity(), pool.free_keys.capacity()];
        assert_eq!(held, [0; 2]);
        assert_eq!([pool.idle.capacity(), pool.open.capacity()], [0; 2]);
    }
}

#[test]
fn waiters_are_served_in_order_and_may_leave() {
    let mut pool: Pool<u32> = pool(1, 3);
    let (key, _) = pool.add(NOW);
    pool.acquire(NOW, 0, || 0);
    let tickets: Vec<_> = (1..=3).map(|n| pool.acquire(NOW, 0, || n)).collect();
    assert_eq!(pool.acquire(NOW, 0, || 9), Acquired::Full);
    let Acquired::Wait { ticket } = tickets[0] else {
        panic!("{tickets:?}");
    };
    assert!(pool.cancel(ticket, NOW));
    assert!(!pool.cancel(ticket, NOW), "only once");
    assert!(matches!(pool.release(key, NOW), Released::Granted(2)));
    assert!(matches!(pool.release(key, NOW), Released::Granted(3)));
    assert!(matches!(pool.release(key, NOW), Released::Idle));
}

#[test]
fn a_new_instance_serves_as_many_waiters_as_it_may() {
    let mut pool: Pool<u32> = pool(2, 10);
    for n in 0..3 {
        pool.acquire(NOW, 0, || n);
    }
    let (_, granted) = pool.add(NOW);
    assert_eq!(granted, [0, 1]);
    let (_, granted) = pool.add(NOW);
    assert_eq!(granted, [2]);
    assert_eq!(pool.waiting(), 0);
    assert_eq!(pool.in_flight(), 3);
}

#[test]
fn a_retired_instance_gets_nothing_and_ends_when_empty() {
    let mut pool: Pool<u32> = pool(2, 10);
    let (key, _) = pool.add(NOW);
    pool.acquire(NOW, 0, || 0);
    assert!(!pool.retire(key));
    assert!(matches!(pool.acquire(NOW, 0, || 1), Acquired::Wait { .. }));
    assert!(matches!(pool.release(key, NOW), Released::Gone));
    let (key, granted) = pool.add(NOW);
    assert_eq!(granted, [1]);
    assert!(matches!(pool.release(key, NOW), Released::Idle));
    assert!(pool.retire(key));
}

#[test]
fn cancelled_waiters_behind_a_patient_one_take_no_room() {
    let mut pool: Pool<u32> = pool(1, 10);
    pool.acquire(NOW, 0, || 0);
    for n in 0..10_000 {
        let Acquired::Wait { ticket } = pool.acquire(NOW, 0, || n) else {
            panic!("there is room for nine more");
        };
        pool.acquire(NOW, 0, || n);
        pool.cancel(ticket, NOW);
        pool.cancel(ticket + 1, NOW);
    }
    assert!(pool.waiting.len() < 200);
}

#[derive(Debug, Clone)]
enum Step {
    Acquire(u64),
    Release(usize),
    Add,
    Retire(usize),
    Cancel(usize),
    Pass(u64),
    Limit(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<u64>().prop_map(Step::Acquire),
        5 => any::<usize>().prop_map(Step::Release),
        1 => Just(Step::Add),
        1 => any::<usize>().prop_map(Step::Retire),
        2 => any::<usize>().prop_map(Step::Cancel),
        2 => (0u64..700).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Limit),
    ]
}

/// What must be true, kept in the plainest way.
#[derive(Default)]
struct Model {
    held: Vec<Key>,
    rotation: Vec<Key>,
    queue: VecDeque<u64>,
    load: HashMap<Key, u32>,
    now: Monotonic,
}

impl Model {
    /// Those who made room for newer ones leave the queue.
    fn passed_over(&mut self, late: &[u64]) {
        let newest = self.queue.back().copied();
        for waiter in late {
            assert_ne!(newest, Some(*waiter), "the newest makes room for nobody");
            let at = self.queue.iter().position(|queued| queued == waiter);
            self.queue.remove(at.expect("it waited"));
        }
    }
}

proptest! {
    #[test]
    fn slots_are_never_lost_nor_given_twice(
        concurrency in 1u32..4,
        queue_max in 0u32..6,
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut pool: Pool<u64> = pool(concurrency, queue_max);
        let mut model = Model { now: NOW, ..Model::default() };
        for step in steps {
            run(&mut pool, &mut model, step, queue_max);
            check(&pool, &model, concurrency);
        }
    }
}

fn run(pool: &mut Pool<u64>, model: &mut Model, step: Step, queue_max: u32) {
    match step {
        Step::Acquire(random) => {
            let expected = pool.next_ticket;
            match pool.acquire(model.now, random, || expected) {
                Acquired::Slot { key, was_idle } => {
                    let load = model.load.entry(key).or_default();
                    assert_eq!(was_idle, *load == 0);
                    assert!(model.rotation.contains(&key));
                    *load += 1;
                    model.held.push(key);
                }
                Acquired::Wait { ticket } => model.queue.push_back(ticket),
                Acquired::Late { .. } => assert!(!model.queue.is_empty()),
                Acquired::Full => assert_eq!(model.queue.len(), queue_max as usize),
            }
        }
        Step::Release(at) if !model.held.is_empty() => {
            let key = model.held.swap_remove(at % model.held.len());
            let released = pool.release(key, model.now);
            model.passed_over(&pool.take_late());
            match released {
                Released::Granted(waiter) => {
                    assert_eq!(model.queue.pop_front(), Some(waiter), "first come");
                    model.held.push(key);
                }
                Released::Gone => {
                    assert!(!model.rotation.contains(&key));
                    assert_eq!(model.load.remove(&key), Some(1));
                }
                Released::Busy | Released::Idle => *model.load.get_mut(&key).unwrap() -= 1,
            }
        }
        Step::Add => {
            let (key, granted) = pool.add(model.now);
            model.passed_over(&pool.take_late());
            model.rotation.push(key);
            model
                .load
                .insert(key, u32::try_from(granted.len()).unwrap());
            for waiter in granted {
                assert_eq!(model.queue.pop_front(), Some(waiter), "first come");
                model.held.push(key);
            }
        }
        Step::Retire(at) if !model.rotation.is_empty() => {
            let key = model.rotation.swap_remove(at % model.rotation.len());
            let gone = pool.retire(key);
            assert_eq!(gone, model.load[&key] == 0);
            if gone {
                model.load.remove(&key);
            }
        }
        Step::Cancel(at) if !model.queue.is_empty() => {
            let ticket = model.queue.remove(at % model.queue.len()).unwrap();
            assert!(pool.cancel(ticket, model.now));
        }
        Step::Pass(millis) => model.now = model.now.plus(Duration::from_millis(millis)),
        Step::Limit(limited) => pool.set_limited(limited),
        _ => {}
    }
}

fn check(pool: &Pool<u64>, model: &Model, concurrency: u32) {
    assert_eq!(pool.waiting() as usize, model.queue.len());
    assert_eq!(pool.in_flight() as usize, model.held.len());
    for (&key, &load) in &model.load {
        assert!(load <= concurrency);
        assert_eq!(pool.in_flight_of(key), load);
    }
    let free = model
        .rotation
        .iter()
        .any(|key| model.load[key] < concurrency);
    assert!(
        !free || model.queue.is_empty(),
        "nobody waits beside a free slot"
    );
}
