//! The one binary: the CLI, the server and its launcher.

mod cli;
mod server;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use cli::args::{Cli, Command};
use cli::output;

#[global_allocator]
static ALLOCATOR: skiff_memory::Allocator = skiff_memory::Allocator;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // One line with its causes.
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            output::note(format!("skiff: {}", causes.join(": ")));
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<u8> {
    match cli.command {
        Command::Server(args) => server::run(&args).map(|()| 0),
        // Neither may have a second thread before it is done with root.
        Command::Launcher(args) => server::launcher::main(&args).map(|()| 0),
        Command::Run(args) => {
            let prepared = cli::run::prepare(args)?;
            runtime()?.block_on(prepared.execute())
        }
        Command::Kernel(command) => cli::kernels::execute(command, cli.global.output).map(|()| 0),
        Command::Doctor(args) => cli::doctor::execute(&args, cli.global.output).map(|()| 0),
        _ => runtime()?.block_on(cli::execute(cli)),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be made")
}
