//! What whoever started a monitor asks of it, and what the monitor answers.
//!
//! The host sends [`Envelope`]s over the monitor's control socket, the monitor
//! an [`Answer`] to each, in order. The first request of a connection is
//! [`Request::Hello`].

use serde::{Deserialize, Serialize};

/// The version of these messages: a [`Request::Hello`] of another is refused.
pub const VERSION: u32 = 1;
/// Bytes of one frame in either direction: a monitor takes no longer ones.
pub const FRAME_BYTES_MAX: usize = 16 << 10;
/// Bytes of a refusal's message.
pub const MESSAGE_BYTES_MAX: usize = 1 << 10;

/// What a monitor that waits for its machine is told, once, over the socket at
/// which it waits [the folder that becomes its root, the configuration, the
/// files that this names]. The files take the numbers from 3 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The machine's name, for messages.
    pub id: String,
}

/// One request with the number that its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Chosen by the host.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the monitor sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The envelope's.
    pub id: u64,
    /// How it went.
    pub result: Result<Reply, Refusal>,
}

/// What the host asks. Descriptors that go along are named in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request of a connection.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Maps the beginning of a file to sectors of a disk of windows [the file,
    /// open for what the guest may do].
    Map {
        /// The disk's id in the machine's configuration.
        disk: String,
        /// The window's first sector, of 512 bytes.
        first_sector: u64,
        /// How many it has.
        sectors: u64,
    },
    /// Takes a window away. The reply comes when no request of the guest's
    /// uses the file any more.
    Unmap {
        /// The disk's id in the machine's configuration.
        disk: String,
        /// The window's first sector.
        first_sector: u64,
    },
    /// Stops the guest between two instructions, and its devices between two
    /// requests. A guest that is paused stays so.
    Pause,
    /// Lets it run. A guest that runs goes on.
    Resume,
    /// Says that the guest is another one from now on, because it has been
    /// copied: its kernel makes its randomness anew, if it knows of that.
    RenewGeneration,
    /// What it has used so far.
    Stats,
    /// Ends the guest, whatever it does, and the monitor with it. The reply
    /// may get lost in that.
    Stop,
}

/// What the monitor answers to a request that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// To `Hello`.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The monitor's process id.
        pid: u32,
        /// The version of its program.
        program: String,
    },
    /// To `Stats`.
    Stats(Stats),
}

/// What a machine has used since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Whether the host has paused it.
    pub paused: bool,
    /// Processor time of the monitor, its guest's included, microseconds.
    pub cpu_us: u64,
    /// Bytes of the serial port that were over its limit.
    pub serial_dropped_bytes: u64,
    /// The disks, in the guest's order.
    pub disks: Vec<DiskStats>,
    /// The network interfaces, in the guest's order.
    pub networks: Vec<NetworkStats>,
}

/// What a disk has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Its id in the machine's configuration.
    pub disk: String,
    /// Requests that it was asked for.
    pub requests: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// Bytes that the guest read.
    pub read_bytes: u64,
    /// Bytes that the guest wrote.
    pub written_bytes: u64,
}

/// What a network interface has carried. A packet that is still to be cut into
/// segments counts once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStats {
    /// Its id in the machine's configuration.
    pub interface: String,
    /// Packets that the guest received.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets for which it had no buffers that would do.
    pub received_dropped: u64,
    /// Packets that the guest sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets of the guest's that were none, or that the tap did not take.
    pub sent_dropped: u64,
}

/// Why the monitor did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people; at most [`MESSAGE_BYTES_MAX`].
    pub message: String,
}

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The request cannot be done as it is.
    Invalid,
    /// It could not be done in time; it may be asked again.
    Busy,
    /// The guest has ended.
    Ended,
    /// Something failed in the monitor.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let disk = || "layers".to_owned();
        vec![
            Request::Hello { version: VERSION },
            Request::Map {
                disk: disk(),
                first_sector: 2048,
                sectors: u64::MAX,
            },
            Request::Unmap {
                disk: disk(),
                first_sector: 2048,
            },
            Request::Pause,
            Request::Resume,
            Request::RenewGeneration,
            Request::Stats,
            Request::Stop,
        ]
    }

    fn answers() -> Vec<Answer> {
        let replies = [
            Ok(Reply::Done),
            Ok(Reply::Hello {
                version: VERSION,
                pid: 7,
                program: "1.2.3".into(),
            }),
            Ok(Reply::Stats(Stats {
                cpu_us: u64::MAX,
                disks: vec![DiskStats::default(); 19],
                networks: vec![NetworkStats::default(); 19],
                ..Stats::default()
            })),
            Err(Refusal {
                reason: Reason::Busy,
                message: "x".repeat(MESSAGE_BYTES_MAX),
            }),
        ];
        let answer = |(id, result)| Answer { id, result };
        (0..).zip(replies).map(answer).collect()
    }

    #[test]
    fn messages_read_back_and_are_short() {
        for (id, request) in (0..).zip(requests()) {
            let envelope = Envelope { id, request };
            let frame = crate::encode(&envelope).unwrap();
            assert!(frame.len() <= FRAME_BYTES_MAX);
            assert_eq!(crate::decode::<Envelope>(&frame).unwrap(), envelope);
        }
        for answer in answers() {
            let frame = crate::encode(&answer).unwrap();
            assert!(frame.len() <= FRAME_BYTES_MAX);
            assert_eq!(crate::decode::<Answer>(&frame).unwrap(), answer);
        }
    }

    /// Seeded, so that a failure comes again.
    fn mutate(bytes: &mut Vec<u8>, state: &mut u64) {
        let mut next = || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            usize::try_from(*state >> 33).unwrap()
        };
        for _ in 0..=next() % 4 {
            let at = next() % (bytes.len() + 1);
            match next() % 4 {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, next().to_le_bytes()[0]),
                2 => bytes.extend_from_within(at..),
                _ if at < bytes.len() => bytes[at] = next().to_le_bytes()[0],
                _ => {}
            }
            bytes.truncate(2 * FRAME_BYTES_MAX);
        }
    }

    /// What is read from hostile bytes is a message, and no longer than they
    /// are.
    #[test]
    fn hostile_frames_are_refused_or_messages() {
        let envelopes = requests()
            .into_iter()
            .map(|request| Envelope { id: 1, request });
        let mut seeds: Vec<_> = envelopes.map(|one| crate::encode(&one).unwrap()).collect();
        seeds.extend(answers().iter().map(|one| crate::encode(one).unwrap()));
        let (mut state, mut read) = (0x5eed, 0);
        for round in 0..40_000 {
            let mut frame = seeds[round % seeds.len()].clone();
            mutate(&mut frame, &mut state);
            if let Ok(envelope) = crate::decode::<Envelope>(&frame) {
                assert!(crate::encode(&envelope).unwrap().len() <= frame.len());
                read += 1;
            }
            if let Ok(answer) = crate::decode::<Answer>(&frame) {
                assert!(crate::encode(&answer).unwrap().len() <= frame.len());
                read += 1;
            }
        }
        // Enough of them come past the first byte.
        assert!(read > 1000, "{read}");
    }
}
