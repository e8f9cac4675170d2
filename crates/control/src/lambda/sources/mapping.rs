//! What an event source mapping is to do, and what AWS lets it be
//! (CreateEventSourceMapping, "Request body"; "Creating an SQS event source
//! mapping").

use serde::{Deserialize, Serialize};
use skiff_lambda::{EventPattern, FunctionName, LambdaError};
use skiff_types::ProjectId;

use crate::lambda::body;
use crate::lambda::call::invalid;

/// Records in one event unless told, of a queue and of a stream.
const QUEUE_BATCH_SIZE: u32 = 10;
const STREAM_BATCH_SIZE: u32 = 100;
/// Records in one event, and what one receive of a queue gives.
const BATCH_SIZE_MAX: u32 = 10_000;
pub(super) const RECEIVE_MAX: u32 = 10;
const WINDOW_S_MAX: u32 = 300;
const CONCURRENCY_MIN: u32 = 2;
const CONCURRENCY_MAX: u32 = 1000;
/// Filters of one mapping (AWS's quota, as it can be raised).
const FILTERS_MAX: usize = 10;
const PARTIAL: &str = "ReportBatchItemFailures";
const RETRIES_MAX: u32 = 10_000;
const AGE_S_MIN: u32 = 60;
const AGE_S_MAX: u32 = 604_800;
/// What has no end.
const ENDLESS: i32 = -1;
const TRIM_HORIZON: &str = "TRIM_HORIZON";
const LATEST: &str = "LATEST";
/// The longest ARN of a stream, bytes (DynamoDB's model).
const STREAM_BYTES_MAX: usize = 1024;
/// The longest queue name, bytes (SQS's limit).
const QUEUE_BYTES_MAX: usize = 80;

/// A mapping as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MappingRecord {
    /// The ARN of what is polled.
    pub source: String,
    pub function: FunctionName,
    /// A version or an alias.
    pub qualifier: Option<String>,
    pub is_enabled: bool,
    pub batch_size: u32,
    /// How long records are gathered, seconds.
    pub window_s: u32,
    /// Patterns: a record is taken by any of them, and by none there is.
    pub filters: Vec<String>,
    /// Whether the function's answer says which records failed.
    pub is_partial: bool,
    /// Invocations at once; absent is the server's own bound.
    pub concurrency: Option<u32>,
    pub modified_unix_ms: u64,
    /// Of a stream only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamRules>,
}

/// How a stream is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamRules {
    /// Older records are passed over; 0 is all that there are. Milliseconds
    /// since 1970.
    pub from_unix_ms: u64,
    /// Whether what failed is tried in halves.
    pub bisects: bool,
    /// Tries after the first; absent is without an end.
    pub retries: Option<u32>,
    /// The oldest a record may get, seconds; absent is without an end.
    pub age_s: Option<u32>,
    /// Who is told of what is given up.
    pub on_failure: Option<String>,
}

/// What is polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Queue(QueueArn),
    Stream(StreamArn),
}

/// A stream of a table by its ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamArn {
    pub region: String,
    pub account: ProjectId,
    pub text: String,
}

impl StreamArn {
    /// `arn:aws:dynamodb:REGION:ACCOUNT:table/NAME/stream/LABEL`.
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", "aws", "dynamodb", region, account, place] = parts[..] else {
            return None;
        };
        let names: Vec<&str> = place.split('/').collect();
        let ["table", table, "stream", label] = names[..] else {
            return None;
        };
        let clean = text.bytes().all(|b| b.is_ascii_graphic());
        let named = !table.is_empty() && !label.is_empty() && text.len() <= STREAM_BYTES_MAX;
        (clean && named).then_some(Self {
            region: region.to_owned(),
            account: account.parse().ok()?,
            text: text.to_owned(),
        })
    }
}

impl Source {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let queue = QueueArn::parse(text).map(Self::Queue);
        queue.or_else(|| StreamArn::parse(text).map(Self::Stream))
    }

    pub(super) fn region(&self) -> &str {
        match self {
            Self::Queue(queue) => &queue.region,
            Self::Stream(stream) => &stream.region,
        }
    }

    pub(super) fn account(&self) -> &ProjectId {
        match self {
            Self::Queue(queue) => &queue.account,
            Self::Stream(stream) => &stream.account,
        }
    }

    fn is_fifo(&self) -> bool {
        matches!(self, Self::Queue(queue) if queue.is_fifo())
    }
}

/// A queue by its ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueArn {
    pub region: String,
    pub account: ProjectId,
    pub name: String,
}

impl QueueArn {
    /// `arn:aws:sqs:REGION:ACCOUNT:NAME`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", "aws", "sqs", region, account, name] = parts[..] else {
            return None;
        };
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let stem = name.strip_suffix(".fifo").unwrap_or(name);
        let named = !stem.is_empty() && name.len() <= QUEUE_BYTES_MAX && stem.bytes().all(good);
        named.then_some(Self {
            region: region.to_owned(),
            account: account.parse().ok()?,
            name: name.to_owned(),
        })
    }

    pub(super) fn is_fifo(&self) -> bool {
        self.name.ends_with(".fifo")
    }
}

impl MappingRecord {
    /// One that does what AWS's does unless told.
    pub(super) fn new(source: &str, function: FunctionName, qualifier: Option<String>) -> Self {
        let is_stream = matches!(Source::parse(source), Some(Source::Stream(_)));
        Self {
            source: source.to_owned(),
            function,
            qualifier,
            is_enabled: true,
            stream: is_stream.then(StreamRules::default),
            batch_size: match is_stream {
                true => STREAM_BATCH_SIZE,
                false => QUEUE_BATCH_SIZE,
            },
            window_s: 0,
            filters: Vec::new(),
            is_partial: false,
            concurrency: None,
            modified_unix_ms: 0,
        }
    }

    /// `NAME` or `NAME:QUALIFIER`.
    pub(super) fn function_text(&self) -> String {
        match &self.qualifier {
            Some(qualifier) => format!("{}:{qualifier}", self.function),
            None => self.function.to_string(),
        }
    }

    /// Sets what is given, but for the function; an empty value is none.
    pub(super) fn apply(&mut self, wanted: &body::EventSourceMapping) {
        let set = |from: Option<u32>, to: &mut u32| *to = from.unwrap_or(*to);
        set(wanted.batch_size, &mut self.batch_size);
        set(
            wanted.maximum_batching_window_in_seconds,
            &mut self.window_s,
        );
        self.is_enabled = wanted.enabled.unwrap_or(self.is_enabled);
        if let Some(criteria) = &wanted.filter_criteria {
            let filters = criteria.filters.iter().flatten();
            self.filters = filters.map(|filter| filter.pattern.clone()).collect();
        }
        if let Some(types) = &wanted.function_response_types {
            self.is_partial = types.iter().any(|known| known == PARTIAL);
        }
        if let Some(scaling) = &wanted.scaling_config {
            self.concurrency = scaling.maximum_concurrency;
        }
        let Some(rules) = &mut self.stream else {
            return;
        };
        let bisects = wanted.bisect_batch_on_function_error;
        rules.bisects = bisects.unwrap_or(rules.bisects);
        let set = |from: Option<i32>, to: &mut Option<u32>| {
            if let Some(value) = from {
                *to = u32::try_from(value).ok();
            }
        };
        set(wanted.maximum_retry_attempts, &mut rules.retries);
        set(wanted.maximum_record_age_in_seconds, &mut rules.age_s);
        if let Some(destinations) = &wanted.destination_config {
            let on_failure = destinations.on_failure.as_ref();
            rules.on_failure = on_failure.and_then(|one| one.destination.clone());
        }
    }

    /// Whether AWS lets it be.
    pub(super) fn check(&self, source: &Source) -> Result<(), LambdaError> {
        let sizes = match source.is_fifo() {
            true => RECEIVE_MAX,
            false => BATCH_SIZE_MAX,
        };
        if !(1..=sizes).contains(&self.batch_size) {
            return Err(invalid(format!(
                "BatchSize is 1 to {sizes} for this source: {} is not",
                self.batch_size
            )));
        }
        if self.window_s > WINDOW_S_MAX {
            return Err(invalid(format!(
                "MaximumBatchingWindowInSeconds is 0 to {WINDOW_S_MAX}"
            )));
        }
        if source.is_fifo() && self.window_s > 0 {
            return Err(invalid("Batching window is not supported for FIFO queues"));
        }
        let is_queue = matches!(source, Source::Queue(_));
        if is_queue && self.batch_size > RECEIVE_MAX && self.window_s == 0 {
            return Err(invalid(format!(
                "Maximum batch window in seconds must be greater than 0 if maximum batch size is greater than {RECEIVE_MAX}"
            )));
        }
        let most = CONCURRENCY_MIN..=CONCURRENCY_MAX;
        if self.concurrency.is_some_and(|count| !most.contains(&count)) {
            return Err(invalid(format!(
                "ScalingConfig.MaximumConcurrency is {CONCURRENCY_MIN} to {CONCURRENCY_MAX}"
            )));
        }
        if self.filters.len() > FILTERS_MAX {
            return Err(invalid(format!(
                "FilterCriteria has at most {FILTERS_MAX} filters"
            )));
        }
        self.patterns().map(drop)
    }

    /// What takes a record; of none, all are taken.
    pub(super) fn patterns(&self) -> Result<Vec<EventPattern>, LambdaError> {
        let read = |text: &String| {
            let pattern = EventPattern::parse(text);
            pattern.map_err(|error| invalid(format!("Invalid filter pattern definition. {error}")))
        };
        self.filters.iter().map(read).collect()
    }
}

/// Whether a source of this kind takes what is asked for.
pub(super) fn check_wanted(
    wanted: &body::EventSourceMapping,
    source: &Source,
) -> Result<(), LambdaError> {
    let mut types = wanted.function_response_types.iter().flatten();
    if !types.all(|known| known == PARTIAL) {
        return Err(invalid(format!(
            "FunctionResponseTypes: {PARTIAL} is served"
        )));
    }
    match source {
        Source::Queue(_) => check_none_of_streams(wanted),
        Source::Stream(_) => check_of_stream(wanted),
    }
}

fn check_none_of_streams(wanted: &body::EventSourceMapping) -> Result<(), LambdaError> {
    for (name, is_given) in [
        ("StartingPosition", wanted.starting_position.is_some()),
        (
            "BisectBatchOnFunctionError",
            wanted.bisect_batch_on_function_error.is_some(),
        ),
        (
            "MaximumRetryAttempts",
            wanted.maximum_retry_attempts.is_some(),
        ),
        (
            "MaximumRecordAgeInSeconds",
            wanted.maximum_record_age_in_seconds.is_some(),
        ),
        (
            "ParallelizationFactor",
            wanted.parallelization_factor.is_some(),
        ),
        (
            "TumblingWindowInSeconds",
            wanted.tumbling_window_in_seconds.is_some(),
        ),
        ("DestinationConfig", wanted.destination_config.is_some()),
    ] {
        if is_given {
            return Err(invalid(format!(
                "{name} is for streams: a queue does not take it"
            )));
        }
    }
    Ok(())
}

fn check_of_stream(wanted: &body::EventSourceMapping) -> Result<(), LambdaError> {
    let within = |value: Option<i32>, least: u32, most: u32| {
        value.is_none_or(|value| {
            let positive = u32::try_from(value);
            value == ENDLESS || positive.is_ok_and(|value| (least..=most).contains(&value))
        })
    };
    if !within(wanted.maximum_retry_attempts, 0, RETRIES_MAX) {
        return Err(invalid(format!(
            "MaximumRetryAttempts is {ENDLESS}, or 0 to {RETRIES_MAX}"
        )));
    }
    if !within(wanted.maximum_record_age_in_seconds, AGE_S_MIN, AGE_S_MAX) {
        return Err(invalid(format!(
            "MaximumRecordAgeInSeconds is {ENDLESS}, or {AGE_S_MIN} to {AGE_S_MAX}"
        )));
    }
    if wanted.scaling_config.is_some() {
        return Err(invalid("ScalingConfig is for queues"));
    }
    if wanted
        .parallelization_factor
        .is_some_and(|factor| factor != 1)
    {
        return Err(invalid("ParallelizationFactor: 1 is served"));
    }
    if wanted
        .tumbling_window_in_seconds
        .is_some_and(|window| window != 0)
    {
        return Err(invalid("TumblingWindowInSeconds: 0 is served"));
    }
    let destinations = wanted.destination_config.as_ref();
    if destinations.is_some_and(|config| config.on_success.is_some()) {
        return Err(invalid("DestinationConfig: OnFailure is served"));
    }
    Ok(())
}

/// From when on a new mapping takes a stream's records.
pub(super) fn starting(position: Option<&str>, now_ms: u64) -> Result<u64, LambdaError> {
    match position {
        Some(TRIM_HORIZON) => Ok(0),
        // Streams tell times in whole seconds.
        Some(LATEST) => Ok(now_ms / 1000 * 1000),
        _ => Err(invalid(format!(
            "StartingPosition: {TRIM_HORIZON} or {LATEST} is expected for a stream"
        ))),
    }
}

impl StreamRules {
    /// `StartingPosition`.
    pub(super) const fn position(&self) -> &'static str {
        match self.from_unix_ms {
            0 => TRIM_HORIZON,
            _ => LATEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000001:jobs";

    const STREAM: &str =
        "arn:aws:dynamodb:us-east-1:000000000001:table/t/stream/2026-11-27T00:00:00.000";

    fn source(text: &str) -> Source {
        Source::parse(text).unwrap()
    }

    fn with(wanted: serde_json::Value) -> MappingRecord {
        let mut record = MappingRecord::new(QUEUE, "f".parse().unwrap(), None);
        record.apply(&serde_json::from_value(wanted).unwrap());
        record
    }

    #[test]
    fn a_stream_takes_what_a_queue_does_not() {
        let (queue, stream) = (source(QUEUE), source(STREAM));
        for (wanted, of_queue, of_stream) in [
            (json!({}), true, true),
            (json!({"MaximumRetryAttempts": -1}), false, true),
            (json!({"MaximumRetryAttempts": -2}), false, false),
            (json!({"MaximumRetryAttempts": 10_001}), false, false),
            (json!({"MaximumRecordAgeInSeconds": 60}), false, true),
            (json!({"MaximumRecordAgeInSeconds": 59}), false, false),
            (json!({"BisectBatchOnFunctionError": true}), false, true),
            (json!({"ParallelizationFactor": 1}), false, true),
            (json!({"ParallelizationFactor": 2}), false, false),
            (json!({"TumblingWindowInSeconds": 30}), false, false),
            (json!({"StartingPosition": "LATEST"}), false, true),
            (json!({"DestinationConfig": {"OnFailure": {}}}), false, true),
            (
                json!({"DestinationConfig": {"OnSuccess": {}}}),
                false,
                false,
            ),
            (json!({"ScalingConfig": {}}), true, false),
            (json!({"FunctionResponseTypes": ["x"]}), false, false),
        ] {
            let body = serde_json::from_value(wanted.clone()).unwrap();
            assert_eq!(check_wanted(&body, &queue).is_ok(), of_queue, "{wanted}");
            assert_eq!(check_wanted(&body, &stream).is_ok(), of_stream, "{wanted}");
        }
        let mut record = MappingRecord::new(STREAM, "f".parse().unwrap(), None);
        assert_eq!(record.check(&stream), Ok(()));
        let wanted = json!({"MaximumRetryAttempts": 3, "MaximumRecordAgeInSeconds": 60});
        record.apply(&serde_json::from_value(wanted).unwrap());
        let endless = json!({"MaximumRetryAttempts": -1});
        record.apply(&serde_json::from_value(endless).unwrap());
        let rules = record.stream.unwrap();
        assert_eq!((rules.retries, rules.age_s), (None, Some(60)));
    }

    #[test]
    fn a_stream_is_known_by_its_arn() {
        let table = "arn:aws:dynamodb:us-east-1:000000000001:table/t";
        for wrong in [
            table.to_owned(),
            format!("{table}/stream/"),
            format!("{table}/stream/a/b"),
            format!("{table}/stream/a b"),
        ] {
            assert_eq!(Source::parse(&wrong), None, "{wrong}");
        }
        assert_eq!(starting(Some(TRIM_HORIZON), 1234), Ok(0));
        assert_eq!(starting(Some(LATEST), 1234), Ok(1000));
        assert!(starting(Some("AT_TIMESTAMP"), 0).is_err() && starting(None, 0).is_err());
    }

    #[test]
    fn a_queue_is_known_by_its_arn() {
        assert!(!source(QUEUE).is_fifo());
        assert!(source(&format!("{QUEUE}.fifo")).is_fifo());
        for wrong in [
            "",
            "arn:aws:sqs:us-east-1:000000000001",
            "arn:aws:sqs:us-east-1:1:jobs",
            "arn:aws:sqs:us-east-1:000000000001:a/b",
            "arn:aws:sqs:us-east-1:000000000001:a.b",
            "arn:aws:sqs:us-east-1:000000000001:.fifo",
            "arn:aws:kinesis:us-east-1:000000000001:stream/a",
        ] {
            assert_eq!(Source::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_aws_lets_no_mapping_be_is_refused() {
        let (plain, fifo) = (source(QUEUE), source(&format!("{QUEUE}.fifo")));
        for (wanted, queue, good) in [
            (json!({}), &plain, true),
            (json!({"BatchSize": 0}), &plain, false),
            (json!({"BatchSize": 11}), &plain, false),
            (
                json!({"BatchSize": 10_000, "MaximumBatchingWindowInSeconds": 1}),
                &plain,
                true,
            ),
            (
                json!({"BatchSize": 10_001, "MaximumBatchingWindowInSeconds": 1}),
                &plain,
                false,
            ),
            (
                json!({"MaximumBatchingWindowInSeconds": 301}),
                &plain,
                false,
            ),
            (json!({"BatchSize": 10}), &fifo, true),
            (
                json!({"BatchSize": 11, "MaximumBatchingWindowInSeconds": 1}),
                &fifo,
                false,
            ),
            (json!({"MaximumBatchingWindowInSeconds": 1}), &fifo, false),
            (
                json!({"ScalingConfig": {"MaximumConcurrency": 2}}),
                &plain,
                true,
            ),
            (
                json!({"ScalingConfig": {"MaximumConcurrency": 1}}),
                &plain,
                false,
            ),
            (
                json!({"ScalingConfig": {"MaximumConcurrency": 1001}}),
                &plain,
                false,
            ),
            (
                json!({"FilterCriteria": {"Filters": [{"Pattern": "{\"body\":[1]}"}]}}),
                &plain,
                true,
            ),
            (
                json!({"FilterCriteria": {"Filters": [{"Pattern": "{"}]}}),
                &plain,
                false,
            ),
        ] {
            let checked = with(wanted.clone()).check(queue);
            assert_eq!(checked.is_ok(), good, "{wanted} {checked:?}");
        }
    }

    #[test]
    fn an_empty_value_takes_away_what_was_there() {
        let mut record = with(json!({
            "FilterCriteria": {"Filters": [{"Pattern": "{\"body\":[1]}"}]},
            "ScalingConfig": {"MaximumConcurrency": 5},
            "FunctionResponseTypes": [PARTIAL],
            "BatchSize": 3,
        }));
        assert!(record.filters.len() == 1 && record.concurrency == Some(5) && record.is_partial);
        let none = json!({"FilterCriteria": {}, "ScalingConfig": {}, "FunctionResponseTypes": []});
        record.apply(&serde_json::from_value(none).unwrap());
        let expected = with(json!({"BatchSize": 3}));
        assert_eq!(record, expected);
    }
}
