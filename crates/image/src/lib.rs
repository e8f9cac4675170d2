//! Brings OCI and Docker images into a content store: from registries, from
//! OCI layouts and from `docker save`, each layer as one EROFS file.
//!
//! It mounts nothing, runs nothing and keeps no image in memory; it does not
//! push, build or run credential helpers. A layer's tar is never unpacked: it
//! streams through decompression and both digests into `skiff-erofs`.
//!
//! Invariants:
//! - What the store shows is whole, durable and proved by its digest. A crash
//!   at any instant leaves nothing half; what it leaves over is swept.
//! - The folder is the truth: several processes use it at once, by flock(2).
//! - No bytes of a registry or an archive make this crate panic or allocate
//!   beyond `limits`; every wait has a deadline.
//! - Plain HTTP is spoken with configured hosts only, and credentials go to
//!   the registry and its token service only.
//!
//! Entry points: [`ImageStore`] with `pull`, `import`, `resolve`, `prune`;
//! `add_code`, `compose`; [`Reference`]; [`docker_credentials`].

mod auth;
mod code;
mod commit;
mod config;
mod document;
mod error;
mod import;
mod layer;
pub mod limits;
mod platform;
mod progress;
mod pull;
mod record;
mod reference;
mod registry;
mod store;
mod user;

pub use auth::{CredentialsError, docker_credentials, docker_credentials_in};
pub use code::{CodeError, CodeRoot, Composition, EntryProblem, StoredCode};
pub use config::ImageConfig;
pub use document::DocumentError;
pub use error::{ImageError, LayerError};
pub use import::{ImportOptions, ImportSource};
pub use platform::{ParsePlatformError, Platform};
pub use progress::{NoProgress, Progress};
pub use pull::PullOptions;
pub use record::ImageRecord;
pub use reference::{ParseReferenceError, Reference};
pub use registry::RegistryError;
pub use store::{Collect, ImageStore, Pruned};
pub use user::User;
