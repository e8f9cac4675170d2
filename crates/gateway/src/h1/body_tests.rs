use proptest::prelude::*;

use super::*;

/// A whole body: its data, its trailers, and how much is left behind its end.
type Whole = (Vec<u8>, Vec<u8>, usize);

/// Decodes in pieces of the given size; `None` while it has not ended.
fn decode(mut decoder: Decoder, input: &[u8], piece: usize) -> Result<Option<Whole>, BodyError> {
    let (mut data, mut at, mut seen) = (Vec::new(), 0, 0);
    loop {
        match decoder.step(&input[at..seen])? {
            Step::Data { skip, data: count } => {
                at += skip;
                data.extend_from_slice(&input[at..at + count]);
                decoder.took(count);
                at += count;
            }
            Step::More { skip } => {
                at += skip;
                if seen == input.len() {
                    return Ok(None);
                }
                seen = (seen + piece).min(input.len());
            }
            Step::End { skip, trailers } => {
                let trailers = trailers.map_or(Vec::new(), |range| {
                    input[at + range.start..at + range.end].to_vec()
                });
                return Ok(Some((data, trailers, input.len() - at - skip)));
            }
        }
    }
}

#[test]
fn chunks_are_read_as_the_grammar_says() {
    for (input, data, trailers, left) in [
        ("0\r\n\r\n", "", "", 0),
        ("5\r\nhello\r\n0\r\n\r\nGET", "hello", "", 3),
        ("05;a=b;c=\"d\"\r\nhello\r\n000\r\n\r\n", "hello", "", 0),
        ("A \r\n0123456789\r\n0\r\n\r\n", "0123456789", "", 0),
        (
            "2\r\nhi\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\n!",
            "hi",
            "x-sum: 1\r\ny: 2\r\n\r\n",
            1,
        ),
    ] {
        for piece in [1, 2, 3, 1000] {
            let expected = (data.into(), trailers.into(), left);
            // What is left behind the end was not looked at in small pieces.
            let found = decode(Decoder::CHUNKED, input.as_bytes(), piece);
            assert_eq!(found, Ok(Some(expected)), "{input:?} by {piece}");
        }
    }
}

#[test]
fn chunks_that_two_parsers_could_read_apart_are_refused() {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(LINE_BYTES_MAX));
    let trailers = format!("0\r\nx: {}\r\n\r\n", "a".repeat(TRAILER_BYTES_MAX));
    for (input, error) in [
        ("5\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("0x5\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("+5\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        (" 5\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("5 5\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("00000000000000005\r\nhello\r\n0\r\n\r\n", BodyError::Size),
        ("5\r\nhello!\r\n0\r\n\r\n", BodyError::End),
        ("5\r\nhello\n0\r\n\r\n", BodyError::End),
        (&long, BodyError::Extensions),
        (&trailers, BodyError::Trailers),
    ] {
        for piece in [1, 7, 100_000] {
            let found = decode(Decoder::CHUNKED, input.as_bytes(), piece);
            assert_eq!(found, Err(error), "{input:?} by {piece}");
        }
    }
}

#[test]
fn a_length_counts_and_knows_its_last_piece() {
    let mut decoder = Decoder::Length(5);
    assert!(!decoder.is_last(4) && decoder.is_last(5));
    assert_eq!(decoder.step(b"hel"), Ok(Step::Data { skip: 0, data: 3 }));
    decoder.took(3);
    assert_eq!(decoder.step(b"").unwrap(), Step::More { skip: 0 });
    assert_eq!(decoder.step(b"loGET"), Ok(Step::Data { skip: 0, data: 2 }));
    assert!(decoder.is_last(2));
    decoder.took(2);
    assert!(decoder.has_ended());
    let end = Step::End {
        skip: 0,
        trailers: None,
    };
    assert_eq!(decoder.step(b"GET"), Ok(end));
}

#[test]
fn trailers_that_would_change_the_message_do_not_pass() {
    let section = b"x-sum: 1\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\nhost: a\r\n\
                    set-cookie: a\r\nauthorization: b\r\n\r\n";
    let mut out = Vec::new();
    trailers(section, |found| put_end(&mut out, found)).unwrap();
    assert_eq!(out, b"0\r\nx-sum: 1\r\n\r\n");
    for bad in [&b"x y: 1\r\n\r\n"[..], b"x: 1\r\n y\r\n\r\n", b"x\r\n\r\n"] {
        assert_eq!(trailers(bad, |_| ()), Err(BodyError::Trailers));
    }
}

proptest! {
    /// What is written is read again, in whatever pieces.
    #[test]
    fn written_chunks_are_read_again(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
        piece in 1usize..64,
    ) {
        let mut wire = Vec::new();
        for data in &pieces {
            put_chunk(&mut wire, data);
        }
        put_end(&mut wire, std::iter::empty());
        let found = decode(Decoder::CHUNKED, &wire, piece).unwrap();
        prop_assert_eq!(found, Some((pieces.concat(), Vec::new(), 0)));
    }

    /// No bytes make it panic or take data that is not there.
    #[test]
    fn any_bytes_end_or_are_refused(
        wire in proptest::collection::vec(prop_oneof![
            Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'5'), Just(b';'), any::<u8>()
        ], 0..200),
        piece in 1usize..40,
    ) {
        let in_pieces = decode(Decoder::CHUNKED, &wire, piece);
        let at_once = decode(Decoder::CHUNKED, &wire, wire.len().max(1));
        // However it comes, it means the same.
        prop_assert_eq!(
            in_pieces.map(|found| found.map(|(data, ..)| data)),
            at_once.map(|found| found.map(|(data, ..)| data))
        );
    }
}
