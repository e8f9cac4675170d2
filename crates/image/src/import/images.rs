//! Which images a tree holds, as an OCI layout (image-spec, image-layout.md)
//! or as `docker save` writes it.

use serde::Deserialize;
use skiff_types::Digest;

use crate::document::{
    Descriptor, Document, DocumentError, Index, bounded, clipped, json, null_is_empty,
};
use crate::limits::INDEX_ENTRIES_MAX;
use crate::platform::Platform;
use crate::reference::Reference;

/// An image of the tree, and what it is called there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub names: Vec<String>,
    pub found: Found,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// Entries of a layout's index, one for each platform.
    Oci(Vec<Descriptor>),
    /// Members of an archive.
    Docker { config: String, layers: Vec<String> },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<String>,
}

/// The images of `index.json`: entries of one name are one image's platforms.
pub(super) fn of_layout(index: &[u8]) -> Result<Vec<Candidate>, DocumentError> {
    let Document::Index(Index { manifests }) = Document::parse(index)? else {
        return Err(DocumentError::NotAnImage {
            media_type: "a manifest in place of index.json".to_owned(),
        });
    };
    let mut candidates: Vec<Candidate> = Vec::new();
    for entry in manifests {
        let names: Vec<String> = name_of(&entry).into_iter().collect();
        match candidates.iter_mut().find(|c| c.names == names) {
            Some(Candidate {
                found: Found::Oci(entries),
                ..
            }) => entries.push(entry),
            _ => candidates.push(Candidate {
                names,
                found: Found::Oci(vec![entry]),
            }),
        }
    }
    Ok(candidates)
}

/// containerd and Docker write the whole name apart from the tag.
fn name_of(entry: &Descriptor) -> Option<String> {
    let whole = entry.annotations.get("io.containerd.image.name");
    let tag = entry.annotations.get("org.opencontainers.image.ref.name");
    whole.or(tag).filter(|name| !name.is_empty()).cloned()
}

/// The images of `manifest.json`.
pub(super) fn of_docker(manifest: &[u8]) -> Result<Vec<Candidate>, DocumentError> {
    let entries: Vec<DockerEntry> = json("manifest.json", manifest)?;
    bounded("images", entries.len() as u64, INDEX_ENTRIES_MAX as u64)?;
    Ok(entries
        .into_iter()
        .map(|entry| Candidate {
            names: entry.repo_tags,
            found: Found::Docker {
                config: entry.config,
                layers: entry.layers,
            },
        })
        .collect())
}

/// Why no image could be chosen.
#[derive(Debug, PartialEq)]
pub(super) enum Choice {
    None,
    Several(String),
}

/// The image of that name, or the only one.
pub(super) fn choose(
    mut candidates: Vec<Candidate>,
    name: Option<&Reference>,
) -> Result<Candidate, Choice> {
    const NAMES_SHOWN: usize = 20;
    if candidates.len() == 1 {
        return candidates.pop().ok_or(Choice::None);
    }
    if let Some(name) = name {
        let wanted = |text: &String| text.parse::<Reference>().as_ref() == Ok(name);
        if let Some(found) = candidates.iter().position(|c| c.names.iter().any(wanted)) {
            return Ok(candidates.swap_remove(found));
        }
    }
    if candidates.is_empty() {
        return Err(Choice::None);
    }
    let names: Vec<String> = candidates
        .iter()
        .map(|c| c.names.first().map_or("(one without a name)", |n| n))
        .take(NAMES_SHOWN)
        .map(clipped)
        .collect();
    Err(Choice::Several(names.join(", ")))
}

/// The names to store an image under: the one that was asked for, else its
/// own as far as they are references.
pub(super) fn references(candidate: &Candidate, name: Option<&Reference>) -> Vec<String> {
    if let Some(name) = name {
        return vec![name.to_string()];
    }
    let own = candidate.names.iter();
    own.filter_map(|text| text.parse::<Reference>().ok())
        .map(|reference| reference.to_string())
        .collect()
}

/// The entry for a platform.
pub(super) fn select(
    entries: &[Descriptor],
    platform: &Platform,
) -> Result<Descriptor, DocumentError> {
    let index = Index {
        manifests: entries.to_vec(),
    };
    index.select(platform).cloned()
}

/// The digest in the name of an archive's configuration, which proves it:
/// `HEX.json`, or `blobs/sha256/HEX`.
pub(super) fn digest_in(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    let hex = last.strip_suffix(".json").unwrap_or(last);
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        of_docker(
            br#"[{"Config":"a.json","RepoTags":["one:1"],"Layers":["x"]},
                {"Config":"b.json","RepoTags":["two:2","three"],"Layers":null},
                {"Config":"c.json","RepoTags":null}]"#,
        )
        .unwrap()
    }

    #[test]
    fn one_of_several_is_chosen_by_any_of_its_names() {
        let choose = |name: &str| choose(candidates(), name.parse().ok().as_ref());
        let config = |candidate: Candidate| match candidate.found {
            Found::Docker { config, .. } => config,
            Found::Oci(_) => panic!("a Docker image is expected"),
        };
        assert_eq!(config(choose("one:1").unwrap()), "a.json");
        assert_eq!(config(choose("docker.io/library/three").unwrap()), "b.json");
        let names = "one:1, two:2, (one without a name)".to_owned();
        assert_eq!(choose("four"), Err(Choice::Several(names.clone())));
        assert_eq!(choose(""), Err(Choice::Several(names)));
        assert_eq!(super::choose(Vec::new(), None), Err(Choice::None));
    }

    #[test]
    fn a_single_image_takes_the_name_it_is_given() {
        let first = candidates().swap_remove(0);
        let name: Reference = "mine".parse().unwrap();
        let chosen = choose(vec![first], Some(&name)).unwrap();
        assert_eq!(
            references(&chosen, Some(&name)),
            ["docker.io/library/mine:latest"]
        );
        assert_eq!(references(&chosen, None), ["docker.io/library/one:1"]);
    }

    #[test]
    fn a_configuration_is_proved_by_its_name() {
        let digest = Digest::from_sha256([3; 32]);
        let hex = digest.hex();
        for name in [format!("{hex}.json"), format!("blobs/sha256/{hex}")] {
            assert_eq!(digest_in(&name), Some(digest.clone()));
        }
        assert_eq!(digest_in("config.json"), None);
    }
}
