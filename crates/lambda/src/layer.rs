//! How a call names a layer: `NAME`, or an ARN
//! (`arn:aws:lambda:REGION:ACCOUNT:layer:NAME[:VERSION]`).

use skiff_types::ProjectId;

use crate::name::Arns;

/// A layer's name, bytes: with a version's ARN around it it is what AWS takes.
const NAME_BYTES_MAX: usize = 64;
/// What a text in an error shows.
const SHOWN_CHARS: usize = 80;

/// A text names no layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no layer: 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, - and _, or a layer's ARN, is expected"
)]
pub struct LayerNameError(String);

/// A layer, or one of its versions, as a call names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRef {
    /// Its region, when an ARN says so.
    pub region: Option<String>,
    /// Its project, when an ARN says so.
    pub account: Option<ProjectId>,
    /// Its name.
    pub name: String,
    /// Its version, when the ARN says so.
    pub version: Option<u32>,
}

impl LayerRef {
    /// Reads one, decoded from percent-encoding.
    ///
    /// # Errors
    /// When it has neither form.
    pub fn parse(text: &str) -> Result<Self, LayerNameError> {
        let refuse = || LayerNameError(text.chars().take(SHOWN_CHARS).collect());
        let parts: Vec<&str> = text.split(':').collect();
        let (region, account, name, version) = match parts[..] {
            [name] => (None, None, name, None),
            [
                "arn",
                partition,
                "lambda",
                region,
                account,
                "layer",
                name,
                ref rest @ ..,
            ] if partition.starts_with("aws") && rest.len() <= 1 => {
                let account = account.parse().map_err(|_| refuse())?;
                let version = rest.first().map(|number| number.parse());
                let version = version.transpose().map_err(|_| refuse())?;
                (Some(region.to_owned()), Some(account), name, version)
            }
            _ => return Err(refuse()),
        };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(good) {
            return Err(refuse());
        }
        Ok(Self {
            region,
            account,
            name: name.to_owned(),
            version,
        })
    }
}

impl Arns {
    /// Of a layer, without a version.
    #[must_use]
    pub fn layer(&self, name: &str) -> String {
        let Self { region, account } = self;
        format!("arn:aws:lambda:{region}:{account}:layer:{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_by_name_or_arn() {
        let read = LayerRef::parse("shared_1-a").unwrap();
        assert_eq!((read.name.as_str(), read.version), ("shared_1-a", None));
        let arn = "arn:aws:lambda:eu-west-1:000000000001:layer:shared";
        let read = LayerRef::parse(arn).unwrap();
        assert_eq!(read.region.as_deref(), Some("eu-west-1"));
        assert_eq!(read.account.unwrap().as_str(), "000000000001");
        let read = LayerRef::parse(&format!("{arn}:7")).unwrap();
        assert_eq!((read.name.as_str(), read.version), ("shared", Some(7)));
        for text in [
            "",
            "a b",
            "a/b",
            "shared:7",
            "arn:aws:lambda:eu-west-1:1:layer:shared",
            "arn:aws:lambda:eu-west-1:000000000001:function:shared",
            "arn:aws:lambda:eu-west-1:000000000001:layer:shared:x",
            "arn:aws:lambda:eu-west-1:000000000001:layer:shared:1:2",
            &"x".repeat(65),
        ] {
            assert!(LayerRef::parse(text).is_err(), "{text}");
        }
    }
}
