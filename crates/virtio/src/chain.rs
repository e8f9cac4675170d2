//! A driver's request: descriptors that follow each other.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{Bitmap, WithBitmapSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::Buffers;

/// The pieces of a memory's dirty bitmap.
pub(crate) type Marks<'a, M> = <<M as GuestMemory>::Bitmap as WithBitmapSlice<'a>>::S;

/// How a driver broke the protocol with a chain (virtio 1.3, 2.7.5).
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A descriptor's number is not below the queue's size.
    #[error("descriptor {0} is outside of its table")]
    Index(u16),
    /// More descriptors than the table has.
    #[error("the descriptors run in a loop")]
    Loop,
    /// A descriptor or its buffer is not in memory.
    #[error("descriptor {index} is outside of memory")]
    Memory {
        /// The descriptor.
        index: u16,
        /// What memory says.
        #[source]
        source: GuestMemoryError,
    },
    /// A buffer to read follows one to write.
    #[error("descriptor {0} is to be read, after one to be written")]
    Order(u16),
    /// 4 GiB or more.
    #[error("the buffers have 4 GiB or more")]
    Length,
    /// A feature that was not offered.
    #[error("descriptor {0} is indirect, which was not offered")]
    Indirect(u16),
}

/// A request. Its buffers lie in guest memory, all of them.
#[derive(Debug)]
pub struct Chain<'a, M: GuestMemory + ?Sized> {
    /// By which the driver knows it.
    pub head: u16,
    /// What the device reads.
    pub readable: Buffers<'a, Marks<'a, M>>,
    /// What the device writes.
    pub writable: Buffers<'a, Marks<'a, M>>,
}

impl<'a, M: GuestMemory> Chain<'a, M> {
    /// Walks the descriptors from `head` on. Each is read once.
    pub(crate) fn walk(
        memory: &'a M,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut index = head;
        let mut bytes = 0_u32;
        for _ in 0..size {
            let descriptor = descriptor(memory, table, size, index)?;
            bytes = bytes
                .checked_add(descriptor.len())
                .ok_or(ChainError::Length)?;
            chain.add(memory, index, &descriptor)?;
            if !has(&descriptor, VRING_DESC_F_NEXT) {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(ChainError::Loop)
    }

    fn add(
        &mut self,
        memory: &'a M,
        index: u16,
        descriptor: &Descriptor,
    ) -> Result<(), ChainError> {
        if has(descriptor, VRING_DESC_F_INDIRECT) {
            return Err(ChainError::Indirect(index));
        }
        let (buffers, access) = if has(descriptor, VRING_DESC_F_WRITE) {
            (&mut self.writable, Permissions::Write)
        } else if self.writable.slices().is_empty() {
            (&mut self.readable, Permissions::Read)
        } else {
            return Err(ChainError::Order(index));
        };
        let outside = |source| ChainError::Memory { index, source };
        let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        let slices = memory
            .get_slices(descriptor.addr(), length, access)
            .map_err(outside)?;
        for slice in slices {
            buffers.push(slice.map_err(outside)?);
        }
        Ok(())
    }
}

fn descriptor<M: GuestMemory>(
    memory: &M,
    table: GuestAddress,
    size: u16,
    index: u16,
) -> Result<Descriptor, ChainError> {
    if index >= size {
        return Err(ChainError::Index(index));
    }
    let offset = u64::from(index) * size_of::<Descriptor>() as u64;
    let address = GuestAddress(table.0.saturating_add(offset));
    memory
        .read_obj(address)
        .map_err(|source| ChainError::Memory { index, source })
}

fn has(descriptor: &Descriptor, flag: u32) -> bool {
    u32::from(descriptor.flags()) & flag != 0
}

/// Marks what a device wrote past the memory's own methods.
pub(crate) fn mark<B: Bitmap>(bitmap: &B, bytes: usize) {
    bitmap.mark_dirty(0, bytes);
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::testing::{Desc, MEMORY, memory, put_descriptors};

    fn walk(descriptors: &[Desc]) -> Result<(usize, usize), String> {
        let memory = memory();
        put_descriptors(&memory, GuestAddress(0), descriptors);
        match Chain::<GuestMemoryMmap>::walk(&memory, GuestAddress(0), 8, 0) {
            Ok(chain) => Ok((chain.readable.len(), chain.writable.len())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_chain_is_what_is_read_and_then_what_is_written() {
        let chain = [
            Desc::read(0x1000, 16).then(1),
            Desc::read(0x2000, 512).then(2),
            Desc::write(0x3000, 1),
        ];
        assert_eq!(walk(&chain), Ok((528, 1)));
    }

    #[test]
    fn every_break_of_the_protocol_has_its_name() {
        for (chain, said) in [
            (vec![Desc::read(0x1000, 1).then(0)], "loop"),
            (
                vec![Desc::read(0x1000, 1).then(1), Desc::read(0x1000, 1).then(0)],
                "loop",
            ),
            (vec![Desc::read(0x1000, 1).then(8)], "outside of its table"),
            (
                vec![Desc::read(0x1000, 1).then(65_535)],
                "outside of its table",
            ),
            (vec![Desc::read(MEMORY, 1)], "outside of memory"),
            (vec![Desc::read(MEMORY - 1, 2)], "outside of memory"),
            (vec![Desc::read(u64::MAX, 2)], "outside of memory"),
            (vec![Desc::read(0, u32::MAX)], "outside of memory"),
            (
                vec![Desc::write(0x1000, 1).then(1), Desc::read(0x1000, 1)],
                "after one to be written",
            ),
            (vec![Desc::indirect(0x1000, 16)], "indirect"),
        ] {
            let error = walk(&chain).unwrap_err();
            assert!(error.contains(said), "{chain:?}: {error}");
        }
    }

    #[test]
    fn a_table_outside_of_memory_is_refused() {
        let memory = memory();
        for table in [MEMORY, u64::MAX - 15] {
            let chain = Chain::<GuestMemoryMmap>::walk(&memory, GuestAddress(table), 8, 1);
            assert!(matches!(chain, Err(ChainError::Memory { index: 1, .. })));
        }
    }

    #[test]
    fn lengths_that_wrap_are_refused() {
        // Only a memory of 4 GiB could hold the first.
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0xffff_f000)]).unwrap();
        let chain = [
            Desc::read(0x1000, 0xffff_0000).then(1),
            Desc::read(0x1000, 0x1_0000),
        ];
        put_descriptors(&memory, GuestAddress(0), &chain);
        let walked = Chain::<GuestMemoryMmap>::walk(&memory, GuestAddress(0), 8, 0);
        assert!(matches!(walked, Err(ChainError::Length)));
    }
}
