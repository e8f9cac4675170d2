//! The same root and process in `runc run`: what an application sees of both
//! must be alike where Skiff means to do as runc does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use oci_spec::runtime::{Capability, LinuxCapabilitiesBuilder, Spec};
use skiff_base::process::command;
use support::{Launcher, add_busybox, busybox, shell, spec};

/// The eleven that Skiff keeps.
const CAPABILITIES: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Setfcap,
];

/// Runs a script in runc, in a bundle of busybox.
fn in_runc(script: &str) -> String {
    let bundle = tempfile::tempdir().unwrap();
    let root = bundle.path().join("rootfs");
    std::fs::create_dir(&root).unwrap();
    add_busybox(&root);
    for folder in ["proc", "sys", "dev", "tmp", "etc"] {
        std::fs::create_dir(root.join(folder)).unwrap();
    }
    let made = command("runc")
        .arg("spec")
        .arg("-b")
        .arg(bundle.path())
        .status();
    assert!(made.unwrap().success());
    adapt(&bundle.path().join("config.json"), script);
    let name = format!("skiff-oracle-{}", skiff_base::random::u32());
    let run = command("runc")
        .arg("--root")
        .arg(bundle.path().join("state"))
        .args(["run", "-b"])
        .arg(bundle.path())
        .arg(name)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    String::from_utf8(run.stdout).unwrap()
}

fn adapt(config: &Path, script: &str) {
    let mut spec = Spec::load(config).unwrap();
    let mut process = spec.process().clone().unwrap();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(CAPABILITIES)
        .effective(CAPABILITIES)
        .permitted(CAPABILITIES)
        .inheritable([])
        .ambient([])
        .build()
        .unwrap();
    process.set_args(Some(["sh", "-c", script].map(str::to_owned).to_vec()));
    process.set_env(Some(vec!["PATH=/bin".to_owned()]));
    process.set_terminal(Some(false));
    process.set_capabilities(Some(capabilities));
    spec.set_process(Some(process));
    spec.set_hostname(Some("box".to_owned()));
    spec.save(config).unwrap();
}

fn in_both(script: &str) -> (String, String) {
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    let (exit, ours, err) = client.run(shell(&[busybox()], script));
    assert_eq!((exit.code, &*err), (Some(0), ""));
    (ours, in_runc(script))
}

#[test]
fn the_process_is_alike() {
    let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|SigBlk|SigCgt|Umask)' \
                  /proc/self/status; id -u; pwd; umask; hostname; ls /proc/self/fd; env | grep PATH";
    let (ours, theirs) = in_both(script);
    assert_eq!(ours, theirs);
    // runc passes on some of what its own parent ignores.
    let launcher = Launcher::start();
    let mut client = launcher.connect();
    client.add_layer(busybox());
    let args = ["grep", "SigIgn", "/proc/self/status"];
    let (_, ours, _) = client.run(spec(&[busybox()], &args));
    assert_eq!(ours, "SigIgn:\t0000000000000000\n");
}

#[test]
fn devices_are_alike() {
    // runc makes `core` only where the kernel has /proc/kcore.
    let script = "cd /dev; for f in *; do [ $f = console ] || [ $f = core ] || stat -c '%n %F %a %t:%T' $f; done; \
                  for f in fd stdin stdout stderr; do readlink $f; done";
    let (ours, theirs) = in_both(script);
    let lines = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&ours), lines(&theirs));
}

/// File-system type and options of each mount point.
fn mounts(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    text.lines()
        .map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            let left: Vec<_> = left.split(' ').collect();
            let kind = right.split(' ').next().unwrap().to_owned();
            let options = left[5].split(',').map(str::to_owned).collect();
            (left[4].to_owned(), (kind, options))
        })
        .collect()
}

#[test]
fn mounts_are_there_and_as_strict() {
    let (ours, theirs) = in_both("cat /proc/self/mountinfo");
    let (ours, theirs) = (mounts(&ours), mounts(&theirs));
    for (point, (kind, options)) in &theirs {
        if point == "/" || point.starts_with("/sys/fs/cgroup") {
            continue;
        }
        let (our_kind, our_options) = ours
            .get(point)
            .unwrap_or_else(|| panic!("{point} is no mount of ours: {:?}", ours.keys()));
        let masked = point.starts_with("/proc/") || point.starts_with("/sys/");
        if !masked {
            assert_eq!(our_kind, kind, "{point}");
        }
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            let strict = |options: &[String]| options.iter().any(|one| one == option);
            // What hides a file is never written, executed or opened as more
            // than the null device it is.
            assert!(
                !strict(options) || strict(our_options) || masked && option != "ro",
                "{point} lacks {option}: {our_options:?}"
            );
        }
    }
}

#[test]
fn what_is_hidden_there_is_hidden_here() {
    let spec = Spec::default();
    let linux = spec.linux().clone().unwrap();
    let masked = linux.masked_paths().clone().unwrap();
    let readonly = linux.readonly_paths().clone().unwrap();
    assert!(masked.len() > 5 && readonly.len() > 3);
    let script = format!(
        "for f in {}; do if [ -d $f ]; then ls -A $f | wc -l; elif [ -e $f ]; then cat $f | wc -c; \
         else echo 0; fi; done; for f in {}; do [ -e $f ] || continue; \
         if [ -d $f ]; then (: >$f/new) 2>/dev/null; else (: >>$f) 2>/dev/null; fi && echo $f; done; true",
        masked.join(" "),
        readonly.join(" ")
    );
    let (ours, theirs) = in_both(&script);
    let nothing = "0\n".repeat(masked.len());
    assert_eq!((&*ours, &*theirs), (&*nothing, &*nothing));
}
