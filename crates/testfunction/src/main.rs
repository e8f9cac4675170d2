//! A function on AWS's Rust runtime that answers what its event asks for.

use std::time::Duration;

use lambda_runtime::{Context, Diagnostic, Error, LambdaEvent, service_fn};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_runtime::run(service_fn(handler)).await
}

async fn handler(event: LambdaEvent<Value>) -> Result<Value, Diagnostic> {
    let (event, context) = event.into_parts();
    if event == "context" {
        return Ok(told(&context));
    }
    if let Some(words) = event["say"].as_str() {
        say(words);
    }
    if let Some(why) = event["raise"].as_str() {
        return Err(Diagnostic {
            error_type: "Broken".to_owned(),
            error_message: why.to_owned(),
        });
    }
    if let Some(code) = event["exit"].as_i64() {
        std::process::exit(i32::try_from(code).unwrap_or(1));
    }
    if let Some(name) = event["env"].as_str() {
        return Ok(json!(std::env::var(name).ok()));
    }
    if let Some(seconds) = event["sleep"].as_u64() {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    if let Some(micros) = event["sleep_us"].as_u64() {
        // The runtime's own timer counts in milliseconds.
        std::thread::sleep(Duration::from_micros(micros));
    }
    Ok(event)
}

#[allow(clippy::print_stdout, reason = "its log is its output")]
fn say(words: &str) {
    println!("{words}");
}

fn told(context: &Context) -> Value {
    let own = &context.env_config;
    // A time that lies ahead has not elapsed: by how much is in the error.
    let remaining = context
        .deadline()
        .elapsed()
        .map_err(|ahead| ahead.duration());
    json!({
        "name": own.function_name,
        "version": own.version,
        "arn": context.invoked_function_arn,
        "memory": own.memory,
        "request": context.request_id,
        "group": own.log_group,
        "stream": own.log_stream,
        "remaining": remaining.err().map(|left| left.as_millis()),
        "custom": context.client_context.as_ref().map(|client| &client.custom),
    })
}
