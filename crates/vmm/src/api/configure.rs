//! Before the machine is started.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::action::{Action, Setting};
use super::bodies::Named;
use super::fault::Fault;
use super::http::{Request, Response};
use super::server::Event;
use super::{Api, ApiError, look};
use crate::config::{Logger, Metrics};
use crate::report::Sink;
use crate::{Config, MachineError};

impl Api {
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

    fn prepare(
        &mut self,
        request: &Request,
        start: impl FnOnce(&Config) -> Result<(), MachineError>,
    ) -> Result<Response, Fault> {
        match Action::read(request)? {
            Action::Ask(question) => return Ok(self.tell(question, "Not started")),
            Action::Set(setting) => self.set(setting)?,
            Action::Start if self.config.has_kernel() => start(&self.config)?,
            Action::Start => return Err(Fault::NoKernel),
            Action::Order(_) => return Err(Fault::BeforeStart),
        }
        Ok(Response::done())
    }

    /// Takes a setting, if there can be a machine with it.
    fn set(&mut self, setting: Setting) -> Result<(), Fault> {
        let mut config = self.config.clone();
        match setting {
            Setting::BootSource(source) => {
                look::boot_source(&source)?;
                config.boot_source = source;
            }
            Setting::Drive(drive) => {
                look::file("path_on_host", &drive.path_on_host, !drive.is_read_only)?;
                put(&mut config.drives, drive);
            }
            Setting::Entropy(entropy) => config.entropy = Some(entropy),
            Setting::Interface(interface) => put(&mut config.network_interfaces, interface),
            Setting::Logger(logger) => config.logger = Some(self.set_logger(logger)?),
            Setting::MachineConfig(machine) => config.machine_config = machine,
            Setting::MachineChange(change) => change.apply(&mut config.machine_config),
            Setting::Metrics(metrics) => config.metrics = Some(self.set_metrics(metrics)?),
            Setting::Serial(serial) => config.serial = Some(serial),
            Setting::Vsock(vsock) => config.vsock = Some(vsock),
        }
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// Has the log be as it says. Without a path it stays where it is.
    fn set_logger(&mut self, mut logger: Logger) -> Result<Logger, Fault> {
        let set = self.log.set(&logger);
        set.map_err(|source| {
            let path = logger.log_path.as_deref().unwrap_or(Path::new(""));
            Fault::open("log_path", path, source)
        })?;
        let before = self.config.logger.as_ref();
        let before = before.and_then(|before| before.log_path.clone());
        logger.log_path = logger.log_path.or(before);
        Ok(logger)
    }

    fn set_metrics(&mut self, metrics: Metrics) -> Result<Metrics, Fault> {
        if self.metrics.are_told() {
            return Err(Fault::Told);
        }
        let path = &metrics.metrics_path;
        let sink = Sink::open(path);
        let sink = sink.map_err(|source| Fault::open("metrics_path", path, source))?;
        self.metrics.tell(sink);
        Ok(metrics)
    }
}

/// Puts a device in the place of the one of its name, or behind all others.
fn put<T: Named>(devices: &mut Vec<T>, device: T) {
    let mut others = devices.iter_mut();
    match others.find(|other| other.name() == device.name()) {
        Some(place) => *place = device,
        None => devices.push(device),
    }
}
