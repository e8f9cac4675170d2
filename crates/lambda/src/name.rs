//! How a call names a function: `NAME`, `NAME:QUALIFIER`, a partial ARN
//! (`ACCOUNT:function:NAME[:QUALIFIER]`) or a full one
//! (`arn:aws:lambda:REGION:ACCOUNT:function:NAME[:QUALIFIER]`).

use std::fmt;
use std::str::FromStr;

use skiff_types::ProjectId;

use crate::function_name::{FunctionName, NotAName};

/// The longest text that names a function, bytes (botocore's model).
const REFERENCE_BYTES_MAX: usize = 170;
/// The longest alias, bytes.
const ALIAS_BYTES_MAX: usize = 128;
const LATEST: &str = "$LATEST";

/// A text names no function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has none of the forms.
    #[error(
        "`{0}` names no function: NAME, NAME:QUALIFIER, ACCOUNT:function:NAME or a function's ARN is expected"
    )]
    Form(String),
    /// The name itself.
    #[error("`{0}` is not a function's name: {1}")]
    Name(String, NotAName),
    /// What follows the name.
    #[error("`{0}` is not a qualifier: $LATEST, a version or an alias is expected")]
    Qualifier(String),
}

/// A version or an alias of a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qualifier {
    /// `$LATEST`: the newest, which changes.
    Latest,
    /// A published version; counts from 1.
    Version(u32),
    /// A name for a version.
    Alias(String),
}

impl FromStr for Qualifier {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = || NameError::Qualifier(short(text));
        if text == LATEST {
            return Ok(Self::Latest);
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let number = text.parse().map_err(|_| refuse())?;
            return if number > 0 && !text.starts_with('0') {
                Ok(Self::Version(number))
            } else {
                Err(refuse())
            };
        }
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if text.len() <= ALIAS_BYTES_MAX && text.bytes().all(good) {
            return Ok(Self::Alias(text.to_owned()));
        }
        Err(refuse())
    }
}

impl fmt::Display for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str(LATEST),
            Self::Version(number) => write!(f, "{number}"),
            Self::Alias(name) => f.write_str(name),
        }
    }
}

/// A function as a call names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionRef {
    /// Its region, when an ARN says so.
    pub region: Option<String>,
    /// Its project, when an ARN says so.
    pub account: Option<ProjectId>,
    /// Its name.
    pub name: FunctionName,
    /// Its version or alias, when the text says so.
    pub qualifier: Option<Qualifier>,
}

impl FunctionRef {
    /// Reads one, decoded from percent-encoding.
    ///
    /// # Errors
    /// What of it has not its form.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let form = || NameError::Form(short(text));
        if text.is_empty() || text.len() > REFERENCE_BYTES_MAX {
            return Err(form());
        }
        let mut parts: Vec<&str> = text.split(':').collect();
        let mut region = None;
        if parts[0] == "arn" {
            if parts.len() < 7 || !parts[1].starts_with("aws") || parts[2] != "lambda" {
                return Err(form());
            }
            region = Some(parts[3].to_owned());
            parts.drain(..4);
        }
        let mut account = None;
        if parts.get(1) == Some(&"function") && parts.len() > 2 {
            account = Some(parts[0].parse().map_err(|_| form())?);
            parts.drain(..2);
        } else if region.is_some() {
            return Err(form());
        }
        let (name, qualifier) = match parts[..] {
            [name] => (name, None),
            [name, qualifier] => (name, Some(qualifier.parse()?)),
            _ => return Err(form()),
        };
        Ok(Self {
            region,
            account,
            name: name
                .parse()
                .map_err(|error| NameError::Name(short(name), error))?,
            qualifier,
        })
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Writes ARNs of one project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arns {
    /// The region that they name.
    pub region: String,
    /// The project: the account that they name.
    pub account: ProjectId,
}

impl Arns {
    /// Of a function, without a qualifier.
    #[must_use]
    pub fn function(&self, name: &FunctionName) -> String {
        let Self { region, account } = self;
        format!("arn:aws:lambda:{region}:{account}:function:{name}")
    }

    /// Of a version or an alias.
    #[must_use]
    pub fn qualified(&self, name: &FunctionName, qualifier: &Qualifier) -> String {
        format!("{}:{qualifier}", self.function(name))
    }

    /// Of a function as it is named: with a qualifier, or without.
    #[must_use]
    pub fn named(&self, name: &FunctionName, qualifier: Option<&Qualifier>) -> String {
        match qualifier {
            Some(qualifier) => self.qualified(name, qualifier),
            None => self.function(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, Option<String>, String, Option<String>) {
        let read = FunctionRef::parse(text).unwrap();
        let account = read.account.map(|id| id.to_string());
        let qualifier = read.qualifier.map(|q| q.to_string());
        (read.region, account, read.name.to_string(), qualifier)
    }

    #[test]
    fn every_form_is_read() {
        let some = |text: &str| Some(text.to_owned());
        let account = some("000000000001");
        for (text, region, account, qualifier) in [
            ("hello", None, None, None),
            ("hello:$LATEST", None, None, some("$LATEST")),
            ("hello:7", None, None, some("7")),
            ("hello:live-1_b", None, None, some("live-1_b")),
            ("000000000001:function:hello", None, account.clone(), None),
            (
                "000000000001:function:hello:live",
                None,
                account.clone(),
                some("live"),
            ),
            (
                "arn:aws:lambda:eu-west-1:000000000001:function:hello",
                some("eu-west-1"),
                account.clone(),
                None,
            ),
            (
                "arn:aws-cn:lambda:us-east-1:000000000001:function:hello:3",
                some("us-east-1"),
                account.clone(),
                some("3"),
            ),
            ("function:1", None, None, some("1")),
        ] {
            let name = if text.starts_with("function") {
                "function"
            } else {
                "hello"
            };
            assert_eq!(
                read(text),
                (region, account, name.to_owned(), qualifier),
                "{text}"
            );
        }
    }

    #[test]
    fn what_names_no_function_is_refused() {
        let long = "a".repeat(171);
        for bad in [
            "",
            ":",
            "a:b:c",
            "a.b",
            "hello:",
            "hello:0",
            "hello:01",
            "hello:99999999999",
            "hello:$latest",
            "hello:a b",
            "1:function:hello",
            "arn:aws:lambda:us-east-1:000000000001:layer:hello",
            "arn:aws:s3:us-east-1:000000000001:function:hello",
            "arn:aws:lambda:us-east-1:000000000001:function",
            "arn",
            "arn:aws:lambda:us-east-1:000000000001:function:hello:1:2",
            long.as_str(),
        ] {
            assert!(FunctionRef::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_arn_reads_back() {
        let arns = Arns {
            region: "us-east-1".to_owned(),
            account: ProjectId::default_project(),
        };
        let name: FunctionName = "hello".parse().unwrap();
        let text = arns.qualified(&name, &Qualifier::Version(3));
        assert_eq!(
            text,
            "arn:aws:lambda:us-east-1:000000000001:function:hello:3"
        );
        let read = FunctionRef::parse(&text).unwrap();
        assert_eq!(read.account, Some(arns.account));
        assert_eq!(read.qualifier, Some(Qualifier::Version(3)));
    }
}
