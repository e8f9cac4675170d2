use std::collections::HashSet;
use std::path::{Path, PathBuf};

use skiff_kvm::arch::layout;
use skiff_virtio::vsock::GUEST_CIDS;

use super::{Config, MAX_CAPACITY_MIB, MAX_VCPUS};
use crate::inherited;

/// The longest configuration file.
const MAX_BYTES: u64 = 1 << 20;

/// The longest name of a disk or an interface.
const MAX_NAME: usize = 64;
/// Standard input, output and error are something else.
const FIRST_DESCRIPTOR: i32 = 3;
/// The least that IPv4 has (RFC 791).
const MIN_MTU: u16 = 68;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is longer than any that makes sense.
    #[error("the configuration {} is longer than {MAX_BYTES} bytes", .path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// It is no JSON of this shape.
    #[error("the configuration {} is wrong", .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        #[source]
        source: serde_json::Error,
    },
    /// A value that no machine can have.
    #[error("{field} is {value}: {must}")]
    Value {
        /// Which.
        field: String,
        /// What it is.
        value: String,
        /// What it must be.
        must: String,
    },
}

impl Config {
    /// Reads a file and checks it.
    ///
    /// # Errors
    /// When it is not a configuration that a machine can have.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = read_bounded(path)?;
        let config: Self = serde_json::from_slice(&bytes).map_err(|source| ConfigError::Shape {
            path: path.to_owned(),
            source,
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks what its types cannot say.
    ///
    /// # Errors
    /// When a machine cannot be so.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field: &str, value: &dyn std::fmt::Display, must: String| {
            Err(ConfigError::Value {
                field: field.into(),
                value: value.to_string(),
                must,
            })
        };
        let machine = &self.machine_config;
        if !(1..=MAX_VCPUS).contains(&machine.vcpu_count) {
            let must = format!("it must be from 1 to {MAX_VCPUS}");
            return wrong("machine-config.vcpu_count", &machine.vcpu_count, must);
        }
        let memory = layout::MIN_MEMORY_MIB..=layout::MAX_MEMORY_MIB;
        if !memory.contains(&machine.mem_size_mib) {
            let must = format!("it must be from {} to {}", memory.start(), memory.end());
            return wrong("machine-config.mem_size_mib", &machine.mem_size_mib, must);
        }
        if let Some(vsock) = &self.vsock
            && !GUEST_CIDS.contains(&vsock.guest_cid)
        {
            let must = format!(
                "it must be from {} to {}",
                GUEST_CIDS.start(),
                GUEST_CIDS.end()
            );
            return wrong("vsock.guest_cid", &vsock.guest_cid, must);
        }
        let others = [self.vsock.is_some(), self.entropy.is_some()];
        let disks = self.window_disks.len() + self.drives.len();
        let devices =
            disks + self.network_interfaces.len() + others.iter().filter(|there| **there).count();
        if devices > layout::max_devices() {
            let must = format!("a machine has {} devices at most", layout::max_devices());
            return wrong("the number of devices", &devices, must);
        }
        let mut names = HashSet::new();
        self.check_window_disks(&mut names)?;
        self.check_drives(names)?;
        self.check_interfaces()
    }

    fn check_interfaces(&self) -> Result<(), ConfigError> {
        let (mut names, mut descriptors) = (HashSet::new(), HashSet::new());
        for (index, interface) in self.network_interfaces.iter().enumerate() {
            let wrong = |field, must: &str| {
                Err(ConfigError::Value {
                    field: format!("network-interfaces[{index}].{field}"),
                    value: format!("{:?}", interface.iface_id),
                    must: must.into(),
                })
            };
            if let Err(must) = take_name(&mut names, &interface.iface_id) {
                return wrong("iface_id", must);
            }
            if interface.host_dev_name.is_some() == interface.tap_fd.is_some() {
                return wrong("iface_id", "it must have host_dev_name or tap_fd");
            }
            if let Some(tap) = interface.tap_fd
                && (tap < FIRST_DESCRIPTOR || !descriptors.insert(tap))
            {
                return wrong("tap_fd", "it must be 3 or more, and of no other interface");
            }
            // Multicast addresses are nobody's own.
            if interface.guest_mac.is_some_and(|mac| mac.0[0] & 1 != 0) {
                return wrong("guest_mac", "it must be no multicast address");
            }
            if interface.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
                return wrong("mtu", "it must be 68 or more");
            }
        }
        Ok(())
    }

    fn check_window_disks<'a>(&'a self, names: &mut HashSet<&'a str>) -> Result<(), ConfigError> {
        for (index, disk) in self.window_disks.iter().enumerate() {
            let wrong = |field, value: String, must: String| {
                Err(ConfigError::Value {
                    field: format!("window-disks[{index}].{field}"),
                    value,
                    must,
                })
            };
            if let Err(must) = take_name(names, &disk.disk_id) {
                return wrong("disk_id", format!("{:?}", disk.disk_id), must.into());
            }
            if !(1..=MAX_CAPACITY_MIB).contains(&disk.capacity_mib) {
                let must = format!("it must be from 1 to {MAX_CAPACITY_MIB}");
                return wrong("capacity_mib", disk.capacity_mib.to_string(), must);
            }
        }
        Ok(())
    }

    fn check_drives<'a>(&'a self, mut names: HashSet<&'a str>) -> Result<(), ConfigError> {
        let mut root = None;
        for (index, drive) in self.drives.iter().enumerate() {
            let name = &drive.drive_id;
            let wrong = |field, must: &str| {
                Err(ConfigError::Value {
                    field: format!("drives[{index}].{field}"),
                    value: format!("{name:?}"),
                    must: must.into(),
                })
            };
            if let Err(must) = take_name(&mut names, name) {
                return wrong("drive_id", must);
            }
            if drive.is_root_device && root.replace(name).is_some() {
                return wrong("is_root_device", "another drive is the root already");
            }
        }
        Ok(())
    }

    /// The disks in the guest's order: the root first.
    pub(crate) fn ordered_drives(&self) -> impl Iterator<Item = &super::Drive> {
        let roots = self.drives.iter().filter(|drive| drive.is_root_device);
        roots.chain(self.drives.iter().filter(|drive| !drive.is_root_device))
    }

    /// The command line, with the root when a disk has it.
    pub(crate) fn command_line(&self) -> String {
        let mut line = self.boot_source.boot_args.clone();
        if let Some(root) = self.drives.iter().find(|drive| drive.is_root_device) {
            let access = if root.is_read_only { "ro" } else { "rw" };
            // There are fewer disks than letters.
            let letter = (b'a'..=b'z').nth(self.window_disks.len());
            let letter = char::from(letter.unwrap_or(b'a'));
            line.push_str(&format!(" root=/dev/vd{letter} {access}"));
        }
        line
    }
}

/// Gives a device its name, or says what a name must be.
fn take_name<'a>(names: &mut HashSet<&'a str>, name: &'a str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err("it must be of 1 to 64 letters, digits, _ and -");
    }
    if !names.insert(name) {
        return Err("another one has that name");
    }
    Ok(())
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read;

    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match inherited::named(path).map_err(read)? {
        Some(file) => file,
        None => std::fs::File::open(path).map_err(read)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::Long {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use skiff_base::chain;
    use skiff_virtio::Limits;

    use super::*;
    use crate::config::{RateLimits, WindowDisk};

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path()).map_err(|error| chain(&error).to_string())
    }

    fn with(section: &str) -> String {
        format!(r#"{{"boot-source":{{"kernel_image_path":"/k"}}{section}}}"#)
    }

    #[test]
    fn what_firecracker_reads_is_read() {
        let config = read(
            r#"{
                "boot-source": {"kernel_image_path": "/k", "initrd_path": "/i", "boot_args": "quiet"},
                "drives": [
                    {"drive_id": "data", "path_on_host": "/d", "is_read_only": false},
                    {"drive_id": "root", "path_on_host": "/r", "is_root_device": true, "is_read_only": true}
                ],
                "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
                "vsock": {"guest_cid": 3, "uds_path": "/v"},
                "entropy": {}
            }"#,
        )
        .unwrap();
        assert_eq!(config.command_line(), "quiet root=/dev/vda ro");
        let order: Vec<_> = config
            .ordered_drives()
            .map(|drive| drive.drive_id.as_str())
            .collect();
        assert_eq!(order, ["root", "data"]);
        assert!(config.entropy.is_some() && config.serial.is_none());
    }

    #[test]
    fn what_firecracker_tells_of_a_machine_is_read() {
        let config = read(
            r#"{
                "balloon": null, "cpu-config": null, "memory-hotplug": null, "mmds-config": null,
                "pmem": [], "logger": null, "metrics": null, "vsock": null, "entropy": null,
                "boot-source": {"kernel_image_path": "/k", "initrd_path": null, "boot_args": null},
                "drives": [{
                    "drive_id": "root", "partuuid": null, "is_root_device": true,
                    "cache_type": "Unsafe", "is_read_only": false, "path_on_host": "/r",
                    "rate_limiter": null, "io_engine": "Sync", "socket": null
                }],
                "machine-config": {
                    "vcpu_count": 2, "mem_size_mib": 1024, "smt": false,
                    "track_dirty_pages": false, "huge_pages": "None"
                },
                "network-interfaces": [{
                    "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": null, "mtu": null,
                    "rx_rate_limiter": null, "tx_rate_limiter": null
                }]
            }"#,
        )
        .unwrap();
        assert!(config.boot_source.boot_args.starts_with("reboot=k"));
        assert_eq!(config.machine_config.vcpu_count, 2);
    }

    #[test]
    fn interfaces_are_of_a_tap_by_its_name_or_its_descriptor() {
        let config = read(&with(
            r#","network-interfaces":[
                {"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"06:00:AC:10:00:02",
                 "tx_rate_limiter":{"ops":{"size":1,"refill_time":1}}},
                {"iface_id":"eth1","tap_fd":9,"mtu":9000}
            ]"#,
        ))
        .unwrap();
        let mac = config.network_interfaces[0].guest_mac.unwrap();
        assert_eq!(mac.0, [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(String::from(mac), "06:00:ac:10:00:02");
        for (fields, said) in [
            ("", "host_dev_name or tap_fd"),
            (
                r#","host_dev_name":"a","tap_fd":9"#,
                "host_dev_name or tap_fd",
            ),
            (r#","tap_fd":2"#, "it must be 3 or more"),
            (
                r#","tap_fd":9,"guest_mac":"01:00:00:00:00:00""#,
                "multicast",
            ),
            (
                r#","tap_fd":9,"guest_mac":"0:00:00:00:00:00""#,
                "no address",
            ),
            (
                r#","tap_fd":9,"guest_mac":"00:00:00:00:00:00:00""#,
                "no address",
            ),
            (
                r#","tap_fd":9,"guest_mac":"00:00:00:00:00:+1""#,
                "no address",
            ),
            (r#","tap_fd":9,"mtu":67"#, "68 or more"),
            (
                r#","tap_fd":9},{"iface_id":"a","tap_fd":8"#,
                "another one has that name",
            ),
            (
                r#","tap_fd":9},{"iface_id":"b","tap_fd":9"#,
                "of no other interface",
            ),
        ] {
            let text = format!(r#","network-interfaces":[{{"iface_id":"a"{fields}}}]"#);
            let error = read(&with(&text)).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_limit_without_a_size_or_a_time_is_none() {
        let limits = |text: &str| {
            let limits: RateLimits = serde_json::from_str(text).unwrap();
            limits.limits()
        };
        let bucket = |size: u64, time: u64| format!(r#"{{"size":{size},"refill_time":{time}}}"#);
        for none in [
            "{}".into(),
            format!(r#"{{"ops":{}}}"#, bucket(0, 1)),
            format!(r#"{{"bandwidth":{}}}"#, bucket(1, 0)),
        ] {
            assert_eq!(limits(&none), Limits::default(), "{none}");
        }
        let both = limits(&format!(
            r#"{{"bandwidth":{},"ops":{}}}"#,
            bucket(5, 1),
            bucket(6, 1)
        ));
        assert_eq!(both.bytes.map(|bucket| bucket.size), Some(5));
        assert_eq!(both.operations.map(|bucket| bucket.size), Some(6));
    }

    #[test]
    fn disks_of_windows_come_before_the_root() {
        let config = read(&with(
            r#","drives":[{"drive_id":"r","path_on_host":"/r","is_root_device":true}],
            "window-disks":[
                {"disk_id":"layers","is_read_only":true},
                {"disk_id":"scratch","capacity_mib":1024}
            ]"#,
        ))
        .unwrap();
        assert!(config.command_line().ends_with(" root=/dev/vdc rw"));
        let sectors: Vec<_> = config
            .window_disks
            .iter()
            .map(WindowDisk::sectors)
            .collect();
        assert_eq!(sectors, [1 << 35, 1 << 21]);
        assert!(config.window_disks[0].is_read_only && !config.window_disks[1].is_read_only);
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = read(&with("")).unwrap();
        assert_eq!(
            config.machine_config,
            super::super::MachineConfig::default()
        );
        assert!(config.command_line().starts_with("reboot=k panic=1"));
    }

    #[test]
    fn what_is_wrong_is_said_with_where_and_what_to_do() {
        let drive = r#"{"drive_id":"a","path_on_host":"/a","is_root_device":true}"#;
        let nineteen: Vec<_> = (0..20)
            .map(|n| format!(r#"{{"drive_id":"d{n}","path_on_host":"/a"}}"#))
            .collect();
        for (text, said) in [
            ("{}".into(), "boot-source"),
            (with(r#","ballon":{}"#), "unknown field `ballon`"),
            (with(r#","balloon":{}"#), "this monitor does not have it"),
            (
                with(r#","pmem":[{"id":"a"}]"#),
                "this monitor does not have it",
            ),
            (
                with(r#","entropy":{"rate_limiter":{}}"#),
                "this monitor does not have it",
            ),
            (
                with(r#","machine-config":{"vcpu_count":0,"mem_size_mib":128}"#),
                "machine-config.vcpu_count is 0: it must be from 1 to 32",
            ),
            (
                with(r#","machine-config":{"vcpu_count":1,"mem_size_mib":1}"#),
                "machine-config.mem_size_mib is 1",
            ),
            (
                with(r#","machine-config":{"vcpu_count":300,"mem_size_mib":1}"#),
                "invalid value: integer `300`",
            ),
            (
                with(r#","drives":[{"drive_id":"a/b","path_on_host":"/a"}]"#),
                "drives[0].drive_id",
            ),
            (
                with(&format!(r#","drives":[{drive},{drive}]"#)),
                "another one has that name",
            ),
            (
                with(&format!(
                    r#","drives":[{drive},{}]"#,
                    drive.replace(r#""a""#, r#""b""#)
                )),
                "another drive is the root",
            ),
            (
                with(&format!(
                    r#","drives":[{drive}],"window-disks":[{{"disk_id":"a"}}]"#
                )),
                "drives[0].drive_id is \"a\": another one has that name",
            ),
            (
                with(r#","window-disks":[{"disk_id":"a","capacity_mib":0}]"#),
                "window-disks[0].capacity_mib is 0: it must be from 1 to 1073741824",
            ),
            (
                with(&format!(r#","drives":[{}]"#, nineteen.join(","))),
                "a machine has 19 devices at most",
            ),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_without_an_end_is_refused() {
        let error = Config::read(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(error, ConfigError::Long { .. }));
        let error = Config::read(Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"));
    }
}
