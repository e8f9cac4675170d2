//! Where everything lies in the store's folder.
//!
//! ```text
//! lock                     shared while the store is used, exclusive to collect
//! blobs/sha256/HEX         manifests and configurations, byte for byte
//! layers/HEX.erofs         a layer, named by the digest of its tar (diff id)
//! layers/HEX.json          its size and its passwd and group files; written first
//! code/HEX.zip             functions' code as it came, named by its SHA-256
//! code/HEX-task.json       the layer below /var/task that it became; HEX-opt below /opt
//! images/HEX.json          an image, named by its manifest; written after its layers
//! references/HEX.json      a name; HEX is a hash of reference and platform
//! ingest/HEX.turn          locked by whoever works on a layer
//! ingest/HEX-HEX.partial   a download that can be continued: layer and blob
//! ingest/tmp-RANDOM        a file being written; locked by its writer
//! ```

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use skiff_types::Digest;

use crate::code::CodeRoot;
use crate::platform::Platform;

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub fn folders(&self) -> [PathBuf; 6] {
        [
            self.blobs(),
            self.layers(),
            self.code_folder(),
            self.images(),
            self.references(),
            self.ingest(),
        ]
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    pub fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    pub fn references(&self) -> PathBuf {
        self.dir.join("references")
    }

    pub fn ingest(&self) -> PathBuf {
        self.dir.join("ingest")
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(format!("{}.erofs", diff_id.hex()))
    }

    pub fn layer_record(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(format!("{}.json", diff_id.hex()))
    }

    pub fn image(&self, digest: &Digest) -> PathBuf {
        self.images().join(format!("{}.json", digest.hex()))
    }

    pub fn reference(&self, reference: &str, platform: &Platform) -> PathBuf {
        let key = Sha256::digest(format!("{platform} {reference}"));
        let name = Digest::from_sha256(key.into());
        self.references().join(format!("{}.json", name.hex()))
    }

    pub fn code_folder(&self) -> PathBuf {
        self.dir.join("code")
    }

    pub fn code(&self, digest: &Digest) -> PathBuf {
        self.code_folder().join(format!("{}.zip", digest.hex()))
    }

    pub fn code_record(&self, digest: &Digest, root: CodeRoot) -> PathBuf {
        let name = format!("{}-{}.json", digest.hex(), root.word());
        self.code_folder().join(name)
    }

    pub fn turn(&self, diff_id: &Digest) -> PathBuf {
        self.ingest().join(format!("{}.turn", diff_id.hex()))
    }

    pub fn partial(&self, diff_id: &Digest, blob: &Digest) -> PathBuf {
        let name = format!("{}-{}.partial", diff_id.hex(), blob.hex());
        self.ingest().join(name)
    }
}
