//! What outlives the program: an upgrade saves it and takes it up again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skiff_net::NetworksState;
use skiff_types::{InstanceId, ServerId};
use skiff_wire::launcher::PoolConfig;

use super::client::{Client, ReplyTo};
use super::exec::Exec;
use super::sandbox::Sandbox;
use super::seat::Seat;
use crate::handle::Handle;
use crate::ids::Ranges;
use crate::layers::Layers;

/// Everything that a launcher is, but for what can be made anew.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) server: ServerId,
    pub(super) lock: Handle,
    pub(super) listener: Handle,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) sandboxes: BTreeMap<InstanceId, Sandbox>,
    pub(super) seats: BTreeMap<u64, Seat>,
    pub(super) execs: BTreeMap<u64, Exec>,
    pub(super) layers: Layers,
    pub(super) ranges: Ranges,
    pub(super) pool: PoolConfig,
    /// How many monitors wait for their machines.
    pub(super) warm: u32,
    /// The number of the next client or seat.
    pub(super) next: u64,
    /// Who waits for the launcher's end.
    pub(super) shutting_down: bool,
    pub(super) shutdown_waiters: Vec<ReplyTo>,
}

/// What one program hands to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) kept: Kept,
    pub(super) networks: NetworksState,
    pub(super) network_fds: Vec<Handle>,
    /// Whom to tell that the upgrade is done.
    pub(super) upgraded: ReplyTo,
}

impl Kept {
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn is_destroying(&self) -> bool {
        self.shutting_down
            || self
                .sandboxes
                .values()
                .any(|sandbox| !sandbox.destroy_waiters.is_empty())
    }
}
