//! Once the machine is started.

use std::os::fd::BorrowedFd;

use skiff_base::{Clock, SystemClock};

use super::action::{Action, Order};
use super::bodies::{DriveChange, InterfaceChange};
use super::fault::Fault;
use super::http::{Request, Response};
use super::look;
use super::server::Event;
use super::{Api, Guest};
use crate::MachineError;
use crate::config::Level;

impl Api {
    /// Serves until `end` becomes readable, or clients cannot be waited for.
    pub(super) fn serve(&mut self, end: BorrowedFd<'_>, guest: &impl Guest) {
        loop {
            let wait = self.metrics.wait();
            if wait.is_some_and(|wait| wait.is_zero()) {
                self.tell_metrics(guest);
            }
            match self.server.next(end, wait) {
                Ok(Event::Request(request)) => {
                    let result = self.run(&request, guest);
                    self.answer(&request, result);
                }
                Ok(Event::Idle) => {}
                Ok(Event::Woken) | Err(_) => return,
            }
        }
    }

    fn tell_metrics(&mut self, guest: &impl Guest) {
        if !self.metrics.flush(&guest.stats(), self.log.missed()) {
            self.log.say(Level::Warn, "metrics had no room");
        }
    }

    /// Tells the rest.
    pub(super) fn finish(&mut self, guest: &impl Guest, why: Option<&str>) {
        if let Some(why) = why {
            self.log.say(Level::Info, why);
        }
        self.tell_metrics(guest);
    }

    fn run(&mut self, request: &Request, guest: &impl Guest) -> Result<Response, Fault> {
        match Action::read(request)? {
            Action::Ask(question) => {
                let state = if guest.is_paused() {
                    "Paused"
                } else {
                    "Running"
                };
                Ok(self.tell(question, state))
            }
            Action::Set(_) | Action::Start => Err(Fault::AfterStart),
            Action::Order(order) => {
                self.obey(order, guest)?;
                Ok(Response::done())
            }
        }
    }

    fn obey(&mut self, order: Order, guest: &impl Guest) -> Result<(), Fault> {
        match order {
            Order::CtrlAltDel => Err(Fault::Absent("keyboard")),
            Order::FlushMetrics => match self.metrics.flush(&guest.stats(), self.log.missed()) {
                true => Ok(()),
                false => Err(Fault::Full),
            },
            Order::ChangeDrive(change) => self.change_drive(change, guest),
            Order::LimitInterface(change) => self.limit_interface(&change, guest),
            Order::Pause => self.timed("pause_vm", || guest.pause()),
            Order::Resume => self.timed("resume_vm", || guest.resume()),
        }
    }

    /// Does something, and notes how long it took.
    fn timed(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<(), MachineError>,
    ) -> Result<(), Fault> {
        let began = SystemClock.now();
        work()?;
        let took = SystemClock.now().since(began).as_micros();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        self.metrics.note("latencies_us", name, took);
        Ok(())
    }

    fn change_drive(&mut self, change: DriveChange, guest: &impl Guest) -> Result<(), Fault> {
        let id = change.drive_id;
        let mut drives = self.config.drives.iter_mut();
        let drive = drives.find(|drive| drive.drive_id == id);
        let drive = drive.ok_or_else(|| MachineError::no_device("drive", &id))?;
        if change.path_on_host.is_none() && change.rate_limiter.is_none() {
            return Err(Fault::Nothing);
        }
        if let Some(path) = change.path_on_host {
            let file = look::disk("path_on_host", &path, !drive.is_read_only)?;
            guest.replace_disk(&id, &path, file)?;
            drive.path_on_host = path;
        }
        if let Some(limits) = change.rate_limiter {
            guest.limit_disk(&id, limits.change())?;
            let before = drive.rate_limiter.take().unwrap_or_default();
            drive.rate_limiter = Some(before.changed(&limits));
        }
        Ok(())
    }

    fn limit_interface(
        &mut self,
        change: &InterfaceChange,
        guest: &impl Guest,
    ) -> Result<(), Fault> {
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
        Ok(())
    }
}
