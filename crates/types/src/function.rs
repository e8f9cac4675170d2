//! What makes a revision a function: one whose requests are Lambda events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::limits;
use crate::revision::{CpuMode, IsolationRequest, Protocol, RevisionSpec, SpecError};
use crate::{ProjectId, ServiceName};

/// The version of a function that is not published.
const LATEST: &str = "$LATEST";

/// What a function's runtime is told of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// `AWS_LAMBDA_FUNCTION_NAME`; the service's name when it is empty.
    #[serde(default)]
    pub name: String,
    /// `AWS_LAMBDA_FUNCTION_VERSION`.
    #[serde(default = "latest")]
    pub version: String,
    /// Without a qualifier; made of region, project and name when it is empty.
    #[serde(default)]
    pub arn: String,
    /// `_HANDLER`, for runtimes that look for it; the last of the program's
    /// arguments when there is none.
    #[serde(default)]
    pub handler: Option<String>,
    /// `AWS_LAMBDA_LOG_GROUP_NAME`; `/aws/lambda/NAME` when it is empty.
    #[serde(default)]
    pub log_group: String,
    /// How long a starting instance may take to ask for its first event,
    /// seconds. What takes longer begins again inside the first invocation.
    #[serde(default = "default_init_timeout")]
    pub init_timeout_s: u32,
}

impl Default for FunctionSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            version: latest(),
            arn: String::new(),
            handler: None,
            log_group: String::new(),
            init_timeout_s: default_init_timeout(),
        }
    }
}

impl FunctionSpec {
    /// With everything that was left empty.
    #[must_use]
    pub fn complete(mut self, project: &ProjectId, service: &ServiceName) -> Self {
        if self.name.is_empty() {
            self.name = service.to_string();
        }
        if self.arn.is_empty() {
            let region = limits::FUNCTION_REGION;
            self.arn = format!("arn:aws:lambda:{region}:{project}:function:{}", self.name);
        }
        if self.log_group.is_empty() {
            self.log_group = format!("/aws/lambda/{}", self.name);
        }
        self
    }

    /// The region in the ARN.
    #[must_use]
    pub fn region(&self) -> &str {
        let region = self.arn.split(':').nth(3);
        region
            .filter(|region| !region.is_empty())
            .unwrap_or(limits::FUNCTION_REGION)
    }

    /// Whether this names the function, with a qualifier or without.
    #[must_use]
    pub fn is_named_by(&self, arn: &str) -> bool {
        let Some(rest) = arn.strip_prefix(self.arn.as_str()) else {
            return false;
        };
        let qualifier = |text: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"$-_".contains(&byte);
            (1..=128).contains(&text.len()) && text.bytes().all(allowed)
        };
        rest.is_empty() || rest.strip_prefix(':').is_some_and(qualifier)
    }

    /// Checks it, and what a function asks of the rest of its revision.
    pub(crate) fn validate(&self, spec: &RevisionSpec) -> Result<(), SpecError> {
        for (text, what) in [
            (self.name.as_str(), "the function's name"),
            (&self.version, "the function's version"),
            (&self.arn, "the function's ARN"),
            (&self.log_group, "the function's log group"),
        ] {
            if text.len() > 512 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(SpecError::OtherOf(
                    what,
                    "is at most 512 visible ASCII characters",
                ));
            }
        }
        if let Some(handler) = &self.handler
            && (handler.is_empty() || handler.len() > 512 || handler.contains(['\0', '\n']))
        {
            return Err(SpecError::OtherOf(
                "the function's handler",
                "is 1 to 512 characters of one line",
            ));
        }
        let range = limits::FUNCTION_TIMEOUT_S_RANGE;
        crate::revision::in_range("init_timeout_s", self.init_timeout_s, range)?;
        crate::revision::in_range("timeout_s", spec.timeout_s, range)?;
        if spec.scaling.concurrency != 1 {
            return Err(SpecError::Other(
                "an instance of a function takes one event at a time: concurrency is 1",
            ));
        }
        if spec.resources.cpu_mode != CpuMode::Request {
            return Err(SpecError::Other(
                "a function is paused between events: cpu_mode is request",
            ));
        }
        if spec.isolation == IsolationRequest::Null {
            return Err(SpecError::Other("the null class runs no function"));
        }
        if spec.speaks(Protocol::H2c) {
            return Err(SpecError::Other(
                "protocol is h2c: a function's requests are events for its runtime",
            ));
        }
        Ok(())
    }
}

fn latest() -> String {
    LATEST.to_owned()
}

fn default_init_timeout() -> u32 {
    limits::DEFAULT_INIT_TIMEOUT_S
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_empty_is_made_of_project_and_service() {
        let service = "echo".parse().unwrap();
        let spec = FunctionSpec::default().complete(&ProjectId::default_project(), &service);
        assert_eq!(spec.name, "echo");
        assert_eq!(spec.version, "$LATEST");
        assert_eq!(spec.log_group, "/aws/lambda/echo");
        assert!(spec.arn.ends_with(":function:echo"), "{}", spec.arn);
        assert_eq!(spec.arn.split(':').count(), 7);
        assert_eq!(spec.region(), limits::FUNCTION_REGION);
    }

    #[test]
    fn an_arn_names_its_function_only() {
        let spec = FunctionSpec {
            arn: "arn:aws:lambda:eu-west-1:000000000001:function:f".to_owned(),
            ..FunctionSpec::default()
        };
        assert_eq!(spec.region(), "eu-west-1");
        let arn = |rest: &str| spec.is_named_by(&format!("{}{rest}", spec.arn));
        assert!(arn("") && arn(":live") && arn(":$LATEST") && arn(":7"));
        assert!(!arn("x") && !arn(":") && !arn(":a b") && !arn(":a:b"));
        assert!(!arn(&format!(":{}", "a".repeat(129))));
        assert!(!spec.is_named_by("arn:aws:lambda:eu-west-1:000000000002:function:f"));
    }
}
