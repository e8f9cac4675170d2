//! A static server of HTTP/2 with prior knowledge: as a gRPC server it speaks
//! nothing else, and ends its answers with trailers.
//!
//! | path | what it does |
//! |---|---|
//! | `/echo` | the request's body, as it comes |
//! | any other | the request's version, method and path |

#![allow(
    clippy::disallowed_methods,
    reason = "a user's application, which knows nothing of Skiff"
)]

use std::convert::Infallible;
use std::net::Ipv4Addr;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").ok();
    let port = port.and_then(|port| port.parse().ok()).unwrap_or(8080u16);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let served = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        tokio::spawn(async move {
            // What is no HTTP/2 ends its own connection and nothing else.
            let _broken_off = served.await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let body = match request.uri().path() {
        "/echo" => request.into_body().boxed(),
        path => {
            let text = format!("{:?} {} {path}\n", request.version(), request.method());
            Full::from(text).map_err(|never| match never {}).boxed()
        }
    };
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    // As with gRPC nobody says how long it is.
    let body = StreamBody::new(BodyStream::new(body));
    let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
    Ok(Response::new(body.boxed()))
}
