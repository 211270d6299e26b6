//! An image's own users: `/etc/passwd` and `/etc/group` read by hand, because they are the image's, not the host's.

use crate::User;

/// Who a container runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: User,
    pub home: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
    #[error("uid or gid {0} is out of range")]
    Range(String),
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Finds `user[:group]`, both by name or number, in the image's files (empty text when a file is absent). An unknown number is taken as it
/// is, with group 0, as Docker does; an unknown name is an error. Groups that list the user are added.
pub fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Identity, Error> {
    let (user, group_wanted) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = numeric(user)?;
    let account = accounts(passwd).find(|a| a.name == user).or_else(|| accounts(passwd).find(|a| Some(a.uid) == number));
    let (uid, mut gid, home) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, "/"),
        (None, None) => return Err(Error::User(user.to_owned())),
    };
    if let Some(name) = group_wanted {
        gid = groups(group)
            .find(|(n, ..)| *n == name)
            .map(|(_, gid, _)| gid)
            .map_or_else(|| numeric(name), |gid| Ok(Some(gid)))?
            .ok_or_else(|| Error::Group(name.to_owned()))?;
    }
    let mut supplementary = Vec::new();
    if let (Some(account), None) = (&account, group_wanted) {
        supplementary =
            groups(group).filter(|(_, _, members)| members.split(',').any(|m| m == account.name)).map(|(_, gid, _)| gid).collect();
    }
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    Ok(Identity { user: User { uid, gid, groups: supplementary }, home })
}

fn numeric(text: &str) -> Result<Option<u32>, Error> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    // The last two values mean "no id" and "overflow" to the kernel.
    text.parse::<u32>().ok().filter(|id| *id < u32::MAX - 1).map(Some).ok_or_else(|| Error::Range(text.to_owned()))
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
    })
}

fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# note\nbroken\nwww:x:33:34:web:/var/www:/bin/false\n7:x:70:71::/seven:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:www,root\nvideo:x:44:www\n";

    #[test]
    fn a_user_is_found_by_name_or_number_with_its_groups() {
        for (wanted, uid, gid, groups, home) in [
            ("", 0, 0, vec![29], "/root"),
            ("www", 33, 34, vec![29, 44], "/var/www"),
            ("33", 33, 34, vec![29, 44], "/var/www"),
            ("www:audio", 33, 29, vec![], "/var/www"),
            ("1000:2000", 1000, 2000, vec![], "/"),
            ("1000", 1000, 0, vec![], "/"),
            ("7", 70, 71, vec![], "/seven"),
        ] {
            let found = resolve(wanted, PASSWD, GROUP).unwrap();
            assert_eq!(found, Identity { user: User { uid, gid, groups }, home: home.into() }, "{wanted}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_and_so_is_a_number_out_of_range() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(Error::User("nobody".into())));
        assert_eq!(resolve("www:wheel", PASSWD, GROUP), Err(Error::Group("wheel".into())));
        assert_eq!(resolve("99999999999", PASSWD, GROUP), Err(Error::Range("99999999999".into())));
    }
}
