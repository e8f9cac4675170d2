//! The server's configuration: one TOML file, then the environment, then
//! flags, the later winning.
//!
//! No setting is required. A mistake is told with its file, key and line, or
//! with the variable or flag it came from. `docs/configuration.md` lists every
//! key; a test holds that list against [`Config`].

mod layers;
mod model;

pub use layers::{ConfigError, Source, load};
pub use model::{
    Api, Config, Gateway, Images, IpNet, Lambda, Log, LogFormat, Meter, Network, Prices, Role, S3,
    Secrets, Worker,
};
