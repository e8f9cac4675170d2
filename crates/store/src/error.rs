use std::path::PathBuf;

use skiff_types::ErrorKind;

/// The store cannot be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer program has written it.
    #[error(
        "{path} has schema version {found}, written by skiff {written_by}; this is skiff {program}, which knows schema versions up to {known}"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The program that made it so.
        written_by: String,
        /// This program.
        program: &'static str,
        /// This program's version of the schema.
        known: u32,
    },
    /// It is another program's database.
    #[error("{path} is a database, and not a store of skiff")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {finding}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the check found first.
        finding: String,
    },
    /// The disk is full; nothing has been changed.
    #[error("the disk of {path} is full")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// SQLite refuses.
    #[error("cannot {action} {path}")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// A file cannot be made or looked at.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A request is above a stated limit or has no sense.
    #[error("{what} is {value}: at most {most} is taken")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        value: usize,
        /// The limit.
        most: usize,
    },
    /// A key is empty, or twice in one transaction.
    #[error("a transaction's keys are not empty and not twice in it")]
    Keys,
    /// The queue has been full for too long.
    #[error("the store has too much to do")]
    Busy,
    /// No answer came in time; the change may still happen.
    #[error("the store does not answer in time")]
    Timeout,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// How it is told to a client.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Keys => ErrorKind::Invalid,
            Self::DiskFull { .. } | Self::Busy | Self::Closed => ErrorKind::Unavailable,
            Self::Timeout => ErrorKind::Timeout,
            Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::Damaged { .. }
            | Self::Sqlite { .. }
            | Self::Io { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn sqlite(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl Fn(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let path = path.clone();
            match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull { path },
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                    Self::Damaged {
                        path,
                        finding: source.to_string(),
                    }
                }
                _ => Self::Sqlite {
                    action,
                    path,
                    source,
                },
            }
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl Fn(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull => Self::DiskFull { path: path.clone() },
            _ => Self::Io {
                action,
                path: path.clone(),
                source,
            },
        }
    }
}
