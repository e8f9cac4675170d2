//! What the host must have for the class `container`.

use std::path::Path;

/// The oldest kernel that idmapped EROFS layers and the rest are there in.
const KERNEL_LEAST: (u32, u32) = (6, 1);
/// The cgroup controllers that limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it will do.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it will not do; empty when it does.
    pub remedy: String,
}

impl Check {
    fn new(name: &'static str, found: Result<String, String>, remedy: &str) -> Self {
        let ok = found.is_ok();
        let (Ok(detail) | Err(detail)) = found;
        let remedy = if ok { String::new() } else { remedy.to_owned() };
        Self {
            name,
            ok,
            detail,
            remedy,
        }
    }
}

/// Looks at this host.
#[must_use]
pub fn host_checks() -> Vec<Check> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let filesystems = read("/proc/filesystems");
    let modules = read(&format!("/lib/modules/{release}/modules.dep"));
    vec![
        Check::new("kernel", kernel(&release), "boot Linux 6.1 or later"),
        Check::new(
            "erofs",
            filesystem("erofs", &filesystems, &modules),
            "boot a kernel with CONFIG_EROFS_FS",
        ),
        Check::new(
            "overlayfs",
            filesystem("overlay", &filesystems, &modules),
            "boot a kernel with CONFIG_OVERLAY_FS",
        ),
        Check::new(
            "user namespaces",
            user_namespaces(&read("/proc/sys/user/max_user_namespaces")),
            "set the sysctl user.max_user_namespaces above 0, with CONFIG_USER_NS in the kernel",
        ),
        Check::new(
            "cgroups",
            cgroups(&read("/proc/self/mountinfo"), &read_v2_controllers()),
            "mount cgroup2 at /sys/fs/cgroup, or cgroup v1 with cpu, memory and pids",
        ),
        Check::new(
            "nft",
            program("nft", &std::env::var("PATH").unwrap_or_default()),
            "install the package nftables",
        ),
        // What functions write lies on disk, and what services do with `--disk`.
        Check::new(
            "ext4",
            filesystem("ext4", &filesystems, &modules),
            "boot a kernel with CONFIG_EXT4_FS, which functions and `--disk` need",
        ),
        Check::new(
            "loop devices",
            loop_devices(Path::new("/dev/loop-control").exists(), &modules),
            "boot a kernel with CONFIG_BLK_DEV_LOOP and give Skiff /dev/loop-control, which functions and `--disk` need",
        ),
        Check::new(
            "mke2fs",
            program("mke2fs", &std::env::var("PATH").unwrap_or_default()),
            "install the package e2fsprogs, which functions and `--disk` need",
        ),
        // Nothing needs it that is not configured.
        Check::new(
            "ipv6",
            Ok(ipv6(
                &read("/proc/net/if_inet6"),
                &read("/proc/net/ipv6_route"),
            )),
            "",
        ),
    ]
}

fn read(path: &str) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn read_v2_controllers() -> String {
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    if unified.is_empty() {
        return read("/sys/fs/cgroup/unified/cgroup.controllers");
    }
    unified
}

fn kernel(release: &str) -> Result<String, String> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_LEAST {
        return Ok(release.to_owned());
    }
    let (major, minor) = KERNEL_LEAST;
    Err(format!("{release} is older than {major}.{minor}"))
}

/// Built in or loaded already, or there as a module to load.
fn filesystem(name: &str, filesystems: &str, modules: &str) -> Result<String, String> {
    let listed = |line: &str| line.split_whitespace().next_back() == Some(name);
    if filesystems.lines().any(listed) {
        return Ok("in the kernel".to_owned());
    }
    let file = format!("/{name}.ko");
    let module = |line: &str| line.split(':').next().is_some_and(|m| m.contains(&file));
    if modules.lines().any(module) {
        return Ok("a module that can be loaded".to_owned());
    }
    Err("neither in the kernel nor a module".to_owned())
}

fn loop_devices(has_control: bool, modules: &str) -> Result<String, String> {
    match has_control {
        true => Ok("there".to_owned()),
        false => filesystem("loop", "", modules),
    }
}

fn user_namespaces(most: &str) -> Result<String, String> {
    match most.trim().parse::<u64>() {
        Ok(0) => Err("switched off: at most 0".to_owned()),
        Ok(most) => Ok(format!("at most {most}")),
        Err(_) => Err("not in the kernel".to_owned()),
    }
}

/// Which layout serves the controllers: v2, v1, or some here and some there.
fn cgroups(mountinfo: &str, v2_controllers: &str) -> Result<String, String> {
    let v1: Vec<&str> = mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - cgroup "))
        .flat_map(|(_, rest)| rest.split([' ', ',']))
        .collect();
    let v2: Vec<&str> = v2_controllers.split_whitespace().collect();
    let has_v2 = mountinfo.contains(" - cgroup2 ");
    let in_v2 = |name: &&str| has_v2 && v2.contains(name);
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !in_v2(name) && !v1.contains(name))
        .collect();
    if !missing.is_empty() {
        return Err(format!("without the controllers {}", missing.join(", ")));
    }
    let layout = match (
        CONTROLLERS.iter().filter(|name| in_v2(name)).count(),
        has_v2,
    ) {
        (count, _) if count == CONTROLLERS.len() => "v2",
        (_, true) => "hybrid",
        (_, false) => "v1",
    };
    Ok(layout.to_owned())
}

fn program(name: &str, path: &str) -> Result<String, String> {
    // Administrators' programs are not always on a user's path.
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    folders
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.is_file())
        .map(|file| file.display().to_string())
        .ok_or_else(|| format!("`{name}` is not on the path"))
}

/// Which interface IPv6 leads out by, from the kernel's lists of addresses and
/// of routes.
fn ipv6(addresses: &str, routes: &str) -> String {
    let global = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], [_, _, _, "00", _, _])
    };
    let default = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [to, "00", .., link] if link != "lo" && to.bytes().all(|b| b == b'0') => {
                Some(link.to_owned())
            }
            _ => None,
        }
    };
    let lacks = if addresses.is_empty() {
        "not in the kernel, or switched off"
    } else if !addresses.lines().any(global) {
        "this host has no address that is more than its link's"
    } else {
        match routes.lines().find_map(default) {
            Some(link) => return format!("leads out by {link}"),
            None => "no default route",
        }
    };
    format!("{lacks}: leave network.ipv6 off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_1_are_refused() {
        for good in ["6.1.0-18-amd64", "6.18.44", "7.0", "10.2.1"] {
            assert!(kernel(good).is_ok(), "{good}");
        }
        for bad in ["6.0.19", "5.15.0-100-generic", "", "unknown"] {
            assert!(kernel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_system_is_built_in_or_a_module() {
        let filesystems = "nodev\tproc\nnodev\toverlay\n\text4\n";
        let modules = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/lz4.ko\n";
        assert!(filesystem("overlay", filesystems, "").is_ok());
        assert!(filesystem("ext4", filesystems, "").is_ok());
        let with_loop = "kernel/drivers/block/loop.ko.xz:\n";
        assert!(loop_devices(true, "").is_ok() && loop_devices(false, with_loop).is_ok());
        assert!(loop_devices(false, "kernel/drivers/block/loopy.ko:\n").is_err());
        assert!(filesystem("erofs", filesystems, modules).is_ok());
        assert!(filesystem("lz4", filesystems, modules).is_err());
        assert!(filesystem("erofs", filesystems, "").is_err());
    }

    #[test]
    fn the_three_layouts_are_told_apart() {
        let v2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let v1 = "31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup memory rw,memory\n\
                  32 1 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  33 1 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let both = format!("{v1}{v2}");
        assert_eq!(cgroups(v2, "cpuset cpu io memory pids").unwrap(), "v2");
        assert_eq!(cgroups(v1, "").unwrap(), "v1");
        assert_eq!(cgroups(&both, "").unwrap(), "hybrid");
        assert_eq!(
            cgroups(v2, "cpu").unwrap_err(),
            "without the controllers memory, pids"
        );
        assert!(cgroups("", "cpu memory pids").is_err());
    }

    #[test]
    fn a_host_without_ipv6_is_told_from_one_with() {
        let none = "0".repeat(32);
        let loopback = format!("{:0>32} 01 80 10 80       lo\n", 1);
        let link = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n";
        let global = "20010db8000000000000000000000002 04 40 00 80     eth0\n";
        let rest = format!("{none} 00 {none} ffffffff 00000001 00000000 00200200");
        let no_route = format!("{none} 00 {rest}       lo\n");
        let route = format!("{no_route}{none} 00 {rest}     eth0\n");
        let cases = [
            ("", "", "not in the kernel"),
            (&*format!("{loopback}{link}"), &*route, "this host has no"),
            (
                &*format!("{loopback}{global}"),
                &*no_route,
                "no default route",
            ),
            (&*format!("{link}{global}"), &*route, "leads out by eth0"),
        ];
        for (addresses, routes, expected) in cases {
            let told = ipv6(addresses, routes);
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn a_failed_check_says_what_to_do_and_a_good_one_does_not() {
        let bad = Check::new("user namespaces", user_namespaces("0\n"), "do this");
        assert_eq!((bad.ok, bad.remedy.as_str()), (false, "do this"));
        let good = Check::new("user namespaces", user_namespaces("100\n"), "do this");
        assert_eq!((good.ok, good.remedy.as_str()), (true, ""));
        assert!(program("no-such-program", "/usr/bin").is_err());
        assert!(program("sh", "/usr/bin:/bin").is_ok());
        let checks = host_checks();
        assert_eq!(checks.len(), 10);
        assert!(checks.iter().any(|check| check.name == "ipv6" && check.ok));
    }
}
