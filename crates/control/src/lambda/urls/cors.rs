//! What pages of other origins may do with a URL (the Fetch standard, "CORS
//! protocol"). Where a URL has a configuration, it and not the function says so.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use skiff_lambda::LambdaError;

use crate::lambda::call::invalid;
use crate::lambda::record::Cors;

/// The bounds of botocore's service model.
const LIST_MAX: usize = 100;
const METHODS_MAX: usize = 6;
const ORIGIN_BYTES_MAX: usize = 253;
const HEADER_BYTES_MAX: usize = 1024;
const AGE_S_MAX: u32 = 86_400;
const METHODS: [&str; 7] = ["GET", "PUT", "HEAD", "POST", "PATCH", "DELETE", "*"];
const ANY: &str = "*";
const SAID_HERE: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// A configuration within AWS's bounds; an empty one is none.
///
/// # Errors
/// What of it is not.
pub(crate) fn checked(cors: Option<Cors>) -> Result<Option<Cors>, LambdaError> {
    let Some(cors) = cors.filter(|cors| *cors != Cors::default()) else {
        return Ok(None);
    };
    let header = |text: &str| {
        text == ANY || (text.len() <= HEADER_BYTES_MAX && text.parse::<HeaderName>().is_ok())
    };
    each(
        "AllowHeaders",
        cors.allow_headers.as_ref(),
        LIST_MAX,
        header,
    )?;
    each(
        "ExposeHeaders",
        cors.expose_headers.as_ref(),
        LIST_MAX,
        header,
    )?;
    let method = |text: &str| METHODS.contains(&text);
    each(
        "AllowMethods",
        cors.allow_methods.as_ref(),
        METHODS_MAX,
        method,
    )?;
    each(
        "AllowOrigins",
        cors.allow_origins.as_ref(),
        LIST_MAX,
        is_origin,
    )?;
    if cors.max_age.is_some_and(|age| age > AGE_S_MAX) {
        return Err(invalid(format!("Cors.MaxAge is 0 to {AGE_S_MAX}")));
    }
    Ok(Some(cors))
}

fn each(
    name: &str,
    values: Option<&Vec<String>>,
    most: usize,
    is_good: impl Fn(&str) -> bool,
) -> Result<(), LambdaError> {
    let values = values.map(Vec::as_slice).unwrap_or_default();
    if values.len() > most {
        return Err(invalid(format!("Cors.{name} has at most {most} values")));
    }
    match values.iter().find(|value| !is_good(value)) {
        Some(bad) => {
            let bad: String = bad.chars().take(80).collect();
            Err(invalid(format!("Cors.{name} takes no `{bad}`")))
        }
        None => Ok(()),
    }
}

fn is_origin(text: &str) -> bool {
    let is_host = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'/');
    let names = |(scheme, host): (&str, &str)| {
        !scheme.is_empty() && !host.is_empty() && host.bytes().all(is_host)
    };
    text == ANY || (text.len() <= ORIGIN_BYTES_MAX && text.split_once("://").is_some_and(names))
}

/// Whether a browser asks what it may send.
pub(crate) fn is_preflight(parts: &Parts) -> bool {
    let asks = |name| parts.headers.contains_key(name);
    parts.method == Method::OPTIONS && asks(ORIGIN) && asks(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// Says in a reply what a page of this origin may do.
    pub(crate) fn apply(
        &self,
        origin: Option<&HeaderValue>,
        is_preflight: bool,
        headers: &mut HeaderMap,
    ) {
        for name in SAID_HERE {
            headers.remove(name);
        }
        let allowed = self.allow_origins.as_deref().unwrap_or_default();
        let is_open = allowed.iter().any(|known| known == ANY);
        if !is_open {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = origin else { return };
        let is_allowed = |known: &String| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
        if is_open {
            // Browsers refuse credentials with this, as the standard says.
            set(headers, ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        } else if allowed.iter().any(is_allowed) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        } else {
            return;
        }
        if self.allow_credentials == Some(true) {
            set(headers, ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
        }
        list(
            headers,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            self.expose_headers.as_ref(),
        );
        if !is_preflight {
            return;
        }
        list(
            headers,
            ACCESS_CONTROL_ALLOW_METHODS,
            self.allow_methods.as_ref(),
        );
        list(
            headers,
            ACCESS_CONTROL_ALLOW_HEADERS,
            self.allow_headers.as_ref(),
        );
        if let Some(age) = self.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, age.into());
        }
    }
}

fn list(headers: &mut HeaderMap, name: HeaderName, values: Option<&Vec<String>>) {
    if let Some(values) = values.filter(|values| !values.is_empty()) {
        set(headers, name, &values.join(","));
    }
}

/// Values are checked before they are kept.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origin: &str) -> Cors {
        let one = |text: &str| Some(vec![text.to_owned()]);
        Cors {
            allow_credentials: Some(true),
            allow_headers: one("X-Asked"),
            allow_methods: Some(vec!["GET".to_owned(), "PUT".to_owned()]),
            allow_origins: one(origin),
            expose_headers: one("X-Told"),
            max_age: Some(60),
        }
    }

    fn applied(origin: &str, asked: &str, is_preflight: bool) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        set(
            &mut headers,
            ACCESS_CONTROL_ALLOW_ORIGIN,
            "https://function.says",
        );
        let asked = HeaderValue::from_str(asked).unwrap();
        cors(origin).apply(Some(&asked), is_preflight, &mut headers);
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = name.as_str().replace("access-control-", "");
            (name, value.to_str().unwrap().to_owned())
        };
        let mut told: Vec<_> = headers.iter().map(text).collect();
        told.sort();
        told
    }

    #[test]
    fn an_origin_is_told_what_it_may_and_no_other_is() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let plain = [
            pair("allow-credentials", "true"),
            pair("allow-origin", "https://a.test"),
            pair("expose-headers", "X-Told"),
            pair("vary", "origin"),
        ];
        assert_eq!(applied("https://a.test", "https://a.test", false), plain);
        let preflight = applied("https://a.test", "https://a.test", true);
        for told in [
            pair("allow-methods", "GET,PUT"),
            pair("allow-headers", "X-Asked"),
            pair("max-age", "60"),
        ] {
            assert!(preflight.contains(&told), "{told:?}");
        }
        let other = [pair("vary", "origin")];
        assert_eq!(applied("https://a.test", "https://b.test", true), other);
        let open = applied("*", "https://b.test", false);
        assert!(open.contains(&pair("allow-origin", "*")), "{open:?}");
    }

    #[test]
    fn a_configuration_has_awss_bounds() {
        assert_eq!(checked(Some(Cors::default())), Ok(None));
        assert!(checked(Some(cors("*"))).is_ok());
        for bad in [
            "",
            "a.test",
            "https://",
            "https://a.test/",
            "https://a,b",
            "https://ä",
        ] {
            assert!(checked(Some(cors(bad))).is_err(), "{bad}");
        }
        let with = |change: fn(&mut Cors)| {
            let mut cors = cors("*");
            change(&mut cors);
            checked(Some(cors))
        };
        assert!(with(|cors| cors.max_age = Some(86_401)).is_err());
        assert!(with(|cors| cors.allow_methods = Some(vec!["TRACE".to_owned()])).is_err());
        assert!(with(|cors| cors.allow_headers = Some(vec!["a b".to_owned()])).is_err());
        assert!(with(|cors| cors.expose_headers = Some(vec!["a".to_owned(); 101])).is_err());
    }
}
