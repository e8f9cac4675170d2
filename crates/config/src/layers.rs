use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::Config;

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Flag(flag) => write!(f, "the flag {flag}"),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A value does not fit its key, or there is no such key.
    #[error("{source_}{at}: {message}", at = at(*line, key))]
    Wrong {
        /// Where it was said.
        source_: Source,
        /// Its line in the file.
        line: Option<usize>,
        /// Which key.
        key: Option<String>,
        /// What is wrong.
        message: String,
    },
}

fn at(line: Option<usize>, key: &Option<String>) -> String {
    let line = line
        .map(|line| format!(", line {line}"))
        .unwrap_or_default();
    let key = key
        .as_ref()
        .map(|key| format!(", {key}"))
        .unwrap_or_default();
    line + &key
}

/// Reads the file if one is given, then the variables named
/// `SKIFF_SECTION_KEY`, then the flags (`--set section.key=value`).
///
/// # Errors
/// The first setting that is wrong, with where it was said.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Config, ConfigError> {
    let mut table = match file {
        Some(path) => read_file(path)?,
        None => Table::new(),
    };
    let keys = known_keys();
    let mut variables: Vec<_> = environment.into_iter().collect();
    variables.sort();
    for (name, text) in variables {
        if let Some(key) = keys.iter().find(|key| variable_of(key) == name) {
            set(&mut table, key, &text, Source::Environment(name))?;
        }
    }
    for (key, text) in flags {
        set(
            &mut table,
            key,
            text,
            Source::Flag(format!("--set {key}={text}")),
        )?;
    }
    let config: Config = table.clone().try_into().map_err(|error: toml::de::Error| {
        wrong(
            Source::Flag("--set".to_owned()),
            None,
            None,
            error.message(),
        )
    })?;
    check(&config, file)?;
    Ok(config)
}

/// Tables of names that are not ours: each is one value.
const MAPS: [&str; 2] = ["lambda.runtimes", "roles"];

/// Every key there is, dotted, in the order of the structs.
pub(crate) fn known_keys() -> Vec<String> {
    let mut keys = Vec::new();
    let optional = [
        "api.listen",
        "api.tls_certificate",
        "api.tls_key",
        "lambda.events.dynamodb_access_key",
        "lambda.events.dynamodb_endpoint",
        "lambda.events.dynamodb_secret_file",
        "lambda.events.sqs_access_key",
        "lambda.events.sqs_endpoint",
        "lambda.events.sqs_secret_file",
        "lambda.listen",
        "lambda.s3.access_key_id",
        "lambda.s3.endpoint",
        "lambda.s3.secret_access_key_file",
        "secrets.key_file",
    ];
    if let Ok(table) = Table::try_from(Config::default()) {
        collect("", &table, &mut keys);
    }
    keys.extend(optional.map(str::to_owned));
    keys
}

fn collect(prefix: &str, table: &Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(inner) if !MAPS.contains(&key.as_str()) => {
                collect(&format!("{key}."), inner, keys);
            }
            _ => keys.push(key),
        }
    }
}

fn variable_of(key: &str) -> String {
    format!("SKIFF_{}", key.replace('.', "_").to_uppercase())
}

fn wrong(source_: Source, line: Option<usize>, key: Option<String>, message: &str) -> ConfigError {
    let message = message.replace('\n', " ");
    ConfigError::Wrong {
        source_,
        line,
        key,
        message,
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let refuse = |error: toml::de::Error| {
        let line = error.span().map(|span| line_of(&text, span.start));
        let key = error.span().and_then(|span| key_at(&text, span.start));
        wrong(Source::File(path.to_owned()), line, key, error.message())
    };
    // The typed reading knows lines; the table is what the rest is laid over.
    toml::from_str::<Config>(&text).map_err(refuse)?;
    toml::from_str::<Table>(&text).map_err(refuse)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}

/// The dotted key that stands on the line of this offset.
fn key_at(text: &str, offset: usize) -> Option<String> {
    let line_number = line_of(text, offset);
    let before: Vec<&str> = text.lines().take(line_number).collect();
    let name = before.last()?.split_once('=')?.0.trim().to_owned();
    let section = before.iter().rev().find_map(|line| {
        let inner = line.trim().strip_prefix('[')?;
        Some(
            inner
                .split(']')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned(),
        )
    });
    Some(section.map_or(name.clone(), |section| format!("{section}.{name}")))
}

fn set(table: &mut Table, key: &str, text: &str, source: Source) -> Result<(), ConfigError> {
    if !known_keys().iter().any(|known| known == key) {
        return Err(wrong(
            source,
            None,
            Some(key.to_owned()),
            "there is no such setting",
        ));
    }
    let mut refusal = None;
    // A value is TOML where it is that, else a bare word, else a list of one.
    let literal = toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"));
    let word = Value::String(text.to_owned());
    let list = Value::Array(
        text.split(',')
            .map(|part| Value::String(part.trim().to_owned()))
            .collect(),
    );
    for value in [literal, Some(word), Some(list)].into_iter().flatten() {
        let mut candidate = table.clone();
        put(&mut candidate, key, value);
        match candidate.clone().try_into::<Config>() {
            Ok(_) => {
                *table = candidate;
                return Ok(());
            }
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    let message = refusal
        .map(|error| error.message().to_owned())
        .unwrap_or_default();
    Err(wrong(source, None, Some(key.to_owned()), &message))
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn check(config: &Config, file: Option<&Path>) -> Result<(), ConfigError> {
    config.check().map_err(|(key, message)| {
        let source = file.map_or(Source::Flag("--set".to_owned()), |path| {
            Source::File(path.to_owned())
        });
        let line = file.and_then(|path| line_with(path, key));
        wrong(source, line, Some(key.to_owned()), &message)
    })
}

fn line_with(path: &Path, key: &str) -> Option<usize> {
    let text = std::fs::read_to_string(path).ok()?;
    (0..text.lines().count())
        .map(|index| index + 1)
        .find(|&number| {
            let offset = text
                .lines()
                .take(number - 1)
                .map(|line| line.len() + 1)
                .sum();
            key_at(&text, offset).as_deref() == Some(key)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skiff.toml");
        std::fs::write(&path, text).unwrap();
        load(Some(&path), [], &[]).map_err(|error| {
            error
                .to_string()
                .replace(&path.display().to_string(), "FILE")
        })
    }

    #[test]
    fn nothing_is_required() {
        assert_eq!(load(None, [], &[]).unwrap(), Config::default());
        assert_eq!(from_text("").unwrap(), Config::default());
    }

    #[test]
    fn the_environment_wins_over_the_file_and_a_flag_over_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skiff.toml");
        std::fs::write(&path, "[gateway]\ndomain = 'file.test'\nthreads = 3\n").unwrap();
        let variables = || {
            [
                ("SKIFF_GATEWAY_DOMAIN", "variable.test"),
                ("SKIFF_HOST", "unix:///x"),
                ("PATH", "/bin"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
        };
        let config = load(Some(&path), variables(), &[]).unwrap();
        assert_eq!(
            (config.gateway.domain.as_str(), config.gateway.threads),
            ("variable.test", 3)
        );
        let flag = [("gateway.domain".to_owned(), "flag.test".to_owned())];
        assert_eq!(
            load(Some(&path), variables(), &flag)
                .unwrap()
                .gateway
                .domain,
            "flag.test"
        );
    }

    #[test]
    fn a_list_can_be_written_with_commas() {
        let flag = [(
            "gateway.listen".to_owned(),
            "127.0.0.1:1, 127.0.0.1:2".to_owned(),
        )];
        assert_eq!(load(None, [], &flag).unwrap().gateway.listen.len(), 2);
        let flag = [(
            "network.allow".to_owned(),
            "10.1.0.0/16,fd01::/16".to_owned(),
        )];
        assert_eq!(load(None, [], &flag).unwrap().network.allow.len(), 2);
    }

    #[test]
    fn a_mistake_names_file_line_and_key() {
        let table = [
            ("data_dir = 3\n", "FILE, line 1, data_dir: "),
            (
                "\n[gateway]\nlisten = ['nowhere']\n",
                "FILE, line 3, gateway.listen: ",
            ),
            (
                "\n[gateway]\nlisten = []\n",
                "FILE, line 3, gateway.listen: is empty",
            ),
            (
                "[worker]\nmemory = 3\n",
                "FILE, line 2, worker.memory: unknown field `memory`",
            ),
            (
                "[network]\npool = '10.0.0.1/16'\n",
                "FILE, line 2, network.pool: ",
            ),
            (
                "[network]\nipv6_pool = 'fe80::/64'\n",
                "FILE, line 2, network.ipv6_pool: fe80::/64 is not a network",
            ),
            (
                "[network]\nipv6_pool = 'fd00::1/64'\n",
                "FILE, line 2, network.ipv6_pool: fd00::1/64 is not a network",
            ),
            (
                "[network]\nipv6 = true\nipv6_pool = 'fd00::/97'\n",
                "FILE, line 3, network.ipv6_pool: fd00::/97 is not a network",
            ),
            (
                "[network]\nipv6_pool = '10.0.0.0/16'\n",
                "FILE, line 2, network.ipv6_pool: ",
            ),
            (
                "[network]\nallow = ['10.0.0.0/33']\n",
                "FILE, line 2, network.allow: ",
            ),
            (
                "[network]\nallow = ['::/0']\n",
                "FILE, line 2, network.allow: ::/0 is everything",
            ),
            (
                "[api]\nlisten = '0.0.0.0:1'\n",
                "FILE, line 2, api.listen: 0.0.0.0:1 is not a loopback",
            ),
            ("what\n", "FILE, line 1: "),
        ];
        for (text, expect) in table {
            let error = from_text(text).unwrap_err();
            assert!(error.starts_with(expect), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_mistake_outside_the_file_names_where_it_was_said() {
        let variable = [("SKIFF_GATEWAY_THREADS".to_owned(), "many".to_owned())];
        let error = load(None, variable, &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("the environment variable SKIFF_GATEWAY_THREADS, gateway.threads: "),
            "{error}"
        );
        let flag = [("gateway.tread".to_owned(), "1".to_owned())];
        let error = load(None, [], &flag).unwrap_err().to_string();
        assert_eq!(
            error,
            "the flag --set gateway.tread=1, gateway.tread: there is no such setting"
        );
    }

    /// A good file with a piece of it replaced by anything.
    fn mutated(cut: usize, length: usize, with: &str) -> String {
        let good = "data_dir = '/d'\n[gateway]\nlisten = ['127.0.0.1:1']\nthreads = 2\n[network]\npool = '10.0.0.0/16'\n";
        let start = cut % good.len();
        let end = (start + length % 20).min(good.len());
        format!("{}{with}{}", &good[..start], &good[end..])
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_in_the_file_is_taken_or_refused(cut: usize, length: usize, with in "\\PC{0,20}|[\\n=\\[\\]'\"#.]{0,6}") {
            if let Err(error) = from_text(&mutated(cut, length, &with)) {
                proptest::prop_assert!(error.starts_with("FILE"), "{error}");
                proptest::prop_assert!(!error.contains('\n'), "{error}");
            }
        }

        #[test]
        fn whatever_a_variable_holds_is_taken_or_refused(value: String) {
            for key in known_keys() {
                let variable = [(variable_of(&key), value.clone())];
                let loaded = load(None, variable, &[]);
                proptest::prop_assert!(loaded.is_ok() || !loaded.unwrap_err().to_string().is_empty());
            }
        }
    }

    #[test]
    fn every_key_and_its_default_stand_in_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let text = std::fs::read_to_string(path).unwrap();
        let table = Table::try_from(Config::default()).unwrap();
        for key in known_keys() {
            let default = key
                .split('.')
                .try_fold(Value::Table(table.clone()), |value, part| {
                    value.get(part).cloned()
                })
                .map_or_else(|| "–".to_owned(), |value| format!("`{value}`"));
            let row = format!("| `{key}` | {default} |");
            assert!(
                text.contains(&row),
                "docs/configuration.md lacks a row that begins with {row}"
            );
        }
    }
}
