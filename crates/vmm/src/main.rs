//! `skiff-vmm`: arguments, signals, messages and the exit code around a
//! [`Machine`].

mod arguments;
mod signals;

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use arguments::Arguments;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skiff_kvm::{GuestExit, Host};
use skiff_vmm::api::{Api, ApiError, ApiThread};
use skiff_vmm::confine::{Confinement, Filters, Part};
use skiff_vmm::control::{ControlError, ControlThread, Endpoint};
use skiff_vmm::kernel::Cache;
use skiff_vmm::{Config, Machine, Options, inherited};

/// No machine could be made.
const UNUSABLE: u8 = 1;
/// What an ordinary user's monitor does without.
const LACKS: &str = "no launcher confines this monitor: no cgroup bounds its memory and processor \
                     time, it has this user's files, processes and network, and of taps those \
                     that are this user's or given by tap_fd";
/// The guest died. 2 is what a wrong command line ends with.
const DIED: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.probe {
        return probe();
    }
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
    // First of all, so that a signal leaves nothing behind.
    signals::hold().context("signals cannot be held")?;
    let confinement = confinement(arguments)?;
    if let Some(confinement) = &confinement {
        confinement.enter_folder()?;
    }
    let user = rustix::process::geteuid();
    if confinement.is_none() && !user.is_root() {
        say(&arguments.id, &format!("user {}: {LACKS}", user.as_raw()));
    }
    let control = endpoint(arguments)?;
    let mut api = api(arguments)?;
    raise_file_limit();
    let filters = match arguments.no_seccomp {
        true => None,
        false => Some(Filters::compile()?),
    };
    let Some(machine) = machine(arguments, &mut api, confinement, filters.clone())? else {
        return Ok(GuestExit::Stopped);
    };
    let exit = live(&machine, control, api, filters)?;
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

/// Makes the machine of the configuration, or the one that a client of the
/// API configures; none when a signal comes before that.
fn machine(
    arguments: &Arguments,
    api: &mut Option<Api>,
    confinement: Option<Confinement>,
    filters: Option<Filters>,
) -> anyhow::Result<Option<Arc<Machine>>> {
    let config = arguments.config_file.as_deref().map(Config::read);
    let config = config.transpose()?;
    let options = Options {
        cache: arguments
            .cache_dir
            .as_deref()
            .map(Cache::open)
            .transpose()?,
        confinement,
        filters,
        ..Options::default()
    };
    // It is closed when this is through, and so are the cgroups' doors: the
    // guest must never reach them.
    let host = match arguments.kvm_fd {
        Some(number) => Host::from_fd(inherited::take(number).context("--kvm-fd")?)?,
        None => Host::open()?,
    };
    let build = |config: &Config| Machine::build_on(&host, config, &options).map(Arc::new);
    match (config, api) {
        (Some(config), api) => {
            if api.is_none() && (config.logger.is_some() || config.metrics.is_some()) {
                *api = Some(Api::unreachable(&arguments.id));
            }
            if let Some(api) = api {
                api.set_config(&config)?;
            }
            build(&config).map(Some).map_err(Into::into)
        }
        (None, Some(api)) => {
            let end = signals::descriptor().context("signals cannot be waited for")?;
            Ok(api.configure(end.as_fd(), build)?)
        }
        (None, None) => Err(anyhow::anyhow!("--config-file is missing")),
    }
}

/// Starts every thread, lets the guest run, and waits for its end.
fn live(
    machine: &Arc<Machine>,
    control: Option<Endpoint>,
    api: Option<Api>,
    filters: Option<Filters>,
) -> anyhow::Result<GuestExit> {
    let stop = machine.stopper();
    let behind = |part| behind(filters.clone(), part);
    let waits = behind(Part::Main);
    // It waits until the process ends.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            // Not to be told to end in order is better than not to be held.
            if waits() && signals::wait().is_ok() {
                stop();
            }
        })
        .context("the signals' thread cannot be started")?;
    let _control = control
        .map(|endpoint| ControlThread::spawn(endpoint, Arc::clone(machine), behind(Part::Control)))
        .transpose()?;
    // Whoever started the guest is told when it runs.
    let (runs, told) = std::sync::mpsc::sync_channel(1);
    let held = behind(Part::Api);
    let first = move || held() && told.recv().is_ok();
    let api = api
        .map(|api| ApiThread::spawn(api, Arc::clone(machine), first))
        .transpose()?;
    if let Some(filters) = &filters {
        filters.apply(Part::Main)?;
    }
    machine.resume()?;
    // Nobody hears it where there is no API.
    runs.send(()).unwrap_or_default();
    let exit = machine.wait(None).context("the guest did not end")?;
    if let Some(api) = api {
        api.end(format!("{exit} [{}]", exit.word()));
    }
    Ok(exit)
}

/// What a thread does first; false if it may not go on.
fn behind(filters: Option<Filters>, part: Part) -> impl FnOnce() -> bool + Send + 'static {
    move || filters.is_none_or(|filters| filters.apply(part).is_ok())
}

fn confinement(arguments: &Arguments) -> anyhow::Result<Option<Confinement>> {
    let Some(folder) = arguments.folder_fd else {
        return Ok(None);
    };
    let folder = inherited::take(folder).context("--folder-fd")?;
    let groups = arguments
        .cgroup_fd
        .iter()
        .map(|number| inherited::take(*number))
        .collect::<Result<_, _>>()
        .context("--cgroup-fd")?;
    Ok(Some(Confinement::new(folder, groups)))
}

fn api(arguments: &Arguments) -> Result<Option<Api>, ApiError> {
    // Whoever reaches a confined monitor's folder may use it.
    let for_all = arguments.folder_fd.is_some();
    let path = arguments.api_sock.as_deref();
    path.map(|path| Api::listen(path, &arguments.id, for_all))
        .transpose()
}

/// Where the machine is controlled from.
fn endpoint(arguments: &Arguments) -> Result<Option<Endpoint>, ControlError> {
    match (&arguments.control, arguments.control_fd) {
        // Whoever reaches a confined monitor's folder may control it.
        (Some(path), _) => Endpoint::listen(path, arguments.folder_fd.is_some()).map(Some),
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

/// Says what this host's KVM is worth.
fn probe() -> ExitCode {
    let verdict = skiff_vmm::probe::probe();
    let said = serde_json::to_string(&verdict)
        .map_err(std::io::Error::from)
        .and_then(|line| writeln!(std::io::stdout(), "{line}"));
    if said.is_ok() && verdict.is_usable() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(UNUSABLE)
    }
}

/// A message to whoever started it. That it cannot be written is no reason to
/// end a guest.
fn say(id: &str, message: &str) {
    writeln!(std::io::stderr(), "skiff-vmm {id}: {message}").unwrap_or_default();
}
