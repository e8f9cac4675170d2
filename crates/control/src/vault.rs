//! Secrets: encrypted in the store, in the clear only on their way into an
//! instance.
//!
//! ```text
//!  mark:   old               old, next               new, next            new
//!  ┌────────┐ rekey ┌───────────────────────┐ ┌───────────────────────┐ ┌────────┐
//!  │ steady ├──────▶│ encrypted anew, batch │▶│ the new key takes the │▶│ steady │
//!  └────────┘       │ by batch              │ │ old one's place       │ └────────┘
//!                   └───────────────────────┘ └───────────────────────┘
//!                        a crash in either: the next start goes on
//! ```
//! The mark in the store says which key is which and where the next one is.
//! While both exist, what is set is encrypted with the next one and either
//! opens what is stored. A new key in a file that the caller names stays
//! there; the configuration has to name it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use skiff_types::api::{Rekeyed, Secret};
use skiff_types::{ProjectId, SecretName};

use crate::cipher::{self, Key};
use crate::db::{Change, Db, Found};
use crate::error::{ControlError, conflict, exhausted, internal, invalid, not_found, unavailable};
use crate::key;
use crate::limit::{REKEY_BATCH, SECRETS_MAX};
use crate::record::{ProjectRecord, SecretRecord};

/// Which key the stored secrets are encrypted with.
#[derive(Debug, Serialize, Deserialize)]
struct KeyMark {
    key_id: String,
    next: Option<NextKey>,
}

/// The key that secrets are being encrypted with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct NextKey {
    file: PathBuf,
    key_id: String,
}

const KEY_MARK: &str = "_/secret-key";

#[derive(Clone, Debug)]
struct Ring {
    current: Arc<Key>,
    next: Option<Arc<Key>>,
    /// Where the next key is, as long as the change of keys is not over.
    next_file: Option<PathBuf>,
}

/// Seals and opens the secrets of all projects.
#[derive(Debug)]
pub(crate) struct Vault {
    db: Db,
    file: PathBuf,
    data_dir: PathBuf,
    ring: RwLock<Ring>,
    rekeying: tokio::sync::Mutex<()>,
}

impl Vault {
    /// Reads the key; makes one at the first start.
    pub(crate) async fn open(db: Db, file: &Path, data_dir: &Path) -> Result<Self, ControlError> {
        cipher::check_place(file, data_dir)?;
        let mark = db.get::<KeyMark>(KEY_MARK).await?;
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
        let mark = match mark {
            Some(found) => found.record,
            None => {
                let mark = KeyMark {
                    key_id: current.id().to_owned(),
                    next: None,
                };
                let change = Change::default().expect_absent(KEY_MARK);
                db.commit(change.put(KEY_MARK, &mark)?).await?;
                mark
            }
        };
        let next = next_of(&mark, &current)?;
        check_mark(file, &mark, &current, next.as_ref())?;
        let ring = Ring {
            current: Arc::new(current),
            next: next.map(Arc::new),
            next_file: mark.next.map(|next| next.file),
        };
        Ok(Self {
            db,
            file: file.to_owned(),
            data_dir: data_dir.to_owned(),
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
        self.ring().next_file.is_some()
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
                .first::<SecretRecord>(&prefix, None, SECRETS_MAX)
                .await?;
            if page.len() >= SECRETS_MAX {
                return Err(exhausted(format!(
                    "the project has {SECRETS_MAX} secrets already"
                )));
            }
        }
        let record = self.sealed(&place, value, now_unix_ms)?;
        self.db
            .commit(Change::default().put(&place, &record)?)
            .await?;
        Ok(to_api(name, &record))
    }

    /// A value as it is stored at that place, and nowhere else.
    pub(crate) fn sealed(
        &self,
        place: &str,
        value: &[u8],
        now_unix_ms: u64,
    ) -> Result<SecretRecord, ControlError> {
        let ring = self.ring();
        let key = ring.next.unwrap_or(ring.current);
        seal(&key, place, value, now_unix_ms)
    }

    /// What was stored at that place.
    pub(crate) fn opened(
        &self,
        place: &str,
        record: &SecretRecord,
    ) -> Result<Vec<u8>, ControlError> {
        unseal(&self.ring(), place, record)
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

    /// Encrypts everything with a new key. Safe to repeat after a crash at
    /// any point: it goes on with the key that was begun with.
    pub(crate) async fn rekey(&self, key_file: Option<PathBuf>) -> Result<Rekeyed, ControlError> {
        let Ok(_one) = self.rekeying.try_lock() else {
            return Err(unavailable("the secrets are being encrypted anew already"));
        };
        let (next, next_file) = self.next_key(key_file).await?;
        let mut secrets = 0;
        for project in self.db.all::<ProjectRecord>(key::PROJECTS).await? {
            let id = &project.record.id;
            for prefix in [key::secrets(id), key::key_secrets(id)] {
                secrets += self.rekey_all(&prefix, &next).await?;
            }
        }
        let key_id = next.id().to_owned();
        self.mark(&key_id, Some((&next_file, &next))).await?;
        // A start that goes on may find that it has its place already.
        let in_place = self.ring().current.id() == next.id();
        if !in_place && next_file == cipher::next_file(&self.file) {
            let file = self.file.clone();
            blocking(move || cipher::promote(&file)).await?;
        }
        self.mark(&key_id, None).await?;
        self.set_ring(Ring {
            current: next,
            next: None,
            next_file: None,
        });
        Ok(Rekeyed { secrets, key_id })
    }

    async fn mark(&self, key_id: &str, next: Option<(&PathBuf, &Key)>) -> Result<(), ControlError> {
        let next = next.map(|(file, key)| NextKey {
            file: file.clone(),
            key_id: key.id().to_owned(),
        });
        let key_id = key_id.to_owned();
        let change = Change::default().put(KEY_MARK, &KeyMark { key_id, next })?;
        self.db.commit(change).await
    }

    /// From here on everything is set with the next key.
    async fn next_key(&self, wanted: Option<PathBuf>) -> Result<(Arc<Key>, PathBuf), ControlError> {
        let ring = self.ring();
        if let Some(begun) = ring.next_file {
            if wanted.is_some_and(|wanted| wanted != begun) {
                return Err(conflict(format!(
                    "the secrets are being encrypted with the key of {}: let that end first",
                    begun.display()
                )));
            }
            return Ok((ring.next.unwrap_or(ring.current), begun));
        }
        let file = wanted.unwrap_or_else(|| cipher::next_file(&self.file));
        if !file.is_absolute() {
            return Err(invalid(format!("{} is no absolute path", file.display())));
        }
        cipher::check_place(&file, &self.data_dir)?;
        let path = file.clone();
        let made = blocking(move || match cipher::read(&path)? {
            Some(key) => Ok(key),
            None => cipher::generate(&path),
        });
        let next = Arc::new(made.await?);
        if next.id() == ring.current.id() {
            return Err(invalid(format!(
                "{} holds the key that is in use",
                file.display()
            )));
        }
        self.mark(ring.current.id(), Some((&file, &next))).await?;
        self.set_ring(Ring {
            current: ring.current,
            next: Some(Arc::clone(&next)),
            next_file: Some(file.clone()),
        });
        Ok((next, file))
    }

    async fn rekey_all(&self, prefix: &str, next: &Key) -> Result<usize, ControlError> {
        let mut after: Option<String> = None;
        let mut done = 0;
        loop {
            let page = self
                .db
                .page(prefix, after.as_deref(), REKEY_BATCH)
                .await?
                .items;
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

/// The key that secrets are being encrypted with, unless it has the place of
/// the current one already.
fn next_of(mark: &KeyMark, current: &Key) -> Result<Option<Key>, ControlError> {
    let Some(next) = mark
        .next
        .as_ref()
        .filter(|next| next.key_id != current.id())
    else {
        return Ok(None);
    };
    match cipher::read(&next.file)? {
        Some(key) if key.id() == next.key_id => Ok(Some(key)),
        _ => Err(invalid(format!(
            "the key file {} no longer holds the key {}, which some secrets are encrypted with: put it back",
            next.file.display(),
            next.key_id
        ))),
    }
}

fn check_mark(
    file: &Path,
    mark: &KeyMark,
    current: &Key,
    next: Option<&Key>,
) -> Result<(), ControlError> {
    let wanted = &mark.key_id;
    // The old key is needed until every secret has left it.
    let moved_on = mark
        .next
        .as_ref()
        .is_some_and(|next| next.key_id == current.id());
    if current.id() == wanted || next.is_some_and(|next| next.id() == wanted) || moved_on {
        return Ok(());
    }
    Err(invalid(format!(
        "the key file {} holds the key {}, and secrets are encrypted with {wanted}: put that one back, or name its file in the configuration",
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
