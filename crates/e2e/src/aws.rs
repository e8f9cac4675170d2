//! AWS's own clients, and what they speak to beside Skiff.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
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

/// What Skiff asks as it asks AWS's services; it ends with the test.
#[derive(Debug)]
pub struct Served {
    url: String,
    _process: Running,
}

impl Served {
    /// Queues of SQS's kind and tables of DynamoDB's, from the package index, of
    /// the default project's account.
    ///
    /// # Panics
    /// When they do not come up.
    #[must_use]
    pub fn queues() -> Self {
        Self::start(&["-c".as_ref(), MOTO.as_ref()])
    }

    /// What a script of the tests' own serves, which says on its standard error
    /// where it is, as moto does.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn script(path: &Path) -> Self {
        Self::start(&[path.as_os_str()])
    }

    fn start(words: &[&OsStr]) -> Self {
        let mut child = process::command(python())
            .args(words)
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

    /// Where it is.
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
