//! One sandbox.
//!
//! ```text
//!  Starting ──Started──▶ Running ──the application ends──▶ Ended
//!     │ Failed, deadline    │                                │
//!     ▼                     └────────────Destroy─────────────┤
//!  Failed ──────────────────────────────────────────────▶ nothing left
//! ```

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use skiff_net::{Network, NetworkState};
use skiff_types::Digest;
use skiff_wire::launcher::{Exit, Refusal, Stats};

use super::client::ReplyTo;
use crate::handle::Handle;

/// A sandbox from its request to its removal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub(super) work: Work,
    /// Until everything in it is dead and its cgroups are removed.
    pub(super) seat: Option<u64>,
    pub(super) state: State,
    pub(super) label: Vec<u8>,
    pub(super) layers: Vec<Digest>,
    #[serde(with = "saved_network")]
    pub(super) network: Option<Network>,
    /// The application, once it runs.
    pub(super) app: Option<Handle>,
    /// A function's extensions, and what lets its process go on that is held
    /// for them.
    pub(super) extensions: Vec<String>,
    pub(super) gate: Option<Handle>,
    /// The connection that a function with extensions ends with.
    pub(super) keeper: Option<u64>,
    /// wait(2)'s status, once it is known.
    pub(super) status: Option<i32>,
    pub(super) outputs: Outputs,
    /// stdin's write end, until the client that asked for it has it.
    pub(super) input: Option<Handle>,
    pub(super) frozen: bool,
    pub(super) freeze_waiter: Option<(ReplyTo, u64)>,
    pub(super) destroy_waiters: Vec<ReplyTo>,
    /// When waiting for a destruction is given up, nanoseconds.
    pub(super) destroy_deadline: u64,
    /// The last reading of its cgroups.
    pub(super) last: Stats,
}

/// What a sandbox's first process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Work {
    /// The init of a container, which reports its application.
    Init,
    /// The monitor of a virtual machine.
    Monitor,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum State {
    Starting {
        reply: ReplyTo,
        deadline: u64,
        steps_us: Vec<(String, u32)>,
    },
    /// Its creation has failed; told once nothing is left.
    Failed {
        reply: ReplyTo,
        refusal: Refusal,
    },
    Running,
    Ended(Exit),
}

/// What the launcher holds of a sandbox's output.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outputs {
    /// stdout's and stderr's read ends, or a terminal's controlling side.
    pub(super) readers: Vec<Handle>,
    /// The write ends, so that no signal hits an application while no server
    /// reads. Closed once everything in the sandbox is dead.
    pub(super) writers: Vec<Handle>,
}

impl Outputs {
    /// Copies of the read ends, for a client.
    pub(super) fn copies(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.readers
            .iter()
            .map(|reader| reader.as_fd().try_clone_to_owned())
            .collect()
    }
}

impl Sandbox {
    /// One whose process is on its way, with nothing but that.
    pub(super) fn starting(work: Work, seat: u64, state: State, label: Vec<u8>) -> Self {
        Self {
            work,
            seat: Some(seat),
            state,
            label,
            layers: Vec::new(),
            network: None,
            app: None,
            extensions: Vec::new(),
            gate: None,
            keeper: None,
            status: None,
            outputs: Outputs::default(),
            input: None,
            frozen: false,
            freeze_waiter: None,
            destroy_waiters: Vec::new(),
            destroy_deadline: 0,
            last: Stats::default(),
        }
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match &self.state {
            State::Ended(exit) => Some(*exit),
            _ => None,
        }
    }
}

mod saved_network {
    use serde::{Deserializer, Serializer};

    use super::{Deserialize, Handle, Network, NetworkState, Serialize};

    pub(super) fn serialize<S: Serializer>(
        network: &Option<Network>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let saved = match network {
            None => None,
            Some(network) => {
                let number = crate::handle::save(network).map_err(serde::ser::Error::custom)?;
                Some((network.state(), number))
            }
        };
        saved.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Network>, D::Error> {
        let saved = Option::<(NetworkState, Handle)>::deserialize(deserializer)?;
        Ok(saved.map(|(state, handle)| Network::from_parts(state, handle.into())))
    }
}
