//! What a guest's kernel must have, and how its configuration says so.

use std::collections::BTreeMap;
use std::io::Read;

use crate::packed::{Packing, read_bounded};

/// Debian's has 260 KiB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// What stands around a configuration in a kernel (`CONFIG_IKCONFIG`).
const IN_KERNEL_START: &[u8] = b"IKCFG_ST";
const IN_KERNEL_END: &[u8] = b"IKCFG_ED";

/// A driver or file system, which may be a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Driver {
    pub(crate) option: &'static str,
    pub(crate) module: &'static str,
    pub(crate) purpose: &'static str,
}

const fn driver(option: &'static str, module: &'static str, purpose: &'static str) -> Driver {
    Driver {
        option,
        module,
        purpose,
    }
}

/// Their modules are loaded in this order.
pub(crate) const DRIVERS: [Driver; 9] = [
    driver("CONFIG_VIRTIO_MMIO", "virtio_mmio", "finding devices"),
    driver("CONFIG_VIRTIO_BLK", "virtio_blk", "disks"),
    driver(
        "CONFIG_HW_RANDOM_VIRTIO",
        "virtio_rng",
        "randomness from the host",
    ),
    driver(
        "CONFIG_VIRTIO_VSOCKETS",
        "vmw_vsock_virtio_transport",
        "talking to the host",
    ),
    driver("CONFIG_EROFS_FS", "erofs", "images' layers"),
    driver("CONFIG_OVERLAY_FS", "overlay", "writable roots"),
    driver("CONFIG_EXT4_FS", "ext4", "writable roots on disk"),
    driver("CONFIG_VIRTIO_NET", "virtio_net", "egress"),
    driver("CONFIG_NF_TABLES", "nf_tables", "calls to Skiff's services"),
];

/// Options that are there or not, and what each is for.
pub(crate) const BUILT_IN: [(&str, &str); 20] = [
    ("CONFIG_ACPI", "finding the machine"),
    ("CONFIG_BLK_DEV_INITRD", "starting the first process"),
    ("CONFIG_DEVTMPFS", "device nodes"),
    ("CONFIG_PROC_FS", "/proc"),
    ("CONFIG_SYSFS", "/sys"),
    ("CONFIG_TMPFS", "files in memory"),
    ("CONFIG_TMPFS_XATTR", "writable roots in memory"),
    (
        "CONFIG_EROFS_FS_XATTR",
        "replaced folders in images' layers",
    ),
    ("CONFIG_CGROUPS", "limits"),
    ("CONFIG_MEMCG", "limits of memory"),
    ("CONFIG_CGROUP_PIDS", "limits of processes"),
    ("CONFIG_CFS_BANDWIDTH", "limits of processor time"),
    ("CONFIG_USER_NS", "users of containers"),
    ("CONFIG_PID_NS", "processes of containers"),
    ("CONFIG_NET_NS", "networks of containers"),
    ("CONFIG_UTS_NS", "host names of containers"),
    ("CONFIG_IPC_NS", "shared memory of containers"),
    ("CONFIG_SECCOMP_FILTER", "confining system calls"),
    ("CONFIG_UNIX", "local sockets"),
    ("CONFIG_INET", "local connections"),
];

/// What a guest can do without, and what it then lacks.
pub(crate) const WELCOME: [(&str, &str); 1] =
    [("CONFIG_KVM_GUEST", "the host's clock and fast interrupts")];

/// What a configuration says of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    No,
    Module,
    Yes,
}

/// A kernel's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config(BTreeMap<String, Value>);

impl Config {
    /// Takes the lines that say `=y` or `=m`. All others are passed over.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let options = text.split(|byte| *byte == b'\n').filter_map(|line| {
            let (name, value) = str::from_utf8(line).ok()?.trim_end().split_once('=')?;
            let value = match value {
                "y" => Value::Yes,
                "m" => Value::Module,
                _ => return None,
            };
            name.starts_with("CONFIG_")
                .then(|| (name.to_owned(), value))
        });
        Self(options.collect())
    }

    /// The configuration that a kernel has inside, if it does.
    pub(crate) fn in_kernel(kernel: &[u8]) -> Option<Self> {
        let start = memchr::memmem::find(kernel, IN_KERNEL_START)? + IN_KERNEL_START.len();
        let packed = kernel.get(start..)?;
        let packed = packed.get(..memchr::memmem::find(packed, IN_KERNEL_END)?)?;
        let reader: Box<dyn Read> = Packing::Gzip.open(packed).ok()?;
        Some(Self::parse(&read_bounded(reader, MAX_CONFIG_BYTES).ok()?))
    }

    pub(crate) fn value(&self, option: &str) -> Value {
        self.0.get(option).copied().unwrap_or(Value::No)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{gzip, vmlinux};

    #[test]
    fn lines_are_options_that_are_there_as_modules_or_not_set() {
        let text = b"#\n# Automatically generated\nCONFIG_A=y\nCONFIG_B=m\r\n\
            # CONFIG_C is not set\nCONFIG_D=\"y\"\nCONFIG_E=1000\nOTHER=y\n\xff=y\nCONFIG_F=y";
        let config = Config::parse(text);
        for (option, value) in [
            ("CONFIG_A", Value::Yes),
            ("CONFIG_B", Value::Module),
            ("CONFIG_C", Value::No),
            ("CONFIG_D", Value::No),
            ("CONFIG_E", Value::No),
            ("OTHER", Value::No),
            ("CONFIG_F", Value::Yes),
            ("", Value::No),
        ] {
            assert_eq!(config.value(option), value, "{option}");
        }
    }

    #[test]
    fn a_kernel_can_have_its_configuration_inside() {
        let packed = gzip(b"CONFIG_A=y\n");
        let inside = [IN_KERNEL_START, &packed, IN_KERNEL_END].concat();
        let config = Config::in_kernel(&vmlinux("6.1.0", &inside)).unwrap();
        assert_eq!(config.value("CONFIG_A"), Value::Yes);
        for broken in [
            &b""[..],
            IN_KERNEL_START,
            &inside[..inside.len() - 1],
            b"IKCFG_STIKCFG_ED",
        ] {
            let config = Config::in_kernel(&vmlinux("6.1.0", broken));
            assert!(config.is_none_or(|config| config == Config::default()));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let config = Config::parse(&text);
            let lines = text.split(|byte| *byte == b'\n').count();
            prop_assert!(config.0.len() <= lines);
            let kernel = [IN_KERNEL_START, &text, IN_KERNEL_END].concat();
            prop_assert!(Config::in_kernel(&kernel).is_none_or(|config| config.0.len() <= 2_000));
        }
    }
}
