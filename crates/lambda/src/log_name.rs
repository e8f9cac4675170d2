//! Names of functions' log groups and of instances' log streams.

use skiff_base::{Date, UtcTime};
use skiff_types::{InstanceId, ProjectId};

use crate::function_name::FunctionName;

const GROUP: &str = "/aws/lambda/";

/// A function's log group.
#[must_use]
pub fn log_group(function: &FunctionName) -> String {
    format!("{GROUP}{function}")
}

/// The stream of an instance that is told this version:
/// `2024/02/29/[$LATEST]01hqs…`, with the day on which it was made.
#[must_use]
pub fn log_stream(version: &str, instance: InstanceId) -> String {
    let Date { year, month, day } = UtcTime::of_unix_ms(instance.unix_ms()).date;
    format!("{year:04}/{month:02}/{day:02}/[{version}]{instance}")
}

/// The instance of a name that [`log_stream`] made.
#[must_use]
pub fn log_stream_instance(name: &str) -> Option<InstanceId> {
    let (rest, instance) = name.rsplit_once(']')?;
    let (_, version) = rest.split_once('[')?;
    let instance = instance.parse().ok()?;
    (log_stream(version, instance) == name).then_some(instance)
}

/// A log group as a caller names it: by its name or its ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogGroup {
    /// Whose it is.
    pub function: FunctionName,
    /// Of an ARN.
    pub region: Option<String>,
    /// Of an ARN.
    pub account: Option<ProjectId>,
}

impl LogGroup {
    /// Reads a name, or `arn:aws:logs:REGION:ACCOUNT:log-group:NAME` with or
    /// without `:*` behind. `None` for what can be no function's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let Some(arn) = text.strip_prefix("arn:") else {
            return Some(Self {
                function: text.strip_prefix(GROUP)?.parse().ok()?,
                region: None,
                account: None,
            });
        };
        let arn = arn.strip_suffix(":*").unwrap_or(arn);
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let [_, "logs", region, account, "log-group", name] = parts[..] else {
            return None;
        };
        Some(Self {
            region: Some(region.to_owned()),
            account: Some(account.parse().ok()?),
            ..Self::parse(name).filter(|group| group.account.is_none())?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_by_the_day_the_version_and_the_instance() {
        let instance = InstanceId::from_parts(1_709_251_199_007, 7);
        let name = log_stream("$LATEST", instance);
        assert_eq!(name, format!("2024/02/29/[$LATEST]{instance}"));
        assert_eq!(log_stream_instance(&name), Some(instance));
        for other in [
            name.replace("29", "28"),
            name.replace('[', ""),
            format!("{name}0"),
            instance.to_string(),
            String::new(),
        ] {
            assert_eq!(log_stream_instance(&other), None, "{other}");
        }
    }

    #[test]
    fn a_group_is_named_or_has_an_arn() {
        let group = LogGroup::parse("/aws/lambda/echo").unwrap();
        assert_eq!(log_group(&group.function), "/aws/lambda/echo");
        assert_eq!((group.region, group.account), (None, None));
        let arn = "arn:aws:logs:eu-west-1:000000000002:log-group:/aws/lambda/echo";
        let group = LogGroup::parse(arn).unwrap();
        assert_eq!(group.region.as_deref(), Some("eu-west-1"));
        assert_eq!(group.account.clone().unwrap().as_str(), "000000000002");
        assert_eq!(LogGroup::parse(&format!("{arn}:*")), Some(group));
        for other in [
            "",
            "echo",
            "/aws/lambda/",
            "/aws/lambda/A b",
            "/aws/apigateway/echo",
            "arn:aws:logs:eu-west-1:000000000002:log-group",
            "arn:aws:logs:eu-west-1:x:log-group:/aws/lambda/echo",
            "arn:aws:logs:r:000000000002:log-group:arn:aws:logs:r:000000000002:log-group:/aws/lambda/echo",
        ] {
            assert_eq!(LogGroup::parse(other), None, "{other}");
        }
    }
}
