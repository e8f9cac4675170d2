//! What a policy's condition on an ARN takes (IAM, `ArnLike`): each of the six
//! parts for itself, `*` for any text and `?` for any character.

/// Parts of an ARN; the last may have colons in it.
const PARTS: usize = 6;

/// Whether an ARN is like a pattern.
#[must_use]
pub fn arn_like(pattern: &str, arn: &str) -> bool {
    let parts = |text| -> Vec<&str> { str::splitn(text, PARTS, ':').collect() };
    let (patterns, parts) = (parts(pattern), parts(arn));
    patterns.len() == parts.len()
        && patterns
            .iter()
            .zip(parts)
            .all(|(pattern, part)| like(pattern.as_bytes(), part.as_bytes()))
}

/// Goes back to the last `*` only: it takes as little as it can.
fn like(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut star = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(b'?') => (at, read) = (at + 1, read + 1),
            Some(byte) if *byte == text[read] => (at, read) = (at + 1, read + 1),
            _ => match &mut star {
                Some((star, taken)) => {
                    *taken += 1;
                    (at, read) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_takes_what_it_says() {
        let arn = "arn:aws:s3:::images-2026";
        for (pattern, taken) in [
            (arn, true),
            ("arn:aws:s3:::images", false),
            ("arn:aws:s3:::images-*", true),
            ("arn:aws:s3:::*s-2*6", true),
            ("arn:aws:s3:::images-202?", true),
            ("arn:aws:s3:::images-2026?", false),
            ("arn:*:s3:*:*:images-2026", true),
            ("arn:aws:s3:::*", true),
            ("arn:aws:sqs:::*", false),
            ("arn:*", false),
            ("*", false),
            ("", false),
        ] {
            assert_eq!(arn_like(pattern, arn), taken, "{pattern}");
        }
    }

    /// The same, said plainly.
    fn takes(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|taken| takes(rest, &text[taken..])),
            Some((byte, rest)) => text
                .split_first()
                .is_some_and(|(first, text)| (*byte == b'?' || byte == first) && takes(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_takes_what_its_rules_say(pattern in "[ab*?]{0,7}", text in "[ab]{0,8}") {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(like(pattern, text), takes(pattern, text));
        }
    }
}
