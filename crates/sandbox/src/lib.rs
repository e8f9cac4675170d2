//! What isolates an instance: one trait, and the classes behind it.

mod port;

pub use port::{Backend, CreateSpec, Created, LayerFile, Output, Sandbox, SandboxError};
