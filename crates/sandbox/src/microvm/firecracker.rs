//! The API of Firecracker, as far as a machine takes it: HTTP/1.1 over a Unix
//! socket, a connection for each request.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// For an answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two tries to reach an API that is not there yet.
const RETRY_PERIOD: Duration = Duration::from_millis(2);
/// Of an answer.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 32;
/// Of a fault's words that are told.
const FAULT_CHARS_MAX: usize = 400;

/// The monitor did not do what it was asked over its API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It cannot be reached, or its answer is none.
    #[error("the monitor's API does not answer `{what}`")]
    Io {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It understood and refused.
    #[error("the monitor's API refused `{what}` with {status}: {fault}")]
    Refused {
        /// What was asked.
        what: String,
        /// HTTP's.
        status: u16,
        /// Its words.
        fault: String,
    },
}

/// A monitor's API socket.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineConfig<'a> {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub kernel: &'a str,
    pub initramfs: &'a str,
    pub boot_args: &'a str,
    /// A disk that is only read.
    pub disk: Option<&'a str>,
    pub guest_cid: u32,
    pub vsock: &'a str,
}

impl Api {
    pub fn of(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Waits for the API, and asks who answers: name and version.
    pub async fn greet(&self, deadline: Duration) -> Result<String, ApiError> {
        let reached = tokio::time::timeout(deadline, async {
            loop {
                match UnixStream::connect(&self.socket).await {
                    Ok(_) => return Ok(()),
                    Err(error) if is_early(&error) => tokio::time::sleep(RETRY_PERIOD).await,
                    Err(error) => return Err(error),
                }
            }
        });
        reached
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ApiError::Io {
                what: "connect".to_owned(),
                source,
            })?;
        let said = self.ask("GET", "/", None).await?;
        let word = |name: &str| said[name].as_str().unwrap_or("?").to_owned();
        Ok(format!("{} {}", word("app_name"), word("vmm_version")))
    }

    /// Makes a machine and lets it run.
    pub async fn start(&self, machine: &MachineConfig<'_>) -> Result<(), ApiError> {
        for (path, body) in requests(machine) {
            self.ask("PUT", path, Some(body)).await?;
        }
        Ok(())
    }

    pub async fn pause(&self) -> Result<(), ApiError> {
        self.set_state("Paused").await
    }

    pub async fn resume(&self) -> Result<(), ApiError> {
        self.set_state("Resumed").await
    }

    pub async fn is_paused(&self) -> Result<bool, ApiError> {
        let said = self.ask("GET", "/", None).await?;
        Ok(said["state"] == "Paused")
    }

    async fn set_state(&self, state: &str) -> Result<(), ApiError> {
        let body = json!({"state": state});
        self.ask("PATCH", "/vm", Some(body)).await.map(drop)
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, ApiError> {
        let what = format!("{method} {path}");
        let asked = self.exchange(&what, body);
        let asked = tokio::time::timeout(DEADLINE, asked).await;
        let answered = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (status, body) = answered.map_err(|source| ApiError::Io {
            what: what.clone(),
            source,
        })?;
        match status {
            200..=299 => Ok(body),
            _ => Err(ApiError::Refused {
                what,
                status,
                fault: fault(&body),
            }),
        }
    }

    async fn exchange(&self, what: &str, body: Option<Value>) -> io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = format!(
            "{what} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut read = Vec::new();
        loop {
            if let Some((status, length, begin)) = head(&read)? {
                let end = begin + length;
                if let Some(body) = read.get(begin..end) {
                    return Ok((status, value(body)?));
                }
            }
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            read.extend_from_slice(&piece[..count]);
        }
    }
}

/// It may be making its socket.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// In the order in which Firecracker takes them; the last one starts it.
fn requests(machine: &MachineConfig<'_>) -> Vec<(&'static str, Value)> {
    let mut requests = vec![
        (
            "/machine-config",
            json!({"vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib}),
        ),
        (
            "/boot-source",
            json!({
                "kernel_image_path": machine.kernel,
                "initrd_path": machine.initramfs,
                "boot_args": machine.boot_args,
            }),
        ),
        (
            "/vsock",
            json!({"guest_cid": machine.guest_cid, "uds_path": machine.vsock}),
        ),
        ("/entropy", json!({})),
    ];
    if let Some(path) = machine.disk {
        requests.push((
            "/drives/layers",
            json!({
                "drive_id": "layers",
                "path_on_host": path,
                "is_root_device": false,
                "is_read_only": true,
            }),
        ));
    }
    requests.push(("/actions", json!({"action_type": "InstanceStart"})));
    requests
}

/// Status, the body's length and where it begins, once the head is whole.
fn head(bytes: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let begin = match response.parse(bytes).map_err(wrong)? {
        httparse::Status::Complete(begin) => begin,
        httparse::Status::Partial if bytes.len() > HEAD_BYTES_MAX => {
            return Err(wrong("the answer's head is too long"));
        }
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.unwrap_or_default();
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = match length {
        None => 0,
        Some(header) => std::str::from_utf8(header.value)
            .map_err(wrong)?
            .trim()
            .parse()
            .map_err(wrong)?,
    };
    if length > BODY_BYTES_MAX {
        return Err(wrong("the answer's body is too long"));
    }
    Ok(Some((status, length, begin)))
}

fn value(body: &[u8]) -> io::Result<Value> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(wrong)
}

fn fault(body: &Value) -> String {
    let fault = body["fault_message"].as_str().unwrap_or("no reason given");
    let plain = fault.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(FAULT_CHARS_MAX).collect()
}

fn wrong(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// As Firecracker 1.12 answers, byte for byte.
    const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

    fn answer(status: u16, body: &str) -> String {
        format!(
            "HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// A peer that gives these answers, one a connection; what it was asked:
    /// first lines and bodies.
    fn peer(
        folder: &Path,
        answers: Vec<String>,
    ) -> (Api, impl Future<Output = Vec<(String, Value)>>) {
        let socket = folder.join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, request) = loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    // One without a word only looks whether somebody listens.
                    if let Some(request) = request(&mut stream).await {
                        break (stream, request);
                    }
                };
                asked.push(request);
                // In two pieces: an answer may come in any.
                let (first, second) = answer.split_at(answer.len() / 2);
                stream.write_all(first.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                stream.write_all(second.as_bytes()).await.unwrap();
                drop(stream.read(&mut [0; 64]).await);
            }
            asked
        };
        (Api::of(&socket), asked)
    }

    async fn request(stream: &mut UnixStream) -> Option<(String, Value)> {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8(bytes.clone()).unwrap();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "));
                if body.len() == length.unwrap().parse::<usize>().unwrap() {
                    let first = head.lines().next().unwrap().to_owned();
                    return Some((first, value(body.as_bytes()).unwrap()));
                }
            }
            let mut piece = [0; 1024];
            match stream.read(&mut piece).await.unwrap() {
                0 => return None,
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
    }

    fn machine() -> MachineConfig<'static> {
        MachineConfig {
            vcpus: 2,
            memory_mib: 256,
            kernel: "/proc/self/fd/3",
            initramfs: "/proc/self/fd/4",
            boot_args: "reboot=k",
            disk: Some("/proc/self/fd/5"),
            guest_cid: 3,
            vsock: "vsock",
        }
    }

    #[tokio::test]
    async fn a_machine_is_made_in_firecrackers_words() {
        let folder = tempfile::tempdir().unwrap();
        let said = r#"{"id":"06h1","state":"Not started","vmm_version":"1.12.0","app_name":"Firecracker"}"#;
        let mut answers = vec![answer(200, said)];
        answers.resize(8, DONE.to_owned());
        answers.extend([
            answer(200, &said.replace("Not started", "Paused")),
            DONE.to_owned(),
        ]);
        let (api, asked) = peer(folder.path(), answers);
        let asking = async {
            assert_eq!(api.greet(DEADLINE).await.unwrap(), "Firecracker 1.12.0");
            api.start(&machine()).await.unwrap();
            api.pause().await.unwrap();
            assert!(api.is_paused().await.unwrap());
            api.resume().await.unwrap();
        };
        let ((), asked) = tokio::join!(asking, asked);
        let lines: Vec<_> = asked.iter().map(|(line, _)| line.as_str()).collect();
        let paths = [
            "GET /",
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /vsock",
            "PUT /entropy",
            "PUT /drives/layers",
            "PUT /actions",
            "PATCH /vm",
            "GET /",
            "PATCH /vm",
        ];
        assert_eq!(lines, paths.map(|path| format!("{path} HTTP/1.1")));
        let bodies: Vec<_> = asked.into_iter().map(|(_, body)| body).collect();
        assert_eq!(bodies[1], json!({"vcpu_count": 2, "mem_size_mib": 256}));
        assert_eq!(
            bodies[5],
            json!({"drive_id": "layers", "path_on_host": "/proc/self/fd/5",
                "is_root_device": false, "is_read_only": true})
        );
        assert_eq!(bodies[6], json!({"action_type": "InstanceStart"}));
        assert_eq!(bodies[7], json!({"state": "Paused"}));
        assert_eq!(bodies[9], json!({"state": "Resumed"}));
    }

    #[tokio::test]
    async fn a_fault_is_told_in_its_words_and_ends_the_making() {
        let folder = tempfile::tempdir().unwrap();
        let fault = r#"{"fault_message":"The memory size (MiB) is either 0,\nor too large."}"#;
        let (api, asked) = peer(folder.path(), vec![answer(400, fault)]);
        let machine = machine();
        let (started, asked) = tokio::join!(api.start(&machine), asked);
        let error = started.unwrap_err().to_string();
        assert_eq!(
            error,
            "the monitor's API refused `PUT /machine-config` with 400: The memory size (MiB) is \
             either 0, or too large."
        );
        assert_eq!(asked.len(), 1);
    }

    #[tokio::test]
    async fn what_is_no_answer_is_refused_and_bounded() {
        for bytes in [
            "SSH-2.0-x\r\n\r\n".to_owned(),
            "HTTP/1.1 204 \r\n".to_owned(),
            format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", u64::MAX),
            format!(
                "HTTP/1.1 200 \r\nA: {}\r\n\r\n",
                "a".repeat(HEAD_BYTES_MAX + 4096)
            ),
            answer(200, "no JSON"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("api");
            let listener = UnixListener::bind(&socket).unwrap();
            let peer = async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                // It may have heard enough before the end.
                drop(stream.write_all(bytes.as_bytes()).await);
            };
            let api = Api::of(&socket);
            let (asked, ()) = tokio::join!(api.pause(), peer);
            let error = asked.unwrap_err();
            assert!(matches!(error, ApiError::Io { .. }), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let nobody = Api::of(&folder.path().join("api"));
        assert!(nobody.greet(Duration::from_millis(20)).await.is_err());
    }
}
