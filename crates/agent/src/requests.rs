//! What the host asks, in the launcher's words, and the answers in the host's.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use skiff_types::{InstanceId, ServerId};
use skiff_wire::agent::{
    Answer, Envelope, ExecExit, FEATURE_DISK, FEATURE_EXEC, FEATURE_EXTENSIONS, FEATURE_NETWORK,
    FEATURE_RUNTIME, FEATURE_SERVICES, PROTOCOL, Reply, Request, Window,
};
use skiff_wire::launcher::{self, ExecSpec, PoolConfig, Refusal, SandboxSpec, Stdio, Writable};

use crate::agent::{Agent, AgentError, Token};
use crate::control::ControlError;
use crate::disks::{Opened, Part};
use crate::machine;
use crate::sandboxes::{Key, Sandbox};
use crate::streams::of_exec;

/// Requests that are taken in one turn, so that streams have theirs.
const REQUESTS_PER_TURN: usize = 16;
/// For the host to close its connection when everything has ended.
const END_DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);
/// What is asked of the launcher at a time, by lost connections too.
const WAITING_MAX: usize = 1024;
/// Further processes that are kept, those that have ended among them.
const EXECS_MAX: usize = 128;
/// A process that waits for a sandbox's specification: a machine has one or a
/// few.
const PREPARED: PoolConfig = PoolConfig {
    networks: 1,
    egress_networks: 0,
};

/// A refusal of the agent's own.
pub(crate) fn refuse(step: &str, message: impl Display) -> Refusal {
    Refusal {
        step: step.to_owned(),
        errno: 0,
        message: message.to_string(),
    }
}

/// A refusal of the kernel's, and what was done.
pub(crate) fn kernel(step: &str, what: impl Display, errno: rustix::io::Errno) -> Refusal {
    Refusal {
        step: step.to_owned(),
        errno: errno.raw_os_error(),
        message: format!("{what}: {errno}"),
    }
}

/// Where a reply goes, once it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct To {
    connection: u64,
    id: u64,
}

/// What an answer of the launcher's is for.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// The agent's own greeting and setting.
    Own,
    /// The host asked, and the answer is its answer.
    Host(To),
    AddLayer(To, Part),
    RemoveLayer(To, Part),
    /// A sandbox's first process, with its part of a disk if it has one, or a
    /// further one.
    Create(To, Key, Stdio, Option<Part>),
    Destroy(To, InstanceId),
    Shutdown(To),
}

/// What a request leads to at once; nothing if its reply comes later.
type Outcome = Result<Option<Reply>, Refusal>;

const DONE: Outcome = Ok(Some(Reply::Done));

impl Agent {
    pub(crate) fn greet_launcher(&mut self, server: ServerId) -> Result<(), AgentError> {
        let hello = launcher::Request::Hello { server };
        self.ask(Waiting::Own, hello, Vec::new())?;
        let pool = launcher::Request::Configure(PREPARED);
        self.ask(Waiting::Own, pool, Vec::new())
    }

    /// Asks the launcher.
    pub(crate) fn ask(
        &mut self,
        waiting: Waiting,
        request: launcher::Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(), AgentError> {
        self.asked += 1;
        self.waiting.insert(self.asked, waiting);
        let sent = self.link.send(self.asked, request, fds);
        sent.map_err(AgentError::Launcher)?;
        self.watch_link()
    }

    fn watch_link(&self) -> Result<(), AgentError> {
        let flags = if self.link.is_behind() {
            EventFlags::IN | EventFlags::OUT
        } else {
            EventFlags::IN
        };
        self.watch_again(&self.link, Token::Launcher, flags)
            .map_err(|errno| AgentError::Launcher(errno.into()))
    }

    /// Takes what the host asks.
    pub(crate) fn serve_control(&mut self) -> Result<(), AgentError> {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(control) = &mut self.control else {
                return Ok(());
            };
            control.held_back = !control.has_room();
            if control.held_back {
                break;
            }
            match control.receive() {
                Ok(None) => break,
                Ok(Some(envelope)) => self.obey(envelope)?,
                Err(error) => {
                    self.drop_control(&skiff_base::chain(&error).to_string());
                    return Ok(());
                }
            }
        }
        self.flush_control();
        Ok(())
    }

    fn flush_control(&mut self) {
        let Some(control) = &mut self.control else {
            return;
        };
        if let Err(error) = control.flush() {
            self.drop_control(&skiff_base::chain(&error).to_string());
            return;
        }
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !control.held_back);
        flags.set(EventFlags::OUT, control.is_behind());
        let watched = match &self.control {
            Some(control) => self.watch_again(control, Token::Control, flags),
            None => Ok(()),
        };
        if let Err(errno) = watched {
            self.drop_control(&errno.to_string());
        }
    }

    fn obey(&mut self, envelope: Envelope) -> Result<(), AgentError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let is_greeting = matches!(envelope.request, Request::Hello { .. });
        if !control.greeted && !is_greeting {
            self.drop_control(&ControlError::Rude.to_string());
            return Ok(());
        }
        control.waiting += 1;
        let to = To {
            connection: control.number,
            id: envelope.id,
        };
        if self.ending.is_some() {
            self.reply(to, Err(refuse("request", "the machine is ending")));
            return Ok(());
        }
        if self.waiting.len() >= WAITING_MAX {
            let message = format!("{WAITING_MAX} requests wait for the launcher");
            self.reply(to, Err(refuse("request", message)));
            return Ok(());
        }
        match self.act(to, envelope.request)? {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(to, Ok(reply)),
            Err(refusal) => self.reply(to, Err(refusal)),
        }
        if is_greeting {
            self.tell_exits_again();
        }
        Ok(())
    }

    fn act(&mut self, to: To, request: Request) -> Result<Outcome, AgentError> {
        use launcher::Request as Ask;
        let plain = match request {
            Request::Hello { protocol, .. } => return Ok(self.greet(protocol)),
            Request::AddLayer { layer, window } => {
                let part = Part::Layer(layer.clone());
                match self.disks.open(&part, window) {
                    Err(refusal) => return Ok(Err(refusal)),
                    Ok(Opened::Known) => return Ok(DONE),
                    Ok(Opened::Device(device)) => {
                        let waiting = Waiting::AddLayer(to, part);
                        self.ask(waiting, Ask::AddLayer { layer }, vec![device])?;
                        return Ok(Ok(None));
                    }
                }
            }
            Request::RemoveLayer { layer } => {
                let waiting = Waiting::RemoveLayer(to, Part::Layer(layer.clone()));
                self.ask(waiting, Ask::RemoveLayer { layer }, Vec::new())?;
                return Ok(Ok(None));
            }
            Request::Create(spec) => return self.create(to, spec, None, Ask::Create),
            Request::CreateOnDisk { spec, window } => {
                return self.create(to, spec, Some(window), Ask::Create);
            }
            Request::CreateFunction { spec, window } => {
                return self.create(to, spec, window, Ask::CreateServed);
            }
            Request::Begin { sandbox } => Ask::Begin { sandbox },
            Request::Extensions { sandbox } => Ask::Extensions { sandbox },
            Request::Exec(spec) => return self.exec(to, spec),
            Request::ForgetExec { sandbox, exec } => {
                let forgotten = self.forget_exec(of_exec(sandbox, exec));
                return Ok(forgotten.map(|()| Some(Reply::Done)));
            }
            Request::Destroy { sandbox } => {
                let waiting = Waiting::Destroy(to, sandbox);
                self.ask(waiting, Ask::Destroy { sandbox }, Vec::new())?;
                return Ok(Ok(None));
            }
            Request::Resize {
                sandbox,
                columns,
                rows,
            } => return Ok(self.resize(sandbox.into(), columns, rows)),
            Request::ResizeExec {
                sandbox,
                exec,
                columns,
                rows,
            } => return Ok(self.resize(of_exec(sandbox, exec), columns, rows)),
            Request::SetClock { unix_ns } => {
                return Ok(machine::set_clock(unix_ns).map(|()| Some(Reply::Done)));
            }
            Request::Reseed { mut seed } => {
                let result = machine::reseed(&seed);
                seed.fill(0);
                return Ok(result.map(|()| Some(Reply::Done)));
            }
            Request::Connect(network) => {
                return Ok(machine::connect(&network).map(|()| Some(Reply::Done)));
            }
            Request::ServeRuntime => {
                return Ok(self.serve_runtime().map(|()| Some(Reply::Done)));
            }
            Request::Shutdown => {
                self.ask(Waiting::Shutdown(to), Ask::Shutdown, Vec::new())?;
                return Ok(Ok(None));
            }
            Request::Signal { sandbox, signal } => Ask::Signal { sandbox, signal },
            Request::SignalExec {
                sandbox,
                exec,
                signal,
            } => Ask::SignalExec {
                sandbox,
                exec,
                signal,
            },
            Request::Freeze { sandbox } => Ask::Freeze { sandbox },
            Request::Thaw { sandbox } => Ask::Thaw { sandbox },
            Request::Stats { sandbox } => Ask::Stats { sandbox },
            Request::List { after } => Ask::List { after },
        };
        self.ask(Waiting::Host(to), plain, Vec::new())?;
        Ok(Ok(None))
    }

    fn greet(&mut self, protocol: u16) -> Outcome {
        if protocol == 0 {
            return Err(refuse("hello", "there is no protocol 0"));
        }
        if let Some(control) = &mut self.control {
            control.greeted = true;
        }
        let services = if self.services.are_served() {
            FEATURE_SERVICES
        } else {
            0
        };
        Ok(Some(Reply::Hello {
            protocol: PROTOCOL,
            features: services
                | FEATURE_EXEC
                | FEATURE_DISK
                | FEATURE_NETWORK
                | FEATURE_RUNTIME
                | FEATURE_EXTENSIONS,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: machine::kernel_release(),
        }))
    }

    fn create(
        &mut self,
        to: To,
        spec: Box<SandboxSpec>,
        disk: Option<Window>,
        create: fn(Box<SandboxSpec>) -> launcher::Request,
    ) -> Result<Outcome, AgentError> {
        if spec.stdio == Stdio::Given {
            return Ok(Err(refuse("request", "descriptors cannot be sent here")));
        }
        let device = match (spec.writable, disk) {
            (Writable::Tmpfs { .. }, None) => None,
            (Writable::Disk { .. }, Some(window)) => {
                match self.open_writable(spec.sandbox, window) {
                    Ok(device) => Some(device),
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
            _ => {
                let message = "a writable layer on disk, and no other, comes with its place";
                return Ok(Err(refuse("request", message)));
            }
        };
        let part = device.as_ref().map(|_| Part::Writable(spec.sandbox));
        let waiting = Waiting::Create(to, spec.sandbox.into(), spec.stdio, part);
        self.ask(waiting, create(spec), device.into_iter().collect())?;
        Ok(Ok(None))
    }

    fn open_writable(&mut self, sandbox: InstanceId, window: Window) -> Result<OwnedFd, Refusal> {
        match self.disks.open(&Part::Writable(sandbox), window)? {
            Opened::Device(device) => Ok(device),
            Opened::Known => Err(refuse(
                "request",
                format!("sandbox {sandbox} is there already"),
            )),
        }
    }

    fn exec(&mut self, to: To, spec: Box<ExecSpec>) -> Result<Outcome, AgentError> {
        let key = of_exec(spec.sandbox, spec.exec);
        let problem = if spec.stdio == Stdio::Given {
            "descriptors cannot be sent here".to_owned()
        } else if self.sandboxes.contains_key(&key) {
            format!("process {} is there already", spec.exec)
        } else if self.execs() >= EXECS_MAX {
            format!("{EXECS_MAX} further processes are not forgotten")
        } else {
            let waiting = Waiting::Create(to, key, spec.stdio, None);
            self.ask(waiting, launcher::Request::Exec(spec), Vec::new())?;
            return Ok(Ok(None));
        };
        Ok(Err(refuse("request", problem)))
    }

    fn resize(&mut self, id: Key, columns: u16, rows: u16) -> Outcome {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = self.sandbox(id)?.terminal()?;
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|errno| kernel("resize", "set the size", errno))?;
        DONE
    }

    /// Takes what the launcher answers.
    pub(crate) fn hear_launcher(&mut self) -> Result<(), AgentError> {
        self.link.flush().map_err(AgentError::Launcher)?;
        loop {
            match self.link.receive() {
                Ok(Some((launcher::Answer::Exited { sandbox, exit }, _))) => {
                    self.exited(sandbox.into(), Answer::Exited { sandbox, exit });
                }
                Ok(Some((
                    launcher::Answer::ExecExited {
                        sandbox,
                        exec,
                        code,
                        signal,
                    },
                    _,
                ))) => {
                    let told = Answer::ExecExited {
                        sandbox,
                        exec,
                        exit: ExecExit { code, signal },
                    };
                    if exec == launcher::FIRST_PROCESS {
                        // What it has to say, its sandbox's end waits for.
                        self.post(&told);
                    } else {
                        self.exited(of_exec(sandbox, exec), told);
                    }
                }
                Ok(Some((launcher::Answer::Reply { id, result }, fds))) => {
                    if let Some(waiting) = self.waiting.remove(&id) {
                        self.take_reply(waiting, result, fds)?;
                    }
                }
                Ok(None) => return self.watch_link(),
                Err(_) if self.ending.is_some() => {
                    self.unwatch(&self.link);
                    return Ok(());
                }
                Err(error) => return Err(AgentError::Launcher(error)),
            }
        }
    }

    fn take_reply(
        &mut self,
        waiting: Waiting,
        result: Result<launcher::Reply, Refusal>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), AgentError> {
        match waiting {
            Waiting::Own => {
                if let Err(refusal) = result {
                    return Err(AgentError::Launcher(std::io::Error::other(refusal)));
                }
            }
            Waiting::Host(to) => self.reply(to, result.and_then(translate)),
            Waiting::AddLayer(to, part) => {
                self.settle(&part, result.is_ok());
                self.reply(to, result.and_then(translate));
            }
            Waiting::RemoveLayer(to, part) => self.unmounted(to, &part, result),
            Waiting::Create(to, id, stdio, part) => {
                if let Some(part) = part {
                    self.settle(&part, result.is_ok());
                }
                self.created(to, id, stdio, result, fds);
            }
            Waiting::Destroy(to, id) => {
                if result.is_ok() {
                    self.sandboxes.retain(|key, _| key.sandbox != id);
                }
                self.unmounted(to, &Part::Writable(id), result);
            }
            Waiting::Shutdown(to) => {
                if result.is_ok() {
                    let now = skiff_base::Clock::now(&self.clock);
                    self.ending = Some(now.plus(END_DEADLINE));
                }
                self.reply(to, result.and_then(translate));
            }
        }
        Ok(())
    }

    /// What lies on a part of a disk has been mounted or refused.
    fn settle(&mut self, part: &Part, mounted: bool) {
        if mounted {
            self.disks.set_mounted(part);
        } else {
            let now = skiff_base::Clock::now(&self.clock);
            self.disks.remove(part, None, now);
        }
    }

    fn unmounted(&mut self, to: To, part: &Part, result: Result<launcher::Reply, Refusal>) {
        if result.is_err() {
            return self.reply(to, result.and_then(translate));
        }
        let now = skiff_base::Clock::now(&self.clock);
        if self.disks.remove(part, Some(to), now).is_some() {
            self.reply(to, Ok(Reply::Done));
        }
    }

    /// The kernel has let go of a part of a disk, or does not.
    pub(crate) fn part_left(&mut self, to: Option<To>, result: Result<(), Refusal>) {
        match (to, result) {
            (Some(to), result) => self.reply(to, result.map(|()| Reply::Done)),
            (None, Err(refusal)) => tracing::error!(%refusal, "a part of a disk stays"),
            (None, Ok(())) => {}
        }
    }

    fn created(
        &mut self,
        to: To,
        id: Key,
        stdio: Stdio,
        result: Result<launcher::Reply, Refusal>,
        fds: Vec<OwnedFd>,
    ) {
        let reply = match result {
            Err(refusal) => Err(refusal),
            Ok(reply) => Sandbox::new(stdio, fds).and_then(|sandbox| {
                self.sandboxes.insert(id, sandbox);
                translate(reply)
            }),
        };
        self.reply(to, reply);
    }

    fn reply(&mut self, to: To, result: Result<Reply, Refusal>) {
        let control = self.control.as_mut();
        // Nobody waits for the replies of a connection that is lost.
        let Some(control) = control.filter(|control| control.number == to.connection) else {
            return;
        };
        control.waiting = control.waiting.saturating_sub(1);
        let answer = Answer::Reply { id: to.id, result };
        self.send_to_host(&answer);
    }

    /// Tells the host of an event, if it has said hello.
    pub(crate) fn post(&mut self, answer: &Answer) {
        if self.control.as_ref().is_some_and(|control| control.greeted) {
            self.send_to_host(answer);
        }
    }

    fn send_to_host(&mut self, answer: &Answer) {
        let Some(control) = &mut self.control else {
            return;
        };
        match control.send(answer) {
            Ok(()) => self.flush_control(),
            Err(error) => self.drop_control(&skiff_base::chain(&error).to_string()),
        }
    }
}

/// The launcher's words in the agent's.
fn translate(reply: launcher::Reply) -> Result<Reply, Refusal> {
    Ok(match reply {
        launcher::Reply::Done | launcher::Reply::Executed => Reply::Done,
        launcher::Reply::Created { steps_us } => Reply::Created { steps_us },
        launcher::Reply::Stats(stats) => Reply::Stats(stats),
        launcher::Reply::List(page) => Reply::List(page),
        launcher::Reply::Held {
            steps_us,
            extensions,
        } => Reply::Held {
            steps_us,
            extensions,
        },
        launcher::Reply::Extensions(extensions) => Reply::Extensions(extensions),
        launcher::Reply::Hello { .. }
        | launcher::Reply::Descriptors
        | launcher::Reply::MonitorCreated { .. } => {
            return Err(refuse("launcher", "its answer is another one's"));
        }
    })
}
