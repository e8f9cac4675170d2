//! Bodies taken whole.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

/// Why a body was not taken.
#[derive(Debug)]
pub(crate) enum BodyRefusal {
    /// So many bytes at least.
    TooLarge(u64),
    Truncated,
}

/// The whole of a body of at most so many bytes.
///
/// # Errors
/// When it is larger, or breaks off.
pub(crate) async fn whole(mut body: Incoming, most: usize) -> Result<Bytes, BodyRefusal> {
    let length = body.size_hint().lower();
    if length > most as u64 {
        return Err(BodyRefusal::TooLarge(length));
    }
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_broken| BodyRefusal::Truncated)?;
        if let Ok(data) = frame.into_data() {
            if all.len() + data.len() > most {
                return Err(BodyRefusal::TooLarge((all.len() + data.len()) as u64));
            }
            if all.is_empty() && body.is_end_stream() {
                return Ok(data);
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}
