//! MiniStack, an emulator of AWS for tests: its functions are Python's in a
//! process of its own, without any walls.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::context::{Context, Service, free_port};
use crate::sample_image::text;
use crate::signed::Door;
use crate::time::wait_until;

const PACKAGE: &str = "ministack==1.5.33";
const STARTING: Duration = Duration::from_secs(60);
const HANDLER: &str = "def handler(event, context):\n    return event\n";

/// One that runs.
#[derive(Debug)]
pub struct Ministack {
    address: SocketAddr,
    _process: Service,
}

impl Ministack {
    /// Fetches it from the package index and starts it.
    ///
    /// # Errors
    /// When it cannot be had, or does not come up.
    pub fn start(context: &Context) -> anyhow::Result<Self> {
        let folder = text(&context.home().join("ministack"));
        context.run("/usr/bin/python3", &["-m", "venv", &folder])?;
        let pip = format!("{folder}/bin/pip");
        let install = ["install", "--quiet", "--disable-pip-version-check", PACKAGE];
        context.run(&pip, &install)?;
        let port = free_port()?;
        let env = [("GATEWAY_PORT", port.to_string()), ("HOME", folder.clone())];
        let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
        let python = format!("{folder}/bin/python");
        let process = context.spawn_with(&python, &["-m", "ministack"], &env)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_until("MiniStack answers", STARTING, || {
            Ok(TcpStream::connect(address).is_ok())
        })?;
        Ok(Self {
            address,
            _process: process,
        })
    }

    pub fn door(&self) -> Door {
        Door::open(self.address)
    }

    /// A function that answers its event, as a zip.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn echo(context: &Context) -> anyhow::Result<Value> {
        let (source, zip) = (
            context.home().join("app.py"),
            context.home().join("app.zip"),
        );
        std::fs::write(&source, HANDLER)?;
        let words = ["-m", "zipfile", "-c", &text(&zip), &text(&source)];
        context.run("/usr/bin/python3", &words)?;
        let packed = context.run("base64", &["-w0", &text(&zip)])?;
        Ok(json!({
            "Runtime": "python3.12",
            "Handler": "app.handler",
            "PackageType": "Zip",
            "Code": {"ZipFile": packed},
        }))
    }
}
