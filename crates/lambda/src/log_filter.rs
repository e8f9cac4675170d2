//! Filter patterns over lines of text (CloudWatch Logs' "filter pattern
//! syntax", "unstructured log events").

use std::iter::Peekable;
use std::str::Chars;

use skiff_types::LogTerms;

/// The longest pattern, bytes (AWS's limit).
const PATTERN_BYTES_MAX: usize = 1024;
/// What a term has only in quotes: it means something else in other patterns.
const QUOTED_ONLY: &str = "\"\\{}[]()%*?,=<>&|!$";

/// The pattern is none that is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It is too long.
    #[error("a filter pattern has at most {PATTERN_BYTES_MAX} bytes")]
    TooLong,
    /// A quote is not closed.
    #[error("the filter pattern has a quote without an end")]
    OpenQuote,
    /// A sign or a pair of quotes has nothing in it.
    #[error("the filter pattern has an empty term")]
    Empty,
    /// JSON, space-delimited, regular expressions, or a term that needs quotes.
    #[error(
        "the filter pattern has `{found}` outside of quotes: terms, \"quoted phrases\", -excluded \
         and ?optional terms are served; patterns of JSON, of fields and regular expressions are not"
    )]
    Unserved {
        /// The character.
        found: char,
    },
    /// What AWS leaves out in silence.
    #[error("the filter pattern has ?optional terms beside others: they stand alone")]
    Mixed,
}

/// Reads a pattern; an empty one takes every line.
///
/// # Errors
/// When it is none of terms.
pub fn parse_filter(pattern: &str) -> Result<LogTerms, FilterError> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(FilterError::TooLong);
    }
    let mut terms = LogTerms::default();
    let mut rest = pattern.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let into = match rest.peek() {
            None => break,
            Some('-') => &mut terms.none,
            Some('?') => &mut terms.any,
            Some(_) => &mut terms.all,
        };
        let _sign = rest.next_if(|c| matches!(c, '-' | '?'));
        let term = match rest.next_if_eq(&'"') {
            Some(_) => phrase(&mut rest)?,
            None => word(&mut rest)?,
        };
        if term.is_empty() {
            return Err(FilterError::Empty);
        }
        into.push(term);
    }
    match terms.any.is_empty() || (terms.all.is_empty() && terms.none.is_empty()) {
        true => Ok(terms),
        false => Err(FilterError::Mixed),
    }
}

/// What is left of a phrase, whose quote has been read.
fn phrase(rest: &mut Peekable<Chars<'_>>) -> Result<String, FilterError> {
    let mut phrase = String::new();
    loop {
        match rest.next().ok_or(FilterError::OpenQuote)? {
            '"' => return Ok(phrase),
            '\\' => match rest.next_if(|c| matches!(c, '"' | '\\')) {
                Some(escaped) => phrase.push(escaped),
                None => phrase.push('\\'),
            },
            other => phrase.push(other),
        }
    }
}

fn word(rest: &mut Peekable<Chars<'_>>) -> Result<String, FilterError> {
    let mut word = String::new();
    while let Some(next) = rest.next_if(|c| !c.is_whitespace()) {
        if QUOTED_ONLY.contains(next) {
            return Err(FilterError::Unserved { found: next });
        }
        word.push(next);
    }
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(all: &[&str], any: &[&str], none: &[&str]) -> Result<LogTerms, FilterError> {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Ok(LogTerms {
            all: own(all),
            any: own(any),
            none: own(none),
        })
    }

    #[test]
    fn a_pattern_is_of_terms() {
        for (pattern, expected) in [
            ("", terms(&[], &[], &[])),
            ("  ERROR ", terms(&["ERROR"], &[], &[])),
            ("a b-c d.e:", terms(&["a", "b-c", "d.e:"], &[], &[])),
            (
                r#"a "b c" -d -"e f""#,
                terms(&["a", "b c"], &[], &["d", "e f"]),
            ),
            (r#"?a ?"b {c}""#, terms(&[], &["a", "b {c}"], &[])),
            (r#""a \"b\" \\ \n""#, terms(&[r#"a "b" \ \n"#], &[], &[])),
            ("größe", terms(&["größe"], &[], &[])),
        ] {
            assert_eq!(parse_filter(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern_of_terms_is_refused() {
        let found = |found| FilterError::Unserved { found };
        for (pattern, expected) in [
            ("{ $.level = \"ERROR\" }", found('{')),
            ("[ip, user]", found('[')),
            ("%AUTH.*%", found('%')),
            ("a*", found('*')),
            ("a\"b\"", found('"')),
            ("\"a", FilterError::OpenQuote),
            ("\"", FilterError::OpenQuote),
            ("\"a\\\"", FilterError::OpenQuote),
            ("\"\"", FilterError::Empty),
            ("a - b", FilterError::Empty),
            ("?", FilterError::Empty),
            ("a ?b", FilterError::Mixed),
            ("-a ?b", FilterError::Mixed),
        ] {
            assert_eq!(parse_filter(pattern), Err(expected), "{pattern}");
        }
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        assert_eq!(parse_filter(&long), Err(FilterError::TooLong));
        assert!(parse_filter(&long[1..]).is_ok());
    }
}
