//! What is saved, apart from what is live. Each value in the store is an
//! envelope with the version of its form, so that a later form can be told.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_types::api::{Quota, RevisionState};
use skiff_types::{ProjectId, ProjectName, RevisionSpec, ServiceName, Tag};

use crate::error::{ControlError, internal};

/// The version that this code writes and the newest it reads.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    record: T,
}

#[derive(Deserialize)]
struct Head {
    v: u32,
}

/// A record as stored bytes.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, ControlError> {
    let envelope = Envelope { v: VERSION, record };
    serde_json::to_vec(&envelope).map_err(|e| internal(format!("a record cannot be written: {e}")))
}

/// Reads what [`encode`] wrote under `key`.
pub(crate) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, ControlError> {
    let damaged =
        |e: serde_json::Error| internal(format!("the stored value of {key} is damaged: {e}"));
    let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
    if head.v > VERSION {
        return Err(internal(format!(
            "the stored value of {key} has form {}, written by a newer Skiff; this one reads up to {VERSION}",
            head.v
        )));
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(damaged)?;
    Ok(envelope.record)
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProjectRecord {
    pub id: ProjectId,
    pub name: ProjectName,
    pub quota: Quota,
}

/// A service: what it serves is decided by this one value alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceRecord {
    pub created_unix_ms: u64,
    /// The newest revision that was validated.
    pub latest_ready: Option<u32>,
    /// Percentages sum to 100, or there is none yet.
    pub targets: Vec<Target>,
    /// Kept and ready for requests although no share leads to them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kept: BTreeSet<u32>,
}

/// One share of a service's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Absent follows `latest_ready`.
    pub revision: Option<u32>,
    pub percent: u8,
    pub tag: Option<Tag>,
}

/// A revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RevisionRecord {
    pub created_unix_ms: u64,
    pub state: RevisionState,
    pub reason: Option<String>,
    pub spec: RevisionSpec,
}

/// The last number given to a revision of a service; outlives the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberRecord {
    pub last: u32,
}

/// A token: never itself, only its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub name: String,
    pub project: Option<ProjectId>,
    pub sha256: String,
    pub created_unix_ms: u64,
}

/// Whose an access key is; its secret is a [`SecretRecord`] of the project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccessKeyRecord {
    pub name: String,
    pub project: ProjectId,
    pub created_unix_ms: u64,
}

/// Whom a hook is for; its token is known by its SHA-256 alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookRecord {
    pub function: ServiceName,
    /// A version or an alias of it.
    pub qualifier: Option<String>,
    pub sha256: String,
    pub created_unix_ms: u64,
}

/// A secret, encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecretRecord {
    pub updated_unix_ms: u64,
    pub key_id: String,
    pub nonce_base64: String,
    pub sealed_base64: String,
}

/// A key whose being there says all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_a_newer_form_is_refused() {
        let bytes = encode(&NumberRecord { last: 7 }).unwrap();
        assert_eq!(decode::<NumberRecord>("k", &bytes).unwrap().last, 7);
        let newer = br#"{"v":2,"record":{"next":8}}"#;
        let error = decode::<NumberRecord>("a/b", newer).unwrap_err();
        assert!(error.message.contains("a/b has form 2"), "{error}");
        let damaged = decode::<NumberRecord>("a/b", b"{").unwrap_err();
        assert!(damaged.message.contains("a/b is damaged"), "{damaged}");
    }
}
