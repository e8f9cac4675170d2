//! A real registry, a proxy in front of it that cuts connections, and a
//! server that answers what a test tells it to.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Long enough for a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `docker-registry` on a free port, ended with this.
pub struct Registry {
    child: Child,
    pub port: u16,
    pub storage: PathBuf,
}

impl Registry {
    pub async fn start(dir: &Path, more: &str) -> Self {
        let port = skiff_testkit::unused_port();
        let storage = dir.join(format!("registry-{port}"));
        let config = dir.join(format!("registry-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n{more}",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = skiff_base::process::command("docker-registry")
            .arg("serve")
            .arg(&config)
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            port,
            storage,
        };
        registry.ready().await;
        registry
    }

    async fn ready(&self) {
        let answers = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, answers).await.unwrap();
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The file in which the registry keeps a blob.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have been stopped before.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[derive(Default)]
struct Seen {
    requests: Mutex<String>,
    answered: AtomicU64,
    refused: AtomicU64,
    /// Bytes that still may pass towards the client.
    budget: AtomicI64,
}

/// Passes bytes to a server, up to a budget; then it cuts every connection.
pub struct Proxy {
    pub port: u16,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn start(upstream: u16, budget: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        seen.budget.store(budget, Ordering::SeqCst);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream, Arc::clone(&seen)));
        Self {
            port,
            seen,
            _tasks: tasks,
        }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What clients have asked so far.
    pub fn requests(&self) -> String {
        self.seen.requests.lock().unwrap().clone()
    }

    pub fn answered(&self) -> u64 {
        self.seen.answered.load(Ordering::SeqCst)
    }

    pub fn allow(&self, budget: i64) {
        self.seen.budget.store(budget, Ordering::SeqCst);
    }

    /// Whether a client came back after it was cut off; by then all were.
    pub fn has_refused(&self) -> bool {
        self.seen.refused.load(Ordering::SeqCst) > 0
    }
}

async fn accept(listener: TcpListener, upstream: u16, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        connections.spawn(async move {
            // A cut connection is what this is for.
            drop(pass(client, upstream, &seen).await);
        });
    }
}

async fn pass(mut client: TcpStream, upstream: u16, seen: &Seen) -> std::io::Result<()> {
    if seen.budget.load(Ordering::SeqCst) <= 0 {
        seen.refused.fetch_add(1, Ordering::SeqCst);
        return Ok(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    let (mut to_client, mut to_server) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut to_server) => {
                let piece = &to_server[..read?];
                if piece.is_empty() {
                    return Ok(());
                }
                seen.requests.lock().unwrap().push_str(&String::from_utf8_lossy(piece));
                server.write_all(piece).await?;
            }
            read = server.read(&mut to_client) => {
                let piece = &to_client[..read?];
                let left = seen.budget.fetch_sub(i64::try_from(piece.len()).unwrap(), Ordering::SeqCst);
                if piece.is_empty() || left <= 0 {
                    return Ok(());
                }
                seen.answered.fetch_add(piece.len() as u64, Ordering::SeqCst);
                client.write_all(piece).await?;
            }
        }
    }
}

/// What a scripted server answers: status line and further header lines, and
/// the body.
pub type Reply = (String, Vec<u8>);

/// Answers each request as a function of its head says.
pub struct Scripted {
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl Scripted {
    pub async fn start(
        tls: Option<tokio_rustls::TlsAcceptor>,
        answer: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (answer, tls) = (Arc::clone(&answer), tls.clone());
                connections.spawn(async move {
                    match tls {
                        // A client that refuses the certificate is expected.
                        Some(tls) => {
                            if let Ok(client) = tls.accept(client).await {
                                drop(reply(client, &*answer).await);
                            }
                        }
                        None => drop(reply(client, &*answer).await),
                    }
                });
            }
        });
        Self {
            port,
            _tasks: tasks,
        }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

async fn reply(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    answer: &(dyn Fn(&str) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    let (head, body) = answer(&String::from_utf8_lossy(&request));
    let length = body.len();
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await?;
    client.write_all(&body).await?;
    client.shutdown().await
}
