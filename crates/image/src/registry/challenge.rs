//! What a registry asks for when it answers 401 (RFC 9110 § 11.6.1).

/// One way to prove who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token from `realm` (distribution-spec, token authentication).
    Bearer {
        realm: String,
        service: Option<String>,
    },
    /// Anything else, by its name.
    Unknown(String),
}

/// Reads the challenges of one header line; what cannot be read is left out.
pub(super) fn parse(line: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = line.trim_start();
    while let Some((scheme, after)) = token(rest) {
        let (parameters, left) = parameters(after);
        challenges.push(challenge(scheme, &parameters));
        rest = left;
    }
    challenges
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Challenge {
    let value = |wanted: &str| {
        let found = parameters.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone())
    };
    match (scheme.to_ascii_lowercase().as_str(), value("realm")) {
        ("basic", _) => Challenge::Basic,
        ("bearer", Some(realm)) => Challenge::Bearer {
            realm,
            service: value("service"),
        },
        _ => Challenge::Unknown(scheme.chars().take(40).collect()),
    }
}

/// `name=value` and `name="value"` behind commas, up to the next scheme.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = token(start) else {
            return (found, "");
        };
        let Some(value) = after.trim_start().strip_prefix('=') else {
            return (found, start);
        };
        let (value, after) = value_of(value.trim_start());
        found.push((name.to_ascii_lowercase(), value));
        rest = after;
    }
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let table = [
            (r#"Basic realm="a""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#,
                vec![bearer("https://a/t", Some("s"))],
            ),
            (
                r#"Bearer realm=https://a , error="x\"y", Basic realm="b""#,
                vec![bearer("https://a", None), Challenge::Basic],
            ),
            (
                r#"Negotiate, Bearer realm="r""#,
                vec![Challenge::Unknown("Negotiate".into()), bearer("r", None)],
            ),
            ("Bearer", vec![Challenge::Unknown("Bearer".into())]),
            (r#"Bearer realm="open"#, vec![bearer("open", None)]),
            ("", vec![]),
            (",=é", vec![]),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
