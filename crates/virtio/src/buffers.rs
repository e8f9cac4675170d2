use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileSlice};

/// A run of guest memory in pieces, consumed from its front.
#[derive(Debug)]
pub struct Buffers<'a, B> {
    slices: Vec<VolatileSlice<'a, B>>,
    /// The first piece that is not consumed.
    next: usize,
    bytes: usize,
}

impl<B> Default for Buffers<'_, B> {
    fn default() -> Self {
        Self {
            slices: Vec::new(),
            next: 0,
            bytes: 0,
        }
    }
}

impl<'a, B: BitmapSlice> Buffers<'a, B> {
    pub(crate) fn push(&mut self, slice: VolatileSlice<'a, B>) {
        self.bytes += slice.len();
        self.slices.push(slice);
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The pieces that are left.
    #[must_use]
    pub fn slices(&self) -> &[VolatileSlice<'a, B>] {
        self.slices.get(self.next..).unwrap_or_default()
    }

    /// Copies out, and consumes, at most `target.len()` bytes.
    pub fn read(&mut self, target: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = target.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(slice) = self.slices.get(self.next) else {
                break;
            };
            let copied = slice.copy_to(rest);
            done += copied;
            self.consume(copied);
        }
        done
    }

    /// Copies in, and consumes, at most `source.len()` bytes.
    pub fn write(&mut self, source: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = source.get(done..).filter(|rest| !rest.is_empty()) {
            let Some(slice) = self.slices.get(self.next) else {
                break;
            };
            let copied = slice.write(rest, 0).unwrap_or(0);
            done += copied;
            self.consume(copied);
            if copied == 0 {
                break;
            }
        }
        done
    }

    /// Leaves out the next `bytes`.
    pub fn consume(&mut self, mut bytes: usize) {
        while let Some(slice) = self.slices.get_mut(self.next) {
            let here = slice.len().min(bytes);
            self.bytes -= here;
            bytes -= here;
            match slice.offset(here) {
                Ok(rest) if !rest.is_empty() => {
                    *slice = rest;
                    return;
                }
                _ => self.next += 1,
            }
        }
    }

    /// Takes the last byte off, for what a protocol puts there.
    pub fn take_last(&mut self) -> Option<VolatileSlice<'a, B>> {
        loop {
            let last = self.slices.len().checked_sub(1)?;
            if last < self.next {
                return None;
            }
            let slice = self.slices.get_mut(last)?;
            let Some(at) = slice.len().checked_sub(1) else {
                self.slices.pop();
                continue;
            };
            let (rest, byte) = (slice.subslice(0, at).ok()?, slice.subslice(at, 1).ok()?);
            *slice = rest;
            self.bytes -= 1;
            return Some(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over<'a>(parts: &'a mut [Vec<u8>]) -> Buffers<'a, ()> {
        let mut buffers = Buffers::default();
        for part in parts {
            buffers.push(VolatileSlice::from(part.as_mut_slice()));
        }
        buffers
    }

    #[test]
    fn pieces_are_one_run() {
        let mut parts = [vec![1, 2, 3], vec![], vec![4], vec![5, 6]];
        let mut buffers = over(&mut parts);
        assert_eq!(buffers.len(), 6);
        let mut four = [0; 4];
        assert_eq!(buffers.read(&mut four), 4);
        assert_eq!(four, [1, 2, 3, 4]);
        assert_eq!(buffers.len(), 2);
        let mut more = [0; 4];
        assert_eq!(buffers.read(&mut more), 2);
        assert_eq!(more, [5, 6, 0, 0]);
        assert!(buffers.is_empty());
        assert_eq!(buffers.read(&mut more), 0);
    }

    #[test]
    fn writing_stops_where_the_run_ends() {
        let mut parts = [vec![0; 2], vec![0; 3]];
        let mut buffers = over(&mut parts);
        assert_eq!(buffers.write(&[1, 2, 3]), 3);
        assert_eq!(buffers.write(&[4, 5, 6, 7]), 2);
        drop(buffers);
        assert_eq!(parts, [vec![1, 2], vec![3, 4, 5]]);
    }

    #[test]
    fn the_last_byte_is_found_behind_empty_pieces() {
        let mut parts = [vec![1, 2], vec![]];
        let mut buffers = over(&mut parts);
        let last = buffers.take_last().unwrap();
        last.write_obj(9_u8, 0).unwrap();
        assert_eq!(buffers.len(), 1);
        assert!(buffers.take_last().is_some());
        assert!(buffers.take_last().is_none());
        drop(buffers);
        assert_eq!(parts[0], [1, 9]);
    }

    #[test]
    fn more_than_there_is_can_be_consumed() {
        let mut parts = [vec![1, 2], vec![3]];
        let mut buffers = over(&mut parts);
        buffers.consume(2);
        assert_eq!(buffers.slices().len(), 1);
        buffers.consume(usize::MAX);
        assert!(buffers.is_empty() && buffers.slices().is_empty());
    }
}
