use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use crate::support::*;

#[tokio::test]
async fn a_deployment_makes_a_revision_and_moves_the_traffic() {
    let server = World::new().start().await;
    let answer = server.deploy("hello", plain(1)).await.is(200);
    let events: Vec<_> = answer
        .lines
        .iter()
        .map(|line| line["event"].as_str().unwrap())
        .collect();
    assert_eq!(events, ["pull", "revision", "validating", "done"]);
    assert_eq!(answer.lines[1]["name"], "hello-00001");
    let service = &answer.last()["service"];
    assert_eq!(service["url"], "http://hello.skiff.localhost:8080");
    assert_eq!(
        service["traffic"],
        json!([{"revision": "latest", "percent": 100}])
    );
    assert_eq!(service["revisions"][0]["state"], "ready");
    let container = &service["revisions"][0]["spec"]["containers"][0];
    assert_eq!(container["digest"], digest(1).as_str());
    assert_eq!(service["instances"][0]["revision"], "hello-00001");
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00001".to_owned(), 100)]
    );
    assert_eq!(server.table.hosts(), ["hello.skiff.localhost"]);
    assert_eq!(server.fleet.serving(), ["hello-00001"]);

    server.deployed("hello", 2).await;
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00002".to_owned(), 100)]
    );
    assert_eq!(server.fleet.serving(), ["hello-00002"]);
    let revisions = server.table.revisions.lock().unwrap().len();
    assert_eq!(revisions, 2, "a way back finds the old one in the gateway");
}

#[tokio::test]
async fn an_instance_is_launched_by_the_rules() {
    let server = World::new().start().await;
    let body = json!({"containers": [{"image": "hello:1", "args": ["-v"], "port": 9000,
        "env": [{"name": "A", "value": "x"}]}]});
    server.deploy("hello", body).await.is(200).says("done");
    let launch = server.fleet.launches.lock().unwrap()[0].clone();
    assert_eq!(launch.args, ["/server", "-v"]);
    assert_eq!((launch.uid, launch.gid, launch.port), (1000, 1001, 9000));
    assert_eq!(launch.additional_gids, [7]);
    assert_eq!(launch.cwd, "/");
    let env = server.fleet.env_of_last();
    for line in [
        "FROM_IMAGE=1",
        "A=x",
        "PORT=9000",
        "K_REVISION=hello-00001",
        "HOME=/home/app",
    ] {
        assert!(env.contains(&line.to_owned()), "{line} in {env:?}");
    }
}

#[tokio::test]
async fn an_event_waits_for_the_whole_of_a_slow_init() {
    let server = World::new().start().await;
    let function = |timeout: u32| {
        json!({"containers": [{"image": "hello:1", "port": 8080}],
            "scaling": {"concurrency": 1}, "resources": {"cpu_mode": "request"},
            "function": {"init_timeout_s": timeout}})
    };
    server.deployed("service", 1).await;
    for (name, timeout) in [("slow", 60), ("slower", 300)] {
        server.deploy(name, function(timeout)).await.is(200);
    }
    let routes = server.table.revisions.lock().unwrap();
    let waits = |name: &str| {
        let mut named = routes.values().filter(|route| route.id.name() == name);
        named.next().unwrap().queue_ms
    };
    // The service's is what the server is configured with.
    assert_eq!(waits("service-00001"), 1000);
    assert_eq!(waits("slow-00001"), 65_000);
    assert_eq!(waits("slower-00001"), 305_000);
}

#[tokio::test]
async fn a_bad_revision_leaves_the_old_one_serving_and_says_why() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let log = vec!["booting".to_owned(), "panic: no database".to_owned()];
    server
        .fleet
        .next_start(Start::Fails("the application ended with 1", log));
    let answer = server.deploy("hello", plain(2)).await.is(200);
    let last = answer.last();
    assert_eq!(last["event"], "failed");
    assert_eq!(last["error"]["kind"], "failed");
    assert_eq!(last["log"], json!(["booting", "panic: no database"]));
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00001".to_owned(), 100)]
    );
    assert_eq!(server.fleet.serving(), ["hello-00001"]);
    let service = server.get(&service_path("hello")).await.is(200);
    let newest = &service.body()["revisions"][0];
    assert_eq!(newest["state"], "failed");
    assert_eq!(newest["reason"], "the application ended with 1");

    server.fleet.next_start(Start::Works);
    server.deployed("hello", 2).await;
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00003".to_owned(), 100)]
    );
}

#[tokio::test]
async fn the_same_again_makes_no_revision_unless_forced() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let answer = server.deploy("hello", plain(1)).await.is(200);
    assert_eq!(
        answer.lines[0],
        json!({"event": "unchanged", "name": "hello-00001"})
    );
    assert_eq!(answer.last()["event"], "done");
    assert_eq!(
        answer.last()["service"]["revisions"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let mut forced = plain(1);
    forced["force"] = json!(true);
    let answer = server.deploy("hello", forced).await.is(200);
    assert_eq!(answer.lines[0]["name"], "hello-00002");

    // After a rollback the same again moves the traffic back.
    server
        .call(
            "POST",
            &format!("{}/rollback", service_path("hello")),
            json!({}),
        )
        .await
        .is(200);
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00001".to_owned(), 100)]
    );
    server
        .deploy("hello", plain(1))
        .await
        .is(200)
        .says("unchanged");
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00002".to_owned(), 100)]
    );
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let world = World::new();
    let server = world.start().await;
    let before = world.store.keys().await;
    let with = |key: &str, value: serde_json::Value| {
        let mut body = plain(1);
        body[key] = value;
        body
    };
    let two = json!([{"image": "hello:1"}, {"image": "hello:2", "name": "side"}]);
    let container = |key: &str, value: serde_json::Value| {
        let mut body = plain(1);
        body["containers"][0][key] = value;
        body
    };
    let env = json!([{"name": "KEY", "secret": "api-key"}]);
    for (body, status, reason) in [
        (
            with("scaling", json!({"concurrency": 0})),
            400,
            "concurrency is 0",
        ),
        (
            with("scaling", json!({"min": 3, "max": 2})),
            400,
            "min is 3 and max is 2",
        ),
        (
            with("resources", json!({"memory_mib": 1})),
            400,
            "memory_mib is 1",
        ),
        (with("colour", json!("red")), 400, "colour"),
        (with("isolation", json!("null")), 403, "null class"),
        (
            with("no_traffic", json!(true)),
            400,
            "the first one gets the traffic",
        ),
        (with("containers", json!([])), 400, "at least one container"),
        (with("containers", two), 501, "2 containers"),
        (with("tag", json!("NO")), 400, "not a tag"),
        (container("image", json!("")), 400, "the image reference"),
        (container("image", json!("a b")), 400, "blanks"),
        (container("port", json!(0)), 400, "port is 0"),
        (container("port", json!(70000)), 400, "70000"),
        (
            container("probe", json!({"start_timeout_s": 0})),
            400,
            "start_timeout_s is 0",
        ),
        (
            container("probe", json!({"kind": {"http": "x"}})),
            400,
            "starts with /",
        ),
        (container("probe", json!({"knd": "tcp"})), 400, "knd"),
        (container("env", env), 422, "the secret api-key"),
        (
            container("env", json!([{"name": "A=B", "value": ""}])),
            400,
            "A=B",
        ),
        (
            container("env", json!([{"name": "A", "value": "", "colour": 1}])),
            400,
            "colour",
        ),
        (json!([]), 400, "the body is wrong"),
    ] {
        server.deploy("hello", body).await.is(status).says(reason);
    }
    server.deploy("a---b", plain(1)).await.is(400).says("---");
    server
        .deploy("NO", plain(1))
        .await
        .is(400)
        .says("not a service name");
    server
        .raw("PUT", &service_path("hello"), "{")
        .await
        .is(400)
        .says("the body is wrong");
    let huge = vec![b' '; 2_000_000];
    server
        .raw("PUT", &service_path("hello"), huge)
        .await
        .is(413)
        .says("over 1048576 bytes");
    let scale = format!("{}/scale", service_path("hello"));
    server.call("POST", &scale, json!({"max": 3})).await.is(404);
    assert_eq!(world.store.keys().await, before);
    assert!(server.fleet.plans.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_or_run_is_told() {
    let world = World::new();
    let server = world.start().await;
    let mut bare = image("bare:1", 9);
    bare.config.entrypoint.clear();
    world
        .shelf
        .registry
        .lock()
        .unwrap()
        .insert("bare:1".into(), bare);
    for (image, reason) in [
        ("gone:1", "the registry has no gone:1"),
        ("bare:1", "give a command"),
    ] {
        let answer = server
            .deploy("hello", json!({"containers": [{"image": image}]}))
            .await
            .is(200);
        assert_eq!(answer.last()["event"], "failed");
        assert_eq!(answer.last()["error"]["kind"], "failed");
        answer.says(reason);
    }
    server.get(&service_path("hello")).await.is(404);
}

#[tokio::test]
async fn scaling_makes_a_revision_that_differs_in_it() {
    let server = World::new().start().await;
    server.deployed("hello", 1).await;
    let path = format!("{}/scale", service_path("hello"));
    server
        .call("POST", &path, json!({}))
        .await
        .is(400)
        .says("neither min nor max");
    server
        .call("POST", &path, json!({"min": 101}))
        .await
        .is(400)
        .says("min is 101");
    server
        .call("POST", &path, json!({"mim": 1}))
        .await
        .is(400)
        .says("mim");
    let answer = server
        .call("POST", &path, json!({"min": 2, "max": 5}))
        .await
        .is(200);
    let spec = &answer.last()["service"]["revisions"][0]["spec"];
    assert_eq!(spec["scaling"]["min"], 2);
    assert_eq!(spec["scaling"]["max"], 5);
    assert_eq!(spec["containers"][0]["image"], "hello:1");
    let plans = server.fleet.plans.lock().unwrap();
    assert_eq!(plans.values().last().unwrap().scaling.min, 2);
}

#[tokio::test]
async fn deployments_of_one_service_take_turns_and_few_wait() {
    let server = World::new().start().await;
    let go = Arc::new(Notify::new());
    server.fleet.next_start(Start::Waits(go.clone()));
    let first = server.deploy("hello", plain(1));
    let watch = async {
        until("the first is being validated", || started(&server, 1)).await;
        // The line holds eight: one of nine is refused, whichever it is.
        let nine = (0..9).map(|_| Box::pin(server.deploy("hello", plain(2))));
        let (refused, _, eight) = futures_util::future::select_all(nine).await;
        refused.is(409).says("waiting already");
        server.deployed_elsewhere().await;
        server.fleet.next_start(Start::Works);
        go.notify_one();
        for answer in futures_util::future::join_all(eight).await {
            answer.is(200).says("done");
        }
    };
    let (first, ()) = futures_util::future::join(first, watch).await;
    first.is(200).says("done");
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00002".to_owned(), 100)]
    );
}

fn started(server: &Server, times: usize) -> bool {
    server
        .fleet
        .starts
        .load(std::sync::atomic::Ordering::SeqCst)
        >= times
}

impl Server {
    /// Another service does not wait in the first one's line.
    async fn deployed_elsewhere(&self) {
        let held = self.fleet.start.lock().unwrap().clone();
        self.fleet.next_start(Start::Works);
        self.deployed("other", 1).await;
        self.fleet.next_start(held);
    }
}

#[tokio::test]
async fn a_deployment_runs_to_its_end_without_its_client() {
    let server = World::new().start().await;
    let go = Arc::new(Notify::new());
    server.fleet.next_start(Start::Waits(go.clone()));
    let mut sender = server.connect().await;
    let body = http_body_util::Full::new(bytes::Bytes::from(plain(1).to_string()));
    let path = service_path("hello");
    let request = http::Request::put(path)
        .header("host", "skiff")
        .body(body)
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    until("it is being validated", || started(&server, 1)).await;
    drop(response);
    drop(sender);
    go.notify_one();
    until("it serves", || !server.table.traffic("hello").is_empty()).await;
}

#[tokio::test]
async fn old_revisions_are_collected_and_numbers_never_come_again() {
    let world = World::new();
    let server = world.start().await;
    let tag = |n: u32| {
        json!({"containers": [{"image": "hello:1",
        "env": [{"name": "N", "value": n.to_string()}]}], "tag": if n == 1 { json!("first") } else { json!(null) }})
    };
    for n in 1..=25 {
        server.deploy("hello", tag(n)).await.is(200).says("done");
    }
    let service = server.get(&service_path("hello")).await.is(200);
    let names: Vec<_> = service.body()["revisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|revision| revision["name"].as_str().unwrap().to_owned())
        .collect();
    // The tagged first, the one that serves, and 20 more.
    assert_eq!(names.len(), 22);
    assert_eq!(names[0], "hello-00025");
    assert_eq!(names[20], "hello-00005");
    assert_eq!(names[21], "hello-00001");
    let removed = server.fleet.removed.lock().unwrap().len();
    assert_eq!(removed, 3);

    server
        .call("DELETE", &service_path("hello"), json!(null))
        .await
        .is(204);
    server.get(&service_path("hello")).await.is(404);
    assert!(server.table.services.lock().unwrap().is_empty());
    assert!(server.table.revisions.lock().unwrap().is_empty());
    assert!(server.fleet.plans.lock().unwrap().is_empty());
    let left = world.store.keys().await;
    let of_hello: Vec<_> = left.iter().filter(|key| key.contains("hello")).collect();
    assert_eq!(of_hello, ["000000000001/number/hello"]);
    server.deployed("hello", 1).await;
    assert_eq!(
        server.table.traffic("hello"),
        [("hello-00026".to_owned(), 100)]
    );
}

#[tokio::test]
async fn a_launch_of_what_is_not_there_is_refused() {
    let world = World::new();
    let server = world.start().await;
    let id = skiff_types::RevisionId::parse(&skiff_types::ProjectId::default_project(), "no-00001");
    let error = server.resolver.launch(&id.unwrap()).await.unwrap_err();
    assert_eq!(error.kind, skiff_types::ErrorKind::NotFound);
}

#[tokio::test]
async fn stopping_lets_a_deployment_end() {
    let server = World::new().start().await;
    let go = Arc::new(Notify::new());
    server.fleet.next_start(Start::Waits(go.clone()));
    let deploy = server.deploy("hello", plain(1));
    let stop = async {
        until("it is being validated", || started(&server, 1)).await;
        // The stop is polled first: it has begun when the instance answers.
        let answers = async { go.notify_one() };
        futures_util::future::join(server.control.stop(PATIENCE), answers).await;
    };
    let (answer, ()) = futures_util::future::join(deploy, stop).await;
    answer.is(200).says("done");
    until("it listens no more", || server.tasks.is_empty()).await;
}

#[tokio::test]
async fn no_operation_costs_more_with_more_services() {
    let world = World::new();
    let server = world.start().await;
    let mut work = Vec::new();
    for services in [1, 200] {
        while server.table.services.lock().unwrap().len() < services {
            let n = server.table.services.lock().unwrap().len();
            server.deployed(&format!("s{n}"), 1).await;
        }
        world.store.work();
        server.deployed("one", 1).await;
        server.deployed("one", 2).await;
        let path = service_path("one");
        server
            .call("POST", &format!("{path}/rollback"), json!({}))
            .await
            .is(200);
        server
            .call("POST", &format!("{path}/scale"), json!({"max": 7}))
            .await
            .is(200);
        let image = server.call("DELETE", "/v1/images?image=hello:1", json!(null));
        image.await.is(409);
        server.get(&path).await.is(200);
        server.call("DELETE", &path, json!(null)).await.is(204);
        work.push(world.store.work());
    }
    // The second time a number of the deleted service is found, and the image
    // has as many users more as are told.
    assert!(work[1] <= work[0] + 25, "{work:?}");
}

#[tokio::test]
async fn an_image_for_another_processor_is_refused_before_anything_starts() {
    let world = World::new();
    let mut foreign = image("foreign:1", 77);
    (foreign.platform, foreign.runs_here) = ("linux/arm64".into(), false);
    world.shelf.stored.lock().unwrap().push(foreign);
    let server = world.start().await;
    for isolation in ["container", "microvm"] {
        for name in ["foreign:1", digest(77).as_str()] {
            let body = json!({"containers": [{"image": name}], "isolation": isolation});
            let answer = server.deploy("foreign", body).await;
            let told = format!("{} {}", answer.status, answer.text);
            assert!(told.contains("is for linux/arm64"), "{told}");
        }
    }
    assert_eq!(
        server
            .fleet
            .starts
            .load(std::sync::atomic::Ordering::SeqCst),
        0
    );
    server.get(&service_path("foreign")).await.is(404);
}
