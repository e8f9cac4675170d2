//! Replies, in the shapes of botocore's service model.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use skiff_base::UtcTime;
use skiff_lambda::{Arns, FunctionName, Qualifier};
use skiff_types::Digest;

use super::provisioned::WarmState;
use super::record::{
    Alias, Configuration, EventConfig, FunctionRecord, Policy, Provisioned, Statement, Update,
    UrlConfig,
};
use super::settings::fixed;

/// `FunctionConfiguration` of `$LATEST`, which nobody has asked for by name.
pub(crate) fn latest(arns: &Arns, name: &FunctionName, record: &FunctionRecord) -> Value {
    configuration(arns, name, None, "$LATEST", &record.latest)
}

/// `FunctionConfiguration` of a version, as it was asked for.
pub(crate) fn configuration(
    arns: &Arns,
    name: &FunctionName,
    asked: Option<&Qualifier>,
    version: &str,
    config: &Configuration,
) -> Value {
    let arn = arns.named(name, asked);
    let mut shown = json!({
        "FunctionName": name.as_str(),
        "FunctionArn": arn,
        "Role": config.role,
        "CodeSize": config.code.as_ref().map_or(0, |code| code.zip_bytes),
        "Description": config.description,
        "Timeout": config.timeout_s,
        "MemorySize": config.memory_mib,
        "LastModified": time(config.modified_unix_ms),
        "CodeSha256": code_sha256(config),
        "Version": version,
        "RevisionId": config.revision_id,
        "PackageType": if config.code.is_some() { "Zip" } else { "Image" },
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": config.ephemeral_mib},
    });
    let Some(fields) = shown.as_object_mut() else {
        return shown;
    };
    let fixed = fixed(name).into_iter().filter(|(_, told)| !told.is_null());
    fields.extend(fixed.map(|(field, told)| (field.to_owned(), told)));
    if !config.environment.is_empty() {
        let variables = json!({"Variables": config.environment});
        fields.insert("Environment".to_owned(), variables);
    }
    if !config.entry_point.is_empty() || !config.command.is_empty() {
        let image = json!({"EntryPoint": config.entry_point, "Command": config.command});
        let image = json!({"ImageConfig": image});
        fields.insert("ImageConfigResponse".to_owned(), image);
    }
    if let Some(target) = &config.dead_letter {
        let target = json!({"TargetArn": target});
        fields.insert("DeadLetterConfig".to_owned(), target);
    }
    if let Some(code) = &config.code {
        fields.insert("Runtime".to_owned(), json!(code.runtime));
        fields.insert("Handler".to_owned(), json!(code.handler));
        let layers = code.layers.iter();
        let layers = layers.map(|layer| json!({"Arn": layer.arn, "CodeSize": layer.zip_bytes}));
        let layers: Vec<Value> = layers.collect();
        if !layers.is_empty() {
            fields.insert("Layers".to_owned(), Value::Array(layers));
        }
    }
    if let (Some(_), Some(digest)) = (&config.code, &config.digest) {
        // The image that is run: the runtime's with the code over it.
        let version = format!("arn:aws:lambda:{}::runtime:{}", arns.region, digest.hex());
        let version = json!({"RuntimeVersionArn": version});
        fields.insert("RuntimeVersionConfig".to_owned(), version);
    }
    state(fields, config);
    shown
}

/// `FunctionEventInvokeConfig`.
pub(crate) fn event_config(arn: &str, config: &EventConfig) -> Value {
    let destination = |address: &Option<String>| match address {
        Some(address) => json!({"Destination": address}),
        None => json!({}),
    };
    json!({
        // A timestamp of REST-JSON: seconds.
        "LastModified": config.modified_unix_ms / 1000,
        "FunctionArn": arn,
        "MaximumRetryAttempts": config.retries(),
        "MaximumEventAgeInSeconds": config.age_s(),
        "DestinationConfig": {
            "OnSuccess": destination(&config.on_success),
            "OnFailure": destination(&config.on_failure),
        },
    })
}

/// `ProvisionedConcurrencyConfigListItem`; a single one has no ARN.
pub(crate) fn provisioned(arn: Option<&str>, config: &Provisioned, state: &WarmState) -> Value {
    let mut shown = json!({
        "RequestedProvisionedConcurrentExecutions": config.requested,
        "AvailableProvisionedConcurrentExecutions": state.available,
        "AllocatedProvisionedConcurrentExecutions": state.allocated,
        "Status": state.status(config),
        "LastModified": time(config.modified_unix_ms),
    });
    if let Some(fields) = shown.as_object_mut() {
        if let Some(arn) = arn {
            fields.insert("FunctionArn".to_owned(), json!(arn));
        }
        if let Some(reason) = state.reason(config) {
            fields.insert("StatusReason".to_owned(), json!(reason));
        }
    }
    shown
}

/// `FunctionUrlConfig`; one that is new has not been modified.
pub(crate) fn url_config(arn: &str, url: &str, config: &UrlConfig, is_new: bool) -> Value {
    let mut shown = json!({
        "FunctionUrl": url,
        "FunctionArn": arn,
        "AuthType": config.auth,
        "InvokeMode": config.mode,
        "CreationTime": time(config.created_unix_ms),
    });
    if let Some(fields) = shown.as_object_mut() {
        if !is_new {
            let modified = time(config.modified_unix_ms);
            fields.insert("LastModifiedTime".to_owned(), json!(modified));
        }
        if let Some(cors) = &config.cors {
            fields.insert("Cors".to_owned(), json!(cors));
        }
    }
    shown
}

/// Of a zip file in base64, of an image in hexadecimal digits (as AWS does).
pub(crate) fn code_sha256(config: &Configuration) -> String {
    match (&config.code, &config.digest) {
        (Some(code), _) => sha256_base64(&code.sha256),
        (None, Some(digest)) => digest.hex().to_owned(),
        (None, None) => String::new(),
    }
}

pub(crate) fn sha256_base64(digest: &Digest) -> String {
    let hex = digest.hex();
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).filter_map(byte).collect();
    STANDARD.encode(bytes)
}

fn state(fields: &mut Map<String, Value>, config: &Configuration) {
    let (state, update) = match (&config.update, config.revision) {
        (Update::InProgress, None) => ("Pending", "InProgress"),
        (Update::InProgress, Some(_)) => ("Active", "InProgress"),
        (Update::Done, _) => ("Active", "Successful"),
        (Update::Failed { .. }, None) => ("Failed", "Failed"),
        (Update::Failed { .. }, Some(_)) => ("Active", "Failed"),
    };
    let mut set = |name: &str, value: &str| fields.insert(name.to_owned(), json!(value));
    set("State", state);
    set("LastUpdateStatus", update);
    if state == "Pending" {
        set("StateReason", "The function is being created.");
        set("StateReasonCode", "Creating");
    }
    if let Update::Failed { reason } = &config.update {
        set("LastUpdateStatusReason", reason);
        set("LastUpdateStatusReasonCode", "FunctionError");
        if state == "Failed" {
            set("StateReason", reason);
            set("StateReasonCode", "FunctionError");
        }
    }
}

/// `GetFunctionResponse`.
pub(crate) fn function(
    record: &FunctionRecord,
    config: &Configuration,
    shown: Value,
    location: Option<String>,
) -> Value {
    if let Some(location) = location {
        let code = json!({"RepositoryType": "S3", "Location": location});
        return with_tags(record, code, shown);
    }
    let resolved = match &config.digest {
        Some(digest) => format!("{}@{digest}", repository(&config.image_uri)),
        None => config.image_uri.clone(),
    };
    let code = json!({
        "RepositoryType": "ECR",
        "ImageUri": config.image_uri,
        "ResolvedImageUri": resolved,
    });
    with_tags(record, code, shown)
}

fn with_tags(record: &FunctionRecord, code: Value, shown: Value) -> Value {
    let mut reply = json!({"Configuration": shown, "Code": code, "Tags": record.tags});
    if let (Some(reserved), Some(fields)) = (record.reserved_concurrency, reply.as_object_mut()) {
        let concurrency = json!({"ReservedConcurrentExecutions": reserved});
        fields.insert("Concurrency".to_owned(), concurrency);
    }
    reply
}

/// A reference without its tag or digest.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// `AliasConfiguration`.
pub(crate) fn alias(arns: &Arns, function: &FunctionName, name: &str, alias: &Alias) -> Value {
    let qualifier = Qualifier::Alias(name.to_owned());
    let mut shown = json!({
        "AliasArn": arns.qualified(function, &qualifier),
        "Name": name,
        "FunctionVersion": alias.version,
        "Description": alias.description,
        "RevisionId": alias.revision_id,
    });
    if let (Some((version, weight)), Some(fields)) = (alias.second, shown.as_object_mut()) {
        let weights = json!({version.to_string(): weight});
        let routing = json!({"AdditionalVersionWeights": weights});
        fields.insert("RoutingConfig".to_owned(), routing);
    }
    shown
}

/// One statement of a policy.
pub(crate) fn statement(arn: &str, sid: &str, statement: &Statement) -> Value {
    let principal = match statement.principal.as_str() {
        "*" => json!("*"),
        account if account.bytes().all(|b| b.is_ascii_digit()) => {
            json!({"AWS": format!("arn:aws:iam::{account}:root")})
        }
        service => json!({"Service": service}),
    };
    let mut shown = json!({
        "Sid": sid,
        "Effect": "Allow",
        "Principal": principal,
        "Action": statement.action,
        "Resource": arn,
    });
    let mut condition = Map::new();
    if let Some(source) = &statement.source_arn {
        condition.insert("ArnLike".to_owned(), json!({"AWS:SourceArn": source}));
    }
    let mut equals = Map::new();
    if let Some(account) = &statement.source_account {
        equals.insert("AWS:SourceAccount".to_owned(), json!(account));
    }
    if let Some(auth) = &statement.url_auth {
        equals.insert("lambda:FunctionUrlAuthType".to_owned(), json!(auth));
    }
    if !equals.is_empty() {
        condition.insert("StringEquals".to_owned(), Value::Object(equals));
    }
    if let Some(via_url) = statement.via_url {
        let via_url = json!({"lambda:InvokedViaFunctionUrl": via_url.to_string()});
        condition.insert("Bool".to_owned(), via_url);
    }
    if let (false, Some(fields)) = (condition.is_empty(), shown.as_object_mut()) {
        fields.insert("Condition".to_owned(), Value::Object(condition));
    }
    shown
}

/// A whole policy.
pub(crate) fn policy(arn: &str, policy: &Policy) -> Value {
    let statements = policy.statements.iter();
    let statements: Vec<Value> = statements.map(|(sid, s)| statement(arn, sid, s)).collect();
    json!({"Version": "2012-10-17", "Id": "default", "Statement": statements})
}

/// `2026-11-26T19:00:00.000+0000`.
pub(crate) fn time(unix_ms: u64) -> String {
    let told = UtcTime::of_unix_ms(unix_ms).to_string();
    told.replace('Z', "+0000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_repositories_are_told_as_aws_does() {
        assert_eq!(time(1_369_353_600_007), "2013-05-24T00:00:00.007+0000");
        for (reference, expected) in [
            ("hello:1", "hello"),
            ("localhost:5000/hello", "localhost:5000/hello"),
            ("localhost:5000/hello:1@sha256:ab", "localhost:5000/hello"),
        ] {
            assert_eq!(repository(reference), expected);
        }
    }
}
