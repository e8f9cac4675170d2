//! Firecracker's API: HTTP over a Unix socket, by which a machine is
//! configured, started, and controlled while it runs.
//!
//! ```text
//! configuring (the main thread, before any other) ── InstanceStart ─▶ running
//!    ▲                      │ it cannot be made                        (a thread of its own,
//!    └──────────────────────┘                                         behind its filter)
//! ```
//!
//! Paths, bodies, status codes and the shape of faults are Firecracker's, so
//! that its clients drive this monitor. What it has and this monitor has not
//! is refused, never ignored. Files are opened before the machine starts, and
//! none after.

mod action;
mod fault;
mod guest;
mod http;
mod look;
mod server;
#[cfg(test)]
mod tests;
mod thread;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SocketType;
use serde_json::json;
use skiff_base::{Clock, SystemClock};

use self::action::{Action, DriveChange, InterfaceChange};
use self::fault::Fault;
use self::http::{Request, Response};
use self::server::{Event, Server};
use crate::config::{self, Level};
use crate::listener::Listener;
use crate::report::{Log, Metrics, Sink};
use crate::{Config, MachineError};

pub use guest::Guest;
pub use thread::ApiThread;

/// There is no API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Its socket cannot be made.
    #[error("{} cannot be listened on: remove what is there, or name another path", .path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The log or the metrics cannot go where they should.
    #[error("{} cannot be opened for a log or metrics", .path.display())]
    Report {
        /// Where that is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The system cannot wait for clients.
    #[error("the API's clients cannot be waited for")]
    Wait(#[source] Errno),
    /// Its thread cannot be started.
    #[error("the API's thread cannot be started")]
    Start(#[source] std::io::Error),
}

/// The API and what it knows of its machine.
#[derive(Debug)]
pub struct Api {
    server: Server,
    id: String,
    config: Config,
    log: Log,
    metrics: Metrics,
}

impl Api {
    /// Listens at a path, for this user only, or for whoever reaches it. The
    /// machine's name is `id`.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path, id: &str, for_all: bool) -> Result<Self, ApiError> {
        let listener = Listener::bind(path, SocketType::STREAM, for_all);
        let listener = listener.map_err(|source| ApiError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::new(Some(listener), id))
    }

    /// One that nobody reaches, for a machine that has a log or metrics.
    #[must_use]
    pub fn unreachable(id: &str) -> Self {
        Self::new(None, id)
    }

    fn new(listener: Option<Listener>, id: &str) -> Self {
        let clock = Arc::new(SystemClock);
        Self {
            server: Server::new(listener),
            id: id.into(),
            config: Config::unsaid(),
            log: Log::new(id, clock.clone()),
            metrics: Metrics::new(clock),
        }
    }

    /// What its machine is, when that is not said over it.
    ///
    /// # Errors
    /// When the log or the metrics cannot go where they should.
    pub fn set_config(&mut self, config: &Config) -> Result<(), ApiError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ApiError::Report { path, source }
        };
        if let Some(logger) = &config.logger {
            let path = logger.log_path.as_deref().unwrap_or(Path::new(""));
            self.log.set(logger).map_err(failed(path))?;
        }
        if let Some(config::Metrics { metrics_path }) = &config.metrics {
            let sink = Sink::open(metrics_path).map_err(failed(metrics_path))?;
            self.metrics.tell(sink);
        }
        self.config = config.clone();
        Ok(())
    }

    /// Serves until a client has started the machine, which `start` makes.
    /// `None` when `end` has become readable before that. Whoever started it
    /// is answered when the API is served on.
    ///
    /// # Errors
    /// When clients cannot be waited for.
    pub fn configure<T>(
        &mut self,
        end: BorrowedFd<'_>,
        start: impl Fn(&Config) -> Result<T, MachineError>,
    ) -> Result<Option<T>, ApiError> {
        loop {
            let event = self.server.next(end, None).map_err(ApiError::Wait)?;
            let request = match event {
                Event::Request(request) => request,
                Event::Woken => return Ok(None),
                Event::Idle => continue,
            };
            let mut machine = None;
            let result = self.prepare(&request, |config| {
                machine = Some(start(config)?);
                Ok(())
            });
            self.answer(&request, result);
            if machine.is_some() {
                return Ok(machine);
            }
        }
    }

    /// Counts, logs and answers a request.
    fn answer(&mut self, request: &Request, result: Result<Response, Fault>) {
        action::count(&mut self.metrics, request, result.is_ok());
        let what = format!("{} {}", request.method.word(), request.path);
        let response = match result {
            Ok(response) => {
                self.log.say(Level::Info, &format!("{what}: done"));
                response
            }
            Err(fault) => {
                let said = format!("{what}: {}", skiff_base::chain(&fault));
                self.log.say(Level::Error, &said);
                fault.response()
            }
        };
        self.server.answer(&response);
    }

    /// Does what is asked for before the machine is started.
    fn prepare(
        &mut self,
        request: &Request,
        start: impl FnOnce(&Config) -> Result<(), MachineError>,
    ) -> Result<Response, Fault> {
        let mut changed = self.config.clone();
        match Action::read(request)? {
            Action::Instance => return Ok(self.instance("Not started")),
            Action::Version => return Ok(version()),
            Action::WholeConfig => return Ok(self.whole_config()),
            Action::GetMachineConfig => return Ok(self.machine_config()),
            Action::Start => {
                if self
                    .config
                    .boot_source
                    .kernel_image_path
                    .as_os_str()
                    .is_empty()
                {
                    return Err(Fault::NoKernel);
                }
                start(&self.config)?;
                return Ok(Response::done());
            }
            Action::FlushMetrics
            | Action::CtrlAltDel
            | Action::Pause
            | Action::Resume
            | Action::PatchDrive(_)
            | Action::PatchInterface(_) => return Err(Fault::BeforeStart),
            Action::PutBootSource(source) => {
                look::boot_source(&source)?;
                changed.boot_source = source;
            }
            Action::PutMachineConfig(config) => changed.machine_config = config,
            Action::PatchMachineConfig(change) => change.apply(&mut changed.machine_config),
            Action::PutDrive(drive) => {
                look::file("path_on_host", &drive.path_on_host, !drive.is_read_only)?;
                put(&mut changed.drives, drive, |drive| &drive.drive_id);
            }
            Action::PutInterface(interface) => {
                let interfaces = &mut changed.network_interfaces;
                put(interfaces, interface, |interface| &interface.iface_id);
            }
            Action::PutVsock(vsock) => changed.vsock = Some(vsock),
            Action::PutEntropy(entropy) => changed.entropy = Some(entropy),
            Action::PutSerial(serial) => changed.serial = Some(serial),
            Action::PutLogger(logger) => {
                let path = logger.log_path.as_deref().unwrap_or(Path::new(""));
                let set = self.log.set(&logger);
                set.map_err(|source| Fault::open("log_path", path, source))?;
                changed.logger = Some(logger);
            }
            Action::PutMetrics(metrics) => {
                if self.metrics.are_told() {
                    return Err(Fault::Told);
                }
                let path = &metrics.metrics_path;
                let sink = Sink::open(path);
                let sink = sink.map_err(|source| Fault::open("metrics_path", path, source))?;
                self.metrics.tell(sink);
                changed.metrics = Some(metrics);
            }
        }
        changed.check()?;
        self.config = changed;
        Ok(Response::done())
    }

    /// Does what is asked for once the machine is started.
    fn run(&mut self, request: &Request, guest: &impl Guest) -> Result<Response, Fault> {
        match Action::read(request)? {
            Action::Instance if guest.is_paused() => Ok(self.instance("Paused")),
            Action::Instance => Ok(self.instance("Running")),
            Action::Version => Ok(version()),
            Action::WholeConfig => Ok(self.whole_config()),
            Action::GetMachineConfig => Ok(self.machine_config()),
            Action::Pause => self.timed("pause_vm", || guest.pause()),
            Action::Resume => self.timed("resume_vm", || guest.resume()),
            Action::FlushMetrics => match self.metrics.flush(&guest.stats(), self.log.missed()) {
                true => Ok(Response::done()),
                false => Err(Fault::Full),
            },
            Action::CtrlAltDel => Err(Fault::Absent("keyboard")),
            Action::PatchDrive(change) => self.limit_drive(change, guest),
            Action::PatchInterface(change) => self.limit_interface(&change, guest),
            Action::Start
            | Action::PutDrive(_)
            | Action::PutInterface(_)
            | Action::PutVsock(_)
            | Action::PutEntropy(_)
            | Action::PutSerial(_)
            | Action::PutLogger(_)
            | Action::PutMetrics(_)
            | Action::PutBootSource(_)
            | Action::PutMachineConfig(_)
            | Action::PatchMachineConfig(_) => Err(Fault::AfterStart),
        }
    }

    /// Does something, and notes how long it took.
    fn timed(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<(), MachineError>,
    ) -> Result<Response, Fault> {
        let began = SystemClock.now();
        work()?;
        let took = SystemClock.now().since(began).as_micros();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        self.metrics.note("latencies_us", name, took);
        Ok(Response::done())
    }

    fn limit_drive(&mut self, change: DriveChange, guest: &impl Guest) -> Result<Response, Fault> {
        let id = change.drive_id;
        let mut drives = self.config.drives.iter_mut();
        let drive = drives.find(|drive| drive.drive_id == id);
        let drive = drive.ok_or_else(|| MachineError::no_device("drive", &id))?;
        if change.path_on_host.is_some() {
            return Err(Fault::Path);
        }
        let limits = change.rate_limiter.ok_or(Fault::Nothing)?;
        guest.limit_disk(&id, limits.change())?;
        let before = drive.rate_limiter.take().unwrap_or_default();
        drive.rate_limiter = Some(before.changed(&limits));
        Ok(Response::done())
    }

    fn limit_interface(
        &mut self,
        change: &InterfaceChange,
        guest: &impl Guest,
    ) -> Result<Response, Fault> {
        let id = &change.iface_id;
        let mut interfaces = self.config.network_interfaces.iter_mut();
        let interface = interfaces.find(|interface| interface.iface_id == *id);
        let interface =
            interface.ok_or_else(|| MachineError::no_device("network interface", id))?;
        let (receive, transmit) = (&change.rx_rate_limiter, &change.tx_rate_limiter);
        guest.limit_interface(id, receive.change(), transmit.change())?;
        for (limits, told) in [
            (&mut interface.rx_rate_limiter, receive),
            (&mut interface.tx_rate_limiter, transmit),
        ] {
            *limits = Some(limits.take().unwrap_or_default().changed(told));
        }
        Ok(Response::done())
    }

    fn instance(&self, state: &str) -> Response {
        Response::json(&json!({
            "id": self.id,
            "state": state,
            "vmm_version": env!("CARGO_PKG_VERSION"),
            "app_name": "skiff-vmm",
        }))
    }

    fn machine_config(&self) -> Response {
        Response::json(&json!(self.config.machine_config))
    }

    fn whole_config(&self) -> Response {
        Response::json(&json!(self.config))
    }
}

/// Firecracker's clients look for the version under its name.
fn version() -> Response {
    Response::json(&json!({ "firecracker_version": env!("CARGO_PKG_VERSION") }))
}

/// Puts a device in the place of the one of its name, or behind all others.
fn put<T>(devices: &mut Vec<T>, device: T, name: impl Fn(&T) -> &String) {
    let mut others = devices.iter_mut();
    match others.find(|other| name(other) == name(&device)) {
        Some(place) => *place = device,
        None => devices.push(device),
    }
}
