//! The file: its making, its versions, its check.
//!
//! ```text
//!  no file ──▶ empty ──▶ v1 ──▶ … ──▶ newest   (each step in one transaction,
//!                                               a backup before the first one)
//!  newer than this program, or another program's ──▶ refused, untouched
//! ```

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::StepResult;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use crate::StoreError;

/// `skif` in ASCII: the file says whose it is.
const APPLICATION_ID: i32 = 0x736b_6966;
/// Another process, as a server that is being replaced, is waited for so long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// Version n is made by the first n steps. A step, once released, never changes.
pub(crate) const STEPS: &[&str] = &[
    // 1
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
     INSERT INTO meta VALUES ('revision', 0);
     CREATE TABLE items (
         key BLOB PRIMARY KEY,
         value BLOB NOT NULL,
         mod_revision INTEGER NOT NULL
     );",
];

/// Opens the file, makes it if need be, and brings it to the newest version.
pub(crate) fn open(path: &Path, steps: &[&str]) -> Result<Connection, StoreError> {
    make_private(path)?;
    let mut connection = connect(path)?;
    let sqlite = StoreError::sqlite("open", path);
    refuse_what_is_not_ours(&connection, path, steps)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(&sqlite)?;
    check(&connection, path)?;
    migrate(&mut connection, path, steps)?;
    sync_folder(path)?;
    Ok(connection)
}

/// One more connection to a file that has been opened.
pub(crate) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let sqlite = StoreError::sqlite("open", path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(&sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(&sqlite)?;
    for (name, value) in [
        // Acknowledged means that the disk has it.
        ("synchronous", "FULL"),
        ("trusted_schema", "OFF"),
        // KiB: the kernel has the file's pages, and has them once for both
        // connections.
        ("cache_size", "-512"),
    ] {
        connection
            .pragma_update(None, name, value)
            .map_err(&sqlite)?;
    }
    Ok(connection)
}

fn make_private(path: &Path) -> Result<(), StoreError> {
    let io = StoreError::io("make", path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(&io)?;
    // SQLite gives its other files the same mode.
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(&io)
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let opened = File::open(folder).and_then(|folder| folder.sync_all());
    opened.map_err(StoreError::io("sync", folder))
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn version(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let version = pragma(connection, "user_version");
    let version = version.map_err(StoreError::sqlite("read", path))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

fn refuse_what_is_not_ours(
    connection: &Connection,
    path: &Path,
    steps: &[&str],
) -> Result<(), StoreError> {
    let sqlite = StoreError::sqlite("read", path);
    let id = pragma(connection, "application_id").map_err(&sqlite)?;
    let tables: u32 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(&sqlite)?;
    if id != APPLICATION_ID && (id != 0 || tables > 0) {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
        });
    }
    let found = version(connection, path)?;
    if found <= steps.len() {
        return Ok(());
    }
    let written_by = connection
        .query_row("SELECT value FROM meta WHERE name = 'program'", [], |row| {
            row.get(0)
        })
        .optional();
    Err(StoreError::Newer {
        path: path.to_owned(),
        found: u32::try_from(found).unwrap_or(u32::MAX),
        written_by: written_by
            .ok()
            .flatten()
            .unwrap_or_else(|| "of an unknown version".to_owned()),
        program: PROGRAM,
        known: u32::try_from(steps.len()).unwrap_or(u32::MAX),
    })
}

fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let finding: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(StoreError::sqlite("check", path))?;
    if finding == "ok" {
        return Ok(());
    }
    Err(StoreError::Damaged {
        path: path.to_owned(),
        finding,
    })
}

fn migrate(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), StoreError> {
    let found = version(connection, path)?;
    if found == steps.len() {
        return Ok(());
    }
    if found > 0 {
        let backup_path = backup_path(path, found);
        tracing::info!(
            path = %path.display(),
            from = found,
            to = steps.len(),
            backup = %backup_path.display(),
            "the store is migrated"
        );
        backup(connection, &backup_path)?;
    }
    let sqlite = StoreError::sqlite("migrate", path);
    let newest = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let mut change = || {
        let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in &steps[found..] {
            txn.execute_batch(step)?;
        }
        txn.execute(
            "INSERT OR REPLACE INTO meta VALUES ('program', ?1)",
            [PROGRAM],
        )?;
        txn.pragma_update(None, "application_id", APPLICATION_ID)?;
        txn.pragma_update(None, "user_version", newest)?;
        txn.commit()
    };
    change().map_err(sqlite)
}

fn backup_path(path: &Path, version: usize) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".v{version}.backup"));
    path.with_file_name(name)
}

/// Copies the whole store, as it is at one moment, into a new file.
pub(crate) fn backup(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    let part = to.with_extension("part");
    let io = StoreError::io("write", to);
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    make_private(&part)?;
    let sqlite = StoreError::sqlite("write", to);
    let copy = || {
        let mut target = Connection::open(&part)?;
        let copy = rusqlite::backup::Backup::new(connection, &mut target)?;
        // All pages in one step: no write comes in between.
        if copy.step(-1)? != StepResult::Done {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(busy, None));
        }
        drop(copy);
        target.close().map_err(|(_, error)| error)
    };
    copy().map_err(sqlite)?;
    let file = File::open(&part).and_then(|file| file.sync_all());
    file.and_then(|()| std::fs::rename(&part, to))
        .map_err(&io)?;
    sync_folder(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(connection: &Connection, key: &str) {
        let sql = "INSERT INTO items VALUES (?1, x'01', 1)";
        connection.execute(sql, [key.as_bytes()]).unwrap();
    }

    fn keys(connection: &Connection) -> u32 {
        let sql = "SELECT count(*) FROM items";
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_migration_keeps_what_is_there_and_makes_a_backup() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let old = open(&path, &STEPS[..1]).unwrap();
        put(&old, "a");
        drop(old);
        let mut steps = STEPS[..1].to_vec();
        steps.push("ALTER TABLE items ADD COLUMN more INTEGER NOT NULL DEFAULT 7");
        let new = open(&path, &steps).unwrap();
        let sql = "SELECT more FROM items WHERE key = CAST('a' AS BLOB)";
        let more: u32 = new.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!((more, version(&new, &path).unwrap()), (7, 2));
        drop(new);
        let backup = folder.path().join("store.db.v1.backup");
        let mode = std::fs::metadata(&backup).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(keys(&open(&backup, &STEPS[..1]).unwrap()), 1);
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        put(&open(&path, &STEPS[..1]).unwrap(), "a");
        let steps = [STEPS[0], "CREATE TABLE half (a)", "this is no SQL"];
        assert!(open(&path, &steps).is_err());
        let again = open(&path, &STEPS[..1]).unwrap();
        assert_eq!((keys(&again), version(&again, &path).unwrap()), (1, 1));
    }

    #[test]
    fn a_newer_store_is_refused_by_its_name_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let steps = [STEPS[0], "CREATE TABLE more (a)"];
        drop(open(&path, &steps).unwrap());
        let before = std::fs::read(&path).unwrap();
        let error = open(&path, &STEPS[..1]).unwrap_err().to_string();
        assert!(error.contains("schema version 2"), "{error}");
        assert!(error.contains("up to 1"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn another_programs_database_and_a_damaged_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("foreign.db");
        let connection = Connection::open(&foreign).unwrap();
        connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
        drop(connection);
        let error = open(&foreign, STEPS).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        let rubbish = folder.path().join("rubbish.db");
        std::fs::write(&rubbish, "no database at all ".repeat(1000)).unwrap();
        let error = open(&rubbish, STEPS).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}
