//! Takes the figures that `docs/specification.md` promises, each beside its
//! peer in interleaved rounds, and counts what is left after many deployments.
//!
//! It does not test behaviour: crates/e2e does. Nothing depends on it.
//!
//! Invariants: a figure is met or missed only by samples of this run; what
//! could not be taken says why and counts as neither. Everything that is
//! started is ended by a guardian, however this process ends.
//!
//! Entry points: `skiff-bench run` (the groups of `BENCH=a,b`, all without it;
//! `BENCH_ROUNDS` scales the rounds, 1 is what the specification asks),
//! `skiff-bench lambda` (the same with the groups of functions),
//! `skiff-bench kvm SAMPLES` (the monitor's, by `scripts/bench-kvm.sh`),
//! `skiff-bench native MONITOR` (samples of it on this machine's KVM),
//! `skiff-bench machines PART ROUNDS` (samples of instances in virtual machines,
//! where these come up),
//! `skiff-bench soak` (`SOAK_ROUNDS`), and `skiff-bench upstream PORT`, the
//! application behind the proxies, which can be told to work for its answers.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool: printing is its output"
)]

mod api;
mod context;
mod figures;
mod kvm;
mod load;
mod machines;
mod native;
mod peers;
mod probe;
mod procfs;
mod report;
mod response;
mod sample_image;
mod signed;
mod soak;
mod stats;
mod time;
mod trace;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["run"] => figures::run(),
        ["lambda"] => figures::run_lambda(),
        ["kvm", samples] => kvm::run(std::path::Path::new(samples)),
        ["machines", part, rounds] => machines::run(part, rounds),
        ["native", monitor] => native::run(std::path::Path::new(monitor)),
        ["soak"] => soak::run(),
        ["upstream"] => upstream::run(None, 1, 0),
        ["upstream", port] => upstream::run(Some(port), 1, 0),
        ["upstream", port, threads, steps] => match (threads.parse(), steps.parse()) {
            (Ok(threads), Ok(steps)) => upstream::run(Some(port), threads, steps),
            _ => return usage(),
        },
        _ => return usage(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: skiff-bench run | lambda | kvm SAMPLES | native MONITOR | machines PART ROUNDS | soak | upstream [PORT [THREADS STEPS]]"
    );
    ExitCode::from(2)
}
