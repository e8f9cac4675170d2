//! CreateEventSourceMapping and its like.

use http::StatusCode;
use serde_json::{Value, json};
use skiff_base::chain;
use skiff_lambda::{Code, FunctionRef, LambdaError, Qualifier};
use skiff_queue::Address;
use skiff_types::ProjectId;

use super::mapping::{MappingRecord, Source, check_wanted, starting};
use crate::db::{Change, Found};
use crate::key;
use crate::lambda::call::{Call, Reply, body as parse, invalid};
use crate::lambda::events::check_qualifier;
use crate::lambda::record::FunctionRecord;
use crate::lambda::{Front, body, uuid};

/// Mappings of one project.
const MAPPINGS_MAX: usize = 1000;
const PAGE_MAX: usize = 100;
const ENABLED: &str = "Enabled";
const DISABLED: &str = "Disabled";

fn missing() -> LambdaError {
    let message = "The resource you requested does not exist.";
    LambdaError::new(Code::ResourceNotFound, message)
}

/// What is polled.
pub(super) fn source_of(text: &str) -> Result<Source, LambdaError> {
    Source::parse(text).ok_or_else(|| {
        let text: String = text.chars().take(200).collect();
        invalid(format!(
            "the event source `{text}` is not served: the ARN of an SQS queue or of a DynamoDB stream is expected"
        ))
    })
}

/// Only an id that was given can be part of a key.
fn check_id(id: &str) -> Result<(), LambdaError> {
    let good = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f' | b'-');
    match id.len() == 36 && id.bytes().all(good) {
        true => Ok(()),
        false => Err(missing()),
    }
}

/// What one invocation of a qualifier may take, seconds.
fn timeout_s(function: &FunctionRecord, qualifier: Option<&Qualifier>) -> u32 {
    let number = match qualifier {
        Some(Qualifier::Version(number)) => Some(*number),
        Some(Qualifier::Alias(name)) => {
            let alias = function.aliases.get(name);
            alias.and_then(|alias| alias.version.parse().ok())
        }
        None | Some(Qualifier::Latest) => None,
    };
    let version = number.and_then(|number| function.versions.get(&number));
    version.map_or(function.latest.timeout_s, |version| version.timeout_s)
}

impl Front {
    pub(crate) async fn create_mapping(&self, call: &Call) -> Result<Reply, LambdaError> {
        let wanted: body::EventSourceMapping = parse(call)?;
        let source = wanted.event_source_arn.as_deref();
        let source = source.ok_or_else(|| invalid("EventSourceArn is expected"))?;
        let of = self.own_source(call, source)?;
        let name = wanted.function_name.as_deref();
        let name = name.ok_or_else(|| invalid("FunctionName is expected"))?;
        let (target, timeout_s) = self.mapped(call, name).await?;
        let qualifier = target.qualifier.as_ref().map(Qualifier::to_string);
        let mut record = MappingRecord::new(source, target.name, qualifier);
        self.change_mapping(call, &mut record, &wanted, &of)?;
        if let Some(rules) = &mut record.stream {
            rules.from_unix_ms = starting(wanted.starting_position.as_deref(), call.now_ms)?;
        }
        self.check_source(&of, timeout_s).await?;
        let id = uuid();
        self.store_mapping(call, &id, &record).await?;
        Ok(self.shown_mapping(call, &id, &record, Some("Creating")))
    }

    pub(crate) async fn update_mapping(&self, call: &Call, id: &str) -> Result<Reply, LambdaError> {
        let wanted: body::EventSourceMapping = parse(call)?;
        if wanted.event_source_arn.is_some() || wanted.starting_position.is_some() {
            return Err(invalid(
                "EventSourceArn and StartingPosition cannot be changed",
            ));
        }
        let before = self.mapping(&call.project.id, id).await?.record;
        let of = self.own_source(call, &before.source)?;
        let target = match wanted.function_name.as_deref() {
            Some(name) => {
                let (target, timeout_s) = self.mapped(call, name).await?;
                self.check_source(&of, timeout_s).await?;
                Some(target)
            }
            None => None,
        };
        let _changes = self.sources().changes.lock().await;
        let found = self.mapping(&call.project.id, id).await?;
        let before = found.record.clone();
        let mut record = found.record.clone();
        if let Some(target) = target {
            record.function = target.name;
            record.qualifier = target.qualifier.map(|qualifier| qualifier.to_string());
        }
        self.change_mapping(call, &mut record, &wanted, &of)?;
        self.store_change(call, found, &record).await?;
        self.look_at_mapping(&call.project.id, id, Some(record.clone()))?;
        let state = match (before.is_enabled, record.is_enabled) {
            (true, false) => "Disabling",
            (false, true) => "Enabling",
            _ => "Updating",
        };
        Ok(self.shown_mapping(call, id, &record, Some(state)))
    }

    pub(crate) async fn delete_mapping(&self, call: &Call, id: &str) -> Result<Reply, LambdaError> {
        let project = &call.project.id;
        let _changes = self.sources().changes.lock().await;
        let found = self.mapping(project, id).await?;
        let pair = pair(project, &found.record);
        let change = Change::default()
            .expect(&found.key, found.version)
            .delete(&found.key)
            .delete(pair);
        self.control.db().commit(change).await?;
        self.look_at_mapping(project, id, None)?;
        self.forget_shards(project, id).await?;
        Ok(self.shown_mapping(call, id, &found.record, Some("Deleting")))
    }

    pub(crate) async fn get_mapping(&self, call: &Call, id: &str) -> Result<Reply, LambdaError> {
        let record = self.mapping(&call.project.id, id).await?.record;
        let mut reply = self.shown_mapping(call, id, &record, None);
        reply.status = StatusCode::OK;
        Ok(reply)
    }

    pub(crate) async fn list_mappings(&self, call: &Call) -> Result<Reply, LambdaError> {
        let limit = call.page(PAGE_MAX)?;
        let function = call.param("FunctionName");
        let function = function.map(|text| self.target(call, text)).transpose()?;
        let function = function.map(|target| {
            let qualifier = target.qualifier.as_ref().map(Qualifier::to_string);
            (target.name, qualifier)
        });
        let source = call.param("EventSourceArn");
        let is_asked = |record: &MappingRecord| {
            let of = function.as_ref().is_none_or(|(name, qualifier)| {
                record.function == *name && record.qualifier == *qualifier
            });
            of && source.is_none_or(|source| record.source == source)
        };
        let marker = call.param("Marker").unwrap_or_default();
        let prefix = key::mappings(&call.project.id);
        let all = self.control.db().all::<MappingRecord>(&prefix).await?;
        let mut found = all
            .iter()
            .map(|found| (key::last_part(&found.key), &found.record))
            .filter(|(id, record)| *id > marker && is_asked(record));
        let (mut shown, mut last) = (Vec::new(), String::new());
        for (id, record) in found.by_ref().take(limit) {
            shown.push(self.configuration(call, id, record, None));
            id.clone_into(&mut last);
        }
        let more = found.next().is_some();
        Ok(Reply::page(
            "EventSourceMappings",
            shown,
            more.then_some(last),
        ))
    }

    async fn mapping(
        &self,
        project: &ProjectId,
        id: &str,
    ) -> Result<Found<MappingRecord>, LambdaError> {
        check_id(id)?;
        let found = self.control.db().get(&key::mapping(project, id)).await?;
        found.ok_or_else(missing)
    }

    /// The source, if it is one of the project's that can be polled.
    fn own_source(&self, call: &Call, text: &str) -> Result<Source, LambdaError> {
        let source = source_of(text)?;
        let own = &call.project.id;
        if source.region() != self.region || source.account() != own {
            return Err(invalid(format!(
                "the event source {text} is not of this region and project, {}:{own}",
                self.region
            )));
        }
        let courier = &self.events.courier;
        match source {
            Source::Queue(_) if !courier.has_queues() => Err(invalid(
                "the server polls no queues: `sqs_endpoint = \"https://sqs.example\"` in [lambda.events] of its configuration, with sqs_access_key and sqs_secret_file, says where they are",
            )),
            Source::Stream(_) if !courier.has_streams() => Err(invalid(
                "the server follows no streams: `dynamodb_endpoint = \"https://streams.dynamodb.example\"` in [lambda.events] of its configuration, with dynamodb_access_key and dynamodb_secret_file, says where they are",
            )),
            source => Ok(source),
        }
    }

    fn change_mapping(
        &self,
        call: &Call,
        record: &mut MappingRecord,
        wanted: &body::EventSourceMapping,
        source: &Source,
    ) -> Result<(), LambdaError> {
        check_wanted(wanted, source)?;
        record.apply(wanted);
        record.modified_unix_ms = call.now_ms;
        let rules = record.stream.as_ref();
        let on_failure = rules.and_then(|rules| rules.on_failure.as_deref());
        if let Some(address) = on_failure {
            self.check_destination(call, address)?;
            if let Ok(Address::Function(_)) = address.parse() {
                return Err(invalid(
                    "DestinationConfig: a queue or a URL is expected, not a function",
                ));
            }
        }
        record.check(source)
    }

    /// The function of a mapping, and what one invocation of it may take.
    async fn mapped(&self, call: &Call, text: &str) -> Result<(FunctionRef, u32), LambdaError> {
        let target = self.target(call, text)?;
        let function = self.record(call, &target.name).await?;
        if let Some(qualifier) = &target.qualifier {
            check_qualifier(&function, &qualifier.to_string())?;
        }
        let timeout_s = timeout_s(&function, target.qualifier.as_ref());
        Ok((target, timeout_s))
    }

    /// Whether the source is there, and a queue's messages are the poller's
    /// for as long as an invocation may take.
    async fn check_source(&self, source: &Source, timeout_s: u32) -> Result<(), LambdaError> {
        let refused = |error: &(dyn std::error::Error + 'static)| {
            invalid(format!("Error occurred while {}", chain(error)))
        };
        let queue = match source {
            Source::Queue(queue) => queue,
            Source::Stream(stream) => {
                let shards = self.shards(stream).await;
                return shards.map(drop).map_err(|error| refused(&error));
            }
        };
        let asked = self.visibility_s(queue).await;
        let visibility_s = asked.map_err(|error| refused(&error))?;
        if visibility_s < u64::from(timeout_s) {
            return Err(invalid(format!(
                "Queue visibility timeout: {visibility_s} seconds is less than Function timeout: {timeout_s} seconds"
            )));
        }
        Ok(())
    }

    /// One transaction: no mapping of that queue and function is there, and
    /// then this is, and is polled.
    async fn store_mapping(
        &self,
        call: &Call,
        id: &str,
        record: &MappingRecord,
    ) -> Result<(), LambdaError> {
        let (project, db) = (&call.project.id, self.control.db());
        let _projects = self.control.inner.projects.read().await;
        if !db.exists(&key::project(project)).await? {
            return Err(LambdaError::new(Code::AccessDenied, "the project is gone"));
        }
        let _changes = self.sources().changes.lock().await;
        let prefix = key::mappings(project);
        let known = db.first::<MappingRecord>(&prefix, None, MAPPINGS_MAX);
        if known.await?.len() >= MAPPINGS_MAX {
            let message =
                format!("the project has {MAPPINGS_MAX} event source mappings: delete one first");
            return Err(invalid(message));
        }
        let pair = pair(project, record);
        let place = key::mapping(project, id);
        let change = Change::default()
            .expect_absent(&pair)
            .put(&pair, &id)?
            .expect_absent(&place)
            .put(&place, record)?;
        if !db.try_commit(change).await? {
            return Err(self.taken(&pair, record).await);
        }
        self.look_at_mapping(project, id, Some(record.clone()))
    }

    /// Stores a mapping that was there, of another function if need be.
    async fn store_change(
        &self,
        call: &Call,
        found: Found<MappingRecord>,
        record: &MappingRecord,
    ) -> Result<(), LambdaError> {
        let project = &call.project.id;
        let (before, after) = (pair(project, &found.record), pair(project, record));
        let mut change = Change::default()
            .expect(&found.key, found.version)
            .put(&found.key, record)?;
        if before != after {
            let id = key::last_part(&found.key);
            change = change
                .delete(before)
                .expect_absent(&after)
                .put(&after, &id)?;
        }
        match self.control.db().try_commit(change).await? {
            true => Ok(()),
            false => Err(self.taken(&after, record).await),
        }
    }

    async fn taken(&self, pair: &str, record: &MappingRecord) -> LambdaError {
        let known = self.control.db().get::<String>(pair).await;
        let id = match known {
            Ok(Some(found)) => found.record,
            Ok(None) | Err(_) => String::new(),
        };
        let message = format!(
            "An event source mapping with {} arn (\" {} \") and function (\" {} \") already exists. Please update or delete the existing mapping with UUID {id}",
            match record.stream {
                Some(_) => "DynamoDB",
                None => "SQS",
            },
            record.source,
            record.function_text()
        );
        LambdaError::new(Code::ResourceConflict, message)
    }

    fn shown_mapping(
        &self,
        call: &Call,
        id: &str,
        record: &MappingRecord,
        state: Option<&str>,
    ) -> Reply {
        let shown = self.configuration(call, id, record, state);
        Reply::json(StatusCode::ACCEPTED, shown)
    }

    /// `EventSourceMappingConfiguration`, in this state or in its own.
    fn configuration(
        &self,
        call: &Call,
        id: &str,
        record: &MappingRecord,
        state: Option<&str>,
    ) -> Value {
        let project = &call.project.id;
        let result = self.sources().result(id);
        let own = match (record.is_enabled, &result) {
            (true, _) => ENABLED,
            // Its poller has not ended yet.
            (false, Some(_)) => "Disabling",
            (false, None) => DISABLED,
        };
        let function = self.arns(project).function(&record.function);
        let function = match &record.qualifier {
            Some(qualifier) => format!("{function}:{qualifier}"),
            None => function,
        };
        let types: &[&str] = match record.is_partial {
            true => &["ReportBatchItemFailures"],
            false => &[],
        };
        let mut shown = json!({
            "UUID": id,
            "EventSourceMappingArn": format!(
                "arn:aws:lambda:{}:{project}:event-source-mapping:{id}", self.region
            ),
            "EventSourceArn": record.source,
            "FunctionArn": function,
            "BatchSize": record.batch_size,
            "MaximumBatchingWindowInSeconds": record.window_s,
            "FunctionResponseTypes": types,
            // A timestamp of REST-JSON: seconds.
            "LastModified": record.modified_unix_ms / 1000,
            "State": state.unwrap_or(own),
            "StateTransitionReason": "USER_INITIATED",
        });
        let mut set = |name: &str, value: Value| {
            if let Some(fields) = shown.as_object_mut() {
                fields.insert(name.to_owned(), value);
            }
        };
        if let Some(result) = result {
            set("LastProcessingResult", json!(result));
        }
        if !record.filters.is_empty() {
            let filters = record.filters.iter();
            let filters: Vec<Value> = filters.map(|text| json!({"Pattern": text})).collect();
            set("FilterCriteria", json!({"Filters": filters}));
        }
        if let Some(most) = record.concurrency {
            set("ScalingConfig", json!({"MaximumConcurrency": most}));
        }
        if let Some(rules) = &record.stream {
            let endless = |value: Option<u32>| value.map_or(json!(-1), |value| json!(value));
            let on_failure = match &rules.on_failure {
                Some(address) => json!({"Destination": address}),
                None => json!({}),
            };
            set("StartingPosition", json!(rules.position()));
            set("ParallelizationFactor", json!(1));
            set("TumblingWindowInSeconds", json!(0));
            set("BisectBatchOnFunctionError", json!(rules.bisects));
            set("MaximumRetryAttempts", endless(rules.retries));
            set("MaximumRecordAgeInSeconds", endless(rules.age_s));
            set("DestinationConfig", json!({"OnFailure": on_failure}));
        }
        shown
    }
}

/// The key of a queue and a function, of which there is one mapping.
fn pair(project: &ProjectId, record: &MappingRecord) -> String {
    key::mapping_pair(project, &record.source, &record.function_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_lead_elsewhere() {
        assert_eq!(check_id(&uuid()), Ok(()));
        for wrong in [
            "",
            "a",
            "../../../../../../../../../../../../",
            &"A".repeat(36),
        ] {
            assert!(check_id(wrong).is_err(), "{wrong}");
        }
    }
}
