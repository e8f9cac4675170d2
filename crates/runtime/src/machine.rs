//! What a function's runtime and its extensions may do when, without I/O.
//!
//! ```text
//!                    next                 invoke                 response, error
//!  runtime: Starting ────▶ Waiting ──────────────▶ Running ──────────────────────▶ Answered
//!              │              ▲  └─ its call broke off ─▶ Answered                   │
//!          init error         └──────────────────────── next ───────────────────────┘
//!              ▼
//!            ended ◀── exit, timeout, from any state
//!
//!  extension: Working ── next ──▶ Waiting ── invoke, if it wants it ──▶ Working
//! ```
//!
//! An external extension is expected before it registers by its file's name.
//!
//! An invocation is handed over only when the runtime and every extension
//! wait; until they all wait again the instance is not frozen.

use std::collections::{BTreeMap, BTreeSet};

use skiff_wire::launcher::EXTENSIONS_MAX;

/// Where the runtime stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Runtime {
    #[default]
    Starting,
    /// It has asked for an event.
    Waiting,
    /// It has got this one.
    Running(String),
    /// It has answered, or its call for an event broke off.
    Answered,
}

/// Which events an extension wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    pub invoke: bool,
    pub shutdown: bool,
}

impl Wants {
    /// AWS's names of them.
    pub fn names(self) -> Vec<&'static str> {
        let named = [("INVOKE", self.invoke), ("SHUTDOWN", self.shutdown)];
        let wanted = named.into_iter().filter(|(_, wanted)| *wanted);
        wanted.map(|(name, _)| name).collect()
    }
}

#[derive(Clone, Debug)]
struct Extension {
    name: String,
    wants: Wants,
    waits: bool,
    /// It is a process that Skiff has started.
    external: bool,
}

/// The rules of one instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    runtime: Runtime,
    extensions: BTreeMap<u64, Extension>,
    last_extension: u64,
    /// External extensions that have not registered.
    expected: BTreeSet<String>,
    /// The last invocation that was answered.
    answered: Option<String>,
    ended: bool,
}

/// A call that cannot be done now. The names are AWS's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("Invalid request ID")]
    RequestId,
    #[error("the call is not allowed in this state")]
    Transition,
    #[error("there is no extension of this identifier")]
    ExtensionId,
    #[error("an extension of this name is registered already, or there are ten")]
    ExtensionRegistration,
}

impl Machine {
    /// The runtime asks for an event.
    pub fn next(&mut self) -> Result<(), Refusal> {
        match self.runtime {
            _ if self.ended => Err(Refusal::Transition),
            Runtime::Running(_) => Err(Refusal::Transition),
            Runtime::Starting | Runtime::Waiting | Runtime::Answered => {
                self.runtime = Runtime::Waiting;
                Ok(())
            }
        }
    }

    /// Its call for an event has broken off.
    pub fn lost_next(&mut self) {
        if self.runtime == Runtime::Waiting {
            self.runtime = Runtime::Answered;
        }
    }

    /// Whether an event can be handed over; if not, the instance still works.
    pub fn is_ready(&self) -> bool {
        !self.ended && self.runtime == Runtime::Waiting && self.all_wait()
    }

    /// Whether nothing in it has anything to do.
    pub fn is_settled(&self) -> bool {
        let idle = matches!(self.runtime, Runtime::Waiting | Runtime::Answered);
        self.ended || (idle && self.all_wait())
    }

    fn all_wait(&self) -> bool {
        self.expected.is_empty() && self.extensions.values().all(|e| e.waits)
    }

    /// These are external extensions, at most [`EXTENSIONS_MAX`], which have
    /// yet to register.
    pub fn expect(&mut self, names: &[String]) {
        self.expected.extend(names.iter().cloned());
    }

    /// Whether every external extension has registered.
    pub fn has_all(&self) -> bool {
        self.expected.is_empty()
    }

    /// Hands an event over; the extensions that get it too.
    pub fn invoke(&mut self, id: &str) -> Option<Vec<u64>> {
        if !self.is_ready() {
            return None;
        }
        self.runtime = Runtime::Running(id.to_owned());
        let mut told = Vec::new();
        for (number, extension) in &mut self.extensions {
            if extension.wants.invoke {
                extension.waits = false;
                told.push(*number);
            }
        }
        Some(told)
    }

    /// An event could not be handed over after all.
    pub fn take_back(&mut self, id: &str) {
        if self.runtime == Runtime::Running(id.to_owned()) {
            self.runtime = Runtime::Answered;
        }
    }

    /// The runtime answers an invocation, well or with an error.
    pub fn answer(&mut self, id: &str) -> Result<(), Refusal> {
        match &self.runtime {
            Runtime::Running(running) if running == id && !self.ended => {
                self.runtime = Runtime::Answered;
                self.answered = Some(id.to_owned());
                Ok(())
            }
            _ if self.answered.as_deref() == Some(id) => Err(Refusal::Transition),
            _ => Err(Refusal::RequestId),
        }
    }

    /// Whether the runtime has got this event.
    pub fn has_run(&self, id: &str) -> bool {
        let runs = matches!(&self.runtime, Runtime::Running(running) if running == id);
        runs || self.answered.as_deref() == Some(id)
    }

    /// The runtime cannot start.
    pub fn init_error(&mut self) -> Result<(), Refusal> {
        if self.runtime != Runtime::Starting || self.ended {
            return Err(Refusal::Transition);
        }
        self.ended = true;
        Ok(())
    }

    /// An extension is there, before the runtime's first event.
    pub fn register(&mut self, name: &str, wants: Wants) -> Result<u64, Refusal> {
        if self.runtime != Runtime::Starting || self.ended {
            return Err(Refusal::Transition);
        }
        let known = self.extensions.values().any(|e| e.name == name);
        let external = self.expected.contains(name);
        let places = self.extensions.len() + self.expected.len();
        // One that is expected has its place.
        if known || (!external && places >= EXTENSIONS_MAX) {
            return Err(Refusal::ExtensionRegistration);
        }
        self.expected.remove(name);
        self.last_extension += 1;
        let extension = Extension {
            name: name.to_owned(),
            wants,
            waits: false,
            external,
        };
        self.extensions.insert(self.last_extension, extension);
        Ok(self.last_extension)
    }

    /// An extension asks for its next event.
    pub fn extension_next(&mut self, number: u64) -> Result<(), Refusal> {
        let extension = self.extensions.get_mut(&number);
        let extension = extension.ok_or(Refusal::ExtensionId)?;
        extension.waits = true;
        Ok(())
    }

    /// Its name.
    pub fn extension(&self, number: u64) -> Option<&str> {
        self.extensions.get(&number).map(|e| e.name.as_str())
    }

    /// All of them, by name, and what they want.
    pub fn extensions(&self) -> Vec<(String, Wants)> {
        let extensions = self.extensions.values();
        extensions.map(|e| (e.name.clone(), e.wants)).collect()
    }

    /// Those that want to be told of the end.
    pub fn to_shut_down(&self) -> Vec<u64> {
        let wanting = self.extensions.iter().filter(|(_, e)| e.wants.shutdown);
        wanting.map(|(number, _)| *number).collect()
    }

    /// Its name, if it is external.
    pub fn external(&self, number: u64) -> Option<&str> {
        let extension = self.extensions.get(&number)?;
        extension.external.then_some(extension.name.as_str())
    }

    /// Whether there is any extension.
    pub fn has_extensions(&self) -> bool {
        !self.extensions.is_empty()
    }

    /// Nothing goes on.
    pub fn end(&mut self) {
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ready() -> Machine {
        let mut machine = Machine::default();
        machine.next().unwrap();
        machine
    }

    #[test]
    fn an_invocation_is_answered_once_and_by_its_own_id() {
        let mut machine = ready();
        assert_eq!(machine.invoke("a"), Some(vec![]));
        assert_eq!(machine.invoke("b"), None);
        assert_eq!(machine.answer("b"), Err(Refusal::RequestId));
        assert_eq!(machine.next(), Err(Refusal::Transition));
        assert!(!machine.is_settled());
        assert_eq!(machine.answer("a"), Ok(()));
        assert_eq!(machine.answer("a"), Err(Refusal::Transition));
        machine.next().unwrap();
        machine.invoke("b").unwrap();
        // A late answer is the former invocation's and never this one's.
        assert_eq!(machine.answer("a"), Err(Refusal::Transition));
        assert_eq!(machine.answer("b"), Ok(()));
    }

    #[test]
    fn every_extension_is_waited_for() {
        let mut machine = Machine::default();
        let invoke = Wants {
            invoke: true,
            shutdown: true,
        };
        let first = machine.register("first", invoke).unwrap();
        let second = machine.register("second", Wants::default()).unwrap();
        assert!(machine.register("first", invoke).is_err());
        machine.next().unwrap();
        assert!(!machine.is_ready());
        machine.extension_next(first).unwrap();
        assert_eq!(machine.extension_next(9), Err(Refusal::ExtensionId));
        machine.extension_next(second).unwrap();
        assert_eq!(machine.invoke("a"), Some(vec![first]));
        machine.answer("a").unwrap();
        assert!(!machine.is_settled());
        machine.extension_next(first).unwrap();
        assert!(machine.is_settled() && !machine.is_ready());
        assert_eq!(machine.to_shut_down(), vec![first]);
        assert!(machine.register("late", invoke).is_err());
    }

    #[test]
    fn external_extensions_are_expected_and_have_their_places() {
        let mut machine = Machine::default();
        machine.expect(&["out".to_owned(), "side".to_owned()]);
        let wants = Wants::default();
        for number in 0..EXTENSIONS_MAX - 2 {
            machine.register(&format!("in{number}"), wants).unwrap();
        }
        let full = machine.register("one more", wants);
        assert_eq!(full, Err(Refusal::ExtensionRegistration));
        let out = machine.register("out", wants).unwrap();
        assert_eq!(machine.external(out), Some("out"));
        assert!(machine.external(1).is_none() && !machine.has_all());
        for number in 1..=out {
            machine.extension_next(number).unwrap();
        }
        // Whatever the rest does, one is missing.
        machine.next().unwrap();
        assert!(!machine.is_ready() && !machine.is_settled());
        let mut machine = Machine::default();
        machine.expect(&["out".to_owned()]);
        let out = machine.register("out", wants).unwrap();
        assert!(machine.has_all() && machine.register("out", wants).is_err());
        machine.extension_next(out).unwrap();
        machine.next().unwrap();
        assert!(machine.is_ready());
    }

    #[test]
    fn init_fails_only_before_the_first_event() {
        assert_eq!(ready().init_error(), Err(Refusal::Transition));
        let mut machine = Machine::default();
        assert_eq!(machine.init_error(), Ok(()));
        assert_eq!(machine.next(), Err(Refusal::Transition));
        assert!(!machine.is_ready());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Next,
        Lost,
        Invoke(u8),
        Answer(u8),
        Register(u8),
        ExtensionNext(u64),
        InitError,
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Next),
            1 => Just(Step::Lost),
            4 => (0..4u8).prop_map(Step::Invoke),
            4 => (0..4u8).prop_map(Step::Answer),
            1 => (0..20u8).prop_map(Step::Register),
            4 => (0..12u64).prop_map(Step::ExtensionNext),
            1 => Just(Step::InitError),
            1 => Just(Step::End),
        ]
    }

    proptest! {
        /// Whatever a runtime calls in whatever order: at most one invocation
        /// runs, each is answered at most once, and only what runs is.
        #[test]
        fn one_invocation_runs_and_is_answered_once(steps in proptest::collection::vec(step(), 0..200)) {
            let mut machine = Machine::default();
            let mut running: Option<String> = None;
            for step in steps {
                match step {
                    Step::Next => {
                        let refused = machine.next().is_err();
                        prop_assert!(refused || running.is_none());
                    }
                    Step::Lost => machine.lost_next(),
                    Step::Invoke(id) => {
                        let ready = machine.is_ready();
                        let handed = machine.invoke(&id.to_string()).is_some();
                        prop_assert_eq!(handed, ready);
                        if handed {
                            prop_assert!(running.is_none());
                            running = Some(id.to_string());
                        }
                    }
                    Step::Answer(id) => {
                        if machine.answer(&id.to_string()).is_ok() {
                            prop_assert_eq!(running.take(), Some(id.to_string()));
                        }
                    }
                    Step::Register(name) => {
                        let _refused = machine.register(&name.to_string(), Wants::default());
                        prop_assert!(machine.extensions.len() <= EXTENSIONS_MAX);
                    }
                    Step::ExtensionNext(number) => {
                        let known = machine.extension(number).is_some();
                        prop_assert_eq!(machine.extension_next(number).is_ok(), known);
                    }
                    Step::InitError => {
                        if machine.init_error().is_ok() {
                            prop_assert!(running.is_none());
                        }
                    }
                    Step::End => machine.end(),
                }
                if running.is_some() {
                    prop_assert!(!machine.is_ready());
                }
            }
        }
    }
}
