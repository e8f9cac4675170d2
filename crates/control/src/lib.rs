//! The control plane: the admin API, what the user wants to run, and the
//! steps that lead there.
//!
//! It runs nothing and carries no request: it keeps desired state in the
//! store and tells it to the gateway and the fleet through the traits of
//! [`port`]. What it acknowledges is durable; a crash between two steps of a
//! deployment is repaired at the next start. No operation costs more with
//! more services.
//!
//! Entry points: [`Resolver::open`] (answers what an instance is made of) and
//! then [`Control::start`] (the rest, which needs the fleet that needs the
//! resolver).

mod access_keys;
mod cipher;
mod compose;
mod config;
mod control;
mod db;
mod deploy;
mod error;
mod events;
mod exec;
mod hold;
mod hooks;
mod http;
mod key;
mod lambda;
mod lent;
mod library;
mod limit;
mod manifest;
mod operations;
pub mod port;
mod projects;
mod publish;
mod record;
mod recover;
mod resolver;
mod schedules;
mod services;
mod tokens;
mod traffic;
mod vault;

pub use config::{Config, Role};
pub use control::Control;
pub use error::ControlError;
pub use http::openapi_json;
pub use lambda::{
    EventSettings, LambdaConfig, LambdaFront, LambdaStartError, ServiceSettings, URL_HOST,
    URL_PATH, UrlDoor,
};
pub use manifest::{Manifest, ManifestError};
pub use resolver::Resolver;
