use std::path::Path;
use std::process::Child;

use skiff_base::process;
use tempfile::TempDir;

use crate::ports::unused_port;
use crate::speed::wait_for;
use crate::tools::run;

/// A real registry on a free loopback port, without TLS.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl Registry {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = format!("127.0.0.1:{}", unused_port());
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            storage.display()
        );
        std::fs::write(&config, text).expect("the registry's configuration");
        let child = process::command("docker-registry")
            .arg("serve")
            .arg(&config)
            .spawn();
        let child = child.expect("docker-registry is installed by scripts/setup.sh");
        wait_for("the registry accepts", 20, || {
            std::net::TcpStream::connect(&address).ok()
        });
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes an OCI layout's image `1` as `NAME:TAG`; answers the reference.
    ///
    /// # Panics
    /// When it cannot be pushed.
    #[must_use]
    pub fn push(&self, layout: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let source = format!("oci:{}:1", layout.display());
        let target = format!("docker://{reference}");
        let _out = run(
            "skopeo",
            [
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
                &source,
                &target,
            ],
        )
        .ok();
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have been ended by the test: both are fine.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
