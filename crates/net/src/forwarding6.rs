//! The host's IPv6 forwarding, which is one switch for all interfaces.
//!
//! Flipping it makes a router of every interface: none heeds router
//! advertisements any more, and the kernel forgets the default routes that
//! it learned from them. So each is told at once to be what it was before,
//! and to heed advertisements all the same meanwhile (accept_ra 2), which
//! keeps the routes. What the host would now forward between its other
//! interfaces is dropped by the table's guard.
//!
//! ```text
//!  note ──▶ accept_ra 1→2 ──▶ the switch ──▶ forwarding, accept_ra as noted ──▶ note emptied
//! ```
//! The note in the lock folder says that it was turned on here, and of an
//! interrupted flip what each interface was. The last server turns it off
//! again, unless somebody else has turned it on meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::error::{NetError, Step};
use crate::namespace::{get_sysctl, set_sysctl};
use crate::share;
use crate::uplink::is_name;

/// Lines of an interface's name, its `forwarding` and its `accept_ra`.
pub(crate) const NOTE: &str = "forwarding6";
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
const SWITCH: &str = "ipv6/conf/all/forwarding";

/// What an interface was; `default` is the one of those to come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Was {
    forwarding: String,
    accept_ra: String,
}

type Links = BTreeMap<String, Was>;

/// Whether the host forwards for instances' sake only, now or once
/// [`turn_on`] has done its work.
pub(crate) fn is_ours(folder: &Path) -> Result<bool, NetError> {
    if !is_on()? {
        return Ok(true);
    }
    match read_note(folder)? {
        None => Ok(false),
        Some(pending) => Ok(!pending.is_empty() || !is_anothers()?),
    }
}

/// Turns it on unless it is.
pub(crate) fn turn_on(folder: &Path) -> Result<(), NetError> {
    let _lock = share::lock(folder)?;
    match (read_note(folder)?, is_on()?) {
        (None, true) => Ok(()),
        (Some(pending), true) => settle(folder, &pending),
        (pending, false) => flip(folder, pending.unwrap_or_default(), "1"),
    }
}

/// Turns off what was turned on, when no server is left that needs it.
pub(crate) fn stop_if_last(folder: &Path) -> Result<(), NetError> {
    if read_note(folder)?.is_none() {
        return Ok(());
    }
    let _lock = share::lock(folder)?;
    let Some(pending) = read_note(folder)? else {
        return Ok(());
    };
    if share::any_alive(folder)? {
        return Ok(());
    }
    settle(folder, &pending)?;
    if is_on()? && !is_anothers()? {
        flip(folder, Links::new(), "0")?;
    }
    std::fs::remove_file(folder.join(NOTE)).step("remove the note in", folder.display())
}

fn is_on() -> Result<bool, NetError> {
    let value = get_sysctl(SWITCH).step("read", SWITCH)?;
    Ok(value.as_deref() == Some("1"))
}

/// Whoever flips the switch and leaves it there turns on the interfaces to
/// come, which this program turns off again.
fn is_anothers() -> Result<bool, NetError> {
    let name = "ipv6/conf/default/forwarding";
    let value = get_sysctl(name).step("read", name)?;
    Ok(value.as_deref() == Some("1"))
}

/// Flips the switch. What was noted before an interruption is older than what
/// is found, and counts.
fn flip(folder: &Path, noted: Links, to: &str) -> Result<(), NetError> {
    let mut links = links().step("read", SETTINGS)?;
    links.extend(noted);
    write_note(folder, &links)?;
    for (link, was) in &links {
        if was.accept_ra == "1" {
            set(link, "accept_ra", "2")?;
        }
    }
    set("all", "forwarding", to)?;
    settle(folder, &links)
}

/// Makes every interface what it was.
fn settle(folder: &Path, links: &Links) -> Result<(), NetError> {
    if links.is_empty() {
        return Ok(());
    }
    for (link, was) in links {
        set(link, "forwarding", &was.forwarding)?;
    }
    for (link, was) in links {
        set(link, "accept_ra", &was.accept_ra)?;
    }
    write_note(folder, &Links::new())
}

fn set(link: &str, setting: &str, value: &str) -> Result<(), NetError> {
    let name = format!("ipv6/conf/{link}/{setting}");
    set_sysctl(&name, value).step("set", &name)
}

/// What every interface is.
fn links() -> io::Result<Links> {
    let mut links = Links::new();
    for entry in std::fs::read_dir(SETTINGS)? {
        let Ok(link) = entry?.file_name().into_string() else {
            continue;
        };
        let get = |setting| get_sysctl(&format!("ipv6/conf/{link}/{setting}"));
        // One that is gone by now has neither.
        if let (Some(forwarding), Some(accept_ra)) = (get("forwarding")?, get("accept_ra")?)
            && link != "all"
        {
            let was = Was {
                forwarding,
                accept_ra,
            };
            links.insert(link, was);
        }
    }
    Ok(links)
}

fn read_note(folder: &Path) -> Result<Option<Links>, NetError> {
    match std::fs::read_to_string(folder.join(NOTE)) {
        Ok(text) => Ok(Some(text.lines().filter_map(read_line).collect())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).step("read the note in", folder.display()),
    }
}

/// The name becomes a part of a path.
fn read_line(line: &str) -> Option<(String, Was)> {
    let mut words = line.split(' ').map(str::to_owned);
    let link = words.next().filter(|name| is_name(name) && name != "all")?;
    let was = Was {
        forwarding: words.next().filter(|value| is_value(value))?,
        accept_ra: words.next().filter(|value| is_value(value))?,
    };
    Some((link, was))
}

fn is_value(text: &str) -> bool {
    ["0", "1", "2"].contains(&text)
}

fn write_note(folder: &Path, links: &Links) -> Result<(), NetError> {
    let line =
        |(link, was): (&String, &Was)| format!("{link} {} {}\n", was.forwarding, was.accept_ra);
    let text: String = links.iter().map(line).collect();
    std::fs::write(folder.join(NOTE), text).step("write the note in", folder.display())
}
