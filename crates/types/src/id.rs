//! Ids that Skiff makes: 80 bits, written as 16 characters of Crockford's
//! base 32 in lower case, the first 48 bits a time so that ids sort by age.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const TEXT_LEN: usize = 16;

/// The text is not 16 characters of lower-case Crockford base 32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: 16 characters of 0-9 and a-z without i, l, o, u are expected")]
pub struct ParseIdError {
    text: String,
}

fn write_id(value: u128) -> [u8; TEXT_LEN] {
    let mut out = [0u8; TEXT_LEN];
    let mut rest = value;
    for slot in out.iter_mut().rev() {
        // The mask keeps five bits: the index is always inside the alphabet.
        *slot = ALPHABET[usize::try_from(rest & 31).unwrap_or(0)];
        rest >>= 5;
    }
    out
}

fn read_id(text: &str) -> Result<u128, ParseIdError> {
    let refuse = || ParseIdError {
        text: text.chars().take(40).collect(),
    };
    if text.len() != TEXT_LEN {
        return Err(refuse());
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = ALPHABET
            .iter()
            .position(|&c| c == byte)
            .ok_or_else(refuse)?;
        Ok(value << 5 | u128::try_from(digit).unwrap_or(0))
    })
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// An id from the time of its making and randomness; bits above
            /// 48 of the time and 32 of the randomness are dropped.
            #[must_use]
            pub const fn from_parts(unix_ms: u64, random: u32) -> Self {
                Self(((unix_ms as u128) & ((1 << 48) - 1)) << 32 | random as u128)
            }

            /// When it was made, milliseconds since 1970.
            #[must_use]
            pub const fn unix_ms(self) -> u64 {
                ((self.0 >> 32) & ((1 << 48) - 1)) as u64
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = write_id(self.0);
                f.pad(std::str::from_utf8(&text).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                read_id(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let text = write_id(self.0);
                serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
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

id_type! {
    /// One running copy of a revision, also the name of its sandbox.
    InstanceId
}
id_type! {
    /// One data folder, for ever: every kernel object that a server makes
    /// carries it.
    ServerId
}
id_type! {
    /// A node that runs instances.
    WorkerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_wrote_and_sorts_by_time() {
        let early = InstanceId::from_parts(1_700_000_000_000, 7);
        let late = InstanceId::from_parts(1_700_000_000_001, 3);
        assert_eq!(early.to_string().parse::<InstanceId>().unwrap(), early);
        assert!(early < late);
        assert!(early.to_string() < late.to_string());
        assert_eq!(early.to_string().len(), 16);
        assert_eq!(early.unix_ms(), 1_700_000_000_000);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "short",
            "0123456789abcdei",
            "0123456789ABCDEF",
            "0123456789abcdefg",
        ] {
            assert!(text.parse::<InstanceId>().is_err(), "{text}");
        }
    }
}
