//! Where the record of an event goes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest destination, bytes.
const TARGET_BYTES_MAX: usize = 1024;
const FUNCTION: &str = ":function:";

/// A destination, by what its text begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What it is for.
    pub purpose: Purpose,
    /// A function's or queue's ARN, or a URL.
    pub address: String,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// The record of how the event ended.
    Record,
    /// The event itself, with what went wrong beside it.
    DeadLetter,
}

/// A destination's address, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A function's ARN.
    Function(String),
    /// A queue (`arn:aws:sqs:REGION:ACCOUNT:NAME`).
    Queue {
        /// Whose.
        account: String,
        /// Which.
        name: String,
    },
    /// An HTTP endpoint.
    Web(String),
}

/// A text is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a destination: the ARN of a function or of an SQS queue, or an http(s) URL is expected"
)]
pub struct TargetError(String);

impl FromStr for Address {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let refuse = || TargetError(text.chars().take(200).collect());
        let clean = text.bytes().all(|b| b.is_ascii_graphic());
        if !clean || text.len() > TARGET_BYTES_MAX {
            return Err(refuse());
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Web(text.to_owned()));
        }
        if let Some(rest) = text.strip_prefix("arn:aws:sqs:") {
            let parts: Vec<&str> = rest.split(':').collect();
            let [_region, account, name] = parts[..] else {
                return Err(refuse());
            };
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let known = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
            if !known || !(1..=80).contains(&name.len()) || !name.bytes().all(good) {
                return Err(refuse());
            }
            return Ok(Self::Queue {
                account: account.to_owned(),
                name: name.to_owned(),
            });
        }
        if text.starts_with("arn:aws:lambda:") && text.contains(FUNCTION) {
            return Ok(Self::Function(text.to_owned()));
        }
        Err(refuse())
    }
}

impl Target {
    /// Reads the address.
    ///
    /// # Errors
    /// When it has none of the forms.
    pub fn read(&self) -> Result<Address, TargetError> {
        self.address.parse()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read() {
        let function = "arn:aws:lambda:us-east-1:000000000001:function:a";
        let queue = Address::Queue {
            account: "000000000001".to_owned(),
            name: "dead.fifo".to_owned(),
        };
        for (text, expected) in [
            (function, Some(Address::Function(function.to_owned()))),
            ("arn:aws:sqs:us-east-1:000000000001:dead.fifo", Some(queue)),
            ("http://a/b", Some(Address::Web("http://a/b".to_owned()))),
            ("arn:aws:sqs:us-east-1:1:dead", None),
            ("arn:aws:sqs:us-east-1:000000000001:a:b", None),
            ("arn:aws:sqs:us-east-1:000000000001:a/../b", None),
            ("arn:aws:sns:us-east-1:000000000001:topic", None),
            ("ftp://a", None),
            ("http://a b", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Address>().ok(), expected, "{text}");
        }
    }
}
