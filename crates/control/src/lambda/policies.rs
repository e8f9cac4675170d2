//! Who may invoke a function besides its project, and how often at once.

use http::StatusCode;
use serde_json::json;
use skiff_lambda::{Code, LambdaError, Qualifier, arn_like, s3_arn};
use skiff_types::ProjectId;

use super::body;
use super::call::{Call, Reply, body as parse, invalid};
use super::functions::same_revision;
use super::record::{FunctionRecord, Policy, Statement, UrlAuth};
use super::{Front, show};

/// A policy's size, bytes (AWS's limit).
const POLICY_BYTES_MAX: usize = 20 * 1024;
const INVOKE: &str = "lambda:InvokeFunction";
const INVOKE_URL: &str = "lambda:InvokeFunctionUrl";
/// Who hands in events of objects.
const S3: &str = "s3.amazonaws.com";

fn missing(what: &str) -> LambdaError {
    LambdaError::new(Code::ResourceNotFound, format!("there is no such {what}"))
}

/// Whether a text can name a statement.
pub(crate) fn check_sid(text: &str) -> Result<(), LambdaError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if (1..=100).contains(&text.len()) && text.bytes().all(good) {
        return Ok(());
    }
    Err(invalid("StatementId is 1 to 100 of a-z, A-Z, 0-9, - and _"))
}

/// A change of a policy's statement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PolicyChange<'a> {
    pub sid: &'a str,
    /// The policy's revision that is meant.
    pub expected: Option<&'a str>,
    /// The one that it becomes.
    pub revision_id: &'a str,
}

impl PolicyChange<'_> {
    /// The policy of what has this ARN with one more statement.
    ///
    /// # Errors
    /// When there is one of this name, or no room, or another revision is meant.
    pub(crate) fn add(
        self,
        policy: Option<&Policy>,
        statement: &Statement,
        arn: &str,
    ) -> Result<Policy, LambdaError> {
        let current = policy.map(|policy| policy.revision_id.as_str());
        same_revision(self.expected, current)?;
        let mut statements = policy
            .map(|policy| policy.statements.clone())
            .unwrap_or_default();
        if statements.contains_key(self.sid) {
            let message = format!("The statement id ({}) provided already exists", self.sid);
            return Err(LambdaError::new(Code::ResourceConflict, message));
        }
        statements.insert(self.sid.to_owned(), statement.clone());
        let policy = Policy {
            revision_id: self.revision_id.to_owned(),
            statements,
        };
        if show::policy(arn, &policy).to_string().len() > POLICY_BYTES_MAX {
            let message = format!("the policy is over {POLICY_BYTES_MAX} bytes");
            return Err(LambdaError::new(Code::PolicyLengthExceeded, message));
        }
        Ok(policy)
    }

    /// The policy without the statement; nothing when that was the last.
    ///
    /// # Errors
    /// When there is none of this name, or another revision is meant.
    pub(crate) fn remove(self, policy: Option<&Policy>) -> Result<Option<Policy>, LambdaError> {
        let mut policy = policy.cloned().ok_or_else(|| missing("policy"))?;
        same_revision(self.expected, Some(&policy.revision_id))?;
        let removed = policy.statements.remove(self.sid);
        removed.ok_or_else(|| missing("statement"))?;
        self.revision_id.clone_into(&mut policy.revision_id);
        Ok((!policy.statements.is_empty()).then_some(policy))
    }
}

impl Front {
    pub(crate) async fn add_permission(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::AddPermission = parse(call)?;
        let target = self.target(call, text)?;
        let sid = wanted.statement_id;
        check_sid(&sid)?;
        if ![INVOKE, INVOKE_URL, "lambda:*", "*"].contains(&wanted.action.as_str()) {
            return Err(invalid(format!(
                "Action: {INVOKE} and {INVOKE_URL} are served"
            )));
        }
        if wanted.function_url_auth_type.is_some() && wanted.action != INVOKE_URL {
            return Err(invalid(format!(
                "FunctionUrlAuthType is only supported for {INVOKE_URL} action"
            )));
        }
        if wanted.invoked_via_function_url.is_some() && wanted.action != INVOKE {
            return Err(invalid(format!(
                "InvokedViaFunctionUrl is only supported for {INVOKE} action"
            )));
        }
        let statement = Statement {
            action: wanted.action,
            principal: account_of(&wanted.principal).to_owned(),
            source_arn: wanted.source_arn,
            source_account: wanted.source_account,
            url_auth: wanted.function_url_auth_type,
            via_url: wanted.invoked_via_function_url,
        };
        let arn = self.arn(call, &target);
        let place = target
            .qualifier
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let revision_id = call.new_id();
        let added = PolicyChange {
            sid: &sid,
            expected: wanted.revision_id.as_deref(),
            revision_id: &revision_id,
        };
        let change = |record: &mut FunctionRecord| {
            known(record, target.qualifier.as_ref())?;
            let policy = added.add(record.policies.get(&place), &statement, &arn)?;
            record.policies.insert(place.clone(), policy);
            Ok(())
        };
        self.change(call, &target.name, change).await?;
        let shown = show::statement(&arn, &sid, &statement).to_string();
        Ok(Reply::json(
            StatusCode::CREATED,
            json!({"Statement": shown}),
        ))
    }

    pub(crate) async fn get_policy(&self, call: &Call, text: &str) -> Result<Reply, LambdaError> {
        let target = self.target(call, text)?;
        let record = self.record(call, &target.name).await?;
        let place = target
            .qualifier
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let policy = record
            .policies
            .get(&place)
            .ok_or_else(|| missing("policy"))?;
        let shown = show::policy(&self.arn(call, &target), policy).to_string();
        let reply = json!({"Policy": shown, "RevisionId": policy.revision_id});
        Ok(Reply::json(StatusCode::OK, reply))
    }

    pub(crate) async fn remove_permission(
        &self,
        call: &Call,
        text: &str,
        sid: &str,
    ) -> Result<Reply, LambdaError> {
        let target = self.target(call, text)?;
        let place = target
            .qualifier
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let revision_id = call.new_id();
        let removed = PolicyChange {
            sid,
            expected: call.param("RevisionId"),
            revision_id: &revision_id,
        };
        let change = |record: &mut FunctionRecord| {
            match removed.remove(record.policies.get(&place))? {
                Some(policy) => record.policies.insert(place.clone(), policy),
                None => record.policies.remove(&place),
            };
            Ok(())
        };
        self.change(call, &target.name, change)
            .await
            .map(|_| Reply::empty())
    }

    pub(crate) async fn put_concurrency(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let wanted: body::PutFunctionConcurrency = parse(call)?;
        let reserved = wanted.reserved_concurrent_executions;
        self.reserve(call, text, Some(reserved)).await?;
        let reply = json!({"ReservedConcurrentExecutions": reserved});
        Ok(Reply::json(StatusCode::OK, reply))
    }

    pub(crate) async fn get_concurrency(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        let name = self.unqualified(call, text)?;
        let record = self.record(call, &name).await?;
        let reply = match record.reserved_concurrency {
            Some(reserved) => json!({"ReservedConcurrentExecutions": reserved}),
            None => json!({}),
        };
        Ok(Reply::json(StatusCode::OK, reply))
    }

    pub(crate) async fn delete_concurrency(
        &self,
        call: &Call,
        text: &str,
    ) -> Result<Reply, LambdaError> {
        self.reserve(call, text, None).await?;
        Ok(Reply::empty())
    }

    async fn reserve(
        &self,
        call: &Call,
        text: &str,
        reserved: Option<u32>,
    ) -> Result<(), LambdaError> {
        let name = self.unqualified(call, text)?;
        let change = |record: &mut FunctionRecord| {
            let warm = record.provisioned_in_all();
            if let Some(reserved) = reserved.filter(|reserved| *reserved < warm) {
                return Err(invalid(format!(
                    "ReservedConcurrentExecutions {reserved} should not be lower than function's total provisioned concurrency [{warm}]."
                )));
            }
            record.reserved_concurrency = reserved;
            Ok(())
        };
        self.change(call, &name, change).await.map(drop)
    }
}

/// `arn:aws:iam::ACCOUNT:root` means the account.
pub(crate) fn account_of(principal: &str) -> &str {
    let inner = principal.strip_prefix("arn:aws:iam::");
    inner
        .and_then(|inner| inner.strip_suffix(":root"))
        .unwrap_or(principal)
}

fn known(record: &FunctionRecord, qualifier: Option<&Qualifier>) -> Result<(), LambdaError> {
    let known = match qualifier {
        None => true,
        Some(Qualifier::Latest) => {
            return Err(invalid("$LATEST takes no policy of its own"));
        }
        Some(Qualifier::Version(number)) => record.versions.contains_key(number),
        Some(Qualifier::Alias(alias)) => record.aliases.contains_key(alias),
    };
    known
        .then_some(())
        .ok_or_else(|| missing("version or alias"))
}

/// Whether another project may invoke the function, as it names it. A
/// condition on where an event comes from never holds for a signed call.
pub(crate) fn allows(
    record: &FunctionRecord,
    qualifier: Option<&Qualifier>,
    caller: &ProjectId,
) -> bool {
    let place = qualifier.map(ToString::to_string).unwrap_or_default();
    lets_in(record, &place, INVOKE, |statement| {
        let named = statement.principal == "*" || statement.principal == caller.as_str();
        named && statement.url_auth.is_none() && statement.via_url != Some(true)
    })
}

/// Whether somebody of no account, or of another than the function's, may call
/// the URL of an alias; empty is the function without one.
pub(crate) fn allows_url(
    record: &FunctionRecord,
    alias: &str,
    auth: UrlAuth,
    caller: Option<&ProjectId>,
) -> bool {
    lets_in(record, alias, INVOKE_URL, |statement| {
        let named = caller.is_some_and(|caller| statement.principal == caller.as_str());
        let typed = statement.url_auth.is_none_or(|of| of == auth);
        (named || statement.principal == "*") && typed
    })
}

/// Whether events of this bucket may be handed in for the function, as it is
/// named; empty is the function itself. A statement has to say which buckets
/// it is for; their owner is the function's own account.
pub(crate) fn allows_s3(
    record: &FunctionRecord,
    place: &str,
    account: &ProjectId,
    bucket: &str,
) -> bool {
    let arn = s3_arn(bucket);
    let is_of = |statement: &Statement| {
        let pattern = statement.source_arn.as_deref();
        let owner = statement.source_account.as_deref();
        pattern.is_some_and(|pattern| arn_like(pattern, &arn))
            && owner.is_none_or(|owner| owner == account.as_str())
    };
    on_action(record, place, INVOKE).any(|statement| {
        statement.principal == S3 && statement.via_url != Some(true) && is_of(statement)
    })
}

/// Whether a statement on the action, without a condition on an event's
/// source, holds.
fn lets_in(
    record: &FunctionRecord,
    place: &str,
    action: &str,
    holds: impl Fn(&Statement) -> bool,
) -> bool {
    on_action(record, place, action).any(|statement| {
        let is_free = statement.source_arn.is_none() && statement.source_account.is_none();
        is_free && holds(statement)
    })
}

fn on_action<'a>(
    record: &'a FunctionRecord,
    place: &str,
    action: &'a str,
) -> impl Iterator<Item = &'a Statement> {
    let policy = record.policies.get(place);
    let statements = policy
        .into_iter()
        .flat_map(|policy| policy.statements.values());
    statements
        .filter(move |statement| [action, "lambda:*", "*"].contains(&statement.action.as_str()))
}
