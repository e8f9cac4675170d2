//! What is told of an instance and its invocations: to its log, in AWS's lines,
//! and to the subscribers of its telemetry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use skiff_base::{Clock, Monotonic};
use skiff_sandbox::Sandbox;
use skiff_types::FunctionLaunch;
use skiff_worker::OutputTap;
use tokio::io::AsyncRead;
use tokio::time::timeout;

use crate::bridge::Origin;
use crate::machine::Wants;
use crate::telemetry::{Kind, Telemetry, ms};

/// How old what is told of its memory may be: asking takes longer than a short
/// invocation.
const MEMORY_AGE: Duration = Duration::from_millis(100);
/// An instance that does not say in this time what it uses is told of without.
const MEMORY_WAIT: Duration = Duration::from_millis(500);

/// What becomes of an invocation, in AWS's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    /// The function's own error.
    Error,
    /// The instance has ended.
    Failure,
    Timeout,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Failure => "failure",
            Self::Timeout => "timeout",
        }
    }
}

/// An invocation that is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done<'a> {
    pub id: &'a str,
    pub begun: Monotonic,
    pub status: Status,
    /// AWS's type of the error.
    pub error: Option<&'a str>,
    /// The answer's.
    pub bytes: Option<usize>,
}

/// How its init went, as far as the log has not got it.
#[derive(Debug, Default)]
struct Init {
    is_told: bool,
    took: Option<Duration>,
    extensions: Vec<(String, Wants)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    read: Option<Monotonic>,
    most_bytes: u64,
}

/// One instance's.
#[derive(Debug)]
pub(crate) struct Journal {
    function: FunctionLaunch,
    sandbox: Arc<dyn Sandbox>,
    clock: Arc<dyn Clock>,
    output: Option<Arc<OutputTap>>,
    pub telemetry: Arc<Telemetry>,
    init: Mutex<Init>,
    memory: Mutex<Memory>,
}

impl Journal {
    pub fn new(
        function: FunctionLaunch,
        sandbox: Arc<dyn Sandbox>,
        clock: Arc<dyn Clock>,
        output: Option<Arc<OutputTap>>,
    ) -> Self {
        let telemetry = Arc::new(Telemetry::new(sandbox.clone(), clock.clone()));
        if let Some(output) = &output {
            let telemetry = telemetry.clone();
            output.hear(move |line| telemetry.tell(Kind::Function, "function", json!(line)));
        }
        Self {
            function,
            sandbox,
            clock,
            output,
            telemetry,
            init: Mutex::default(),
            memory: Mutex::default(),
        }
    }

    /// What it is told of its init's beginning.
    pub fn beginning(&self) -> Value {
        let spec = &self.function.spec;
        json!({
            "initializationType": self.function.initialization_type(),
            "phase": self.function.initialization_phase(),
            "functionName": spec.name,
            "functionVersion": spec.version,
            "instanceMaxMemory": u64::from(self.function.memory_mib) << 20,
        })
    }

    /// It has come up, with these extensions: only the first time counts.
    pub fn ready(&self, extensions: Vec<(String, Wants)>, origin: Origin) {
        let took = self.telemetry.age();
        {
            let mut init = lock(&self.init);
            if std::mem::replace(&mut init.is_told, true) {
                return;
            }
            // One inside an invocation is in the time of that, and how long one
            // took that was found running nobody knows.
            if origin == Origin::Made {
                init.took = Some(took);
            }
            if origin != Origin::Found {
                init.extensions.clone_from(&extensions);
            }
        }
        let kind = self.function.initialization_type();
        let phase = self.function.initialization_phase();
        let done = json!({"initializationType": kind, "phase": phase, "status": "success"});
        let mut report = done.clone();
        self.platform("initRuntimeDone", done);
        for (name, wants) in extensions {
            let record = json!({"name": name, "state": "Ready", "events": wants.names()});
            self.platform("extension", record);
        }
        report["metrics"] = json!({"durationMs": ms(took)});
        self.platform("initReport", report);
    }

    /// The log of an invocation begins here.
    pub async fn open(&self, id: &str) {
        let Some(output) = &self.output else {
            return;
        };
        output.begin().await;
        let extensions = std::mem::take(&mut lock(&self.init).extensions);
        for (name, wants) in extensions {
            let events = wants.names().join(", ");
            output
                .note(format!(
                    "EXTENSION\tName: {name}\tState: Ready\tEvents: [{events}]"
                ))
                .await;
        }
        let version = &self.function.spec.version;
        output
            .note(format!("START RequestId: {id} Version: {version}"))
            .await;
    }

    /// The runtime is about to get this invocation.
    pub fn start(&self, id: &str) {
        let record = json!({"requestId": id, "version": self.function.spec.version});
        self.platform("start", record);
    }

    /// An invocation is over: behind what the instance has written.
    pub async fn done(&self, done: Done<'_>) {
        let took = self.clock.now().since(done.begun);
        let memory = self.memory_mib().await;
        let init = lock(&self.init).took.take();
        if let Some(output) = &self.output
            && self.telemetry.is_wanted(Kind::Function)
        {
            let _said = output.tail().await;
        }
        self.tell_done(&done, took, memory, init);
        self.note(format!("END RequestId: {}", done.id)).await;
        self.note(report(&done, took, self.function.memory_mib, memory, init))
            .await;
    }

    fn tell_done(
        &self,
        done: &Done<'_>,
        took: Duration,
        memory_mib: Option<u64>,
        init: Option<Duration>,
    ) {
        let mut record = json!({"requestId": done.id, "status": done.status.name()});
        if let Some(error) = done.error {
            record["errorType"] = json!(error);
        }
        let mut report = record.clone();
        record["metrics"] = json!({"durationMs": ms(took)});
        if let Some(bytes) = done.bytes {
            record["metrics"]["producedBytes"] = json!(bytes);
        }
        self.platform("runtimeDone", record);
        report["metrics"] = json!({
            "durationMs": ms(took),
            "billedDurationMs": billed_ms(took),
            "memorySizeMB": self.function.memory_mib,
        });
        if let Some(memory) = memory_mib {
            report["metrics"]["maxMemoryUsedMB"] = json!(memory);
        }
        if let Some(init) = init {
            report["metrics"]["initDurationMs"] = json!(ms(init));
        }
        self.platform("report", report);
    }

    /// A line of Skiff's own.
    pub async fn note(&self, text: String) {
        if let Some(output) = &self.output {
            output.note(text).await;
        }
    }

    /// The end of what was written since [`Journal::open`], for whoever wants it.
    pub async fn tail(&self, wanted: bool) -> Option<Vec<u8>> {
        match &self.output {
            Some(output) if wanted => Some(output.tail().await),
            _ => None,
        }
    }

    /// Reads what an external extension writes.
    pub async fn carry(
        &self,
        stdout: impl AsyncRead + Unpin,
        stderr: Option<impl AsyncRead + Unpin>,
    ) {
        let tell = |line: &str| {
            self.telemetry
                .tell(Kind::Extension, "extension", json!(line));
        };
        if let Some(output) = &self.output {
            output.carry(stdout, stderr, tell).await;
        }
    }

    fn platform(&self, what: &str, record: Value) {
        self.telemetry
            .tell(Kind::Platform, &format!("platform.{what}"), record);
    }

    /// The most memory that it has used so far, MiB; `None` when nobody says.
    async fn memory_mib(&self) -> Option<u64> {
        let now = self.clock.now();
        let known = *lock(&self.memory);
        if known.read.is_none_or(|read| now.since(read) > MEMORY_AGE)
            && let Ok(Ok(stats)) = timeout(MEMORY_WAIT, self.sandbox.stats()).await
        {
            let used = stats.memory_peak_bytes.max(stats.memory_bytes);
            let mut memory = lock(&self.memory);
            memory.most_bytes = memory.most_bytes.max(used);
            memory.read = Some(now);
        }
        let most = lock(&self.memory).most_bytes;
        (most > 0).then(|| most.div_ceil(1 << 20))
    }
}

fn billed_ms(took: Duration) -> u128 {
    took.as_micros().div_ceil(1000)
}

/// AWS's line, with what is known.
fn report(
    done: &Done<'_>,
    took: Duration,
    size_mib: u32,
    used_mib: Option<u64>,
    init: Option<Duration>,
) -> String {
    let shown = |duration: Duration| {
        let us = duration.as_micros();
        format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
    };
    let mut line = format!(
        "REPORT RequestId: {}\tDuration: {}\tBilled Duration: {} ms\tMemory Size: {size_mib} MB",
        done.id,
        shown(took),
        billed_ms(took),
    );
    if let Some(used) = used_mib {
        line += &format!("\tMax Memory Used: {used} MB");
    }
    if let Some(init) = init {
        line += &format!("\tInit Duration: {}", shown(init));
    }
    match (done.status, done.error) {
        (Status::Timeout, _) => line += "\tStatus: timeout",
        (Status::Failure, Some(error)) => line += &format!("\tStatus: error\tError Type: {error}"),
        _ => {}
    }
    line
}

/// The type that an error's body names.
pub(crate) fn error_type(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "errorType")]
        kind: String,
    }
    let named: Option<Named> = serde_json::from_slice(body).ok();
    named.map(|named| named.kind)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_known() {
        let done = Done {
            id: "7",
            begun: Monotonic::from_nanos(0),
            status: Status::Success,
            error: None,
            bytes: Some(1),
        };
        let took = Duration::from_micros(2_015);
        assert_eq!(
            report(&done, took, 128, None, None),
            "REPORT RequestId: 7\tDuration: 2.01 ms\tBilled Duration: 3 ms\tMemory Size: 128 MB"
        );
        let init = Some(Duration::from_micros(120_009));
        assert!(
            report(&done, took, 128, Some(31), init)
                .ends_with("\tMax Memory Used: 31 MB\tInit Duration: 120.00 ms")
        );
        let timeout = Done {
            status: Status::Timeout,
            ..done
        };
        assert!(report(&timeout, took, 128, None, None).ends_with("128 MB\tStatus: timeout"));
        let failure = Done {
            status: Status::Failure,
            error: Some("Runtime.ExitError"),
            ..done
        };
        assert!(
            report(&failure, took, 128, None, None)
                .ends_with("\tStatus: error\tError Type: Runtime.ExitError")
        );
    }

    #[test]
    fn an_error_s_type_is_what_its_body_says() {
        assert_eq!(
            error_type(br#"{"errorType":"A","errorMessage":1}"#).as_deref(),
            Some("A")
        );
        assert_eq!(error_type(br#"{"errorType":1}"#), None);
        assert_eq!(error_type(b"words"), None);
    }
}
