//! Looks up wanted paths in the finished tree.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::disk::BLOCK_BYTES;
use crate::error::LayerError;
use crate::options::{Captured, MAX_CAPTURED_BYTES};
use crate::path;
use crate::tree::{Kind, ROOT, Tree};

/// What `tree` makes of `path`, or `None` if it leaves it to lower layers.
/// Contents are read back from the image, since any name may have become
/// this path's.
pub(crate) fn capture(
    tree: &Tree,
    path: &str,
    image: &File,
) -> Result<Option<Captured>, LayerError> {
    let Ok(components) = path::split(path.as_bytes()) else {
        return Ok(None);
    };
    let mut at = ROOT;
    let mut hidden = false;
    for (position, name) in components.iter().enumerate() {
        let Some(directory) = tree.directory(at) else {
            return Ok(Some(Captured::Whiteout));
        };
        hidden |= directory.opaque;
        let Some(child) = tree.child(at, name) else {
            return Ok(hidden.then_some(Captured::Whiteout));
        };
        if let Kind::Symlink(target) = &tree.inode(child).kind {
            let link = components[..=position].join(&b'/');
            let link = String::from_utf8_lossy(&link).into_owned();
            return Ok(Some(Captured::Symlink {
                link,
                target: target.to_vec(),
            }));
        }
        at = child;
    }
    Ok(Some(match &tree.inode(at).kind {
        Kind::File { size, .. } if *size > MAX_CAPTURED_BYTES => Captured::TooLong { bytes: *size },
        Kind::File { size, block } => Captured::File(read(path, image, *size, *block)?),
        Kind::Whiteout => Captured::Whiteout,
        _ => Captured::Other,
    }))
}

fn read(path: &str, image: &File, size: u64, block: u32) -> Result<Vec<u8>, LayerError> {
    let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
    let offset = u64::from(block) * BLOCK_BYTES as u64;
    match image.read_exact_at(&mut content, offset) {
        Ok(()) => Ok(content),
        Err(source) => Err(LayerError::Capture {
            path: path.to_owned(),
            source,
        }),
    }
}
