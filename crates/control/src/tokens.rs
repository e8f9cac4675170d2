//! Bearer tokens: 256 random bits, stored as their SHA-256 alone.
//!
//! A token is `skiff_ID_SECRET`: the id finds the record, the secret is
//! compared in constant time.

use sha2::{Digest as _, Sha256};
use skiff_types::api::{CreateToken, Token};
use skiff_types::{InstanceId, ProjectId};
use subtle::ConstantTimeEq as _;

use crate::cipher::hex;
use crate::control::Control;
use crate::db::{Change, Found};
use crate::error::{ControlError, exhausted, invalid, not_found};
use crate::key;
use crate::limit::{TOKEN_NAME_BYTES_MAX, TOKENS_MAX};
use crate::record::{ProjectRecord, TokenRecord};

const PREFIX: &str = "skiff";
const SECRET_BYTES: usize = 32;

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// May do everything.
    Operator,
    /// May do what concerns this project.
    Project(ProjectId),
}

impl Control {
    /// Who bears this token.
    pub(crate) async fn caller(&self, token: &str) -> Result<Option<Caller>, ControlError> {
        let Some((id, secret)) = parse(token) else {
            return Ok(None);
        };
        let Some(found) = self.db().get::<TokenRecord>(&key::token(id)).await? else {
            return Ok(None);
        };
        let caller = match found.record.project {
            Some(project) => Caller::Project(project),
            None => Caller::Operator,
        };
        Ok(is_of(&found.record.sha256, secret).then_some(caller))
    }

    pub(crate) async fn create_token(&self, wanted: CreateToken) -> Result<Token, ControlError> {
        let bytes = wanted.name.len();
        if bytes == 0 || bytes > TOKEN_NAME_BYTES_MAX || wanted.name.chars().any(char::is_control) {
            return Err(invalid(format!(
                "the token's name is 1 to {TOKEN_NAME_BYTES_MAX} bytes without control characters"
            )));
        }
        let _projects = self.inner.projects.read().await;
        let project = match &wanted.project {
            Some(name) => Some(self.project(name).await?.record.id),
            None => None,
        };
        let _tokens = self.inner.tokens.lock().await;
        let known = self
            .db()
            .first::<TokenRecord>(key::TOKENS, None, TOKENS_MAX)
            .await?;
        if known.len() >= TOKENS_MAX {
            return Err(exhausted(format!(
                "there are {TOKENS_MAX} tokens already: delete one first"
            )));
        }
        let now = self.inner.base.now();
        let id = InstanceId::from_parts(now, skiff_base::random::u32()).to_string();
        let secret = new_secret();
        let record = TokenRecord {
            name: wanted.name.clone(),
            project,
            sha256: fingerprint(&secret),
            created_unix_ms: now,
        };
        let place = key::token(&id);
        let change = Change::default()
            .expect_absent(&place)
            .put(&place, &record)?;
        self.db().commit(change).await?;
        Ok(Token {
            token: Some(format!("{PREFIX}_{id}_{secret}")),
            id,
            name: wanted.name,
            project: wanted.project,
            created_unix_ms: now,
        })
    }

    pub(crate) async fn list_tokens(&self) -> Result<Vec<Token>, ControlError> {
        let mut tokens = Vec::new();
        for found in self.db().all::<TokenRecord>(key::TOKENS).await? {
            tokens.extend(self.tell_token(found).await?);
        }
        Ok(tokens)
    }

    /// Nothing when its project has ended and the token is about to.
    async fn tell_token(&self, found: Found<TokenRecord>) -> Result<Option<Token>, ControlError> {
        let mut project = None;
        if let Some(id) = &found.record.project {
            let Some(owner) = self.db().get::<ProjectRecord>(&key::project(id)).await? else {
                return Ok(None);
            };
            project = Some(owner.record.name);
        }
        Ok(Some(Token {
            id: key::last_part(&found.key).to_owned(),
            name: found.record.name,
            project,
            created_unix_ms: found.record.created_unix_ms,
            token: None,
        }))
    }

    pub(crate) async fn delete_token(&self, id: &str) -> Result<(), ControlError> {
        let missing = || not_found("there is no such token");
        // Only an id that parses can be part of a key.
        id.parse::<InstanceId>().map_err(|_| missing())?;
        let place = key::token(id);
        let found = self
            .db()
            .get::<TokenRecord>(&place)
            .await?
            .ok_or_else(missing)?;
        let change = Change::default()
            .expect(&place, found.version)
            .delete(&place);
        self.db().commit(change).await
    }
}

fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token
        .strip_prefix(PREFIX)?
        .strip_prefix('_')?
        .split_once('_')?;
    let whole = secret.len() == SECRET_BYTES * 2 && id.parse::<InstanceId>().is_ok();
    whole.then_some((id, secret))
}

/// 256 random bits, as hexadecimal digits.
pub(crate) fn new_secret() -> String {
    let mut secret = [0; SECRET_BYTES];
    skiff_base::random::fill(&mut secret);
    hex(&secret)
}

/// Whether a fingerprint is this secret's; tells no more by its time.
pub(crate) fn is_of(sha256: &str, secret: &str) -> bool {
    fingerprint(secret)
        .as_bytes()
        .ct_eq(sha256.as_bytes())
        .into()
}

/// What is kept of a secret.
pub(crate) fn fingerprint(secret: &str) -> String {
    let sum: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
    hex(&sum)
}
