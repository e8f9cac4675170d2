//! The monitor on real KVM, with purpose-built guests. These tests declare
//! `/dev/kvm`: where it is absent they say so and pass, and the nested bench
//! (`make test-kvm`) runs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use skiff_base::{Clock, SystemClock};
use skiff_flat::Program;
use skiff_flat::testing::{deadline, has_kvm};
use skiff_kvm::arch::layout;
use skiff_kvm::{Backing, GuestExit};
use skiff_virtio::block::SectorRange;
use skiff_virtio::{BucketChange, LimitsChange};
use skiff_vmm::{Config, Machine, Options};
use vm_memory::{Bytes, GuestAddress};

/// A folder with a guest's files.
struct Guest {
    folder: tempfile::TempDir,
    config: Config,
}

impl Guest {
    fn new(program: Program) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, skiff_flat::elf(program)).unwrap();
        let config = serde_json::json!({
            "boot-source": {"kernel_image_path": kernel, "boot_args": ""},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 4},
            "serial": {"serial_out_path": folder.path().join("serial")},
        });
        Self {
            config: serde_json::from_value(config).unwrap(),
            folder,
        }
    }

    fn with_drive(mut self, name: &str, content: &[u8], read_only: bool) -> Self {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        let drive = serde_json::json!({
            "drive_id": name, "path_on_host": path, "is_read_only": read_only,
        });
        self.config
            .drives
            .push(serde_json::from_value(drive).unwrap());
        self
    }

    fn with_windows(mut self, read_only: bool) -> Self {
        let disk = serde_json::json!({"disk_id": "windows", "is_read_only": read_only});
        let disk = serde_json::from_value(disk).unwrap();
        self.config.window_disks.push(disk);
        self
    }

    /// A file to map, open for both.
    fn file(&self, name: &str, content: &[u8]) -> fs::File {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        let mut options = fs::File::options();
        options.read(true).write(true).open(path).unwrap()
    }

    fn build(&self, backing: Backing) -> Machine {
        let options = Options {
            backing,
            ..Options::default()
        };
        Machine::build(&self.config, &options).unwrap()
    }

    /// Runs it to its end.
    fn run(&self) -> GuestExit {
        let machine = self.build(Backing::Private);
        machine.resume().unwrap();
        let exit = machine.wait(Some(deadline()));
        assert_eq!(machine.take_failures(), Vec::<String>::new());
        exit.expect("the guest did not end in time")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("serial")).unwrap()
    }
}

#[test]
fn a_guest_speaks_and_asks_for_a_reset() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::HELLO);
    assert_eq!(guest.run(), GuestExit::Reset);
    assert_eq!(guest.said(), skiff_flat::HELLO_SAYS);
}

#[test]
fn a_guest_switches_itself_off() {
    if !has_kvm() {
        return;
    }
    assert_eq!(Guest::new(skiff_flat::POWER_OFF).run(), GuestExit::PowerOff);
}

#[test]
fn a_guest_that_dies_is_told_from_one_that_ends() {
    if !has_kvm() {
        return;
    }
    let exit = Guest::new(skiff_flat::TRIPLE_FAULT).run();
    assert_eq!(exit, GuestExit::TripleFault);
    let exit = Guest::new(skiff_flat::EMULATE).run();
    assert!(!exit.is_orderly(), "{exit}");
}

#[test]
fn where_nothing_is_a_guest_reads_ones() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::NOWHERE);
    assert_eq!(guest.run(), GuestExit::Reset);
    assert_eq!(guest.said(), skiff_flat::NOWHERE_SAYS);
}

/// A disk whose sectors hold their own numbers.
fn sectors(count: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|sector| {
            format!("this is sector {sector:01}")
                .into_bytes()
                .repeat(32)
        })
        .collect()
}

#[test]
fn a_guest_drives_a_disk_by_interrupts() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::BLOCK).with_drive("disk", &sectors(8), false);
    assert_eq!(guest.run(), GuestExit::Reset);
    let expected = format!("this is sector 1{}", skiff_flat::BLOCK_SAYS);
    assert_eq!(guest.said(), expected);
    let disk = fs::File::open(&guest.config.drives[0].path_on_host).unwrap();
    let mut written = vec![0; 512];
    disk.read_exact_at(&mut written, 512 * skiff_flat::BLOCK_WRITES as u64)
        .unwrap();
    assert_eq!(written, sectors(8)[512..1024]);
}

#[test]
fn another_file_can_follow_behind_a_disk() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::BLOCK).with_drive("disk", &[0; 512], false);
    let machine = guest.build(Backing::Private);
    let other = guest.file("other", &sectors(8));
    let path = Path::new("other");
    machine.replace_disk("disk", path, other).unwrap();
    let odd = guest.file("odd", &[0; 100]);
    let error = machine
        .replace_disk("disk", Path::new("odd"), odd)
        .unwrap_err();
    assert!(error.to_string().contains("odd is no disk"), "{error}");
    let file = guest.file("third", &sectors(8));
    let error = machine.replace_disk("another", path, file).unwrap_err();
    assert!(
        error.to_string().contains("no drive \"another\""),
        "{error}"
    );
    machine.resume().unwrap();
    assert_eq!(machine.wait(Some(deadline())), Some(GuestExit::Reset));
    let expected = format!("this is sector 1{}", skiff_flat::BLOCK_SAYS);
    assert_eq!(guest.said(), expected);
    let first = fs::read(&guest.config.drives[0].path_on_host).unwrap();
    assert_eq!(first, [0; 512]);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::BLOCK).with_drive("disk", &sectors(8), true);
    assert_eq!(guest.run(), GuestExit::Reset);
    // The read is done, the write fails, and there is no flush.
    assert_eq!(guest.said(), "this is sector 1|012|3\n");
    let disk = fs::read(&guest.config.drives[0].path_on_host).unwrap();
    assert!(disk == sectors(8), "the disk has changed");
}

#[test]
fn a_guest_drives_windows_that_are_mapped_while_it_is_there() {
    if !has_kvm() {
        return;
    }
    for (read_only, said) in [(true, "|012|3\n"), (false, skiff_flat::BLOCK_SAYS)] {
        let guest = Guest::new(skiff_flat::BLOCK).with_windows(read_only);
        let machine = guest.build(Backing::Private);
        let file = guest.file("layer", &sectors(8));
        let range = |first_sector, sectors| SectorRange {
            first_sector,
            sectors,
        };
        machine.map("windows", range(0, 8), file).unwrap();
        machine.resume().unwrap();
        assert_eq!(machine.wait(Some(deadline())), Some(GuestExit::Reset));
        assert_eq!(guest.said(), format!("this is sector 1{said}"));
        machine.unmap("windows", 0).unwrap();

        let other = guest.file("other", &sectors(8));
        let error = machine.map("layers", range(0, 8), other).unwrap_err();
        assert!(error.to_string().contains("no disk \"layers\""), "{error}");
        assert!(machine.unmap("windows", 0).is_err());
    }
}

#[test]
fn a_disks_limit_has_its_guest_wait_and_loses_nothing() {
    if !has_kvm() {
        return;
    }
    let mut guest = Guest::new(skiff_flat::BLOCK).with_drive("disk", &sectors(8), false);
    // One request in 50 ms: the second and the third wait for the alarm.
    let limits = serde_json::json!({"ops": {"size": 1, "refill_time": 50}});
    guest.config.drives[0].rate_limiter = Some(serde_json::from_value(limits).unwrap());
    let started = SystemClock.now();
    assert_eq!(guest.run(), GuestExit::Reset);
    assert!(SystemClock.now().since(started) >= Duration::from_millis(100));
    let expected = format!("this is sector 1{}", skiff_flat::BLOCK_SAYS);
    assert_eq!(guest.said(), expected);
}

#[test]
fn a_limit_that_is_lifted_lets_go_of_what_waits() {
    if !has_kvm() {
        return;
    }
    let mut guest = Guest::new(skiff_flat::BLOCK).with_drive("disk", &sectors(8), false);
    let limits = serde_json::json!({"ops": {"size": 1, "refill_time": 3_600_000}});
    guest.config.drives[0].rate_limiter = Some(serde_json::from_value(limits).unwrap());
    let machine = guest.build(Backing::Private);
    machine.resume().unwrap();
    // The second request waits for an hour.
    wait_for(|| machine.stats().disks[0].requests == 1);
    assert_eq!(machine.wait(Some(Duration::ZERO)), None);
    let lift = LimitsChange {
        operations: BucketChange::Lift,
        ..LimitsChange::default()
    };
    assert!(machine.limit_disk("other", lift).is_err());
    machine.limit_disk("disk", lift).unwrap();
    assert_eq!(machine.wait(Some(deadline())), Some(GuestExit::Reset));
    let expected = format!("this is sector 1{}", skiff_flat::BLOCK_SAYS);
    assert_eq!(guest.said(), expected);
}

#[test]
fn what_is_in_no_window_fails() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::new(skiff_flat::BLOCK).with_windows(false);
    let machine = guest.build(Backing::Private);
    // Sector 1 is in none, and sector 2 in the second.
    for first_sector in [0, 2] {
        let range = SectorRange {
            first_sector,
            sectors: 1,
        };
        let file = guest.file(&format!("layer{first_sector}"), &sectors(1));
        machine.map("windows", range, file).unwrap();
    }
    machine.resume().unwrap();
    assert_eq!(machine.wait(Some(deadline())), Some(GuestExit::Reset));
    // The read fails, the write of the empty buffer and the flush are done.
    let said = format!("{}|100|3\n", "\0".repeat(16));
    assert_eq!(guest.said(), said);
}

#[test]
fn a_guest_stands_still_while_it_is_paused() {
    if !has_kvm() {
        return;
    }
    for backing in [Backing::Private, Backing::Sealed] {
        let machine = Guest::new(skiff_flat::COUNT).build(backing);
        let count = || -> u64 {
            let memory = machine.ram().memory();
            memory.read_obj(GuestAddress(skiff_flat::COUNTER)).unwrap()
        };
        assert_eq!(count(), 0);
        let mut last = 0;
        for _ in 0..20 {
            machine.resume().unwrap();
            wait_for(|| count() > last);
            machine.pause().unwrap();
            last = count();
            // As long as it took to count, nothing is counted.
            assert!((0..1000).all(|_| count() == last));
        }
        machine.stop();
        assert_eq!(machine.wait(Some(deadline())), Some(GuestExit::Stopped));
        drop(machine);
    }
}

#[test]
fn each_machine_is_another_one_and_can_become_another() {
    if !has_kvm() {
        return;
    }
    let generation = |machine: &Machine| -> u128 {
        let memory = machine.ram().memory();
        memory.read_obj(GuestAddress(layout::GENERATION)).unwrap()
    };
    let guest = Guest::new(skiff_flat::HALT);
    let (one, other) = (guest.build(Backing::Private), guest.build(Backing::Private));
    let mut seen = vec![0, generation(&one), generation(&other)];
    one.renew_generation().unwrap();
    seen.push(generation(&one));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_guest_that_sleeps_or_spins_is_ended() {
    if !has_kvm() {
        return;
    }
    for program in [skiff_flat::HALT, skiff_flat::COUNT] {
        let machine = Guest::new(program).build(Backing::Private);
        machine.resume().unwrap();
        let stop = machine.stopper();
        stop();
        assert_eq!(machine.wait(Some(deadline())), Some(GuestExit::Stopped));
        // Dropping it joins its threads.
        drop(machine);
    }
}

/// Waits until something is so.
fn wait_for(mut so: impl FnMut() -> bool) {
    let started = SystemClock.now();
    while !so() {
        assert!(
            SystemClock.now().since(started) < deadline(),
            "nothing came"
        );
        std::thread::yield_now();
    }
}
