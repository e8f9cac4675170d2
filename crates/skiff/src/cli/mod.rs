//! The commands that talk to a server, and how their answers look.

pub mod admin;
pub mod args;
pub mod client;
pub mod doctor;
pub mod exec;
pub mod functions;
mod hooks;
pub mod images;
pub mod kernels;
pub mod observe;
pub mod output;
pub mod run;
pub mod schedules;
pub mod services;
pub mod terminal;

use args::{Cli, Command};
use client::Client;

/// Does what was typed; answers the exit code.
///
/// # Errors
/// Whatever went wrong, for the user, with its causes.
pub async fn execute(cli: Cli) -> anyhow::Result<u8> {
    let Cli { global, command } = cli;
    let client = Client::new(&global)?;
    let scope = Scope {
        client,
        project: global.project.to_string(),
        output: global.output,
    };
    if let Command::Exec(args) = command {
        return exec::exec(&scope, args).await;
    }
    obey(&scope, command).await.map(|()| 0)
}

async fn obey(scope: &Scope, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Deploy(args) => services::deploy(scope, *args).await,
        Command::Apply(args) => services::apply(scope, &args.file).await,
        Command::Ls => services::list(scope).await,
        Command::Describe(args) => services::describe(scope, &args.name).await,
        Command::Traffic(args) => services::traffic(scope, args).await,
        Command::Rollback(args) => services::rollback(scope, args).await,
        Command::Scale(args) => services::scale(scope, args).await,
        Command::Rm(args) => services::remove(scope, &args.name).await,
        Command::Logs(args) => observe::logs(scope, args).await,
        Command::Invoke(args) => functions::invoke(scope, args).await,
        Command::Trace(args) => observe::trace(scope, args).await,
        Command::Usage(args) => observe::usage(scope, args).await,
        Command::Image(command) => images::execute(scope, command).await,
        Command::Project(command) => admin::project(scope, command).await,
        Command::Secret(command) => admin::secret(scope, command).await,
        Command::Key(command) => admin::key(scope, command).await,
        Command::Schedule(command) => schedules::schedule(scope, command).await,
        Command::Hook(command) => hooks::hook(scope, command).await,
        Command::Token(command) => admin::token(scope, command).await,
        Command::Doctor(_)
        | Command::Exec(_)
        | Command::Kernel(_)
        | Command::Run(_)
        | Command::Server(_)
        | Command::Launcher(_) => {
            anyhow::bail!("this command is not for a server")
        }
    }
}

/// What every command of a server needs.
#[derive(Debug)]
pub struct Scope {
    pub client: Client,
    pub project: String,
    pub output: args::Output,
}

impl Scope {
    /// The path of something in the project.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/projects/{}/{rest}", self.project)
    }
}

/// A segment of a path, percent-encoded (RFC 3986 § 2.1).
pub fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}
