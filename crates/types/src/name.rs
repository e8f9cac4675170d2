//! Names that people choose, and the ids that are made of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// A name or id does not have its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: {rule}")]
pub struct ParseNameError {
    what: &'static str,
    rule: &'static str,
    text: String,
}

fn is_dns_label(text: &str, longest: usize) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    !bytes.is_empty()
        && bytes.len() <= longest
        && bytes[0].is_ascii_lowercase()
        && bytes.iter().all(inner)
        && bytes[bytes.len() - 1] != b'-'
}

fn is_plain(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, ParseNameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(ParseNameError { what: $what, rule: $rule, text })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseNameError;
            fn try_from(text: String) -> Result<Self, ParseNameError> {
                text.parse()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                <String as utoipa::PartialSchema>::schema()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

name_type! {
    /// A project's id: 12 digits, the account in ARNs and the first part of
    /// every stored key.
    ProjectId, "project id", "12 digits are expected",
    |t| t.len() == 12 && t.bytes().all(|b| b.is_ascii_digit())
}
name_type! {
    /// A project's name, a DNS label: it stands in host names.
    ProjectName, "project name",
    "1 to 40 of a-z, 0-9 and -, a letter first, no - at the end, are expected",
    |t| is_dns_label(t, 40)
}
name_type! {
    /// A service's name, a DNS label short enough to carry a revision number.
    ServiceName, "service name",
    "1 to 50 of a-z, 0-9 and -, a letter first, no - at the end, are expected",
    |t| is_dns_label(t, 50)
}
name_type! {
    /// A name for a revision that gives it a host of its own: `TAG---NAME.DOMAIN`.
    Tag, "tag",
    "1 to 10 of a-z, 0-9 and -, a letter first, no - at the end, are expected",
    |t| is_dns_label(t, 10)
}
name_type! {
    /// A secret's name.
    SecretName, "secret name",
    "1 to 64 of a-z, A-Z, 0-9, - and _ are expected",
    |t| is_plain(t)
}
name_type! {
    /// A hook's name.
    HookName, "hook name",
    "1 to 64 of a-z, A-Z, 0-9, - and _ are expected",
    |t| is_plain(t)
}

impl ProjectId {
    /// The id of the project `default`, which exists at start.
    #[must_use]
    pub fn default_project() -> Self {
        Self("000000000001".into())
    }
}

/// One revision of one service of one project; written `SERVICE-00001`
/// within its project.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RevisionId {
    /// The project that owns the service.
    pub project: ProjectId,
    /// The service.
    pub service: ServiceName,
    /// Counts from 1 and is never used again, also after a deletion.
    pub number: u32,
}

impl RevisionId {
    /// The name within the project: `hello-00003`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{:05}", self.service, self.number)
    }

    /// Reads `hello-00003`, of the given project.
    ///
    /// # Errors
    /// When the text has no number of five or more digits after a service name.
    pub fn parse(project: &ProjectId, text: &str) -> Result<Self, ParseNameError> {
        let refuse = || ParseNameError {
            what: "revision name",
            rule: "a service name, - and a number of five digits are expected",
            text: text.chars().take(80).collect(),
        };
        let (service, number) = text.rsplit_once('-').ok_or_else(refuse)?;
        if number.len() < 5 || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse());
        }
        Ok(Self {
            project: project.clone(),
            service: service.parse()?,
            number: number.parse().map_err(|_| refuse())?,
        })
    }
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.name())
    }
}

impl fmt::Debug for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_are_dns_labels() {
        let longest = "a".repeat(50);
        for good in ["a", "hello", "a-1", longest.as_str()] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(51);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "1a",
            "a_b",
            "a.b",
            "ä",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_revision_name_reads_back() {
        let project = ProjectId::default_project();
        let revision = RevisionId {
            project: project.clone(),
            service: "a-b".parse().unwrap(),
            number: 3,
        };
        assert_eq!(revision.name(), "a-b-00003");
        assert_eq!(RevisionId::parse(&project, "a-b-00003").unwrap(), revision);
        for bad in ["a-b", "a-b-3", "-00003", "a-b-0000x", "a-b-99999999999"] {
            assert!(RevisionId::parse(&project, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_does_not_repeat_a_whole_hostile_text() {
        let error = "x".repeat(10_000).parse::<ProjectId>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
