//! Events that functions are sent and that nobody waits for: how many are
//! acknowledged and worked off in a second, and what becomes of those that were
//! acknowledged when the server is killed again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use skiff_testkit::Server;

use super::lambda::{RUST, image, server};
use crate::api::Api;
use crate::context::{Context, at_once};
use crate::peers::{Ended, Sink};
use crate::report::{Bound, Figure, Report, Spec};
use crate::signed::Door;
use crate::stats::Random;
use crate::time::{now, stretched, wait_until};

const NAME: &str = "events";
const EVENT: &str = r#"{"hello": "world"}"#;
const CALLERS: usize = 64;
/// Events of each of them in a round.
const EACH: usize = 300;
/// Room for more events than are sent.
const ROOM: &str = "lambda.events.per_function=1048576";
/// What the bare disk is given at once: an entry of an event and little else.
const ENTRY: [u8; 256] = [b'x'; 256];
/// How long the disk is written to alone.
const BARE: Duration = Duration::from_secs(1);
/// How long what was sent may take to end.
const ENDING: Duration = Duration::from_secs(600);

/// Callers while the server is killed, and how long each rests between events:
/// so many that some are under way at any time, so few that they end.
const STEADY_CALLERS: usize = 8;
const REST: Duration = Duration::from_millis(10);
/// The longest that the server lives once it acknowledges.
const LIFE_MS: usize = 500;
/// Tries that an event may have: the first, and two more.
const TRIES: usize = 3;
/// One of so many fails each time.
const FAILING: usize = 4;

const ACKS: Spec = Spec {
    name: "event_acks_per_s",
    unit: "1/s",
    bound: Bound::AtLeast(5000.0),
    peer: Some("a write and a sync at a time on the same disk"),
};
const DRAIN: Spec = Spec {
    name: "event_drain_per_s",
    unit: "1/s",
    bound: Bound::None,
    peer: None,
};
pub const RATES: &[Spec] = &[ACKS, DRAIN];

const LOST: Spec = none_of("event_lost");
const BEYOND: Spec = none_of("event_beyond_tries");
pub const CRASHES: &[Spec] = &[LOST, BEYOND];

const fn none_of(name: &'static str) -> Spec {
    Spec {
        name,
        unit: "",
        bound: Bound::AtMost(0.0),
        peer: None,
    }
}

/// Takes the group of rates.
pub fn rates(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    report.add(acknowledged(context)?);
    report.add(worked_off(context)?);
    Ok(())
}

/// Events of a function that is busy with its first one: all that the server
/// does is to take them.
fn acknowledged(context: &Context) -> anyhow::Result<Figure> {
    let settings = ["lambda.events.at_once=1", ROOM];
    let server = server(context, &settings, &[RUST]);
    let door = Door::of(&server)?;
    door.caller(0)?.create_with(NAME, &image(RUST), 900)?;
    door.caller(1)?.send(NAME, r#"{"sleep": 900}"#)?;
    let disk = context.home().join("synced");
    let (mut acks, mut syncs) = (Vec::new(), Vec::new());
    for round in 0..=context.rounds(10) {
        let sent = send_all(&door, round)?;
        let bare = synced(&disk)?;
        // The first fills caches.
        if round > 0 {
            acks.push(sent);
            syncs.push(bare);
        }
    }
    Ok(Figure::absolute_beside(ACKS, acks, syncs))
}

/// Hands in so many events by each of many callers; those acknowledged in a
/// second. They are signed before: that is the callers' work.
fn send_all(door: &Door, round: usize) -> anyhow::Result<f64> {
    let ready = at_once((0..CALLERS).map(|index| {
        move || {
            let mut caller = door.caller(2 + round * CALLERS + index)?;
            let requests = (0..EACH).map(|_| caller.sign_event(NAME, EVENT));
            let requests: Vec<Vec<u8>> = requests.collect::<anyhow::Result<_>>()?;
            Ok((caller, requests))
        }
    }))?;
    let start = now();
    at_once(ready.into_iter().map(|(mut caller, requests)| {
        move || {
            let mut requests = requests.iter();
            requests.try_for_each(|request| caller.send_signed(request))
        }
    }))?;
    Ok((CALLERS * EACH) as f64 / now().since(start).as_secs_f64())
}

/// Entries of one writer that are on the disk one after the other, each second.
fn synced(path: &Path) -> anyhow::Result<f64> {
    let file = File::create(path)?;
    let (start, mut count) = (now(), 0_u32);
    while now().since(start) < BARE {
        file.write_all_at(&ENTRY, u64::from(count) * ENTRY.len() as u64)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / now().since(start).as_secs_f64())
}

/// How fast what has piled up is worked off, once nothing more comes.
fn worked_off(context: &Context) -> anyhow::Result<Figure> {
    let server = server(context, &[ROOM], &[RUST]);
    let (api, door) = (Api::of(&server), Door::of(&server)?);
    door.caller(0)?.create(NAME, &image(RUST))?;
    let mut drained = Vec::new();
    for round in 0..=context.rounds(5) {
        let sent = send_all(&door, round)?;
        let (start, left) = (now(), pending(&api)?.unwrap_or(0));
        ensure!(
            left > 0,
            "events are worked off as they come, {sent} a second"
        );
        all_ended(&api)?;
        // The first starts the instances.
        if round > 0 {
            drained.push(left as f64 / now().since(start).as_secs_f64());
        }
    }
    Ok(Figure::absolute(DRAIN, drained))
}

/// Unless the server has just come up, and does not say yet.
fn pending(api: &Api) -> anyhow::Result<Option<u64>> {
    let metrics = api.call("GET", "/metrics", "")?;
    let pending = metrics
        .lines()
        .find_map(|line| line.strip_prefix("skiff_events_pending "));
    Ok(pending.map(|text| text.trim().parse()).transpose()?)
}

fn all_ended(api: &Api) -> anyhow::Result<()> {
    wait_until("every event has ended", stretched(ENDING), || {
        Ok(pending(api)? == Some(0))
    })
}

/// What callers of a server share that is killed under them.
#[derive(Debug)]
struct Steady {
    door: Mutex<Door>,
    /// Ids of acknowledged events.
    acknowledged: Mutex<BTreeSet<String>>,
    next: AtomicUsize,
    over: AtomicBool,
}

/// Takes the group of crashes.
pub fn crashes(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let sink = Sink::open()?;
    let destinations = format!("lambda.events.destinations={}/", sink.url());
    let settings = [
        ROOM,
        "lambda.events.retry_ms=100",
        "lambda.events.backoff_ms=50",
        &destinations,
    ];
    let mut server = server(context, &settings, &[RUST]);
    let door = Door::of(&server)?;
    door.caller(0)?.create(NAME, &image(RUST))?;
    let to = json!({"Destination": format!("{}/", sink.url())});
    let both = json!({"DestinationConfig": {"OnSuccess": to, "OnFailure": to}});
    let path = format!("/2019-09-25/functions/{NAME}/event-invoke-config");
    door.caller(1)?.ask("PUT", &path, &both.to_string())?;
    let steady = Steady {
        door: Mutex::new(door),
        acknowledged: Mutex::default(),
        next: AtomicUsize::new(2),
        over: AtomicBool::new(false),
    };
    let rounds = context.rounds(50);
    steady.survive(&mut server, rounds)?;
    all_ended(&Api::of(&server))?;

    let (acknowledged, ended) = (known(&steady.acknowledged).clone(), sink.ended());
    let lost = acknowledged.iter().filter(|id| !ended.contains_key(*id));
    let lost: Vec<&String> = lost.collect();
    let seen = tries_seen(&server.data_dir().join("logs"))?;
    let beyond = beyond(&ended, &seen);
    println!(
        "    {rounds} times killed: {} events acknowledged, {} ended, {} tries seen; lost {lost:?}, beyond {beyond:?}",
        acknowledged.len(),
        ended.len(),
        seen.values().sum::<usize>(),
    );
    report.add(Figure::absolute(LOST, vec![lost.len() as f64]));
    report.add(Figure::absolute(BEYOND, vec![beyond.len() as f64]));
    Ok(())
}

/// Events that had more tries than they may, by their records or by what the
/// function wrote.
fn beyond(ended: &BTreeMap<String, Ended>, seen: &BTreeMap<String, usize>) -> BTreeSet<String> {
    let told = ended
        .iter()
        .map(|(id, ended)| (id, ended.tries))
        .chain(seen.iter().map(|(id, tries)| (id, *tries)));
    let beyond = told.filter(|(_, tries)| *tries > TRIES);
    beyond.map(|(id, _)| id.clone()).collect()
}

impl Steady {
    /// Kills the server at random instants while events come, and starts it
    /// again each time.
    fn survive(&self, server: &mut Server, rounds: usize) -> anyhow::Result<()> {
        let mut random = Random::new(u64::from(server.pid()));
        std::thread::scope(|scope| {
            for _ in 0..STEADY_CALLERS {
                scope.spawn(|| self.send());
            }
            let outcome = (0..rounds).try_for_each(|_| {
                let before = known(&self.acknowledged).len();
                wait_until("events are acknowledged", stretched(ENDING), || {
                    Ok(known(&self.acknowledged).len() > before)
                })?;
                let life = u64::try_from(random.below(LIFE_MS))?;
                std::thread::sleep(Duration::from_millis(life));
                server.kill();
                server.launch(&[]);
                let mut door = self.door();
                *door = door.again(server)?;
                anyhow::Ok(())
            });
            self.over.store(true, Ordering::Relaxed);
            outcome
        })
    }

    /// Sends one event after the other, each once, whatever becomes of it.
    fn send(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let door = self.door().clone();
            // What it could not send is not acknowledged: nobody waits for it.
            let _broken = self.send_over(&door);
            std::thread::sleep(REST);
        }
    }

    fn send_over(&self, door: &Door) -> anyhow::Result<()> {
        let mut caller = door.caller(self.next.fetch_add(1, Ordering::Relaxed))?;
        while !self.over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let id = number.to_string();
            let mut event = json!({"say": format!("try {id}")});
            if number.is_multiple_of(FAILING) {
                event["raise"] = json!("on purpose");
            }
            caller.send(NAME, &event.to_string())?;
            known(&self.acknowledged).insert(id);
            std::thread::sleep(REST);
        }
        Ok(())
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn known(ids: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    ids.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the function wrote of each event, in all its instances' logs.
fn tries_seen(logs: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    let mut folders = vec![logs.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read(&path)?;
            for line in String::from_utf8_lossy(&text).lines() {
                if let Some((_, id)) = line.rsplit_once("try ") {
                    *seen.entry(id.to_owned()).or_default() += 1;
                }
            }
        }
    }
    ensure!(!seen.is_empty(), "{} has no tries", logs.display());
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_counted_over_all_logs() {
        let logs = tempfile::tempdir().unwrap();
        let folder = logs.path().join("a/b");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            folder.join("1.log"),
            "1 out try 7\n2 out try 8\n3 START x\n",
        )
        .unwrap();
        std::fs::write(folder.join("2.log"), "4 out try 7\n").unwrap();
        let seen = tries_seen(logs.path()).unwrap();
        assert_eq!((seen["7"], seen["8"], seen.len()), (2, 1, 2));
        assert!(tries_seen(&logs.path().join("none")).is_err());
    }

    #[test]
    fn either_count_goes_beyond() {
        let ended = |tries| Ended { tries };
        let told = BTreeMap::from([("a".to_owned(), ended(4)), ("b".to_owned(), ended(3))]);
        let seen = BTreeMap::from([("b".to_owned(), 3), ("c".to_owned(), 4)]);
        let both = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
        assert_eq!(beyond(&told, &seen), both);
    }
}
