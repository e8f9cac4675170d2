//! The store as a whole: what is appended, what is read back.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skiff_base::{ManualClock, Tasks};
use skiff_sandbox::Output;
use skiff_types::{
    InstanceId, LogPage, LogPosition, LogRange, LogSpan, LogStart, LogTerms, ProjectId, RevisionId,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use super::line::Stream;
use super::output::{Reader, read_output};
use super::query::{LogFollow, LogQuery};
use super::store::{LogLimits, LogSink, LogStore};

const PATIENCE: Duration = Duration::from_secs(60);

struct Fixture {
    store: LogStore,
    clock: ManualClock,
    folder: TempDir,
}

fn fixture(limits: LogLimits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = LogStore::new(folder.path().into(), limits, Arc::new(clock.clone())).unwrap();
    Fixture {
        store,
        clock,
        folder,
    }
}

fn id(number: u32) -> InstanceId {
    InstanceId::from_parts(1, number)
}

fn revision(number: u32) -> RevisionId {
    let name = format!("hello-{number:05}");
    RevisionId::parse(&ProjectId::default_project(), &name).unwrap()
}

fn query() -> LogQuery {
    LogQuery::service(ProjectId::default_project(), revision(1).service)
}

impl Fixture {
    fn sink(&self, number: u32) -> LogSink {
        self.store.sink(id(number), revision(1))
    }

    async fn say(&self, sink: &LogSink, text: &str) {
        self.clock.advance(Duration::from_millis(1));
        sink.append(Stream::Stdout, vec![text.to_owned()]).await;
    }

    async fn texts(&self, query: LogQuery) -> Vec<String> {
        let lines = self.store.logs(query).await.unwrap();
        lines.into_iter().map(|line| line.text).collect()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        let revision = Path::new("000000000001/hello/hello-00001");
        self.folder.path().join(revision).join(name)
    }
}

#[tokio::test]
async fn lines_of_instances_are_merged_by_time_and_outlive_them() {
    let f = fixture(LogLimits::default());
    let (one, two) = (f.sink(1), f.sink(2));
    let other = f.store.sink(id(3), revision(2));
    f.say(&one, "a").await;
    f.say(&two, "b").await;
    f.say(&other, "c").await;
    f.say(&one, "d").await;
    one.note("exited with code 0".to_owned()).await;
    one.close().await;
    assert_eq!(
        f.texts(query()).await,
        ["a", "b", "c", "d", "exited with code 0"]
    );
    let tail = LogQuery {
        tail: Some(2),
        ..query()
    };
    assert_eq!(f.texts(tail).await, ["d", "exited with code 0"]);
    let since = LogQuery {
        since_unix_ms: 3,
        instance: Some(id(1)),
        ..query()
    };
    assert_eq!(f.texts(since).await, ["d", "exited with code 0"]);
    let second = LogQuery {
        revision: Some(revision(2)),
        ..query()
    };
    let lines = f.store.logs(second).await.unwrap();
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].unix_ms, lines[0].instance), (3, id(3)));
    assert_eq!(
        (lines[0].stream.as_str(), lines[0].revision.as_str()),
        ("stdout", "hello-00002")
    );
    let mut elsewhere = query();
    elsewhere.service = "other".parse().unwrap();
    assert!(f.texts(elsewhere).await.is_empty());
}

#[tokio::test]
async fn a_full_file_is_rotated_once_and_the_oldest_lines_go() {
    let f = fixture(LogLimits {
        file_bytes: 1000,
        ..LogLimits::default()
    });
    let sink = f.sink(1);
    for number in 0..100 {
        f.say(&sink, &format!("line {number:02} {}", "x".repeat(40)))
            .await;
    }
    let texts = f.texts(query()).await;
    assert!(texts.last().unwrap().starts_with("line 99"));
    assert!((16..=34).contains(&texts.len()), "{}", texts.len());
    let numbers: Vec<&str> = texts.iter().map(|text| &text[5..7]).collect();
    assert!(numbers.is_sorted());
    let len = |name: String| std::fs::metadata(f.file(&name)).unwrap().len();
    assert!(len(format!("{}.log", id(1))) <= 1000);
    assert!(len(format!("{}.1.log", id(1))) <= 1000);
}

async fn next(follow: &mut LogFollow) -> String {
    let line = timeout(PATIENCE, follow.next()).await.unwrap();
    line.unwrap().text
}

#[tokio::test]
async fn a_follower_sees_each_line_once() {
    let f = fixture(LogLimits::default());
    let (one, two) = (f.sink(1), f.sink(2));
    // No further ahead than what is kept for a follower.
    let ahead = tokio::sync::Semaphore::new(500);
    let writing = async {
        for number in 0..2000 {
            ahead.acquire().await.unwrap().forget();
            let sink = if number % 2 == 0 { &one } else { &two };
            f.say(sink, &number.to_string()).await;
            tokio::task::yield_now().await;
        }
    };
    let reading = async {
        let mut follow = f.store.follow(query()).await.unwrap();
        for number in 0..2000 {
            assert_eq!(next(&mut follow).await, number.to_string());
            ahead.add_permits(1);
        }
    };
    futures_util::future::join(writing, reading).await;
    let only_two = LogQuery {
        instance: Some(id(2)),
        tail: Some(0),
        ..query()
    };
    let mut follow = f.store.follow(only_two).await.unwrap();
    f.say(&one, "not this").await;
    f.say(&two, "this").await;
    assert_eq!(next(&mut follow).await, "this");
}

#[tokio::test]
async fn a_slow_follower_is_told_what_it_missed() {
    let f = fixture(LogLimits::default());
    let sink = f.sink(1);
    let mut follow = f.store.follow(query()).await.unwrap();
    for number in 0..1500 {
        f.say(&sink, &number.to_string()).await;
    }
    f.store.flush().await.unwrap();
    let marker = timeout(PATIENCE, follow.next()).await.unwrap().unwrap();
    assert_eq!(marker.stream, "skiff");
    assert!(
        marker.text.starts_with("476 lines were not shown"),
        "{}",
        marker.text
    );
    assert_eq!(next(&mut follow).await, "476");
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_nothing_else() {
    let f = fixture(LogLimits::default());
    let sink = f.sink(1);
    let path = f.file(&format!("{}.log", id(1)));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let mut follow = f.store.follow(query()).await.unwrap();
    for number in 0..5 {
        f.say(&sink, &number.to_string()).await;
        assert_eq!(next(&mut follow).await, number.to_string());
    }
    assert_eq!(f.store.dropped(), 5);
    std::fs::remove_file(&path).unwrap();
    sink.close().await;
    f.say(&sink, "again").await;
    assert_eq!(f.texts(query()).await, ["again"]);
}

#[tokio::test]
async fn what_was_lost_is_told_once_the_disk_takes_lines_again() {
    let f = fixture(LogLimits::default());
    let sink = f.sink(1);
    let folder = f.folder.path().join("000000000001");
    // A file where a folder must be: nothing can be written below.
    std::fs::write(&folder, "").unwrap();
    f.say(&sink, "lost").await;
    f.store.flush().await.unwrap();
    std::fs::remove_file(&folder).unwrap();
    f.say(&sink, "kept").await;
    let texts = f.texts(query()).await;
    assert_eq!(
        texts,
        ["1 lines were dropped: the disk did not take them", "kept"]
    );
}

#[tokio::test]
async fn collection_spares_what_is_still_written() {
    let f = fixture(LogLimits {
        service_bytes: 0,
        ..LogLimits::default()
    });
    let (one, two) = (f.sink(1), f.sink(2));
    f.say(&one, "a").await;
    f.say(&two, "b").await;
    one.close().await;
    f.store.collect().await.unwrap();
    assert_eq!(f.texts(query()).await, ["b"]);
    f.say(&two, "c").await;
    assert_eq!(f.texts(query()).await, ["b", "c"]);
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

#[tokio::test]
async fn output_is_read_to_its_end_even_if_nobody_closes_it() {
    let f = fixture(LogLimits::default());
    let (sink, tasks) = (f.sink(1), Tasks::new());
    let ((stdout, out), (stderr, err)) = (pipe(), pipe());
    let (until, reader) = watch::channel(Reader::Open);
    tasks.spawn(
        "reader",
        read_output(output(stdout, stderr), sink, None, reader),
    );
    let mut follow = f.store.follow(query()).await.unwrap();
    rustix::io::write(&out, b"first\n").unwrap();
    assert_eq!(next(&mut follow).await, "first");
    // 60 KiB are in the pipe when the end is told, and a line without end.
    rustix::io::write(&out, "0123456789\n".repeat(5000).as_bytes()).unwrap();
    rustix::io::write(&err, b"no end").unwrap();
    until.send_replace(Reader::Ended);
    tasks.drain(PATIENCE).await.unwrap();
    let texts = f.texts(query()).await;
    assert_eq!(
        texts.iter().filter(|text| *text == "0123456789").count(),
        5000
    );
    assert_eq!(texts.iter().filter(|text| *text == "no end").count(), 1);
    drop((out, err));
}

fn output(stdout: OwnedFd, stderr: OwnedFd) -> Output {
    Output {
        ends: false,
        stdout,
        stderr,
    }
}

#[tokio::test]
async fn a_stream_with_an_end_is_read_to_there() {
    let f = fixture(LogLimits::default());
    let (sink, tasks) = (f.sink(1), Tasks::new());
    let pair = || std::os::unix::net::UnixStream::pair().unwrap();
    let ((stdout, out), (stderr, err)) = (pair(), pair());
    let (until, reader) = watch::channel(Reader::Ended);
    let output = Output {
        ends: true,
        ..output(stdout.into(), stderr.into())
    };
    tasks.spawn("reader", read_output(output, sink, None, reader));
    let mut follow = f.store.follow(query()).await.unwrap();
    rustix::io::write(&out, b"first\n").unwrap();
    assert_eq!(next(&mut follow).await, "first");
    rustix::io::write(&err, b"last").unwrap();
    drop((out, err));
    tasks.drain(PATIENCE).await.unwrap();
    assert_eq!(f.texts(query()).await, ["first", "last"]);
    drop(until);
}

#[tokio::test]
async fn a_reader_that_leaves_takes_nothing_more() {
    let f = fixture(LogLimits::default());
    let tasks = Tasks::new();
    let ((stdout, out), (stderr, _err)) = (pipe(), pipe());
    let rest = stdout.try_clone().unwrap();
    let (until, reader) = watch::channel(Reader::Left);
    rustix::io::write(&out, b"for the next\n").unwrap();
    tasks.spawn(
        "reader",
        read_output(output(stdout, stderr), f.sink(1), None, reader),
    );
    tasks.drain(PATIENCE).await.unwrap();
    let mut buffer = [0; 64];
    assert_eq!(rustix::io::read(&rest, &mut buffer).unwrap(), 13);
    drop(until);
}

fn range(start: LogStart, events_max: usize) -> LogRange {
    LogRange {
        project: ProjectId::default_project(),
        service: revision(1).service,
        instances: None,
        since_unix_ms: 0,
        until_unix_ms: u64::MAX,
        start,
        terms: LogTerms::default(),
        events_max,
    }
}

fn words(page: &LogPage) -> Vec<&str> {
    page.events
        .iter()
        .map(|event| event.text.as_str())
        .collect()
}

#[tokio::test]
async fn pages_follow_each_other_both_ways_within_a_millisecond_and_across_rotation() {
    let f = fixture(LogLimits {
        file_bytes: 1500,
        ..LogLimits::default()
    });
    let (one, two) = (f.sink(1), f.sink(2));
    for number in 0..30 {
        if number % 4 == 0 {
            f.clock.advance(Duration::from_millis(1));
        }
        let sink = if number % 2 == 0 { &one } else { &two };
        let text = format!("{number:02} {}", "x".repeat(50));
        sink.append(Stream::Stdout, vec![text.clone(), text]).await;
    }
    let head = LogStart::From(LogPosition::at(0));
    let whole = f.store.page(range(head, 1000)).await.unwrap();
    assert!(
        !whole.more && whole.events.len() == 60,
        "{}",
        whole.events.len()
    );
    assert!(whole.events.is_sorted_by(|a, b| a.position < b.position));
    for limit in [1, 7, 60] {
        let (mut forward, mut at) = (vec![], LogPosition::at(0));
        loop {
            let page = f
                .store
                .page(range(LogStart::From(at), limit))
                .await
                .unwrap();
            assert!(page.events.len() <= limit);
            at = page.events.last().unwrap().position.next();
            forward.extend(page.events);
            if !page.more {
                break;
            }
        }
        assert_eq!(forward, whole.events);
        let (mut backward, mut at) = (vec![], LogPosition::at(u64::MAX));
        loop {
            let page = f
                .store
                .page(range(LogStart::Before(at), limit))
                .await
                .unwrap();
            at = page.events.first().unwrap().position;
            backward.extend(page.events.into_iter().rev());
            if !page.more {
                break;
            }
        }
        backward.reverse();
        assert_eq!(backward, whole.events);
    }
    let last = whole.events.last().unwrap().position.next();
    let end = f.store.page(range(LogStart::From(last), 10)).await.unwrap();
    assert_eq!(end, LogPage::default());
    f.say(&one, "later").await;
    let later = f.store.page(range(LogStart::From(last), 10)).await.unwrap();
    assert_eq!(words(&later), ["later"]);
}

#[tokio::test]
async fn a_page_has_what_its_range_says() {
    let f = fixture(LogLimits::default());
    let (one, two) = (f.sink(1), f.sink(2));
    for (sink, text) in [
        (&one, "a one"),
        (&two, "b two"),
        (&one, "b three"),
        (&two, "a four"),
    ] {
        f.say(sink, text).await;
    }
    let head = range(LogStart::From(LogPosition::at(0)), 10);
    for (range, expected) in [
        (
            LogRange {
                since_unix_ms: 2,
                until_unix_ms: 4,
                ..head.clone()
            },
            vec!["b two", "b three"],
        ),
        (
            LogRange {
                instances: Some(BTreeSet::from([id(2)])),
                ..head.clone()
            },
            vec!["b two", "a four"],
        ),
        (
            LogRange {
                instances: Some(BTreeSet::from([id(1), id(2), id(3)])),
                terms: LogTerms {
                    none: vec!["a ".to_owned()],
                    ..LogTerms::default()
                },
                ..head.clone()
            },
            vec!["b two", "b three"],
        ),
        (
            LogRange {
                instances: Some(BTreeSet::new()),
                ..head.clone()
            },
            vec![],
        ),
    ] {
        let page = f.store.page(range.clone()).await.unwrap();
        assert_eq!(words(&page), expected, "{range:?}");
    }
    let spans = f.store.spans(head.project, head.service).await.unwrap();
    let span = |number, first_unix_ms, last_unix_ms| LogSpan {
        instance: id(number),
        first_unix_ms,
        last_unix_ms,
    };
    assert_eq!(spans, [span(1, 1, 3), span(2, 2, 4)]);
}

#[tokio::test]
async fn a_page_is_bounded_by_its_bytes_too() {
    let f = fixture(LogLimits {
        file_bytes: 4 * 1024 * 1024,
        ..LogLimits::default()
    });
    let sink = f.sink(1);
    // Each counts for 16 KiB with what is counted beside it.
    for number in 0..100 {
        f.say(&sink, &format!("{number:04}{}", "x".repeat(16 * 1024 - 30)))
            .await;
    }
    let first = f
        .store
        .page(range(LogStart::From(LogPosition::at(0)), 1000))
        .await
        .unwrap();
    assert!(first.more && first.events.len() == 64);
    assert!(first.events[0].text.starts_with("0000"));
    let newest = LogStart::Before(LogPosition::at(u64::MAX));
    let last = f.store.page(range(newest, 1000)).await.unwrap();
    assert!(last.more && last.events.len() == 64);
    assert!(last.events[63].text.starts_with("0099"));
}
