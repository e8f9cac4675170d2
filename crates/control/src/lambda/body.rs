//! Requests' bodies. A field that is not here is refused by name: nothing
//! that a client asks for is left out in silence.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::record::UsedLayer;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct CreateFunction {
    pub function_name: String,
    pub role: String,
    pub code: Code,
    #[serde(default)]
    pub package_type: Option<String>,
    #[serde(default)]
    pub runtime: Option<String>,
    #[serde(default)]
    pub handler: Option<String>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub timeout: Option<u32>,
    #[serde(default)]
    pub memory_size: Option<u32>,
    #[serde(default)]
    pub environment: Option<Environment>,
    #[serde(default)]
    pub image_config: Option<ImageConfig>,
    #[serde(default)]
    pub architectures: Option<Vec<String>>,
    #[serde(default)]
    pub ephemeral_storage: Option<EphemeralStorage>,
    #[serde(default)]
    pub dead_letter_config: Option<DeadLetterConfig>,
    #[serde(default)]
    pub publish: Option<bool>,
    #[serde(default)]
    pub tags: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Code {
    #[serde(default)]
    pub image_uri: Option<String>,
    /// Empty: the zip file itself does not come to here.
    #[serde(default)]
    pub zip_file: Option<String>,
    #[serde(default)]
    pub s3_bucket: Option<String>,
    #[serde(default)]
    pub s3_key: Option<String>,
    #[serde(default)]
    pub s3_object_version: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Environment {
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    pub entry_point: Vec<String>,
    #[serde(default)]
    pub command: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct EphemeralStorage {
    pub size: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct UpdateFunctionCode {
    #[serde(default)]
    pub image_uri: Option<String>,
    /// Empty: the zip file itself does not come to here.
    #[serde(default)]
    pub zip_file: Option<String>,
    #[serde(default)]
    pub s3_bucket: Option<String>,
    #[serde(default)]
    pub s3_key: Option<String>,
    #[serde(default)]
    pub s3_object_version: Option<String>,
    #[serde(default)]
    pub architectures: Option<Vec<String>>,
    #[serde(default)]
    pub publish: Option<bool>,
    #[serde(default)]
    pub dry_run: Option<bool>,
    #[serde(default)]
    pub revision_id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct UpdateFunctionConfiguration {
    #[serde(default)]
    pub role: Option<String>,
    #[serde(default)]
    pub runtime: Option<String>,
    #[serde(default)]
    pub handler: Option<String>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
    /// What those come to.
    #[serde(skip)]
    pub used: Option<Vec<UsedLayer>>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub timeout: Option<u32>,
    #[serde(default)]
    pub memory_size: Option<u32>,
    #[serde(default)]
    pub environment: Option<Environment>,
    #[serde(default)]
    pub image_config: Option<ImageConfig>,
    #[serde(default)]
    pub ephemeral_storage: Option<EphemeralStorage>,
    #[serde(default)]
    pub dead_letter_config: Option<DeadLetterConfig>,
    #[serde(default)]
    pub revision_id: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct DeadLetterConfig {
    /// Empty is nobody.
    #[serde(default)]
    pub target_arn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct PublishLayerVersion {
    pub content: Code,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub license_info: Option<String>,
    #[serde(default)]
    pub compatible_runtimes: Option<Vec<String>>,
    #[serde(default)]
    pub compatible_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct AddLayerVersionPermission {
    pub statement_id: String,
    pub action: String,
    pub principal: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct PublishVersion {
    #[serde(default)]
    pub code_sha256: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub revision_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct CreateAlias {
    pub name: String,
    pub function_version: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub routing_config: Option<RoutingConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct UpdateAlias {
    #[serde(default)]
    pub function_version: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub routing_config: Option<RoutingConfig>,
    #[serde(default)]
    pub revision_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct RoutingConfig {
    #[serde(default, deserialize_with = "or_default")]
    pub additional_version_weights: BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct AddPermission {
    pub statement_id: String,
    pub action: String,
    pub principal: String,
    #[serde(default)]
    pub source_arn: Option<String>,
    #[serde(default)]
    pub source_account: Option<String>,
    #[serde(default)]
    pub revision_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct PutFunctionConcurrency {
    pub reserved_concurrent_executions: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct EventInvokeConfig {
    #[serde(default)]
    pub maximum_retry_attempts: Option<u32>,
    #[serde(default)]
    pub maximum_event_age_in_seconds: Option<u32>,
    #[serde(default)]
    pub destination_config: Option<DestinationConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct DestinationConfig {
    #[serde(default)]
    pub on_success: Option<Destination>,
    #[serde(default)]
    pub on_failure: Option<Destination>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Destination {
    #[serde(default)]
    pub destination: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct TagResource {
    pub tags: BTreeMap<String, String>,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
