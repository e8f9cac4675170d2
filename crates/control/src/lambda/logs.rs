//! CloudWatch Logs' API: what boto3 and the AWS CLI read of what functions
//! wrote. A group is a function, a stream one of its instances; the lines are
//! the workers'.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_lambda::{
    Code, FunctionName, LambdaError, LogGroup, log_group, log_stream, log_stream_instance,
    parse_filter,
};
use skiff_types::{
    InstanceId, LogEvent, LogPage, LogPosition, LogRange, LogSpan, LogStart, LogTerms, ServiceName,
};

use super::Front;
use super::call::{Call, Reply, body as parse, invalid};
use super::record::FunctionRecord;
use crate::control::asked;
use crate::db::Found;
use crate::error::ControlError;
use crate::key;
use crate::record::ServiceRecord;

/// What `X-Amz-Target` begins with.
const TARGET: &str = "Logs_20140328.";
/// Of a page of groups or streams (AWS's limit).
const PAGE_MAX: usize = 50;
/// Of a page of events (AWS's limit).
const EVENTS_MAX: usize = 10_000;
/// Names of streams in one call (AWS's limit).
const STREAMS_NAMED_MAX: usize = 100;
/// Logs that are read at once: each read has a service's files pass by.
pub(crate) const READS_MAX: usize = 4;
/// Of which instances of the Lambda API are told.
const VERSION: &str = "$LATEST";
const SERVED: &str = "DescribeLogGroups, DescribeLogStreams, GetLogEvents and FilterLogEvents";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogsOperation {
    DescribeLogGroups,
    DescribeLogStreams,
    GetLogEvents,
    FilterLogEvents,
}

impl LogsOperation {
    /// What a request asks this API for; `None` when it asks another one.
    pub(crate) fn target<'a>(path: &str, headers: &'a HeaderMap) -> Option<&'a str> {
        let target = headers.get("x-amz-target")?.to_str().ok()?;
        target.strip_prefix(TARGET).filter(|_| path == "/")
    }

    pub(crate) fn of(method: &str, target: &str) -> Result<Self, LambdaError> {
        match (method, target) {
            ("POST", "DescribeLogGroups") => Ok(Self::DescribeLogGroups),
            ("POST", "DescribeLogStreams") => Ok(Self::DescribeLogStreams),
            ("POST", "GetLogEvents") => Ok(Self::GetLogEvents),
            ("POST", "FilterLogEvents") => Ok(Self::FilterLogEvents),
            _ => {
                let message =
                    format!("this operation is not served here: of CloudWatch Logs {SERVED} are");
                Err(LambdaError::new(Code::NotImplemented, message))
            }
        }
    }
}

/// The error as this API names it (AWS JSON 1.1).
pub(crate) fn error(error: &LambdaError) -> Reply {
    let (name, status) = match error.code {
        Code::InvalidParameterValue | Code::RequestTooLarge => {
            ("InvalidParameterException", StatusCode::BAD_REQUEST)
        }
        Code::InvalidRequestContent => ("SerializationException", StatusCode::BAD_REQUEST),
        Code::NotImplemented => ("UnknownOperationException", StatusCode::BAD_REQUEST),
        Code::TooManyRequests => ("ThrottlingException", StatusCode::BAD_REQUEST),
        Code::Service => (
            "ServiceUnavailableException",
            StatusCode::INTERNAL_SERVER_ERROR,
        ),
        code => (code.name(), StatusCode::BAD_REQUEST),
    };
    reply(status, json!({"__type": name, "message": error.message}))
}

fn reply(status: StatusCode, value: Value) -> Reply {
    let mut reply = Reply::json(status, value);
    let kind = HeaderValue::from_static("application/x-amz-json-1.1");
    reply.headers.insert(http::header::CONTENT_TYPE, kind);
    reply
}

/// A page, and where the next one begins.
fn paged(mut value: Value, next: Option<String>) -> Reply {
    if let (Some(next), Some(fields)) = (next, value.as_object_mut()) {
        fields.insert("nextToken".to_owned(), json!(next));
    }
    reply(StatusCode::OK, value)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DescribeGroups {
    log_group_name_prefix: Option<String>,
    log_group_name_pattern: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
}

impl DescribeGroups {
    fn wants(&self, group: &str) -> bool {
        let prefix = self.log_group_name_prefix.as_deref().unwrap_or_default();
        let part = self.log_group_name_pattern.as_deref().unwrap_or_default();
        group.starts_with(prefix) && group.contains(part)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DescribeStreams {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name_prefix: Option<String>,
    #[serde(default)]
    order_by: OrderBy,
    #[serde(default)]
    descending: bool,
    limit: Option<usize>,
    next_token: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum OrderBy {
    #[default]
    LogStreamName,
    LastEventTime,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GetEvents {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name: String,
    start_time: Option<u64>,
    /// Not included.
    end_time: Option<u64>,
    next_token: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    start_from_head: bool,
    /// Nothing is masked.
    #[serde(default, rename = "unmask")]
    _unmask: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FilterEvents {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_names: Option<Vec<String>>,
    log_stream_name_prefix: Option<String>,
    start_time: Option<u64>,
    /// Included.
    end_time: Option<u64>,
    filter_pattern: Option<String>,
    next_token: Option<String>,
    limit: Option<usize>,
    start_from_head: Option<bool>,
    /// Streams are always merged.
    #[serde(default, rename = "interleaved")]
    _interleaved: bool,
    /// Nothing is masked.
    #[serde(default, rename = "unmask")]
    _unmask: bool,
}

fn limit_of(wanted: Option<usize>, most: usize) -> Result<usize, LambdaError> {
    match wanted {
        None => Ok(most),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(invalid(format!("limit is 1 to {most}"))),
    }
}

fn missing(what: &str) -> LambdaError {
    let message = format!("The specified log {what} does not exist.");
    LambdaError::new(Code::ResourceNotFound, message)
}

fn position_in(token: &str) -> Result<LogPosition, LambdaError> {
    let position = token.parse();
    position.map_err(|_| invalid("The specified nextToken is invalid."))
}

/// The token of the way towards newer events.
const FORWARD: &str = "f/";
/// The token of the way towards older ones.
const BACKWARD: &str = "b/";

/// Where a page of one stream begins.
fn start_of(wanted: &GetEvents) -> Result<LogStart, LambdaError> {
    let Some(token) = &wanted.next_token else {
        return Ok(match wanted.start_from_head {
            true => LogStart::From(LogPosition::at(wanted.start_time.unwrap_or(0))),
            false => LogStart::Before(LogPosition::at(wanted.end_time.unwrap_or(u64::MAX))),
        });
    };
    match (token.strip_prefix(FORWARD), token.strip_prefix(BACKWARD)) {
        (Some(position), _) => Ok(LogStart::From(position_in(position)?)),
        (_, Some(position)) => Ok(LogStart::Before(position_in(position)?)),
        _ => Err(invalid("The specified nextToken is invalid.")),
    }
}

/// Where the page behind this one begins, and the one before it. Those of an
/// empty page are where it began: who goes on meets the same token again.
fn tokens_of(wanted: &GetEvents, start: LogStart, events: &[LogEvent]) -> [String; 2] {
    let begin = match start {
        _ if wanted.next_token.is_none() => LogPosition::at(wanted.start_time.unwrap_or(0)),
        LogStart::From(at) | LogStart::Before(at) => at,
    };
    let first = events.first().map_or(begin, |event| event.position);
    let last = events.last().map_or(begin, |event| event.position.next());
    [format!("{FORWARD}{last}"), format!("{BACKWARD}{first}")]
}

/// The streams of a page in their order, and where the next page begins.
fn streams_of(
    wanted: &DescribeStreams,
    spans: Vec<LogSpan>,
) -> Result<(Vec<LogSpan>, Option<LogPosition>), LambdaError> {
    let limit = limit_of(wanted.limit, PAGE_MAX)?;
    let prefix = wanted.log_stream_name_prefix.as_deref().unwrap_or_default();
    if wanted.order_by == OrderBy::LastEventTime && !prefix.is_empty() {
        return Err(invalid(
            "Cannot order by LastEventTime with a logStreamNamePrefix.",
        ));
    }
    let after = wanted.next_token.as_deref().map(position_in).transpose()?;
    let rank = |span: &LogSpan| LogPosition {
        unix_ms: match wanted.order_by {
            // Names begin with the day, and ids of instances with the time.
            OrderBy::LogStreamName => 0,
            OrderBy::LastEventTime => span.last_unix_ms,
        },
        instance: span.instance,
        ordinal: 0,
    };
    let is_ahead = |span: &LogSpan| match (after, wanted.descending) {
        (None, _) => true,
        (Some(after), false) => rank(span) > after,
        (Some(after), true) => rank(span) < after,
    };
    let is_named = |span: &LogSpan| log_stream(VERSION, span.instance).starts_with(prefix);
    let mut spans = spans;
    spans.retain(|span| is_ahead(span) && is_named(span));
    spans.sort_unstable_by_key(rank);
    if wanted.descending {
        spans.reverse();
    }
    let more = spans.len() > limit;
    spans.truncate(limit);
    let last = spans.last().filter(|_| more).map(rank);
    Ok((spans, last))
}

impl Front {
    pub(crate) async fn run_logs(
        &self,
        operation: LogsOperation,
        call: &Call,
    ) -> Result<Reply, LambdaError> {
        match operation {
            LogsOperation::DescribeLogGroups => self.log_groups(call).await,
            LogsOperation::DescribeLogStreams => self.log_streams(call).await,
            LogsOperation::GetLogEvents => self.stream_events(call).await,
            LogsOperation::FilterLogEvents => self.filtered_events(call).await,
        }
    }

    async fn log_groups(&self, call: &Call) -> Result<Reply, LambdaError> {
        let wanted: DescribeGroups = parse(call)?;
        let limit = limit_of(wanted.limit, PAGE_MAX)?;
        let project = &call.project.id;
        let token = wanted.next_token.as_deref().map(str::parse::<ServiceName>);
        let token = token.transpose();
        let token = token.map_err(|_| invalid("The specified nextToken is invalid."))?;
        let mut after = token.map(|name| key::function(project, &name));
        let (mut shown, mut last) = (Vec::new(), None);
        loop {
            let prefix = key::functions(project);
            let page =
                self.control
                    .db()
                    .page::<FunctionRecord>(&prefix, after.as_deref(), PAGE_MAX);
            let page = page.await?;
            for found in &page.items {
                let service: ServiceName = key::last_part(&found.key).parse().map_err(invalid)?;
                let name = found.record.name_of(&service);
                if !wanted.wants(&log_group(&name)) {
                    continue;
                }
                if shown.len() == limit {
                    return Ok(paged(json!({"logGroups": shown}), last));
                }
                shown.push(self.shown_group(call, &name, found).await?);
                last = Some(service.to_string());
            }
            after = page.items.last().map(|found| found.key.clone());
            if !page.more || after.is_none() {
                return Ok(paged(json!({"logGroups": shown}), None));
            }
        }
    }

    async fn shown_group(
        &self,
        call: &Call,
        name: &FunctionName,
        function: &Found<FunctionRecord>,
    ) -> Result<Value, LambdaError> {
        let place = key::service(&call.project.id, name.service());
        let service = self.control.db().get::<ServiceRecord>(&place).await?;
        let created = service.map_or(function.record.latest.modified_unix_ms, |found| {
            found.record.created_unix_ms
        });
        let arn = self.group_arn(call, name);
        Ok(json!({
            "logGroupName": log_group(name),
            "creationTime": created,
            "metricFilterCount": 0,
            "arn": format!("{arn}:*"),
            "logGroupArn": arn,
            "logGroupClass": "STANDARD",
        }))
    }

    fn group_arn(&self, call: &Call, name: &FunctionName) -> String {
        format!(
            "arn:aws:logs:{}:{}:log-group:{}",
            self.region,
            call.project.id,
            log_group(name)
        )
    }

    /// The function whose group is named, by its name or its identifier.
    async fn group_of(
        &self,
        call: &Call,
        name: Option<&str>,
        identifier: Option<&str>,
    ) -> Result<FunctionName, LambdaError> {
        let (Some(named), None) = (name.or(identifier), name.and(identifier)) else {
            return Err(invalid(
                "logGroupName or logGroupIdentifier is missing, or both are given",
            ));
        };
        let group = LogGroup::parse(named).ok_or_else(|| missing("group"))?;
        let is_here = group
            .region
            .as_ref()
            .is_none_or(|region| *region == self.region);
        let is_ours = group
            .account
            .as_ref()
            .is_none_or(|account| *account == call.project.id);
        if !is_here || !is_ours {
            return Err(missing("group"));
        }
        match self.record(call, &group.function).await {
            Ok(_) => Ok(group.function),
            Err(error) if error.code == Code::ResourceNotFound => Err(missing("group")),
            Err(error) => Err(error),
        }
    }

    async fn log_streams(&self, call: &Call) -> Result<Reply, LambdaError> {
        let wanted: DescribeStreams = parse(call)?;
        let (name, identifier) = (&wanted.log_group_name, &wanted.log_group_identifier);
        let function = self.group_of(call, name.as_deref(), identifier.as_deref());
        let function = function.await?;
        let spans = self.spans(call, &function).await?;
        let (spans, next) = streams_of(&wanted, spans)?;
        let arn = self.group_arn(call, &function);
        let shown = spans.iter().map(|span| {
            let name = log_stream(VERSION, span.instance);
            json!({
                "arn": format!("{arn}:log-stream:{name}"),
                "logStreamName": name,
                "creationTime": span.instance.unix_ms(),
                "firstEventTimestamp": span.first_unix_ms,
                "lastEventTimestamp": span.last_unix_ms,
                "lastIngestionTime": span.last_unix_ms,
            })
        });
        let next = next.map(|next| next.to_string());
        let shown: Vec<Value> = shown.collect();
        Ok(paged(json!({"logStreams": shown}), next))
    }

    async fn stream_events(&self, call: &Call) -> Result<Reply, LambdaError> {
        let wanted: GetEvents = parse(call)?;
        let start = start_of(&wanted)?;
        let (name, identifier) = (&wanted.log_group_name, &wanted.log_group_identifier);
        let function = self.group_of(call, name.as_deref(), identifier.as_deref());
        let function = function.await?;
        let instance = log_stream_instance(&wanted.log_stream_name);
        let instance = instance.ok_or_else(|| missing("stream"))?;
        let range = LogRange {
            project: call.project.id.clone(),
            service: function.service().clone(),
            instances: Some(BTreeSet::from([instance])),
            since_unix_ms: wanted.start_time.unwrap_or(0),
            until_unix_ms: wanted.end_time.unwrap_or(u64::MAX),
            start,
            terms: LogTerms::default(),
            events_max: limit_of(wanted.limit, EVENTS_MAX)?,
        };
        let page = self.page(range.clone()).await?;
        if page.events.is_empty() {
            self.check_stream(range).await?;
        }
        let [forward, backward] = tokens_of(&wanted, start, &page.events);
        let events = page.events.into_iter().map(|event| {
            let unix_ms = event.position.unix_ms;
            json!({"timestamp": unix_ms, "message": event.text, "ingestionTime": unix_ms})
        });
        let value = json!({
            "events": events.collect::<Vec<Value>>(),
            "nextForwardToken": forward,
            "nextBackwardToken": backward,
        });
        Ok(reply(StatusCode::OK, value))
    }

    /// Whether anything is kept of the stream of a range without events.
    async fn check_stream(&self, range: LogRange) -> Result<(), LambdaError> {
        let any = LogRange {
            since_unix_ms: 0,
            until_unix_ms: u64::MAX,
            start: LogStart::From(LogPosition::at(0)),
            events_max: 1,
            ..range
        };
        match self.page(any).await?.events.is_empty() {
            true => Err(missing("stream")),
            false => Ok(()),
        }
    }

    async fn filtered_events(&self, call: &Call) -> Result<Reply, LambdaError> {
        let wanted: FilterEvents = parse(call)?;
        if wanted.start_from_head == Some(false) {
            return Err(invalid(
                "startFromHead false is not served by FilterLogEvents",
            ));
        }
        let terms = parse_filter(wanted.filter_pattern.as_deref().unwrap_or_default());
        let since = wanted.start_time.unwrap_or(0);
        let start = wanted.next_token.as_deref().map(position_in).transpose()?;
        let (name, identifier) = (&wanted.log_group_name, &wanted.log_group_identifier);
        let function = self.group_of(call, name.as_deref(), identifier.as_deref());
        let function = function.await?;
        let range = LogRange {
            project: call.project.id.clone(),
            instances: self.instances(call, &wanted, &function).await?,
            service: function.service().clone(),
            since_unix_ms: since,
            until_unix_ms: wanted
                .end_time
                .map_or(u64::MAX, |end| end.saturating_add(1)),
            start: LogStart::From(start.unwrap_or(LogPosition::at(since))),
            terms: terms.map_err(invalid)?,
            events_max: limit_of(wanted.limit, EVENTS_MAX)?,
        };
        let LogPage { events, more } = self.page(range).await?;
        let next = events.last().filter(|_| more);
        let next = next.map(|event| event.position.next().to_string());
        let events = events.into_iter().map(|event| {
            let unix_ms = event.position.unix_ms;
            json!({
                "logStreamName": log_stream(VERSION, event.position.instance),
                "timestamp": unix_ms,
                "message": event.text,
                "ingestionTime": unix_ms,
                "eventId": event.position.to_string(),
            })
        });
        let value = json!({
            "events": events.collect::<Vec<Value>>(),
            "searchedLogStreams": [],
        });
        Ok(paged(value, next))
    }

    /// Whose events are wanted; absent means all instances'.
    async fn instances(
        &self,
        call: &Call,
        wanted: &FilterEvents,
        function: &FunctionName,
    ) -> Result<Option<BTreeSet<InstanceId>>, LambdaError> {
        match (&wanted.log_stream_names, &wanted.log_stream_name_prefix) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(invalid(
                "logStreamNames and logStreamNamePrefix exclude each other",
            )),
            (Some(names), None) if (1..=STREAMS_NAMED_MAX).contains(&names.len()) => {
                let named = names.iter().map(|name| log_stream_instance(name));
                let named: Option<BTreeSet<InstanceId>> = named.collect();
                named.ok_or_else(|| missing("stream")).map(Some)
            }
            (Some(_), None) => Err(invalid(format!(
                "logStreamNames has 1 to {STREAMS_NAMED_MAX} names"
            ))),
            (None, Some(prefix)) => {
                let spans = self.spans(call, function).await?;
                let instances = spans.into_iter().map(|span| span.instance);
                let is_named =
                    |instance: &InstanceId| log_stream(VERSION, *instance).starts_with(prefix);
                Ok(Some(instances.filter(is_named).collect()))
            }
        }
    }

    async fn page(&self, range: LogRange) -> Result<LogPage, LambdaError> {
        let reading = async {
            let _turn = self.log_reads.acquire().await;
            self.control.inner.ports.logs.page(range).await
        };
        let read = asked("the logs", Box::pin(reading)).await?;
        Ok(read.map_err(ControlError::from)?)
    }

    async fn spans(
        &self,
        call: &Call,
        function: &FunctionName,
    ) -> Result<Vec<LogSpan>, LambdaError> {
        let logs = &self.control.inner.ports.logs;
        let reading = async {
            let _turn = self.log_reads.acquire().await;
            logs.spans(&call.project.id, function.service()).await
        };
        let read = asked("the logs", Box::pin(reading)).await?;
        Ok(read.map_err(ControlError::from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> InstanceId {
        InstanceId::from_parts(1_709_251_199_007, number)
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn events(wanted: Value) -> GetEvents {
        let mut value = json!({"logGroupName": "g", "logStreamName": "s"});
        let (Some(all), Value::Object(more)) = (value.as_object_mut(), wanted) else {
            panic!("objects are given");
        };
        all.extend(more);
        read(value)
    }

    fn event(unix_ms: u64, ordinal: u32) -> LogEvent {
        LogEvent {
            position: LogPosition {
                unix_ms,
                instance: id(1),
                ordinal,
            },
            text: String::new(),
        }
    }

    #[test]
    fn a_page_of_a_stream_begins_where_it_is_told_to() {
        let at = event(5, 3).position;
        for (wanted, expected) in [
            (json!({}), LogStart::Before(LogPosition::at(u64::MAX))),
            (json!({"endTime": 9}), LogStart::Before(LogPosition::at(9))),
            (
                json!({"startTime": 4, "startFromHead": true}),
                LogStart::From(LogPosition::at(4)),
            ),
            (json!({"nextToken": format!("f/{at}")}), LogStart::From(at)),
            (
                json!({"nextToken": format!("b/{at}"), "startFromHead": true}),
                LogStart::Before(at),
            ),
        ] {
            assert_eq!(start_of(&events(wanted)), Ok(expected));
        }
        for token in ["f/", "x/0", "b/zz", &format!("{at}")] {
            let error = start_of(&events(json!({"nextToken": token}))).unwrap_err();
            assert_eq!(error.code, Code::InvalidParameterValue, "{token}");
        }
    }

    #[test]
    fn tokens_are_the_same_again_where_there_is_nothing_more() {
        let wanted = events(json!({"startFromHead": true, "startTime": 2}));
        let start = start_of(&wanted).unwrap();
        let [forward, backward] = tokens_of(&wanted, start, &[event(5, 0), event(5, 1)]);
        assert_eq!(forward, format!("f/{}", event(5, 2).position));
        assert_eq!(backward, format!("b/{}", event(5, 0).position));
        for token in [forward, backward] {
            let wanted = events(json!({"nextToken": token}));
            let start = start_of(&wanted).unwrap();
            assert!(tokens_of(&wanted, start, &[]).contains(&token));
        }
        // What comes later into an empty stream lies forward.
        let [forward, _] = tokens_of(&wanted, start, &[]);
        assert_eq!(forward, format!("f/{}", LogPosition::at(2)));
    }

    fn spans() -> Vec<LogSpan> {
        let span = |(number, last): (u32, u64)| LogSpan {
            instance: id(number),
            first_unix_ms: 1,
            last_unix_ms: last,
        };
        [(1, 30), (2, 10), (3, 20)].map(span).to_vec()
    }

    /// The instances of all pages.
    fn pages(order: &Value, limit: usize) -> Vec<InstanceId> {
        let (mut seen, mut token) = (vec![], None);
        loop {
            let mut value = json!({"limit": limit, "nextToken": token});
            let all = value.as_object_mut().unwrap();
            all.extend(order.as_object().unwrap().clone());
            let (page, next) = streams_of(&read(value), spans()).unwrap();
            assert!(page.len() == limit || next.is_none());
            seen.extend(page.iter().map(|span| span.instance));
            match next {
                Some(next) => token = Some(next.to_string()),
                None => return seen,
            }
        }
    }

    #[test]
    fn streams_come_in_their_order_and_once() {
        for (order, expected) in [
            (json!({}), [1, 2, 3]),
            (json!({"descending": true}), [3, 2, 1]),
            (json!({"orderBy": "LastEventTime"}), [2, 3, 1]),
            (
                json!({"orderBy": "LastEventTime", "descending": true}),
                [1, 3, 2],
            ),
        ] {
            for limit in 1..=3 {
                assert_eq!(pages(&order, limit), expected.map(id), "{order}");
            }
        }
    }

    #[test]
    fn streams_are_named_by_their_beginnings() {
        let name = log_stream(VERSION, id(2));
        let of = |prefix: &str| {
            let wanted = json!({"logStreamNamePrefix": prefix});
            let (page, _) = streams_of(&read(wanted), spans()).unwrap();
            page.iter().map(|span| span.instance).collect::<Vec<_>>()
        };
        assert_eq!(of("2024/02/29/[$LATEST]").len(), 3);
        assert_eq!(of(&name), [id(2)]);
        assert!(of("2024/03").is_empty());
        let both = json!({"logStreamNamePrefix": "2024", "orderBy": "LastEventTime"});
        assert!(streams_of(&read(both), spans()).is_err());
        for limit in [0, 51] {
            assert!(streams_of(&read(json!({"limit": limit})), spans()).is_err());
        }
    }

    #[test]
    fn an_error_has_this_apis_name_in_its_body() {
        for (code, name, status) in [
            (
                Code::InvalidParameterValue,
                "InvalidParameterException",
                400,
            ),
            (Code::NotImplemented, "UnknownOperationException", 400),
            (Code::ResourceNotFound, "ResourceNotFoundException", 400),
            (Code::UnrecognizedClient, "UnrecognizedClientException", 400),
            (Code::Service, "ServiceUnavailableException", 500),
        ] {
            let reply = error(&LambdaError::new(code, "why"));
            assert_eq!(reply.status.as_u16(), status, "{name}");
            let text = format!("{:?}", reply.headers);
            assert!(text.contains("application/x-amz-json-1.1"), "{text}");
            let body = http_body_util::BodyExt::collect(reply.body);
            let body = futures_util::FutureExt::now_or_never(body)
                .unwrap()
                .unwrap();
            let expected = json!({"__type": name, "message": "why"});
            assert_eq!(body.to_bytes(), expected.to_string());
        }
    }
}
