//! What a function is called, and which service it is.
//!
//! AWS's names have upper case, `_` and up to 64 characters; a service's name
//! is a DNS label, and stands in hosts and on disks. A name that is both is
//! its own service's; any other's service is named after it, with a part of
//! its SHA-256 behind:
//!
//! ```text
//!  hello                  hello
//!  MyStack-Handler_1A2B   mystack-handler-1a2b-SHA256
//! ```
//! That says nothing of what is there: whoever keeps a function keeps its name
//! with it, and holds another's name against that.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use skiff_types::ServiceName;

use crate::sigv4::payload_sha256;

/// The longest name (botocore's model).
const NAME_BYTES_MAX: usize = 64;
/// Of a derived service's name, what is read of the function's.
const STEM_BYTES_MAX: usize = 37;
/// And of its SHA-256.
const HASH_DIGITS: usize = 12;

/// Not a function's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("1 to 64 of a-z, A-Z, 0-9, - and _ are expected")]
pub struct NotAName;

/// A function's name, as AWS's clients know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct FunctionName {
    name: Arc<str>,
    service: ServiceName,
}

impl FunctionName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The service that a function of this name is.
    #[must_use]
    pub const fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Whether it is its service's name, too.
    #[must_use]
    pub fn is_services(&self) -> bool {
        *self.name == *self.service.as_str()
    }
}

impl FromStr for FunctionName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !(1..=NAME_BYTES_MAX).contains(&text.len()) || !text.bytes().all(good) {
            return Err(NotAName);
        }
        let service = text.parse().or_else(|_| derived(text).parse());
        Ok(Self {
            name: text.into(),
            service: service.map_err(|_| NotAName)?,
        })
    }
}

/// The name in lower case, as far as there is room, and its hash.
fn derived(name: &str) -> String {
    let lower = name.to_ascii_lowercase().replace('_', "-");
    let lower = lower.trim_start_matches('-');
    let first = lower.bytes().next();
    let head = match first.is_some_and(|b| b.is_ascii_lowercase()) {
        true => "",
        false => "f-",
    };
    let stem = format!("{head}{lower}");
    let stem = &stem[..stem.len().min(STEM_BYTES_MAX)];
    let hash = payload_sha256(name.as_bytes());
    format!("{}-{}", stem.trim_end_matches('-'), &hash[..HASH_DIGITS])
}

impl TryFrom<String> for FunctionName {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

/// A service is called what its function is, unless that is known otherwise.
impl From<ServiceName> for FunctionName {
    fn from(service: ServiceName) -> Self {
        Self {
            name: service.as_str().into(),
            service,
        }
    }
}

impl Serialize for FunctionName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn service(name: &str) -> String {
        let name: FunctionName = name.parse().unwrap();
        name.service().to_string()
    }

    #[test]
    fn a_name_that_is_a_services_is_its_own() {
        let longest = "a".repeat(50);
        for name in ["a", "hello", "my-app-dev-1", &longest] {
            assert_eq!(service(name), *name);
        }
    }

    /// These are in stores: what a name derives never changes.
    #[test]
    fn any_other_name_derives_a_service() {
        let long = "Handler-".repeat(8);
        for (name, expected) in [
            ("MyStack-Handler_1A2B", "mystack-handler-1a2b-"),
            ("mystack-handler_1a2b", "mystack-handler-1a2b-"),
            ("my_function", "my-function-"),
            ("7days", "f-7days-"),
            ("_Private-", "private-"),
            ("___", "f-"),
            (&long, "handler-handler-handler-handler-handl-"),
        ] {
            let derived = service(name);
            let hash = payload_sha256(name.as_bytes());
            assert_eq!(derived, format!("{expected}{}", &hash[..12]), "{name}");
        }
        assert_eq!(service("my_function"), "my-function-c64d28e2be0f");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(65);
        for bad in ["", "a b", "a.b", "a:b", "ä", "$LATEST", &long] {
            assert_eq!(bad.parse::<FunctionName>(), Err(NotAName), "{bad}");
        }
    }

    #[test]
    fn a_name_is_stored_as_it_is() {
        let name: FunctionName = "My_Function".parse().unwrap();
        let stored = serde_json::to_string(&name).unwrap();
        assert_eq!(stored, "\"My_Function\"");
        assert_eq!(serde_json::from_str::<FunctionName>(&stored).unwrap(), name);
        assert!(serde_json::from_str::<FunctionName>("\"a b\"").is_err());
    }

    proptest! {
        #[test]
        fn every_name_has_a_service_and_names_that_differ_have_others(
            names in proptest::collection::btree_set("[a-cA-C0_-]{1,64}", 2..20),
        ) {
            let services: BTreeSet<String> = names.iter().map(|name| service(name)).collect();
            prop_assert_eq!(services.len(), names.len());
        }
    }
}
