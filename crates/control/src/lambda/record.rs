//! What is stored of a function beside its service and its revisions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skiff_lambda::FunctionName;
use skiff_types::{Digest, ProjectId, ServiceName};

use super::settings::EPHEMERAL_MIB;

/// A function: `$LATEST`, what its versions and aliases are, and who may
/// invoke it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionRecord {
    /// What AWS's clients call it; absent is what its service is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<FunctionName>,
    pub latest: Configuration,
    /// The last number given to a version; never given again.
    pub last_version: u32,
    /// What serves each version.
    pub versions: BTreeMap<u32, Version>,
    /// The version that is made of `$LATEST` once that serves; it is stored,
    /// and is none if that fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publishing: Option<u32>,
    pub aliases: BTreeMap<String, Alias>,
    pub tags: BTreeMap<String, String>,
    /// Invocations at once; absent is what the project may have.
    pub reserved_concurrency: Option<u32>,
    /// By qualifier; empty is the function without one.
    pub policies: BTreeMap<String, Policy>,
    /// How events are tried, by qualifier.
    #[serde(default)]
    pub events: BTreeMap<String, EventConfig>,
    /// URLs, by alias; empty is the function without one.
    #[serde(default)]
    pub urls: BTreeMap<String, UrlConfig>,
    /// What is kept warm, by version or alias.
    #[serde(default)]
    pub provisioned: BTreeMap<String, Provisioned>,
}

impl FunctionRecord {
    /// What it is called, whose service this is.
    pub(crate) fn name_of(&self, service: &ServiceName) -> FunctionName {
        let service = || service.clone().into();
        self.name.clone().unwrap_or_else(service)
    }

    /// Whether it is the one of that name, and does not only have its service.
    pub(crate) fn is_named(&self, name: &FunctionName) -> bool {
        match &self.name {
            Some(own) => own == name,
            None => name.is_services(),
        }
    }
}

/// Instances of a version or an alias that are there whatever the demand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Provisioned {
    pub requested: u32,
    pub modified_unix_ms: u64,
}

/// A function's URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UrlConfig {
    /// What its host begins with; never given again.
    pub id: String,
    pub auth: UrlAuth,
    pub mode: InvokeMode,
    pub cors: Option<Cors>,
    pub created_unix_ms: u64,
    pub modified_unix_ms: u64,
}

/// Who may call a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UrlAuth {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "AWS_IAM")]
    Iam,
}

/// How a URL's function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum InvokeMode {
    #[serde(rename = "BUFFERED")]
    Buffered,
    #[serde(rename = "RESPONSE_STREAM")]
    ResponseStream,
}

/// What other origins' pages may do with a URL; as clients write it, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Cors {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_headers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_methods: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_origins: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose_headers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u32>,
}

/// Where a URL's id leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UrlRecord {
    pub project: ProjectId,
    pub function: ServiceName,
    /// Empty is the function without an alias.
    pub alias: String,
}

/// How events of a qualifier are tried; what is absent is AWS's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventConfig {
    pub modified_unix_ms: u64,
    /// Tries after the first.
    pub retries: Option<u32>,
    /// The oldest an event may get.
    pub age_s: Option<u32>,
    /// Who is told of an event that succeeded.
    pub on_success: Option<String>,
    /// Who is told of one that did not.
    pub on_failure: Option<String>,
}

/// What invocations need to know of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub revision: u32,
    pub timeout_s: u32,
    #[serde(default)]
    pub role: String,
    /// `$LATEST`'s when it was published, where the version has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_description: Option<String>,
}

/// How a function, or one of its versions, is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Configuration {
    /// Changes with every change.
    pub revision_id: String,
    pub modified_unix_ms: u64,
    pub description: String,
    pub role: String,
    pub timeout_s: u32,
    pub memory_mib: u32,
    /// Of `/tmp`.
    #[serde(default = "ephemeral_mib")]
    pub ephemeral_mib: u32,
    pub environment: BTreeMap<String, String>,
    /// The function's image; of code from a zip file what lies below it.
    pub image_uri: String,
    /// Code from a zip file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ZipCode>,
    pub entry_point: Vec<String>,
    pub command: Vec<String>,
    /// Who gets events that failed.
    #[serde(default)]
    pub dead_letter: Option<String>,
    /// The revision that serves it; absent until the first one does.
    pub revision: Option<u32>,
    /// What the image was pinned to.
    pub digest: Option<Digest>,
    pub update: Update,
}

/// Code from a zip file that is kept in the image store, and how it is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ZipCode {
    /// Of the zip file.
    pub sha256: Digest,
    pub zip_bytes: u64,
    pub unpacked_bytes: u64,
    /// It has a file `bootstrap` at its top.
    pub bootstrap: bool,
    pub runtime: String,
    pub handler: String,
    /// In the order of their use, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<UsedLayer>,
}

/// A layer's version as a function uses it, also when it is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsedLayer {
    pub arn: String,
    /// Of its zip file.
    pub sha256: Digest,
    pub zip_bytes: u64,
    pub unpacked_bytes: u64,
    pub bootstrap: bool,
}

/// A layer; its versions' numbers are never given again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub last_version: u32,
    pub versions: BTreeMap<u32, LayerVersion>,
}

/// A version of a layer, from a zip file that is kept in the image store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerVersion {
    pub created_unix_ms: u64,
    pub description: String,
    pub license: Option<String>,
    pub runtimes: Vec<String>,
    pub architectures: Vec<String>,
    pub sha256: Digest,
    pub zip_bytes: u64,
    pub unpacked_bytes: u64,
    pub bootstrap: bool,
    /// Who may use it besides its project.
    pub policy: Option<Policy>,
}

/// How the last change of a configuration went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Update {
    InProgress,
    Done,
    Failed { reason: String },
}

/// A name for a version, or for two with weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alias {
    pub revision_id: String,
    pub description: String,
    /// A version, or `$LATEST`.
    pub version: String,
    /// Another version and its share, 0 to 1.
    pub second: Option<(u32, f64)>,
}

/// Who may invoke a function besides its project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub revision_id: String,
    pub statements: BTreeMap<String, Statement>,
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statement {
    pub action: String,
    /// 12 digits, `*`, or a service's name.
    pub principal: String,
    pub source_arn: Option<String>,
    pub source_account: Option<String>,
    /// It holds for URLs of this type only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_auth: Option<UrlAuth>,
    /// Whether it holds for calls of a URL only, or only for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via_url: Option<bool>,
}

const fn ephemeral_mib() -> u32 {
    EPHEMERAL_MIB
}

impl Configuration {
    /// Whether that one is run in the same way and told the same, but for what
    /// changes with each change.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let known = |config: &Self| Self {
            revision_id: String::new(),
            modified_unix_ms: 0,
            ..config.clone()
        };
        known(self) == known(other)
    }

    /// What invocations need to know of it as a version.
    pub(crate) fn version(&self, revision: u32) -> Version {
        Version {
            revision,
            timeout_s: self.timeout_s,
            role: self.role.clone(),
            latest_description: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// One without versions, as it was stored when there was least to say.
    pub(crate) fn bare() -> FunctionRecord {
        let stored = json!({
            "latest": {
                "revision_id": "r", "modified_unix_ms": 0, "description": "", "role": "",
                "timeout_s": 3, "memory_mib": 128, "environment": {}, "image_uri": "i",
                "entry_point": [], "command": [], "revision": 13, "digest": null,
                "update": "done",
            },
            "last_version": 0, "versions": {}, "aliases": {}, "tags": {},
            "reserved_concurrency": null, "policies": {},
        });
        serde_json::from_value(stored).unwrap()
    }

    #[test]
    fn a_function_has_its_services_name_unless_it_says_another() {
        let mut record = bare();
        let name: FunctionName = "My_Function".parse().unwrap();
        let own = FunctionName::from(name.service().clone());
        assert!(record.is_named(&own) && !record.is_named(&name));
        assert_eq!(record.name_of(name.service()), own);
        record.name = Some(name.clone());
        assert!(record.is_named(&name) && !record.is_named(&own));
        let stored = serde_json::to_value(&record).unwrap();
        assert_eq!(stored["name"], "My_Function");
    }
}
