//! Answers of many JSON values, one a line.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, header};
use serde::Serialize;
use tokio::sync::mpsc;

pub(crate) const NDJSON: &str = "application/x-ndjson";

/// Each value as a line, as it comes.
pub(crate) fn lines<T: Serialize + Send + 'static>(
    values: impl Stream<Item = T> + Send + 'static,
) -> Response {
    let line = |value: T| {
        // What the API answers can always be written as JSON.
        let mut line = serde_json::to_vec(&value).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    };
    let mut response = Response::new(Body::from_stream(values.map(line)));
    let kind = HeaderValue::from_static(NDJSON);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What arrives in a channel, until its other end is dropped.
pub(crate) fn received<T: Send + 'static>(
    channel: mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(channel, async |mut channel| {
        let value = channel.recv().await?;
        Some((value, channel))
    })
}
