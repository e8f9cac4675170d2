//! Tar paths as lists of components.

use crate::error::Refusal;

/// Longest name of a directory entry, as Linux has it.
pub(crate) const MAX_NAME_BYTES: usize = 255;
/// Longest path, Linux's PATH_MAX.
pub(crate) const MAX_PATH_BYTES: usize = 4096;
/// Deepest path: real layers stay under forty.
pub(crate) const MAX_DEPTH: usize = 256;

/// Splits a tar path, leaving out `.` and empty components, so that an
/// absolute path means the same as a relative one. `..` is refused even where
/// it would stay inside: no builder writes it, and readers differ on it.
pub(crate) fn split(raw: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if raw.is_empty() {
        return Err(Refusal::EmptyPath);
    }
    if raw.len() > MAX_PATH_BYTES {
        return Err(Refusal::PathTooLong);
    }
    if raw.contains(&0) {
        return Err(Refusal::Nul);
    }
    let mut components = Vec::new();
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(Refusal::Traversal),
            name if name.len() > MAX_NAME_BYTES => return Err(Refusal::NameTooLong),
            name if components.len() < MAX_DEPTH => components.push(name),
            _ => return Err(Refusal::TooDeep),
        }
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_what_means_nothing() {
        let check = |raw: &str, expect: &[&str]| {
            let expect: Vec<&[u8]> = expect.iter().map(|name| name.as_bytes()).collect();
            assert_eq!(split(raw.as_bytes()), Ok(expect), "{raw}");
        };
        check("a/b", &["a", "b"]);
        check("./a//b/.", &["a", "b"]);
        check("///etc/passwd", &["etc", "passwd"]);
        check("./", &[]);
        check("/", &[]);
        check("...", &["..."]);
    }

    #[test]
    fn hostile_paths_are_refused() {
        let check = |raw: &[u8], expect| assert_eq!(split(raw), Err(expect));
        check(b"", Refusal::EmptyPath);
        check(b"..", Refusal::Traversal);
        check(b"a/../../b", Refusal::Traversal);
        check(b"/../etc/passwd", Refusal::Traversal);
        check(b"a\0b", Refusal::Nul);
        check(&[b'a'; 256], Refusal::NameTooLong);
        check(&b"a/".repeat(2049), Refusal::PathTooLong);
        check(&b"a/".repeat(257), Refusal::TooDeep);
        assert!(split(&[b'a'; 255]).is_ok());
        assert!(split(&b"a/".repeat(256)).is_ok());
    }
}
