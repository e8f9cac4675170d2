use kvm_ioctls::Error as Errno;

/// A call to KVM that failed.
#[derive(Debug, thiserror::Error)]
#[error("KVM cannot {what}")]
pub struct KvmError {
    what: &'static str,
    #[source]
    source: std::io::Error,
}

impl KvmError {
    /// Says what was asked of KVM, for `map_err`.
    pub(crate) fn of(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self {
            what,
            source: std::io::Error::from_raw_os_error(errno.errno()),
        }
    }

    pub(crate) fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self { what, source }
    }
}
