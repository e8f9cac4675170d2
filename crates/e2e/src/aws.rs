//! AWS's own clients, and what they speak to beside Skiff.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;

use skiff_base::process;
use skiff_testkit::{Running, Server, aws_clients, run};

/// Serves queues until its standard input ends.
const MOTO: &str = "
import os, sys, threading
def watch():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
from moto.server import main
main(['--host', '127.0.0.1', '--port', '0'])
";

/// Queues of SQS's kind, from the package index, of the default project's
/// account; they end with the test.
#[derive(Debug)]
pub struct Queues {
    url: String,
    _process: Running,
}

impl Queues {
    /// Starts them.
    ///
    /// # Panics
    /// When they do not come up.
    #[must_use]
    pub fn open() -> Self {
        let mut child = process::command(python())
            .args(["-c", MOTO])
            .env("MOTO_ACCOUNT_ID", "000000000001")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let errors = child.stderr.take().expect("it is a pipe");
        let mut lines = BufReader::new(errors).lines();
        let url = loop {
            let line = lines.next().expect("it says where it is");
            let line = line.expect("it writes text");
            if let Some((_, url)) = line.split_once("Running on ") {
                break url.trim().to_owned();
            }
        };
        // Its log shall not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            url,
            _process: Running(child),
        }
    }

    /// Where they are.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The Python that has boto3, moto and the AWS CLI.
///
/// # Panics
/// When they cannot be fetched.
#[must_use]
pub fn python() -> PathBuf {
    static CLIENTS: OnceLock<PathBuf> = OnceLock::new();
    CLIENTS.get_or_init(aws_clients).join("bin/python")
}

/// Where a server has AWS Lambda's API.
///
/// # Panics
/// When it has none.
#[must_use]
pub fn endpoint(server: &Server) -> String {
    let version = server.api("GET", "/v1/version", None);
    let version = version.expect("the server answers");
    let address = version["lambda"].as_str();
    format!("http://{}", address.expect("AWS Lambda's API is served"))
}

/// A server's metrics, as Prometheus reads them.
///
/// # Panics
/// When it does not answer.
#[must_use]
pub fn metrics(server: &Server) -> String {
    let socket = server.run_dir().join("skiff.sock").display().to_string();
    let words = ["-sf", "--unix-socket", &socket, "http://skiff/metrics"];
    run("curl", words).ok()
}
