//! What may be set of a function, and how.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use skiff_lambda::{FunctionName, LambdaError, log_group};

use super::body::{self, ImageConfig};
use super::call::{self, Call, invalid};
use super::code::Source;
use super::record::{Configuration, UsedLayer};

/// Of an invocation when nothing is said, seconds (AWS's).
pub(crate) const TIMEOUT_S: u32 = 3;
const TIMEOUT_S_MAX: u32 = 900;
/// Of an instance when nothing is said, MiB (AWS's).
pub(crate) const MEMORY_MIB: u32 = 128;
const MEMORY_MIB_MAX: u32 = 32_768;
/// Of `/tmp` when nothing is said, MiB (AWS's).
pub(crate) const EPHEMERAL_MIB: u32 = skiff_types::limits::FUNCTION_DISK_MIB;
const EPHEMERAL_MIB_MAX: u32 = 10_240;
const DESCRIPTION_CHARS_MAX: usize = 256;
const ENVIRONMENT_BYTES_MAX: usize = 4096;
const TAGS_MAX: usize = 50;
/// What AWS keeps for itself of an environment, but for credentials: those are
/// a function's own to set where its role gives none.
const RESERVED: [&str; 14] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// What no function can have otherwise than all others.
const FIXED: [&str; 6] = [
    "FileSystemConfigs",
    "KMSKeyArn",
    "LoggingConfig",
    "SnapStart",
    "TracingConfig",
    "VpcConfig",
];

/// How that is told of a function of this name; null is left out.
pub(crate) fn fixed(name: &FunctionName) -> [(&'static str, Value); FIXED.len()] {
    FIXED.map(|field| {
        let told = match field {
            "LoggingConfig" => json!({"LogFormat": "Text", "LogGroup": log_group(name)}),
            "SnapStart" => json!({"ApplyOn": "None", "OptimizationStatus": "Off"}),
            "TracingConfig" => json!({"Mode": "PassThrough"}),
            _ => Value::Null,
        };
        (field, told)
    })
}

/// What a call gives of that: it is taken as it is told, or empty.
#[derive(Debug)]
pub(crate) struct Given(Map<String, Value>);

impl Given {
    /// Takes it out of a body, whose rest is of a known shape.
    pub(crate) fn apart<T: DeserializeOwned>(call: &Call) -> Result<(T, Self), LambdaError> {
        let (mut known, mut given) = (call::body::<Map<String, Value>>(call)?, Map::new());
        for field in FIXED {
            given.extend(known.remove_entry(field));
        }
        let known = serde_json::from_value(Value::Object(known));
        Ok((known.map_err(|error| call::unread(&error))?, Self(given)))
    }

    /// Nothing else is asked for than there is.
    pub(crate) fn check(&self, name: &FunctionName) -> Result<(), LambdaError> {
        for (field, told) in fixed(name) {
            if self.0.get(field).is_none_or(|given| is_told(given, &told)) {
                continue;
            }
            return Err(invalid(match told {
                Value::Null => format!("{field} is not served: leave it out, or empty"),
                told => format!("{field}: {told} is served"),
            }));
        }
        Ok(())
    }
}

/// Whether nothing is given, or what is told.
fn is_told(given: &Value, told: &Value) -> bool {
    match given {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) if text.is_empty() => true,
        Value::Array(items) if items.is_empty() => true,
        Value::Object(fields) => fields
            .iter()
            .all(|(field, given)| is_told(given, &told[field])),
        _ => given == told,
    }
}

/// The package type is the one that the code is of.
pub(crate) fn check_package(package: Option<&str>, source: &Source) -> Result<(), LambdaError> {
    match (package, source) {
        (None, _)
        | (Some("Image"), Source::Image(_))
        | (Some("Zip"), Source::Body | Source::Object(_)) => Ok(()),
        (Some("Image"), _) => Err(invalid(
            "Please provide ImageUri when creating a function with packageType Image.",
        )),
        (Some("Zip"), _) => Err(invalid(
            "Please don't provide ImageUri when creating a function with packageType Zip.",
        )),
        (Some(_), _) => Err(invalid("PackageType is Zip or Image")),
    }
}

pub(crate) fn check_same_package(
    config: &Configuration,
    source: &Source,
) -> Result<(), LambdaError> {
    match (&config.code, source) {
        (Some(_), Source::Image(_)) => Err(invalid(
            "Please don't provide ImageUri when updating a function with packageType Zip.",
        )),
        (None, Source::Body | Source::Object(_)) => Err(invalid(
            "Please provide ImageUri when updating a function with packageType Image.",
        )),
        _ => Ok(()),
    }
}

pub(crate) fn check_architectures(architectures: Option<&[String]>) -> Result<(), LambdaError> {
    if architectures.is_some_and(|all| all.iter().any(|one| one != "x86_64")) {
        return Err(invalid("Architectures: x86_64 is served"));
    }
    Ok(())
}

pub(crate) fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), LambdaError> {
    let fits = |(name, value): (&String, &String)| {
        (1..=128).contains(&name.chars().count()) && value.chars().count() <= 256
    };
    if tags.len() > TAGS_MAX || !tags.iter().all(fits) {
        return Err(invalid(format!(
            "at most {TAGS_MAX} tags with names of 1 to 128 and values of at most 256 characters are expected"
        )));
    }
    Ok(())
}

/// Sets what is given, if it may be.
pub(crate) fn apply(
    config: &mut Configuration,
    wanted: body::UpdateFunctionConfiguration,
) -> Result<(), LambdaError> {
    if let Some(role) = wanted.role {
        if role.len() > 512 {
            return Err(invalid("Role is over 512 bytes"));
        }
        config.role = role;
    }
    if let Some(description) = wanted.description {
        if description.chars().count() > DESCRIPTION_CHARS_MAX {
            return Err(invalid(format!(
                "Description is over {DESCRIPTION_CHARS_MAX} characters"
            )));
        }
        config.description = description;
    }
    if let Some(timeout) = wanted.timeout {
        if !(1..=TIMEOUT_S_MAX).contains(&timeout) {
            return Err(invalid(format!(
                "Timeout is {timeout}: 1 to {TIMEOUT_S_MAX} are expected"
            )));
        }
        config.timeout_s = timeout;
    }
    if let Some(memory) = wanted.memory_size {
        if !(MEMORY_MIB..=MEMORY_MIB_MAX).contains(&memory) {
            return Err(invalid(format!(
                "MemorySize is {memory}: {MEMORY_MIB} to {MEMORY_MIB_MAX} are expected"
            )));
        }
        config.memory_mib = memory;
    }
    if let Some(environment) = wanted.environment {
        let variables = environment.variables;
        check_variables(&variables)?;
        let bytes: usize = variables
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > ENVIRONMENT_BYTES_MAX {
            return Err(invalid(format!(
                "the environment has {bytes} bytes: at most {ENVIRONMENT_BYTES_MAX} are expected"
            )));
        }
        config.environment = variables;
    }
    apply_package(config, wanted.runtime, wanted.handler, wanted.used)?;
    if let Some(ImageConfig {
        entry_point,
        command,
    }) = wanted.image_config
    {
        if config.code.is_some() {
            return Err(invalid("ImageConfig is for functions of PackageType Image"));
        }
        config.entry_point = entry_point;
        config.command = command;
    }
    if let Some(dead_letter) = wanted.dead_letter_config {
        config.dead_letter = dead_letter.target_arn.filter(|target| !target.is_empty());
    }
    if let Some(storage) = wanted.ephemeral_storage {
        if !(EPHEMERAL_MIB..=EPHEMERAL_MIB_MAX).contains(&storage.size) {
            return Err(invalid(format!(
                "EphemeralStorage.Size is {}: {EPHEMERAL_MIB} to {EPHEMERAL_MIB_MAX} are expected",
                storage.size
            )));
        }
        config.ephemeral_mib = storage.size;
    }
    Ok(())
}

fn check_variables(variables: &BTreeMap<String, String>) -> Result<(), LambdaError> {
    let is_reserved = |name: &&String| RESERVED.contains(&name.as_str());
    if let Some(name) = variables.keys().find(is_reserved) {
        return Err(invalid(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {name}"
        )));
    }
    let is_plain = |name: &&String| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        name.len() > 1 && name.as_bytes()[0].is_ascii_alphabetic() && name.bytes().all(good)
    };
    match variables.keys().find(|name| !is_plain(name)) {
        None => Ok(()),
        Some(name) => Err(invalid(format!(
            "Environment: `{name}` is no variable's name: a letter and then one or more of a-z, A-Z, 0-9 and _ are expected"
        ))),
    }
}

/// Sets what only functions from zip files have.
fn apply_package(
    config: &mut Configuration,
    runtime: Option<String>,
    handler: Option<String>,
    layers: Option<Vec<UsedLayer>>,
) -> Result<(), LambdaError> {
    let Some(code) = &mut config.code else {
        let has_layers = layers.is_some_and(|layers| !layers.is_empty());
        if runtime.is_some() || handler.is_some() || has_layers {
            return Err(invalid(
                "Runtime, Handler and Layers are for functions of PackageType Zip",
            ));
        }
        return Ok(());
    };
    code.runtime = runtime.unwrap_or_else(|| code.runtime.clone());
    code.handler = handler.unwrap_or_else(|| code.handler.clone());
    code.layers = layers.unwrap_or_else(|| std::mem::take(&mut code.layers));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_type_is_that_of_its_code() {
        let image = || Source::Image("hello:1".to_owned());
        for (package, source, good) in [
            (None, image(), true),
            (None, Source::Body, true),
            (Some("Image"), image(), true),
            (Some("Zip"), Source::Body, true),
            (Some("Image"), Source::Body, false),
            (Some("Zip"), image(), false),
            (Some("zip"), Source::Body, false),
        ] {
            let checked = check_package(package, &source);
            assert_eq!(checked.is_ok(), good, "{package:?} {source:?}");
        }
    }

    #[test]
    fn what_is_told_of_every_function_may_be_given_and_nothing_else() {
        let name: FunctionName = "My_Function".parse().unwrap();
        let check = |field: &str, given: Value| {
            Given(Map::from_iter([(field.to_owned(), given)])).check(&name)
        };
        for (field, told) in fixed(&name) {
            assert_eq!(check(field, told), Ok(()), "{field}");
        }
        let vpc =
            json!({"SubnetIds": [], "SecurityGroupIds": [], "Ipv6AllowedForDualStack": false});
        for (field, given) in [
            ("VpcConfig", json!({})),
            ("VpcConfig", vpc),
            ("KMSKeyArn", json!("")),
            ("FileSystemConfigs", json!([])),
            ("SnapStart", json!({"ApplyOn": "None"})),
            ("LoggingConfig", json!({"LogFormat": "Text"})),
        ] {
            assert_eq!(check(field, given.clone()), Ok(()), "{field} {given}");
        }
        for (field, given) in [
            ("VpcConfig", json!({"SubnetIds": ["a"]})),
            ("KMSKeyArn", json!("arn")),
            ("FileSystemConfigs", json!([{}])),
            ("TracingConfig", json!({"Mode": "Active"})),
            ("SnapStart", json!({"ApplyOn": "PublishedVersions"})),
            ("LoggingConfig", json!({"LogFormat": "JSON"})),
            ("LoggingConfig", json!({"LogGroup": "/aws/lambda/other"})),
            ("LoggingConfig", json!({"SystemLogLevel": "WARN"})),
        ] {
            let error = check(field, given.clone()).unwrap_err();
            assert!(error.message.starts_with(field), "{given}: {error}");
        }
    }

    #[test]
    fn a_variable_has_a_name_and_not_one_of_awss() {
        let check = |name: &str| {
            let variables = BTreeMap::from([(name.to_owned(), String::new())]);
            check_variables(&variables)
        };
        for good in [
            "STAGE",
            "a1",
            "Ab_c",
            "AWS_ACCESS_KEY_ID",
            "AWS_LAMBDA_EXEC_WRAPPER",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "AWS_REGION",
            "_HANDLER",
            "A",
            "",
            "1A",
            "_A",
            "A-B",
            "A B",
            "Ä1",
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.message.contains(bad), "{bad}: {error}");
        }
    }

    #[test]
    fn code_has_one_source() {
        let some = |text: &str| Some(text.to_owned());
        let code =
            |image: Option<&str>, zip: Option<&str>, bucket: Option<&str>, key: Option<&str>| {
                let own = |text: Option<&str>| text.map(str::to_owned);
                body::Code {
                    image_uri: own(image),
                    zip_file: own(zip),
                    s3_bucket: own(bucket),
                    s3_key: own(key),
                    s3_object_version: None,
                }
            };
        let image = code(Some("hello:1"), None, None, None).source();
        assert_eq!(image, Ok(Source::Image("hello:1".to_owned())));
        assert_eq!(code(None, Some(""), None, None).source(), Ok(Source::Body));
        let object = code(None, None, Some("b"), Some("k")).source();
        assert!(matches!(object, Ok(Source::Object(name)) if Some(name.key.clone()) == some("k")));
        for wrong in [
            code(None, None, None, None),
            code(None, Some("UEsDBA=="), None, None),
            code(None, None, Some("b"), None),
            code(Some("hello:1"), Some(""), None, None),
            code(None, Some(""), Some("b"), Some("k")),
        ] {
            assert!(wrong.source().is_err());
        }
    }
}
