//! The numeric user behind an image's `USER`, looked up in the image's own
//! passwd and group files. Pure; nothing of the host is consulted.

use crate::limits::GROUPS_MAX;

const NAME_CHARS_MAX: usize = 256;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Further groups, sorted, without the first.
    pub additional_gids: Vec<u32>,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// Finds the user that `user` names: `""` is root; `uid`, `uid:gid`, `name`,
/// `name:group` and their mixtures as image-spec, config.md § User has them.
/// Given no group, a user that passwd knows is in its groups there; given one,
/// in that one alone.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    if user.len() > NAME_CHARS_MAX {
        return Err("it is over 256 characters".to_owned());
    }
    let entry = find_user(if name.is_empty() { "0" } else { name }, passwd);
    let (uid, first_gid) = match (&entry, number(name)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) if name.is_empty() => (0, 0),
        (None, None) => return Err(format!("its etc/passwd has no `{name}`")),
    };
    if let Some(group_name) = group_name.filter(|g| !g.is_empty()) {
        let gid = find_group(group_name, group)
            .ok_or_else(|| format!("its etc/group has no `{group_name}`"))?;
        return Ok(User {
            uid,
            gid,
            additional_gids: Vec::new(),
        });
    }
    Ok(User {
        uid,
        gid: first_gid,
        additional_gids: entry.map_or_else(Vec::new, |e| groups_of(e.name, first_gid, group)),
    })
}

/// By name first: a name may look like a number.
fn find_user<'a>(wanted: &str, passwd: &'a str) -> Option<PasswdEntry<'a>> {
    let entries = || passwd.lines().filter_map(passwd_entry);
    entries().find(|e| e.name == wanted).or_else(|| {
        let uid = number(wanted)?;
        entries().find(|e| e.uid == uid)
    })
}

/// `name:password:uid:gid:…` (passwd(5)).
fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    Some(PasswdEntry { name, uid, gid })
}

fn find_group(wanted: &str, group: &str) -> Option<u32> {
    group
        .lines()
        .filter_map(group_entry)
        .find(|(name, _, _)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| number(wanted))
}

/// `name:password:gid:members` (group(5)).
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or("")))
}

fn groups_of(name: &str, first: u32, group: &str) -> Vec<u32> {
    let mut gids: Vec<u32> = group
        .lines()
        .filter_map(group_entry)
        .filter(|(_, gid, members)| *gid != first && members.split(',').any(|m| m == name))
        .map(|(_, gid, _)| gid)
        .take(GROUPS_MAX)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// Digits only, and not the id that means "no change" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let id: u32 = if digits {
        text.parse().ok()?
    } else {
        return None;
    };
    (id != u32::MAX).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/srv:/bin/sh\n\
        7:x:70:71::/:/bin/sh\nhuge:x:4294967295:0::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nvideo:x:44:app\napp:x:1001:app\n";

    fn ids(uid: u32, gid: u32, more: &[u32]) -> Result<User, String> {
        Ok(User {
            uid,
            gid,
            additional_gids: more.to_vec(),
        })
    }

    #[test]
    fn users_are_found_in_every_form() {
        let table = [
            ("", ids(0, 0, &[10])),
            ("root", ids(0, 0, &[10])),
            ("0", ids(0, 0, &[10])),
            ("app", ids(1000, 1001, &[10, 44])),
            ("1000", ids(1000, 1001, &[10, 44])),
            ("app:", ids(1000, 1001, &[10, 44])),
            ("app:video", ids(1000, 44, &[])),
            ("app:55", ids(1000, 55, &[])),
            ("5:6", ids(5, 6, &[])),
            ("5", ids(5, 0, &[])),
            (":wheel", ids(0, 10, &[])),
            ("7", ids(70, 71, &[])),
        ];
        for (user, expected) in table {
            assert_eq!(resolve(user, PASSWD, GROUP), expected, "{user}");
        }
        assert_eq!(resolve("", "", ""), ids(0, 0, &[]));
        assert_eq!(resolve("12:13", "", ""), ids(12, 13, &[]));
    }

    #[test]
    fn who_is_unknown_is_named() {
        let wrong = [
            "nobody",
            "app:none",
            "-1",
            "+5",
            "4294967295",
            "99999999999",
            "huge",
        ];
        for user in wrong {
            let error = resolve(user, PASSWD, GROUP).unwrap_err();
            assert!(error.contains("has no"), "{user}: {error}");
        }
    }
}
