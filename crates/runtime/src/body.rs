//! Bodies taken whole.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

/// Why a body was not taken.
#[derive(Debug)]
pub(crate) enum BodyRefusal {
    /// So many bytes, or at least so many where the rest was not waited for.
    TooLarge(u64),
    Truncated,
}

/// The whole of a body of at most so many bytes.
///
/// # Errors
/// When it is larger, at once, or breaks off.
pub(crate) async fn whole(body: Incoming, most: usize) -> Result<Bytes, BodyRefusal> {
    let length = body.size_hint().lower();
    if length > most as u64 {
        return Err(BodyRefusal::TooLarge(length));
    }
    read(body, most, false).await
}

/// The same of who calls from inside, and is told of a body that is too large
/// when it has sent it all: a runtime whose call is answered while it still
/// writes may see a broken connection instead, and end of that.
///
/// # Errors
/// When it is larger, or breaks off.
pub(crate) async fn whole_from_inside(body: Incoming, most: usize) -> Result<Bytes, BodyRefusal> {
    read(body, most, true).await
}

async fn read(mut body: Incoming, most: usize, to_its_end: bool) -> Result<Bytes, BodyRefusal> {
    let mut all = BytesMut::new();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_broken| BodyRefusal::Truncated)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        bytes += data.len();
        if bytes > most {
            if !to_its_end {
                return Err(BodyRefusal::TooLarge(bytes as u64));
            }
            all = BytesMut::new();
        } else if all.is_empty() && body.is_end_stream() {
            return Ok(data);
        } else {
            all.extend_from_slice(&data);
        }
    }
    match bytes > most {
        true => Err(BodyRefusal::TooLarge(bytes as u64)),
        false => Ok(all.freeze()),
    }
}
