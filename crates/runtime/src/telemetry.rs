//! AWS's Telemetry API: what happens in an instance, pushed over HTTP to the
//! extensions that asked for it (schema 2022-12-13).
//!
//! ```text
//!  bridge, output ──▶ each subscriber's queue ──full, old, or the instance is to stand──▶ POST inside
//! ```
//!
//! An event is sent once at most: a second time only where nobody listened.
//! What a subscriber does not take makes nothing grow: it is dropped, counted,
//! and the count is told.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_base::{Backoff, Clock, Monotonic, Tasks, UtcTime, chain};
use skiff_sandbox::Sandbox;
use skiff_wire::launcher::RUNTIME_API;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// What waits for one subscriber; events that wait for several are there once.
const QUEUED_BYTES_MAX: usize = 1024 * 1024;
/// One delivery, from its first try to the answer.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(5);
/// They differ in what events may have, and not in what these have.
const SCHEMAS: [&str; 3] = ["2022-07-01", "2022-12-13", "2025-01-29"];

/// A subscription that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unacceptable {
    #[error("the body is no JSON of schemaVersion, types, buffering and destination")]
    Format,
    #[error("schemaVersion is 2022-07-01, 2022-12-13 or 2025-01-29")]
    Schema,
    #[error("types are one or more of platform, function and extension")]
    Types,
    #[error("maxItems is 1000 to 10000, maxBytes 262144 to 1048576, timeoutMs 25 to 30000")]
    Buffering,
    #[error("the destination is HTTP to http://sandbox.localdomain:PORT, and no port of Skiff's")]
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Platform,
    Function,
    Extension,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    schema_version: String,
    types: Vec<Kind>,
    #[serde(default)]
    buffering: Buffering,
    destination: Destination,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Buffering {
    max_items: usize,
    max_bytes: usize,
    timeout_ms: u64,
}

impl Default for Buffering {
    fn default() -> Self {
        Self {
            max_items: 10_000,
            max_bytes: 262_144,
            timeout_ms: 1000,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Destination {
    protocol: String,
    #[serde(rename = "URI")]
    uri: String,
}

/// What an extension asked for.
#[derive(Debug)]
pub(crate) struct Subscription {
    kinds: Vec<Kind>,
    buffering: Buffering,
    port: u16,
    path: String,
    host: HeaderValue,
}

impl Subscription {
    /// As its body says.
    pub fn parse(body: &[u8]) -> Result<Self, Unacceptable> {
        let asked: Asked = serde_json::from_slice(body).map_err(|_| Unacceptable::Format)?;
        if !SCHEMAS.contains(&asked.schema_version.as_str()) {
            return Err(Unacceptable::Schema);
        }
        if asked.types.is_empty() {
            return Err(Unacceptable::Types);
        }
        let buffering = asked.buffering;
        let fits = (1000..=10_000).contains(&buffering.max_items)
            && (262_144..=1_048_576).contains(&buffering.max_bytes)
            && (25..=30_000).contains(&buffering.timeout_ms);
        if !fits {
            return Err(Unacceptable::Buffering);
        }
        let place = place(&asked.destination).ok_or(Unacceptable::Destination)?;
        let (port, path, host) = place;
        Ok(Self {
            kinds: asked.types,
            buffering,
            port,
            path,
            host,
        })
    }

    /// What it is told of itself.
    fn names(&self) -> Vec<&'static str> {
        let name = |kind: &Kind| match kind {
            Kind::Platform => "platform",
            Kind::Function => "function",
            Kind::Extension => "extension",
        };
        self.kinds.iter().map(name).collect()
    }
}

fn place(destination: &Destination) -> Option<(u16, String, HeaderValue)> {
    if destination.protocol != "HTTP" {
        return None;
    }
    let uri: Uri = destination.uri.parse().ok()?;
    let authority = uri.authority()?;
    let known = ["sandbox", "sandbox.localdomain"].contains(&authority.host());
    let port = authority.port_u16().unwrap_or(80);
    if uri.scheme_str() != Some("http") || !known || port == RUNTIME_API.port() || port == 0 {
        return None;
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = HeaderValue::from_str(authority.as_str()).ok()?;
    Some((port, path.to_owned(), host))
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Bytes>,
    bytes: usize,
    /// When the first of them came.
    since: Option<Monotonic>,
    /// They are wanted whatever their number and age.
    hurry: bool,
    delivering: bool,
    dropped: Dropped,
}

#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    records: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Subscriber {
    subscription: Subscription,
    queue: Mutex<Queue>,
    changed: watch::Sender<()>,
}

impl Subscriber {
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let changed = change(&mut lock(&self.queue));
        self.changed.send_replace(());
        changed
    }

    fn put(&self, event: &Bytes, now: Monotonic) {
        self.change(|queue| {
            if queue.bytes + event.len() > QUEUED_BYTES_MAX {
                queue.dropped.records += 1;
                queue.dropped.bytes += event.len();
                return;
            }
            queue.bytes += event.len();
            queue.events.push_back(event.clone());
            queue.since.get_or_insert(now);
        });
    }

    fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.events.is_empty() && !queue.delivering
    }

    /// How long until what waits is due; `None` when nothing waits.
    fn due_in(&self, now: Monotonic) -> Option<Duration> {
        let queue = lock(&self.queue);
        let since = queue.since?;
        let buffering = &self.subscription.buffering;
        let full = queue.events.len() >= buffering.max_items || queue.bytes >= buffering.max_bytes;
        if full || queue.hurry {
            return Some(Duration::ZERO);
        }
        let most = Duration::from_millis(buffering.timeout_ms);
        Some(most.saturating_sub(now.since(since)))
    }

    /// Waits for events that are due: an array of them, and what is lost unless
    /// it is delivered.
    async fn batch(&self, clock: &dyn Clock) -> (Vec<u8>, Dropped) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            match self.due_in(clock.now()) {
                Some(Duration::ZERO) => return self.take(clock),
                due => tokio::select! {
                    _changed = changes.changed() => {}
                    () = sleep(due.unwrap_or(Duration::MAX)) => {}
                },
            }
        }
    }

    fn take(&self, clock: &dyn Clock) -> (Vec<u8>, Dropped) {
        self.change(|queue| {
            let dropped = std::mem::take(&mut queue.dropped);
            let mut events = Vec::new();
            if dropped.records > 0 {
                let record = json!({
                    "droppedRecords": dropped.records,
                    "droppedBytes": dropped.bytes,
                    "reason": "the subscriber takes less than there is",
                });
                events.push(event(clock.unix_ms(), "platform.logsDropped", record));
            }
            let mut taken = Dropped::default();
            while let Some(next) = queue.events.front() {
                let full = taken.records >= self.subscription.buffering.max_items
                    || taken.bytes + next.len() > self.subscription.buffering.max_bytes;
                if full && taken.records > 0 {
                    break;
                }
                taken.records += 1;
                taken.bytes += next.len();
                events.extend(queue.events.pop_front());
            }
            queue.bytes -= taken.bytes;
            queue.delivering = true;
            queue.since = (!queue.events.is_empty()).then(|| clock.now());
            queue.hurry &= queue.since.is_some();
            let mut body = b"[".to_vec();
            body.extend(events.join(&b","[..]));
            body.push(b']');
            let lost = Dropped {
                records: dropped.records + taken.records,
                bytes: dropped.bytes + taken.bytes,
            };
            (body, lost)
        })
    }

    /// Delivers what comes, to an instance that runs.
    async fn serve(
        &self,
        sandbox: &dyn Sandbox,
        clock: &dyn Clock,
        mut stands: watch::Receiver<bool>,
    ) {
        loop {
            let (body, told) = self.batch(clock).await;
            if stands.wait_for(|stands| !*stands).await.is_err() {
                return;
            }
            let delivered = timeout(DELIVERY_DEADLINE, self.deliver(sandbox, body)).await;
            let lost = match delivered {
                Ok(Ok(())) => false,
                Ok(Err(error)) => {
                    tracing::debug!(instance = %sandbox.id(), error = %chain(&error), "telemetry is lost");
                    true
                }
                Err(_late) => true,
            };
            self.change(|queue| {
                queue.delivering = false;
                if lost {
                    queue.dropped.records += told.records;
                    queue.dropped.bytes += told.bytes;
                }
            });
        }
    }

    async fn deliver(&self, sandbox: &dyn Sandbox, body: Vec<u8>) -> io::Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        let stream = loop {
            match sandbox.connect(self.subscription.port).await {
                // It may yet begin to listen.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    sleep(backoff.next(skiff_base::random::u32())).await;
                }
                connected => break connected?,
            }
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = Request::post(&self.subscription.path)
            .header(HOST, &self.subscription.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(io::Error::other)?;
        let answered = async {
            let response = sender.send_request(request).await;
            response.map_err(io::Error::other)
        };
        let response = tokio::select! {
            biased;
            response = answered => response?,
            ended = connection => {
                ended.map_err(io::Error::other)?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        match response.status().is_success() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "it answers {}",
                response.status()
            ))),
        }
    }
}

/// One instance's.
#[derive(Debug)]
pub(crate) struct Telemetry {
    sandbox: Arc<dyn Sandbox>,
    clock: Arc<dyn Clock>,
    /// When the instance began, milliseconds since 1970.
    began_unix_ms: u64,
    began: Monotonic,
    seats: Mutex<BTreeMap<u64, Seat>>,
    /// Nothing in the instance runs.
    stands: watch::Sender<bool>,
}

impl Telemetry {
    pub fn new(sandbox: Arc<dyn Sandbox>, clock: Arc<dyn Clock>) -> Self {
        Self {
            sandbox,
            began_unix_ms: clock.unix_ms(),
            began: clock.now(),
            clock,
            seats: Mutex::default(),
            stands: watch::Sender::new(false),
        }
    }

    /// An extension's, in the place of one that it had before. It is told of
    /// what came before it.
    pub fn subscribe(&self, extension: u64, name: &str, subscription: Subscription, begin: Value) {
        let record = json!({
            "name": name,
            "state": "Subscribed",
            "types": subscription.names(),
        });
        let subscriber = Arc::new(Subscriber {
            subscription,
            queue: Mutex::default(),
            changed: watch::Sender::new(()),
        });
        if subscriber.subscription.kinds.contains(&Kind::Platform) {
            let now = self.clock.now();
            subscriber.put(&event(self.began_unix_ms, "platform.initStart", begin), now);
            let told = event(
                self.clock.unix_ms(),
                "platform.telemetrySubscription",
                record,
            );
            subscriber.put(&told, now);
        }
        let deliveries = Tasks::new();
        let stands = self.stands.subscribe();
        let (serving, sandbox, clock) =
            (subscriber.clone(), self.sandbox.clone(), self.clock.clone());
        deliveries.spawn("telemetry", async move {
            serving.serve(&*sandbox, &*clock, stands).await;
        });
        let seat = Seat {
            subscriber,
            _deliveries: deliveries,
        };
        lock(&self.seats).insert(extension, seat);
    }

    /// Whether anybody asked for this.
    pub fn is_wanted(&self, kind: Kind) -> bool {
        let seats = lock(&self.seats);
        seats.values().any(|seat| seat.wants(kind))
    }

    /// Nothing in the instance runs from now on, or it does again. What is on
    /// its way by then is lost unless it is answered in time.
    pub fn stand(&self, stands: bool) {
        self.stands.send_replace(stands);
    }

    /// How long ago the instance began.
    pub fn age(&self) -> Duration {
        self.clock.now().since(self.began)
    }

    /// Something has happened.
    pub fn tell(&self, kind: Kind, name: &str, record: Value) {
        if !self.is_wanted(kind) {
            return;
        }
        let event = event(self.clock.unix_ms(), name, record);
        let now = self.clock.now();
        for seat in lock(&self.seats).values() {
            if seat.wants(kind) {
                seat.subscriber.put(&event, now);
            }
        }
    }

    /// Whether nothing waits to be delivered.
    pub fn is_idle(&self) -> bool {
        lock(&self.seats)
            .values()
            .all(|seat| seat.subscriber.is_idle())
    }

    /// Delivers all that there is now, within this time.
    pub async fn hurry(&self, most: Duration) {
        let waiting: Vec<_> = lock(&self.seats)
            .values()
            .map(|seat| seat.subscriber.clone())
            .collect();
        let delivered = async {
            for subscriber in waiting {
                subscriber.change(|queue| queue.hurry = !queue.events.is_empty());
                let mut changes = subscriber.changed.subscribe();
                while !subscriber.is_idle() && changes.changed().await.is_ok() {}
            }
        };
        // What is not delivered is when the instance goes on.
        let _late = timeout(most, delivered).await;
    }
}

/// A subscriber, and the task that delivers to it.
#[derive(Debug)]
struct Seat {
    subscriber: Arc<Subscriber>,
    _deliveries: Tasks,
}

impl Seat {
    fn wants(&self, kind: Kind) -> bool {
        self.subscriber.subscription.kinds.contains(&kind)
    }
}

/// Milliseconds as AWS writes them.
pub(crate) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn event(unix_ms: u64, name: &str, record: Value) -> Bytes {
    let event =
        json!({"time": UtcTime::of_unix_ms(unix_ms).to_string(), "type": name, "record": record});
    event.to_string().into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use skiff_base::SystemClock;

    use super::*;
    use crate::fake::{Fake, posts};

    fn body(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut body = json!({
            "schemaVersion": "2022-12-13",
            "types": ["platform", "function"],
            "buffering": {"maxItems": 1000, "maxBytes": 262_144, "timeoutMs": 100},
            "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:8080/told"},
        });
        change(&mut body);
        body.to_string().into_bytes()
    }

    #[test]
    fn a_subscription_is_what_its_body_says() {
        let subscription = Subscription::parse(&body(|_| {})).unwrap();
        assert_eq!(subscription.names(), ["platform", "function"]);
        assert_eq!((subscription.port, &*subscription.path), (8080, "/told"));
        assert_eq!(subscription.buffering.timeout_ms, 100);
        let without = body(|body| {
            body.as_object_mut().unwrap().remove("buffering");
        });
        assert_eq!(
            Subscription::parse(&without).unwrap().buffering.max_items,
            10_000
        );
    }

    #[test]
    fn a_subscription_that_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut Value)| Subscription::parse(&body(change)).unwrap_err();
        assert_eq!(Subscription::parse(b"{").unwrap_err(), Unacceptable::Format);
        assert_eq!(
            refused(&|b| b["types"] = json!(["all"])),
            Unacceptable::Format
        );
        assert_eq!(refused(&|b| b["types"] = json!([])), Unacceptable::Types);
        let old = refused(&|b| b["schemaVersion"] = json!("2021-03-18"));
        assert_eq!(old, Unacceptable::Schema);
        for (name, value) in [
            ("maxItems", 999),
            ("maxBytes", 1_048_577),
            ("timeoutMs", 24),
        ] {
            let refused = refused(&|b| b["buffering"][name] = json!(value));
            assert_eq!(refused, Unacceptable::Buffering, "{name}");
        }
        for uri in [
            "http://192.0.2.1:8080",
            "https://sandbox:8080",
            "http://sandbox:9001",
            "http://sandbox:0",
            "sandbox",
        ] {
            let refused = refused(&|b| b["destination"]["URI"] = json!(uri));
            assert_eq!(refused, Unacceptable::Destination, "{uri}");
        }
        let udp = refused(&|b| b["destination"]["protocol"] = json!("TCP"));
        assert_eq!(udp, Unacceptable::Destination);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(
            UtcTime::of_unix_ms(0).to_string(),
            "1970-01-01T00:00:00.000Z"
        );
        assert_eq!(
            UtcTime::of_unix_ms(1_709_251_199_007).to_string(),
            "2024-02-29T23:59:59.007Z"
        );
        assert!((ms(Duration::from_micros(1_234_567)) - 1234.567).abs() < 1e-9);
    }

    fn subscribed(sandbox: &Arc<Fake>, change: impl FnOnce(&mut Value)) -> Telemetry {
        let telemetry = Telemetry::new(sandbox.clone(), Arc::new(SystemClock));
        let subscription = Subscription::parse(&body(change)).unwrap();
        telemetry.subscribe(1, "watcher", subscription, json!({"phase": "init"}));
        telemetry
    }

    fn types(events: &Value) -> Vec<&str> {
        let events = events.as_array().unwrap();
        events
            .iter()
            .map(|event| event["type"].as_str().unwrap())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_is_told_what_it_asked_for() {
        let (sandbox, tasks) = (Arc::new(Fake::default()), Tasks::new());
        let telemetry = subscribed(&sandbox, |_| {});
        telemetry.tell(Kind::Function, "function", json!("a line"));
        telemetry.tell(Kind::Extension, "extension", json!("not asked for"));
        assert!(!telemetry.is_idle());
        // It begins to listen late.
        let late = async {
            sleep(Duration::from_secs(1)).await;
            posts(&tasks, sandbox.listen())
        };
        let ((), mut told) = tokio::join!(telemetry.hurry(Duration::from_secs(4)), late);
        assert!(telemetry.is_idle());
        let events = told.recv().await.unwrap();
        let expected = [
            "platform.initStart",
            "platform.telemetrySubscription",
            "function",
        ];
        assert_eq!(types(&events), expected);
        assert_eq!(events[0]["record"]["phase"], "init");
        assert_eq!(
            events[1]["record"]["types"],
            json!(["platform", "function"])
        );
        assert_eq!(events[2]["record"], "a line");
        // By itself, once its time is over.
        telemetry.tell(Kind::Function, "function", json!("another"));
        assert_eq!(told.recv().await.unwrap()[0]["record"], "another");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_is_dropped_and_counted() {
        let (sandbox, tasks) = (Arc::new(Fake::default()), Tasks::new());
        let telemetry = subscribed(&sandbox, |body| body["types"] = json!(["function"]));
        let line = json!("x".repeat(100_000));
        for _ in 0..100 {
            telemetry.tell(Kind::Function, "function", line.clone());
        }
        let waiting = |telemetry: &Telemetry| {
            let seats = lock(&telemetry.seats);
            let queue = lock(&seats[&1].subscriber.queue);
            (queue.bytes, queue.dropped.records)
        };
        let (bytes, dropped) = waiting(&telemetry);
        assert!(bytes <= QUEUED_BYTES_MAX, "{bytes}");
        assert!(dropped >= 79, "{dropped}");
        // Nobody listens for as long as a delivery is tried.
        telemetry.hurry(DELIVERY_DEADLINE * 2).await;
        let mut told = posts(&tasks, sandbox.listen());
        let (mut lines, mut lost) = (0, 0);
        while lines + lost < 100 {
            for event in told.recv().await.unwrap().as_array().unwrap() {
                match event["type"].as_str().unwrap() {
                    "function" => lines += 1,
                    _ => lost += event["record"]["droppedRecords"].as_u64().unwrap(),
                }
            }
        }
        assert_eq!(lines + lost, 100);
        assert!(lines > 0 && lost > 79, "{lines} {lost}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_delivered_to_an_instance_that_stands() {
        let (sandbox, tasks) = (Arc::new(Fake::default()), Tasks::new());
        let telemetry = subscribed(&sandbox, |body| body["types"] = json!(["function"]));
        telemetry.stand(true);
        telemetry.tell(Kind::Function, "function", json!("a line"));
        telemetry.hurry(DELIVERY_DEADLINE * 2).await;
        let mut connections = sandbox.listen();
        assert!(!telemetry.is_idle() && connections.try_recv().is_err());
        telemetry.stand(false);
        let told = posts(&tasks, connections).recv().await.unwrap();
        assert_eq!(told[0]["record"], "a line");
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_not_kept_by_who_takes_nothing() {
        let sandbox = Arc::new(Fake::default());
        let _connections = sandbox.listen();
        let telemetry = subscribed(&sandbox, |_| {});
        telemetry.hurry(Duration::from_secs(1)).await;
        assert!(!telemetry.is_idle());
    }
}
