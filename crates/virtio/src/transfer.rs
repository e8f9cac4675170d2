//! Bytes between guest memory and files, without a copy on the way.

use std::fs::File;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::Buffers;
use crate::chain::mark;

/// The most pieces of one call: the kernel's IOV_MAX.
const MAX_PIECES: usize = 1024;

/// Fills all buffers from a file. The file's end before that is an error.
pub(crate) fn read_from<B: BitmapSlice>(
    buffers: &mut Buffers<'_, B>,
    file: &File,
    offset: u64,
) -> std::io::Result<()> {
    whole(buffers, offset, |vectors, offset| {
        // SAFETY: the vectors are mapped, writable guest memory, which the
        // slices they were made of keep mapped during the call; guest memory
        // may change at any time and has no other rule.
        unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count(vectors), offset) }
    })
}

/// Writes all buffers to a file.
pub(crate) fn write_to<B: BitmapSlice>(
    buffers: &mut Buffers<'_, B>,
    file: &File,
    offset: u64,
) -> std::io::Result<()> {
    whole(buffers, offset, |vectors, offset| {
        // SAFETY: as above; the kernel only reads them.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count(vectors), offset) }
    })
}

fn whole<B: BitmapSlice>(
    buffers: &mut Buffers<'_, B>,
    mut offset: u64,
    call: impl Fn(&[libc::iovec], i64) -> isize,
) -> std::io::Result<()> {
    while !buffers.is_empty() {
        let pieces = buffers.slices();
        let pieces = pieces.get(..MAX_PIECES).unwrap_or(pieces);
        let vectors: Vec<libc::iovec> = pieces.iter().map(vector).collect();
        let place = i64::try_from(offset)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let Ok(moved) = usize::try_from(call(&vectors, place)) else {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if moved == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        mark_moved(pieces, moved);
        buffers.consume(moved);
        offset += moved as u64;
    }
    Ok(())
}

/// The kernel wrote past the memory's own methods. Marking what was only
/// read costs a bit, and no more.
fn mark_moved<B: BitmapSlice>(pieces: &[VolatileSlice<'_, B>], mut moved: usize) {
    for piece in pieces {
        let here = piece.len().min(moved);
        mark(piece.bitmap(), here);
        moved -= here;
    }
}

fn vector<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

fn count(vectors: &[libc::iovec]) -> i32 {
    i32::try_from(vectors.len()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn pieces_are_filled_in_order_and_the_files_end_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut parts = [vec![0_u8; 3], vec![0; 4]];
        let fill = |parts: &mut [Vec<u8>], offset| {
            let mut buffers = Buffers::<()>::default();
            for part in parts {
                buffers.push(VolatileSlice::from(part.as_mut_slice()));
            }
            read_from(&mut buffers, &file, offset)
        };
        fill(&mut parts, 2).unwrap();
        assert_eq!(parts, [b"234".to_vec(), b"5678".to_vec()]);
        let error = fill(&mut parts, 5).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
