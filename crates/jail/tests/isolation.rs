//! What an application sees and may do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use skiff_wire::launcher::Writable;
use support::{Client, Launcher, Layer, add_busybox, busybox, layer, shell, spec};

fn start() -> (Launcher, Client) {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    (launcher, client)
}

#[test]
fn nothing_of_the_host_is_seen() {
    let (_launcher, mut client) = start();
    let out = client.shell(
        &[busybox()],
        "ls / /dev; ps >/tmp/ps; wc -l </tmp/ps; cat /proc/1/cgroup",
    );
    let (listing, rest) = out.split_once("/dev:\n").unwrap();
    let root: Vec<_> = listing.split_whitespace().skip(1).collect();
    assert_eq!(root, ["bin", "dev", "etc", "proc", "sys", "tmp"]);
    let devices =
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let mut words: Vec<_> = rest.split_whitespace().collect();
    let count = devices.split(' ').count();
    assert_eq!(words[..count].join(" "), devices);
    words.drain(..count);
    // The init, the shell, ps and the heading.
    assert_eq!(words[0], "4");
    assert!(
        words[1..].iter().all(|line| line.ends_with(":/")),
        "{words:?}"
    );
}

#[test]
fn the_mounts_are_only_the_sandboxes_own() {
    let (_launcher, mut client) = start();
    let out = client.shell(&[busybox()], "cat /proc/self/mountinfo");
    for line in out.lines() {
        let point = line.split(' ').nth(4).unwrap();
        let known = point == "/"
            || ["/proc", "/sys", "/dev"]
                .iter()
                .any(|folder| Path::new(point).starts_with(folder));
        assert!(known, "{line}");
    }
    assert!(out.contains(" / / rw,nodev,relatime"), "{out}");
}

#[test]
fn every_sandbox_has_user_ids_of_its_own() {
    let (_launcher, mut client) = start();
    let mut first = || {
        let running = client
            .create(shell(&[busybox()], "cat /proc/self/uid_map; sleep 1000"))
            .unwrap();
        let line = running.line();
        let mut words = line.split_whitespace().map(str::to_owned);
        assert_eq!(words.next().unwrap(), "0");
        let base: u32 = words.next().unwrap().parse().unwrap();
        assert_eq!(words.next().unwrap(), "65536");
        assert!(base >= 0x6000_0000 && base.is_multiple_of(65_536));
        base
    };
    assert_ne!(first(), first());
}

#[test]
fn the_images_owners_are_the_sandboxes_own() {
    let (_launcher, mut client) = start();
    let owned = layer(|root| {
        let path = root.join("theirs");
        std::fs::write(&path, "x").unwrap();
        std::os::unix::fs::chown(&path, Some(1000), Some(7)).unwrap();
    });
    client.add_layer(&owned);
    let script =
        "stat -c %u:%g /theirs /bin/busybox /etc/hosts; chown 5 /theirs; stat -c %u /theirs";
    let out = client.shell(&[busybox(), &owned], script);
    assert_eq!(out, "1000:7\n0:0\n0:0\n5\n");
}

#[test]
fn the_application_keeps_few_capabilities_and_gains_none() {
    let (_launcher, mut client) = start();
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr '\\t' ' '";
    let out = client.shell(&[busybox()], script);
    assert_eq!(
        out,
        "CapInh: 0000000000000000\nCapPrm: 00000000800405fb\nCapEff: 00000000800405fb\n\
         CapBnd: 00000000800405fb\nCapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n"
    );
    let mut as_user = shell(&[busybox()], script);
    as_user.process.uid = 1000;
    let (_, out, _) = client.run(as_user);
    assert!(
        out.contains("CapPrm: 0000000000000000\nCapEff: 0000000000000000"),
        "{out}"
    );
}

#[test]
fn a_setuid_program_stays_in_the_sandbox() {
    let (_launcher, mut client) = start();
    let setuid = layer(|root| {
        std::fs::create_dir(root.join("su")).unwrap();
        let path = root.join("su/busybox");
        std::fs::copy("/bin/busybox", &path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
    });
    client.add_layer(&setuid);
    let mut wanted = spec(&[busybox(), &setuid], &["/su/busybox", "id", "-u"]);
    wanted.process.uid = 1000;
    let (exit, out, err) = client.run(wanted);
    // no_new_privs: not even the sandbox's own root.
    assert_eq!((exit.code, &*out, &*err), (Some(0), "1000\n", ""));
}

#[test]
fn calls_that_break_out_are_refused() {
    let (_launcher, mut client) = start();
    let probe = probe_layer();
    client.add_layer(&probe);
    let (exit, out, err) = client.run(spec(&[busybox(), &probe], &["/probe", "probe"]));
    assert_eq!((exit.code, &*err), (Some(0), ""));
    assert_eq!(
        out,
        "mount 1\nunshare 1\nclone 1\nclone3 38\nkeyctl 1\nbpf 1\nio_uring_setup 1\nptrace 1\n\
         setns 1\nvsock 1\nfuture 38\nsocket 0\n"
    );
}

/// The test's own program with the libraries it is linked to.
fn probe_layer() -> Layer {
    layer(|root| {
        let program = env!("CARGO_BIN_EXE_skiff-jail-launcher");
        std::fs::copy(program, root.join("probe")).unwrap();
        let listed = skiff_base::process::command("ldd")
            .arg(program)
            .stdout(std::process::Stdio::piped())
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for library in listed
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let target = root.join(library.trim_start_matches('/'));
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(library, target).unwrap();
        }
    })
}

#[test]
fn the_init_is_out_of_reach() {
    let (_launcher, mut client) = start();
    let script = "kill -9 1; (ls -d /proc/1/fd/* /proc/1/root/bin; cat /proc/1/environ) 2>/dev/null; \
                  ls -d /proc/1; echo alive";
    assert_eq!(client.shell(&[busybox()], script), "/proc/1\nalive\n");
}

#[test]
fn sensitive_files_are_hidden_or_read_only() {
    let (_launcher, mut client) = start();
    let script = "wc -c </proc/timer_list; ls -A /sys/firmware | wc -l; \
                  for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/mm/x; do \
                  (echo 1 >$f) 2>/dev/null || echo no; done";
    assert_eq!(client.shell(&[busybox()], script), "0\n0\nno\nno\nno\n");
}

#[test]
fn its_own_limits_can_be_read() {
    let (_launcher, mut client) = start();
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
                  (echo 1 >/sys/fs/cgroup/memory/cgroup.procs) 2>/dev/null || echo no";
    assert_eq!(client.shell(&[busybox()], script), "67108864\nno\n");
}

#[test]
fn links_of_the_image_lead_nowhere_else() {
    let (launcher, mut client) = start();
    let target = launcher.folder.join("target");
    std::fs::create_dir(&target).unwrap();
    let hostile = layer(|root| {
        add_busybox(root);
        symlink(format!("../../../..{}", target.display()), root.join("etc")).unwrap();
        symlink(&target, root.join("proc")).unwrap();
        symlink("/etc", root.join("dev")).unwrap();
        std::fs::write(root.join("sys"), "a file").unwrap();
        symlink(&target, root.join("tmp")).unwrap();
    });
    client.add_layer(&hostile);
    let mut wanted = shell(
        &[&hostile],
        "cat /etc/hostname; ls -d /proc/self /dev/null /sys/kernel",
    );
    wanted.process.cwd = "/etc/deep/cwd".to_owned();
    let (exit, out, err) = client.run(wanted);
    assert_eq!((exit.code, &*err), (Some(0), ""));
    assert_eq!(out, "box\n/dev/null\n/proc/self\n/sys/kernel\n");
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn a_working_folder_behind_a_descriptor_is_refused() {
    let (_launcher, mut client) = start();
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/root"] {
        let mut wanted = shell(&[busybox()], "pwd");
        wanted.process.cwd = cwd.to_owned();
        let refusal = client.create(wanted).unwrap_err();
        assert_eq!(refusal.step, "cwd", "{cwd}: {refusal}");
    }
}

#[test]
fn a_device_of_the_image_cannot_be_opened() {
    let (_launcher, mut client) = start();
    let devices = layer(|root| {
        for (name, major, minor) in [("zero", 1, 5), ("loop", 7, 0)] {
            let made = skiff_base::process::command("mknod")
                .args(["-m", "666"])
                .arg(root.join(name))
                .args([if major == 7 { "b" } else { "c" }, &major.to_string()])
                .arg(minor.to_string())
                .status()
                .unwrap();
            assert!(made.success());
        }
    });
    client.add_layer(&devices);
    let script = "for f in /zero /loop; do head -c1 $f 2>&1; done; mknod /tmp/x c 1 5 2>&1; head -c1 /dev/zero | wc -c";
    let out = client.shell(&[busybox(), &devices], script);
    assert_eq!(
        out,
        "head: /zero: Permission denied\nhead: /loop: Permission denied\n\
         mknod: /tmp/x: Operation not permitted\n1\n"
    );
}

#[test]
fn layers_lie_over_each_other_in_their_order() {
    let (_launcher, mut client) = start();
    let write =
        |text: &'static str| layer(move |root| std::fs::write(root.join("file"), text).unwrap());
    let mut layers = vec![];
    for text in ["one\n", "two\n", "three\n"] {
        let made = write(text);
        client.add_layer(&made);
        layers.push(made);
    }
    let mut stack = vec![busybox()];
    stack.extend(&layers);
    assert_eq!(
        client.shell(&stack, "cat /file; echo four >/file; cat /file"),
        "three\nfour\n"
    );
    // What one writes, the next does not see.
    assert_eq!(client.shell(&stack, "cat /file"), "three\n");
}

#[test]
fn as_many_layers_as_an_image_may_have() {
    let (_launcher, mut client) = start();
    let small = layer(|root| std::fs::write(root.join("small"), "x").unwrap());
    let mut wanted = shell(&[busybox()], "cat /small");
    let path = small.path.clone();
    let file = std::os::fd::OwnedFd::from(std::fs::File::open(path).unwrap());
    for number in 1..127 {
        let layer: skiff_types::Digest = format!("sha256:{number:064x}").parse().unwrap();
        wanted.layers.push(layer.clone());
        let request = skiff_wire::launcher::Request::AddLayer { layer };
        assert!(client.ask_full(request, &[&file]).0.is_ok());
    }
    let (exit, out, _) = client.run(wanted);
    assert_eq!((exit.code, &*out), (Some(0), "x"));
}

#[test]
fn a_read_only_root_leaves_tmp_and_shm() {
    let (_launcher, mut client) = start();
    let script = "touch /file 2>&1; touch /etc/file 2>&1; touch /tmp/a /dev/shm/b && ls /tmp /dev/shm; \
         stat -c %a /tmp; grep ' /tmp ' /proc/mounts";
    let bytes = 16 << 20;
    let memory = shell(&[busybox()], script).writable;
    for (writable, mount) in [
        (memory, "/tmp tmpfs rw,nosuid,nodev,"),
        (Writable::Disk { bytes }, "/tmp ext4 rw,nosuid,nodev,"),
    ] {
        let mut wanted = shell(&[busybox()], script);
        wanted.readonly_root = true;
        wanted.writable = writable;
        let (_, out, err) = client.run(wanted);
        assert_eq!(err, "");
        assert!(out.starts_with(
            "touch: /file: Read-only file system\ntouch: /etc/file: Read-only file system\n\
             /dev/shm:\nb\n\n/tmp:\na\n1777\n"
        ));
        assert!(out.contains(mount), "{out}");
    }
    // What fits on the disk, however little memory there is.
    let script = "dd if=/dev/zero of=/tmp/file bs=1M count=40 2>&1 | grep -c records; \
                  stat -c %s /tmp/file; dd if=/dev/zero of=/tmp/more bs=1M count=40 2>&1 | grep -o 'No space.*'";
    let mut wanted = shell(&[busybox()], script);
    wanted.readonly_root = true;
    wanted.memory_bytes = 16 << 20;
    wanted.writable = Writable::Disk { bytes: 64 << 20 };
    let (exit, out, _) = client.run(wanted);
    assert_eq!(out, "2\n41943040\nNo space left on device\n");
    assert!(!exit.out_of_memory);
}

#[test]
fn the_network_is_its_own() {
    let (_launcher, mut client) = start();
    let script = "ls /sys/class/net; head -1 /etc/resolv.conf; cat /etc/hosts | tr '\\t' ' '";
    assert_eq!(
        client.shell(&[busybox()], script),
        "lo\nnameserver 198.18.0.1\n127.0.0.1 localhost sandbox.localdomain\n127.0.0.1 box\n"
    );
}
