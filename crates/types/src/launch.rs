//! Everything a worker needs to start one instance of a revision, with every
//! name looked up: images to layers, users to numbers, secrets to values.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{CpuMode, Digest, FunctionSpec, IsolationRequest, Probe, Resources, RevisionId};

/// One instance's making, resolved. Its `Debug` never shows the environment:
/// it holds secrets.
#[derive(Clone)]
pub struct Launch {
    /// Of what.
    pub revision: RevisionId,
    /// What the user asked to isolate it.
    pub isolation: IsolationRequest,
    /// Each layer's diff id and EROFS file, lowest first.
    pub layers: Vec<(Digest, PathBuf)>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, `PORT`, `K_SERVICE` and the like included.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// In the sandbox.
    pub uid: u32,
    /// In the sandbox.
    pub gid: u32,
    /// In the sandbox.
    pub additional_gids: Vec<u32>,
    /// signal(7) number that asks it to stop.
    pub stop_signal: i32,
    /// Where it listens.
    pub port: u16,
    /// When it is ready.
    pub probe: Probe,
    /// What it gets.
    pub resources: Resources,
    /// Whether it reaches the public internet.
    pub egress: bool,
    /// Its requests are events for its runtime.
    pub function: Option<FunctionLaunch>,
}

/// What whoever serves a function's runtime must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionLaunch {
    /// What the runtime is told.
    pub spec: FunctionSpec,
    /// An invocation's whole time, seconds.
    pub timeout_s: u32,
    /// Of an instance, MiB.
    pub memory_mib: u32,
    /// Why it is started.
    #[serde(default)]
    pub cause: StartCause,
}

/// Why an instance is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartCause {
    /// Requests wait, or are about to come.
    #[default]
    Demand,
    /// It is of those that are there whatever the demand: no request waits
    /// for it.
    Floor,
    /// The one that an event waited for did not come up: this one's start is
    /// part of the event's own time, and its failure is the event's answer.
    Again,
}

impl FunctionLaunch {
    /// AWS's word for why it is initialized.
    #[must_use]
    pub const fn initialization_type(&self) -> &'static str {
        match self.cause {
            StartCause::Floor => "provisioned-concurrency",
            StartCause::Demand | StartCause::Again => "on-demand",
        }
    }

    /// AWS's word for whose time its start is part of.
    #[must_use]
    pub const fn initialization_phase(&self) -> &'static str {
        match self.cause {
            StartCause::Again => "invoke",
            StartCause::Demand | StartCause::Floor => "init",
        }
    }
}

impl Launch {
    /// Whether an idle instance is paused.
    #[must_use]
    pub fn pauses(&self) -> bool {
        self.resources.cpu_mode == CpuMode::Request
    }
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}
