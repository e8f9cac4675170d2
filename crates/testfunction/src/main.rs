//! A function on AWS's Rust runtime: answers its event; `{"fail": WHY}` with
//! an error.

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_runtime::run(service_fn(handler)).await
}

async fn handler(event: LambdaEvent<Value>) -> Result<Value, Error> {
    match event.payload["fail"].as_str() {
        Some(why) => Err(why.into()),
        None => Ok(event.payload),
    }
}
