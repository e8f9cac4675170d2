//! Aliases: names for versions, with weights.

use http::StatusCode;
use serde_json::Value;
use skiff_lambda::{Code, FunctionName, LambdaError, Qualifier};

use super::body;
use super::call::{Call, Reply, body as parse, invalid};
use super::functions::same_revision;
use super::record::{Alias, FunctionRecord};
use super::{Front, show};

/// Aliases of one function.
const ALIASES_MAX: usize = 100;
const PAGE_MAX: usize = 50;

fn missing(name: &str) -> LambdaError {
    LambdaError::new(Code::ResourceNotFound, format!("Cannot find alias: {name}"))
}

impl Front {
    pub(crate) async fn create_alias(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let wanted: body::CreateAlias = parse(call)?;
        let function = self.unqualified(call, text)?;
        if !matches!(wanted.name.parse(), Ok(Qualifier::Alias(_))) {
            return Err(invalid(format!("`{}` is not an alias's name", wanted.name)));
        }
        let revision_id = call.new_id();
        let change = |record: &mut FunctionRecord| {
            if record.aliases.contains_key(&wanted.name) {
                let message = format!("Alias already exists: {}", wanted.name);
                return Err(LambdaError::new(Code::ResourceConflict, message));
            }
            if record.aliases.len() >= ALIASES_MAX {
                return Err(invalid(format!(
                    "{function} has {ALIASES_MAX} aliases already"
                )));
            }
            let alias = Alias {
                revision_id: revision_id.clone(),
                description: wanted.description.clone().unwrap_or_default(),
                version: known_version(record, &wanted.function_version)?,
                second: second(record, wanted.routing_config.as_ref())?,
            };
            check(&alias)?;
            record.aliases.insert(wanted.name.clone(), alias);
            Ok(())
        };
        let (_, record) = self.change(call, &function, change).await?;
        let shown = self.shown(call, &function, &record, &wanted.name)?;
        Ok(Reply::json(StatusCode::CREATED, shown))
    }

    pub(crate) async fn update_alias(
        &self,
        call: &Call,
        text: &str,
        name: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::UpdateAlias = parse(call)?;
        let function = self.unqualified(call, text)?;
        let revision_id = call.new_id();
        let change = |record: &mut FunctionRecord| {
            let mut alias = record
                .aliases
                .get(name)
                .ok_or_else(|| missing(name))?
                .clone();
            same_revision(wanted.revision_id.as_deref(), Some(&alias.revision_id))?;
            if let Some(version) = &wanted.function_version {
                alias.version = known_version(record, version)?;
            }
            if let Some(description) = &wanted.description {
                alias.description.clone_from(description);
            }
            if wanted.routing_config.is_some() {
                alias.second = second(record, wanted.routing_config.as_ref())?;
            }
            check(&alias)?;
            alias.revision_id.clone_from(&revision_id);
            record.aliases.insert(name.to_owned(), alias);
            record.check_provisioned()
        };
        let (_, record) = self.change(call, &function, change).await?;
        if record.provisioned.contains_key(name) {
            self.retell(&call.project, &function);
        }
        let shown = self.shown(call, &function, &record, name)?;
        Ok(Reply::json(StatusCode::OK, shown))
    }

    pub(crate) async fn get_alias(
        &self,
        call: &Call,
        text: &str,
        name: &str,
    ) -> Result<Reply, LambdaError> {
        let function = self.unqualified(call, text)?;
        let record = self.record(call, &function).await?;
        let shown = self.shown(call, &function, &record, name)?;
        Ok(Reply::json(StatusCode::OK, shown))
    }

    fn shown(
        &self,
        call: &Call,
        function: &FunctionName,
        record: &FunctionRecord,
        name: &str,
    ) -> Result<Value, LambdaError> {
        let alias = record.aliases.get(name).ok_or_else(|| missing(name))?;
        let arns = self.arns(&call.project.id);
        Ok(show::alias(&arns, function, name, alias))
    }

    pub(crate) async fn list_aliases(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let function = self.unqualified(call, text)?;
        let limit = call.page(PAGE_MAX)?;
        let record = self.record(call, &function).await?;
        let marker = call.param("Marker").unwrap_or_default();
        let version = call.param("FunctionVersion");
        let listed = |(name, alias): &(&String, &Alias)| {
            name.as_str() > marker && version.is_none_or(|version| version == alias.version)
        };
        let mut found = record.aliases.iter().filter(listed);
        let arns = self.arns(&call.project.id);
        let (mut shown, mut last) = (Vec::new(), String::new());
        for (name, alias) in found.by_ref().take(limit) {
            shown.push(show::alias(&arns, &function, name, alias));
            last.clone_from(name);
        }
        let more = found.next().is_some();
        Ok(Reply::page("Aliases", shown, more.then_some(last)))
    }

    pub(crate) async fn delete_alias(
        &self,
        call: &Call,
        text: &str,
        name: &str,
    ) -> Result<Reply, LambdaError> {
        let function = self.unqualified(call, text)?;
        let change = |record: &mut FunctionRecord| {
            // As AWS has it, one that is not there is as good as deleted.
            record.aliases.remove(name);
            record.policies.remove(name);
            record.events.remove(name);
            record.urls.remove(name);
            Ok(record.provisioned.remove(name).is_some())
        };
        let (was_warm, _) = self.change(call, &function, change).await?;
        if was_warm {
            self.retell(&call.project, &function);
        }
        Ok(Reply::empty())
    }
}

/// A version that exists, or `$LATEST`.
fn known_version(record: &FunctionRecord, text: &str) -> Result<String, LambdaError> {
    let known = match text.parse() {
        Ok(Qualifier::Latest) => true,
        Ok(Qualifier::Version(number)) => record.versions.contains_key(&number),
        _ => false,
    };
    if known {
        return Ok(text.to_owned());
    }
    let message = format!("Function version not found: {text}");
    Err(LambdaError::new(Code::ResourceNotFound, message))
}

fn second(
    record: &FunctionRecord,
    routing: Option<&body::RoutingConfig>,
) -> Result<Option<(u32, f64)>, LambdaError> {
    let Some(routing) = routing else {
        return Ok(None);
    };
    let mut weights = routing.additional_version_weights.iter();
    let (first, rest) = (weights.next(), weights.next());
    let Some((version, weight)) = first else {
        return Ok(None);
    };
    if rest.is_some() || !(0.0..=1.0).contains(weight) {
        return Err(invalid(
            "one additional version with a weight of 0 to 1 is expected",
        ));
    }
    let number = known_version(record, version)?;
    let number = number
        .parse()
        .map_err(|_| invalid("$LATEST takes no weight"))?;
    Ok(Some((number, *weight)))
}

fn check(alias: &Alias) -> Result<(), LambdaError> {
    let Some((second, _)) = alias.second else {
        return Ok(());
    };
    if alias.version.parse() == Ok(second) || alias.version.parse::<u32>().is_err() {
        return Err(invalid("weights are between two published versions"));
    }
    Ok(())
}
