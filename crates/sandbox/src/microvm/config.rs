//! What a monitor is told of its machine.

use std::fs::File;
use std::io::{self, Seek, Write};

use serde_json::{Value, json};
use skiff_wire::launcher::{MACHINE_MAC, MACHINE_MTU};

use crate::Needs;

/// The agent's disk of layers, the machine's first.
pub const LAYERS: &str = "layers";
/// The disk of what an application writes, the second of a machine that has
/// one.
pub const SCRATCH: &str = "scratch";
/// Where the monitor's sockets are, in its folder: vsock's, and its own.
pub const VSOCK: &str = "vsock";
pub const CONTROL: &str = "control";
/// Where one that is not ours has its API.
pub const API: &str = "api";
/// The first address that a guest may have.
pub const GUEST_CID: u32 = 3;
/// The kernel, the initramfs and the disk, as a monitor that is not ours finds
/// them: open, by the numbers that the launcher gives them.
pub const GIVEN_KERNEL: &str = "/proc/self/fd/3";
pub const GIVEN_INITRAMFS: &str = "/proc/self/fd/4";
pub const GIVEN_DISK: &str = "/proc/self/fd/5";
/// For a monitor whose own words would keep modules from being loaded.
pub const BOOT_ARGS: &str = "reboot=k panic=1 8250.nr_uarts=0 swiotlb=noforce pci=off";
/// The kernel and the initramfs, by the numbers that the launcher gives them.
const KERNEL: &str = "fd:4";
const INITRAMFS: &str = "fd:5";
/// Behind them.
const TAP: u8 = 6;
/// Kernel, modules, agent, and the pages of a machine that has no more.
const OVERHEAD_BASE_MIB: u64 = 96;
/// The kernel's notes on each page: 64 bytes of 4,096.
const OVERHEAD_SHARE: u64 = 64;

/// MiB of a machine's memory for an application that may have so much: what
/// its kernel and agent take comes on top.
pub const fn machine_mib(application_mib: u64) -> u64 {
    application_mib + OVERHEAD_BASE_MIB + application_mib.div_ceil(OVERHEAD_SHARE)
}

/// vCPUs for thousandths of a CPU.
pub const fn vcpus(cpu_millis: u32) -> u32 {
    let vcpus = cpu_millis.div_ceil(1000);
    if vcpus == 0 { 1 } else { vcpus }
}

/// The configuration, as a file at its beginning. With egress the launcher
/// gives the monitor a tap.
pub fn file(memory_mib: u64, vcpus: u32, needs: Needs) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("monitor-config", flags)?);
    let text = config(memory_mib, vcpus, needs).to_string();
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn config(memory_mib: u64, vcpus: u32, needs: Needs) -> Value {
    let mut disks = vec![json!({"disk_id": LAYERS, "is_read_only": true})];
    if needs.disk {
        disks.push(json!({"disk_id": SCRATCH}));
    }
    let interface = json!({
        "iface_id": "eth0",
        "tap_fd": TAP,
        "guest_mac": MACHINE_MAC.map(|byte| format!("{byte:02x}")).join(":"),
        "mtu": MACHINE_MTU,
    });
    let interfaces: Vec<Value> = needs.egress.then_some(interface).into_iter().collect();
    json!({
        "boot-source": {"kernel_image_path": KERNEL, "initrd_path": INITRAMFS},
        "machine-config": {"vcpu_count": vcpus, "mem_size_mib": memory_mib},
        "window-disks": disks,
        "vsock": {"guest_cid": GUEST_CID, "uds_path": VSOCK},
        "entropy": {},
        "network-interfaces": interfaces,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_egress_has_no_interface() {
        let needs = Needs::default();
        assert_eq!(config(128, 1, needs)["network-interfaces"], json!([]));
        let needs = Needs {
            egress: true,
            ..needs
        };
        let interfaces = &config(128, 1, needs)["network-interfaces"];
        assert_eq!(interfaces[0]["guest_mac"], "02:73:6b:00:00:02");
        assert_eq!(interfaces[0]["tap_fd"], 6);
    }

    #[test]
    fn a_machine_has_what_its_application_may_use_and_more() {
        assert_eq!(machine_mib(256), 256 + 96 + 4);
        for mib in [1, 128, 4096, 1 << 20] {
            assert!(machine_mib(mib) > mib + mib / 64);
        }
        assert_eq!([1, 999, 1000, 1001, 4000].map(vcpus), [1, 1, 1, 2, 4]);
    }
}
