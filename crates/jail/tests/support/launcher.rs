//! A launcher of its own process, for this crate's tests.
//!
//! `skiff-jail-launcher SERVER RUN_DIR LOCK_DIR [--resume FD]`
//!
//! Inside a sandbox, `skiff-jail-launcher probe` makes system calls that must
//! be refused and says with which error numbers they were.

use std::process::ExitCode;

use skiff_jail::{LauncherOptions, launcher_main};

fn options() -> Option<LauncherOptions> {
    let mut args = std::env::args().skip(1);
    let server = args.next()?.parse().ok()?;
    let run_dir = args.next()?.into();
    let mut options = LauncherOptions::new(server, run_dir, 0);
    options.lock_dir = args.next()?.into();
    options.disk_dir = Some(options.run_dir.clone());
    options.network.lock_folder = options.lock_dir.join("net");
    if args.next().as_deref() == Some("--resume") {
        options.resume = Some(args.next()?.parse().ok()?);
    }
    Some(options)
}

/// Each call and the error number it gave; 0 if it was let through.
fn probe() -> Vec<(&'static str, i32)> {
    let calls: [(&str, libc::c_long, [libc::c_long; 4]); 12] = [
        ("mount", libc::SYS_mount, [0; 4]),
        ("unshare", libc::SYS_unshare, [0x1000_0000, 0, 0, 0]),
        ("clone", libc::SYS_clone, [0x1000_0011, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0; 4]),
        ("keyctl", libc::SYS_keyctl, [0; 4]),
        ("bpf", libc::SYS_bpf, [0; 4]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [16, 1, 0, 0]),
        ("setns", libc::SYS_setns, [0; 4]),
        ("vsock", libc::SYS_socket, [40, 1, 0, 0]),
        ("future", 900, [0; 4]),
        ("socket", libc::SYS_socket, [2, 1, 0, 0]),
    ];
    let answer = |number, args: [libc::c_long; 4]| {
        // SAFETY: every call is refused before it looks at its arguments, or
        // harmless with these.
        let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3]) };
        match result {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
            _ => 0,
        }
    };
    calls
        .into_iter()
        .map(|(name, number, args)| (name, answer(number, args)))
        .collect()
}

#[allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test's program"
)]
fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("probe") {
        for (name, errno) in probe() {
            println!("{name} {errno}");
        }
        return ExitCode::SUCCESS;
    }
    let Some(options) = options() else {
        eprintln!("SERVER RUN_DIR LOCK_DIR [--resume FD] are expected");
        return ExitCode::FAILURE;
    };
    match launcher_main(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", skiff_base::chain(&error));
            ExitCode::FAILURE
        }
    }
}
