//! The admin API over its socket, without a process for each call.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use skiff_testkit::Server;

use crate::time::{slowness, stretched, wait_until};

/// How long one call may take.
const CALL: Duration = Duration::from_secs(300);
/// How long an instance may take to start.
const START_S: u32 = 300;
/// No deployment may ask for more.
const START_MAX_S: u32 = 3600;

/// The API of a server.
#[derive(Clone, Debug)]
pub struct Api(PathBuf);

impl Api {
    pub fn of(server: &Server) -> Self {
        Self(server.run_dir().join("skiff.sock"))
    }

    /// One call; the body of an answer that is a success.
    ///
    /// # Errors
    /// When it cannot be made, or is refused.
    pub fn call(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let (status, text) =
            request(&self.0, method, path, body).with_context(|| format!("{method} {path}"))?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {text}"
        );
        Ok(text)
    }

    /// Deploys, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come to serve.
    pub fn deploy(&self, name: &str, deploy: &Value) -> anyhow::Result<()> {
        let text = self.call("PUT", &service(name), &deploy.to_string())?;
        let last = text
            .lines()
            .rfind(|line| line.contains("\"event\""))
            .unwrap_or_default();
        if !last.contains("\"done\"") && !last.contains("\"unchanged\"") {
            bail!("{name} does not come to serve: {text}");
        }
        Ok(())
    }

    /// Deploys many, several at once.
    ///
    /// # Errors
    /// The first that does not come to serve.
    pub fn deploy_many(&self, names: &[String], deploy: &Value) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                            self.deploy(name, deploy)?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            for worker in workers {
                worker
                    .join()
                    .map_err(|_| anyhow::anyhow!("a deploying thread panicked"))??;
            }
            Ok(())
        })
    }

    /// Removes a service.
    ///
    /// # Errors
    /// When it is refused.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.call("DELETE", &service(name), "").map(drop)
    }

    /// Ids of a service's instances that run.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn instances(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let list = self.described(name)?;
        Ok(list
            .iter()
            .filter_map(|instance| instance["id"].as_str().map(str::to_owned))
            .collect())
    }

    fn described(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let value: Value = serde_json::from_str(&self.call("GET", &service(name), "")?)?;
        Ok(value["instances"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until a service has so many instances.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_for_instances(&self, name: &str, count: usize) -> anyhow::Result<()> {
        let what = format!("{name} has {count} instances");
        wait_until(&what, stretched(CALL), || {
            Ok(self.instances(name)?.len() == count)
        })
    }

    /// Waits until so many instances of a service serve.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait_for_ready(&self, name: &str, count: usize) -> anyhow::Result<()> {
        let what = format!("{count} instances of {name} serve");
        wait_until(&what, stretched(CALL), || {
            let ready = |instance: &&Value| instance["state"] == "ready";
            Ok(self.described(name)?.iter().filter(ready).count() == count)
        })
    }

    /// The latest cold start of a service, once it is not of this instance.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn cold_start_after(&self, name: &str, instance: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/projects/default/traces?service={name}&limit=1");
        let mut latest = Value::Null;
        wait_until(&format!("{name} has a trace"), stretched(CALL), || {
            let mut traces: Value = serde_json::from_str(&self.call("GET", &path, "")?)?;
            latest = traces.get_mut(0).map(Value::take).unwrap_or_default();
            Ok(latest["instance"].is_string() && latest["instance"] != instance)
        })?;
        Ok(latest)
    }
}

/// A deployment of an image with 64 MiB and these scaling fields.
pub fn deployment(image: &str, isolation: &str, scaling: &Value) -> Value {
    json!({
        "containers": [{"image": image, "probe": {"start_timeout_s": (START_S * slowness()).min(START_MAX_S)}}],
        "isolation": isolation,
        "resources": {"memory_mib": 64},
        "scaling": scaling,
    })
}

fn service(name: &str) -> String {
    format!("/v1/projects/default/services/{name}")
}

fn request(socket: &Path, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(stretched(CALL)))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: skiff\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").context("half an answer")?;
    let status = head.get(9..12).context("no status")?.parse()?;
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Ok((status, body))
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            break;
        };
        let Some(data) = rest.get(..size).filter(|data| !data.is_empty()) else {
            break;
        };
        text.push_str(data);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn chunks_are_joined() {
        assert_eq!(
            super::unchunked("3\r\nab\n\r\n2\r\nc\n\r\n0\r\n\r\n"),
            "ab\nc\n"
        );
        assert_eq!(super::unchunked("0\r\n\r\n"), "");
    }
}
