//! `skiff-vmm`: arguments, signals, messages and the exit code around a
//! [`Machine`].

mod arguments;
mod signals;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use arguments::Arguments;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skiff_kvm::GuestExit;
use skiff_vmm::control::{ControlError, ControlThread, Endpoint};
use skiff_vmm::kernel::Cache;
use skiff_vmm::{Config, Machine, Options};

/// No machine could be made.
const UNUSABLE: u8 = 1;
/// The guest died. 2 is what a wrong command line ends with.
const DIED: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let id = arguments.id.clone();
    match run(&arguments) {
        Ok(exit) => {
            say(&id, &format!("{exit} [{}]", exit.word()));
            if exit.is_orderly() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(DIED)
            }
        }
        Err(error) => {
            say(&id, &format!("{error:#}"));
            ExitCode::from(UNUSABLE)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<GuestExit> {
    let control = endpoint(arguments)?;
    signals::hold().context("signals cannot be held")?;
    raise_file_limit();
    let config = Config::read(&arguments.config_file)?;
    let options = Options {
        cache: arguments
            .cache_dir
            .as_deref()
            .map(Cache::open)
            .transpose()?,
        ..Options::default()
    };
    let machine = Arc::new(Machine::build(&config, &options)?);
    let stop = machine.stopper();
    // It waits until the process ends.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals::wait().is_ok() {
                stop();
            }
        })
        .context("the signals' thread cannot be started")?;
    machine.resume()?;
    let _control = control
        .map(|endpoint| ControlThread::spawn(endpoint, Arc::clone(&machine)))
        .transpose()?;
    let exit = machine.wait(None).context("the guest did not end")?;
    for failure in machine.take_failures() {
        say(&arguments.id, &failure);
    }
    match machine.serial_dropped() {
        0 => {}
        bytes => say(
            &arguments.id,
            &format!("{bytes} bytes of the serial port were over its limit"),
        ),
    }
    Ok(exit)
}

/// Where the machine is controlled from. An inherited socket is taken before
/// anything else has descriptors.
fn endpoint(arguments: &Arguments) -> Result<Option<Endpoint>, ControlError> {
    match (&arguments.control, arguments.control_fd) {
        (Some(path), _) => Endpoint::listen(path).map(Some),
        (None, Some(descriptor)) => Endpoint::inherit(descriptor).map(Some),
        (None, None) => Ok(None),
    }
}

/// Every window is an open file, and every stream to the host as well. With a
/// lower limit there are fewer of them, and whoever wants one more is told.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap_or_default();
}

/// A message to whoever started it. That it cannot be written is no reason to
/// end a guest.
fn say(id: &str, message: &str) {
    writeln!(std::io::stderr(), "skiff-vmm {id}: {message}").unwrap_or_default();
}
