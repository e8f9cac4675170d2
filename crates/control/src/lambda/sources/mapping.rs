//! What an event source mapping is to do, and what AWS lets it be
//! (CreateEventSourceMapping, "Request body"; "Creating an SQS event source
//! mapping").

use serde::{Deserialize, Serialize};
use skiff_lambda::{EventPattern, LambdaError};
use skiff_types::{ProjectId, ServiceName};

use crate::lambda::body;
use crate::lambda::call::invalid;

/// Records in one event unless told, of a queue.
const BATCH_SIZE: u32 = 10;
/// Records in one event, and what one receive of a queue gives.
const BATCH_SIZE_MAX: u32 = 10_000;
pub(super) const RECEIVE_MAX: u32 = 10;
const WINDOW_S_MAX: u32 = 300;
const CONCURRENCY_MIN: u32 = 2;
const CONCURRENCY_MAX: u32 = 1000;
/// Filters of one mapping (AWS's quota, as it can be raised).
const FILTERS_MAX: usize = 10;
const PARTIAL: &str = "ReportBatchItemFailures";
/// The longest queue name, bytes (SQS's limit).
const QUEUE_BYTES_MAX: usize = 80;

/// A mapping as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MappingRecord {
    /// The ARN of what is polled.
    pub source: String,
    pub function: ServiceName,
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
    pub(super) fn new(source: &str, function: ServiceName, qualifier: Option<String>) -> Self {
        Self {
            source: source.to_owned(),
            function,
            qualifier,
            is_enabled: true,
            batch_size: BATCH_SIZE,
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
    }

    /// Whether AWS lets it be.
    pub(super) fn check(&self, queue: &QueueArn) -> Result<(), LambdaError> {
        let sizes = match queue.is_fifo() {
            true => RECEIVE_MAX,
            false => BATCH_SIZE_MAX,
        };
        if !(1..=sizes).contains(&self.batch_size) {
            return Err(invalid(format!(
                "BatchSize is 1 to {sizes} for this queue: {} is not",
                self.batch_size
            )));
        }
        if self.window_s > WINDOW_S_MAX {
            return Err(invalid(format!(
                "MaximumBatchingWindowInSeconds is 0 to {WINDOW_S_MAX}"
            )));
        }
        if queue.is_fifo() && self.window_s > 0 {
            return Err(invalid("Batching window is not supported for FIFO queues"));
        }
        if self.batch_size > RECEIVE_MAX && self.window_s == 0 {
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

/// What is not one of these words is refused.
pub(super) fn check_response_types(wanted: &body::EventSourceMapping) -> Result<(), LambdaError> {
    let mut types = wanted.function_response_types.iter().flatten();
    match types.all(|known| known == PARTIAL) {
        true => Ok(()),
        false => Err(invalid(format!(
            "FunctionResponseTypes: {PARTIAL} is served"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000001:jobs";

    fn queue(text: &str) -> QueueArn {
        QueueArn::parse(text).unwrap()
    }

    fn with(wanted: serde_json::Value) -> MappingRecord {
        let mut record = MappingRecord::new(QUEUE, "f".parse().unwrap(), None);
        record.apply(&serde_json::from_value(wanted).unwrap());
        record
    }

    #[test]
    fn a_queue_is_known_by_its_arn() {
        assert!(!queue(QUEUE).is_fifo());
        assert!(queue(&format!("{QUEUE}.fifo")).is_fifo());
        for wrong in [
            "",
            "arn:aws:sqs:us-east-1:000000000001",
            "arn:aws:sqs:us-east-1:1:jobs",
            "arn:aws:sqs:us-east-1:000000000001:a/b",
            "arn:aws:sqs:us-east-1:000000000001:a.b",
            "arn:aws:sqs:us-east-1:000000000001:.fifo",
            "arn:aws:kinesis:us-east-1:000000000001:stream/a",
        ] {
            assert_eq!(QueueArn::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_aws_lets_no_mapping_be_is_refused() {
        let (plain, fifo) = (queue(QUEUE), queue(&format!("{QUEUE}.fifo")));
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
