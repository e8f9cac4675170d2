//! Schedules whose server ended in the middle.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_control::LambdaFront;
use skiff_queue::{Event, EventLog, FunctionKey, Phase, State, Write};
use skiff_types::ProjectId;

use crate::support::*;

const TIME: u64 = 1_700_000_000_000;
const EXPRESSION: &str = "at(2023-11-14T22:13:20)";
const SCHEDULES: &str = "/v1/projects/default/schedules";

/// A schedule that was firing for a time that is long past.
fn firing() -> Value {
    json!({
        "spec": {
            "expression": EXPRESSION, "timezone": "", "start_unix_ms": null,
            "end_unix_ms": null, "description": "", "is_enabled": true,
            "function": "gone", "qualifier": null, "role": "", "input": null,
            "age_s": 60, "retries": 0, "delete_after": false,
        },
        "created_unix_ms": TIME - 1000,
        "modified_unix_ms": TIME - 1000,
        "fired_unix_ms": null,
        "firing_unix_ms": TIME,
    })
}

/// Its event, in the log of a server that ended.
fn leave_event(folder: &Path, name: &str) {
    let project = ProjectId::default_project();
    let (log, _) = EventLog::open(folder).unwrap();
    let event = Event {
        key: Some(format!("schedule/{project}/{name}/{TIME}")),
        function: FunctionKey {
            project,
            name: "gone".parse().unwrap(),
        },
        qualifier: None,
        arn: "arn".into(),
        request_id: name.into(),
        accepted_unix_ms: TIME,
        client_context: None,
        trace_id: None,
        hops: 0,
    };
    let write = Write::Accept {
        event: Box::new(event),
        payload: b"{}".to_vec(),
        state: State::begin(Phase::Invoke, TIME),
    };
    log.append(write, |written| assert!(written.is_ok()));
    log.close();
}

/// A server with the schedule and its event; its API is served as long as the
/// other part is there.
async fn left(world: &World, name: &str, schedule: Value) -> (Server, LambdaFront) {
    let folder = world.events();
    let place = format!("{}/schedule/{name}", ProjectId::default_project());
    world.store.put(place, &schedule).await;
    leave_event(&folder, name);
    let server = world.start().await;
    let front = server.lambda(None).await;
    (server, front)
}

/// The function of the events is gone: they are dropped once they may go on.
async fn nothing_is_held_back(server: &Server) {
    let pending = async {
        while !server
            .get("/metrics")
            .await
            .text
            .contains("skiff_events_pending 0\n")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, pending).await;
    assert!(gone.is_ok(), "an event is held back");
}

#[tokio::test]
async fn an_event_that_was_sent_in_time_goes_on_however_late_the_server_is() {
    let (server, _front) = left(&World::new(), "late", firing()).await;
    nothing_is_held_back(&server).await;
    let schedule = server.get(&format!("{SCHEDULES}/late")).await;
    assert_eq!(schedule.is(200).body()["fired_unix_ms"], TIME);
}

#[tokio::test]
async fn what_a_deleted_schedule_has_sent_goes_on() {
    let mut unreadable = firing();
    unreadable["spec"]["expression"] = "never".into();
    let (server, _front) = left(&World::new(), "never", unreadable).await;
    let held = server.get("/metrics").await.text;
    assert!(held.contains("skiff_events_pending 1\n"), "{held}");
    let path = format!("{SCHEDULES}/never");
    server.call("DELETE", &path, Value::Null).await.is(204);
    nothing_is_held_back(&server).await;
}
