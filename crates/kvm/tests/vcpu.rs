//! vCPUs on real KVM, with purpose-built guests. These tests declare
//! `/dev/kvm`: where it is absent they say so and pass, and the nested bench
//! (`make test-kvm`) runs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use skiff_base::{Clock, SystemClock};
use skiff_flat::Program;
use skiff_flat::testing::{deadline, has_kvm};
use skiff_kvm::arch::{self, VcpuState, VmState, acpi, layout};
use skiff_kvm::{
    Backing, Bus, GuestExit, GuestRam, Host, Outcome, Phase, ThreadError, VcpuThread, Vm,
};
use vm_memory::{Bytes, GuestAddress};

/// A bus with nothing on it but the port that resets.
struct Nothing;

impl Bus for Nothing {
    fn read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _address: u64, _data: &[u8]) -> Outcome {
        Outcome::Continue
    }

    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, _data: &[u8]) -> Outcome {
        if port == layout::RESET_PORT {
            Outcome::Exit(GuestExit::Reset)
        } else {
            Outcome::Continue
        }
    }
}

/// A bus whose first access never comes back.
struct Panics;

impl Bus for Panics {
    fn read(&self, _address: u64, _data: &mut [u8]) {
        panic!("a device's bug");
    }

    fn write(&self, _address: u64, _data: &[u8]) -> Outcome {
        panic!("a device's bug");
    }

    fn port_read(&self, _port: u16, _data: &mut [u8]) {
        panic!("a device's bug");
    }

    fn port_write(&self, _port: u16, _data: &[u8]) -> Outcome {
        panic!("a device's bug");
    }
}

struct Guest {
    // The thread first: it uses the machine.
    thread: VcpuThread,
    ended: Receiver<GuestExit>,
    ram: GuestRam,
    vm: Vm,
}

impl Guest {
    fn new(program: Program) -> Self {
        Self::over(program, Arc::new(Nothing))
    }

    fn over(program: Program, bus: Arc<dyn Bus>) -> Self {
        let ram = GuestRam::allocate(&layout::memory(4), Backing::Sealed).unwrap();
        let kernel = arch::load_kernel(&ram, skiff_flat::elf(program).as_slice()).unwrap();
        let devices = acpi::Devices {
            vcpus: 1,
            virtio: Vec::new(),
            serial: false,
        };
        arch::boot(&ram, &kernel, "", None, &devices).unwrap();
        Self::with(ram, bus, |vcpu, ram| {
            vcpu.enter(ram.memory(), &kernel).unwrap();
        })
    }

    fn with(
        ram: GuestRam,
        bus: Arc<dyn Bus>,
        set_up: impl FnOnce(&skiff_kvm::Vcpu, &GuestRam),
    ) -> Self {
        let host = Host::open().unwrap();
        let mut vm = Vm::create(&host).unwrap();
        let vcpu = vm.create_vcpus(&host, 1).unwrap().remove(0);
        vm.map(ram.clone()).unwrap();
        set_up(&vcpu, &ram);
        let (send, ended) = channel();
        let thread =
            VcpuThread::spawn(vcpu, bus, || Ok(()), move |exit| send.send(exit).unwrap()).unwrap();
        Self {
            thread,
            ended,
            ram,
            vm,
        }
    }

    fn count(&self) -> u64 {
        let address = GuestAddress(skiff_flat::COUNTER);
        self.ram.memory().read_obj(address).unwrap()
    }

    fn count_past(&self, before: u64) {
        let started = SystemClock.now();
        while self.count() <= before {
            assert!(
                SystemClock.now().since(started) < deadline(),
                "nothing is counted"
            );
            std::thread::yield_now();
        }
    }

    fn pause(&self) {
        self.thread.request_pause();
        self.thread.wait_paused(deadline()).unwrap();
        assert_eq!(self.thread.phase(), Phase::Paused);
    }

    fn end(&self) -> GuestExit {
        self.ended.recv_timeout(deadline()).unwrap()
    }
}

#[test]
fn a_thread_starts_paused_and_tells_how_its_guest_ended() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::HELLO);
    assert_eq!(guest.thread.phase(), Phase::Paused);
    assert!(guest.ended.try_recv().is_err());
    guest.thread.resume().unwrap();
    assert_eq!(guest.end(), GuestExit::Reset);
    assert_eq!(guest.thread.phase(), Phase::Ended);
    assert!(matches!(
        guest.thread.resume(),
        Err(ThreadError::Ended { id: 0 })
    ));
}

#[test]
fn a_thread_that_is_dropped_ends_its_guest() {
    if !has_kvm() {
        return;
    }
    for program in [skiff_flat::COUNT, skiff_flat::HALT] {
        for resume in [false, true] {
            let guest = Guest::new(program);
            if resume {
                guest.thread.resume().unwrap();
            }
            drop(guest.thread);
            let exit = guest.ended.recv_timeout(deadline()).unwrap();
            assert_eq!(exit, GuestExit::Stopped);
        }
    }
}

#[test]
fn a_panic_in_a_device_is_the_guests_end() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::over(skiff_flat::HELLO, Arc::new(Panics));
    guest.thread.resume().unwrap();
    assert!(matches!(guest.end(), GuestExit::Monitor(_)));
}

#[test]
fn a_running_vcpu_is_not_looked_into() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::COUNT);
    guest.thread.resume().unwrap();
    assert!(matches!(
        guest.thread.with(|_| ()),
        Err(ThreadError::Runs { id: 0 })
    ));
    guest.count_past(0);
    guest.pause();
    guest.thread.with(|vcpu| assert_eq!(vcpu.id(), 0)).unwrap();
}

#[test]
fn a_guest_goes_on_in_another_machine() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::COUNT);
    guest.thread.resume().unwrap();
    guest.count_past(1000);
    guest.pause();
    let vcpu = guest.thread.with(skiff_kvm::Vcpu::save).unwrap().unwrap();
    let machine = guest.vm.save().unwrap();
    assert_eq!((vcpu.version, machine.version), (1, 1));
    // Through text, as a file would have it.
    let vcpu: VcpuState = serde_json::from_str(&serde_json::to_string(&vcpu).unwrap()).unwrap();
    let machine: VmState = serde_json::from_str(&serde_json::to_string(&machine).unwrap()).unwrap();
    let counted = guest.count();
    let regions = guest.ram.regions().to_vec();
    let file = Arc::clone(guest.ram.file().unwrap());
    drop(guest);

    let ram = GuestRam::from_file(&regions, file).unwrap();
    let guest = Guest::with(ram, Arc::new(Nothing), |fresh, _| {
        fresh.restore(&vcpu).unwrap();
    });
    guest.vm.restore(&machine).unwrap();
    assert_eq!(guest.count(), counted);
    guest.thread.resume().unwrap();
    guest.count_past(counted + 1000);
}
