//! Which operation a request is (the paths of botocore's service model).

use http::{HeaderMap, Method};
use skiff_lambda::{Code, LambdaError, decode};

use super::logs::LogsOperation;
use super::scheduler::SchedulerOperation;

/// Which of AWS's APIs a request is of: all are served at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Lambda,
    Scheduler,
    Logs,
}

impl Api {
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Self {
        if LogsOperation::target(path, headers).is_some() {
            Self::Logs
        } else if SchedulerOperation::is_path(path) {
            Self::Scheduler
        } else {
            Self::Lambda
        }
    }

    /// What signatures name.
    pub(crate) const fn service(self) -> &'static str {
        match self {
            Self::Lambda => "lambda",
            Self::Scheduler => "scheduler",
            Self::Logs => "logs",
        }
    }
}

/// An operation with what its path names, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    CreateFunction,
    ListFunctions,
    GetFunction(String),
    DeleteFunction(String),
    GetFunctionConfiguration(String),
    UpdateFunctionConfiguration(String),
    UpdateFunctionCode(String),
    PublishVersion(String),
    ListVersionsByFunction(String),
    Invoke(String),
    InvokeWithResponseStream(String),
    CreateAlias(String),
    ListAliases(String),
    GetAlias(String, String),
    UpdateAlias(String, String),
    DeleteAlias(String, String),
    AddPermission(String),
    GetPolicy(String),
    RemovePermission(String, String),
    PutFunctionConcurrency(String),
    GetFunctionConcurrency(String),
    DeleteFunctionConcurrency(String),
    PutProvisionedConcurrencyConfig(String),
    /// Or ListProvisionedConcurrencyConfigs, as the query says.
    GetProvisionedConcurrencyConfig(String),
    DeleteProvisionedConcurrencyConfig(String),
    PutFunctionEventInvokeConfig(String),
    UpdateFunctionEventInvokeConfig(String),
    GetFunctionEventInvokeConfig(String),
    DeleteFunctionEventInvokeConfig(String),
    ListFunctionEventInvokeConfigs(String),
    CreateFunctionUrlConfig(String),
    GetFunctionUrlConfig(String),
    UpdateFunctionUrlConfig(String),
    DeleteFunctionUrlConfig(String),
    ListFunctionUrlConfigs(String),
    CreateEventSourceMapping,
    ListEventSourceMappings,
    GetEventSourceMapping(String),
    UpdateEventSourceMapping(String),
    DeleteEventSourceMapping(String),
    Scheduler(SchedulerOperation),
    Logs(LogsOperation),
    GetAccountSettings,
    /// Not AWS's: where `Code.Location` leads.
    FunctionZip(String, String),
    /// The same of layers: the project, the name and the number.
    LayerZip(String, String, String),
    /// Or GetLayerVersionByArn, as the query says.
    ListLayers,
    PublishLayerVersion(String),
    ListLayerVersions(String),
    GetLayerVersion(String, String),
    DeleteLayerVersion(String, String),
    AddLayerVersionPermission(String, String),
    GetLayerVersionPolicy(String, String),
    RemoveLayerVersionPermission(String, String, String),
    ListTags(String),
    TagResource(String),
    UntagResource(String),
}

/// What is told to who asks for another one.
const SERVED: &str = "CreateFunction, GetFunction, GetFunctionConfiguration, ListFunctions, \
UpdateFunctionCode, UpdateFunctionConfiguration, DeleteFunction, PublishVersion, \
ListVersionsByFunction, Invoke, InvokeWithResponseStream, CreateAlias, GetAlias, ListAliases, \
UpdateAlias, DeleteAlias, AddPermission, GetPolicy, RemovePermission, PutFunctionConcurrency, \
GetFunctionConcurrency, DeleteFunctionConcurrency, PutProvisionedConcurrencyConfig, \
GetProvisionedConcurrencyConfig, ListProvisionedConcurrencyConfigs, \
DeleteProvisionedConcurrencyConfig, PutFunctionEventInvokeConfig, \
UpdateFunctionEventInvokeConfig, GetFunctionEventInvokeConfig, DeleteFunctionEventInvokeConfig, \
ListFunctionEventInvokeConfigs, CreateFunctionUrlConfig, GetFunctionUrlConfig, \
UpdateFunctionUrlConfig, DeleteFunctionUrlConfig, ListFunctionUrlConfigs, \
CreateEventSourceMapping, GetEventSourceMapping, ListEventSourceMappings, \
UpdateEventSourceMapping, DeleteEventSourceMapping, \
PublishLayerVersion, ListLayers, ListLayerVersions, \
GetLayerVersion, GetLayerVersionByArn, DeleteLayerVersion, AddLayerVersionPermission, \
GetLayerVersionPolicy, RemoveLayerVersionPermission, GetAccountSettings, ListTags, \
TagResource and UntagResource; of EventBridge Scheduler CreateSchedule, GetSchedule, \
ListSchedules, UpdateSchedule, DeleteSchedule, GetScheduleGroup and ListScheduleGroups; of \
CloudWatch Logs DescribeLogGroups, DescribeLogStreams, GetLogEvents and FilterLogEvents";

impl Operation {
    /// Reads a method and a path as it was sent, and what headers say.
    pub(crate) fn of(
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Self, LambdaError> {
        let method = method.as_str();
        if let Some(target) = LogsOperation::target(path, headers) {
            return LogsOperation::of(method, target).map(Self::Logs);
        }
        let parts: Option<Vec<String>> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(decode)
            .collect();
        let parts = parts.unwrap_or_default();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let found = match parts[..] {
            ["2015-03-31", "functions", ref rest @ ..] => of_functions(method, rest),
            [
                "2021-11-15",
                "functions",
                name,
                "response-streaming-invocations",
            ] => (method == "POST").then(|| Self::InvokeWithResponseStream(name.to_owned())),
            ["2017-10-31", "functions", name, "concurrency"] => match method {
                "PUT" => Some(Self::PutFunctionConcurrency(name.to_owned())),
                "DELETE" => Some(Self::DeleteFunctionConcurrency(name.to_owned())),
                _ => None,
            },
            ["2019-09-30", "functions", name, "concurrency"] => {
                (method == "GET").then(|| Self::GetFunctionConcurrency(name.to_owned()))
            }
            ["2019-09-30", "functions", name, "provisioned-concurrency"] => match method {
                "PUT" => Some(Self::PutProvisionedConcurrencyConfig(name.to_owned())),
                "GET" => Some(Self::GetProvisionedConcurrencyConfig(name.to_owned())),
                "DELETE" => Some(Self::DeleteProvisionedConcurrencyConfig(name.to_owned())),
                _ => None,
            },
            ["2019-09-25", "functions", name, "event-invoke-config"] => match method {
                "PUT" => Some(Self::PutFunctionEventInvokeConfig(name.to_owned())),
                "POST" => Some(Self::UpdateFunctionEventInvokeConfig(name.to_owned())),
                "GET" => Some(Self::GetFunctionEventInvokeConfig(name.to_owned())),
                "DELETE" => Some(Self::DeleteFunctionEventInvokeConfig(name.to_owned())),
                _ => None,
            },
            [
                "2019-09-25",
                "functions",
                name,
                "event-invoke-config",
                "list",
            ] => (method == "GET").then(|| Self::ListFunctionEventInvokeConfigs(name.to_owned())),
            ["2021-10-31", "functions", name, "url"] => match method {
                "POST" => Some(Self::CreateFunctionUrlConfig(name.to_owned())),
                "GET" => Some(Self::GetFunctionUrlConfig(name.to_owned())),
                "PUT" => Some(Self::UpdateFunctionUrlConfig(name.to_owned())),
                "DELETE" => Some(Self::DeleteFunctionUrlConfig(name.to_owned())),
                _ => None,
            },
            ["2021-10-31", "functions", name, "urls"] => {
                (method == "GET").then(|| Self::ListFunctionUrlConfigs(name.to_owned()))
            }
            ["2015-03-31", "event-source-mappings"] => match method {
                "POST" => Some(Self::CreateEventSourceMapping),
                "GET" => Some(Self::ListEventSourceMappings),
                _ => None,
            },
            ["2015-03-31", "event-source-mappings", id] => match method {
                "GET" => Some(Self::GetEventSourceMapping(id.to_owned())),
                "PUT" => Some(Self::UpdateEventSourceMapping(id.to_owned())),
                "DELETE" => Some(Self::DeleteEventSourceMapping(id.to_owned())),
                _ => None,
            },
            ["schedules" | "schedule-groups", ..] => {
                SchedulerOperation::of(method, &parts).map(Self::Scheduler)
            }
            ["2016-08-19", "account-settings"] => {
                (method == "GET").then_some(Self::GetAccountSettings)
            }
            ["2018-10-31", "layers", ref rest @ ..] => of_layers(method, rest),
            ["skiff", "layer", owner, name, number] => (method == "GET")
                .then(|| Self::LayerZip(owner.to_owned(), name.to_owned(), number.to_owned())),
            ["skiff", "code", name, zip] => {
                (method == "GET").then(|| Self::FunctionZip(name.to_owned(), zip.to_owned()))
            }
            ["2017-03-31", "tags", arn] => match method {
                "GET" => Some(Self::ListTags(arn.to_owned())),
                "POST" => Some(Self::TagResource(arn.to_owned())),
                "DELETE" => Some(Self::UntagResource(arn.to_owned())),
                _ => None,
            },
            _ => None,
        };
        found.ok_or_else(|| {
            let message = format!("this operation is not served here: {SERVED} are");
            LambdaError::new(Code::NotImplemented, message)
        })
    }

    /// Whether it changes nothing: a copy of it may be sent again.
    pub(crate) const fn only_reads(&self) -> bool {
        if let Self::Scheduler(operation) = self {
            return operation.only_reads();
        }
        matches!(
            self,
            Self::ListFunctions
                | Self::GetFunction(_)
                | Self::GetFunctionConfiguration(_)
                | Self::ListVersionsByFunction(_)
                | Self::ListAliases(_)
                | Self::GetAlias(..)
                | Self::GetPolicy(_)
                | Self::GetFunctionConcurrency(_)
                | Self::GetProvisionedConcurrencyConfig(_)
                | Self::GetFunctionEventInvokeConfig(_)
                | Self::ListFunctionEventInvokeConfigs(_)
                | Self::GetFunctionUrlConfig(_)
                | Self::ListFunctionUrlConfigs(_)
                | Self::ListEventSourceMappings
                | Self::GetEventSourceMapping(_)
                | Self::GetAccountSettings
                | Self::Logs(_)
                | Self::FunctionZip(..)
                | Self::LayerZip(..)
                | Self::ListLayers
                | Self::ListLayerVersions(_)
                | Self::GetLayerVersion(..)
                | Self::GetLayerVersionPolicy(..)
                | Self::ListTags(_)
        )
    }

    /// Where in its body a zip file is, and what it is called.
    pub(crate) const fn zip_member(&self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::CreateFunction => Some(("CreateFunction", &["Code", "ZipFile"])),
            Self::UpdateFunctionCode(_) => Some(("UpdateFunctionCode", &["ZipFile"])),
            Self::PublishLayerVersion(_) => Some(("PublishLayerVersion", &["Content", "ZipFile"])),
            _ => None,
        }
    }

    /// Whether its body is an event.
    pub(crate) const fn invokes(&self) -> bool {
        matches!(self, Self::Invoke(_) | Self::InvokeWithResponseStream(_))
    }
}

fn of_functions(method: &str, rest: &[&str]) -> Option<Operation> {
    use Operation as O;
    let own = |name: &&str| (*name).to_owned();
    match (method, rest) {
        ("POST", []) => Some(O::CreateFunction),
        ("GET", []) => Some(O::ListFunctions),
        ("GET", [name]) => Some(O::GetFunction(own(name))),
        ("DELETE", [name]) => Some(O::DeleteFunction(own(name))),
        ("GET", [name, "configuration"]) => Some(O::GetFunctionConfiguration(own(name))),
        ("PUT", [name, "configuration"]) => Some(O::UpdateFunctionConfiguration(own(name))),
        ("PUT", [name, "code"]) => Some(O::UpdateFunctionCode(own(name))),
        ("POST", [name, "versions"]) => Some(O::PublishVersion(own(name))),
        ("GET", [name, "versions"]) => Some(O::ListVersionsByFunction(own(name))),
        ("POST", [name, "invocations"]) => Some(O::Invoke(own(name))),
        ("POST", [name, "aliases"]) => Some(O::CreateAlias(own(name))),
        ("GET", [name, "aliases"]) => Some(O::ListAliases(own(name))),
        ("GET", [name, "aliases", alias]) => Some(O::GetAlias(own(name), own(alias))),
        ("PUT", [name, "aliases", alias]) => Some(O::UpdateAlias(own(name), own(alias))),
        ("DELETE", [name, "aliases", alias]) => Some(O::DeleteAlias(own(name), own(alias))),
        ("POST", [name, "policy"]) => Some(O::AddPermission(own(name))),
        ("GET", [name, "policy"]) => Some(O::GetPolicy(own(name))),
        ("DELETE", [name, "policy", sid]) => Some(O::RemovePermission(own(name), own(sid))),
        _ => None,
    }
}

fn of_layers(method: &str, rest: &[&str]) -> Option<Operation> {
    use Operation as O;
    let own = |name: &&str| (*name).to_owned();
    match (method, rest) {
        ("GET", []) => Some(O::ListLayers),
        ("POST", [name, "versions"]) => Some(O::PublishLayerVersion(own(name))),
        ("GET", [name, "versions"]) => Some(O::ListLayerVersions(own(name))),
        ("GET", [name, "versions", n]) => Some(O::GetLayerVersion(own(name), own(n))),
        ("DELETE", [name, "versions", n]) => Some(O::DeleteLayerVersion(own(name), own(n))),
        ("POST", [name, "versions", n, "policy"]) => {
            Some(O::AddLayerVersionPermission(own(name), own(n)))
        }
        ("GET", [name, "versions", n, "policy"]) => {
            Some(O::GetLayerVersionPolicy(own(name), own(n)))
        }
        ("DELETE", [name, "versions", n, "policy", sid]) => {
            Some(O::RemoveLayerVersionPermission(own(name), own(n), own(sid)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: http::HeaderName = http::HeaderName::from_static("x-amz-target");

    fn of(method: &str, path: &str) -> Result<Operation, LambdaError> {
        Operation::of(&method.parse().unwrap(), path, &HeaderMap::new())
    }

    #[test]
    fn an_operation_is_known_by_its_method_and_path() {
        let name = || "a".to_owned();
        for (method, path, expected) in [
            ("POST", "/2015-03-31/functions/", Operation::CreateFunction),
            ("GET", "/2015-03-31/functions", Operation::ListFunctions),
            (
                "POST",
                "/2015-03-31/functions/arn%3Aaws%3Ax/invocations",
                Operation::Invoke("arn:aws:x".to_owned()),
            ),
            (
                "DELETE",
                "/2015-03-31/functions/a/policy/s",
                Operation::RemovePermission(name(), "s".to_owned()),
            ),
            (
                "GET",
                "/2019-09-30/functions/a/concurrency",
                Operation::GetFunctionConcurrency(name()),
            ),
            (
                "DELETE",
                "/2019-09-30/functions/a/provisioned-concurrency",
                Operation::DeleteProvisionedConcurrencyConfig(name()),
            ),
            (
                "GET",
                "/2019-09-25/functions/a/event-invoke-config/list",
                Operation::ListFunctionEventInvokeConfigs(name()),
            ),
            (
                "POST",
                "/2021-10-31/functions/a/url",
                Operation::CreateFunctionUrlConfig(name()),
            ),
            (
                "GET",
                "/2021-10-31/functions/a/urls",
                Operation::ListFunctionUrlConfigs(name()),
            ),
            (
                "GET",
                "/2015-03-31/event-source-mappings/",
                Operation::ListEventSourceMappings,
            ),
            (
                "DELETE",
                "/2015-03-31/event-source-mappings/a",
                Operation::DeleteEventSourceMapping(name()),
            ),
            (
                "GET",
                "/2018-10-31/layers/l/versions/7",
                Operation::GetLayerVersion("l".to_owned(), "7".to_owned()),
            ),
            (
                "GET",
                "/skiff/code/a/00ff",
                Operation::FunctionZip(name(), "00ff".to_owned()),
            ),
        ] {
            assert_eq!(of(method, path), Ok(expected), "{path}");
        }
        for (method, path) in [
            ("PATCH", "/2015-03-31/functions/a"),
            ("PATCH", "/2021-10-31/functions/a/url"),
            ("GET", "/"),
            ("GET", "/%zz"),
            ("POST", "/skiff/code/a/00ff"),
        ] {
            let error = of(method, path).unwrap_err();
            assert_eq!(error.code, Code::NotImplemented, "{path}");
            assert!(error.message.contains("InvokeWithResponseStream"));
        }
    }

    #[test]
    fn an_operation_of_logs_is_known_by_its_target() {
        let of = |method: Method, path: &str, target: &'static str| {
            let target = http::HeaderValue::from_static(target);
            let headers = HeaderMap::from_iter([(TARGET, target)]);
            let operation = Operation::of(&method, path, &headers);
            (Api::of(path, &headers).service(), operation)
        };
        let get = "Logs_20140328.GetLogEvents";
        let (service, operation) = of(Method::POST, "/", get);
        let expected = Operation::Logs(LogsOperation::GetLogEvents);
        assert_eq!((service, operation), ("logs", Ok(expected)));
        for (method, target) in [
            (Method::GET, get),
            (Method::POST, "Logs_20140328.PutLogEvents"),
            (Method::POST, "Logs_20140328."),
        ] {
            let (service, operation) = of(method, "/", target);
            let error = operation.unwrap_err();
            assert_eq!((service, error.code), ("logs", Code::NotImplemented));
            assert!(error.message.contains("FilterLogEvents"), "{error}");
        }
        let (service, operation) = of(Method::POST, "/", "AmazonSQS.SendMessage");
        assert_eq!(service, "lambda");
        assert_eq!(operation.unwrap_err().code, Code::NotImplemented);
        let (service, operation) = of(Method::GET, "/2015-03-31/functions", get);
        assert_eq!(
            (service, operation),
            ("lambda", Ok(Operation::ListFunctions))
        );
    }
}
