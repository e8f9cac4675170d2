use std::path::PathBuf;

use skiff_kvm::arch::{BootError, ElfError};
use skiff_kvm::{HostError, KvmError, MemoryError, ThreadError};
use skiff_virtio::block::{DiskError, WindowError};
use skiff_virtio::net::TapError;
use skiff_virtio::vsock::VsockError;

use crate::confine::ConfineError;
use crate::kernel::KernelError;

/// Why there is no machine, or it does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// This host has no KVM for us.
    #[error("no virtual machine can run here")]
    Host(#[from] HostError),
    /// It cannot be held as it has to be.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// KVM refuses.
    #[error("the machine cannot be made")]
    Kvm(#[from] KvmError),
    /// There is no memory for the guest.
    #[error("the guest's memory cannot be made")]
    Memory(#[from] MemoryError),
    /// The kernel's file is not usable.
    #[error("boot-source.kernel_image_path is no kernel")]
    Kernel(#[from] KernelError),
    /// The kernel cannot be loaded.
    #[error("the kernel cannot be loaded")]
    Load(#[from] ElfError),
    /// The kernel cannot be started.
    #[error("the kernel cannot be started")]
    Boot(#[from] BootError),
    /// A file that the configuration names.
    #[error("{field}: {} cannot be opened", .path.display())]
    Open {
        /// Where it is named.
        field: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file is no disk.
    #[error("drive {id}: {} is no disk", .path.display())]
    Disk {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: DiskError,
    },
    /// There is no disk of windows with this name.
    #[error("window-disks has no disk {id:?}")]
    NoDisk {
        /// The name.
        id: String,
    },
    /// There is no device with this name.
    #[error("there is no {kind} {id:?}")]
    NoDevice {
        /// What it would be.
        kind: &'static str,
        /// The name.
        id: String,
    },
    /// A window cannot be mapped or taken away.
    #[error("disk {id}")]
    Window {
        /// The disk.
        id: String,
        /// Why not.
        #[source]
        source: WindowError,
    },
    /// An interface has no tap.
    #[error("network interface {id} has no tap")]
    Tap {
        /// The interface.
        id: String,
        /// Why not.
        #[source]
        source: TapError,
    },
    /// There are no sockets between guest and host.
    #[error("vsock cannot be made")]
    Vsock(#[from] VsockError),
    /// A thread does not do what it is told.
    #[error("a vCPU does not do what it is told")]
    Thread(#[from] ThreadError),
    /// The devices' thread does not do what it is told.
    #[error("the devices' thread cannot {what}")]
    Io {
        /// What it was to do.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl MachineError {
    pub(super) fn window(id: &str) -> impl Fn(WindowError) -> Self {
        move |source| Self::Window {
            id: id.into(),
            source,
        }
    }

    pub(crate) fn no_device(kind: &'static str, id: &str) -> Self {
        Self::NoDevice {
            kind,
            id: id.into(),
        }
    }

    pub(super) fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
