//! A launcher of its own process, for tests of confined monitors.
//!
//! `skiff-vmm-launcher SERVER RUN_DIR LOCK_DIR MONITOR [IPV6_POOL]`

use std::process::ExitCode;

use skiff_jail::{LauncherOptions, launcher_main};

fn options() -> Option<LauncherOptions> {
    let mut args = std::env::args().skip(1);
    let server = args.next()?.parse().ok()?;
    let run_dir = args.next()?.into();
    let mut options = LauncherOptions::new(server, run_dir, 0);
    options.lock_dir = args.next()?.into();
    options.network.lock_folder = options.lock_dir.join("net");
    // On a disk wherever temporary files are in memory, which would be the
    // machine's.
    options.disk_dir = Some("/var/tmp".into());
    options.monitor = Some(args.next()?.into());
    options.network.ipv6_pool = args.next().map(|pool| pool.parse()).transpose().ok()?;
    Some(options)
}

#[allow(clippy::print_stderr, reason = "a test's program")]
fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("SERVER RUN_DIR LOCK_DIR MONITOR [IPV6_POOL] are expected");
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
