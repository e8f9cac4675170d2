//! How a function's events are tried, by qualifier.

use http::StatusCode;
use skiff_lambda::{Code, FunctionRef, LambdaError, Qualifier};
use skiff_queue::Address;

use crate::lambda::call::{Call, Reply, body as parse, invalid};
use crate::lambda::record::{EventConfig, FunctionRecord};
use crate::lambda::{Front, body, show};

const LATEST: &str = "$LATEST";
const RETRIES: u32 = 2;
const AGE_S: u32 = 21_600;
const AGE_S_MIN: u32 = 60;
const PAGE_MAX: usize = 50;

impl EventConfig {
    /// Tries after the first.
    pub(crate) fn retries(&self) -> u32 {
        self.retries.unwrap_or(RETRIES)
    }

    /// The oldest an event may get.
    pub(crate) fn age_s(&self) -> u32 {
        self.age_s.unwrap_or(AGE_S)
    }
}

impl FunctionRecord {
    /// What holds for events of a qualifier; without one it is `$LATEST`'s.
    pub(crate) fn event_config(&self, qualifier: Option<&str>) -> EventConfig {
        let config = self.events.get(qualifier.unwrap_or(LATEST));
        config.cloned().unwrap_or_default()
    }
}

fn missing(arn: &str) -> LambdaError {
    let message = format!("The function {arn} doesn't have an EventInvokeConfig");
    LambdaError::new(Code::ResourceNotFound, message)
}

impl Front {
    /// Sets a configuration, of what was there before or anew.
    pub(crate) async fn set_event_config(
        &self,
        call: &Call,
        text: &str,
        anew: bool,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::EventInvokeConfig = parse(call)?;
        let (target, place) = self.qualified(call, text)?;
        self.check(call, &wanted)?;
        let change = |record: &mut FunctionRecord| {
            check_qualifier(record, &place)?;
            let before = record.events.get(&place).cloned();
            let before = before.filter(|_| !anew).unwrap_or_default();
            let config = merged(before, &wanted, call.now_ms);
            record.events.insert(place.clone(), config.clone());
            Ok(config)
        };
        let (config, _) = self.change(call, &target.name, change).await?;
        let shown = show::event_config(&self.arn(call, &target), &config);
        Ok(Reply::json(StatusCode::OK, shown))
    }

    pub(crate) async fn get_event_config(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let (target, place) = self.qualified(call, text)?;
        let record = self.record(call, &target.name).await?;
        let arn = self.arn(call, &target);
        let config = record.events.get(&place).ok_or_else(|| missing(&arn))?;
        let shown = show::event_config(&arn, config);
        Ok(Reply::json(StatusCode::OK, shown))
    }

    pub(crate) async fn delete_event_config(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let (target, place) = self.qualified(call, text)?;
        let arn = self.arn(call, &target);
        let change = |record: &mut FunctionRecord| {
            let removed = record.events.remove(&place);
            removed.map(|_| ()).ok_or_else(|| missing(&arn))
        };
        self.change(call, &target.name, change).await?;
        Ok(Reply::empty())
    }

    pub(crate) async fn list_event_configs(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, text)?;
        let limit = call.page(PAGE_MAX)?;
        let record = self.record(call, &name).await?;
        let arns = self.arns(&call.project.id);
        let configs = record.events.iter();
        let configs = configs.map(|(place, config)| (place.as_str(), config));
        let field = "FunctionEventInvokeConfigs";
        Reply::listed(call, limit, field, configs, |place, config| {
            let qualifier: Qualifier = place.parse().map_err(invalid)?;
            let arn = arns.qualified(&name, &qualifier);
            Ok(show::event_config(&arn, config))
        })
    }

    /// The function and its qualifier, which is `$LATEST` unless it is said.
    fn qualified(&self, call: &Call, text: &str) -> Result<(FunctionRef, String), LambdaError> {
        let mut target = self.target(call, text)?;
        let qualifier = target.qualifier.get_or_insert(Qualifier::Latest);
        let place = qualifier.to_string();
        Ok((target, place))
    }

    fn check(&self, call: &Call, wanted: &body::EventInvokeConfig) -> Result<(), LambdaError> {
        if wanted
            .maximum_retry_attempts
            .is_some_and(|tries| tries > RETRIES)
        {
            return Err(invalid(format!("MaximumRetryAttempts is 0 to {RETRIES}")));
        }
        let ages = AGE_S_MIN..=AGE_S;
        if wanted
            .maximum_event_age_in_seconds
            .is_some_and(|age| !ages.contains(&age))
        {
            return Err(invalid(format!(
                "MaximumEventAgeInSeconds is {AGE_S_MIN} to {AGE_S}"
            )));
        }
        let destinations = wanted.destination_config.iter();
        let destinations = destinations.flat_map(|config| [&config.on_success, &config.on_failure]);
        for destination in destinations.flatten() {
            if let Some(address) = &destination.destination {
                self.check_destination(call, address)?;
            }
        }
        Ok(())
    }

    /// Whether records may go there: the project's own functions and queues,
    /// and what the operator lets through.
    pub(crate) fn check_destination(&self, call: &Call, text: &str) -> Result<(), LambdaError> {
        let own = call.project.id.as_str();
        match text.parse().map_err(invalid)? {
            Address::Function(arn) => {
                let target = FunctionRef::parse(&arn).map_err(invalid)?;
                let here = target.region.as_deref() == Some(self.region.as_str());
                let ours = target.account.as_ref() == Some(&call.project.id);
                if !here || !ours {
                    return Err(invalid(format!(
                        "the destination {arn} is not a function of this region and project"
                    )));
                }
            }
            Address::Queue { account, .. } => {
                if !self.events.courier.has_queues() {
                    return Err(invalid(
                        "the server knows no queues: lambda.events.sqs_endpoint is not set",
                    ));
                }
                if account != own {
                    return Err(invalid(format!(
                        "the destination {text} is not a queue of this project, {own}"
                    )));
                }
            }
            Address::Web(url) => {
                if !self.events.courier.allows(&url) {
                    return Err(invalid(format!(
                        "the destination {url} is not allowed: lambda.events.destinations lists what is"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Whether a function has this qualifier.
pub(crate) fn check_qualifier(record: &FunctionRecord, place: &str) -> Result<(), LambdaError> {
    let known = match place.parse() {
        Ok(Qualifier::Latest) => true,
        Ok(Qualifier::Version(number)) => record.versions.contains_key(&number),
        Ok(Qualifier::Alias(alias)) => record.aliases.contains_key(&alias),
        Err(_) => false,
    };
    let message = format!("there is no version or alias {place}");
    known
        .then_some(())
        .ok_or_else(|| LambdaError::new(Code::ResourceNotFound, message))
}

/// What is given replaces what was there; an empty destination is none.
fn merged(before: EventConfig, wanted: &body::EventInvokeConfig, now_ms: u64) -> EventConfig {
    let address = |destination: &Option<body::Destination>, before: Option<String>| {
        let destination = destination.as_ref();
        destination.map_or(before, |destination| destination.destination.clone())
    };
    let mut config = EventConfig {
        modified_unix_ms: now_ms,
        retries: wanted.maximum_retry_attempts.or(before.retries),
        age_s: wanted.maximum_event_age_in_seconds.or(before.age_s),
        ..before
    };
    if let Some(destinations) = &wanted.destination_config {
        config.on_success = address(&destinations.on_success, config.on_success);
        config.on_failure = address(&destinations.on_failure, config.on_failure);
    }
    config
}
