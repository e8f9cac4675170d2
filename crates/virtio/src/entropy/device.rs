use vm_memory::GuestMemory;

use super::queue;
use super::state::EntropyState;
use crate::state::check_version;
use crate::{Device, DeviceError, DeviceState, Kind, Progress, Queue, StateError};

const QUEUES: [u16; 1] = [256];

/// The device. It holds nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Entropy;

impl<M: GuestMemory> Device<M> for Entropy {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) {}

    fn process(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Progress, DeviceError> {
        match queues.get_mut(index) {
            Some(queue) => queue::process(memory, queue, index),
            None => Ok(Progress::Done),
        }
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::Entropy(EntropyState {
            version: EntropyState::VERSION,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Entropy(state) => {
                check_version("entropy source", state.version, EntropyState::VERSION)
            }
            _ => Err(StateError::Kind("entropy source")),
        }
    }
}
