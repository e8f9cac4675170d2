//! What was acknowledged survives the end of the process.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc;

use skiff_queue::{Event, EventLog, FunctionKey, Phase, State, Write};

const FOLDER: &str = "SKIFF_TEST_EVENTS";

fn accept(number: u64) -> Write {
    let event = Event {
        function: FunctionKey {
            project: "000000000001".parse().unwrap(),
            name: "a".parse().unwrap(),
        },
        qualifier: None,
        arn: "arn".to_owned(),
        request_id: number.to_string(),
        accepted_unix_ms: 0,
        client_context: None,
        trace_id: None,
        key: None,
        hops: 0,
    };
    Write::Accept {
        event: Box::new(event),
        payload: number.to_le_bytes().repeat(100),
        state: State::begin(Phase::Invoke, 0),
    }
}

/// Not a test of its own: what the killed process does, from four threads.
#[test]
fn child_accepts_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let (log, _) = EventLog::open(folder.as_ref()).unwrap();
    let log = Arc::new(log);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let log = Arc::clone(&log);
            scope.spawn(move || {
                for number in (thread..).step_by(4) {
                    let (answer, answered) = mpsc::channel();
                    log.append(accept(number), move |result| answer.send(result).unwrap());
                    let id = answered.recv().unwrap().unwrap();
                    let mut out = std::io::stdout().lock();
                    if number % 3 == 0 {
                        let (answer, answered) = mpsc::channel();
                        let done = Write::Done { id };
                        log.append(done, move |result| answer.send(result).unwrap());
                        answered.recv().unwrap().unwrap();
                        writeln!(out, "done {id}").unwrap();
                    } else {
                        writeln!(out, "accepted {id}").unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn every_acknowledged_event_is_there_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let (mut accepted, mut done) = (BTreeSet::new(), BTreeSet::new());
    for round in 1..=3usize {
        let mut child = skiff_base::process::command(std::env::current_exe().unwrap())
            .args(["--exact", "child_accepts_until_it_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut note = |line: String| {
            let number = |text: &str| line.split(text).nth(1)?.trim().parse::<u64>().ok();
            accepted.extend(number("accepted "));
            done.extend(number("done "));
            accepted.len()
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while note(lines.next().unwrap().unwrap()) < 100 * round {}
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        // What it still said before it died counts as well.
        for line in lines.map_while(Result::ok) {
            note(line);
        }
        let (log, left) = EventLog::open(folder.path()).unwrap();
        let left: BTreeSet<u64> = left.into_iter().map(|left| left.id.0).collect();
        let lost: Vec<_> = accepted.difference(&left).collect();
        assert!(lost.is_empty(), "{lost:?}");
        assert!(left.is_disjoint(&done), "done events are back");
        for id in &accepted {
            let stored = log.read(skiff_queue::EventId(*id)).unwrap().unwrap();
            let number: u64 = stored.event.request_id.parse().unwrap();
            assert_eq!(stored.payload, number.to_le_bytes().repeat(100));
        }
    }
}
