use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image is made for (image-spec, image-index.md § platform).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// `v8` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The text is not `os/arch` or `os/arch/variant`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform: `os/arch` or `os/arch/variant` is expected")]
pub struct ParsePlatformError {
    text: String,
}

impl Platform {
    /// The machine that this runs on.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// How well a machine that asks for this runs what was made for
    /// `offered`: `None` not at all, otherwise less is better.
    #[must_use]
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let asked = self.level();
        let level = offered.level();
        match (asked, level) {
            // Levels are inclusive: a v3 machine runs v1, and likes v2 better.
            (Some(asked), Some(level)) => asked.checked_sub(level),
            _ if self.variant == offered.variant => Some(0),
            _ => None,
        }
    }

    /// The number of the variant, with each architecture's default for none.
    fn level(&self) -> Option<u32> {
        match self.variant.as_deref() {
            Some(variant) => variant.strip_prefix('v')?.parse().ok(),
            None => match self.architecture.as_str() {
                "amd64" => Some(1),
                "arm64" => Some(8),
                "arm" => Some(7),
                _ => None,
            },
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let word = |w: &str| {
            (1..=32).contains(&w.len())
                && w.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let platform = match parts[..] {
            [os, arch] if word(os) && word(arch) => (os, arch, None),
            [os, arch, variant] if word(os) && word(arch) && word(variant) => {
                (os, arch, Some(variant.to_owned()))
            }
            _ => {
                return Err(ParsePlatformError {
                    text: text.chars().take(100).collect(),
                });
            }
        };
        Ok(Self {
            os: platform.0.to_owned(),
            architecture: platform.1.to_owned(),
            variant: platform.2,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_and_written() {
        for text in ["linux/amd64", "linux/arm64/v8"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "linux/a/b/c", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_nearest_variant_that_runs_is_the_best() {
        let rank = |asked: &str, offered: &str| {
            let asked: Platform = asked.parse().unwrap();
            asked.rank(&offered.parse().unwrap())
        };
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(rank("linux/amd64", "linux/amd64/v1"), Some(0));
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), None);
        assert_eq!(rank("linux/amd64/v3", "linux/amd64/v2"), Some(1));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64"), Some(2));
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(rank("linux/arm64", "linux/amd64"), None);
        assert_eq!(rank("linux/arm", "linux/arm/v6"), Some(1));
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert_eq!(rank("linux/riscv64", "linux/riscv64"), Some(0));
    }
}
