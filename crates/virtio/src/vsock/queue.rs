//! The rings: packets from the guest, packets for it, and events.

use vm_memory::GuestMemory;

use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::{DeviceError, Progress, Queue};

/// Packets for the guest.
pub(super) const RECEIVE: usize = 0;
/// Packets from the guest.
pub(super) const TRANSMIT: usize = 1;
/// Events for the guest.
pub(super) const EVENT: usize = 2;

/// The event that says that all connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// Hears the guest, a ring's worth at most, as long as it can be answered.
pub(super) fn hear<M: GuestMemory>(
    muxer: &mut Muxer,
    memory: &M,
    queue: &mut Queue,
) -> Result<Progress, DeviceError> {
    let broken = DeviceError::queue(TRANSMIT);
    let missing = |what| DeviceError::Request {
        queue: TRANSMIT,
        what,
    };
    let mut left = queue.ring().state().size;
    loop {
        while muxer.has_room() {
            let Some(mut chain) = queue.pop(memory).map_err(&broken)? else {
                break;
            };
            let mut bytes = [0; HEADER_BYTES];
            if chain.readable.read(&mut bytes) < HEADER_BYTES {
                return Err(missing("its header"));
            }
            let header = Header::parse(&bytes);
            if usize::try_from(header.bytes).unwrap_or(usize::MAX) > chain.readable.len() {
                return Err(missing("its data"));
            }
            muxer.hear(&header, |piece| chain.readable.read(piece));
            queue.push(memory, chain.head, 0).map_err(&broken)?;
            left -= 1;
            if left == 0 {
                return Ok(Progress::More);
            }
        }
        // Without room it is heard again when it takes its packets.
        if !muxer.has_room() || !queue.listen(memory).map_err(&broken)? {
            return Ok(Progress::Done);
        }
    }
}

/// Gives the guest its packets, a ring's worth at most, as long as it has
/// buffers.
pub(super) fn give<M: GuestMemory>(
    muxer: &mut Muxer,
    memory: &M,
    queue: &mut Queue,
) -> Result<Progress, DeviceError> {
    let broken = DeviceError::queue(RECEIVE);
    let mut left = queue.ring().state().size;
    while muxer.has_packet() {
        if left == 0 {
            return Ok(Progress::More);
        }
        let Some(mut chain) = queue.pop(memory).map_err(&broken)? else {
            if queue.listen(memory).map_err(&broken)? {
                continue;
            }
            break;
        };
        let Some(room) = chain.writable.len().checked_sub(HEADER_BYTES) else {
            return Err(DeviceError::Request {
                queue: RECEIVE,
                what: "a packet's header",
            });
        };
        let Some((header, data)) = muxer.next(room) else {
            queue.undo_pop();
            break;
        };
        let written = chain.writable.write(&header) + chain.writable.write(data);
        queue.push(memory, chain.head, written).map_err(&broken)?;
        left -= 1;
    }
    Ok(Progress::Done)
}

/// Tells the guest that its connections are gone. Tells whether it could be.
pub(super) fn tell_reset<M: GuestMemory>(
    memory: &M,
    queue: &mut Queue,
) -> Result<bool, DeviceError> {
    let broken = DeviceError::queue(EVENT);
    let Some(mut chain) = queue.pop(memory).map_err(&broken)? else {
        return Ok(false);
    };
    let written = chain.writable.write(&TRANSPORT_RESET.to_le_bytes());
    queue.push(memory, chain.head, written).map_err(&broken)?;
    Ok(true)
}
