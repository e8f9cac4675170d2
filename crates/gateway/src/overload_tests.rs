//! The pool under load, simulated: slots that take their time, and clients
//! that ask whatever comes back, or only then.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use proptest::prelude::*;

use super::*;

const BOUND: Duration = Duration::from_millis(300);
const QUEUE_MAX: u32 = 1000;
/// An answer that comes later is worth nothing.
const IN_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client without end asks again.
    Arrival,
    /// A client that waits for its answer asks.
    Ask,
    Finish(Key, u64),
}

/// One request waits or is served.
type Request = u64;

struct Simulation {
    pool: Pool<Request>,
    now: Monotonic,
    events: BinaryHeap<Reverse<(Monotonic, u64, Event)>>,
    next_event: u64,
    next_request: Request,
    arrived: HashMap<Request, Monotonic>,
    service: Duration,
    /// Between two arrivals.
    pause: Duration,
    /// Clients of the second kind ask again when they are answered.
    returning: bool,
    random: u64,
    answers: Vec<(Monotonic, Duration)>,
    late: usize,
    passed_over: usize,
    full: usize,
}

impl Simulation {
    fn new(instances: usize, concurrency: u32, service: Duration) -> Self {
        let mut pool = Pool::new(concurrency, QUEUE_MAX, BOUND);
        let now = Monotonic::from_nanos(1_000_000_000_000);
        for _ in 0..instances {
            pool.add(now);
        }
        pool.set_limited(true);
        Self {
            pool,
            now,
            events: BinaryHeap::new(),
            next_event: 0,
            next_request: 0,
            arrived: HashMap::new(),
            service,
            pause: Duration::ZERO,
            returning: false,
            random: 88_172_645_463_325_252,
            answers: Vec::new(),
            late: 0,
            passed_over: 0,
            full: 0,
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        let entry = (self.now.plus(after), self.next_event, event);
        self.events.push(Reverse(entry));
    }

    /// Between half and one and a half of it.
    fn about(&mut self, mean: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let percent = u32::try_from(self.random % 101).unwrap() + 50;
        mean * percent / 100
    }

    /// A stream of so many times the capacity.
    fn offer(&mut self, slots: u32, times: f64) {
        self.pause = self.service.div_f64(f64::from(slots) * times);
        self.at(Duration::ZERO, Event::Arrival);
    }

    fn run(&mut self, while_: Duration) {
        let end = self.now.plus(while_);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if at > end {
                self.events.push(Reverse((at, 0, event)));
                break;
            }
            self.now = at;
            match event {
                Event::Arrival => {
                    self.ask();
                    let pause = self.about(self.pause);
                    self.at(pause, Event::Arrival);
                }
                Event::Ask => self.ask(),
                Event::Finish(key, request) => self.finish(key, request),
            }
            assert!(self.pool.waiting() <= QUEUE_MAX);
        }
        self.now = end;
    }

    fn ask(&mut self) {
        let request = self.next_request;
        self.next_request += 1;
        self.arrived.insert(request, self.now);
        match self.pool.acquire(self.now, self.random, || request) {
            Acquired::Slot { key, .. } => self.serve(key, request),
            Acquired::Wait { .. } => {}
            Acquired::Late { expected } => {
                assert!(expected > BOUND, "{expected:?}");
                self.arrived.remove(&request);
                self.late += 1;
            }
            Acquired::Full => {
                self.arrived.remove(&request);
                self.full += 1;
            }
        }
    }

    fn serve(&mut self, key: Key, request: Request) {
        let takes = self.about(self.service);
        self.at(takes, Event::Finish(key, request));
    }

    fn finish(&mut self, key: Key, request: Request) {
        let arrived = self.arrived.remove(&request).unwrap();
        self.answers.push((self.now, self.now.since(arrived)));
        let released = self.pool.release(key, self.now);
        for late in self.pool.take_late() {
            self.arrived.remove(&late);
            self.passed_over += 1;
        }
        if let Released::Granted(next) = released {
            self.serve(key, next);
        }
        if self.returning {
            self.at(Duration::ZERO, Event::Ask);
        }
    }

    /// Answers in time since then, of as many as there could be.
    fn goodput(&self, since: Monotonic, slots: u32) -> f64 {
        let limit = IN_TIME.max(self.service * 4);
        let good = self
            .answers
            .iter()
            .filter(|(at, took)| *at >= since && *took <= limit);
        let span = self.now.since(since).as_secs_f64();
        let could = span / self.service.as_secs_f64() * f64::from(slots);
        count(good.count()) / could
    }

    fn refused(&self) -> usize {
        self.late + self.passed_over + self.full
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap())
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn in_an_overload_the_capacity_is_served_in_time() {
    // instances, concurrency, milliseconds of service, times the capacity
    let table = [
        (4, 10, 20, 10.0),
        (4, 10, 130, 10.0),
        (4, 10, 400, 10.0),
        (4, 10, 400, 1.5),
        (1, 1, 5, 10.0),
        (1, 1, 20, 3.0),
        (100, 10, 900, 4.0),
        (2, 100, 2000, 5.0),
    ];
    for (instances, concurrency, millis, times) in table {
        let slots = u32::try_from(instances).unwrap() * concurrency;
        let service = Duration::from_millis(millis);
        let mut simulation = Simulation::new(instances, concurrency, service);
        let start = simulation.now;
        simulation.offer(slots, times);
        simulation.run(MINUTE / 2);
        let goodput = simulation.goodput(start, slots);
        let case = format!("{instances} × {concurrency} × {millis} ms, × {times}");
        assert!(goodput >= 0.9, "{case}: {goodput}");
        let waited_in_vain = count(simulation.passed_over);
        let served = count(simulation.answers.len());
        assert!(
            waited_in_vain <= f64::from(QUEUE_MAX) + served * 0.05,
            "{case}: {waited_in_vain} of {served}"
        );
    }
}

#[test]
fn a_little_too_much_does_not_grow_into_lateness() {
    let mut simulation = Simulation::new(4, 10, Duration::from_millis(200));
    simulation.offer(40, 1.1);
    simulation.run(MINUTE * 2);
    let start = simulation.now;
    simulation.run(MINUTE);
    let goodput = simulation.goodput(start, 40);
    assert!(goodput > 0.95, "{goodput}");
}

#[test]
fn capacity_that_falls_and_comes_back_is_used() {
    let mut simulation = Simulation::new(4, 10, Duration::from_millis(40));
    simulation.offer(40, 2.0);
    for millis in [40, 400, 40] {
        simulation.service = Duration::from_millis(millis);
        // Until it is seen, and what came before is gone.
        simulation.run(Duration::from_secs(4));
        let start = simulation.now;
        simulation.run(Duration::from_secs(20));
        let goodput = simulation.goodput(start, 40);
        assert!(goodput > 0.93, "{millis} ms: {goodput}");
    }
}

#[test]
fn what_is_no_overload_is_never_refused() {
    // A burst, once, of as much as the queue holds.
    let mut burst = Simulation::new(4, 10, Duration::from_millis(200));
    for _ in 0..1040 {
        burst.at(Duration::ZERO, Event::Ask);
    }
    burst.run(MINUTE);
    assert_eq!((burst.refused(), burst.answers.len()), (0, 1040));

    // Many clients, each of which waits for its answer.
    for clients in [41, 100, 256, 900] {
        let mut closed = Simulation::new(4, 10, Duration::from_millis(200));
        closed.returning = true;
        for _ in 0..clients {
            closed.at(Duration::ZERO, Event::Ask);
        }
        closed.run(MINUTE / 4);
        assert_eq!(closed.refused(), 0, "{clients}");
        assert!(closed.answers.len() > 2_800);
    }

    // Just under the capacity.
    let mut full = Simulation::new(1, 4, Duration::from_secs(2));
    full.offer(4, 0.9);
    full.run(MINUTE * 5);
    assert_eq!(full.refused(), 0);
}

#[test]
fn while_an_instance_may_be_added_only_the_queue_is_a_bound() {
    let mut simulation = Simulation::new(1, 10, Duration::from_millis(100));
    simulation.pool.set_limited(false);
    simulation.offer(10, 20.0);
    simulation.run(MINUTE / 6);
    assert_eq!(simulation.late + simulation.passed_over, 0);
    assert!(simulation.full > 0);
    // The last one is there: from now on it counts.
    simulation.pool.set_limited(true);
    simulation.run(Duration::from_secs(5));
    assert!(simulation.late > 100 && simulation.passed_over > 100);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_overload_leaves_the_capacity_of_use(
        instances in 1usize..20,
        concurrency in 1u32..20,
        millis in 5u64..600,
        times in 1.5f64..15.0,
        seed in 1u64..,
    ) {
        let slots = u32::try_from(instances).unwrap() * concurrency;
        let mut simulation = Simulation::new(instances, concurrency, Duration::from_millis(millis));
        simulation.random = seed;
        simulation.offer(slots, times);
        // Slow ones take some time to be judged.
        simulation.run(Duration::from_secs(20));
        let start = simulation.now;
        simulation.run(Duration::from_secs(10));
        let goodput = simulation.goodput(start, slots);
        prop_assert!(goodput >= 0.85, "{}", goodput);
    }
}
