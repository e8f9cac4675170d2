//! Runtimes by name: what lies below a function's code.

use std::collections::BTreeMap;

/// AWS's public images for its runtimes (AWS, "Lambda runtimes").
const IMAGES: [(&str, &str); 29] = [
    ("dotnet10", "dotnet:10"),
    ("dotnet6", "dotnet:6"),
    ("dotnet8", "dotnet:8"),
    ("java11", "java:11"),
    ("java17", "java:17"),
    ("java21", "java:21"),
    ("java25", "java:25"),
    ("java8.al2", "java:8.al2"),
    ("nodejs12.x", "nodejs:12"),
    ("nodejs14.x", "nodejs:14"),
    ("nodejs16.x", "nodejs:16"),
    ("nodejs18.x", "nodejs:18"),
    ("nodejs20.x", "nodejs:20"),
    ("nodejs22.x", "nodejs:22"),
    ("nodejs24.x", "nodejs:24"),
    ("python3.10", "python:3.10"),
    ("python3.11", "python:3.11"),
    ("python3.12", "python:3.12"),
    ("python3.13", "python:3.13"),
    ("python3.14", "python:3.14"),
    ("python3.6", "python:3.6"),
    ("python3.7", "python:3.7"),
    ("python3.8", "python:3.8"),
    ("python3.9", "python:3.9"),
    ("ruby2.7", "ruby:2.7"),
    ("ruby3.2", "ruby:3.2"),
    ("ruby3.3", "ruby:3.3"),
    ("ruby3.4", "ruby:3.4"),
    ("ruby4.0", "ruby:4.0"),
];
const REGISTRY: &str = "public.ecr.aws/lambda/";
/// Runtimes that are the code's own `bootstrap`.
const OWN: [&str; 3] = ["provided", "provided.al2", "provided.al2023"];
/// A handler, bytes (botocore's service model).
const HANDLER_BYTES_MAX: usize = 128;

/// What lies below a function's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// An image; nothing when it is absent.
    pub image: Option<String>,
    /// The code has the program itself: a file `bootstrap`.
    pub bootstrap: bool,
}

/// No image is known for a runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the runtime {0} has no image here: a line `{0:?} = \"IMAGE\"` below [lambda.runtimes] in the server's configuration gives it one"
)]
pub struct UnknownRuntime(String);

impl Runtime {
    /// The runtime of this name, as the configuration has it, or AWS.
    ///
    /// # Errors
    /// When neither knows it.
    pub fn named(name: &str, mapped: &BTreeMap<String, String>) -> Result<Self, UnknownRuntime> {
        let bootstrap = OWN.contains(&name);
        if let Some(image) = mapped.get(name) {
            let image = Some(image.clone());
            return Ok(Self { image, bootstrap });
        }
        if bootstrap {
            let image = None;
            return Ok(Self { image, bootstrap });
        }
        let known = IMAGES.iter().find(|(known, _)| *known == name);
        let (_, image) = known.ok_or_else(|| {
            let shown = name.chars().take(64).collect();
            UnknownRuntime(shown)
        })?;
        let image = Some(format!("{REGISTRY}{image}"));
        Ok(Self { image, bootstrap })
    }
}

/// Whether a text can be a handler.
#[must_use]
pub fn is_handler(text: &str) -> bool {
    !text.is_empty() && text.len() <= HANDLER_BYTES_MAX && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_the_configurations_or_awss() {
        let mapped = BTreeMap::from(
            [
                ("python3.12", "mine:1"),
                ("provided.al2", "base:2"),
                ("own", "own:3"),
            ]
            .map(|(name, image)| (name.to_owned(), image.to_owned())),
        );
        for (name, image, bootstrap) in [
            ("python3.12", Some("mine:1"), false),
            (
                "python3.13",
                Some("public.ecr.aws/lambda/python:3.13"),
                false,
            ),
            ("java8.al2", Some("public.ecr.aws/lambda/java:8.al2"), false),
            ("own", Some("own:3"), false),
            ("provided.al2", Some("base:2"), true),
            ("provided.al2023", None, true),
        ] {
            let image = image.map(str::to_owned);
            let expected = Runtime { image, bootstrap };
            assert_eq!(Runtime::named(name, &mapped), Ok(expected));
        }
        let error = Runtime::named("go1.x", &mapped).unwrap_err().to_string();
        assert!(
            error.contains(r#"`"go1.x" = "IMAGE"` below [lambda.runtimes]"#),
            "{error}"
        );
    }

    #[test]
    fn a_handler_is_one_word() {
        assert!(is_handler("app.handler") && is_handler("pkg::Type::Method"));
        assert!(!is_handler("") && !is_handler("a b") && !is_handler(&"x".repeat(129)));
    }
}
