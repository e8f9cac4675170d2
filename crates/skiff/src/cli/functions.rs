//! `skiff invoke`: an event for a function, through the gateway as any other,
//! or handed in for it to be tried later.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use skiff_base::Tasks;
use skiff_types::api::{SentEvent, Service, Version};
use skiff_types::invocation::{ERROR_BODY, FUNCTION_ERROR, LOG_RESULT, LOG_TYPE};
use skiff_types::limits::EVENT_BYTES_MAX;
use tokio::net::TcpStream;

use super::output;
use super::{Scope, args, segment};

/// Hands one event to the function, and its answer to standard output.
///
/// # Errors
/// When the event reaches no function, and when the function fails.
pub async fn invoke(scope: &Scope, args: args::Invoke) -> anyhow::Result<()> {
    let event = event(args.data.as_deref().unwrap_or("{}"))?;
    if args.event {
        return send(scope, &args, event).await;
    }
    let path = scope.path(&format!("services/{}", args.name));
    let service: Service = scope.client.get(&path).await?;
    let version: Version = scope.client.get("/v1/version").await?;
    let url: Uri = service
        .url
        .parse()
        .with_context(|| format!("{} is no URL", service.url))?;
    let host = url
        .authority()
        .ok_or_else(|| anyhow!("{url} has no host"))?
        .as_str();
    let mut request = Request::post("/")
        .header(header::HOST, host)
        // How a streamed answer has ended stands behind it.
        .header(header::TE, "trailers")
        .header(header::CONTENT_TYPE, "application/json");
    if args.log {
        request = request.header(LOG_TYPE, "Tail");
    }
    if let Some(context) = &args.client_context {
        request = request.header("x-amz-client-context", STANDARD.encode(context));
    }
    let request = request.body(Full::new(event))?;
    let stream = connect(scope, &version.gateway).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let tasks = Tasks::new();
    tasks.spawn("connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection ended");
        }
    });
    let response = sender.send_request(request).await?;
    let (head, mut body) = response.into_parts();
    show_log(&head.headers)?;
    let mut trailers = HeaderMap::new();
    let mut out = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        match frame.context("the answer broke off")?.into_data() {
            Ok(data) => {
                out.write_all(&data)?;
                out.flush()?;
            }
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    writeln!(out)?;
    show_log(&trailers)?;
    if let Some(error) = trailers.get(ERROR_BODY) {
        let error = STANDARD.decode(error.as_bytes()).context("the error")?;
        output::note(String::from_utf8_lossy(&error));
    }
    if head.status != StatusCode::OK {
        bail!("the gateway answered {}", head.status);
    }
    let has_failed = |fields: &HeaderMap| fields.contains_key(FUNCTION_ERROR);
    if has_failed(&head.headers) || has_failed(&trailers) {
        bail!("the function {} has failed", args.name);
    }
    Ok(())
}

/// Hands in an event, and its request id to standard output.
async fn send(scope: &Scope, args: &args::Invoke, event: Bytes) -> anyhow::Result<()> {
    let mut path = scope.path(&format!("services/{}/events", args.name));
    if let Some(context) = &args.client_context {
        let context = segment(&STANDARD.encode(context));
        path = format!("{path}?client_context={context}");
    }
    let sent: SentEvent = scope.client.call_with(Method::POST, &path, event).await?;
    output::show(scope.output, &sent, |sent| output::line(&sent.request_id))
}

/// The event that `-d` names: itself, `@FILE`, or standard input as `-`.
fn event(data: &str) -> anyhow::Result<Bytes> {
    let mut event = Vec::new();
    // One byte more than is taken tells of all that are too many.
    let most = EVENT_BYTES_MAX as u64 + 1;
    match data.strip_prefix('@') {
        _ if data == "-" => std::io::stdin()
            .lock()
            .take(most)
            .read_to_end(&mut event)
            .context("standard input cannot be read")?,
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(most).read_to_end(&mut event))
            .with_context(|| format!("{path} cannot be read"))?,
        None => data.as_bytes().take(most).read_to_end(&mut event)?,
    };
    if event.len() > EVENT_BYTES_MAX {
        bail!("an event has at most {EVENT_BYTES_MAX} bytes");
    }
    Ok(event.into())
}

/// The first of the gateway's addresses that takes a connection.
async fn connect(scope: &Scope, gateway: &[String]) -> anyhow::Result<TcpStream> {
    let mut last = anyhow!("the gateway listens nowhere");
    for address in gateway {
        let address = scope.client.reachable(address);
        match TcpStream::connect(&address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = anyhow!(error).context(format!("the gateway at {address}")),
        }
    }
    Err(last)
}

fn show_log(headers: &HeaderMap) -> anyhow::Result<()> {
    if let Some(log) = headers.get(LOG_RESULT) {
        let log = STANDARD.decode(log.as_bytes()).context("the log's tail")?;
        output::note(String::from_utf8_lossy(&log).trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_given_or_in_a_file() {
        assert_eq!(event("{\"a\":1}").unwrap(), "{\"a\":1}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[1]").unwrap();
        let named = format!("@{}", file.path().display());
        assert_eq!(event(&named).unwrap(), "[1]");
        assert!(event("@/nowhere/at/all").is_err());
        let large = " ".repeat(EVENT_BYTES_MAX + 1);
        assert!(event(&large).unwrap_err().to_string().contains("at most"));
        assert_eq!(event(&large[1..]).unwrap().len(), EVENT_BYTES_MAX);
    }
}
