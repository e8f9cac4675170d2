//! One image of a source: its documents read and proved, its layers found.

use skiff_types::Digest;
use skiff_types::limits::LAYERS_MAX;

use crate::commit::{Layers, check, checked_config, digest_of, manifest_of};
use crate::config::ConfigDocument;
use crate::document::{Descriptor, Document, Manifest, bounded};
use crate::error::ImageError;
use crate::layer::Expected;
use crate::limits::INDEX_DEPTH_MAX;

use super::images::{self, Candidate, Choice, Found};
use super::tree::{Section, Tree};
use super::{ImportOptions, not_an_image};

/// Something that holds images.
pub(super) struct Source {
    pub tree: Tree,
    pub shown: String,
    pub options: ImportOptions,
}

pub(super) struct Chosen {
    pub names: Vec<String>,
    /// Its digest and bytes; an archive of `docker save` has none.
    pub manifest: Option<(Digest, Vec<u8>)>,
    pub config_digest: Digest,
    pub config: Vec<u8>,
    pub parsed: ConfigDocument,
    pub layers: Vec<(Expected, Section)>,
}

impl Source {
    /// The image that the options ask for. Reads files.
    pub fn choose(&self) -> Result<Chosen, ImageError> {
        let candidates = self.candidates()?;
        let name = self.options.name.as_ref();
        let candidate =
            images::choose(candidates, name).map_err(|choice| self.no_choice(choice))?;
        let names = images::references(&candidate, name);
        match &candidate.found {
            Found::Oci(entries) => self.oci(entries, names),
            Found::Docker { config, layers } => self.docker(config, layers, names),
        }
    }

    fn candidates(&self) -> Result<Vec<Candidate>, ImageError> {
        let document = ImageError::document(&self.shown);
        if let Some(index) = self.read("index.json")? {
            return images::of_layout(&index).map_err(document);
        }
        if let Some(manifest) = self.read("manifest.json")? {
            return images::of_docker(&manifest).map_err(document);
        }
        Err(not_an_image(
            &self.shown,
            "it has neither index.json (an OCI layout) nor manifest.json (docker save)",
        ))
    }

    fn oci(&self, entries: &[Descriptor], names: Vec<String>) -> Result<Chosen, ImageError> {
        let (digest, bytes, manifest) = self.manifest(entries)?;
        let config_digest = manifest.config.digest.clone();
        let config = self.blob(&config_digest)?;
        let parsed = self.config(&config, manifest.layers.len())?;
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&parsed.diff_ids) {
            let expected = Expected {
                blob: Some((layer.digest.clone(), layer.size)),
                diff_id: diff_id.clone(),
            };
            layers.push((expected, self.section(&blob_name(&layer.digest))?));
        }
        Ok(Chosen {
            names,
            manifest: Some((digest, bytes)),
            config_digest,
            config,
            parsed,
            layers,
        })
    }

    /// The manifest for the platform, through as many indexes as it takes.
    fn manifest(&self, entries: &[Descriptor]) -> Result<(Digest, Vec<u8>, Manifest), ImageError> {
        let mut entries = entries.to_vec();
        for _ in 0..INDEX_DEPTH_MAX {
            let entry = images::select(&entries, &self.options.platform)
                .map_err(ImageError::document(&self.shown))?;
            let bytes = self.blob(&entry.digest)?;
            match Document::parse(&bytes).map_err(ImageError::document(&entry.digest))? {
                Document::Manifest(manifest) => return Ok((entry.digest, bytes, manifest)),
                Document::Index(index) => entries = index.manifests,
            }
        }
        Err(not_an_image(
            &self.shown,
            "its indexes never come to an image",
        ))
    }

    fn docker(
        &self,
        config_name: &str,
        layers: &[String],
        names: Vec<String>,
    ) -> Result<Chosen, ImageError> {
        let config = self.required(config_name)?;
        let config_digest = digest_of(&config);
        if let Some(expected) = images::digest_in(config_name) {
            check("a configuration", &expected, &config_digest)?;
        }
        bounded("layers", layers.len() as u64, LAYERS_MAX as u64)
            .map_err(ImageError::document(&self.shown))?;
        let parsed = self.config(&config, layers.len())?;
        let mut sections = Vec::new();
        for (name, diff_id) in layers.iter().zip(&parsed.diff_ids) {
            let expected = Expected {
                blob: None,
                diff_id: diff_id.clone(),
            };
            sections.push((expected, self.section(name)?));
        }
        Ok(Chosen {
            names,
            manifest: None,
            config_digest,
            config,
            parsed,
            layers: sections,
        })
    }

    fn config(&self, bytes: &[u8], layers: usize) -> Result<ConfigDocument, ImageError> {
        checked_config(&self.shown, bytes, layers, &self.options.platform)
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let bytes = self.required(&blob_name(digest))?;
        check("a document", digest, &digest_of(&bytes))?;
        Ok(bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        self.tree
            .read(name)
            .map_err(|error| not_an_image(&self.shown, &error.to_string()))
    }

    fn required(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        self.read(name)?.ok_or_else(|| self.missing(name))
    }

    fn section(&self, name: &str) -> Result<Section, ImageError> {
        self.tree
            .open(name)
            .map_err(|error| not_an_image(&self.shown, &error.to_string()))?
            .ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> ImageError {
        let name: String = name.chars().take(100).collect();
        not_an_image(&self.shown, &format!("{name} is missing"))
    }

    fn no_choice(&self, choice: Choice) -> ImageError {
        match choice {
            Choice::None => not_an_image(&self.shown, "it holds no image"),
            Choice::Several(names) => ImageError::SeveralImages {
                path: self.shown.clone(),
                names,
            },
        }
    }
}

impl Chosen {
    /// The manifest, and its digest. What has none gets one that describes
    /// its layers as the tars that they are.
    pub fn manifest(&mut self, layers: &Layers) -> Result<(Digest, Vec<u8>), ImageError> {
        if let Some(manifest) = self.manifest.take() {
            return Ok(manifest);
        }
        manifest_of(&self.parsed, layers, &self.config_digest, self.config.len())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
