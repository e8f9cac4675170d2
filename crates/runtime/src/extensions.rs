//! External extensions: the files of `/opt/extensions`, each a process of its
//! own beside the runtime.
//!
//! ```text
//!  held runtime ─▶ every extension starts ─▶ each registers ─▶ the runtime begins
//!                      │ cannot                  │ ends            │ one ends
//!                      ▼                         ▼                 ▼
//!             Extension.LaunchError       Extension.Crash   Extension.Crash
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all, try_join_all};
use skiff_base::chain;
use skiff_sandbox::{ExecRequest, Executed, SandboxError};
use skiff_wire::agent::ExecExit;
use skiff_wire::launcher::{EXTENSIONS, ProcessSpec};
use tokio::time::timeout;

use crate::bridge::{Bridge, SIGKILL};
use crate::words;

/// How long an extension's last words are waited for.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
/// How long an instance's own end may come after that of an extension which
/// has ended with it.
const END_WAIT: Duration = Duration::from_secs(3);

/// What AWS tells a runtime and not an extension, beside all that begins with
/// `_`.
const WITHHELD: [&str; 7] = [
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_XRAY_CONTEXT_MISSING",
    "AWS_XRAY_DAEMON_ADDRESS",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// Starts them, lets the runtime go on once they have registered, and watches
/// them to their ends.
pub(crate) async fn serve(bridge: Arc<Bridge>, names: Vec<String>, runtime: ProcessSpec) {
    bridge.expect(&names);
    let environment = environment(runtime.env);
    let runtime = ProcessSpec {
        env: environment,
        ..runtime
    };
    let starts = names.into_iter().map(|name| start(&bridge, name, &runtime));
    let started = match try_join_all(starts).await {
        Ok(started) => started,
        Err((name, error)) => {
            let how = chain(&error).to_string();
            return bridge
                .extension_ended(&name, "Extension.LaunchError", how)
                .await;
        }
    };
    // It has secrets.
    drop(runtime);
    let watched = started.into_iter().map(|one| watch(&bridge, one));
    join(begin(&bridge), join_all(watched)).await;
}

/// The runtime's.
fn environment(env: Vec<String>) -> Vec<String> {
    let is_told = |entry: &String| {
        let name = entry.split_once('=').map_or(&**entry, |(name, _)| name);
        !name.starts_with('_') && !WITHHELD.contains(&name)
    };
    env.into_iter().filter(is_told).collect()
}

async fn start(
    bridge: &Bridge,
    name: String,
    runtime: &ProcessSpec,
) -> Result<(String, Executed), (String, SandboxError)> {
    let process = ProcessSpec {
        args: vec![format!("{EXTENSIONS}/{name}")],
        cwd: "/".to_owned(),
        ..runtime.clone()
    };
    let request = ExecRequest {
        process,
        terminal: None,
    };
    match bridge.sandbox.exec(request).await {
        Ok(started) => Ok((name, started)),
        Err(error) => Err((name, error)),
    }
}

async fn begin(bridge: &Bridge) {
    bridge.has_all_extensions().await;
    if let Err(error) = bridge.sandbox.begin().await {
        // One that has ended meanwhile cannot; any other does not go on.
        tracing::warn!(instance = %bridge.sandbox.id(), error = %chain(&error), "a runtime did not begin");
        bridge.kill().await;
    }
}

async fn watch(bridge: &Bridge, (name, started): (String, Executed)) {
    let Executed {
        process,
        input,
        output,
        errors,
    } = started;
    // There is nothing to read.
    drop(input);
    let mut carried = pin!(bridge.journal.carry(output, errors));
    let exit = tokio::select! {
        exit = process.exited() => {
            // What it has started may hold them open beyond its end.
            let _late = timeout(LAST_WORDS_WAIT, &mut carried).await;
            exit
        }
        () = &mut carried => process.exited().await,
    };
    // All processes of an instance are killed by its end, which is not theirs
    // to tell.
    let is_killed = exit.code.is_none() && exit.signal.is_none_or(|signal| signal == SIGKILL);
    if is_killed && timeout(END_WAIT, bridge.sandbox.exited()).await.is_ok() {
        return;
    }
    let how = how(exit);
    bridge.extension_ended(&name, "Extension.Crash", how).await;
}

/// AWS's words.
fn how(exit: ExecExit) -> String {
    if exit.code == Some(0) {
        return "exit code 0".to_owned();
    }
    words::ended(exit.code, exit.signal).unwrap_or_else(|| "it was lost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_is_not_told_what_is_the_runtime_s() {
        let env = [
            "PATH=/bin",
            "_HANDLER=app.handler",
            "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001",
            "AWS_LAMBDA_LOG_STREAM_NAME=a=b",
            "AWS_ACCESS_KEY_ID=id",
            "MINE=_HANDLER=1",
        ];
        let told = environment(env.map(str::to_owned).into());
        let expected = [
            "PATH=/bin",
            "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001",
            "AWS_ACCESS_KEY_ID=id",
            "MINE=_HANDLER=1",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn ends_are_told_in_awss_words() {
        let exit = |code, signal| how(ExecExit { code, signal });
        assert_eq!(exit(Some(0), None), "exit code 0");
        assert_eq!(exit(Some(3), None), "exit status 3");
        assert_eq!(exit(None, Some(11)), "signal: segmentation fault");
    }
}
