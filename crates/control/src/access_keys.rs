//! Keys that AWS's clients sign with. A signature can only be verified with
//! the secret itself, so secrets are kept, encrypted as all secrets are.

use std::sync::Arc;

use skiff_lambda::Secret;
use skiff_types::api::AccessKey;
use skiff_types::{ProjectId, ProjectName};

use crate::control::Control;
use crate::db::{Change, Found};
use crate::error::{ControlError, exhausted, internal, invalid, not_found};
use crate::key;
use crate::lambda::KnownKey;
use crate::limit::{ACCESS_KEYS_MAX, TOKEN_NAME_BYTES_MAX};
use crate::record::{AccessKeyRecord, ProjectRecord, SecretRecord};

/// What ids begin with: nobody takes one for AWS's own.
const PREFIX: &str = "SKIF";
/// Characters after it: 80 bits.
const ID_CHARS: usize = 16;
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// A secret's characters, as many as AWS's have: 240 bits.
const SECRET_CHARS: usize = 40;
const SECRET_ALPHABET: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl Control {
    pub(crate) async fn create_access_key(
        &self,
        project: &ProjectName,
        name: String,
    ) -> Result<AccessKey, ControlError> {
        let bytes = name.len();
        if bytes == 0 || bytes > TOKEN_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(invalid(format!(
                "the key's name is 1 to {TOKEN_NAME_BYTES_MAX} bytes without control characters"
            )));
        }
        let _projects = self.inner.projects.read().await;
        let project = self.project(project).await?.record.id;
        let _tokens = self.inner.tokens.lock().await;
        let prefix = key::key_secrets(&project);
        let known = self
            .db()
            .first::<SecretRecord>(&prefix, None, ACCESS_KEYS_MAX);
        if known.await?.len() >= ACCESS_KEYS_MAX {
            return Err(exhausted(format!(
                "the project has {ACCESS_KEYS_MAX} keys already: delete one first"
            )));
        }
        let id = format!("{PREFIX}{}", random_text(ID_ALPHABET, ID_CHARS));
        let secret = random_text(SECRET_ALPHABET, SECRET_CHARS);
        let created_unix_ms = self.inner.base.now();
        let (place, kept) = (key::access_key(&id), key::key_secret(&project, &id));
        let vault = &self.inner.base.vault;
        let sealed = vault.sealed(&kept, secret.as_bytes(), created_unix_ms)?;
        let record = AccessKeyRecord {
            name,
            project,
            created_unix_ms,
        };
        let change = Change::default()
            .expect_absent(&place)
            .put(&place, &record)?
            .put(&kept, &sealed)?;
        self.db().commit(change).await?;
        Ok(AccessKey {
            id,
            name: record.name,
            created_unix_ms,
            secret: Some(secret),
        })
    }

    pub(crate) async fn list_access_keys(
        &self,
        project: &ProjectId,
    ) -> Result<Vec<AccessKey>, ControlError> {
        let prefix = key::key_secrets(project);
        let mut keys = Vec::new();
        for found in self.db().all::<SecretRecord>(&prefix).await? {
            let id = key::last_part(&found.key).to_owned();
            let known = self
                .db()
                .get::<AccessKeyRecord>(&key::access_key(&id))
                .await?;
            keys.extend(known.map(|known| AccessKey {
                id,
                name: known.record.name,
                created_unix_ms: known.record.created_unix_ms,
                secret: None,
            }));
        }
        keys.sort_by_key(|key| key.created_unix_ms);
        Ok(keys)
    }

    /// From its answer on, nothing that the key signs is taken.
    pub(crate) async fn delete_access_key(
        &self,
        project: &ProjectId,
        id: &str,
    ) -> Result<(), ControlError> {
        let missing = || not_found("there is no such key");
        let found = self.access_key(id).await?.ok_or_else(missing)?;
        if found.record.project != *project {
            return Err(missing());
        }
        let change = Change::default()
            .expect(&found.key, found.version)
            .delete(&found.key)
            .delete(key::key_secret(project, id));
        let committed = self.db().commit(change).await;
        self.inner.keys.forget(&id.to_owned());
        committed
    }

    /// The project and the secret of a key.
    pub(crate) async fn access_secret(
        &self,
        id: &str,
    ) -> Result<Option<Arc<KnownKey>>, ControlError> {
        let changes = match self.inner.keys.get(&id.to_owned()) {
            Ok(known) => return Ok(Some(known)),
            Err(changes) => changes,
        };
        let Some(found) = self.access_key(id).await? else {
            return Ok(None);
        };
        let owner = &found.record.project;
        let project = self.db().get::<ProjectRecord>(&key::project(owner)).await?;
        let place = key::key_secret(owner, id);
        let sealed = self.db().get::<SecretRecord>(&place).await?;
        let (Some(project), Some(sealed)) = (project, sealed) else {
            return Ok(None);
        };
        let secret = self.inner.base.vault.opened(&place, &sealed.record)?;
        let secret =
            String::from_utf8(secret).map_err(|_| internal("a key's secret is no text"))?;
        let known = Arc::new(KnownKey {
            project: project.record,
            secret: Secret(secret),
        });
        self.inner.keys.keep(id.to_owned(), &known, changes);
        Ok(Some(known))
    }

    /// Whose a key is.
    async fn access_key(&self, id: &str) -> Result<Option<Found<AccessKeyRecord>>, ControlError> {
        // Only an id that parses can be part of a key.
        if !is_id(id) {
            return Ok(None);
        }
        self.db().get(&key::access_key(id)).await
    }

    /// Keys of a project that is gone.
    pub(crate) async fn sweep_access_keys(&self, project: &ProjectId) -> Result<(), ControlError> {
        let prefix = key::key_secrets(project);
        for found in self.db().all::<SecretRecord>(&prefix).await? {
            let change = Change::default()
                .delete(key::access_key(key::last_part(&found.key)))
                .delete(&found.key);
            self.db().commit(change).await?;
        }
        Ok(())
    }
}

fn is_id(text: &str) -> bool {
    let rest = text.strip_prefix(PREFIX).unwrap_or_default();
    rest.len() == ID_CHARS && rest.bytes().all(|b| ID_ALPHABET.contains(&b))
}

/// The alphabets' lengths divide 256: every character is as likely.
fn random_text(alphabet: &[u8], length: usize) -> String {
    let mut bytes = vec![0; length];
    skiff_base::random::fill(&mut bytes);
    let of = |byte: &u8| char::from(alphabet[usize::from(*byte) % alphabet.len()]);
    bytes.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_its_form() {
        let id = format!("{PREFIX}{}", random_text(ID_ALPHABET, ID_CHARS));
        assert!(is_id(&id), "{id}");
        for bad in ["", "SKIF", "AKIAABCDEFGHIJKLMNOP", "SKIFABCDEFGHIJKLMNO/"] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
