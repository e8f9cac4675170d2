//! Event patterns (Lambda, "Filter rule syntax"; EventBridge, "Comparison
//! operators"): an object like the event, with lists of tests in place of its
//! values.

use serde_json::{Map, Value};

/// The longest pattern, bytes (AWS's limit).
const PATTERN_BYTES_MAX: usize = 4096;
const OR: &str = "$or";
const OPERATORS: &str =
    "prefix, suffix, equals-ignore-case, anything-but, numeric, exists and wildcard";
/// What one test of numbers may say (EventBridge).
const COMPARISONS_MAX: usize = 2;

/// A text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is too long.
    #[error("a filter pattern has at most {PATTERN_BYTES_MAX} bytes")]
    TooLong,
    /// It is no JSON.
    #[error("the filter pattern is not JSON: {0}")]
    Json(String),
    /// It is not of the form that patterns have.
    #[error("the filter pattern is not one at `{at}`: {why}")]
    Form {
        /// The field, or the operator.
        at: String,
        /// What is expected there.
        why: &'static str,
    },
    /// It has an operator that nobody knows.
    #[error("the filter pattern has the operator `{0}`: {OPERATORS} are served")]
    Operator(String),
}

/// Which events are taken.
#[derive(Clone, Debug, PartialEq)]
pub struct EventPattern(Fields);

/// What an object must be: every field, and one of each list of choices.
#[derive(Clone, Debug, Default, PartialEq)]
struct Fields {
    fields: Vec<(String, Want)>,
    choices: Vec<Vec<Fields>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Want {
    Object(Fields),
    AnyOf(Vec<Test>),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Is(Value),
    Prefix(String),
    Suffix(String),
    /// In lower case, as the next two.
    IgnoreCase(String),
    PrefixIgnoreCase(String),
    SuffixIgnoreCase(String),
    /// What stands between the asterisks.
    Wildcard(Vec<String>),
    Numeric(Vec<(Order, f64)>),
    Exists(bool),
    NoneOf(Vec<Test>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

impl EventPattern {
    /// Reads one.
    ///
    /// # Errors
    /// What of it is not a pattern's.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        let read: Value =
            serde_json::from_str(text).map_err(|error| PatternError::Json(error.to_string()))?;
        let object = read.as_object();
        let object = object.ok_or_else(|| form("", "an object is expected"))?;
        Fields::read("", object).map(Self)
    }

    /// Whether the event is taken.
    #[must_use]
    pub fn takes(&self, event: &Value) -> bool {
        self.0.hold(Some(event))
    }

    /// Whether it looks into this field of the event as an object.
    #[must_use]
    pub fn looks_into(&self, field: &str) -> bool {
        self.0.look_into(field)
    }
}

fn form(at: &str, why: &'static str) -> PatternError {
    let at = at.chars().take(100).collect();
    PatternError::Form { at, why }
}

impl Fields {
    fn read(at: &str, object: &Map<String, Value>) -> Result<Self, PatternError> {
        if object.is_empty() {
            return Err(form(at, "an object has fields"));
        }
        let mut read = Self::default();
        for (name, value) in object {
            match (name.as_str(), value) {
                (OR, Value::Array(choices)) => read.choices.push(choices_of(choices)?),
                (_, Value::Object(inner)) => {
                    let inner = Self::read(name, inner)?;
                    read.fields.push((name.clone(), Want::Object(inner)));
                }
                (_, Value::Array(tests)) if !tests.is_empty() => {
                    let tests = tests.iter().map(|test| Test::read(name, test));
                    let tests = tests.collect::<Result<_, _>>()?;
                    read.fields.push((name.clone(), Want::AnyOf(tests)));
                }
                _ => return Err(form(name, "an object or a list of tests is expected")),
            }
        }
        Ok(read)
    }

    /// Of an array, one element must be so.
    fn hold(&self, value: Option<&Value>) -> bool {
        if let Some(Value::Array(items)) = value {
            return items.iter().any(|item| self.hold(Some(item)));
        }
        let object = value.and_then(Value::as_object);
        let field = |name: &String| object.and_then(|object| object.get(name));
        let all = self
            .fields
            .iter()
            .all(|(name, want)| want.holds(field(name)));
        let one = |choice: &Vec<Self>| choice.iter().any(|fields| fields.hold(value));
        all && self.choices.iter().all(one)
    }

    fn look_into(&self, field: &str) -> bool {
        let inside =
            |(name, want): &(String, Want)| name == field && matches!(want, Want::Object(_));
        let mut choices = self.choices.iter().flatten();
        self.fields.iter().any(inside) || choices.any(|choice| choice.look_into(field))
    }
}

fn choices_of(choices: &[Value]) -> Result<Vec<Fields>, PatternError> {
    let choice = |choice: &Value| {
        let object = choice.as_object();
        Fields::read(OR, object.ok_or_else(|| form(OR, "objects are expected"))?)
    };
    if choices.len() < 2 {
        return Err(form(OR, "two objects or more are expected"));
    }
    choices.iter().map(choice).collect()
}

impl Want {
    fn holds(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Object(fields) => fields.hold(value),
            Self::AnyOf(tests) => tests.iter().any(|test| test.holds(value)),
        }
    }
}

impl Test {
    fn read(field: &str, test: &Value) -> Result<Self, PatternError> {
        let object = match test {
            Value::Object(object) => object,
            Value::Array(_) => return Err(form(field, "a list has no list in it")),
            scalar => return Ok(Self::Is(scalar.clone())),
        };
        let mut operators = object.iter();
        let (Some((operator, value)), None) = (operators.next(), operators.next()) else {
            return Err(form(field, "a test has one operator"));
        };
        match operator.as_str() {
            "anything-but" => none_of(field, value),
            "numeric" => numeric(field, value),
            "exists" => match value {
                Value::Bool(wanted) => Ok(Self::Exists(*wanted)),
                _ => Err(form(field, "exists is true or false")),
            },
            operator => Self::of_text(field, operator, value),
        }
    }

    fn of_text(field: &str, operator: &str, value: &Value) -> Result<Self, PatternError> {
        const CASELESS: &str = "equals-ignore-case";
        let inner = value.as_object().filter(|inner| inner.len() == 1);
        let caseless = inner.and_then(|inner| inner.get(CASELESS)?.as_str());
        let read = match (operator, value.as_str(), caseless) {
            ("prefix", Some(text), _) => Self::Prefix(text.to_owned()),
            ("suffix", Some(text), _) => Self::Suffix(text.to_owned()),
            (CASELESS, Some(text), _) => Self::IgnoreCase(text.to_lowercase()),
            ("wildcard", Some(text), _) => wildcard(field, text)?,
            ("prefix", None, Some(text)) => Self::PrefixIgnoreCase(text.to_lowercase()),
            ("suffix", None, Some(text)) => Self::SuffixIgnoreCase(text.to_lowercase()),
            ("prefix" | "suffix" | CASELESS | "wildcard", None, _) => {
                return Err(form(field, "the operator takes a text"));
            }
            (other, ..) => {
                let name = other.chars().take(100).collect();
                return Err(PatternError::Operator(name));
            }
        };
        Ok(read)
    }

    /// Of an array, one element must be so; what is an object is no value.
    fn holds(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Exists(wanted), value) => {
                value.is_some_and(|value| !value.is_object()) == *wanted
            }
            (_, None) => false,
            (_, Some(Value::Array(items))) => items.iter().any(|item| self.is_of(item)),
            (_, Some(value)) => self.is_of(value),
        }
    }

    fn is_of(&self, value: &Value) -> bool {
        if value.is_object() || value.is_array() {
            return false;
        }
        let text = value.as_str();
        match self {
            Self::Is(wanted) => value == wanted,
            Self::NoneOf(tests) => !tests.iter().any(|test| test.is_of(value)),
            Self::Exists(wanted) => *wanted,
            Self::Numeric(comparisons) => value.as_f64().is_some_and(|value| {
                let mut all = comparisons.iter();
                all.all(|(order, than)| order.holds(value, *than))
            }),
            Self::Prefix(wanted) => text.is_some_and(|text| text.starts_with(wanted)),
            Self::Suffix(wanted) => text.is_some_and(|text| text.ends_with(wanted)),
            Self::IgnoreCase(wanted) => text.is_some_and(|text| text.to_lowercase() == *wanted),
            Self::PrefixIgnoreCase(wanted) => {
                text.is_some_and(|text| text.to_lowercase().starts_with(wanted))
            }
            Self::SuffixIgnoreCase(wanted) => {
                text.is_some_and(|text| text.to_lowercase().ends_with(wanted))
            }
            Self::Wildcard(pieces) => text.is_some_and(|text| is_wild(pieces, text)),
        }
    }
}

fn none_of(field: &str, value: &Value) -> Result<Test, PatternError> {
    let scalar = |value: &Value| match value {
        Value::String(_) | Value::Number(_) => Ok(Test::Is(value.clone())),
        _ => Err(form(
            field,
            "anything-but takes texts, numbers or one operator",
        )),
    };
    let tests = match value {
        Value::Array(values) if !values.is_empty() => values.iter().map(scalar).collect(),
        // `{"prefix": "a"}`, or `{"prefix": ["a", "b"]}`.
        Value::Object(inner) => {
            let mut operators = inner.iter();
            let (Some((operator, value)), None) = (operators.next(), operators.next()) else {
                return Err(form(field, "anything-but takes one operator"));
            };
            let read = |value: &Value| Test::of_text(field, operator, value);
            match value {
                Value::Array(values) if !values.is_empty() => values.iter().map(read).collect(),
                value => read(value).map(|test| vec![test]),
            }
        }
        value => scalar(value).map(|test| vec![test]),
    };
    tests.map(Test::NoneOf)
}

fn numeric(field: &str, value: &Value) -> Result<Test, PatternError> {
    let wrong = || form(field, "numeric is as [\">\", 0, \"<=\", 5] is");
    let parts = value.as_array().ok_or_else(wrong)?;
    let pairs = parts.chunks(2);
    if pairs.len() == 0 || pairs.len() > COMPARISONS_MAX {
        return Err(wrong());
    }
    let pair = |pair: &[Value]| {
        let [order, than] = pair else {
            return Err(wrong());
        };
        let order = match order.as_str() {
            Some("<") => Order::Less,
            Some("<=") => Order::AtMost,
            Some("=") => Order::Equal,
            Some(">=") => Order::AtLeast,
            Some(">") => Order::More,
            _ => return Err(wrong()),
        };
        Ok((order, than.as_f64().ok_or_else(wrong)?))
    };
    let comparisons = pairs.map(pair).collect::<Result<_, _>>()?;
    Ok(Test::Numeric(comparisons))
}

impl Order {
    fn holds(self, value: f64, than: f64) -> bool {
        match self {
            Self::Less => value < than,
            Self::AtMost => value <= than,
            Self::Equal => value.total_cmp(&than).is_eq(),
            Self::AtLeast => value >= than,
            Self::More => value > than,
        }
    }
}

/// The pieces between asterisks; `\*` and `\\` are the characters themselves.
fn wildcard(field: &str, text: &str) -> Result<Test, PatternError> {
    let mut pieces = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        let char = match char {
            '*' => {
                pieces.push(String::new());
                continue;
            }
            '\\' => match chars.next() {
                Some(escaped @ ('*' | '\\')) => escaped,
                _ => return Err(form(field, "in a wildcard \\* and \\\\ are escapes")),
            },
            other => other,
        };
        if let Some(last) = pieces.last_mut() {
            last.push(char);
        }
    }
    let between = pieces.len().saturating_sub(2);
    let mut middle = pieces.iter().skip(1).take(between);
    if middle.any(String::is_empty) {
        return Err(form(field, "in a wildcard no * follows another"));
    }
    Ok(Test::Wildcard(pieces))
}

/// Takes each piece where it comes first: no text makes it look back.
fn is_wild(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only == text);
    };
    let Some(mut rest) = text.strip_prefix(first.as_str()) else {
        return false;
    };
    for piece in middle {
        let Some(at) = rest.find(piece.as_str()) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn takes(pattern: &str, event: Value) -> bool {
        EventPattern::parse(pattern).unwrap().takes(&event)
    }

    #[test]
    fn events_are_taken_as_patterns_say() {
        for (pattern, event, expected) in [
            (r#"{"a":["x"]}"#, json!({"a": "x", "b": 1}), true),
            (r#"{"a":["x","y"]}"#, json!({"a": "y"}), true),
            (r#"{"a":["x"]}"#, json!({"a": "X"}), false),
            (r#"{"a":["x"]}"#, json!({}), false),
            (r#"{"a":["x"]}"#, json!({"a": ["z", "x"]}), true),
            (r#"{"a":[null]}"#, json!({"a": null}), true),
            (r#"{"a":[null]}"#, json!({}), false),
            (r#"{"a":[""]}"#, json!({"a": ""}), true),
            (r#"{"a":[1,true]}"#, json!({"a": true}), true),
            (r#"{"a":[1]}"#, json!({"a": "1"}), false),
            (r#"{"a":{"b":["x"]}}"#, json!({"a": {"b": "x"}}), true),
            (
                r#"{"a":{"b":["x"]}}"#,
                json!({"a": [{"b": "y"}, {"b": "x"}]}),
                true,
            ),
            (r#"{"a":{"b":["x"]}}"#, json!({"a": "x"}), false),
            (
                r#"{"a":["x"],"b":["y"]}"#,
                json!({"a": "x", "b": "z"}),
                false,
            ),
            (
                r#"{"$or":[{"a":["x"]},{"b":["y"]}]}"#,
                json!({"a": "z", "b": "y"}),
                true,
            ),
            (
                r#"{"$or":[{"a":["x"]},{"b":["y"]}]}"#,
                json!({"a": "z"}),
                false,
            ),
            (
                r#"{"c":[1],"$or":[{"a":["x"]},{"b":["y"]}]}"#,
                json!({"a": "x"}),
                false,
            ),
            (r#"{"a":[{"prefix":"eu-"}]}"#, json!({"a": "eu-1"}), true),
            (
                r#"{"a":[{"prefix":{"equals-ignore-case":"EU-"}}]}"#,
                json!({"a": "eU-1"}),
                true,
            ),
            (r#"{"a":[{"suffix":".png"}]}"#, json!({"a": "a.png"}), true),
            (
                r#"{"a":[{"suffix":{"equals-ignore-case":".PNG"}}]}"#,
                json!({"a": "a.png"}),
                true,
            ),
            (r#"{"a":[{"suffix":".png"}]}"#, json!({"a": 1}), false),
            (
                r#"{"a":[{"equals-ignore-case":"JohN"}]}"#,
                json!({"a": "jOhn"}),
                true,
            ),
            (r#"{"a":[{"anything-but":"x"}]}"#, json!({"a": "y"}), true),
            (
                r#"{"a":[{"anything-but":["x","y"]}]}"#,
                json!({"a": "y"}),
                false,
            ),
            (r#"{"a":[{"anything-but":[1,2]}]}"#, json!({"a": 3}), true),
            (r#"{"a":[{"anything-but":"x"}]}"#, json!({}), false),
            (
                r#"{"a":[{"anything-but":{"prefix":"x"}}]}"#,
                json!({"a": "xy"}),
                false,
            ),
            (
                r#"{"a":[{"anything-but":{"suffix":["x","y"]}}]}"#,
                json!({"a": "zz"}),
                true,
            ),
            (
                r#"{"a":[{"anything-but":{"wildcard":"*/lib/*"}}]}"#,
                json!({"a": "a/lib/b"}),
                false,
            ),
            (
                r#"{"a":[{"numeric":["=",100]}]}"#,
                json!({"a": 100.0}),
                true,
            ),
            (
                r#"{"a":[{"numeric":[">",10,"<=",20]}]}"#,
                json!({"a": 20}),
                true,
            ),
            (
                r#"{"a":[{"numeric":[">",10,"<=",20]}]}"#,
                json!({"a": 10}),
                false,
            ),
            (r#"{"a":[{"numeric":["<",10]}]}"#, json!({"a": "5"}), false),
            (r#"{"a":[{"exists":true}]}"#, json!({"a": null}), true),
            (r#"{"a":[{"exists":true}]}"#, json!({"a": {"b": 1}}), false),
            (r#"{"a":[{"exists":false}]}"#, json!({"b": 1}), true),
            (r#"{"a":{"b":[{"exists":false}]}}"#, json!({}), true),
            (r#"{"a":["x",{"exists":false}]}"#, json!({"a": "x"}), true),
            (
                r#"{"a":[{"wildcard":"dir/*.png"}]}"#,
                json!({"a": "dir/a/b.png"}),
                true,
            ),
            (
                r#"{"a":[{"wildcard":"*a*a*"}]}"#,
                json!({"a": "xax"}),
                false,
            ),
            (
                r#"{"a":[{"wildcard":"ab*ba"}]}"#,
                json!({"a": "aba"}),
                false,
            ),
            (r#"{"a":[{"wildcard":"\\**"}]}"#, json!({"a": "*x"}), true),
            (
                r#"{"a":[{"wildcard":"plain"}]}"#,
                json!({"a": "plain"}),
                true,
            ),
            (r#"{"a":[{"wildcard":"*"}]}"#, json!({"a": ""}), true),
        ] {
            assert_eq!(takes(pattern, event.clone()), expected, "{pattern} {event}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"a":"x"}"#,
            r#"{"a":[]}"#,
            r#"{"a":{}}"#,
            r#"{"a":[["x"]]}"#,
            r#"{"a":[{}]}"#,
            r#"{"a":[{"prefix":1}]}"#,
            r#"{"a":[{"prefix":"a","suffix":"b"}]}"#,
            r#"{"a":[{"like":"x"}]}"#,
            r#"{"a":[{"exists":"yes"}]}"#,
            r#"{"a":[{"numeric":[">"]}]}"#,
            r#"{"a":[{"numeric":[]}]}"#,
            r#"{"a":[{"numeric":["!=",1]}]}"#,
            r#"{"a":[{"numeric":[">",1,"<",2,"=",3]}]}"#,
            r#"{"a":[{"anything-but":[]}]}"#,
            r#"{"a":[{"anything-but":{"numeric":["=",1]}}]}"#,
            r#"{"a":[{"wildcard":"a**b"}]}"#,
            r#"{"a":[{"wildcard":"a\\b"}]}"#,
            r#"{"$or":[{"a":["x"]}]}"#,
            r#"{"$or":["a","b"]}"#,
        ] {
            assert!(EventPattern::parse(wrong).is_err(), "{wrong}");
        }
        let long = format!(r#"{{"a":["{}"]}}"#, "x".repeat(PATTERN_BYTES_MAX));
        assert_eq!(EventPattern::parse(&long), Err(PatternError::TooLong));
        let deep = "{\"a\":".repeat(600) + "[1]" + &"}".repeat(600);
        assert!(matches!(
            EventPattern::parse(&deep),
            Err(PatternError::Json(_))
        ));
    }

    #[test]
    fn a_pattern_knows_where_it_looks_into_objects() {
        let looks = |text: &str| EventPattern::parse(text).unwrap().looks_into("body");
        assert!(looks(r#"{"body":{"a":[1]}}"#));
        assert!(looks(r#"{"$or":[{"x":[1]},{"body":{"a":[1]}}]}"#));
        assert!(!looks(r#"{"body":["plain"]}"#));
        assert!(!looks(r#"{"x":{"body":{"a":[1]}}}"#));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            text in r#"[{}\[\]":,a*0-9$or\\ ]{0,60}"#, event in "[a*]{0,30}",
        ) {
            if let Ok(pattern) = EventPattern::parse(&text) {
                let _taken = pattern.takes(&json!({"a": event}));
            }
        }

        #[test]
        fn a_wildcard_takes_what_it_was_made_of(pieces in proptest::collection::vec("[ab]{1,3}", 1..5), between in "[ab]{0,4}") {
            let wild = pieces.join("*");
            let text = pieces.join(&between);
            let pattern = json!({"a": [{"wildcard": wild}]}).to_string();
            let taken = takes(&pattern, json!({"a": text}));
            proptest::prop_assert!(taken);
        }
    }
}
