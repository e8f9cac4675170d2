//! What each request does.

use std::os::fd::{AsFd, OwnedFd};

use skiff_base::Clock;
use skiff_types::InstanceId;
use skiff_wire::FRAME_FDS_MAX;
use skiff_wire::launcher::{Envelope, Listed, RUNTIME_API, Refusal, Reply, Request, SandboxSpec};

use super::Launcher;
use super::client::ReplyTo;
use super::create::Kind;
use super::sandbox::{Sandbox, State, Work};
use crate::failure::{Context, Step, refuse};
use crate::sys;

/// Bytes of one page of a list: labels, and a generous guess at the rest.
const PAGE_BYTES_MAX: usize = skiff_wire::FRAME_BYTES_MAX / 2;
const LISTED_BYTES: usize = 64;

/// What a request leads to at once; nothing if its reply comes later.
type Outcome = Step<Option<(Reply, Vec<OwnedFd>)>>;

fn done() -> Outcome {
    Ok(Some((Reply::Done, Vec::new())))
}

impl Launcher {
    /// Does what a client asks; says whether the client is still there.
    pub(super) fn obey(&mut self, client: u64, envelope: Envelope, fds: Vec<OwnedFd>) -> bool {
        let to = ReplyTo {
            client,
            id: envelope.id,
        };
        if !self.is_greeted(client) && !matches!(envelope.request, Request::Hello { .. }) {
            return self.drop_client(client, "it does not say hello first");
        }
        let result = match self.act(to, envelope.request, fds) {
            Ok(None) => return self.kept.clients.contains_key(&client),
            Ok(Some((reply, fds))) => (Ok(reply), fds),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        let hello = matches!(result.0, Ok(Reply::Hello { .. }));
        self.reply(to, result.0, result.1);
        if hello {
            self.tell_exits(client);
        }
        self.kept.clients.contains_key(&client)
    }

    fn is_greeted(&self, client: u64) -> bool {
        let client = self.kept.clients.get(&client);
        client.is_some_and(|client| client.greeted)
    }

    fn is_root(&self, client: u64) -> bool {
        self.kept
            .clients
            .get(&client)
            .is_some_and(|client| client.root)
    }

    fn act(&mut self, to: ReplyTo, request: Request, fds: Vec<OwnedFd>) -> Outcome {
        match request {
            Request::Hello { server } => self.greet(to.client, server),
            Request::Configure(pool) => {
                self.kept.pool = pool;
                self.networks.configure(pool);
                self.refill_networks = true;
                self.refill_after = self.clock.now();
                done()
            }
            Request::AddLayer { layer } => {
                let file = one(fds)?;
                self.kept.layers.add(&layer, file.as_fd())?;
                done()
            }
            Request::RemoveLayer { layer } => {
                self.kept.layers.remove(&layer)?;
                done()
            }
            Request::Create(spec) => self.make(to, *spec, fds, Kind::Plain),
            Request::CreateFunction(spec) => self.make(to, *spec, fds, Kind::Function),
            Request::CreateServed(spec) => self.make(to, *spec, fds, Kind::Served),
            Request::Begin { sandbox } => self.begin(sandbox),
            Request::Extensions { sandbox } => {
                let extensions = self.sandbox(sandbox)?.extensions.clone();
                Ok(Some((Reply::Extensions(extensions), Vec::new())))
            }
            Request::CreateMonitor(spec) => self.create_monitor(to, *spec, fds).map(|()| None),
            Request::KeepMonitors { count } => {
                self.keep_monitors(count);
                done()
            }
            Request::Disk { bytes } => {
                let ready = self.provide_disk(to, bytes)?;
                Ok(ready.map(|file| (Reply::Descriptors, vec![file])))
            }
            Request::Signal { sandbox, signal } => self.signal(sandbox, signal),
            Request::Exec(spec) => self.execute_in(to, *spec, fds).map(|()| None),
            Request::SignalExec {
                sandbox,
                exec,
                signal,
            } => {
                self.signal_exec(sandbox, exec, signal)?;
                done()
            }
            Request::Freeze { sandbox } => self.freeze(to, sandbox).map(|()| None),
            Request::Thaw { sandbox } => self.thaw(sandbox),
            Request::Destroy { sandbox } => {
                self.destroy(to, sandbox);
                Ok(None)
            }
            Request::Sockets { sandbox, count } => self.sockets(sandbox, count.into()),
            Request::Listeners { sandbox } => self.listeners(sandbox),
            Request::RuntimeListener { sandbox } => self.runtime_listener(sandbox),
            Request::Stats { sandbox } => {
                let sandbox = self.sandbox(sandbox)?;
                let stats = match sandbox.seat {
                    Some(seat) if sandbox.exit().is_none() => self.cgroups.stats(seat),
                    _ => sandbox.last,
                };
                Ok(Some((Reply::Stats(stats), Vec::new())))
            }
            Request::List { after } => Ok(Some((Reply::List(self.page(after)), Vec::new()))),
            Request::Output { sandbox } => {
                let outputs = self.sandbox(sandbox)?.outputs.copies();
                let outputs = outputs.at("output", "copy the descriptors")?;
                Ok(Some((Reply::Descriptors, outputs)))
            }
            Request::Upgrade if !self.is_root(to.client) => {
                // Who may choose the program is root by it.
                Err(refuse(
                    "upgrade",
                    "only root may give the launcher another program",
                ))
            }
            Request::Upgrade => self.upgrade(to, &one(fds)?).map(|()| None),
            Request::Shutdown => {
                self.shut_down(Some(to));
                Ok(None)
            }
        }
    }

    fn make(&mut self, to: ReplyTo, spec: SandboxSpec, fds: Vec<OwnedFd>, kind: Kind) -> Outcome {
        self.create(to, spec, fds, kind).map(|()| None)
    }

    /// Lets a function's process go on that is held.
    fn begin(&mut self, id: InstanceId) -> Outcome {
        let gate = self.running(id)?.gate.take();
        let gate = gate.ok_or_else(|| refuse("begin", format!("sandbox {id} is not held")))?;
        rustix::io::write(gate.as_fd(), &[1]).at("begin", "open the gate")?;
        done()
    }

    fn greet(&mut self, client: u64, server: skiff_types::ServerId) -> Outcome {
        if server != self.options.server {
            let message = format!("this is the launcher of server {}", self.options.server);
            return Err(refuse("hello", message));
        }
        if let Some(client) = self.kept.clients.get_mut(&client) {
            client.greeted = true;
        }
        let hello = Reply::Hello {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Some((hello, Vec::new())))
    }

    pub(super) fn sandbox(&self, id: InstanceId) -> Step<&Sandbox> {
        self.kept.sandboxes.get(&id).ok_or_else(|| unknown(id))
    }

    pub(super) fn running(&mut self, id: InstanceId) -> Step<&mut Sandbox> {
        let sandbox = self
            .kept
            .sandboxes
            .get_mut(&id)
            .ok_or_else(|| unknown(id))?;
        match sandbox.state {
            State::Running if sandbox.destroy_waiters.is_empty() => Ok(sandbox),
            _ => Err(refuse("lookup", format!("sandbox {id} does not run"))),
        }
    }

    fn signal(&mut self, id: InstanceId, signal: i32) -> Outcome {
        self.running(id)?;
        let sandbox = self.kept.sandboxes.get(&id);
        let target = match signal {
            libc::SIGKILL => sandbox.and_then(|sandbox| self.whole(sandbox)),
            _ => sandbox.and_then(|sandbox| sandbox.app.as_ref()),
        };
        let target =
            target.ok_or_else(|| refuse("signal", format!("sandbox {id} does not run")))?;
        sys::signal(target.as_fd(), signal).at("signal", format!("signal {signal} to {id}"))?;
        done()
    }

    fn sockets(&mut self, id: InstanceId, count: usize) -> Outcome {
        if count > FRAME_FDS_MAX {
            let message = format!("{count} sockets are more than {FRAME_FDS_MAX}");
            return Err(refuse("sockets", message));
        }
        let network = self.network(id)?;
        let sockets = network.tcp_sockets(count).at("sockets", "make sockets")?;
        Ok(Some((Reply::Descriptors, sockets)))
    }

    fn listeners(&mut self, id: InstanceId) -> Outcome {
        let network = self.network(id)?;
        let gateway = network.gateway_listener();
        let gateway = gateway.at("listeners", "listen for the gateway")?;
        let (udp, tcp) = network.dns_sockets().at("listeners", "listen for DNS")?;
        Ok(Some((Reply::Descriptors, vec![gateway, udp, tcp])))
    }

    fn runtime_listener(&mut self, id: InstanceId) -> Outcome {
        let socket = match self.runtime_sockets.remove(&id) {
            Some(socket) => socket,
            None => listen_for_runtime(self.network(id)?)?,
        };
        Ok(Some((Reply::Descriptors, vec![socket])))
    }

    /// A container's: what is in a machine's is the machine itself.
    fn network(&self, id: InstanceId) -> Step<&skiff_net::Network> {
        let sandbox = self.sandbox(id)?;
        let network = match sandbox.work {
            Work::Init => sandbox.network.as_ref(),
            Work::Monitor => None,
        };
        network.ok_or_else(|| refuse("network", format!("sandbox {id} has none any more")))
    }

    fn thaw(&mut self, id: InstanceId) -> Outcome {
        let seat = self.running(id)?.seat;
        if let Some(seat) = seat {
            self.cgroups.set_frozen(seat, false)?;
        }
        self.running(id)?.frozen = false;
        self.settle_freeze(id, Err(refuse("freeze", "it was thawed meanwhile")));
        done()
    }

    /// As many sandboxes after `after` as fit a frame.
    fn page(&self, after: Option<InstanceId>) -> Vec<Listed> {
        let start = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let mut bytes = 0;
        self.kept
            .sandboxes
            .range((start, std::ops::Bound::Unbounded))
            .map(|(id, sandbox)| Listed {
                sandbox: *id,
                label: sandbox.label.clone(),
                exit: sandbox.exit(),
                frozen: sandbox.frozen,
                monitor: sandbox.work == Work::Monitor,
            })
            .take_while(|listed| {
                bytes += listed.label.len() + LISTED_BYTES;
                bytes <= PAGE_BYTES_MAX
            })
            .collect()
    }

    fn tell_exits(&mut self, client: u64) {
        let ended = self.kept.sandboxes.iter();
        let ended: Vec<_> = ended
            .filter_map(|(id, sandbox)| Some((*id, sandbox.exit()?)))
            .collect();
        for (sandbox, exit) in ended {
            let answer = skiff_wire::launcher::Answer::Exited { sandbox, exit };
            self.post(client, &answer, Vec::new());
        }
    }
}

/// Where a function's runtime calls.
pub(super) fn listen_for_runtime(network: &skiff_net::Network) -> Step<OwnedFd> {
    let socket = network.tcp_listen(RUNTIME_API);
    socket.at("listeners", "listen for the runtime")
}

fn unknown(id: InstanceId) -> Refusal {
    Refusal {
        errno: libc::ESRCH,
        ..refuse("lookup", format!("there is no sandbox {id}"))
    }
}

fn one(fds: Vec<OwnedFd>) -> Step<OwnedFd> {
    let count = fds.len();
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) => Ok(fd),
        Err(_) => Err(refuse(
            "request",
            format!("one descriptor is expected, {count} came"),
        )),
    }
}
