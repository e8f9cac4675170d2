use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use vm_memory::GuestMemory;

use super::counters::Counters;
use super::link::{Link, Offloads};
use super::queue::{RECEIVE, Receiver, TRANSMIT, Transmitter};
use super::state::NetState;
use crate::{Device, DeviceError, DeviceState, Kind, Progress, Queue, StateError, Throttle};

const QUEUES: [u16; 2] = [256; 2];
const EVENTS: usize = 4;

/// Who has something for the device.
const LINK: u64 = 0;
const RECEIVE_ALARM: u64 = 1;
const TRANSMIT_ALARM: u64 = 2;

/// What an interface is.
#[derive(Debug, Default)]
pub struct Settings {
    /// Its address; without, the guest makes one up.
    pub mac: Option<[u8; 6]>,
    /// The largest packet that the host takes; without, the guest's default.
    pub mtu: Option<u16>,
    /// What the guest may receive.
    pub receive: Option<Throttle>,
    /// What the guest may send.
    pub transmit: Option<Throttle>,
}

/// The device.
#[derive(Debug)]
pub struct Net {
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    link: Box<dyn Link>,
    /// Everything that wakes the device.
    epoll: OwnedFd,
    receiver: Receiver,
    transmitter: Transmitter,
    counters: Arc<Counters>,
}

impl Net {
    /// An interface at this link.
    ///
    /// # Errors
    /// When the system has no descriptor to give.
    pub fn new(link: Box<dyn Link>, settings: Settings) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let watch = |source: BorrowedFd<'_>, who, flags| {
            epoll::add(&epoll, source, EventData::new_u64(who), flags)
        };
        if let Some(source) = link.source() {
            // Each change once: packets that the guest has no buffers for
            // keep nobody awake.
            watch(source, LINK, EventFlags::IN | EventFlags::ET)?;
        }
        for (throttle, who) in [
            (&settings.receive, RECEIVE_ALARM),
            (&settings.transmit, TRANSMIT_ALARM),
        ] {
            if let Some(throttle) = throttle {
                watch(throttle.alarm(), who, EventFlags::IN)?;
            }
        }
        Ok(Self {
            mac: settings.mac,
            mtu: settings.mtu,
            link,
            epoll,
            receiver: Receiver::new(settings.receive),
            transmitter: Transmitter::new(settings.transmit),
            counters: Arc::default(),
        })
    }

    /// What it carries, while it does.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn receive<M: GuestMemory>(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
    ) -> Result<Progress, DeviceError> {
        match queues.get_mut(RECEIVE) {
            Some(queue) => {
                let counters = &self.counters.received;
                self.receiver
                    .work(self.link.as_mut(), counters, memory, queue)
            }
            None => Ok(Progress::Done),
        }
    }

    fn transmit<M: GuestMemory>(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
    ) -> Result<Progress, DeviceError> {
        match queues.get_mut(TRANSMIT) {
            Some(queue) => {
                let counters = &self.counters.sent;
                let transmitter = &mut self.transmitter;
                transmitter.work(self.link.as_mut(), counters, memory, queue)
            }
            None => Ok(Progress::Done),
        }
    }

    /// Hears who has something for it.
    fn hear(&mut self) {
        let mut events = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS];
        let none = rustix::time::Timespec::default();
        let count = epoll::wait(&self.epoll, &mut events[..], Some(&none)).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data.u64() {
                LINK => self.receiver.may_receive(),
                RECEIVE_ALARM => self.receiver.alarm_rang(),
                TRANSMIT_ALARM => self.transmitter.alarm_rang(),
                _ => {}
            }
        }
    }

    fn saved(&self) -> NetState {
        NetState {
            version: NetState::VERSION,
            mac: self.mac,
            mtu: self.mtu,
        }
    }
}

impl<M: GuestMemory> Device<M> for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let Offloads {
            checksum,
            tcp4,
            tcp6,
            udp,
        } = self.link.offloads();
        let offered = [
            (true, VIRTIO_NET_F_MRG_RXBUF),
            (self.mac.is_some(), VIRTIO_NET_F_MAC),
            (self.mtu.is_some(), VIRTIO_NET_F_MTU),
            (checksum, VIRTIO_NET_F_CSUM),
            (checksum, VIRTIO_NET_F_GUEST_CSUM),
            (tcp4, VIRTIO_NET_F_HOST_TSO4),
            (tcp4, VIRTIO_NET_F_GUEST_TSO4),
            (tcp6, VIRTIO_NET_F_HOST_TSO6),
            (tcp6, VIRTIO_NET_F_GUEST_TSO6),
            (udp, VIRTIO_NET_F_HOST_UFO),
            (udp, VIRTIO_NET_F_GUEST_UFO),
        ];
        let bits = offered.iter().filter(|(is_offered, _)| *is_offered);
        bits.fold(0, |all, (_, bit)| all | (1 << bit))
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        let status = 0_u16;
        let queue_pairs = 1_u16;
        [
            &self.mac.unwrap_or_default()[..],
            &status.to_le_bytes(),
            &queue_pairs.to_le_bytes(),
            &self.mtu.unwrap_or_default().to_le_bytes(),
        ]
        .concat()
    }

    fn activate(&mut self, features: u64) {
        let took = |bit: u32| features & (1 << bit) != 0;
        let offloads = Offloads {
            checksum: took(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: took(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: took(VIRTIO_NET_F_GUEST_TSO6),
            udp: took(VIRTIO_NET_F_GUEST_UFO),
        };
        // What it gave before, or none, is what any driver takes or drops.
        self.link.set_offloads(offloads).unwrap_or_default();
        self.receiver.start(took(VIRTIO_NET_F_MRG_RXBUF));
    }

    fn process(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Progress, DeviceError> {
        match index {
            RECEIVE => self.receive(memory, queues),
            _ => self.transmit(memory, queues),
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn host_ready(&mut self, memory: &M, queues: &mut [Queue]) -> Result<Progress, DeviceError> {
        self.hear();
        let received = self.receive(memory, queues)?;
        let sent = self.transmit(memory, queues)?;
        if received == Progress::More || sent == Progress::More {
            return Ok(Progress::More);
        }
        Ok(Progress::Done)
    }

    fn reset(&mut self) {
        self.receiver.clear();
    }

    fn state(&self) -> DeviceState {
        DeviceState::Net(self.saved())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Net(state) = state else {
            return Err(StateError::Kind("network interface"));
        };
        state.check(&self.saved())
    }
}
