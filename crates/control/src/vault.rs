//! Secrets: encrypted in the store, in the clear only on their way into an
//! instance.
//!
//! ```text
//!             key                     key, key.next              key (was next)
//!  ┌────────┐ rekey: makes key.next ┌─────────┐ all encrypted anew ┌────────┐
//!  │ steady ├──────────────────────▶│ rekeying├───────────────────▶│ steady │
//!  └────────┘                       └────┬────┘ mark, then rename  └────────┘
//!                        crash: the start goes on here
//! ```
//! While both keys exist, what is set is encrypted with the next one and
//! either opens what is stored.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use skiff_types::api::{Rekeyed, Secret};
use skiff_types::{ProjectId, SecretName};

use crate::cipher::{self, Key};
use crate::db::{Change, Db, Found};
use crate::error::{ControlError, exhausted, internal, invalid, not_found, unavailable};
use crate::key;
use crate::limit::{REKEY_BATCH, SECRETS_MAX};
use crate::record::{ProjectRecord, SecretRecord};

/// Which key the stored secrets are encrypted with.
#[derive(Debug, Serialize, Deserialize)]
struct KeyMark {
    key_id: String,
}

const KEY_MARK: &str = "_/secret-key";

#[derive(Clone, Debug)]
struct Ring {
    current: Arc<Key>,
    next: Option<Arc<Key>>,
}

/// Seals and opens the secrets of all projects.
#[derive(Debug)]
pub(crate) struct Vault {
    db: Db,
    file: PathBuf,
    ring: RwLock<Ring>,
    rekeying: tokio::sync::Mutex<()>,
}

impl Vault {
    /// Reads the key; makes one at the first start.
    pub(crate) async fn open(db: Db, file: &Path, data_dir: &Path) -> Result<Self, ControlError> {
        cipher::check_place(file, data_dir)?;
        let mark = db.get::<KeyMark>(KEY_MARK).await?;
        let next = cipher::read(&cipher::next_file(file))?;
        let current = match (cipher::read(file)?, &mark) {
            (Some(key), _) => key,
            (None, None) => cipher::generate(file)?,
            (None, Some(mark)) => {
                return Err(invalid(format!(
                    "the key file {} is gone, and secrets are encrypted with its key {}: put it back",
                    file.display(),
                    mark.record.key_id
                )));
            }
        };
        check_mark(file, mark.as_ref(), &current, next.as_ref())?;
        if mark.is_none() {
            let key_id = current.id().to_owned();
            let change = Change::default().expect_absent(KEY_MARK);
            db.commit(change.put(KEY_MARK, &KeyMark { key_id })?)
                .await?;
        }
        let ring = Ring {
            current: Arc::new(current),
            next: next.map(Arc::new),
        };
        Ok(Self {
            db,
            file: file.to_owned(),
            ring: RwLock::new(ring),
            rekeying: tokio::sync::Mutex::new(()),
        })
    }

    fn ring(&self) -> Ring {
        self.ring
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_ring(&self, ring: Ring) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
    }

    /// Whether a change of keys was interrupted.
    pub(crate) fn is_rekeying(&self) -> bool {
        self.ring().next.is_some()
    }

    /// Stores a secret, new or changed.
    pub(crate) async fn set(
        &self,
        project: &ProjectId,
        name: &SecretName,
        value: &[u8],
        now_unix_ms: u64,
    ) -> Result<Secret, ControlError> {
        let place = key::secret(project, name);
        let known = self.db.get::<SecretRecord>(&place).await?;
        if known.is_none() {
            let prefix = key::secrets(project);
            let page = self
                .db
                .page::<SecretRecord>(&prefix, None, SECRETS_MAX)
                .await?;
            if page.len() >= SECRETS_MAX {
                return Err(exhausted(format!(
                    "the project has {SECRETS_MAX} secrets already"
                )));
            }
        }
        let ring = self.ring();
        let key = ring.next.unwrap_or(ring.current);
        let record = seal(&key, &place, value, now_unix_ms)?;
        self.db
            .commit(Change::default().put(&place, &record)?)
            .await?;
        Ok(to_api(name, &record))
    }

    pub(crate) async fn list(&self, project: &ProjectId) -> Result<Vec<Secret>, ControlError> {
        let found = self.db.all::<SecretRecord>(&key::secrets(project)).await?;
        let tell = |found: Found<SecretRecord>| {
            let name = key::last_part(&found.key).parse();
            let name =
                name.map_err(|e| internal(format!("the key {} has no name: {e}", found.key)))?;
            Ok(to_api(&name, &found.record))
        };
        found.into_iter().map(tell).collect()
    }

    pub(crate) async fn delete(
        &self,
        project: &ProjectId,
        name: &SecretName,
    ) -> Result<(), ControlError> {
        let place = key::secret(project, name);
        let found = self.db.get::<SecretRecord>(&place).await?;
        let found = found.ok_or_else(|| not_found(format!("there is no secret {name}")))?;
        let change = Change::default()
            .expect(&place, found.version)
            .delete(&place);
        self.db.commit(change).await
    }

    pub(crate) async fn exists(
        &self,
        project: &ProjectId,
        name: &SecretName,
    ) -> Result<bool, ControlError> {
        self.db.exists(&key::secret(project, name)).await
    }

    /// A secret's value as text, for an environment.
    pub(crate) async fn reveal(
        &self,
        project: &ProjectId,
        name: &SecretName,
    ) -> Result<String, ControlError> {
        let place = key::secret(project, name);
        let found = self.db.get::<SecretRecord>(&place).await?;
        let found = found.ok_or_else(|| not_found(format!("there is no secret {name}")))?;
        let plain = unseal(&self.ring(), &place, &found.record)?;
        // The error would carry the bytes: only that it happened is told.
        String::from_utf8(plain).map_err(|_| {
            invalid(format!(
                "the secret {name} is no UTF-8 and cannot be in an environment"
            ))
        })
    }

    /// Encrypts everything with a new key, made now unless one waits at the
    /// key's path with `.next`. Safe to repeat after a crash at any point.
    pub(crate) async fn rekey(&self) -> Result<Rekeyed, ControlError> {
        let Ok(_one) = self.rekeying.try_lock() else {
            return Err(unavailable("the secrets are being encrypted anew already"));
        };
        let next = self.next_key().await?;
        let mut secrets = 0;
        for project in self.db.all::<ProjectRecord>(key::PROJECTS).await? {
            secrets += self.rekey_project(&project.record.id, &next).await?;
        }
        let key_id = next.id().to_owned();
        let mark = KeyMark {
            key_id: key_id.clone(),
        };
        self.db
            .commit(Change::default().put(KEY_MARK, &mark)?)
            .await?;
        let file = self.file.clone();
        blocking(move || cipher::promote(&file)).await?;
        self.set_ring(Ring {
            current: next,
            next: None,
        });
        Ok(Rekeyed { secrets, key_id })
    }

    /// From here on everything is set with the next key.
    async fn next_key(&self) -> Result<Arc<Key>, ControlError> {
        let mut ring = self.ring();
        let path = cipher::next_file(&self.file);
        let made = blocking(move || match cipher::read(&path)? {
            Some(key) => Ok(key),
            None => cipher::generate(&path),
        });
        let next = Arc::new(made.await?);
        ring.next = Some(Arc::clone(&next));
        self.set_ring(ring);
        Ok(next)
    }

    async fn rekey_project(&self, project: &ProjectId, next: &Key) -> Result<usize, ControlError> {
        let prefix = key::secrets(project);
        let mut after: Option<String> = None;
        let mut done = 0;
        loop {
            let page = self.db.page(&prefix, after.as_deref(), REKEY_BATCH).await?;
            let Some(last) = page.last() else {
                return Ok(done);
            };
            let last = last.key.clone();
            if let Some(count) = self.rekey_page(&page, next).await? {
                done += count;
                after = Some(last);
            }
            // Otherwise one of them was set meanwhile: the page is read again.
        }
    }

    /// How many were encrypted anew; nothing when one of them has changed.
    async fn rekey_page(
        &self,
        page: &[Found<SecretRecord>],
        next: &Key,
    ) -> Result<Option<usize>, ControlError> {
        let ring = self.ring();
        let mut change = Change::default();
        let mut count = 0;
        for found in page.iter().filter(|found| found.record.key_id != next.id()) {
            let plain = unseal(&ring, &found.key, &found.record)?;
            let record = seal(next, &found.key, &plain, found.record.updated_unix_ms)?;
            change = change
                .expect(&found.key, found.version)
                .put(&found.key, &record)?;
            count += 1;
        }
        if count == 0 {
            return Ok(Some(0));
        }
        Ok(self.db.try_commit(change).await?.then_some(count))
    }
}

/// File I/O on the key, off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| internal(format!("work on the key file ended early: {e}")))?
}

fn check_mark(
    file: &Path,
    mark: Option<&Found<KeyMark>>,
    current: &Key,
    next: Option<&Key>,
) -> Result<(), ControlError> {
    let Some(mark) = mark else { return Ok(()) };
    let wanted = &mark.record.key_id;
    if current.id() == wanted || next.is_some_and(|next| next.id() == wanted) {
        return Ok(());
    }
    Err(invalid(format!(
        "the key file {} holds the key {}, and secrets are encrypted with {wanted}: put that one back",
        file.display(),
        current.id()
    )))
}

fn seal(
    key: &Key,
    place: &str,
    value: &[u8],
    updated_unix_ms: u64,
) -> Result<SecretRecord, ControlError> {
    let sealed = key.seal(place, value)?;
    Ok(SecretRecord {
        updated_unix_ms,
        key_id: key.id().to_owned(),
        nonce_base64: STANDARD.encode(sealed.nonce),
        sealed_base64: STANDARD.encode(&sealed.bytes),
    })
}

fn unseal(ring: &Ring, place: &str, record: &SecretRecord) -> Result<Vec<u8>, ControlError> {
    let keys = [Some(&ring.current), ring.next.as_ref()];
    let key = keys
        .into_iter()
        .flatten()
        .find(|key| key.id() == record.key_id);
    let key = key.ok_or_else(|| {
        internal(format!(
            "the secret {place} is encrypted with the key {}, which is not here",
            record.key_id
        ))
    })?;
    let damaged = |_| internal(format!("the secret {place} is damaged"));
    let nonce = STANDARD.decode(&record.nonce_base64).map_err(damaged)?;
    let sealed = STANDARD.decode(&record.sealed_base64).map_err(damaged)?;
    key.open(place, &nonce, &sealed)
}

fn to_api(name: &SecretName, record: &SecretRecord) -> Secret {
    Secret {
        name: name.clone(),
        updated_unix_ms: record.updated_unix_ms,
        key_id: record.key_id.clone(),
    }
}
