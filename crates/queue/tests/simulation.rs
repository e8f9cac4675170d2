//! The life of events under random functions, limits and crashes, from a
//! seed: nothing acknowledged is lost, nothing is tried more often than it
//! may be, and every function gets its turns.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use skiff_queue::{
    Begin, Condition, Delays, Ended, EventId, FunctionKey, Limits, Phase, Queue, Rules, State, Then,
};

const LIMITS: Limits = Limits {
    function_events: 40,
    events: 100,
    bytes: 1000,
    function_running: 3,
    running: 6,
};
const AGE_MS_MAX: u64 = 60_000;

/// A small generator (xorshift64*), so that a seed is a whole history.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// An event as the disk has it.
#[derive(Clone, Copy, Debug)]
struct Kept {
    function: usize,
    accepted_unix_ms: u64,
    state: State,
}

#[derive(Debug, Default)]
struct Told {
    tries: u32,
    counted: u32,
    end: Option<Condition>,
}

struct World {
    random: Random,
    rules: Rules,
    functions: Vec<FunctionKey>,
    now: u64,
    next: u64,
    queue: Queue,
    running: Vec<(EventId, State)>,
    /// What is on the disk; it survives.
    disk: BTreeMap<EventId, Kept>,
    told: BTreeMap<EventId, Told>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed | 1);
        let rules = Rules {
            retries: u32::try_from(random.below(3)).unwrap(),
            age_ms_max: AGE_MS_MAX,
            delays: Delays {
                retry_ms: 1 + random.below(5000),
                setback_ms: 1 + random.below(100),
            },
        };
        let function = |name: &str| FunctionKey {
            project: "000000000001".parse().unwrap(),
            name: name.parse().unwrap(),
        };
        Self {
            random,
            rules,
            functions: ["a", "b", "c", "d"].map(function).to_vec(),
            now: 1000,
            next: 0,
            queue: Queue::new(LIMITS),
            running: Vec::new(),
            disk: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    fn accept(&mut self) {
        let function = usize::try_from(self.random.below(4)).unwrap();
        let key = self.functions[function].clone();
        if self.queue.admit(&key, 1).is_err() {
            return;
        }
        if self.random.below(20) == 0 {
            // The disk has refused it: its sender was told so.
            self.queue.refuse(&key, 1);
            return;
        }
        let id = EventId(self.next);
        self.next += 1;
        let state = State::begin(Phase::Invoke, self.now);
        let kept = Kept {
            function,
            accepted_unix_ms: self.now,
            state,
        };
        self.disk.insert(id, kept);
        self.told.insert(id, Told::default());
        self.queue.put(id, &key, 1, self.now, state, self.now);
    }

    fn start(&mut self) {
        let Some(taken) = self.queue.take(self.now) else {
            return;
        };
        assert!(
            self.running.iter().all(|(id, _)| *id != taken.id),
            "twice at once"
        );
        let kept = self.disk[&taken.id];
        assert_eq!(
            kept.state.tries, taken.state.tries,
            "the disk knows each try"
        );
        match self
            .rules
            .begin(kept.accepted_unix_ms, taken.state, self.now)
        {
            Begin::Over(condition) => self.over(taken.id, condition),
            Begin::Try(state) => {
                self.disk.get_mut(&taken.id).unwrap().state = state;
                let told = self.told.get_mut(&taken.id).unwrap();
                told.tries += 1;
                told.counted += 1;
                self.running.push((taken.id, state));
            }
        }
        let of = |function: usize| {
            let of = |(id, _): &&(EventId, State)| self.disk[id].function == function;
            self.running.iter().filter(of).count()
        };
        assert!(
            (0..4).all(|function| of(function) <= 3),
            "bound of a function"
        );
        assert!(self.running.len() <= 6, "bound of all");
    }

    fn end(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let place = self.random.below(self.running.len() as u64);
        let (id, state) = self.running.swap_remove(usize::try_from(place).unwrap());
        let ended = match self.random.below(4) {
            0 => Ended::Succeeded,
            1 => Ended::NotTaken,
            _ => Ended::Failed,
        };
        if ended == Ended::NotTaken {
            self.told.get_mut(&id).unwrap().counted -= 1;
        }
        let accepted = self.disk[&id].accepted_unix_ms;
        let random = u32::try_from(self.random.below(1 << 32)).unwrap();
        match self.rules.after(accepted, state, ended, self.now, random) {
            Then::Over(condition) => self.over(id, condition),
            Then::Again(next) => {
                assert!(next.due_unix_ms <= accepted + AGE_MS_MAX);
                self.disk.get_mut(&id).unwrap().state = next;
                self.queue.put_back(id, next, self.now);
            }
        }
    }

    fn over(&mut self, id: EventId, condition: Condition) {
        self.disk.remove(&id).unwrap();
        let told = self.told.get_mut(&id).unwrap();
        assert_eq!(told.end.replace(condition), None, "it ends once");
        self.queue.done(id, self.now);
    }

    /// Everything in memory is gone; what the disk has begins again.
    fn crash(&mut self) {
        self.queue = Queue::new(LIMITS);
        self.running.clear();
        for (id, kept) in &self.disk {
            let function = &self.functions[kept.function];
            self.queue.restore(
                *id,
                function,
                1,
                kept.accepted_unix_ms,
                kept.state,
                self.now,
            );
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0 => self.crash(),
            1..25 => self.accept(),
            25..55 => self.start(),
            55..85 => self.end(),
            _ => self.now += self.random.below(2000),
        }
        assert_eq!(self.queue.pending(), self.disk.len());
    }

    /// Nothing new comes, and time goes on.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.disk.is_empty() {
                return;
            }
            self.start();
            self.end();
            if let Some(due) = self.queue.next_due() {
                self.now = self.now.max(due);
            }
        }
        panic!("{} events never end", self.disk.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_acknowledged_event_ends_within_its_tries(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for _ in 0..1500 {
            world.step();
        }
        world.settle();
        let most = world.rules.retries + 1;
        for (id, told) in &world.told {
            prop_assert!(told.counted <= most, "{id} was tried {} times", told.counted);
            prop_assert!(told.end.is_some(), "{id} has no end");
            if told.end == Some(Condition::Success) {
                prop_assert!(told.tries > 0, "{id} has answered without a try");
            }
        }
        prop_assert_eq!(world.queue.pending(), 0);
        prop_assert_eq!(world.queue.running(), 0);
    }

    #[test]
    fn a_function_with_many_events_does_not_keep_another_waiting(seed in any::<u64>()) {
        let mut random = Random(seed | 1);
        let mut queue = Queue::new(Limits { function_events: 1000, events: 2000, bytes: 1 << 20, function_running: 1000, running: 1 });
        let keys = World::new(seed).functions;
        let state = State::begin(Phase::Invoke, 0);
        let put = |queue: &mut Queue, id: u64, key: &FunctionKey| {
            queue.admit(key, 1).unwrap();
            queue.put(EventId(id), key, 1, 0, state, 0);
        };
        for id in 0..500 {
            put(&mut queue, id, &keys[0]);
        }
        for next in 500..550 {
            // Whoever comes now is served after at most one of the others.
            put(&mut queue, next, &keys[1]);
            let mut waited = 0;
            loop {
                let taken = queue.take(0).unwrap();
                queue.done(taken.id, 0);
                if taken.id.0 == next {
                    break;
                }
                waited += 1;
            }
            prop_assert!(waited <= 1, "it waited for {waited}");
            for _ in 0..random.below(3) {
                let taken = queue.take(0).unwrap();
                queue.done(taken.id, 0);
            }
        }
    }
}
