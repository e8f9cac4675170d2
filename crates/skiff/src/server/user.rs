//! Who the server is once it has no need of root any more.

use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{Gid, Uid};

use super::home::give;

/// The account that parses what comes from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: Uid,
    pub gid: Gid,
    /// Whether the process has to become this user: it was started as root.
    pub change: bool,
}

impl User {
    /// The configured account when started as root, else who started it.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn of_server(name: &str) -> anyhow::Result<Self> {
        let uid = rustix::process::getuid();
        if !uid.is_root() {
            return Ok(Self {
                uid,
                gid: rustix::process::getgid(),
                change: false,
            });
        }
        let (uid, gid) = look_up(name)?;
        if uid == 0 {
            bail!("the setting `user` is root: name an account without privileges, or a number");
        }
        Ok(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            change: true,
        })
    }

    /// Gives a path to the user, if the process can.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn own(&self, path: &Path) -> anyhow::Result<()> {
        if self.change {
            give(path, self.uid, self.gid)
        } else {
            Ok(())
        }
    }

    /// Does something in folders that the user owns, as the user: root would
    /// follow whatever links somebody in the user's place has laid there.
    /// Called before there is a second thread.
    ///
    /// # Errors
    /// Those of the work, or when the kernel refuses the change.
    pub fn acting<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
        if !self.change {
            return work();
        }
        let (root, root_group) = (Uid::ROOT, Gid::ROOT);
        set_thread_res_gid(root_group, self.gid, root_group)
            .context("the server's group cannot be taken on")?;
        set_thread_res_uid(root, self.uid, root).context("the server's user cannot be taken on")?;
        let done = work();
        set_thread_res_uid(root, root, root).context("root cannot be taken up again")?;
        set_thread_res_gid(root_group, root_group, root_group)
            .context("root's group cannot be taken up again")?;
        done
    }

    /// Becomes the user for ever: no root, no capability, no way back.
    /// Called before there is a second thread.
    ///
    /// # Errors
    /// When the kernel refuses a step: the process must not go on.
    pub fn become_it(&self) -> anyhow::Result<()> {
        use rustix::thread::{
            set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
        };
        if self.change {
            set_thread_groups(&[]).context("the groups of root cannot be left")?;
            set_thread_res_gid(self.gid, self.gid, self.gid)
                .context("the group of root cannot be left")?;
            // Leaving user 0 for another clears every capability, capabilities(7).
            set_thread_res_uid(self.uid, self.uid, self.uid).context("root cannot be left")?;
        }
        set_no_new_privs(true).context("new privileges cannot be ruled out")?;
        let held = rustix::thread::capabilities(None).context("capabilities cannot be read")?;
        if !held.effective.is_empty() || !held.permitted.is_empty() {
            bail!(
                "capabilities are left after leaving root: {:?}",
                held.permitted
            );
        }
        Ok(())
    }
}

/// A group's number from its name or number.
///
/// # Errors
/// When there is no such group.
pub fn group(name: &str) -> anyhow::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let text = std::fs::read_to_string("/etc/group").context("/etc/group cannot be read")?;
    let fields = record(&text, name).with_context(|| format!("there is no group `{name}`"))?;
    let number = fields.get(2).and_then(|text| text.parse().ok());
    number
        .map(Gid::from_raw)
        .with_context(|| format!("the group `{name}` has no number"))
}

/// User and group of an account. Only the local file is asked: an account of
/// a service belongs there.
fn look_up(name: &str) -> anyhow::Result<(u32, u32)> {
    if let Ok(number) = name.parse() {
        return Ok((number, number));
    }
    let text = std::fs::read_to_string("/etc/passwd").context("/etc/passwd cannot be read")?;
    let fields = record(&text, name)
        .with_context(|| format!("the setting `user`: there is no account `{name}`"))?;
    let number = |index: usize| fields.get(index).and_then(|text| text.parse().ok());
    number(2)
        .zip(number(3))
        .with_context(|| format!("the account `{name}` has no numbers in /etc/passwd"))
}

fn record<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let records = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    records
        .into_iter()
        .find(|fields| fields.first() == Some(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_a_name_or_a_number() {
        assert_eq!(look_up("62914").unwrap(), (62914, 62914));
        assert_eq!(look_up("root").unwrap(), (0, 0));
        assert!(
            look_up("nobody-of-this-name")
                .unwrap_err()
                .to_string()
                .contains("no account")
        );
        assert_eq!(group("root").unwrap().as_raw(), 0);
    }
}
