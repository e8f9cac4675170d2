//! What all devices have in common (virtio 1.3, sections 2 and 3):
//!
//! ```text
//! reset ─▶ acknowledged ─▶ driver ─▶ features ok ─▶ driver ok ─▶ needs reset
//!   ▲                                                   │             │
//!   └───────────────────── status 0 ────────────────────┴─────────────┘
//! ```
//!
//! A transport translates its registers into calls of this.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemory;

use crate::state::check_version;
use crate::{Cause, CoreState, Device, DeviceError, Interrupt, Kind, Progress, Queue, StateError};

const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_INDEX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// A device with its queues, its driver's progress and its interrupt.
#[derive(Debug)]
pub struct Core<M> {
    device: Box<dyn Device<M>>,
    memory: Arc<M>,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Queue>,
    config: Vec<u8>,
    /// How often the configuration has changed.
    generation: u32,
    features: u64,
    status: u32,
    /// Why it needs a reset, until somebody asks.
    failure: Option<DeviceError>,
}

impl<M: GuestMemory> Core<M> {
    /// A device before its driver.
    #[must_use]
    pub fn new(device: Box<dyn Device<M>>, memory: Arc<M>, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            queues: device
                .queue_sizes()
                .iter()
                .copied()
                .map(Queue::new)
                .collect(),
            config: device.config(),
            generation: 0,
            device,
            memory,
            interrupt,
            features: 0,
            status: 0,
            failure: None,
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.device.kind()
    }

    /// The device itself.
    #[must_use]
    pub fn device(&self) -> &dyn Device<M> {
        self.device.as_ref()
    }

    /// All features that it offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_INDEX
    }

    /// The device's configuration.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// Which configuration it is: a driver that sees two while it reads reads
    /// again (virtio 1.3, section 2.5).
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Takes the device's configuration anew, and tells the driver.
    pub fn refresh(&mut self) {
        self.config = self.device.config();
        self.generation = self.generation.wrapping_add(1);
        if self.is_active() {
            self.interrupt.signal(Cause::Config);
        }
    }

    /// The driver's progress.
    #[must_use]
    pub const fn status(&self) -> u32 {
        self.status
    }

    /// Whether its queues are worked on.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & (NEEDS_RESET | FAILED) == 0
    }

    /// How many queues it has.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// A queue.
    #[must_use]
    pub fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    /// Why the device needs a reset, once.
    pub fn take_failure(&mut self) -> Option<DeviceError> {
        self.failure.take()
    }

    /// Takes 32 of the driver's features. What was not offered is kept out
    /// when the driver says that it is through.
    pub fn set_features(&mut self, page: u32, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK) != 0 {
            return;
        }
        let value = u64::from(value);
        match page {
            0 => self.features = (self.features & !0xffff_ffff) | value,
            1 => self.features = (self.features & 0xffff_ffff) | (value << 32),
            _ => {}
        }
    }

    /// Changes a queue, as long as the driver may.
    pub(crate) fn change_queue(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut virtio_queue::Queue),
    ) {
        if self.status & FEATURES_OK == 0 || self.status & (DRIVER_OK | FAILED) != 0 {
            return;
        }
        if let Some(queue) = self.queues.get_mut(index) {
            change(queue.ring_mut());
        }
    }

    /// The driver's next step, or its reset.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // A driver only adds bits, but for the one that is ours to set.
        let value = value & !NEEDS_RESET;
        let known = self.status & !NEEDS_RESET;
        if value & known != known {
            return;
        }
        let added = value & !known;
        if added & FEATURES_OK != 0 && !self.features_agree() {
            return;
        }
        if added & DRIVER_OK != 0 && value & FEATURES_OK == 0 {
            return;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn features_agree(&self) -> bool {
        self.features & !self.offered() == 0 && self.features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_index = self.features & EVENT_INDEX != 0;
        let mut valid = true;
        for queue in &mut self.queues {
            queue.ring_mut().set_event_idx(event_index);
            valid &= !queue.is_ready() || queue.is_valid(self.memory.as_ref());
        }
        if valid {
            self.device.activate(self.features);
        } else {
            self.need_reset();
        }
    }

    fn reset(&mut self) {
        for queue in &mut self.queues {
            queue.reset();
        }
        self.device.reset();
        self.features = 0;
        self.status = 0;
        self.failure = None;
    }

    /// The driver rang a queue's doorbell.
    pub fn notify(&mut self, index: usize) -> Progress {
        if !self.is_active() || index >= self.queues.len() {
            return Progress::Done;
        }
        let worked = self.device.process(&self.memory, &mut self.queues, index);
        self.finish(worked)
    }

    /// The host has something for the device.
    pub fn host_ready(&mut self) -> Progress {
        if !self.is_active() {
            return Progress::Done;
        }
        let worked = self.device.host_ready(&self.memory, &mut self.queues);
        self.finish(worked)
    }

    fn finish(&mut self, worked: Result<Progress, DeviceError>) -> Progress {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            match queue.must_signal(self.memory.as_ref()) {
                Ok(true) => self.interrupt.signal(Cause::Queue(index)),
                Ok(false) => {}
                Err(source) => {
                    self.fail(DeviceError::Queue {
                        queue: index,
                        source,
                    });
                    return Progress::Done;
                }
            }
        }
        match worked {
            Ok(progress) => progress,
            Err(error) => {
                self.fail(error);
                Progress::Done
            }
        }
    }

    fn fail(&mut self, error: DeviceError) {
        self.failure = Some(error);
        self.need_reset();
    }

    fn need_reset(&mut self) {
        self.status |= NEEDS_RESET;
        self.interrupt.signal(Cause::Config);
    }

    /// All that it holds, but what a transport does.
    #[must_use]
    pub fn state(&self) -> CoreState {
        CoreState {
            version: CoreState::VERSION,
            status: self.status,
            features: self.features,
            queues: self.queues.iter().map(Queue::state).collect(),
            device: self.device.state(),
        }
    }

    /// Takes a saved state in a device of the same kind and configuration.
    ///
    /// # Errors
    /// When it is not this device's, or no queue can be so.
    pub fn restore(&mut self, state: &CoreState) -> Result<(), StateError> {
        check_version("device", state.version, CoreState::VERSION)?;
        if state.queues.len() != self.queues.len() {
            return Err(StateError::Queues {
                saved: state.queues.len(),
                device: self.queues.len(),
            });
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (saved, own)) in state.queues.iter().zip(&self.queues).enumerate() {
            let wrong = |reason: String| StateError::Queue { index, reason };
            if saved.max_size != own.ring().max_size() {
                return Err(wrong("another largest size".into()));
            }
            let queue = Queue::restore(*saved).map_err(|error| wrong(error.to_string()))?;
            if queue.is_ready() && !queue.is_valid(self.memory.as_ref()) {
                return Err(wrong("rings outside of memory".into()));
            }
            queues.push(queue);
        }
        self.device.restore(&state.device)?;
        self.queues = queues;
        self.status = state.status;
        self.features = state.features;
        if self.is_active() {
            self.device.activate(self.features);
        }
        Ok(())
    }
}
