use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm};

use crate::arch;

/// The version that every KVM since Linux 2.6.22 tells, and no other may be used with.
const API_VERSION: i32 = 12;

/// Why this machine cannot run virtual ones.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device cannot be opened.
    #[error(
        "{} cannot be opened: load the module kvm-intel or kvm-amd, and be root or in the group kvm",
        .path.display()
    )]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A KVM that nobody has seen.
    #[error("{} speaks KVM's interface {version}, not {API_VERSION}", .path.display())]
    Version {
        /// The device.
        path: PathBuf,
        /// What it says.
        version: i32,
    },
    /// Something is missing that a machine is made of.
    #[error("this kernel's KVM lacks {0:?}: Linux 5.10 or later has it")]
    Lacks(Cap),
}

/// An open `/dev/kvm` that has what a machine is made of.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Where KVM is.
    pub const DEVICE: &str = "/dev/kvm";

    /// Opens KVM.
    ///
    /// # Errors
    /// When there is none, or it lacks something.
    pub fn open() -> Result<Self, HostError> {
        Self::open_at(Path::new(Self::DEVICE))
    }

    /// Opens KVM elsewhere.
    ///
    /// # Errors
    /// When there is none, or it lacks something.
    pub fn open_at(path: &Path) -> Result<Self, HostError> {
        let open = |source| HostError::Open {
            path: path.to_owned(),
            source,
        };
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| open(std::io::Error::from_raw_os_error(libc::ENOENT)))?;
        let kvm = Kvm::new_with_path(name)
            .map_err(|errno| open(std::io::Error::from_raw_os_error(errno.errno())))?;
        Self::check(kvm, path)
    }

    /// Takes KVM's device that somebody else has opened, for reading and
    /// writing.
    ///
    /// # Errors
    /// When it is none, or lacks something.
    pub fn from_fd(device: OwnedFd) -> Result<Self, HostError> {
        // SAFETY: the descriptor is open and handed over.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        Self::check(kvm, Path::new(Self::DEVICE))
    }

    fn check(kvm: Kvm, path: &Path) -> Result<Self, HostError> {
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(HostError::Version {
                path: path.to_owned(),
                version,
            });
        }
        let missing = arch::NEEDED
            .iter()
            .find(|need| !kvm.check_extension(**need));
        match missing {
            Some(need) => Err(HostError::Lacks(*need)),
            None => Ok(Self { kvm }),
        }
    }

    /// How many vCPUs a machine may have here.
    #[must_use]
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    pub(crate) const fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kvm_is_named_with_what_to_do() {
        let error = Host::open_at(Path::new("/nonexistent/kvm")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nonexistent/kvm cannot be opened"), "{text}");
        assert!(text.contains("kvm-amd"), "{text}");
        assert!(matches!(error, HostError::Open { .. }));
    }
}
