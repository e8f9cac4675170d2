//! `skiff run IMAGE -- CMD`: a process of an image to its end, without a server.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use skiff_base::process;
use skiff_testkit::{Finished, Leaks, Running, fixture, run, skiff_binary, wait_for};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("skiff-run.")
            .tempdir()
            .unwrap();
        let _out = run("chmod", ["711".as_ref(), folder.path().as_os_str()]).ok();
        Self(folder)
    }

    fn start(&self, image: &Path, flags: &[&str], command: &[&str]) -> Running {
        let mut skiff = process::command(skiff_binary());
        skiff
            .arg("run")
            .arg("--data-dir")
            .arg(self.0.path().join("data"))
            .arg("--run-dir")
            .arg(self.0.path().join("run"))
            .args(flags)
            .arg(image);
        if !command.is_empty() {
            skiff.arg("--").args(command);
        }
        skiff.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(skiff.spawn().unwrap())
    }

    fn shell(&self, flags: &[&str], script: &str) -> Finished {
        let command = ["/bin/sh", "-c", script];
        self.start(&fixture("busybox"), flags, &command).wait()
    }

    /// Nothing of a run is left but the images.
    #[track_caller]
    fn assert_clean(&self) {
        let mark = self.0.path().display().to_string();
        let left = Leaks::of(&mark, self.0.path());
        assert!(left.none(), "{left:?}");
        let runs = std::fs::read_dir(self.0.path().join("run")).unwrap();
        let names: Vec<_> = runs.flatten().map(|entry| entry.file_name()).collect();
        assert!(names.is_empty(), "{names:?}");
    }
}

#[test]
fn the_process_has_its_streams_and_gives_its_exit_code() {
    let place = Place::new();
    let done = place.shell(&[], "echo to-out; echo to-err >&2; exit 7");
    assert_eq!(
        (done.code, done.out.as_str()),
        (7, "to-out\n"),
        "{}",
        done.err
    );
    assert!(done.err.contains("to-err"), "{}", done.err);
    let done = place.shell(&[], "kill -9 $$");
    assert_eq!(done.code, 137, "{}", done.err);
    place.assert_clean();
}

#[test]
fn flags_set_environment_user_and_folder() {
    let place = Place::new();
    let flags = [
        "--env",
        "GREETING=good day",
        "--user",
        "app",
        "--workdir",
        "/tmp",
    ];
    let out = place
        .shell(&flags, "echo $GREETING; id -u; id -g; id -G; pwd")
        .ok();
    assert_eq!(out, "good day\n1000\n1000\n1000 1001\n/tmp\n");
    let out = place.shell(&["--user", "7:8"], "id -u; id -g").ok();
    assert_eq!(out, "7\n8\n");
    let refused = place.shell(&["--user", "nobody-here"], "id").failed();
    assert!(refused.contains("nobody-here"), "{refused}");
    place.assert_clean();
}

#[test]
fn what_cannot_run_is_refused_in_one_line() {
    let place = Place::new();
    let missing = place
        .start(&fixture("busybox"), &[], &["/no/such/program"])
        .wait();
    assert_one_line(&missing.failed(), &["/no/such/program", "No such file"]);
    let nowhere = place.start(Path::new("/no/such/layout"), &[], &[]).wait();
    assert_one_line(&nowhere.failed(), &["/no/such/layout"]);

    let layout = place.0.path().join("empty");
    let image = format!("{}:1", layout.display());
    let _out = run(
        "cp",
        [
            "-a".as_ref(),
            fixture("busybox").as_os_str(),
            layout.as_os_str(),
        ],
    )
    .ok();
    let clear = [
        "config",
        "--image",
        &image,
        "--clear",
        "config.entrypoint",
        "--clear",
        "config.cmd",
    ];
    let _out = run("umoci", clear).ok();
    let bare = place.start(&layout, &[], &[]).wait();
    assert_one_line(&bare.failed(), &["names no program", "--"]);
    place.assert_clean();
}

#[track_caller]
fn assert_one_line(text: &str, parts: &[&str]) {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("skiff: "))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    for part in parts {
        assert!(lines[0].contains(part), "{part} is not in {text}");
    }
}

#[test]
fn memory_is_limited_and_the_user_is_told() {
    let place = Place::new();
    let eater = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let done = place.shell(&["--memory", "32"], eater);
    assert_ne!(done.out.trim(), "200000000");
    assert!(done.err.contains("want of memory"), "{}", done.err);
    place.assert_clean();
}

#[test]
fn a_signal_is_passed_on() {
    let place = Place::new();
    let script = "trap 'echo caught; exit 5' TERM; echo ready >&2; while :; do sleep 0.1; done";
    let command = ["/bin/sh", "-c", script];
    let mut started = place.start(&fixture("busybox"), &[], &command);
    let mut first = [0];
    let read = std::io::Read::read(started.0.stderr.as_mut().unwrap(), &mut first);
    assert_eq!(read.unwrap(), 1);
    started.signal(Signal::TERM);
    let done = started.wait();
    assert_eq!(
        (done.code, done.out.as_str()),
        (5, "caught\n"),
        "{}",
        done.err
    );
    place.assert_clean();
}

#[test]
fn a_terminal_is_the_users() {
    let place = Place::new();
    let flag = |name: &str, folder: &str| {
        let path = place.0.path().join(folder);
        [name.to_owned(), path.display().to_string()]
    };
    let script = "tty; stty size; printf 'ready>'; read word; echo \"<$word>\"; \
                  trap 'echo interrupted; hit=1' INT; printf 'ready>'; \
                  while [ -z \"$hit\" ]; do sleep 0.1; done; echo the end; exit 9";
    let mut args = vec![skiff_binary().display().to_string()];
    args.extend(["run".to_owned(), "--tty".to_owned()]);
    args.extend(flag("--data-dir", "data"));
    args.extend(flag("--run-dir", "run"));
    args.push(fixture("busybox").display().to_string());
    args.extend(["--", "/bin/sh", "-c", script].map(str::to_owned));
    let command: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = skiff_testkit::started_on_a_terminal("good day|^C", &command).wait();
    assert_eq!(done.code, 9, "{}{}", done.out, done.err);
    for part in [
        "/dev/pts/0",
        "33 97",
        "<good day>",
        "interrupted",
        "the end",
    ] {
        assert!(done.out.contains(part), "{part} is not in {}", done.out);
    }
    let without = ["/bin/sh", "-c", "tty"];
    let refused = place
        .start(&fixture("busybox"), &["--tty"], &without)
        .wait();
    assert_one_line(&refused.failed(), &["--tty needs a terminal"]);
    place.assert_clean();
}

#[test]
fn kill_9_leaves_nothing() {
    let place = Place::new();
    let command = ["/bin/sh", "-c", "echo ready; sleep 600"];
    let mut started = place.start(&fixture("busybox"), &[], &command);
    let mut first = [0];
    let read = std::io::Read::read(started.0.stdout.as_mut().unwrap(), &mut first);
    assert_eq!(read.unwrap(), 1);
    started.signal(Signal::KILL);
    let _status = started.0.wait().unwrap();
    let mark = place.0.path().display().to_string();
    wait_for("its launcher and process end", 30, || {
        Leaks::of(&mark, place.0.path()).none().then_some(())
    });
}

#[test]
fn the_process_sees_nothing_of_the_host() {
    let place = Place::new();
    let out = place
        .shell(
            &[],
            "ls /sys/class/net; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'",
        )
        .ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "lo", "{out}");
    assert!(lines.last().unwrap().parse::<u32>().unwrap() < 8, "{out}");
    let out = place
        .shell(
            &[],
            "grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status",
        )
        .ok();
    let field = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    };
    let capabilities = u64::from_str_radix(&field("CapBnd"), 16).unwrap();
    // CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_MODULE, CAP_SYS_RAWIO
    for bit in [21, 12, 19, 16, 17] {
        assert_eq!(capabilities >> bit & 1, 0, "capability {bit}: {out}");
    }
    assert_eq!(
        (field("NoNewPrivs"), field("Seccomp")),
        ("1".to_owned(), "2".to_owned())
    );
    let refused = place.shell(&[], "mount -t tmpfs x /tmp; cat /proc/kcore | head -c 1 | wc -c; echo 1 >/proc/sys/kernel/panic; head -c 1 /dev/sda");
    assert!(refused.err.contains("mount:"), "{}", refused.err);
    assert_eq!(refused.out.trim(), "0");
    place.assert_clean();
}
