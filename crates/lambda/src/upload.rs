//! A request's body that has a zip file in it, as it arrives: the zip goes
//! out decoded, piece by piece, and what is left is small JSON.
//!
//! ```text
//!  {"Code": {"ZipFile": "UEsDB…"}, …} ─▶ zip file  PK\x03…
//!                                     └▶ JSON      {"Code": {"ZipFile": ""}, …}
//! ```
//! Only the member whose whole path is the wanted one is taken out; whether
//! the rest is JSON is found out by whoever reads it. No piece of a body makes
//! this allocate beyond what it is given and [`JSON_BYTES_MAX`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A body without its zip file, bytes.
pub const JSON_BYTES_MAX: usize = 1024 * 1024;
/// Objects and lists in each other.
const DEPTH_MAX: usize = 64;
/// A member's name that may be wanted, bytes.
const NAME_BYTES_MAX: usize = 64;

/// A body cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// It is too long without its zip file, too.
    #[error("the body has over {JSON_BYTES_MAX} bytes beside its zip file")]
    TooLong,
    /// Nobody writes this.
    #[error("the body has over {DEPTH_MAX} objects and lists in each other")]
    TooDeep,
    /// The zip file is not in base64.
    #[error("the zip file is not in base64")]
    NotBase64,
    /// It ends within the zip file.
    #[error("the body ends within its zip file")]
    CutOff,
}

/// What is open around the next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Object,
    List,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Between tokens; a string here is a member's name or a value.
    Between {
        name: bool,
    },
    Text {
        name: bool,
        escaped: bool,
    },
    Zip {
        escaped: bool,
    },
}

/// Takes one body apart.
#[derive(Debug)]
pub struct Upload {
    /// The wanted member's path.
    path: &'static [&'static str],
    json: Vec<u8>,
    open: Vec<Open>,
    /// How many open objects lead along the path.
    along: usize,
    /// The last member's name in the innermost object.
    name: Vec<u8>,
    at: At,
    /// Characters of base64 that wait for their group's others.
    group: Vec<u8>,
    padded: bool,
}

impl Upload {
    /// For a body in which this member is a zip file: `["Code", "ZipFile"]`.
    #[must_use]
    pub fn new(path: &'static [&'static str]) -> Self {
        Self {
            path,
            json: Vec::new(),
            open: Vec::new(),
            along: 0,
            name: Vec::new(),
            at: At::Between { name: false },
            group: Vec::new(),
            padded: false,
        }
    }

    /// Takes the body's next piece; bytes of the zip file are appended to `zip`.
    ///
    /// # Errors
    /// When the body is larger than it may be, or the zip file is not base64.
    pub fn push(&mut self, piece: &[u8], zip: &mut Vec<u8>) -> Result<(), UploadError> {
        for byte in piece {
            match self.at {
                At::Between { name } => self.between(*byte, name)?,
                At::Text { name, escaped } => self.text(*byte, name, escaped)?,
                At::Zip { escaped } => self.zip(*byte, escaped, zip)?,
            }
        }
        self.decode(zip)
    }

    /// The body with an empty text where the zip file was.
    ///
    /// # Errors
    /// When it ends within the zip file.
    pub fn finish(self) -> Result<Vec<u8>, UploadError> {
        match self.at {
            At::Zip { .. } => Err(UploadError::CutOff),
            _ => Ok(self.json),
        }
    }

    fn keep(&mut self, byte: u8) -> Result<(), UploadError> {
        if self.json.len() >= JSON_BYTES_MAX {
            return Err(UploadError::TooLong);
        }
        self.json.push(byte);
        Ok(())
    }

    fn between(&mut self, byte: u8, name: bool) -> Result<(), UploadError> {
        self.keep(byte)?;
        match byte {
            b'{' => self.enter(Open::Object)?,
            b'[' => self.enter(Open::List)?,
            b'}' | b']' => self.leave(),
            b',' => self.at = self.between_members(),
            b':' => self.at = At::Between { name: false },
            b'"' if !name && self.is_wanted() => {
                self.at = At::Zip { escaped: false };
            }
            b'"' => {
                if name {
                    self.name.clear();
                }
                let escaped = false;
                self.at = At::Text { name, escaped };
            }
            _ => {}
        }
        Ok(())
    }

    fn between_members(&self) -> At {
        let name = self.open.last() == Some(&Open::Object);
        At::Between { name }
    }

    fn enter(&mut self, what: Open) -> Result<(), UploadError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(UploadError::TooDeep);
        }
        // The outermost object is where the path begins.
        let depth = self.open.len();
        let leads = depth == 0 || (self.along == depth && self.is_named(depth - 1));
        if what == Open::Object && leads {
            self.along = depth + 1;
        }
        self.open.push(what);
        self.name.clear();
        self.at = self.between_members();
        Ok(())
    }

    fn leave(&mut self) {
        self.open.pop();
        self.along = self.along.min(self.open.len());
        self.name.clear();
        self.at = At::Between { name: false };
    }

    fn is_named(&self, level: usize) -> bool {
        self.path
            .get(level)
            .is_some_and(|wanted| wanted.as_bytes() == self.name)
    }

    /// Whether a value here is the zip file.
    fn is_wanted(&self) -> bool {
        let depth = self.open.len();
        depth == self.path.len()
            && self.along == depth
            && self.open.last() == Some(&Open::Object)
            && self.is_named(depth - 1)
    }

    fn text(&mut self, byte: u8, name: bool, escaped: bool) -> Result<(), UploadError> {
        self.keep(byte)?;
        if byte == b'"' && !escaped {
            self.at = At::Between { name: false };
            return Ok(());
        }
        // A name with an escape in it is none of ours, and one too long neither.
        if name && self.name.len() <= NAME_BYTES_MAX {
            self.name.push(byte);
        }
        let escaped = byte == b'\\' && !escaped;
        self.at = At::Text { name, escaped };
        Ok(())
    }

    fn zip(&mut self, byte: u8, escaped: bool, zip: &mut Vec<u8>) -> Result<(), UploadError> {
        match byte {
            b'"' if !escaped => {
                self.decode(zip)?;
                if !self.group.is_empty() {
                    return Err(UploadError::NotBase64);
                }
                self.padded = false;
                self.at = At::Between { name: false };
                // Whoever reads the rest must not take a second one for this.
                self.name.clear();
                self.keep(byte)
            }
            b'\\' if !escaped => {
                self.at = At::Zip { escaped: true };
                Ok(())
            }
            // The one escape that writers of JSON use for base64.
            _ if escaped && byte != b'/' => Err(UploadError::NotBase64),
            _ => {
                self.at = At::Zip { escaped: false };
                self.group.push(byte);
                Ok(())
            }
        }
    }

    /// Decodes whole groups; what is left waits.
    fn decode(&mut self, zip: &mut Vec<u8>) -> Result<(), UploadError> {
        let whole = self.group.len() / 4 * 4;
        if whole == 0 {
            return Ok(());
        }
        if self.padded {
            return Err(UploadError::NotBase64);
        }
        let wrong = |_| UploadError::NotBase64;
        let groups = &self.group[..whole];
        STANDARD.decode_vec(groups, zip).map_err(wrong)?;
        self.padded = groups.ends_with(b"=");
        self.group.drain(..whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const PATH: &[&str] = &["Code", "ZipFile"];

    /// What becomes of a body that arrives in pieces of this length.
    fn taken(body: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<u8>), UploadError> {
        let mut upload = Upload::new(PATH);
        let mut zip = Vec::new();
        for piece in body.chunks(piece) {
            upload.push(piece, &mut zip)?;
        }
        Ok((upload.finish()?, zip))
    }

    #[test]
    fn only_the_wanted_member_is_taken_out() {
        for (body, json, zip) in [
            (
                r#"{"Code":{"ZipFile":"aGk="},"A":1}"#,
                r#"{"Code":{"ZipFile":""},"A":1}"#,
                "hi",
            ),
            (
                r#"{"Code" : { "B":"x", "ZipFile" : "aGk=" } }"#,
                r#"{"Code" : { "B":"x", "ZipFile" : "" } }"#,
                "hi",
            ),
            (
                r#"{"Code":{"ZipFile":"Pz8\/"}}"#,
                r#"{"Code":{"ZipFile":""}}"#,
                "???",
            ),
            (
                r#"{"Code":{"ZipFile":""}}"#,
                r#"{"Code":{"ZipFile":""}}"#,
                "",
            ),
            (
                r#"{"ZipFile":"aGk=","Code":"ZipFile"}"#,
                r#"{"ZipFile":"aGk=","Code":"ZipFile"}"#,
                "",
            ),
            (
                r#"{"Code":[{"ZipFile":"aGk="}]}"#,
                r#"{"Code":[{"ZipFile":"aGk="}]}"#,
                "",
            ),
            (
                r#"{"X":{"Code":{"ZipFile":"aGk="}}}"#,
                r#"{"X":{"Code":{"ZipFile":"aGk="}}}"#,
                "",
            ),
            (
                r#"[{"Code":{"ZipFile":"aGk="}}]"#,
                r#"[{"Code":{"ZipFile":"aGk="}}]"#,
                "",
            ),
            (
                r#"{"Code":{"A":{},"ZipFile":["aGk="]}}"#,
                r#"{"Code":{"A":{},"ZipFile":["aGk="]}}"#,
                "",
            ),
            (
                r#"{"a\"Code":{"ZipFile":"aGk="}}"#,
                r#"{"a\"Code":{"ZipFile":"aGk="}}"#,
                "",
            ),
            (
                r#"{"D":"\"Code\":{\"ZipFile\":\"","Code":{}}"#,
                r#"{"D":"\"Code\":{\"ZipFile\":\"","Code":{}}"#,
                "",
            ),
        ] {
            for piece in [1, 3, 4096] {
                let (rest, found) = taken(body.as_bytes(), piece).unwrap();
                assert_eq!(String::from_utf8(rest).unwrap(), json);
                assert_eq!(String::from_utf8(found).unwrap(), zip, "{body}");
            }
        }
    }

    #[test]
    fn what_is_no_base64_or_too_large_is_refused() {
        let open = "[".repeat(DEPTH_MAX + 1);
        let long = format!("\"{}\"", "x".repeat(JSON_BYTES_MAX));
        for (body, error) in [
            (r#"{"Code":{"ZipFile":"a"}}"#, UploadError::NotBase64),
            (r#"{"Code":{"ZipFile":"aGk=aGk="}}"#, UploadError::NotBase64),
            (r#"{"Code":{"ZipFile":"aG\nk="}}"#, UploadError::NotBase64),
            (r#"{"Code":{"ZipFile":"aGk"#, UploadError::CutOff),
            (open.as_str(), UploadError::TooDeep),
            (long.as_str(), UploadError::TooLong),
        ] {
            for piece in [1, 4096] {
                assert_eq!(taken(body.as_bytes(), piece), Err(error));
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let name = "Code|ZipFile|[a-z\"\\\\]{0,4}";
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<i32>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(name, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_zip_file_comes_out_and_the_rest_stays(mut body in values(), zip: Vec<u8>, piece in 1usize..40) {
            if let Some(members) = body.as_object_mut() {
                members.insert("Code".to_owned(), json!({"ZipFile": STANDARD.encode(&zip)}));
                let (rest, found) = taken(body.to_string().as_bytes(), piece).unwrap();
                body["Code"]["ZipFile"] = json!("");
                prop_assert_eq!(serde_json::from_slice::<Value>(&rest).unwrap(), body);
                prop_assert_eq!(found, zip);
            }
        }

        #[test]
        fn no_bytes_break_it(body: Vec<u8>, piece in 1usize..40) {
            let whole = taken(&body, body.len().max(1));
            prop_assert_eq!(taken(&body, piece), whole);
        }
    }
}
