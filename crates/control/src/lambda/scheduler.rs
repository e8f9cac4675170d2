//! EventBridge Scheduler's API over schedules of functions: what boto3 and the
//! AWS CLI ask of it, in the one group `default`.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_lambda::{Code, FunctionRef, LambdaError};

use super::Front;
use super::call::{Call, Reply, body as parse, invalid};
use crate::key;
use crate::schedules::{AGE_S_MAX, ScheduleRecord, ScheduleSpec};

const GROUP: &str = "default";
const RETRIES_MAX: u32 = 185;
const PAGE_MAX: usize = 100;
const ROLE_BYTES_MAX: usize = 1600;
const TOKEN_BYTES_MAX: usize = 64;

/// An operation with the name that its path has, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SchedulerOperation {
    CreateSchedule(String),
    GetSchedule(String),
    UpdateSchedule(String),
    DeleteSchedule(String),
    ListSchedules,
    GetScheduleGroup(String),
    ListScheduleGroups,
}

impl SchedulerOperation {
    /// Whether a path is of this API.
    pub(crate) fn is_path(path: &str) -> bool {
        let first = path.split('/').find(|part| !part.is_empty());
        matches!(first, Some("schedules" | "schedule-groups"))
    }

    pub(crate) fn of(method: &str, parts: &[&str]) -> Option<Self> {
        let own = |name: &&str| (*name).to_owned();
        match (method, parts) {
            ("GET", ["schedules"]) => Some(Self::ListSchedules),
            ("POST", ["schedules", name]) => Some(Self::CreateSchedule(own(name))),
            ("GET", ["schedules", name]) => Some(Self::GetSchedule(own(name))),
            ("PUT", ["schedules", name]) => Some(Self::UpdateSchedule(own(name))),
            ("DELETE", ["schedules", name]) => Some(Self::DeleteSchedule(own(name))),
            ("GET", ["schedule-groups"]) => Some(Self::ListScheduleGroups),
            ("GET", ["schedule-groups", name]) => Some(Self::GetScheduleGroup(own(name))),
            _ => None,
        }
    }

    pub(crate) const fn only_reads(&self) -> bool {
        !matches!(
            self,
            Self::CreateSchedule(_) | Self::UpdateSchedule(_) | Self::DeleteSchedule(_)
        )
    }
}

/// The error as this API names it.
pub(crate) fn error(error: &LambdaError) -> Reply {
    let (name, status) = match error.code {
        Code::InvalidParameterValue | Code::InvalidRequestContent => ("ValidationException", 400),
        Code::ResourceConflict => ("ConflictException", 409),
        Code::TooManyRequests => ("ServiceQuotaExceededException", 402),
        Code::Service => ("InternalServerException", 500),
        code => (code.name(), code.status()),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = Reply::json(status, json!({"Message": error.message}));
    let name = http::HeaderValue::from_static(name);
    reply.headers.insert("x-amzn-errortype", name);
    reply
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Wanted {
    schedule_expression: String,
    target: Target,
    flexible_time_window: FlexibleTimeWindow,
    #[serde(default)]
    group_name: Option<String>,
    #[serde(default)]
    schedule_expression_timezone: Option<String>,
    /// Seconds since 1970 (REST-JSON).
    #[serde(default)]
    start_date: Option<f64>,
    #[serde(default)]
    end_date: Option<f64>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    action_after_completion: Option<String>,
    /// A call with the token of one that has made the schedule is the same.
    #[serde(default)]
    client_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Target {
    arn: String,
    role_arn: String,
    #[serde(default)]
    input: Option<String>,
    #[serde(default)]
    retry_policy: Option<RetryPolicy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RetryPolicy {
    #[serde(default)]
    maximum_event_age_in_seconds: Option<u32>,
    #[serde(default)]
    maximum_retry_attempts: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct FlexibleTimeWindow {
    mode: String,
}

/// One of two words.
fn either(
    field: &str,
    given: Option<&str>,
    [usual, other]: [&str; 2],
) -> Result<bool, LambdaError> {
    match given {
        None => Ok(false),
        Some(word) if word == usual => Ok(false),
        Some(word) if word == other => Ok(true),
        Some(_) => Err(invalid(format!("{field} is {usual} or {other}"))),
    }
}

/// Milliseconds since 1970, of seconds.
fn unix_ms(field: &str, seconds: Option<f64>) -> Result<Option<u64>, LambdaError> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    let time = std::time::Duration::try_from_secs_f64(seconds);
    let time = time
        .ok()
        .and_then(|time| u64::try_from(time.as_millis()).ok());
    let time = time.ok_or_else(|| invalid(format!("{field} is no time after 1970")))?;
    Ok(Some(time))
}

fn check_group(name: Option<&str>) -> Result<(), LambdaError> {
    match name {
        None | Some(GROUP) => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(64).collect();
            let message = format!("Schedule group {name} does not exist: there is {GROUP}");
            Err(LambdaError::new(Code::ResourceNotFound, message))
        }
    }
}

impl Front {
    pub(crate) async fn run_scheduler(
        &self,
        operation: SchedulerOperation,
        call: &Call,
    ) -> Result<Reply, LambdaError> {
        use SchedulerOperation as O;
        let (project, control) = (&call.project, &self.control);
        match operation {
            O::CreateSchedule(name) => {
                let (spec, token) = self.schedule_wanted(call)?;
                control.create_schedule(project, &name, spec, token).await?;
                Ok(self.named_schedule(call, &name))
            }
            O::UpdateSchedule(name) => {
                let (spec, _token) = self.schedule_wanted(call)?;
                control.update_schedule(&project.id, &name, spec).await?;
                Ok(self.named_schedule(call, &name))
            }
            O::GetSchedule(name) => {
                check_group(call.param("groupName"))?;
                let record = control.schedule(&project.id, &name).await?;
                let shown = self.shown_schedule(call, &name, &record);
                Ok(Reply::json(StatusCode::OK, shown))
            }
            O::DeleteSchedule(name) => {
                check_group(call.param("groupName"))?;
                control.delete_schedule(&project.id, &name).await?;
                Ok(Reply::json(StatusCode::OK, json!({})))
            }
            O::ListSchedules => self.list_schedules(call).await,
            O::GetScheduleGroup(name) => {
                check_group(Some(&name))?;
                Ok(Reply::json(StatusCode::OK, self.group(call)))
            }
            O::ListScheduleGroups => {
                let listed = GROUP.starts_with(call.param("NamePrefix").unwrap_or_default());
                let groups: Vec<Value> = listed.then(|| self.group(call)).into_iter().collect();
                Ok(Reply::json(
                    StatusCode::OK,
                    json!({"ScheduleGroups": groups}),
                ))
            }
        }
    }

    fn named_schedule(&self, call: &Call, name: &str) -> Reply {
        let arn = self.schedule_arn(&call.project.id, name);
        Reply::json(StatusCode::OK, json!({"ScheduleArn": arn}))
    }

    /// What is asked for, and the call's token.
    fn schedule_wanted(&self, call: &Call) -> Result<(ScheduleSpec, Option<String>), LambdaError> {
        let wanted: Wanted = parse(call)?;
        check_group(wanted.group_name.as_deref())?;
        if wanted.flexible_time_window.mode != "OFF" {
            return Err(invalid("FlexibleTimeWindow: the mode OFF is served"));
        }
        let target = wanted.target;
        if target.role_arn.len() > ROLE_BYTES_MAX {
            return Err(invalid(format!("RoleArn is over {ROLE_BYTES_MAX} bytes")));
        }
        let function = FunctionRef::parse(&target.arn).map_err(invalid)?;
        let ours = function.account.as_ref() == Some(&call.project.id);
        let here = function.region.as_deref() == Some(self.region.as_str());
        if !ours || !here {
            let arn = &target.arn;
            return Err(invalid(format!(
                "the target {arn} is not a function of this region and project"
            )));
        }
        let policy = target.retry_policy;
        let age_s = policy.as_ref().and_then(|p| p.maximum_event_age_in_seconds);
        let retries = policy.and_then(|p| p.maximum_retry_attempts);
        if retries.is_some_and(|retries| retries > RETRIES_MAX) {
            return Err(invalid(format!(
                "MaximumRetryAttempts is 0 to {RETRIES_MAX}"
            )));
        }
        let state = wanted.state.as_deref();
        let action = wanted.action_after_completion.as_deref();
        let token = wanted.client_token;
        if token
            .as_ref()
            .is_some_and(|token| token.len() > TOKEN_BYTES_MAX)
        {
            return Err(invalid(format!(
                "ClientToken is over {TOKEN_BYTES_MAX} bytes"
            )));
        }
        let spec = ScheduleSpec {
            expression: wanted.schedule_expression,
            timezone: wanted.schedule_expression_timezone.unwrap_or_default(),
            start_unix_ms: unix_ms("StartDate", wanted.start_date)?,
            end_unix_ms: unix_ms("EndDate", wanted.end_date)?,
            description: wanted.description.unwrap_or_default(),
            is_enabled: !either("State", state, ["ENABLED", "DISABLED"])?,
            function: function.name,
            qualifier: function.qualifier.map(|qualifier| qualifier.to_string()),
            role: target.role_arn,
            input: target.input,
            age_s: age_s.unwrap_or(AGE_S_MAX),
            retries: retries.unwrap_or(RETRIES_MAX),
            delete_after: either("ActionAfterCompletion", action, ["NONE", "DELETE"])?,
        };
        Ok((spec, token))
    }

    async fn list_schedules(&self, call: &Call) -> Result<Reply, LambdaError> {
        check_group(call.param("ScheduleGroup"))?;
        let limit = match call.param("MaxResults").map(str::parse) {
            None => PAGE_MAX,
            Some(Ok(limit @ 1..=PAGE_MAX)) => limit,
            Some(_) => return Err(invalid(format!("MaxResults is 1 to {PAGE_MAX}"))),
        };
        let prefix = call.param("NamePrefix").unwrap_or_default();
        let state = call.param("State");
        let (mut shown, mut after) = (Vec::new(), call.param("NextToken").map(str::to_owned));
        loop {
            let page = self
                .control
                .schedules(&call.project.id, after.as_deref(), PAGE_MAX);
            let page = page.await?;
            let mut found = page.items.iter().peekable();
            while let Some(one) = found.next() {
                let name = key::last_part(&one.key);
                after = Some(name.to_owned());
                let is_wanted = name.starts_with(prefix)
                    && state.is_none_or(|state| state == word(&one.record));
                if is_wanted {
                    shown.push(self.summary(call, name, &one.record));
                }
                if shown.len() == limit && (found.peek().is_some() || page.more) {
                    let reply = json!({"Schedules": shown, "NextToken": after});
                    return Ok(Reply::json(StatusCode::OK, reply));
                }
            }
            if !page.more {
                return Ok(Reply::json(StatusCode::OK, json!({"Schedules": shown})));
            }
        }
    }

    fn target_arn(&self, call: &Call, spec: &ScheduleSpec) -> String {
        let arn = self.arns(&call.project.id).function(&spec.function);
        match &spec.qualifier {
            Some(qualifier) => format!("{arn}:{qualifier}"),
            None => arn,
        }
    }

    fn summary(&self, call: &Call, name: &str, record: &ScheduleRecord) -> Value {
        json!({
            "Arn": self.schedule_arn(&call.project.id, name),
            "Name": name,
            "GroupName": GROUP,
            "State": word(record),
            "CreationDate": record.created_unix_ms / 1000,
            "LastModificationDate": record.modified_unix_ms / 1000,
            "Target": {"Arn": self.target_arn(call, &record.spec)},
        })
    }

    fn shown_schedule(&self, call: &Call, name: &str, record: &ScheduleRecord) -> Value {
        let spec = &record.spec;
        let zone = match spec.timezone.as_str() {
            "" => "UTC",
            zone => zone,
        };
        let action = match spec.delete_after {
            true => "DELETE",
            false => "NONE",
        };
        let mut shown = self.summary(call, name, record);
        let mut set = |field: &str, value: Value| {
            if let Some(fields) = shown.as_object_mut() {
                fields.insert(field.to_owned(), value);
            }
        };
        set("ScheduleExpression", json!(spec.expression));
        set("ScheduleExpressionTimezone", json!(zone));
        set("Description", json!(spec.description));
        set("FlexibleTimeWindow", json!({"Mode": "OFF"}));
        set("ActionAfterCompletion", json!(action));
        for (field, time) in [
            ("StartDate", spec.start_unix_ms),
            ("EndDate", spec.end_unix_ms),
        ] {
            if let Some(time) = time {
                set(field, json!(time / 1000));
            }
        }
        let mut target = json!({
            "Arn": self.target_arn(call, spec),
            "RoleArn": spec.role,
            "RetryPolicy": {
                "MaximumEventAgeInSeconds": spec.age_s,
                "MaximumRetryAttempts": spec.retries,
            },
        });
        if let (Some(input), Some(fields)) = (&spec.input, target.as_object_mut()) {
            fields.insert("Input".to_owned(), json!(input));
        }
        set("Target", target);
        shown
    }

    fn group(&self, call: &Call) -> Value {
        let arn = format!(
            "arn:aws:scheduler:{}:{}:schedule-group/{GROUP}",
            self.region, call.project.id
        );
        json!({"Arn": arn, "Name": GROUP, "State": "ACTIVE"})
    }
}

const fn word(record: &ScheduleRecord) -> &'static str {
    match record.spec.is_enabled {
        true => "ENABLED",
        false => "DISABLED",
    }
}
