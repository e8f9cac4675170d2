//! IPv4 forwarding on the interfaces that lead out of the host.
//!
//! What was turned on here is noted in the lock folder, and turned off again
//! when the host's last server is gone; unless forwarding has become the
//! whole host's setting meanwhile, which is somebody else's.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use ipnet::IpNet;

use crate::error::{NetError, Step};
use crate::namespace::{get_sysctl, set_sysctl};
use crate::netlink::Socket;
use crate::route::{self, GROUP_BIT, Link, Route};
use crate::share;

/// The note: names of interfaces, one a line.
pub(crate) const NOTE: &str = "forwarding";

/// Lets answers in where default routes and those to what is `allowed` lead
/// out; the host's other interfaces stay as they are.
pub(crate) fn forward(folder: &Path, socket: &Socket, allowed: &[IpNet]) -> Result<(), NetError> {
    let _lock = share::lock(folder)?;
    let uplinks = uplinks(socket, allowed).step("find the uplinks for", folder.display())?;
    let mut noted = read_note(folder);
    for link in uplinks {
        let name = sysctl(&link);
        if get_sysctl(&name).step("read", &name)?.as_deref() == Some("0") {
            noted.insert(link);
            write_note(folder, &noted)?;
            set_sysctl(&name, "1").step("turn on", &name)?;
        }
    }
    Ok(())
}

/// Turns off what was turned on, when no server is left that needs it.
pub(crate) fn stop_if_last(folder: &Path) -> Result<(), NetError> {
    let noted = read_note(folder);
    if noted.is_empty() {
        return Ok(());
    }
    let _lock = share::lock(folder)?;
    if share::any_alive(folder)? {
        return Ok(());
    }
    let everywhere = get_sysctl("ipv4/conf/all/forwarding").step("read", "forwarding")?;
    if everywhere.as_deref() == Some("0") {
        for link in &noted {
            let name = sysctl(link);
            set_sysctl(&name, "0").step("turn off", &name)?;
        }
    }
    std::fs::remove_file(folder.join(NOTE)).step("remove the note in", folder.display())
}

fn sysctl(link: &str) -> String {
    format!("ipv4/conf/{link}/forwarding")
}

/// A note that cannot be read is one that was never finished.
fn read_note(folder: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(folder.join(NOTE)).unwrap_or_default();
    text.lines()
        .filter(|name| is_name(name))
        .map(str::to_owned)
        .collect()
}

/// It becomes a part of a path.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() < 16 && name != "." && name != ".." && !name.contains('/')
}

fn write_note(folder: &Path, noted: &BTreeSet<String>) -> Result<(), NetError> {
    let text: String = noted.iter().map(|name| format!("{name}\n")).collect();
    std::fs::write(folder.join(NOTE), text).step("write the note in", folder.display())
}

/// Names of the interfaces that lead out. Another server's instances are no
/// way out, whatever is allowed.
fn uplinks(socket: &Socket, allowed: &[IpNet]) -> io::Result<BTreeSet<String>> {
    let leads_out = |route: &Route| {
        let to = route.to;
        to.addr().is_ipv4()
            && (to.prefix_len() == 0 || allowed.iter().any(|net| overlaps(*net, to)))
    };
    let routes = route::routes(socket)?;
    let indices: BTreeSet<u32> = routes
        .iter()
        .filter(|route| leads_out(route))
        .map(|route| route.index)
        .collect();
    let links = route::links(socket)?.into_iter();
    let is_uplink = |link: &Link| {
        let ours = link.group & GROUP_BIT != 0;
        indices.contains(&link.index) && !ours && is_name(&link.name)
    };
    Ok(links.filter(is_uplink).map(|link| link.name).collect())
}

/// Whether two networks have addresses in common.
pub(crate) fn overlaps(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}
