//! Requests: buffers to fill.

use skiff_base::random;
use vm_memory::GuestMemory;

use crate::{DeviceError, Progress, Queue};

/// The most that one request is given: a driver asks again, and nobody waits
/// long meanwhile.
const MAX_BYTES: usize = 64 << 10;
/// How much is made at once.
const PIECE_BYTES: usize = 1024;

pub(super) fn process<M: GuestMemory>(
    memory: &M,
    queue: &mut Queue,
    index: usize,
) -> Result<Progress, DeviceError> {
    let broken = DeviceError::queue(index);
    let mut left = queue.ring().state().size;
    loop {
        while let Some(mut chain) = queue.pop(memory).map_err(&broken)? {
            let mut written = 0;
            let room = chain.writable.len().min(MAX_BYTES);
            let mut piece = [0; PIECE_BYTES];
            while written < room {
                let length = (room - written).min(PIECE_BYTES);
                let piece = piece.get_mut(..length).unwrap_or_default();
                random::fill(piece);
                written += chain.writable.write(piece);
            }
            queue.push(memory, chain.head, written).map_err(&broken)?;
            left -= 1;
            if left == 0 {
                return Ok(Progress::More);
            }
        }
        if !queue.listen(memory).map_err(&broken)? {
            return Ok(Progress::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use crate::entropy::Entropy;
    use crate::testing::{Bench, Desc};

    fn bench() -> Bench {
        let mut bench = Bench::new(Box::new(Entropy), 8);
        bench.start();
        bench
    }

    #[test]
    fn buffers_are_filled_with_what_does_not_repeat() {
        let mut bench = bench();
        let chain = [Desc::write(0x8000, 5).then(1), Desc::write(0x9000, 4000)];
        let mut seen = Vec::new();
        for _ in 0..2 {
            assert_eq!(bench.request(&chain), [(0, 4005)]);
            let mut bytes = vec![0; 4000];
            bench
                .driver
                .memory
                .read_slice(&mut bytes, GuestAddress(0x9000))
                .unwrap();
            assert!(bytes.iter().any(|byte| *byte != bytes[0]));
            assert_ne!(&bytes[4000 - 8..], [0; 8]);
            assert!(!seen.contains(&bytes));
            seen.push(bytes);
        }
    }

    #[test]
    fn one_request_is_given_no_more_than_its_share() {
        let mut bench = bench();
        let chain = [
            Desc::write(0x8000, 0x1_8000).then(1),
            Desc::write(0x8000, 0x1_8000),
        ];
        assert_eq!(bench.request(&chain), [(0, 64 << 10)]);
    }

    #[test]
    fn what_cannot_be_filled_is_given_back_empty() {
        let mut bench = bench();
        assert_eq!(bench.request(&[Desc::read(0x8000, 100)]), [(0, 0)]);
    }
}
