//! What a sandbox carries for the server that will adopt it.

use serde::{Deserialize, Serialize};
use skiff_types::{Probe, RevisionId};

/// Each form has its place; a server reads those it knows.
#[derive(Debug, Serialize, Deserialize)]
enum Versioned {
    V1(Label),
}

/// Everything a server must know of an instance that it did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub revision: RevisionId,
    pub created_unix_ms: u64,
    pub memory_mib: u32,
    pub class_reason: String,
    pub port: u16,
    pub stop_signal: i32,
    pub probe: Probe,
    pub egress: bool,
}

impl Label {
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(&Versioned::V1(self.clone()))
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        let Versioned::V1(label) = postcard::from_bytes(bytes)?;
        Ok(label)
    }
}

#[cfg(test)]
mod tests {
    use skiff_types::{ProbeKind, ProjectId};

    use super::*;

    #[test]
    fn a_label_reads_back_and_an_unknown_form_is_refused() {
        let label = Label {
            revision: RevisionId::parse(&ProjectId::default_project(), "hello-00007").unwrap(),
            created_unix_ms: 1_700_000_000_000,
            memory_mib: 256,
            class_reason: "container: asked for".to_owned(),
            port: 8080,
            stop_signal: 15,
            probe: Probe {
                kind: ProbeKind::Http("/ready".to_owned()),
                ..Probe::default()
            },
            egress: true,
        };
        let mut bytes = label.encode().unwrap();
        assert!(bytes.len() < 1024);
        assert_eq!(Label::decode(&bytes).unwrap(), label);
        bytes[0] = 9;
        assert!(Label::decode(&bytes).is_err());
        assert!(Label::decode(&[]).is_err());
    }
}
