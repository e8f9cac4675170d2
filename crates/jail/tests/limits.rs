//! Memory, processors, processes, space; freezing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use skiff_wire::launcher::{Reply, Request, Writable};
use support::{Client, Launcher, busybox, shell, wait_for};

fn start() -> (Launcher, Client) {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    (launcher, client)
}

#[test]
fn the_writable_layer_is_as_large_as_asked() {
    let (_launcher, mut client) = start();
    let script = "dd if=/dev/zero of=/file bs=1M count=32 2>&1 | grep -o 'No space left on device'; \
                  stat -c %s /file";
    let out = client.shell(&[busybox()], script);
    let (error, size) = out.trim().split_once('\n').unwrap();
    assert_eq!(error, "No space left on device");
    let size: u64 = size.parse().unwrap();
    assert!((15 << 20..=16 << 20).contains(&size), "{size}");
}

#[test]
fn too_much_memory_kills_and_is_told() {
    let (_launcher, mut client) = start();
    let mut wanted = shell(&[busybox()], "tail /dev/zero; echo survived $?; sleep 1000");
    wanted.memory_bytes = 24 << 20;
    let running = client.create(wanted).unwrap();
    // The greedy process dies, not the init, nor the shell.
    assert_eq!(running.line(), "survived 137");
    let stats = client.stats(running.sandbox);
    assert_eq!(stats.oom_kills, 1);
    assert!(stats.memory_peak_bytes > 20 << 20, "{stats:?}");
    client.destroy(running.sandbox);
}

#[test]
fn an_application_that_takes_too_much_itself_ends() {
    let (_launcher, mut client) = start();
    let mut wanted = support::spec(&[busybox()], &["tail", "/dev/zero"]);
    wanted.memory_bytes = 24 << 20;
    let (exit, ..) = client.run(wanted);
    assert_eq!((exit.signal, exit.out_of_memory), (Some(9), true));
}

#[test]
fn what_it_writes_counts_as_its_memory() {
    let (_launcher, mut client) = start();
    let script = "dd if=/dev/zero of=/file bs=1M count=12 2>/dev/null; echo done; sleep 1000";
    let running = client.create(shell(&[busybox()], script)).unwrap();
    assert_eq!(running.line(), "done");
    let stats = client.stats(running.sandbox);
    assert!(stats.memory_bytes > 12 << 20, "{stats:?}");
    assert!(stats.pids >= 2, "{stats:?}");
}

#[test]
fn processor_time_is_counted_and_limited() {
    let (_launcher, mut client) = start();
    let mut wanted = shell(&[busybox()], "while :; do :; done");
    wanted.cpu_millis = 200;
    let start = skiff_base::Clock::now(&skiff_base::SystemClock);
    let running = client.create(wanted).unwrap();
    let used = wait_for("some processor time", || {
        let stats = client.stats(running.sandbox);
        (stats.cpu_us > 300_000).then_some(stats.cpu_us)
    });
    let elapsed = skiff_base::Clock::now(&skiff_base::SystemClock).since(start);
    let wall_us = u64::try_from(elapsed.as_micros()).unwrap();
    assert!(used < wall_us / 2, "{used} of {wall_us} are over a fifth");
    client.destroy(running.sandbox);
}

#[test]
fn processes_are_limited() {
    let (_launcher, mut client) = start();
    let script =
        "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done 2>/dev/null; echo unreachable";
    let mut wanted = shell(&[busybox()], script);
    wanted.pids = 8;
    let (exit, out, err) = client.run(wanted);
    // The shell ends when it cannot fork.
    assert_ne!(exit.code, Some(0), "{out}");
    assert!(err.is_empty() || err.contains("fork"), "{err}");
}

#[test]
fn a_frozen_sandbox_stands_and_goes_on() {
    let (_launcher, mut client) = start();
    let running = client
        .create(shell(&[busybox()], "echo up; while :; do :; done"))
        .unwrap();
    running.line();
    let sandbox = running.sandbox;
    assert_eq!(client.ask(Request::Freeze { sandbox }), Ok(Reply::Done));
    assert!(client.list()[0].frozen);
    let before = client.stats(sandbox).cpu_us;
    let spin = client
        .create(shell(
            &[busybox()],
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
        ))
        .unwrap();
    client.exit_of(spin.sandbox);
    assert_eq!(client.stats(sandbox).cpu_us, before);
    assert_eq!(client.ask(Request::Thaw { sandbox }), Ok(Reply::Done));
    assert!(!client.list()[0].frozen);
    wait_for("more processor time", || {
        (client.stats(sandbox).cpu_us > before).then_some(())
    });
}

#[test]
fn a_frozen_sandbox_can_be_destroyed() {
    let (launcher, mut client) = start();
    let running = client
        .create(shell(&[busybox()], "echo up; sleep 1000"))
        .unwrap();
    running.line();
    let sandbox = running.sandbox;
    assert_eq!(client.ask(Request::Freeze { sandbox }), Ok(Reply::Done));
    client.destroy(sandbox);
    launcher.shut_down();
}

#[test]
fn a_burst_of_sandboxes_all_start() {
    let (launcher, mut client) = start();
    // All must start within the launcher's deadline, which is not stretched.
    let count = (100 / support::slowness() as usize).max(10);
    let clock = skiff_base::SystemClock;
    let begun = skiff_base::Clock::now(&clock);
    let wanted: Vec<_> = (0..count)
        .map(|_| {
            let spec = shell(&[busybox()], "exec sleep 1000");
            let sandbox = spec.sandbox;
            (sandbox, client.send(Request::Create(Box::new(spec)), &[]))
        })
        .collect();
    for (_, id) in &wanted {
        let (result, _) = client.reply_to(*id);
        assert!(matches!(result, Ok(Reply::Created { .. })), "{result:?}");
    }
    let created = skiff_base::Clock::now(&clock);
    assert_eq!(client.list().len(), count);
    for (sandbox, _) in wanted {
        client.destroy(sandbox);
    }
    let end = skiff_base::Clock::now(&clock);
    println!(
        "{count} created in {:?}, destroyed one by one in {:?}",
        created.since(begun),
        end.since(created)
    );
    launcher.shut_down();
}

#[test]
fn the_steps_of_a_creation_are_timed() {
    let (_launcher, mut client) = start();
    client.configure(4);
    for round in 0..10 {
        let spec = shell(&[busybox()], "exit 0");
        let clock = skiff_base::SystemClock;
        let begun = skiff_base::Clock::now(&clock);
        let running = client.create(spec).unwrap();
        let took = skiff_base::Clock::now(&clock).since(begun);
        let names: Vec<_> = running.steps_us.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["network", "clone", "cgroup", "root", "exec"]);
        println!("round {round}: {took:?} {:?}", running.steps_us);
        client.exit_of(running.sandbox);
        client.destroy(running.sandbox);
    }
}

/// Files without a name that the launcher holds: templates of disks, and one
/// that is being made.
fn templates(launcher: &Launcher) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", launcher.pid())).unwrap();
    let folder = format!("{}/#", launcher.folder.display());
    let link = |entry: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(entry.ok()?.path()).ok()?;
        target.to_str()?.starts_with(&folder).then_some(())
    };
    fds.filter_map(link).count()
}

#[test]
fn a_writable_layer_may_be_on_disk() {
    let (launcher, mut client) = start();
    let script = "dd if=/dev/zero of=/file bs=1M count=100 2>/dev/null && stat -c '%s %u' /file; \
                  echo own >/bin/sh.own; rm /bin/yes; ls /bin/yes 2>/dev/null; \
                  dd if=/dev/zero of=/more bs=1M count=100 2>&1 | grep -o 'No space left on device'";
    for _ in 0..2 {
        let mut wanted = shell(&[busybox()], script);
        wanted.process.uid = 0;
        wanted.writable = Writable::Disk { bytes: 128 << 20 };
        let (exit, out, err) = client.run(wanted);
        assert_eq!((exit.code, &*err), (Some(0), ""));
        assert_eq!(out, "104857600 0\nNo space left on device\n");
        // Far more than its memory, and none of it was taken for that.
        assert!(!exit.out_of_memory);
    }
    // Others on this host may have mounts of loop devices.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = launcher.folder.to_str().unwrap();
    let mut own = mounts.lines().filter(|line| line.contains(place));
    assert!(own.all(|line| !line.contains("/dev/loop")), "{mounts}");
    // The file had no name.
    let names: Vec<_> = std::fs::read_dir(&launcher.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| !name.to_string_lossy().starts_with("launcher"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
    // So that the next start waits for no mke2fs.
    wait_for("a template", || (templates(&launcher) == 1).then_some(()));
    let mut wanted = shell(&[busybox()], "touch /file && stat -c %u / /file");
    wanted.process.uid = 0;
    wanted.writable = Writable::Disk { bytes: 128 << 20 };
    let running = client.create(wanted).unwrap();
    println!("from a template: {:?}", running.steps_us);
    let sandbox = running.sandbox;
    assert_eq!(running.read().0, "0\n0\n");
    client.destroy(sandbox);
    wait_for("nothing else", || (templates(&launcher) == 1).then_some(()));
    let mut small = shell(&[busybox()], "true");
    small.writable = Writable::Disk { bytes: 1000 };
    assert!(client.create(small).is_err());
}

/// Where an ext4 says that it is one (Documentation/filesystems/ext4,
/// superblock: `s_magic`).
const EXT4_MAGIC: (u64, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);

#[test]
fn a_machine_is_given_a_disk_of_its_own() {
    let (launcher, mut client) = start();
    let mut inodes = BTreeSet::new();
    let mut held = Vec::new();
    // The first ones wait until they are made.
    let asked: Vec<u64> = [32 << 20, 64 << 20, 32 << 20]
        .map(|bytes| client.send(Request::Disk { bytes }, &[]))
        .into();
    for (id, bytes) in asked.into_iter().zip([32 << 20, 64 << 20, 32 << 20]) {
        let (reply, files) = client.reply_to(id);
        assert_eq!(reply, Ok(Reply::Descriptors));
        let file = File::from(files.into_iter().next().unwrap());
        let status = file.metadata().unwrap();
        assert_eq!((status.len(), status.nlink()), (bytes, 0));
        assert!(
            status.blocks() * 512 < bytes / 4,
            "it is sparse: {status:?}"
        );
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, EXT4_MAGIC.0).unwrap();
        assert_eq!(magic, EXT4_MAGIC.1);
        inodes.insert(status.ino());
        file.write_all_at(b"x", 0).unwrap();
        held.push(file);
    }
    assert_eq!(inodes.len(), 3, "nobody else has it");
    wait_for("the templates", || {
        (templates(&launcher) == 2).then_some(())
    });
    assert!(client.ask(Request::Disk { bytes: 1000 }).is_err());
    // It is not the client's to show the host's kernel a file system.
    let mut given = shell(&[busybox()], "true");
    given.writable = Writable::Disk { bytes: 32 << 20 };
    let device = OwnedFd::from(File::open("/dev/null").unwrap());
    let refused = client.ask_full(Request::Create(Box::new(given)), &[&device]);
    assert!(refused.0.is_err());
}
