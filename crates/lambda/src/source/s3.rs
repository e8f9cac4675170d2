//! Events of S3's kind: as servers of that kind send them over HTTP, and as
//! S3 gives them to a function (S3, "Event message structure").
//!
//! MinIO and RustFS put a record into `{EventName, Key, Records}`, write `s3:`
//! before an event's name and encode a key's slashes, too; Ceph's gateway and
//! VersityGW do not encode keys. What they say beside that stays.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::percent::{decode, encode};

/// Records of one notification.
pub const S3_RECORDS_MAX: usize = 1000;
/// A bucket's name, bytes: what S3 once took.
const BUCKET_BYTES_MAX: usize = 255;
/// An event's name, bytes.
const NAME_BYTES_MAX: usize = 100;
const SOURCE: &str = "aws:s3";
/// Whose keys are as they are, not encoded.
const RAW_SOURCE: &str = "ceph:s3";
/// Where a record keeps who has sent it, if that is not S3.
const ORIGIN: &str = "originalEventSource";
const EVENT_VERSION: &str = "2.1";
const SCHEMA_VERSION: &str = "1.0";
/// What S3, and who is like it, sends to see whether somebody listens.
const TEST_EVENT: &str = "s3:TestEvent";

/// What a server of S3's kind has sent.
#[derive(Debug)]
pub enum S3Notification {
    /// Something has happened to objects.
    Event(S3Event),
    /// Nothing has: it looks whether somebody listens.
    Test,
}

/// A function's event of objects.
#[derive(Debug)]
pub struct S3Event {
    /// Whose objects.
    pub buckets: BTreeSet<String>,
    /// `{"Records": […]}`, JSON.
    pub payload: Vec<u8>,
}

/// What was sent is no notification of S3's kind.
#[derive(Debug, thiserror::Error)]
pub enum S3EventError {
    /// It is no JSON.
    #[error("the body is not JSON")]
    Json(#[source] serde_json::Error),
    /// It has no records and is none.
    #[error("the body is no event of S3's kind: {{\"Records\": […]}} is expected")]
    Shape,
    /// It has none, or too many.
    #[error("a notification has 1 to {S3_RECORDS_MAX} records, and not {0}")]
    Records(usize),
    /// A record is not like S3's.
    #[error("record {index}: {field} is expected to be {expected}")]
    Field {
        /// From 0.
        index: usize,
        /// Its path.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
}

impl S3Notification {
    /// Reads a body: records, or one record alone. A record without a region
    /// is of `region`.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(body: &[u8], region: &str) -> Result<Self, S3EventError> {
        let body = serde_json::from_slice(body).map_err(S3EventError::Json)?;
        let Value::Object(mut body) = body else {
            return Err(S3EventError::Shape);
        };
        if body.get("Event").and_then(Value::as_str) == Some(TEST_EVENT) {
            return Ok(Self::Test);
        }
        let records = match body.remove("Records") {
            Some(Value::Array(records)) => records,
            None if body.contains_key("s3") => vec![Value::Object(body)],
            _ => return Err(S3EventError::Shape),
        };
        if !(1..=S3_RECORDS_MAX).contains(&records.len()) {
            return Err(S3EventError::Records(records.len()));
        }
        let mut buckets = BTreeSet::new();
        let records = records.into_iter().enumerate().map(|(index, record)| {
            let (bucket, record) = Record::read(index, record)?.like_s3(region)?;
            buckets.insert(bucket);
            Ok(record)
        });
        let records = records.collect::<Result<Vec<_>, S3EventError>>()?;
        let payload = json!({ "Records": records }).to_string().into_bytes();
        Ok(Self::Event(S3Event { buckets, payload }))
    }
}

type Fields = Map<String, Value>;

/// A record as it was sent.
struct Record {
    index: usize,
    fields: Fields,
}

impl Record {
    fn read(index: usize, record: Value) -> Result<Self, S3EventError> {
        match record {
            Value::Object(fields) => Ok(Self { index, fields }),
            _ => Err(fault(index, "it", "an object")),
        }
    }

    /// The bucket, and the record as S3 has it.
    fn like_s3(mut self, region: &str) -> Result<(String, Value), S3EventError> {
        let source = self.source()?;
        let name = self.name()?;
        if text(&self.fields, "eventTime").is_none() {
            return Err(fault(self.index, "eventTime", "a time"));
        }
        let Some(Value::Object(mut s3)) = self.fields.remove("s3") else {
            return Err(fault(self.index, "s3", "an object"));
        };
        let bucket = self.bucket(&mut s3)?;
        self.object(&mut s3, source == RAW_SOURCE, &name)?;
        or_else(&mut s3, "s3SchemaVersion", SCHEMA_VERSION);
        if let Some(Value::Object(user)) = self.fields.get_mut("userIdentity") {
            principal(user);
        }
        or_else(&mut self.fields, "eventVersion", EVENT_VERSION);
        or_else(&mut self.fields, "awsRegion", region);
        if source != SOURCE {
            set(&mut self.fields, ORIGIN, source);
        }
        set(&mut self.fields, "eventSource", SOURCE);
        set(&mut self.fields, "eventName", name);
        self.fields.insert("s3".to_owned(), Value::Object(s3));
        Ok((bucket, Value::Object(self.fields)))
    }

    fn source(&self) -> Result<String, S3EventError> {
        let source = text(&self.fields, "eventSource");
        let source = source.filter(|source| source.ends_with(":s3") && short(source));
        source.ok_or_else(|| fault(self.index, "eventSource", "aws:s3, minio:s3 or the like"))
    }

    /// `ObjectCreated:Put`.
    fn name(&self) -> Result<String, S3EventError> {
        let name = text(&self.fields, "eventName").unwrap_or_default();
        let name = name.trim_start_matches("s3:");
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'*');
        match !name.is_empty() && short(name) && name.bytes().all(good) {
            true => Ok(name.to_owned()),
            false => Err(fault(
                self.index,
                "eventName",
                "ObjectCreated:Put or the like",
            )),
        }
    }

    fn bucket(&self, s3: &mut Fields) -> Result<String, S3EventError> {
        let bucket = object_in(s3, "bucket");
        let name = bucket.as_deref().and_then(|bucket| text(bucket, "name"));
        let (Some(bucket), Some(name)) = (bucket, name.filter(|name| is_bucket(name))) else {
            return Err(fault(self.index, "s3.bucket.name", "a bucket's name"));
        };
        set(bucket, "arn", s3_arn(&name));
        if let Some(owner) = object_in(bucket, "ownerIdentity") {
            principal(owner);
        }
        Ok(name)
    }

    fn object(&self, s3: &mut Fields, is_raw: bool, name: &str) -> Result<(), S3EventError> {
        let object = object_in(s3, "object");
        let key = object.as_deref().and_then(|object| text(object, "key"));
        let (Some(object), Some(key)) = (object, key) else {
            return Err(fault(self.index, "s3.object.key", "an object's key"));
        };
        set(object, "key", encoded(&key, is_raw));
        if let Some(tag) = object.remove("etag") {
            object.entry("eTag").or_insert(tag);
        }
        if let Some(tag) = text(object, "eTag") {
            set(object, "eTag", tag.trim_matches('"'));
        }
        for optional in ["versionId", "eTag"] {
            if text(object, optional).is_none() {
                object.remove(optional);
            }
        }
        let size = match object.get("size") {
            Some(Value::String(digits)) => digits.parse::<u64>().ok(),
            // MinIO leaves out a size of 0.
            None if name.starts_with("ObjectCreated:") => Some(0),
            _ => None,
        };
        if let Some(size) = size {
            object.insert("size".to_owned(), json!(size));
        }
        Ok(())
    }
}

fn fault(index: usize, field: &'static str, expected: &'static str) -> S3EventError {
    S3EventError::Field {
        index,
        field,
        expected,
    }
}

/// The ARN that a policy's `SourceArn` is compared with.
#[must_use]
pub fn s3_arn(bucket: &str) -> String {
    format!("arn:aws:s3:::{bucket}")
}

/// Nothing of a pattern and of an ARN is in it.
fn is_bucket(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    name.len() <= BUCKET_BYTES_MAX && name.bytes().all(good)
}

fn short(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX
}

/// A text that is there and not empty.
fn text(fields: &Fields, name: &str) -> Option<String> {
    let text = fields.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn object_in<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    fields.get_mut(name)?.as_object_mut()
}

fn set(fields: &mut Fields, name: &str, text: impl Into<String>) {
    fields.insert(name.to_owned(), Value::String(text.into()));
}

fn or_else(fields: &mut Fields, name: &str, default: &str) {
    if text(fields, name).is_none() {
        set(fields, name, default);
    }
}

/// VersityGW writes it with a capital.
fn principal(identity: &mut Fields) {
    if let Some(id) = identity.remove("PrincipalId") {
        identity.entry("principalId").or_insert(id);
    }
}

/// A key as S3 writes it: percent-encoded but for slashes, a space as `+`. One
/// that cannot have been encoded is.
fn encoded(key: &str, is_raw: bool) -> String {
    let is_encoded = key.bytes().all(|b| b.is_ascii_graphic()) && decode(key).is_some();
    match is_encoded && !is_raw {
        true => key.replace("%2F", "/").replace("%2f", "/"),
        false => encode(key.as_bytes(), true).replace("%20", "+"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a function gets, and whose objects.
    fn event(body: &Value) -> (Value, Vec<String>) {
        match S3Notification::read(body.to_string().as_bytes(), "us-east-1") {
            Ok(S3Notification::Event(event)) => (
                serde_json::from_slice(&event.payload).unwrap(),
                event.buckets.into_iter().collect(),
            ),
            other => panic!("{other:?}"),
        }
    }

    fn refused(body: &str) -> String {
        let read = S3Notification::read(body.as_bytes(), "us-east-1");
        read.unwrap_err().to_string()
    }

    /// S3's own, of its documentation.
    fn of_s3() -> Value {
        json!({"Records": [{
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": "us-west-2",
            "eventTime": "1970-01-01T00:00:00.000Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
            "requestParameters": {"sourceIPAddress": "172.16.0.1"},
            "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "testConfigRule",
                "bucket": {
                    "name": "amzn-s3-demo-bucket",
                    "ownerIdentity": {"principalId": "A3NL1KOZZKExample"},
                    "arn": "arn:aws:s3:::amzn-s3-demo-bucket",
                },
                "object": {
                    "key": "red/flower+a%C3%A4.jpg",
                    "size": 1024,
                    "eTag": "d41d8cd98f00b204e9800998ecf8427e",
                    "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
                    "sequencer": "0055AED6DCD90281E5",
                },
            },
        }]})
    }

    /// MinIO's, of its webhook and of what its structures are written as.
    fn of_minio() -> Value {
        json!({
            "EventName": "s3:ObjectCreated:Put",
            "Key": "images/my photos/a.jpg",
            "Records": [{
                "eventVersion": "2.0",
                "eventSource": "minio:s3",
                "awsRegion": "",
                "eventTime": "2026-11-27T10:00:00.123Z",
                "eventName": "s3:ObjectCreated:Put",
                "userIdentity": {"principalId": "minioadmin"},
                "requestParameters": {"principalId": "minioadmin", "region": "", "sourceIPAddress": "127.0.0.1"},
                "responseElements": {"x-amz-request-id": "17A", "x-minio-origin-endpoint": "http://127.0.0.1:9000"},
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "configurationId": "Config",
                    "bucket": {"name": "images", "ownerIdentity": {"principalId": "minioadmin"}, "arn": "arn:aws:s3:::images"},
                    "object": {
                        "key": "my+photos%2Fa.jpg",
                        "contentType": "image/jpeg",
                        "userMetadata": {"content-type": "image/jpeg"},
                        "sequencer": "17A",
                    },
                },
                "source": {"host": "127.0.0.1", "port": "", "userAgent": "MinIO (linux; amd64)"},
            }],
        })
    }

    /// Ceph's gateway's, of its documentation.
    fn of_ceph() -> Value {
        json!({"Records": [{
            "eventVersion": "2.1",
            "eventSource": "ceph:s3",
            "awsRegion": "zonegroup1",
            "eventTime": "2019-11-22T13:47:35.124724Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {"principalId": "tester"},
            "requestParameters": {"sourceIPAddress": ""},
            "responseElements": {"x-amz-request-id": "503a4c37", "x-amz-id-2": "14d2-zone1-zonegroup1"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "mynotif1",
                "bucket": {
                    "name": "mybucket1",
                    "ownerIdentity": {"principalId": "tester"},
                    "arn": "arn:aws:s3:zonegroup1::mybucket1",
                    "id": "503a4c37",
                },
                "object": {
                    "key": "a+b c%.jpg",
                    "size": "1024",
                    "eTag": "37b51d194a7513e45b56f6524f2d51f2",
                    "versionId": "",
                    "sequencer": "F7E6D75DC742D108",
                    "metadata": [],
                    "tags": [],
                },
            },
            "eventId": "",
            "opaqueData": "me@example.com",
        }]})
    }

    #[test]
    fn s3s_own_event_stays_as_it_is() {
        let (told, buckets) = event(&of_s3());
        assert_eq!(told, of_s3());
        assert_eq!(buckets, ["amzn-s3-demo-bucket"]);
        assert_eq!(event(&of_s3()["Records"][0]).0, of_s3());
    }

    #[test]
    fn minios_event_is_told_as_s3s() {
        let (event, buckets) = event(&of_minio());
        assert_eq!(buckets, ["images"]);
        assert_eq!(event.as_object().unwrap().len(), 1, "{event}");
        let record = &event["Records"][0];
        for (at, expected) in [
            ("/eventSource", json!("aws:s3")),
            ("/originalEventSource", json!("minio:s3")),
            ("/eventName", json!("ObjectCreated:Put")),
            ("/awsRegion", json!("us-east-1")),
            ("/eventVersion", json!("2.0")),
            ("/s3/object/key", json!("my+photos/a.jpg")),
            ("/s3/object/size", json!(0)),
            ("/s3/object/contentType", json!("image/jpeg")),
            ("/source/host", json!("127.0.0.1")),
        ] {
            assert_eq!(record.pointer(at), Some(&expected), "{at}");
        }
    }

    #[test]
    fn cephs_event_is_told_as_s3s() {
        let (event, buckets) = event(&of_ceph());
        assert_eq!(buckets, ["mybucket1"]);
        let record = &event["Records"][0];
        for (at, expected) in [
            ("/eventSource", json!("aws:s3")),
            ("/originalEventSource", json!("ceph:s3")),
            ("/awsRegion", json!("zonegroup1")),
            ("/s3/bucket/arn", json!("arn:aws:s3:::mybucket1")),
            ("/s3/object/key", json!("a%2Bb+c%25.jpg")),
            ("/s3/object/size", json!(1024)),
            ("/opaqueData", json!("me@example.com")),
        ] {
            assert_eq!(record.pointer(at), Some(&expected), "{at}");
        }
        assert_eq!(record.pointer("/s3/object/versionId"), None);
    }

    /// What VersityGW 1.8.0 was seen to post.
    const OF_VERSITY: &str = r#"{"Records":[{"eventVersion":"2.2","eventSource":"aws:s3","awsRegion":"us-east-1","eventTime":"2026-11-27T11:18:04Z","eventName":"s3:ObjectCreated:Put","userIdentity":{"PrincipalId":"acc"},"requestParameters":{"sourceIPAddress":"127.0.0.1"},"responseElements":{"x-amz-request-id":"","x-amz-id-2":""},"s3":{"s3SchemaVersion":"1.0","configurationId":"webhook-global","bucket":{"name":"images","ownerIdentity":{"PrincipalId":"acc"},"arn":"arn:aws:s3:::/images/dir/red flower+ä.jpg"},"object":{"key":"dir/red flower+ä.jpg","size":3,"eTag":"\"900150983cd24fb0d6963f7d28e17f72\"","versionId":null,"sequencer":"1"}},"glacierEventData":{"restoreEventData":{"lifecycleRestorationExpiryTime":"","lifecycleRestoreStorageClass":""}}}]}"#;
    const VERSITYS_TEST: &str = r#"{"Bucket":"Test-Bucket","Event":"s3:TestEvent","Service":"S3","Time":"2026-11-27T11:18:04Z"}"#;

    #[test]
    fn versitys_event_is_told_as_s3s_and_a_test_is_known() {
        let (event, buckets) = event(&serde_json::from_str(OF_VERSITY).unwrap());
        assert_eq!(buckets, ["images"]);
        let record = &event["Records"][0];
        for (at, expected) in [
            ("/eventName", json!("ObjectCreated:Put")),
            ("/userIdentity", json!({"principalId": "acc"})),
            ("/s3/bucket/ownerIdentity", json!({"principalId": "acc"})),
            ("/s3/bucket/arn", json!("arn:aws:s3:::images")),
            ("/s3/object/key", json!("dir/red+flower%2B%C3%A4.jpg")),
            ("/s3/object/eTag", json!("900150983cd24fb0d6963f7d28e17f72")),
        ] {
            assert_eq!(record.pointer(at), Some(&expected), "{at}");
        }
        assert_eq!(record.pointer("/s3/object/versionId"), None);
        assert_eq!(record.pointer("/originalEventSource"), None);

        let read = S3Notification::read(VERSITYS_TEST.as_bytes(), "us-east-1");
        assert!(matches!(read, Ok(S3Notification::Test)), "{read:?}");
    }

    #[test]
    fn a_key_is_encoded_once() {
        for (sent, is_raw, expected) in [
            ("a/b", false, "a/b"),
            ("a%2fb+c%20d", false, "a/b+c%20d"),
            ("a b+c", false, "a+b%2Bc"),
            ("100%", false, "100%25"),
            ("ä", false, "%C3%A4"),
            ("a%20b", true, "a%2520b"),
        ] {
            assert_eq!(encoded(sent, is_raw), expected, "{sent}");
        }
    }

    #[test]
    fn what_is_no_event_is_refused_with_what_it_lacks() {
        let with = |at: &str, value: Value| {
            let mut event = of_s3();
            *event["Records"][0].pointer_mut(at).unwrap() = value;
            refused(&event.to_string())
        };
        for (said, part) in [
            (refused("{"), "not JSON"),
            (refused("[]"), "no event of S3's kind"),
            (refused("{}"), "no event of S3's kind"),
            (refused(r#"{"Records": {}}"#), "no event of S3's kind"),
            (refused(r#"{"Records": []}"#), "and not 0"),
            (refused(r#"{"Records": [1]}"#), "record 0: it"),
            (with("/eventSource", json!("aws:sqs")), "eventSource"),
            (with("/eventSource", json!(1)), "eventSource"),
            (with("/eventName", json!("s3:")), "eventName"),
            (with("/eventName", json!("Object Created")), "eventName"),
            (with("/eventTime", json!("")), "eventTime"),
            (with("/s3", json!(null)), "s3"),
            (with("/s3/bucket", json!("b")), "s3.bucket.name"),
            (with("/s3/bucket/name", json!("b*")), "s3.bucket.name"),
            (with("/s3/bucket/name", json!("")), "s3.bucket.name"),
            (with("/s3/object/key", json!("")), "s3.object.key"),
            (with("/s3/object", json!([])), "s3.object.key"),
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let one = of_s3()["Records"][0].clone();
        let many = |count: usize| json!({"Records": vec![one.clone(); count]}).to_string();
        assert!(refused(&many(S3_RECORDS_MAX + 1)).contains("and not 1001"));
        let most = S3Notification::read(many(S3_RECORDS_MAX).as_bytes(), "us-east-1");
        assert!(matches!(most, Ok(S3Notification::Event(_))));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    const PLACES: [&str; 14] = [
        "/eventSource",
        "/eventName",
        "/eventTime",
        "/awsRegion",
        "/userIdentity",
        "/s3",
        "/s3/bucket",
        "/s3/bucket/name",
        "/s3/bucket/ownerIdentity",
        "/s3/object",
        "/s3/object/key",
        "/s3/object/size",
        "/s3/object/eTag",
        "/s3/object/versionId",
    ];

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _read = S3Notification::read(&body, "us-east-1").is_ok();
        }

        #[test]
        fn what_is_taken_is_s3s_and_is_taken_again_unchanged(
            which in 0..3,
            changes in prop::collection::vec((0..PLACES.len(), json_value()), 0..4),
        ) {
            let mut sent = [of_s3(), of_minio(), of_ceph()][usize::try_from(which).unwrap()].clone();
            for (place, value) in changes {
                if let Some(at) = sent["Records"][0].pointer_mut(PLACES[place]) {
                    *at = value;
                }
            }
            let read = S3Notification::read(sent.to_string().as_bytes(), "us-east-1");
            if let Ok(S3Notification::Event(once)) = read {
                let told: Value = serde_json::from_slice(&once.payload).unwrap();
                let record = &told["Records"][0];
                prop_assert_eq!(&record["eventSource"], "aws:s3");
                let bucket = record["s3"]["bucket"]["name"].as_str().unwrap();
                prop_assert!(once.buckets.contains(bucket) && once.buckets.len() == 1);
                prop_assert_eq!(&record["s3"]["bucket"]["arn"], &json!(s3_arn(bucket)));
                let again = S3Notification::read(&once.payload, "us-east-1");
                let Ok(S3Notification::Event(again)) = again else {
                    panic!("{again:?}");
                };
                prop_assert_eq!(once.payload, again.payload);
            }
        }
    }
}
