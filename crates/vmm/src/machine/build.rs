use std::fs::{File, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use skiff_kvm::arch::{self, acpi, layout};
use skiff_kvm::{Backing, GuestRam, Host, VcpuThread, Vm};

use super::bus::{MachineBus, Shared};
use super::devices::{self, Attached};
use super::ending::Ending;
use super::io::IoThread;
use super::serial::SerialPort;
use super::{Machine, MachineError};
use crate::config::{Config, Serial};
use crate::kernel::{self, Cache};

/// What a configuration does not say.
#[derive(Debug, Default)]
pub struct Options {
    /// Where unpacked kernels are kept.
    pub cache: Option<Cache>,
    /// What the guest's memory is made of.
    pub backing: Backing,
}

impl Machine {
    /// Makes a machine that has not run: its threads are paused.
    ///
    /// # Errors
    /// When something that the configuration names is not usable, or the host
    /// lacks something.
    pub fn build(config: &Config, options: &Options) -> Result<Self, MachineError> {
        let host = Host::open()?;
        // First of all: it takes long where the process is in a cgroup.
        let mut vm = Vm::create(&host)?;
        let count = config.machine_config.vcpu_count;
        let vcpus = vm.create_vcpus(&host, count)?;

        let regions = layout::memory(config.machine_config.mem_size_mib);
        let ram = GuestRam::allocate(&regions, options.backing)?;
        vm.map(ram.clone())?;
        let source = kernel::open(
            &config.boot_source.kernel_image_path,
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
        boot(config, &ram, &kernel, &attached, count)?;
        if let Some(first) = vcpus.first() {
            first.enter(ram.memory(), &kernel)?;
        }

        let windows: Vec<Shared> = attached
            .iter()
            .map(|device| Arc::clone(&device.window))
            .collect();
        let bus = Arc::new(MachineBus::new(windows, serial));
        let ending = Arc::new(Ending::default());
        let io = IoThread::spawn(attached, Arc::clone(&ending))?;
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| {
                let ending = Arc::clone(&ending);
                let bus = Arc::<MachineBus>::clone(&bus);
                VcpuThread::spawn(vcpu, bus, move |exit| ending.set(exit))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            vcpus,
            io,
            bus,
            ending,
            disks: made.disks,
            paused: AtomicBool::new(true),
            ram,
            _vm: vm,
        })
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
        Some(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|source| MachineError::Open {
                field: "serial.serial_out_path".into(),
                path: path.clone(),
                source,
            })?,
        None => rustix::io::dup(rustix::stdio::stdout())
            .map(File::from)
            .map_err(|errno| MachineError::io("write to standard output")(errno.into()))?,
    };
    let interrupt = vm.interrupt(layout::SERIAL_GSI)?;
    let limit = serial.rate_limiter.bandwidth.bucket();
    Ok(SerialPort::new(interrupt, output, limit))
}
