use std::error::Error;
use std::fmt;

/// Displays an error and, behind colons, each of its causes.
///
/// Errors here never print their own source: the edge does, once, with this.
#[derive(Debug)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// The error with its causes, on one line.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer failed")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_behind_colons() {
        let error = Outer(std::io::Error::other("the disk is full"));
        assert_eq!(
            chain(&error).to_string(),
            "the outer failed: the disk is full"
        );
    }
}
