use std::collections::BTreeMap;
use std::sync::mpsc;

use super::*;
use crate::{Condition, Phase, Purpose, Target};

fn event(name: &str) -> Box<Event> {
    Box::new(Event {
        function: FunctionKey {
            project: "000000000001".parse().unwrap(),
            name: name.parse().unwrap(),
        },
        qualifier: None,
        arn: format!("arn:{name}"),
        request_id: "id".to_owned(),
        accepted_unix_ms: 5,
        client_context: Some("context".to_owned()),
        trace_id: None,
        key: None,
        hops: 1,
    })
}

fn accept(name: &str, payload: &[u8]) -> Write {
    Write::Accept {
        event: event(name),
        payload: payload.to_vec(),
        state: State::begin(Phase::Invoke, 5),
    }
}

fn over(id: EventId) -> (Write, Outcome) {
    let outcome = Outcome {
        condition: Condition::RetriesExhausted,
        unix_ms: 9,
        tries: 3,
        version: Some("1".to_owned()),
        error: None,
        targets: vec![Target {
            purpose: Purpose::Record,
            address: "http://a".to_owned(),
        }],
    };
    let write = Write::Over {
        id,
        state: State::begin(Phase::Deliver(0), 9),
        outcome: Box::new(outcome.clone()),
        response: Some(b"answer".to_vec()),
    };
    (write, outcome)
}

fn write(log: &EventLog, write: Write) -> Result<EventId, LogError> {
    let (answer, answered) = mpsc::channel();
    log.append(write, move |result| answer.send(result).unwrap());
    answered.recv().unwrap()
}

fn open(folder: &Path) -> (EventLog, BTreeMap<u64, State>) {
    let (log, left) = EventLog::open(folder).unwrap();
    let left = left.into_iter().map(|left| (left.id.0, left.state));
    (log, left.collect())
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let numbers = numbers(folder).unwrap();
    let path = |number: &u32| segment_path(folder, *number);
    numbers.iter().map(path).collect()
}

#[test]
fn what_is_not_done_is_there_again_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (log, left) = open(folder.path());
    assert!(left.is_empty());
    let ids: Vec<EventId> = ["a", "b", "c"]
        .into_iter()
        .map(|name| write(&log, accept(name, name.as_bytes())).unwrap())
        .collect();
    let tried = State {
        tries: 1,
        ..State::begin(Phase::Invoke, 7)
    };
    let state = tried;
    write(&log, Write::State { id: ids[0], state }).unwrap();
    write(&log, Write::Done { id: ids[1] }).unwrap();
    let (end, outcome) = over(ids[2]);
    write(&log, end).unwrap();
    drop(log);

    let (log, left) = open(folder.path());
    let delivering = State::begin(Phase::Deliver(0), 9);
    assert_eq!(left, BTreeMap::from([(0, tried), (2, delivering)]));
    let stored = log.read(ids[0]).unwrap().unwrap();
    assert_eq!((stored.event, stored.payload), (*event("a"), b"a".to_vec()));
    let stored = log.read(ids[2]).unwrap().unwrap();
    assert_eq!(stored.outcome, Some(outcome));
    assert_eq!(stored.response.as_deref(), Some(&b"answer"[..]));
    assert_eq!(log.read(ids[1]).unwrap(), None);
    assert_eq!(write(&log, accept("d", b"")).unwrap(), EventId(3));
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = open(folder.path());
    write(&log, accept("a", b"first")).unwrap();
    let whole = log.bytes();
    write(&log, accept("b", b"second")).unwrap();
    drop(log);
    let path = segments(folder.path()).remove(0);
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (log, left) = open(folder.path());
        let first = u64::try_from(length).unwrap() >= whole;
        assert_eq!(left.contains_key(&0), first, "{length}");
        assert!(!left.contains_key(&1));
        let id = write(&log, accept("c", b"third")).unwrap();
        drop(log);
        let (log, left) = open(folder.path());
        assert_eq!(left.len(), usize::from(first) + 1, "{length}");
        assert_eq!(log.read(id).unwrap().unwrap().payload, b"third");
        drop(log);
        for path in segments(folder.path()) {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn one_event_that_waits_does_not_keep_the_others_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = open(folder.path());
    let waits = write(&log, accept("a", b"waits")).unwrap();
    let (end, outcome) = over(waits);
    write(&log, end).unwrap();
    let payload = vec![b'x'; 512 * 1024];
    let mut most = 0;
    for _ in 0..320 {
        let id = write(&log, accept("b", &payload)).unwrap();
        write(&log, Write::Done { id }).unwrap();
        most = most.max(log.bytes());
    }
    assert!(most < 6 * SEGMENT_BYTES_MAX, "{most}");
    let stored = log.read(waits).unwrap().unwrap();
    assert_eq!(
        (stored.payload.as_slice(), stored.outcome),
        (&b"waits"[..], Some(outcome))
    );
    assert_eq!(stored.response.as_deref(), Some(&b"answer"[..]));
    drop(log);
    let (log, left) = open(folder.path());
    assert_eq!(left.keys().collect::<Vec<_>>(), [&waits.0]);
    write(&log, Write::Done { id: waits }).unwrap();
    // Numbers are not given again, although nothing in the log has them.
    let next = write(&log, accept("c", b"")).unwrap();
    assert_eq!(next, EventId(321));
    write(&log, Write::Done { id: next }).unwrap();
    drop(log);
    let (log, _) = open(folder.path());
    assert_eq!(write(&log, accept("c", b"")).unwrap(), EventId(322));
}

#[test]
fn a_failed_write_is_told_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = open(folder.path());
    write(&log, accept("a", b"1")).unwrap();
    {
        // A file that cannot be written stands for a full disk.
        let mut index = log.shared.index();
        let segment = index.segments.values_mut().next().unwrap();
        segment.file = Arc::new(File::open(&segment.path).unwrap());
    }
    assert!(matches!(
        write(&log, accept("b", b"2")),
        Err(LogError::Io { .. })
    ));
    let id = write(&log, accept("c", b"3")).unwrap();
    drop(log);
    let (log, left) = open(folder.path());
    assert_eq!(left.len(), 2);
    assert_eq!(log.read(id).unwrap().unwrap().payload, b"3");
    log.close();
    assert!(matches!(
        write(&log, accept("d", b"")),
        Err(LogError::Closed)
    ));
}

#[test]
fn a_file_that_is_no_segment_is_told_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(segment_path(folder.path(), 1), [7; 100]).unwrap();
    let error = EventLog::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("00000001.seg"), "{error}");
}

#[test]
fn what_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = open(folder.path());
    let large = vec![0; crate::PAYLOAD_BYTES_MAX];
    write(&log, accept("a", &large)).unwrap();
    let larger = vec![0; crate::PAYLOAD_BYTES_MAX + 1];
    assert!(matches!(
        write(&log, accept("a", &larger)),
        Err(LogError::TooLarge(_))
    ));
}
