//! Provisioned concurrency: instances of a version or an alias that are there
//! before any event is.
//!
//! What is provisioned is the floor of the revision behind it. It is no state
//! of its own: whoever tells the fleet of a revision works it out from the
//! function's record, so that an alias that moves takes it along, and a crash
//! loses none.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use skiff_base::Backoff;
use skiff_lambda::{Code, FunctionName, FunctionRef, LambdaError, Qualifier};
use skiff_types::{ErrorKind, ServiceName};

use super::call::{Call, Reply, body as parse, invalid};
use super::record::{FunctionRecord, Provisioned};
use super::{Front, body, show};
use crate::control::{Control, ServiceKey};
use crate::deploy::check_quota;
use crate::key;
use crate::record::{ProjectRecord, RevisionRecord};
use crate::traffic::revision_id;

const PAGE_MAX: usize = 50;
/// How often the fleet is told anew when the store does not answer.
const RETELL_TRIES: u32 = 10;

/// What is there of what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WarmState {
    /// Instances that have come up.
    pub available: u32,
    /// Those, and the ones that are coming up.
    pub allocated: u32,
    /// Why there are not more for now.
    shortage: Option<String>,
}

impl WarmState {
    pub(crate) fn status(&self, config: &Provisioned) -> &'static str {
        if self.available >= config.requested {
            "READY"
        } else if self.shortage.is_some() {
            "FAILED"
        } else {
            "IN_PROGRESS"
        }
    }

    pub(crate) fn reason(&self, config: &Provisioned) -> Option<&str> {
        let shortage = self.shortage.as_deref();
        shortage.filter(|_| self.available < config.requested)
    }
}

impl FunctionRecord {
    /// The versions that a configuration keeps warm, and how many instances
    /// of each; none if it leads to `$LATEST`.
    fn warm_versions(&self, place: &str, requested: u32) -> Vec<(u32, u32)> {
        let alias = match place.parse() {
            Ok(Qualifier::Version(number)) => return vec![(number, requested)],
            Ok(Qualifier::Alias(name)) => self.aliases.get(&name),
            _ => None,
        };
        let Some(alias) = alias else {
            return Vec::new();
        };
        let Ok(first) = alias.version.parse() else {
            return Vec::new();
        };
        let Some((second, weight)) = alias.second else {
            return vec![(first, requested)];
        };
        let of_second = share(requested, weight);
        let shares = [(first, requested - of_second), (second, of_second)];
        shares.into_iter().filter(|(_, share)| *share > 0).collect()
    }

    /// The same by revision.
    fn warm_revisions(&self, place: &str, requested: u32) -> Vec<(u32, u32)> {
        let versions = self.warm_versions(place, requested).into_iter();
        let revision = |(number, share)| Some((self.versions.get(&number)?.revision, share));
        versions.filter_map(revision).collect()
    }

    /// How many instances of each revision are there whatever the demand.
    pub(crate) fn floors(&self) -> BTreeMap<u32, u32> {
        let mut floors: BTreeMap<u32, u32> = BTreeMap::new();
        for (place, config) in &self.provisioned {
            for (revision, share) in self.warm_revisions(place, config.requested) {
                let floor = floors.entry(revision).or_default();
                *floor = floor.saturating_add(share);
            }
        }
        floors
    }

    /// Of all versions and aliases.
    pub(crate) fn provisioned_in_all(&self) -> u32 {
        let requested = self.provisioned.values().map(|config| config.requested);
        requested.fold(0, u32::saturating_add)
    }

    /// Each configuration leads to published versions, and no version has two
    /// (AWS's rules).
    pub(crate) fn check_provisioned(&self) -> Result<(), LambdaError> {
        let mut taken = BTreeSet::new();
        for place in self.provisioned.keys() {
            let versions = self.led_to(place);
            if versions.is_empty() {
                return Err(unpublished());
            }
            if !versions.into_iter().all(|version| taken.insert(version)) {
                let message = "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version";
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
        }
        Ok(())
    }

    /// The versions that a place leads to, whatever their shares.
    fn led_to(&self, place: &str) -> Vec<u32> {
        match place.parse() {
            Ok(Qualifier::Version(number)) => vec![number],
            Ok(Qualifier::Alias(name)) => {
                let Some(alias) = self.aliases.get(&name) else {
                    return Vec::new();
                };
                let first = alias.version.parse().ok();
                let second = alias.second.map(|(second, _)| second);
                first.into_iter().chain(second).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Sets what is provisioned, if it may be.
    fn provision(
        &mut self,
        target: &FunctionRef,
        place: &str,
        config: Provisioned,
        arn: &str,
    ) -> Result<(), LambdaError> {
        self.check_place(target, arn)?;
        let alias = self.aliases.get(place);
        if alias.is_some_and(|alias| alias.second.is_some()) {
            return Err(invalid(
                "Invalid alias configuration for Provisioned Concurrency",
            ));
        }
        self.provisioned.insert(place.to_owned(), config);
        self.check_provisioned()?;
        let all = self.provisioned_in_all();
        if self.reserved_concurrency.is_some_and(|most| all > most) {
            return Err(invalid(
                "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for function",
            ));
        }
        Ok(())
    }

    /// There is such a version or alias.
    fn check_place(&self, target: &FunctionRef, arn: &str) -> Result<(), LambdaError> {
        let (known, what) = match &target.qualifier {
            Some(Qualifier::Version(number)) => {
                (self.versions.contains_key(number), "Function not found")
            }
            Some(Qualifier::Alias(name)) => {
                (self.aliases.contains_key(name), "Cannot find alias arn")
            }
            Some(Qualifier::Latest) | None => return Err(unpublished()),
        };
        let message = format!("{what}: {arn}");
        known
            .then_some(())
            .ok_or_else(|| LambdaError::new(Code::ResourceNotFound, message))
    }
}

/// The part of a weight, 0 to 1, of so many instances; at least one of a
/// weight that is any.
fn share(requested: u32, weight: f64) -> u32 {
    let whole = f64::from(requested) * weight;
    let covered = (0..requested).find(|share| f64::from(*share) >= whole);
    covered.unwrap_or(requested)
}

fn unpublished() -> LambdaError {
    invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
}

fn missing() -> LambdaError {
    let message = "No Provisioned Concurrency Config found for this function";
    LambdaError::new(Code::ProvisionedConcurrencyConfigNotFound, message)
}

impl Front {
    pub(crate) async fn put_provisioned(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::PutProvisionedConcurrencyConfig = parse(call)?;
        let requested = wanted.provisioned_concurrent_executions;
        if requested == 0 {
            return Err(invalid(
                "ProvisionedConcurrentExecutions is 0: 1 at least is expected",
            ));
        }
        let (target, place) = self.place(call, text).map_err(|error| match error {
            PlaceError::Unpublished => unpublished(),
            PlaceError::Named(error) => error,
        })?;
        let arn = self.arn(call, &target);
        let config = Provisioned {
            requested,
            modified_unix_ms: call.now_ms,
        };
        let mut tried = self.record(call, &target.name).await?;
        tried.provision(&target, &place, config.clone(), &arn)?;
        let shares = tried.warm_revisions(&place, requested);
        self.check_room(call, target.name.service(), &shares)
            .await?;
        let change =
            |record: &mut FunctionRecord| record.provision(&target, &place, config.clone(), &arn);
        self.change(call, &target.name, change).await?;
        self.retell(&call.project, &target.name);
        let shown = show::provisioned(None, &config, &WarmState::default());
        Ok(Reply::json(StatusCode::ACCEPTED, shown))
    }

    /// What can never be there is refused.
    async fn check_room(
        &self,
        call: &Call,
        name: &ServiceName,
        shares: &[(u32, u32)],
    ) -> Result<(), LambdaError> {
        for (number, share) in shares {
            let id = revision_id(&call.project.id, name, *number);
            let db = self.control.db();
            let found = db.get::<RevisionRecord>(&key::revision(&id)).await?;
            let Some(found) = found else {
                continue;
            };
            let mut spec = found.record.spec;
            let most = spec.scaling.max;
            if *share > most {
                return Err(invalid(format!(
                    "ProvisionedConcurrentExecutions is {share}: the revision {} has {most} instances at most",
                    id.name()
                )));
            }
            spec.scaling.min = spec.scaling.min.max(*share);
            check_quota(&call.project, &spec).map_err(|error| invalid(error.message))?;
        }
        Ok(())
    }

    /// `GetProvisionedConcurrencyConfig`, and with `List` all of a function.
    pub(crate) async fn get_provisioned(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        match call.param("List") {
            None => {}
            Some("ALL") => return self.list_provisioned(call, text).await,
            Some(_) => return Err(invalid("List is ALL")),
        }
        let (target, place) = self.place(call, text)?;
        let record = self.record(call, &target.name).await?;
        record.check_place(&target, &self.arn(call, &target))?;
        let config = record.provisioned.get(&place).ok_or_else(missing)?;
        let state = self.warm_state(call, &target.name, &record, &place, config);
        let shown = show::provisioned(None, config, &state);
        Ok(Reply::json(StatusCode::OK, shown))
    }

    async fn list_provisioned(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, text)?;
        let limit = call.page(PAGE_MAX)?;
        let record = self.record(call, &name).await?;
        let arns = self.arns(&call.project.id);
        let configs = record.provisioned.iter();
        let configs = configs.map(|(place, config)| (place.as_str(), config));
        let field = "ProvisionedConcurrencyConfigs";
        Reply::listed(call, limit, field, configs, |place, config| {
            let qualifier: Qualifier = place.parse().map_err(invalid)?;
            let arn = arns.qualified(&name, &qualifier);
            let state = self.warm_state(call, &name, &record, place, config);
            Ok(show::provisioned(Some(&arn), config, &state))
        })
    }

    pub(crate) async fn delete_provisioned(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let (target, place) = self.place(call, text)?;
        let arn = self.arn(call, &target);
        let change = |record: &mut FunctionRecord| {
            record.check_place(&target, &arn)?;
            // As AWS has it, one that is not there is as good as deleted.
            Ok(record.provisioned.remove(&place).is_some())
        };
        let (was_there, _) = self.change(call, &target.name, change).await?;
        if was_there {
            self.retell(&call.project, &target.name);
        }
        Ok(Reply::empty())
    }

    /// A version or an alias of the caller's.
    fn place(&self, call: &Call, text: &str) -> Result<(FunctionRef, String), PlaceError> {
        let target = self.target(call, text).map_err(PlaceError::Named)?;
        match &target.qualifier {
            None | Some(Qualifier::Latest) => Err(PlaceError::Unpublished),
            Some(qualifier) => {
                let place = qualifier.to_string();
                Ok((target, place))
            }
        }
    }

    fn warm_state(
        &self,
        call: &Call,
        name: &FunctionName,
        record: &FunctionRecord,
        place: &str,
        config: &Provisioned,
    ) -> WarmState {
        let mut state = WarmState::default();
        for (number, share) in record.warm_revisions(place, config.requested) {
            let id = revision_id(&call.project.id, name.service(), number);
            let standing = self.control.inner.ports.fleet.standing(&id);
            let there = standing.ready.saturating_add(standing.starting).min(share);
            state.available += standing.ready.min(share);
            state.allocated += there;
            if let Some(shortage) = standing.shortage.filter(|_| there < share) {
                let reason = match shortage.is_of_starts {
                    true => format!("FUNCTION_ERROR_INIT_FAILURE: {}", shortage.message),
                    false => shortage.message,
                };
                state.shortage.get_or_insert(reason);
            }
        }
        state
    }

    /// Tells the fleet what is kept warm of a function, once nobody else
    /// changes its service. A caller does not wait for that.
    pub(crate) fn retell(&self, project: &ProjectRecord, name: &FunctionName) {
        let retelling = Retelling {
            control: self.control.clone(),
            due: Arc::clone(&self.retelling),
            project: project.clone(),
            service: name.service().clone(),
        };
        if retelling.is_first() {
            let tasks = &self.control.inner.tasks;
            tasks.spawn("floors", retelling.run());
        }
    }
}

/// Functions of which the fleet is about to be told.
pub(crate) type Due = Arc<Mutex<HashSet<ServiceKey>>>;

#[derive(Debug)]
struct Retelling {
    control: Control,
    due: Due,
    project: ProjectRecord,
    service: ServiceName,
}

impl Retelling {
    fn due(&self) -> MutexGuard<'_, HashSet<ServiceKey>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> ServiceKey {
        (self.project.id.clone(), self.service.clone())
    }

    /// Otherwise another one has still to look at what is stored.
    fn is_first(&self) -> bool {
        self.due().insert(self.key())
    }

    async fn run(self) {
        let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let ticket = loop {
            match self.control.ticket(&self.project.id, &self.service) {
                Ok(ticket) => break ticket,
                // The line is full; it moves.
                Err(_) => tokio::time::sleep(waits.next(skiff_base::random::u32())).await,
            }
        };
        let _turn = ticket.wait().await;
        self.due().remove(&self.key());
        let function = &self.service;
        for _ in 0..RETELL_TRIES {
            match self.control.tell_service(&self.project, function).await {
                Ok(()) => return,
                // It was deleted meanwhile.
                Err(error) if error.kind == ErrorKind::NotFound => return,
                Err(error) => {
                    tracing::warn!(%function, %error, "the fleet is not told yet what is kept warm");
                    tokio::time::sleep(waits.next(skiff_base::random::u32())).await;
                }
            }
        }
        tracing::error!(%function, "the fleet is not told what is kept warm before the next change or start");
    }
}

/// A call names no version or alias of the caller's.
enum PlaceError {
    Unpublished,
    Named(LambdaError),
}

impl From<PlaceError> for LambdaError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Unpublished => {
                invalid("The function resource provided must be an alias or a published version.")
            }
            PlaceError::Named(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lambda::record::tests::bare;
    use crate::lambda::record::{Alias, Version};

    /// Versions 1 to 3, of the revisions 11 to 13, and the alias `live`.
    fn record(alias: &str, second: Option<(u32, f64)>) -> FunctionRecord {
        let mut record = bare();
        for number in 1..=3 {
            let version = Version {
                revision: number + 10,
                timeout_s: 3,
                role: String::new(),
                latest_description: None,
            };
            record.versions.insert(number, version);
        }
        let alias = Alias {
            revision_id: String::new(),
            description: String::new(),
            version: alias.to_owned(),
            second,
        };
        record.aliases.insert("live".to_owned(), alias);
        record
    }

    fn put(record: &mut FunctionRecord, place: &str, requested: u32) -> Result<(), LambdaError> {
        let target = FunctionRef::parse(&format!("f:{place}")).unwrap();
        let config = Provisioned {
            requested,
            modified_unix_ms: 0,
        };
        let mut changed = record.clone();
        changed.provision(&target, place, config, "the ARN")?;
        *record = changed;
        Ok(())
    }

    #[test]
    fn an_alias_takes_its_floor_along_and_weights_share_it() {
        let floors = |version, second, requested| {
            let mut record = record("1", None);
            put(&mut record, "live", requested).unwrap();
            let alias = record.aliases.get_mut("live").unwrap();
            (alias.version, alias.second) = (String::from(version), second);
            record.floors().into_iter().collect::<Vec<_>>()
        };
        for (version, second, requested, expected) in [
            ("1", None, 3, vec![(11, 3)]),
            ("2", None, 3, vec![(12, 3)]),
            ("1", Some((2, 0.5)), 4, vec![(11, 2), (12, 2)]),
            // What has a share at all has an instance.
            ("1", Some((2, 0.01)), 10, vec![(11, 9), (12, 1)]),
            ("1", Some((2, 0.0)), 10, vec![(11, 10)]),
            ("1", Some((2, 1.0)), 10, vec![(12, 10)]),
            ("1", Some((2, 0.5)), 1, vec![(12, 1)]),
            ("$LATEST", None, 3, vec![]),
        ] {
            let told = floors(version, second, requested);
            assert_eq!(told, expected, "{version} {second:?} of {requested}");
        }
    }

    #[test]
    fn what_cannot_be_provisioned_is_refused_in_awss_words() {
        let mut good = record("1", None);
        put(&mut good, "live", 2).unwrap();
        put(&mut good, "live", 4).unwrap();
        put(&mut good, "2", 1).unwrap();
        assert_eq!(good.provisioned_in_all(), 5);
        let mut reserved = good.clone();
        reserved.reserved_concurrency = Some(6);
        put(&mut reserved, "3", 1).unwrap();
        let weighted = record("1", Some((2, 0.5)));
        let latest = record("$LATEST", None);
        for (record, place, code, part) in [
            (&good, "1", Code::ResourceConflict, "already Provisioned"),
            (&good, "9", Code::ResourceNotFound, "Function not found"),
            (&good, "gone", Code::ResourceNotFound, "Cannot find alias"),
            (&reserved, "3", Code::InvalidParameterValue, "reserved"),
            (
                &weighted,
                "live",
                Code::InvalidParameterValue,
                "Invalid alias",
            ),
            (&latest, "live", Code::InvalidParameterValue, "unpublished"),
            (&good, "$LATEST", Code::InvalidParameterValue, "unpublished"),
        ] {
            let error = put(&mut record.clone(), place, 2).unwrap_err();
            assert_eq!(error.code, code, "{place}: {error}");
            assert!(error.message.contains(part), "{place}: {error}");
        }
        // An alias may not be led to what has its own, not even in part.
        let mut moved = good.clone();
        moved.aliases.get_mut("live").unwrap().second = Some((2, 0.1));
        let error = moved.check_provisioned().unwrap_err();
        assert_eq!(error.code, Code::ResourceConflict, "{error}");
    }

    #[test]
    fn a_status_says_what_is_there_and_why_not() {
        let config = Provisioned {
            requested: 2,
            modified_unix_ms: 0,
        };
        for (available, shortage, status, reason) in [
            (0, None, "IN_PROGRESS", None),
            (2, None, "READY", None),
            (2, Some("memory"), "READY", None),
            (1, Some("memory"), "FAILED", Some("memory")),
        ] {
            let state = WarmState {
                available,
                allocated: available,
                shortage: shortage.map(str::to_owned),
            };
            assert_eq!(state.status(&config), status, "{state:?}");
            assert_eq!(state.reason(&config), reason, "{state:?}");
        }
    }
}
