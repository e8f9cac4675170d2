//! `skiff-vmm`: arguments, signals, messages and the exit code around a
//! [`Machine`].

mod arguments;
mod signals;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use arguments::Arguments;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skiff_kvm::{GuestExit, Host, Vm};
use skiff_vmm::api::{Api, ApiError, ApiThread};
use skiff_vmm::awaited::{Assigned, Waiting};
use skiff_vmm::confine::{self, Confinement, Filters, Part};
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
    let mut arguments = Arguments::parse();
    if arguments.probe {
        return probe();
    }
    let ended = run(&mut arguments);
    let id = arguments.id;
    match ended {
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

fn run(arguments: &mut Arguments) -> anyhow::Result<GuestExit> {
    // First of all, so that a signal leaves nothing behind.
    signals::hold().context("signals cannot be held")?;
    raise_file_limit();
    let filters = match arguments.no_seccomp {
        true => None,
        false => Some(Filters::compile()?),
    };
    let (made, confinement) = match arguments.await_fd {
        None => (None, confinement(arguments)?),
        Some(number) => match await_machine(arguments, number)? {
            Some((made, confinement)) => (Some(made), Some(confinement)),
            None => return Ok(GuestExit::Stopped),
        },
    };
    let arguments = &*arguments;
    if let Some(confinement) = &confinement {
        confinement.enter_folder()?;
    }
    let user = rustix::process::geteuid();
    if confinement.is_none() && !user.is_root() {
        say(&arguments.id, &format!("user {}: {LACKS}", user.as_raw()));
    }
    let control = endpoint(arguments)?;
    let mut api = api(arguments)?;
    let options = options(arguments, confinement, filters.clone())?;
    let Some(machine) = machine(arguments, &mut api, made, options)? else {
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

/// A machine that has nothing yet.
type Made = (Host, Vm);

/// Makes what every machine has, and waits for what this one has: that becomes
/// the arguments. Nothing when whoever would tell has gone.
fn await_machine(
    arguments: &mut Arguments,
    number: i32,
) -> anyhow::Result<Option<(Made, Confinement)>> {
    let waiting = Waiting::at(number).context("--await-fd")?;
    let host = host(arguments)?;
    let vm = Vm::create(&host)?;
    confine::join(&groups(arguments)?)?;
    let assigned = waiting.wait().context("the machine that was waited for")?;
    let Some(Assigned { id, folder }) = assigned else {
        return Ok(None);
    };
    arguments.id = id;
    arguments.config_file = Some("fd:3".into());
    Ok(Some(((host, vm), Confinement::new(folder, Vec::new()))))
}

fn options(
    arguments: &Arguments,
    confinement: Option<Confinement>,
    filters: Option<Filters>,
) -> anyhow::Result<Options> {
    let cache = arguments.cache_dir.as_deref().map(Cache::open);
    Ok(Options {
        cache: cache.transpose()?,
        confinement,
        filters,
        ..Options::default()
    })
}

fn host(arguments: &Arguments) -> anyhow::Result<Host> {
    match arguments.kvm_fd {
        Some(number) => Ok(Host::from_fd(inherited::take(number).context("--kvm-fd")?)?),
        None => Ok(Host::open()?),
    }
}

/// Makes the machine of the configuration, or the one that a client of the
/// API configures; none when a signal comes before that.
fn machine(
    arguments: &Arguments,
    api: &mut Option<Api>,
    made: Option<Made>,
    options: Options,
) -> anyhow::Result<Option<Arc<Machine>>> {
    let config = arguments.config_file.as_deref().map(Config::read);
    let config = config.transpose()?;
    // KVM is closed when this is through, and so are the folder and the
    // cgroups' doors: the guest must never reach them.
    let (host, vm) = match made {
        Some((host, vm)) => (host, Some(vm)),
        None => (host(arguments)?, None),
    };
    if let (Some(vm), Some(config)) = (vm, &config) {
        let machine = Machine::build_in(vm, &host, config, &options)?;
        return Ok(Some(Arc::new(machine)));
    }
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
    Ok(Some(Confinement::new(folder, groups(arguments)?)))
}

fn groups(arguments: &Arguments) -> anyhow::Result<Vec<OwnedFd>> {
    let numbers = arguments.cgroup_fd.iter();
    numbers
        .map(|number| inherited::take(*number))
        .collect::<Result<_, _>>()
        .context("--cgroup-fd")
}

fn api(arguments: &Arguments) -> Result<Option<Api>, ApiError> {
    // Whoever reaches a confined monitor's folder may use it.
    let for_all = arguments.is_confined();
    let path = arguments.api_sock.as_deref();
    path.map(|path| Api::listen(path, &arguments.id, for_all))
        .transpose()
}

/// Where the machine is controlled from.
fn endpoint(arguments: &Arguments) -> Result<Option<Endpoint>, ControlError> {
    match (&arguments.control, arguments.control_fd) {
        // Whoever reaches a confined monitor's folder may control it.
        (Some(path), _) => Endpoint::listen(path, arguments.is_confined()).map(Some),
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
