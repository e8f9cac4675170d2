//! Between the gateway's requests and one runtime's calls.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use skiff_base::{Clock, Monotonic, chain};
use skiff_sandbox::{Sandbox, SandboxError};
use skiff_types::FunctionLaunch;
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::Exit;
use skiff_worker::OutputTap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::journal::{Done, Journal, Status, error_type};
use crate::machine::{Machine, Refusal, Wants};
use crate::telemetry::{Subscription, Unacceptable};
use crate::trailers::Ending;
use crate::words;

mod streamed;

pub(crate) use streamed::Whole;

pub(crate) const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
/// How long extensions have when the instance ends (AWS's).
const SHUTDOWN: Duration = Duration::from_millis(2000);
/// How long a runtime's standing still is waited for.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// How long the reporting of an invocation that has failed is waited for.
const REPORT_WAIT: Duration = Duration::from_secs(1);
/// How long a runtime's end is waited for after SIGKILL, and after its
/// sandbox's destruction.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// An event on its way to the runtime.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub id: String,
    pub body: Bytes,
    pub deadline_unix_ms: u64,
    pub arn: String,
    pub trace: HeaderValue,
    /// JSON.
    pub client_context: Option<HeaderValue>,
}

/// What an extension is told.
#[derive(Clone, Debug)]
pub(crate) enum ExtensionEvent {
    Invoke(Box<Event>),
    Shutdown {
        reason: Reason,
        deadline_unix_ms: u64,
    },
}

/// What the runtime posted.
#[derive(Debug)]
pub(crate) enum Answer {
    Payload {
        body: Bytes,
        content_type: Option<HeaderValue>,
    },
    Stream {
        pieces: mpsc::Receiver<Bytes>,
        content_type: Option<HeaderValue>,
        whole: Whole,
    },
    Failed(Bytes),
}

/// What the caller gets.
#[derive(Debug)]
pub(crate) enum Reply {
    Payload {
        body: Bytes,
        content_type: Option<HeaderValue>,
    },
    Stream {
        pieces: mpsc::Receiver<Bytes>,
        content_type: Option<HeaderValue>,
        /// Told behind the last piece.
        ending: oneshot::Receiver<Ending>,
    },
    Failed(Bytes),
    /// The runtime ended before the event reached it, whose body is this.
    Gone(Bytes),
}

/// What came of an invocation.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub reply: Reply,
    /// The end of what it wrote, if that was asked for; a streamed answer's is
    /// in its ending.
    pub log: Option<Vec<u8>>,
    /// The instance takes no further event.
    pub last: bool,
}

/// An invocation as asked for.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub event: Event,
    pub wants_log: bool,
    /// Whoever sent it looks at the status only.
    pub is_cloud_event: bool,
}

/// Why an extension is told nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubscribeRefusal {
    Call(Refusal),
    /// The instance has come up.
    Closed,
    Body(Unacceptable),
}

/// How an instance came to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Made,
    /// Inside an invocation, which is told what becomes of it.
    MadeAgain,
    /// A former server left it.
    Found,
}

/// Why an instance is ended, in AWS's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Spindown,
    Timeout,
    Failure,
}

impl Reason {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spindown => "spindown",
            Self::Timeout => "timeout",
            Self::Failure => "failure",
        }
    }
}

/// Why an instance takes no event any more.
#[derive(Clone, Debug)]
enum End {
    Init(Bytes),
    /// An external extension's: AWS's type of the error, and its words.
    Extension(&'static str, String),
    Exit(Exit),
    Timeout,
}

#[derive(Debug, Default)]
struct State {
    machine: Machine,
    /// The runtime's call for an event, and its number.
    waiting: Option<(u64, oneshot::Sender<Event>)>,
    calls: u64,
    answer: Option<oneshot::Sender<Answer>>,
    extensions: HashMap<u64, oneshot::Sender<ExtensionEvent>>,
    /// Told at an extension's next call.
    pending: HashMap<u64, ExtensionEvent>,
    /// External extensions whose processes run.
    running: BTreeSet<String>,
    /// Extensions may end from now on.
    shutting_down: bool,
    end: Option<End>,
    was_ready: bool,
    /// Its end was told to a caller, or nobody will ask.
    end_told: bool,
    left: bool,
}

/// One instance's.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub function: FunctionLaunch,
    pub sandbox: Arc<dyn Sandbox>,
    origin: Origin,
    clock: Arc<dyn Clock>,
    pub journal: Journal,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    turn: tokio::sync::Mutex<()>,
}

impl Bridge {
    pub fn new(
        function: FunctionLaunch,
        sandbox: Arc<dyn Sandbox>,
        origin: Origin,
        clock: Arc<dyn Clock>,
        output: Option<Arc<OutputTap>>,
    ) -> Self {
        let journal = Journal::new(function.clone(), sandbox.clone(), clock.clone(), output);
        Self {
            function,
            sandbox,
            origin,
            clock,
            journal,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            turn: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells who waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.send_replace(());
        changed
    }

    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            if changes.changed().await.is_err() {
                // The sender is ours.
                std::future::pending::<()>().await;
            }
        }
    }

    // What the runtime calls.

    /// Asks for an event: it comes by what is returned.
    pub fn next(self: &Arc<Self>) -> Result<NextCall, Refusal> {
        let (sender, event) = oneshot::channel();
        let number = self.change(|state| {
            if state.left {
                return Err(Refusal::Transition);
            }
            state.machine.next()?;
            state.calls += 1;
            state.waiting = Some((state.calls, sender));
            state.was_ready |= state.machine.is_ready();
            Ok(state.calls)
        })?;
        self.tell_ready();
        Ok(NextCall {
            bridge: self.clone(),
            number,
            event,
        })
    }

    /// Takes the place of this invocation's answer, which follows.
    pub fn begin_answer(&self, id: &str) -> Result<Option<oneshot::Sender<Answer>>, Refusal> {
        self.change(|state| {
            state.machine.answer(id)?;
            Ok(state.answer.take())
        })
    }

    /// The runtime cannot start, in its own words.
    pub async fn init_error(&self, body: Bytes) -> Result<(), Refusal> {
        self.change(|state| {
            state.machine.init_error()?;
            state.end.get_or_insert(End::Init(body.clone()));
            Ok(())
        })?;
        let words = String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned();
        self.journal.note(format!("init error: {words}")).await;
        self.fail().await;
        Ok(())
    }

    pub fn register(&self, name: &str, wants: Wants) -> Result<u64, Refusal> {
        self.change(|state| state.machine.register(name, wants))
    }

    /// An extension asks for its next event.
    pub fn extension_next(
        &self,
        number: u64,
    ) -> Result<oneshot::Receiver<ExtensionEvent>, Refusal> {
        let (sender, event) = oneshot::channel();
        self.change(|state| {
            if let Some(told) = state.pending.remove(&number) {
                state
                    .machine
                    .extension(number)
                    .ok_or(Refusal::ExtensionId)?;
                // The receiver is in our hand.
                let _there = sender.send(told);
                return Ok(());
            }
            state.machine.extension_next(number)?;
            state.extensions.insert(number, sender);
            state.was_ready |= state.machine.is_ready();
            Ok(())
        })?;
        self.tell_ready();
        Ok(event)
    }

    /// What is told of its coming up, once.
    fn tell_ready(&self) {
        let extensions = {
            let state = self.lock();
            if !state.was_ready {
                return;
            }
            state.machine.extensions()
        };
        self.journal.ready(extensions, self.origin);
    }

    /// An extension wants to be told what happens, from the beginning on.
    pub fn subscribe(&self, number: u64, body: &[u8]) -> Result<(), SubscribeRefusal> {
        let name = {
            let state = self.lock();
            let name = state.machine.extension(number);
            let name = name.ok_or(SubscribeRefusal::Call(Refusal::ExtensionId))?;
            if state.was_ready {
                return Err(SubscribeRefusal::Closed);
            }
            name.to_owned()
        };
        let subscription = Subscription::parse(body).map_err(SubscribeRefusal::Body)?;
        let begin = self.journal.beginning();
        let telemetry = &self.journal.telemetry;
        telemetry.subscribe(number, &name, subscription, begin);
        Ok(())
    }

    /// An extension cannot go on, by AWS's type of that error and its own words,
    /// which ends the instance as a runtime's end does.
    pub async fn extension_error(
        &self,
        number: u64,
        kind: &'static str,
        words: &str,
    ) -> Result<(), Refusal> {
        let name = self.lock().machine.extension(number).map(str::to_owned);
        let name = name.ok_or(Refusal::ExtensionId)?;
        self.lose_to_extension(&name, kind, words.to_owned()).await;
        Ok(())
    }

    // What happens to external extensions.

    /// These are about to be started.
    pub fn expect(&self, names: &[String]) {
        self.change(|state| {
            state.machine.expect(names);
            state.running.extend(names.iter().cloned());
        });
    }

    /// Waits until each of them has registered.
    pub async fn has_all_extensions(&self) {
        self.until(|state| state.machine.has_all().then_some(()))
            .await;
    }

    /// One's process has ended, or has never begun: by AWS's type of that error,
    /// and how. Before the instance's own end it is that end.
    pub async fn extension_ended(&self, name: &str, kind: &'static str, how: String) {
        self.change(|state| state.running.remove(name));
        self.lose_to_extension(name, kind, how).await;
    }

    async fn lose_to_extension(&self, name: &str, kind: &'static str, how: String) {
        let is_end = self.change(|state| {
            if state.shutting_down || state.left || state.end.is_some() {
                return false;
            }
            state.machine.end();
            state.end = Some(End::Extension(kind, how.clone()));
            true
        });
        if is_end {
            let note = format!("{kind}: the extension {name}: {how}");
            self.journal.note(note).await;
            // Whoever says that it cannot go on is not told so.
            self.change(|state| state.running.remove(name));
            self.fail().await;
        }
    }

    // What the worker asks.

    /// Whether a connection for an event is taken now; why not.
    pub fn takes_events(&self) -> Result<(), &'static str> {
        let state = self.lock();
        if state.end.is_some() {
            return if state.tells(self.origin) {
                Ok(())
            } else {
                Err("its runtime has ended")
            };
        }
        if state.was_ready || self.origin == Origin::MadeAgain {
            return Ok(());
        }
        Err("its runtime has not asked for an event")
    }

    /// The runtime has ended by itself, which extensions outlive: they have
    /// their time, and the instance ends.
    pub async fn runtime_ended(&self, ended: ExecExit) {
        let used = timeout(STOP_WAIT, self.sandbox.stats()).await;
        let exit = Exit {
            code: ended.code,
            signal: ended.signal,
            out_of_memory: used.is_ok_and(|used| used.is_ok_and(|used| used.oom_kills > 0)),
            cpu_us: 0,
            memory_peak_bytes: 0,
        };
        let is_ending = self.change(|state| {
            state.machine.end();
            state.end.get_or_insert(End::Exit(exit));
            state.waiting = None;
            state.shutting_down
        });
        if !is_ending {
            self.told_of_end().await;
            self.shut_down(Reason::Failure).await;
            self.kill().await;
        }
    }

    /// Ends what runs after a failure that is noted.
    async fn fail(&self) {
        self.told_of_end().await;
        self.wind_up(Reason::Failure).await;
    }

    /// Waits until an invocation that it ends is reported, so that telemetry has
    /// that before `SHUTDOWN` comes.
    async fn told_of_end(&self) {
        let _late = timeout(REPORT_WAIT, self.turn.lock()).await;
    }

    /// Whether it takes no event any more.
    pub fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// The instance's end is known.
    pub fn has_exited(&self, exit: Exit) {
        self.change(|state| {
            state.machine.end();
            state.end.get_or_insert(End::Exit(exit));
            state.waiting = None;
            state.extensions.clear();
        });
    }

    /// Waits until nobody needs to be told of the end any more.
    pub async fn end_is_told(&self) {
        let origin = self.origin;
        self.until(|state| (!state.tells(origin)).then_some(()))
            .await;
    }

    /// Nobody will ask for its end.
    pub fn give_up(&self) {
        self.change(|state| state.end_told = true);
    }

    /// Waits until nothing in it has anything to do; at once if it is so.
    pub async fn settled(&self) {
        self.until(|state| state.machine.is_settled().then_some(()))
            .await;
    }

    pub fn is_settled(&self) -> bool {
        self.lock().machine.is_settled()
    }

    /// Waits until no event is taken any more.
    pub async fn takes_no_more(&self) {
        let origin = self.origin;
        self.until(|state| (state.end.is_some() && !state.tells(origin)).then_some(()))
            .await;
    }

    /// Another server will want the runtime's calls.
    pub fn leave(&self) {
        self.change(|state| {
            state.left = true;
            state.end_told = true;
            state.waiting = None;
            state.extensions.clear();
        });
    }

    /// Waits until it was left and its invocation is over.
    pub async fn is_left(&self) {
        self.until(|state| (state.left && state.machine.is_settled()).then_some(()))
            .await;
    }

    /// Tells the extensions that want it of the end, once, and waits until they
    /// have gone quiet, for as long as they have. After a timeout and a failure
    /// those that the runtime has started stand still with it, or have ended with
    /// it, and are told nothing.
    pub async fn shut_down(&self, reason: Reason) {
        let deadline_unix_ms = self.unix_ms_in(SHUTDOWN);
        let told = self.change(|state| {
            if std::mem::replace(&mut state.shutting_down, true) {
                return Vec::new();
            }
            let told = state.to_shut_down(reason);
            for number in &told {
                let event = ExtensionEvent::Shutdown {
                    reason,
                    deadline_unix_ms,
                };
                state.tell(*number, event);
            }
            told
        });
        if told.is_empty() {
            return;
        }
        let quiet = async {
            tokio::select! {
                _exit = self.sandbox.exited() => {}
                () = self.until(|state| state.have_ended(&told).then_some(())) => {}
            }
        };
        // Those that go on are killed with the rest.
        let telemetry = self.journal.telemetry.hurry(SHUTDOWN);
        let ended = futures_util::future::join(telemetry, quiet);
        let _late = timeout(SHUTDOWN, ended).await;
    }

    pub fn has_extensions(&self) -> bool {
        self.lock().machine.has_extensions()
    }

    // What a request asks.

    /// Hands the event over and waits for what comes of it, and until the
    /// runtime and every extension are ready for the next one. It goes on when
    /// nobody waits for the outcome any more: a caller that hangs up does not
    /// end a function.
    pub async fn invoke(&self, invocation: Invocation, reply: oneshot::Sender<Outcome>) {
        let _turn = self.turn.lock().await;
        let came = self.clock.now();
        let limit = Duration::from_secs(self.function.timeout_s.into());
        let id = invocation.event.id.clone();
        let wants_log = invocation.wants_log;
        // Its init is a part of this invocation, or none of it.
        let has_init = self.origin == Origin::MadeAgain && !self.lock().was_ready;
        let mut event = invocation.event;
        let handed = self.hand_over(&event, came, has_init);
        let handed = timeout(limit, handed).await;
        let event = std::mem::take(&mut event.body);
        let begun = match &handed {
            Ok(Some((_, handed))) if !has_init => *handed,
            _ => came,
        };
        let done = |status, error, bytes| Done {
            id: &id,
            begun,
            status,
            error,
            bytes,
        };
        let failed = done(Status::Failure, None, None);
        let late = done(Status::Timeout, None, None);
        let mut answer = match handed {
            Ok(Some((answer, _))) => answer,
            Ok(None) => return self.tell_end(failed, event, wants_log, reply).await,
            Err(_late) if has_init => return self.run_out(late, wants_log, reply).await,
            Err(_late) => {
                self.cut_short("it asked for no event in the time of one")
                    .await;
                return send(reply, Reply::Gone(event), None, true);
            }
        };
        drop(event);
        let left = limit.saturating_sub(self.clock.now().since(begun));
        let mut over = std::pin::pin!(sleep(left));
        let answered = tokio::select! {
            answered = &mut answer => Some(answered),
            () = self.exit() => None,
            () = &mut over => return self.run_out(late, wants_log, reply).await,
        };
        let answered = match answered {
            // Its last word may have come with its end.
            None => answer.try_recv().ok(),
            Some(Ok(answer)) => Some(answer),
            Some(Err(_broken)) => Some(Answer::Failed(words::truncated(&id))),
        };
        match answered {
            None => return self.tell_end(failed, Bytes::new(), wants_log, reply).await,
            Some(Answer::Payload { body, content_type }) => {
                let done = done(Status::Success, None, Some(body.len()));
                let told = Reply::Payload { body, content_type };
                self.tell_done(done, told, wants_log, reply).await;
            }
            Some(Answer::Failed(body)) => {
                let error = error_type(&body);
                let done = done(Status::Error, error.as_deref(), Some(body.len()));
                let told = Reply::Failed(body);
                self.tell_done(done, told, wants_log, reply).await;
            }
            Some(Answer::Stream {
                pieces,
                content_type,
                whole,
            }) => {
                let (end, ending) = oneshot::channel();
                let stream = Reply::Stream {
                    pieces,
                    content_type,
                    ending,
                };
                send(reply, stream, None, false);
                let seen = self.see_out(whole, failed, &mut over, wants_log, end);
                if !seen.await {
                    return;
                }
            }
        }
        // What extensions do behind the answer is in the invocation's time.
        tokio::select! {
            () = self.settled() => {}
            () = &mut over => {
                let seconds = self.function.timeout_s;
                let why = format!("{id} Task timed out after {seconds}.00 seconds, behind its answer");
                self.cut_short(&why).await;
            }
        }
    }

    async fn tell_done(
        &self,
        done: Done<'_>,
        told: Reply,
        wants_log: bool,
        reply: oneshot::Sender<Outcome>,
    ) {
        self.journal.done(done).await;
        let log = self.journal.tail(wants_log).await;
        send(reply, told, log, false);
    }

    /// Waits until an event can be handed over; `None` when the runtime has ended.
    async fn ready(&self) -> Option<()> {
        self.until(|state| match &state.end {
            Some(_) => Some(None),
            None => state.machine.is_ready().then_some(Some(())),
        })
        .await
    }

    /// Waits for the runtime and gives it the event, whose time begins when it
    /// came, if the init is in that, and otherwise now: where the answer will be,
    /// and when it was handed over. Nothing comes back when the runtime has ended.
    async fn hand_over(
        &self,
        event: &Event,
        came: Monotonic,
        has_init: bool,
    ) -> Option<(oneshot::Receiver<Answer>, Monotonic)> {
        let limit = Duration::from_secs(self.function.timeout_s.into());
        if has_init {
            self.journal.open(&event.id).await;
        }
        self.ready().await?;
        if !has_init {
            self.journal.open(&event.id).await;
        }
        self.journal.start(&event.id);
        loop {
            self.ready().await?;
            let now = self.clock.now();
            let spent = if has_init {
                now.since(came)
            } else {
                Duration::ZERO
            };
            let left = limit.saturating_sub(spent);
            let event = Event {
                deadline_unix_ms: self.unix_ms_in(left),
                ..event.clone()
            };
            let (sender, answer) = oneshot::channel();
            let handed = self.change(|state| {
                let told = state.machine.invoke(&event.id)?;
                let sent = state
                    .waiting
                    .take()
                    .map(|(_, call)| call.send(event.clone()).is_ok());
                if sent != Some(true) {
                    // Its call broke off just now.
                    state.machine.take_back(&event.id);
                    return None;
                }
                state.answer = Some(sender);
                for number in told {
                    state.tell(number, ExtensionEvent::Invoke(Box::new(event.clone())));
                }
                Some(())
            });
            if handed.is_some() {
                return Some((answer, now));
            }
        }
    }

    /// Waits for the runtime's end.
    async fn exit(&self) {
        self.until(|state| state.end.is_some().then_some(())).await;
    }

    /// The invocation's time is over: so is the instance's.
    async fn run_out(&self, late: Done<'_>, wants_log: bool, reply: oneshot::Sender<Outcome>) {
        self.end_in_time(late).await;
        let told = Reply::Failed(words::timed_out(late.id, self.function.timeout_s));
        let log = self.journal.tail(wants_log).await;
        send(reply, told, log, true);
    }

    /// Nothing of it runs on, and nothing is handed to it. Extensions that Skiff
    /// has started have their time; the runtime has had its own.
    async fn end_in_time(&self, late: Done<'_>) {
        self.take_no_more();
        let (id, seconds) = (late.id, self.function.timeout_s);
        let note = format!("{id} Task timed out after {seconds}.00 seconds");
        self.journal.note(note).await;
        self.journal.done(late).await;
        self.wind_up(Reason::Timeout).await;
    }

    /// It has not come to its next event in time, whom nobody waits for.
    async fn cut_short(&self, why: &str) {
        self.take_no_more();
        self.journal.note(why.to_owned()).await;
        self.wind_up(Reason::Timeout).await;
    }

    fn take_no_more(&self) {
        self.change(|state| {
            state.machine.end();
            state.end.get_or_insert(End::Timeout);
            state.end_told = true;
            state.answer = None;
        });
    }

    /// Ends what runs. The runtime stands still while extensions have their time.
    async fn wind_up(&self, reason: Reason) {
        let has_extensions = !self.lock().to_shut_down(reason).is_empty();
        if has_extensions && let Ok(Ok(())) = timeout(STOP_WAIT, self.sandbox.signal(SIGSTOP)).await
        {
            self.shut_down(reason).await;
        }
        self.kill().await;
    }

    /// The runtime ended; in the middle of this invocation, or before it has got
    /// this event.
    async fn tell_end(
        &self,
        failed: Done<'_>,
        event: Bytes,
        wants_log: bool,
        reply: oneshot::Sender<Outcome>,
    ) {
        let told = self.note_end(failed).await;
        let told = told.map_or(Reply::Gone(event), Reply::Failed);
        let log = self.journal.tail(wants_log).await;
        send(reply, told, log, true);
        self.give_up();
    }

    /// What is to be told of the runtime's end; nothing where it ended before
    /// this invocation.
    async fn note_end(&self, failed: Done<'_>) -> Option<Bytes> {
        let id = failed.id;
        let (end, is_told) = self.change(|state| {
            state.answer = None;
            let is_told = state.machine.has_run(id) || !state.was_ready;
            (state.end.clone(), is_told)
        });
        let told = match end {
            Some(End::Init(body)) => body,
            Some(End::Extension(kind, how)) if is_told => {
                words::error(kind, &format!("RequestId: {id} Error: {how}"))
            }
            Some(End::Exit(exit)) if is_told => words::exited(id, &exit),
            _ => return None,
        };
        let note = format!("{id} {}", String::from_utf8_lossy(&told));
        self.journal.note(note).await;
        let error = error_type(&told);
        let error = error.as_deref();
        self.journal.done(Done { error, ..failed }).await;
        Some(told)
    }

    /// Kills what runs and waits until it has ended. A machine whose guest does
    /// not do as it is told is destroyed.
    pub async fn kill(&self) {
        if self.ends_by(self.sandbox.signal(SIGKILL)).await {
            return;
        }
        let instance = self.sandbox.id();
        tracing::warn!(%instance, "a function's instance did not die in time and is destroyed");
        if !self.ends_by(self.sandbox.destroy()).await {
            tracing::error!(%instance, "a function's instance was not destroyed in time");
        }
    }

    /// Whether its end follows the work.
    async fn ends_by(&self, work: impl Future<Output = Result<(), SandboxError>>) -> bool {
        let ended = async {
            if let Err(error) = work.await {
                tracing::debug!(instance = %self.sandbox.id(), error = %chain(&error), "not ended");
            }
            self.sandbox.exited().await
        };
        timeout(KILL_WAIT, ended).await.is_ok()
    }

    /// The time of day, seconds since 1970.
    pub fn unix_s(&self) -> u64 {
        self.clock.unix_ms() / 1000
    }

    fn unix_ms_in(&self, later: Duration) -> u64 {
        let later = u64::try_from(later.as_millis()).unwrap_or(u64::MAX);
        self.clock.unix_ms().saturating_add(later)
    }
}

impl State {
    /// Whether its end, when it comes now, is for an invocation to tell.
    fn tells(&self, origin: Origin) -> bool {
        origin == Origin::MadeAgain && !self.was_ready && !self.end_told
    }

    /// Those that are told of this end.
    fn to_shut_down(&self, reason: Reason) -> Vec<u64> {
        let mut told = self.machine.to_shut_down();
        let runs = |number| {
            let external = self.machine.external(number);
            external.is_some_and(|name| self.running.contains(name))
        };
        told.retain(|number| reason == Reason::Spindown || runs(*number));
        told
    }

    /// Whether all of these are processes that have ended.
    fn have_ended(&self, extensions: &[u64]) -> bool {
        let ended = |name: Option<&str>| name.is_some_and(|name| !self.running.contains(name));
        let mut extensions = extensions.iter();
        extensions.all(|number| ended(self.machine.external(*number)))
    }

    fn tell(&mut self, extension: u64, event: ExtensionEvent) {
        let unsent = match self.extensions.remove(&extension) {
            Some(call) => call.send(event).err(),
            None => Some(event),
        };
        if let Some(event) = unsent {
            self.pending.insert(extension, event);
        }
    }
}

/// A runtime's call for an event. Dropping it before the event is there is the
/// call's breaking off.
#[derive(Debug)]
pub(crate) struct NextCall {
    bridge: Arc<Bridge>,
    number: u64,
    event: oneshot::Receiver<Event>,
}

impl NextCall {
    /// Waits for the event; `None` when none will come.
    pub async fn event(mut self) -> Option<Event> {
        (&mut self.event).await.ok()
    }
}

impl Drop for NextCall {
    fn drop(&mut self) {
        self.bridge.change(|state| {
            if state
                .waiting
                .as_ref()
                .is_some_and(|(number, _)| *number == self.number)
            {
                state.waiting = None;
                state.machine.lost_next();
            }
        });
    }
}

/// Who has hung up needs no answer.
fn send(reply: oneshot::Sender<Outcome>, told: Reply, log: Option<Vec<u8>>, last: bool) {
    let _gone = reply.send(Outcome {
        reply: told,
        log,
        last,
    });
}

#[cfg(test)]
mod tests;
