//! Manifests and indexes, of OCI (image-spec) and Docker (schema 2), as a
//! registry, a layout or an archive gives them. Pure; every count is bounded.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use skiff_types::Digest;
use skiff_types::limits::LAYERS_MAX;

use crate::limits::{BLOB_BYTES_MAX, IMAGE_BYTES_MAX, INDEX_ENTRIES_MAX, JSON_BYTES_MAX};
use crate::platform::Platform;

/// What a registry is asked for.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why the bytes are no usable manifest, index or configuration.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not the JSON that is expected.
    #[error("{what} is not valid")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is larger than this crate reads.
    #[error("{what} is over 4 MiB")]
    TooLarge {
        /// Which document.
        what: &'static str,
    },
    /// Docker's manifest before 2016, which carries no verifiable configuration.
    #[error(
        "the image has a Docker schema 1 manifest, which is not supported: push it again with a current tool"
    )]
    Schema1,
    /// It is neither an image nor a list of images.
    #[error("`{media_type}` is not an image: a manifest or an index is expected")]
    NotAnImage {
        /// What it says it is.
        media_type: String,
    },
    /// A layer is packed in a way that is not known.
    #[error("a layer has the media type `{media_type}`, which is not supported")]
    LayerType {
        /// What it says it is.
        media_type: String,
    },
    /// A layer that the image's licence keeps off registries.
    #[error("layer {digest} is not distributable (a Windows base layer)")]
    Foreign {
        /// The layer.
        digest: Digest,
    },
    /// A count or size is over its bound.
    #[error("the image has {count} {what}: at most {most} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// The bound.
        most: u64,
    },
    /// Configuration and manifest tell of different layers.
    #[error("the configuration lists {diff_ids} layers and the manifest {layers}")]
    LayerCount {
        /// In the configuration.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// None of the index's images runs here.
    #[error("there is no image for {wanted}, only for {offered}")]
    NoPlatform {
        /// What was asked.
        wanted: String,
        /// What there is, behind commas.
        offered: String,
    },
    /// A value cannot be used.
    #[error("{what} is `{value}`: {reason}")]
    Value {
        /// Which.
        what: &'static str,
        /// Its text.
        value: String,
        /// Why not.
        reason: &'static str,
    },
}

/// Points at content (image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// One image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
}

/// Several images, usually one for each platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// How a layer's tar is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Go writes an empty list or map as `null`.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What every document says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index. What it is, it says itself: the type it
    /// was served with proves nothing (image-spec, CVE-2021-41190).
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let head: Head = json("the manifest", bytes)?;
        let claims = head.media_type.as_str();
        if head.schema_version == 1 {
            return Err(DocumentError::Schema1);
        }
        if is_index(claims) || (claims.is_empty() && head.manifests.is_some()) {
            if head.layers.is_some() || head.config.is_some() {
                return Err(not_an_image("a mix of index and manifest"));
            }
            return Self::index(bytes);
        }
        let claims_manifest = is_manifest(claims) || claims.is_empty();
        if !claims_manifest || head.config.is_none() {
            return Err(not_an_image(claims));
        }
        if head.manifests.is_some() {
            return Err(not_an_image("a mix of index and manifest"));
        }
        Self::manifest(bytes)
    }

    fn index(bytes: &[u8]) -> Result<Self, DocumentError> {
        let index: Index = json("the index", bytes)?;
        bounded(
            "entries",
            index.manifests.len() as u64,
            INDEX_ENTRIES_MAX as u64,
        )?;
        Ok(Self::Index(index))
    }

    fn manifest(bytes: &[u8]) -> Result<Self, DocumentError> {
        let manifest: Manifest = json("the manifest", bytes)?;
        bounded("layers", manifest.layers.len() as u64, LAYERS_MAX as u64)?;
        bounded(
            "bytes of configuration",
            manifest.config.size,
            JSON_BYTES_MAX,
        )?;
        let mut total = 0u64;
        for layer in &manifest.layers {
            bounded("bytes in one layer", layer.size, BLOB_BYTES_MAX)?;
            total = total.saturating_add(layer.size);
            layer.check_layer_type()?;
        }
        bounded("bytes of layers", total, IMAGE_BYTES_MAX)?;
        Ok(Self::Manifest(manifest))
    }
}

impl Descriptor {
    /// Refuses a layer that is no tar. How the tar is packed its first bytes
    /// say, as for the Docker tools: media types are often wrong about it.
    fn check_layer_type(&self) -> Result<(), DocumentError> {
        let media_type = self.media_type.as_str();
        if media_type.contains("nondistributable") || media_type.contains(".foreign.") {
            return Err(DocumentError::Foreign {
                digest: self.digest.clone(),
            });
        }
        let packed = media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.tar")
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"));
        match packed {
            Some("" | "+gzip" | ".gzip" | "+zstd" | ".zstd") => Ok(()),
            _ => Err(DocumentError::LayerType {
                media_type: clipped(media_type),
            }),
        }
    }

    /// Whether this entry of an index is about another entry instead of being
    /// an image: BuildKit's attestations.
    pub fn is_attestation(&self) -> bool {
        let unknown = self
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "unknown" || p.architecture == "unknown");
        unknown || self.annotations.contains_key("vnd.docker.reference.type")
    }
}

impl Index {
    /// The entry that suits the platform best; the first of equals.
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, DocumentError> {
        let images = || {
            self.manifests
                .iter()
                .filter(|d| !d.is_attestation())
                .filter(|d| {
                    d.media_type.is_empty() || is_manifest(&d.media_type) || is_index(&d.media_type)
                })
        };
        let ranked = images().filter_map(|d| Some((wanted.rank(d.platform.as_ref()?)?, d)));
        if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
            return Ok(best);
        }
        // A layout's index often has one entry and does not say its platform;
        // the configuration does, and is checked.
        let mut unsaid = images().filter(|d| d.platform.is_none());
        if let (Some(only), None) = (unsaid.next(), unsaid.next()) {
            return Ok(only);
        }
        let mut offered: Vec<String> = images()
            .filter_map(|d| Some(d.platform.as_ref()?.to_string()))
            .take(20)
            .collect();
        offered.sort();
        offered.dedup();
        if offered.is_empty() {
            offered.push("none".to_owned());
        }
        Err(DocumentError::NoPlatform {
            wanted: wanted.to_string(),
            offered: clipped(&offered.join(", ")),
        })
    }
}

impl Compression {
    /// What the first bytes say.
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Reads bounded JSON.
pub(crate) fn json<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, DocumentError> {
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(DocumentError::TooLarge { what });
    }
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

/// Refuses a count over its bound.
pub(crate) fn bounded(what: &'static str, count: u64, most: u64) -> Result<(), DocumentError> {
    if count <= most {
        return Ok(());
    }
    Err(DocumentError::TooMany { what, count, most })
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_MANIFEST | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

fn not_an_image(media_type: &str) -> DocumentError {
    DocumentError::NotAnImage {
        media_type: clipped(media_type),
    }
}

/// A hostile text in an error message stays short and on one line.
pub(crate) fn clipped(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_sha256([byte; 32])
    }

    fn manifest(layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":2}},
            "layers":[{{"mediaType":"{layer}","digest":"{}","size":3}}]}}"#,
            digest(1),
            digest(2)
        )
    }

    fn index(entries: &[(&str, &str)]) -> Index {
        let manifests: Vec<String> = entries
            .iter()
            .enumerate()
            .map(|(i, (platform, more))| {
                let platform = match platform.split_once('/') {
                    Some((os, rest)) => {
                        let (arch, variant) = rest.split_once('/').unwrap_or((rest, ""));
                        let variant = match variant {
                            "" => String::new(),
                            v => format!(r#","variant":"{v}""#),
                        };
                        format!(r#""platform":{{"os":"{os}","architecture":"{arch}"{variant}}},"#)
                    }
                    None => String::new(),
                };
                let digest = digest(u8::try_from(i).unwrap());
                format!(r#"{{{platform}"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1{more}}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            manifests.join(",")
        );
        match Document::parse(text.as_bytes()).unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("an index is expected"),
        }
    }

    fn refused(text: &str) -> String {
        Document::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn layers_are_tars_however_they_are_packed() {
        let table = [
            OCI_LAYER_TAR,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ];
        for media_type in table {
            let found = Document::parse(manifest(media_type).as_bytes()).unwrap();
            assert!(matches!(found, Document::Manifest(m) if m.layers.len() == 1));
        }
        assert!(refused(&manifest("application/x-lzma")).contains("application/x-lzma"));
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(refused(&manifest(foreign)).contains("not distributable"));
        let heads: [(&[u8], _); 4] = [
            (b"\x1f\x8b\x08", Compression::Gzip),
            (b"\x28\xb5\x2f\xfd\0", Compression::Zstd),
            (b"etc/", Compression::None),
            (b"", Compression::None),
        ];
        for (head, compression) in heads {
            assert_eq!(Compression::sniff(head), compression);
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        assert!(refused(r#"{"schemaVersion":1,"name":"x"}"#).contains("schema 1"));
        assert!(refused(r#"{"schemaVersion":2,"mediaType":"text/plain"}"#).contains("text/plain"));
        assert!(refused("{}").contains("not an image"));
        assert!(refused("[").contains("not valid"));
        let mixed = manifest(OCI_LAYER_TAR)
            .replace(r#""schemaVersion""#, r#""manifests":[],"schemaVersion""#);
        assert!(refused(&mixed).contains("mix"));
    }

    #[test]
    fn counts_and_sizes_are_bounded() {
        let one = format!(
            r#"{{"mediaType":"{OCI_LAYER_TAR}","digest":"{}","size":3}}"#,
            digest(2)
        );
        let many = manifest(OCI_LAYER_TAR).replace(&one, &vec![one.clone(); 128].join(","));
        assert!(refused(&many).contains("128 layers"));
        let large = manifest(OCI_LAYER_TAR).replace(r#""size":3"#, r#""size":99999999999999"#);
        assert!(refused(&large).contains("bytes in one layer"));
        let negative = manifest(OCI_LAYER_TAR).replace(r#""size":3"#, r#""size":-3"#);
        assert!(refused(&negative).contains("not valid"));
        let text = format!("{{{}}}", " ".repeat(5 << 20));
        assert!(refused(&text).contains("4 MiB"));
    }

    #[test]
    fn an_index_gives_the_platforms_best_and_no_attestation() {
        let attestation = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
        let select = |entries: &[(&str, &str)], wanted: &str| {
            index(entries)
                .select(&wanted.parse().unwrap())
                .map(|d| d.digest.clone())
                .map_err(|e| e.to_string())
        };
        let entries = [
            ("linux/amd64", attestation),
            ("unknown/unknown", ""),
            ("linux/arm64", ""),
            ("linux/amd64/v2", ""),
            ("linux/amd64", r#","annotations":null"#),
        ];
        assert_eq!(select(&entries, "linux/amd64"), Ok(digest(4)));
        assert_eq!(select(&entries, "linux/amd64/v2"), Ok(digest(3)));
        assert_eq!(select(&entries, "linux/arm64/v8"), Ok(digest(2)));
        let none = select(&entries, "linux/s390x").unwrap_err();
        assert!(
            none.contains("linux/s390x, only for linux/amd64, linux/amd64/v2, linux/arm64"),
            "{none}"
        );
        assert_eq!(select(&[("", "")], "linux/amd64"), Ok(digest(0)));
        assert!(select(&[("", ""), ("", "")], "linux/amd64").is_err());
        assert!(
            select(&[], "linux/amd64")
                .unwrap_err()
                .contains("only for none")
        );
    }
}
