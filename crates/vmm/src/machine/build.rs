use std::fs::{File, OpenOptions};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use skiff_kvm::arch::{self, acpi, layout};
use skiff_kvm::{Backing, GuestRam, Host, VcpuThread, Vm};

use super::bus::{MachineBus, Shared};
use super::devices::{self, Attached};
use super::ending::Ending;
use super::generation::Generation;
use super::io::IoThread;
use super::serial::SerialPort;
use super::{Machine, MachineError};
use crate::config::{Config, Serial};
use crate::confine::{Confinement, Filters, Part};
use crate::kernel::{self, Cache};

/// What a configuration does not say.
#[derive(Debug, Default)]
pub struct Options {
    /// Where unpacked kernels are kept.
    pub cache: Option<Cache>,
    /// What the guest's memory is made of.
    pub backing: Backing,
    /// What it is confined to before it can run. Then there is one thread so
    /// far.
    pub confinement: Option<Confinement>,
    /// What each thread may ask of the kernel; without, anything.
    pub filters: Option<Filters>,
}

impl Machine {
    /// Makes a machine that has not run: its threads are paused.
    ///
    /// # Errors
    /// When something that the configuration names is not usable, or the host
    /// lacks something.
    pub fn build(config: &Config, options: &Options) -> Result<Self, MachineError> {
        Self::build_on(&Host::open()?, config, options)
    }

    /// [`Machine::build`], on KVM's device that is open already.
    ///
    /// # Errors
    /// As there.
    pub fn build_on(host: &Host, config: &Config, options: &Options) -> Result<Self, MachineError> {
        // First of all: it takes long where the process is in a cgroup.
        Self::build_in(Vm::create(host)?, host, config, options)
    }

    /// [`Machine::build_on`], of a machine of this host's that has nothing yet.
    ///
    /// # Errors
    /// As there.
    pub fn build_in(
        mut vm: Vm,
        host: &Host,
        config: &Config,
        options: &Options,
    ) -> Result<Self, MachineError> {
        let count = config.machine_config.vcpu_count;
        let vcpus = vm.create_vcpus(host, count)?;
        if let Some(confinement) = &options.confinement {
            confinement.join()?;
        }

        let regions = layout::memory(config.machine_config.mem_size_mib);
        let ram = GuestRam::allocate(&regions, options.backing)?;
        vm.map(ram.clone())?;
        let path = &config.boot_source.kernel_image_path;
        let source = kernel::from_file(
            devices::open("boot-source.kernel_image_path", path)?,
            path,
            options.cache.as_ref(),
        )?;
        let kernel = arch::load_kernel(&ram, &source)?;

        let made = devices::make(config)?;
        let attached = devices::attach(&vm, &ram, made.devices)?;
        let serial = config
            .serial
            .as_ref()
            .map(|serial| open_serial(&vm, serial))
            .transpose()?;
        let generation = Generation::begin(&vm, &ram)?;
        boot(config, &ram, &kernel, &attached, count)?;
        if let Some(first) = vcpus.first() {
            first.enter(ram.memory(), &kernel)?;
        }

        let windows: Vec<Shared> = attached
            .iter()
            .map(|device| Arc::clone(&device.window))
            .collect();
        let disk_windows = windows.iter().take(made.disks.len()).cloned().collect();
        let bus = Arc::new(MachineBus::new(windows, serial));
        let ending = Arc::new(Ending::default());
        if let Some(confinement) = &options.confinement {
            confinement.seal()?;
        }
        let behind = |part| behind(options.filters.clone(), part);
        let io = IoThread::spawn(attached, Arc::clone(&ending), behind(Part::Devices))?;
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| {
                let ending = Arc::clone(&ending);
                let bus = Arc::<MachineBus>::clone(&bus);
                VcpuThread::spawn(vcpu, bus, behind(Part::Vcpu), move |exit| ending.set(exit))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            vcpus,
            io,
            bus,
            ending,
            disks: made.disks,
            disk_windows,
            networks: made.networks,
            paused: AtomicBool::new(true),
            turn: Mutex::default(),
            generation,
            ram,
            _vm: vm,
        })
    }
}

/// What a thread does before anything else.
fn behind(
    filters: Option<Filters>,
    part: Part,
) -> impl FnOnce() -> Result<(), String> + Send + 'static {
    move || match filters {
        Some(filters) => filters
            .apply(part)
            .map_err(|error| skiff_base::chain(&error).to_string()),
        None => Ok(()),
    }
}

fn boot(
    config: &Config,
    ram: &GuestRam,
    kernel: &arch::Kernel,
    attached: &[Attached],
    vcpus: u8,
) -> Result<(), MachineError> {
    let mut initrd = config
        .boot_source
        .initrd_path
        .as_deref()
        .map(|path| devices::open("boot-source.initrd_path", path))
        .transpose()?;
    let told = acpi::Devices {
        vcpus,
        virtio: attached.iter().map(|device| device.slot).collect(),
        serial: config.serial.is_some(),
    };
    let line = config.command_line();
    arch::boot(ram, kernel, &line, initrd.as_mut(), &told)?;
    Ok(())
}

fn open_serial(vm: &Vm, serial: &Serial) -> Result<SerialPort, MachineError> {
    let output = match &serial.serial_out_path {
        Some(path) => {
            let mut options = OpenOptions::new();
            options.append(true).create(true);
            devices::open_with("serial.serial_out_path", path, &options)?
        }
        None => rustix::io::dup(rustix::stdio::stdout())
            .map(File::from)
            .map_err(|errno| MachineError::io("write to standard output")(errno.into()))?,
    };
    let interrupt = vm.interrupt(layout::SERIAL_GSI)?;
    let limit = serial.rate_limiter.bandwidth.bucket();
    Ok(SerialPort::new(interrupt, output, limit))
}
