//! What a sandbox carries for the server that will adopt it.

use serde::{Deserialize, Serialize};
use skiff_types::{FunctionLaunch, Probe, RevisionId};

/// Each form has its place; a server reads those it knows.
#[derive(Debug, Serialize, Deserialize)]
enum Versioned {
    V1(Label),
    V2(Label, FunctionLaunch),
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
    /// Not in the first form.
    #[serde(skip)]
    pub function: Option<FunctionLaunch>,
}

impl Label {
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let label = self.clone();
        postcard::to_stdvec(&match self.function.clone() {
            None => Versioned::V1(label),
            Some(function) => Versioned::V2(label, function),
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        Ok(match postcard::from_bytes(bytes)? {
            Versioned::V1(label) => label,
            Versioned::V2(label, function) => Self {
                function: Some(function),
                ..label
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use skiff_types::{FunctionSpec, ProbeKind, ProjectId, StartCause};

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
            function: None,
        };
        let function = FunctionLaunch {
            spec: FunctionSpec::default(),
            timeout_s: 3,
            memory_mib: 128,
            cause: StartCause::default(),
        };
        let of_function = Label {
            function: Some(function),
            ..label.clone()
        };
        let bytes = of_function.encode().unwrap();
        assert_eq!(Label::decode(&bytes).unwrap(), of_function);
        let mut bytes = label.encode().unwrap();
        assert!(bytes.len() < 1024);
        assert_eq!(Label::decode(&bytes).unwrap(), label);
        bytes[0] = 9;
        assert!(Label::decode(&bytes).is_err());
        assert!(Label::decode(&[]).is_err());
    }
}
