//! Made-up kernels, modules and packages, for this crate's own tests.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::io::Write;

/// An ELF header of 64-bit x86, with a table of segments behind it.
fn elf(kind: u16, entry: u64, segments: u16) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..18].copy_from_slice(&kind.to_le_bytes());
    bytes[18..20].copy_from_slice(&62_u16.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.to_le_bytes());
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&segments.to_le_bytes());
    bytes[58..60].copy_from_slice(&64_u16.to_le_bytes());
    bytes
}

fn segment(kind: u32, address: u64, memory_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; 56];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[16..24].copy_from_slice(&address.to_le_bytes());
    bytes[24..32].copy_from_slice(&address.to_le_bytes());
    bytes[40..48].copy_from_slice(&memory_bytes.to_le_bytes());
    bytes
}

/// An ELF kernel that says this release, and has these bytes besides.
pub fn vmlinux(release: &str, more: &[u8]) -> Vec<u8> {
    let mut bytes = elf(2, 0x100_0040, 1);
    bytes.extend(segment(1, 0x100_0000, 0x1000));
    bytes.extend(b"\0Linux version %s (%s)\0Linux version ");
    bytes.extend(release.as_bytes());
    bytes.extend(b" (somebody@somewhere) (gcc) #1 SMP\n\0");
    bytes.extend(more);
    bytes
}

/// A program without a loader, with these bytes.
pub fn static_program(content: &[u8]) -> Vec<u8> {
    let mut bytes = elf(2, 0x40_0000, 1);
    bytes.extend(segment(1, 0x40_0000, 0x1000));
    bytes.extend(content);
    bytes
}

/// A module with these lines of `.modinfo`, beside its name.
pub fn module(name: &str, lines: &[&str]) -> Vec<u8> {
    let mut content = Vec::new();
    for line in lines {
        content.extend(line.as_bytes());
        content.push(0);
    }
    content.extend(format!("name={name}\0").as_bytes());
    let names = b"\0.shstrtab\0.modinfo\0";
    let mut bytes = elf(1, 0, 0);
    let names_at = bytes.len();
    bytes.extend(names);
    let content_at = bytes.len();
    bytes.extend(&content);
    let table = bytes.len();
    bytes[40..48].copy_from_slice(&(table as u64).to_le_bytes());
    bytes[60..62].copy_from_slice(&3_u16.to_le_bytes());
    bytes[62..64].copy_from_slice(&1_u16.to_le_bytes());
    bytes.extend([0; 64]);
    bytes.extend(section(1, names_at, names.len()));
    bytes.extend(section(11, content_at, content.len()));
    bytes
}

fn section(name: u32, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(&name.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
    bytes[32..40].copy_from_slice(&(length as u64).to_le_bytes());
    bytes
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

pub fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

pub fn xz(content: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut packed = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

/// An `ar` archive of these members.
pub fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let length = content.len();
        bytes.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{length:<10}`\n",
                0, 0, 0, 100_644
            )
            .as_bytes(),
        );
        bytes.extend(*content);
        bytes.extend(vec![b'\n'; length % 2]);
    }
    bytes
}

/// A ustar archive of these files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, content) in files {
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000001\0");
        header[148..157].copy_from_slice(b"        0");
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A bzImage that unpacks to this.
pub fn bzimage(content: &[u8]) -> Vec<u8> {
    let packed = zstd(content);
    let mut bytes = vec![0; 0x500];
    bytes[0x1f1] = 1;
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    bytes[0x248..0x24c].copy_from_slice(&0x100_u32.to_le_bytes());
    let length = u32::try_from(packed.len() + 4).unwrap();
    bytes[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    bytes.extend(packed);
    bytes.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
    bytes
}

/// A kernel as a distribution packs it.
#[derive(Debug, Clone)]
pub struct Made {
    pub release: String,
    /// A bzImage.
    pub kernel: Vec<u8>,
    /// Not there when it is empty.
    pub config: String,
    pub builtin: String,
    /// By their paths under `kernel`.
    pub modules: Vec<(String, Vec<u8>)>,
}

impl Default for Made {
    fn default() -> Self {
        Self::of("6.1.0-1-test")
    }
}

impl Made {
    /// One that can be a guest's.
    pub fn of(release: &str) -> Self {
        let as_modules = [
            "VIRTIO_MMIO",
            "VIRTIO_BLK",
            "HW_RANDOM_VIRTIO",
            "VIRTIO_VSOCKETS",
            "EROFS_FS",
            "OVERLAY_FS",
            "EXT4_FS",
            "VIRTIO_NET",
            "NF_TABLES",
        ];
        let built_in = [
            "ACPI",
            "BLK_DEV_INITRD",
            "DEVTMPFS",
            "PROC_FS",
            "SYSFS",
            "TMPFS",
            "TMPFS_XATTR",
            "EROFS_FS_XATTR",
            "CGROUPS",
            "MEMCG",
            "CGROUP_PIDS",
            "CFS_BANDWIDTH",
            "USER_NS",
            "PID_NS",
            "NET_NS",
            "UTS_NS",
            "IPC_NS",
            "SECCOMP_FILTER",
            "UNIX",
            "INET",
            "KVM_GUEST",
        ];
        let options = |names: &[&str], value| -> String {
            let lines = names.iter().map(|name| format!("CONFIG_{name}={value}\n"));
            lines.collect()
        };
        let magic = format!("vermagic={release} SMP preempt mod_unload modversions ");
        let module = |path: &str, depends: &str| {
            let name = path.rsplit('/').next().unwrap();
            let lines = [&*magic, &*format!("depends={depends}")];
            (format!("{path}.ko.xz"), xz(&module(name, &lines)))
        };
        Self {
            release: release.to_owned(),
            kernel: bzimage(&vmlinux(release, &[])),
            config: options(&as_modules, "m") + &options(&built_in, "y"),
            builtin: "kernel/fs/binfmt_script.ko\n".to_owned(),
            modules: vec![
                module("drivers/virtio/virtio", ""),
                module("drivers/virtio/virtio_mmio", "virtio"),
                module("drivers/block/virtio_blk", "virtio"),
                module("drivers/char/hw_random/virtio-rng", "virtio"),
                module("net/vmw_vsock/vmw_vsock_virtio_transport", "virtio"),
                module("fs/erofs/erofs", ""),
                module("fs/overlayfs/overlay", ""),
                module("fs/ext4/ext4", ""),
                module("drivers/net/virtio_net", "virtio"),
                module("net/netfilter/nf_tables", ""),
                module("drivers/net/unrelated", "missing"),
            ],
        }
    }

    /// Its files by their paths.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let release = &self.release;
        let mut files = vec![
            (format!("boot/vmlinuz-{release}"), self.kernel.clone()),
            (
                format!("boot/System.map-{release}"),
                b"ffffffff B\n".to_vec(),
            ),
            (
                format!("lib/modules/{release}/modules.builtin"),
                self.builtin.clone().into(),
            ),
        ];
        if !self.config.is_empty() {
            files.push((format!("boot/config-{release}"), self.config.clone().into()));
        }
        let modules = self.modules.iter();
        files.extend(modules.map(|(path, content)| {
            (
                format!("lib/modules/{release}/kernel/{path}"),
                content.clone(),
            )
        }));
        files
    }

    /// A Debian package of it.
    pub fn package(&self) -> Vec<u8> {
        let files = self.files();
        let entries: Vec<(String, &[u8])> = files
            .iter()
            .map(|(path, content)| (format!("./{path}"), &**content))
            .collect();
        let entries: Vec<(&str, &[u8])> = entries
            .iter()
            .map(|(path, content)| (&**path, *content))
            .collect();
        ar(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"control"),
            ("data.tar.xz", &xz(&tar(&entries))),
        ])
    }
}
