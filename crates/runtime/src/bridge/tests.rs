use serde_json::{Value, json};
use skiff_base::Tasks;
use skiff_wire::launcher::ProcessSpec;

use super::*;
use crate::fake::{Fake, bridge_of, invocation, posts, streams};
use crate::trailers::StreamError;

fn bridge(sandbox: &Arc<Fake>) -> Arc<Bridge> {
    bridge_of(sandbox, Origin::Made)
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_a_guest_that_does_not_do_as_it_is_told() {
    let sandbox = Arc::new(Fake::default());
    let bridge = bridge(&sandbox);
    let _call = bridge.next().unwrap();
    let (reply, outcome) = oneshot::channel();
    bridge.invoke(invocation("7"), reply).await;
    let outcome = outcome.await.unwrap();
    let Reply::Failed(words) = outcome.reply else {
        panic!("{outcome:?}");
    };
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(words.contains("timed out after 3.00 seconds"), "{words}");
    assert!(outcome.last && *sandbox.destroyed.borrow());
}

/// What the caller of an instance's first invocation is told when its
/// runtime does this meanwhile.
async fn told_of_a_second_start(
    meanwhile: impl AsyncFnOnce(&Arc<Bridge>, &Fake),
) -> (String, bool) {
    let sandbox = Arc::new(Fake::default());
    let bridge = bridge_of(&sandbox, Origin::MadeAgain);
    assert_eq!(bridge.takes_events(), Ok(()));
    let (reply, outcome) = oneshot::channel();
    let invoked = bridge.invoke(invocation("7"), reply);
    tokio::join!(invoked, meanwhile(&bridge, &sandbox));
    let outcome = outcome.await.unwrap();
    let Reply::Failed(words) = outcome.reply else {
        panic!("{outcome:?}");
    };
    // Nobody else is told, and nobody waits for that.
    bridge.end_is_told().await;
    assert!(bridge.takes_events().is_err());
    (String::from_utf8_lossy(&words).into_owned(), outcome.last)
}

#[tokio::test(start_paused = true)]
async fn a_second_start_is_part_of_its_invocation() {
    let (words, last) = told_of_a_second_start(async |_, _| {}).await;
    assert!(words.contains("Sandbox.Timedout") && last, "{words}");
    assert!(words.contains("timed out after 3.00 seconds"), "{words}");
    let (words, last) = told_of_a_second_start(async |bridge, _| {
        let body = Bytes::from_static(b"its own words");
        bridge.init_error(body).await.unwrap();
    })
    .await;
    assert_eq!((words.as_str(), last), ("its own words", true));
    let (words, last) = told_of_a_second_start(async |bridge, sandbox| {
        sandbox.destroyed.send_replace(true);
        bridge.has_exited(sandbox.exited().await);
    })
    .await;
    assert!(words.contains("Runtime.ExitError") && last, "{words}");
}

fn names() -> [String; 2] {
    ["one", "two"].map(str::to_owned)
}

#[tokio::test(start_paused = true)]
async fn an_external_extension_s_end_is_the_instance_s() {
    let (words, last) = told_of_a_second_start(async |bridge, _| {
        bridge.expect(&names());
        let how = "exit status 3".to_owned();
        bridge.extension_ended("two", "Extension.Crash", how).await;
    })
    .await;
    let told: Value = serde_json::from_str(&words).unwrap();
    assert_eq!(told["errorType"], "Extension.Crash");
    assert_eq!(told["errorMessage"], "RequestId: 7 Error: exit status 3");
    assert!(last);
    // The sandbox of these tests starts no further process.
    let (words, last) = told_of_a_second_start(async |bridge, _| {
        let runtime = ProcessSpec {
            args: vec!["/bootstrap".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            uid: 1,
            gid: 1,
            additional_gids: Vec::new(),
            nofile: 64,
        };
        crate::extensions::serve(bridge.clone(), names().into(), runtime).await;
    })
    .await;
    assert!(words.contains("Extension.LaunchError") && last, "{words}");
}

#[tokio::test(start_paused = true)]
async fn extensions_end_when_they_are_told_to() {
    let sandbox = Arc::new(Fake::default());
    let bridge = bridge(&sandbox);
    bridge.expect(&names());
    let wants = Wants {
        invoke: false,
        shutdown: true,
    };
    let one = bridge.register("one", wants).unwrap();
    let two = bridge.register("two", Wants::default()).unwrap();
    let event = bridge.extension_next(one).unwrap();
    let _waits = bridge.extension_next(two).unwrap();
    let _call = bridge.next().unwrap();
    assert_eq!(bridge.takes_events(), Ok(()));
    let ending = async {
        let told = event.await.unwrap();
        assert!(matches!(told, ExtensionEvent::Shutdown { .. }), "{told:?}");
        let how = "exit code 0".to_owned();
        bridge.extension_ended("one", "Extension.Crash", how).await;
    };
    let begun = tokio::time::Instant::now();
    tokio::join!(bridge.shut_down(Reason::Spindown), ending);
    // Nobody waits for the other one, which asked for nothing, and nobody
    // takes the end for a crash.
    assert!(begun.elapsed() < SHUTDOWN);
    assert!(bridge.takes_events().is_ok() && !*sandbox.destroyed.borrow());
}

#[tokio::test(start_paused = true)]
async fn after_a_timeout_extensions_have_their_time_and_the_runtime_has_none() {
    let (sandbox, tasks) = (Arc::new(Fake::obedient()), Tasks::new());
    let mut told = posts(&tasks, sandbox.listen());
    let bridge = bridge(&sandbox);
    bridge.expect(&names()[..1]);
    let wants = Wants {
        invoke: false,
        shutdown: true,
    };
    let one = bridge.register("one", wants).unwrap();
    let inner = bridge.register("the runtime's", wants).unwrap();
    bridge.subscribe(one, &subscription()).unwrap();
    let event = bridge.extension_next(one).unwrap();
    let mut untold = bridge.extension_next(inner).unwrap();
    let _call = bridge.next().unwrap();
    let ending = async {
        let event = event.await.unwrap();
        let ExtensionEvent::Shutdown { reason, .. } = event else {
            panic!("{event:?}");
        };
        assert_eq!(reason, Reason::Timeout);
        assert_eq!(*sandbox.signals.lock().unwrap(), [SIGSTOP]);
        let how = "exit code 0".to_owned();
        bridge.extension_ended("one", "Extension.Crash", how).await;
    };
    let (reply, outcome) = oneshot::channel();
    tokio::join!(bridge.invoke(invocation("7"), reply), ending);
    let outcome = outcome.await.unwrap();
    assert!(matches!(outcome.reply, Reply::Failed(_)) && outcome.last);
    assert_eq!(*sandbox.signals.lock().unwrap(), [SIGSTOP, SIGKILL]);
    assert!(untold.try_recv().is_err());
    let told = told_until("platform.report", &mut told).await;
    let report = &told.last().unwrap()["record"];
    assert_eq!(report["status"], "timeout");
    assert_eq!(report["metrics"]["maxMemoryUsedMB"], 31);
}

#[tokio::test(start_paused = true)]
async fn extensions_outlive_a_runtime_that_ends_and_its_caller_does_not_wait() {
    let (sandbox, tasks) = (Arc::new(Fake::obedient()), Tasks::new());
    let mut told = posts(&tasks, sandbox.listen());
    let bridge = bridge(&sandbox);
    bridge.expect(&names());
    let wants = Wants {
        invoke: false,
        shutdown: true,
    };
    let events = names().map(|name| {
        let number = bridge.register(&name, wants).unwrap();
        (number, bridge.extension_next(number).unwrap())
    });
    let [(one, event), (two, lost)] = events;
    bridge.subscribe(one, &subscription()).unwrap();
    // Its process has gone, which nobody has told yet.
    drop(lost);
    let call = bridge.next().unwrap();
    let (reply, outcome) = oneshot::channel::<Outcome>();
    let serving = async {
        let _event = call.event().await.unwrap();
        let exit = ExecExit {
            code: Some(4),
            signal: None,
        };
        bridge.runtime_ended(exit).await;
    };
    let ending = async {
        let outcome = outcome.await.unwrap();
        let Reply::Failed(words) = outcome.reply else {
            panic!("{outcome:?}");
        };
        let words = String::from_utf8_lossy(&words).into_owned();
        assert!(words.contains("exit status 4") && outcome.last, "{words}");
        assert!(bridge.takes_events().is_err() && bridge.has_ended());
        let report = told_until("platform.report", &mut told).await;
        assert_eq!(report.last().unwrap()["record"]["status"], "failure");
        let event = event.await.unwrap();
        let ExtensionEvent::Shutdown { reason, .. } = event else {
            panic!("{event:?}");
        };
        assert_eq!((reason, reason.name()), (Reason::Failure, "failure"));
        assert!(sandbox.signals.lock().unwrap().is_empty());
        for name in names() {
            let how = "exit code 0".to_owned();
            bridge.extension_ended(&name, "Extension.Crash", how).await;
        }
    };
    let begun = tokio::time::Instant::now();
    tokio::join!(bridge.invoke(invocation("7"), reply), serving, ending);
    assert!(begun.elapsed() < SHUTDOWN);
    assert_eq!(*sandbox.signals.lock().unwrap(), [SIGKILL]);
    assert!(two > one);
}

/// Two invocations at once of an instance with an extension, which works for
/// so long behind the first one's answer, as the runtime does before the
/// second's: what becomes of that, and the time that it has, milliseconds.
async fn behind(work: Duration) -> (Outcome, Option<u64>) {
    let sandbox = Arc::new(Fake::obedient());
    let bridge = bridge(&sandbox);
    let wants = Wants {
        invoke: true,
        shutdown: false,
    };
    let one = bridge.register("one", wants).unwrap();
    let event = bridge.extension_next(one).unwrap();
    let call = bridge.next().unwrap();
    let answer = |id: &str| {
        let place = bridge.begin_answer(id).unwrap().unwrap();
        let answer = Answer::Payload {
            body: Bytes::from_static(b"5"),
            content_type: None,
        };
        place.send(answer).unwrap();
    };
    let ((first, told), (second, outcome)) = (oneshot::channel(), oneshot::channel());
    let serving = async {
        answer(&call.event().await.unwrap().id);
        let next = bridge.next().unwrap();
        event.await.unwrap();
        sleep(work).await;
        let _waits = bridge.extension_next(one);
        let event = next.event().await?;
        let left = event.deadline_unix_ms - bridge.clock.unix_ms();
        sleep(work).await;
        answer(&event.id);
        let _settles = (bridge.next().unwrap(), bridge.extension_next(one).unwrap());
        Some(left)
    };
    let invoked = bridge.invoke(invocation("1"), first);
    let next = async {
        told.await.unwrap();
        bridge.invoke(invocation("2"), second).await;
    };
    let (ends, tasks) = (bridge.clone(), Tasks::new());
    tasks.spawn("end", async move {
        ends.has_exited(ends.sandbox.exited().await)
    });
    let (_, _, left) = tokio::join!(invoked, next, serving);
    (outcome.await.unwrap(), left)
}

#[tokio::test(start_paused = true)]
async fn what_extensions_do_behind_an_answer_is_no_other_event_s_time() {
    let (outcome, left) = behind(Duration::from_secs(2)).await;
    assert!(
        matches!(outcome.reply, Reply::Payload { .. }),
        "{outcome:?}"
    );
    assert!(left.is_some_and(|left| left > 2900), "{left:?}");
    // It is the end of the instance when it takes longer than an invocation
    // may, and the next event has not reached it.
    let (outcome, left) = behind(Duration::from_secs(4)).await;
    assert!(matches!(outcome.reply, Reply::Gone(_)), "{outcome:?}");
    assert!(outcome.last && left.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_error_that_an_extension_posts_is_the_instance_s_end() {
    let (words, last) = told_of_a_second_start(async |bridge, _| {
        let one = bridge.register("one", Wants::default()).unwrap();
        let unknown = bridge.extension_error(one + 1, "Extension.InitError", "Its.Own");
        assert_eq!(unknown.await, Err(Refusal::ExtensionId));
        let posted = bridge.extension_error(one, "Extension.InitError", "Its.Own");
        posted.await.unwrap();
    })
    .await;
    let told: Value = serde_json::from_str(&words).unwrap();
    assert_eq!(told["errorType"], "Extension.InitError");
    assert_eq!(told["errorMessage"], "RequestId: 7 Error: Its.Own");
    assert!(last);
}

#[tokio::test(start_paused = true)]
async fn a_first_start_tells_no_caller() {
    let sandbox = Arc::new(Fake::default());
    let bridge = bridge(&sandbox);
    assert!(bridge.takes_events().is_err());
    bridge.init_error(Bytes::new()).await.unwrap();
    assert!(bridge.takes_events().is_err());
    bridge.end_is_told().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_start_that_comes_up_in_time_answers() {
    let sandbox = Arc::new(Fake::default());
    let bridge = bridge_of(&sandbox, Origin::MadeAgain);
    let (reply, outcome) = oneshot::channel();
    let serving = async {
        sleep(Duration::from_secs(2)).await;
        let event = bridge.next().unwrap().event().await.unwrap();
        let place = bridge.begin_answer(&event.id).unwrap().unwrap();
        let answer = Answer::Payload {
            body: Bytes::from_static(b"5"),
            content_type: None,
        };
        place.send(answer).unwrap();
    };
    tokio::join!(bridge.invoke(invocation("7"), reply), serving);
    let outcome = outcome.await.unwrap();
    assert!(
        matches!(outcome.reply, Reply::Payload { .. }),
        "{outcome:?}"
    );
    assert!(!outcome.last && bridge.takes_events().is_ok());
}

fn subscription() -> Vec<u8> {
    let body = json!({
        "schemaVersion": "2022-12-13",
        "types": ["platform"],
        "destination": {"protocol": "HTTP", "URI": "http://sandbox:8080/told"},
    });
    body.to_string().into_bytes()
}

/// Until an event of this kind, all that subscribers are told.
async fn told_until(last: &str, told: &mut mpsc::Receiver<Value>) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    while all.last().is_none_or(|event| event["type"] != last) {
        let events = told.recv().await.unwrap();
        all.extend(events.as_array().unwrap().iter().cloned());
    }
    all
}

#[tokio::test(start_paused = true)]
async fn subscribers_are_told_of_init_and_of_invocations() {
    let (sandbox, tasks) = (Arc::new(Fake::default()), Tasks::new());
    let mut told = posts(&tasks, sandbox.listen());
    let bridge = bridge(&sandbox);
    let wants = Wants {
        invoke: false,
        shutdown: true,
    };
    let watcher = bridge.register("watcher", wants).unwrap();
    let body = subscription();
    let unknown = bridge.subscribe(watcher + 1, &body).unwrap_err();
    assert_eq!(unknown, SubscribeRefusal::Call(Refusal::ExtensionId));
    bridge.subscribe(watcher, &body).unwrap();
    let _waits = bridge.extension_next(watcher).unwrap();
    let call = bridge.next().unwrap();
    let late = bridge.subscribe(watcher, &body).unwrap_err();
    assert_eq!(late, SubscribeRefusal::Closed);
    let (reply, outcome) = oneshot::channel();
    let answering = async {
        let event = call.event().await.unwrap();
        let place = bridge.begin_answer(&event.id).unwrap().unwrap();
        place
            .send(Answer::Failed(Bytes::from_static(b"{}")))
            .unwrap();
    };
    tokio::join!(bridge.invoke(invocation("7"), reply), answering);
    assert!(matches!(outcome.await.unwrap().reply, Reply::Failed(_)));
    let told = told_until("platform.report", &mut told).await;
    let types: Vec<_> = told
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let expected = [
        "platform.initStart",
        "platform.telemetrySubscription",
        "platform.initRuntimeDone",
        "platform.extension",
        "platform.initReport",
        "platform.start",
        "platform.runtimeDone",
        "platform.report",
    ];
    assert_eq!(types, expected);
    assert_eq!(
        told[3]["record"],
        json!({"name": "watcher", "state": "Ready", "events": ["SHUTDOWN"]})
    );
    let done = &told[6]["record"];
    assert_eq!(
        (&done["requestId"], &done["status"]),
        (&json!("7"), &json!("error"))
    );
    assert_eq!(done["metrics"]["producedBytes"], 2);
    assert_eq!(told[7]["record"]["metrics"]["memorySizeMB"], 128);
}

#[tokio::test(start_paused = true)]
async fn subscribers_are_told_of_an_answer_that_fails_in_its_middle() {
    let (sandbox, tasks) = (Arc::new(Fake::default()), Tasks::new());
    let mut told = posts(&tasks, sandbox.listen());
    let bridge = bridge(&sandbox);
    let watcher = bridge.register("watcher", Wants::default()).unwrap();
    bridge.subscribe(watcher, &subscription()).unwrap();
    let _waits = bridge.extension_next(watcher).unwrap();
    let call = bridge.next().unwrap();
    let (reply, outcome) = oneshot::channel();
    let answering = async {
        let event = call.event().await.unwrap();
        let (_pieces, done) = streams(&bridge, &event.id);
        let failed = StreamError {
            kind: "Its.Own".to_owned(),
            body: String::new(),
        };
        done.send(Err(failed)).unwrap();
    };
    tokio::join!(bridge.invoke(invocation("7"), reply), answering);
    let reply = outcome.await.unwrap().reply;
    let Reply::Stream { ending, .. } = reply else {
        panic!("{reply:?}");
    };
    let ending = ending.await.unwrap();
    assert_eq!(ending.error.unwrap().kind, "Its.Own");
    assert_eq!(ending.log, None);
    let told = told_until("platform.report", &mut told).await;
    let report = &told.last().unwrap()["record"];
    assert_eq!(report["status"], "error");
    assert_eq!(report["errorType"], "Its.Own");
}
