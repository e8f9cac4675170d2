//! One direction of a stream: bytes from a source to a sink.
//!
//! ```text
//!  source ──read──▶ the loop's scratch ──write──▶ sink
//!                        └─ what the sink does not take ─▶ rest, written first
//! ```
//! Nothing is read while there is a rest: a flow never holds more than
//! [`PIECE_BYTES`] or its first words, and nothing while its sink keeps up.

use std::io;

/// What is read at a time, and the most that a flow holds.
pub(crate) const PIECE_BYTES: usize = 32 * 1024;
/// Pieces before other streams have their turn.
const PIECES_PER_TURN: usize = 16;

/// Where bytes come from. An error of the kind `WouldBlock` means later.
pub(crate) trait Source {
    /// As read(2): no bytes are the end.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Where bytes go. An error of the kind `WouldBlock` means later.
pub(crate) trait Sink {
    /// As write(2).
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// No more bytes will come.
    fn finish(&self) -> io::Result<()>;
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// One of both ends must become ready first.
    Waits,
    /// There may be more to do; others have their turn.
    Again,
    /// All bytes are through, and the sink knows.
    Finished,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    rest: Vec<u8>,
    written: usize,
    ended: bool,
    finished: bool,
}

impl Flow {
    /// A flow that begins with words of our own.
    pub(crate) fn with_words(words: Vec<u8>) -> Self {
        Self {
            rest: words,
            ..Self::default()
        }
    }

    /// A flow that is words of our own and nothing else.
    pub(crate) fn only_words(words: Vec<u8>) -> Self {
        Self {
            rest: words,
            ended: true,
            ..Self::default()
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Moves what can be moved now. An error ends the flow: the sink is gone,
    /// or the source in another way than by its end.
    pub(crate) fn turn(
        &mut self,
        source: &impl Source,
        sink: &impl Sink,
        scratch: &mut [u8],
    ) -> io::Result<Turn> {
        if self.finished {
            return Ok(Turn::Finished);
        }
        for _ in 0..PIECES_PER_TURN {
            if !self.write_rest(sink)? {
                return Ok(Turn::Waits);
            }
            if self.ended {
                sink.finish()?;
                self.finished = true;
                return Ok(Turn::Finished);
            }
            let Some(length) = ready(source.read(scratch))? else {
                return Ok(Turn::Waits);
            };
            let piece = scratch.get(..length).unwrap_or_default();
            self.ended = piece.is_empty();
            self.pass(piece, sink)?;
        }
        Ok(Turn::Again)
    }

    /// Says whether everything is written.
    fn write_rest(&mut self, sink: &impl Sink) -> io::Result<bool> {
        while let Some(rest) = self
            .rest
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match ready(sink.write(rest))? {
                None => return Ok(false),
                Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                Some(length) => self.written += length,
            }
        }
        self.rest = Vec::new();
        self.written = 0;
        Ok(true)
    }

    fn pass(&mut self, piece: &[u8], sink: &impl Sink) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let length = ready(sink.write(piece))?.unwrap_or(0);
        self.rest = piece.get(length..).unwrap_or_default().to_vec();
        Ok(())
    }
}

/// Nothing when it is to be tried later.
fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// What one call of an end does.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// Takes or gives at most so many bytes.
        Most(usize),
        Later,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..2 * PIECE_BYTES).prop_map(Step::Most),
            2 => (1..16usize).prop_map(Step::Most),
            2 => Just(Step::Later),
        ];
        prop::collection::vec(step, 0..60)
    }

    struct Script {
        steps: RefCell<VecDeque<Step>>,
        bytes: RefCell<Vec<u8>>,
        finished: Cell<bool>,
    }

    impl Script {
        fn new(steps: Vec<Step>, bytes: Vec<u8>) -> Self {
            Self {
                steps: RefCell::new(steps.into()),
                bytes: RefCell::new(bytes),
                finished: Cell::new(false),
            }
        }

        fn next(&self, wanted: usize) -> io::Result<usize> {
            match self.steps.borrow_mut().pop_front() {
                None => Ok(wanted),
                Some(Step::Most(most)) => Ok(wanted.min(most)),
                Some(Step::Later) => Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }

    impl Source for Script {
        fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut left = self.bytes.borrow_mut();
            let length = self.next(buffer.len().min(left.len()))?;
            buffer[..length].copy_from_slice(&left[..length]);
            left.drain(..length);
            Ok(length)
        }
    }

    impl Sink for Script {
        fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            assert!(!self.finished.get(), "a write after the end");
            let length = self.next(bytes.len())?;
            self.bytes.borrow_mut().extend(&bytes[..length]);
            Ok(length)
        }

        fn finish(&self) -> io::Result<()> {
            assert!(!self.finished.replace(true), "a second end");
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn bytes_arrive_whole_in_order_and_are_never_hoarded(
            length in 0..5 * PIECE_BYTES,
            words in 0..600usize,
            reads in steps(),
            writes in steps(),
        ) {
            let content: Vec<u8> = (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect();
            let words: Vec<u8> = (0..words).map(|at| (at % 13).to_le_bytes()[0]).collect();
            let expected = [words.clone(), content.clone()].concat();
            let source = Script::new(reads, content);
            let sink = Script::new(writes, Vec::new());
            let mut flow = Flow::with_words(words);
            let mut scratch = vec![0; PIECE_BYTES];
            let mut turns = 0;
            while flow.turn(&source, &sink, &mut scratch).unwrap() != Turn::Finished {
                prop_assert!(flow.rest.capacity() <= PIECE_BYTES);
                turns += 1;
                prop_assert!(turns < 1000, "it does not end");
            }
            prop_assert!(sink.finished.get() && flow.is_finished());
            prop_assert_eq!(flow.rest.capacity(), 0);
            prop_assert!(*sink.bytes.borrow() == expected);
            prop_assert!(sink.bytes.borrow().len() == expected.len());
        }
    }

    #[test]
    fn nothing_is_read_while_the_sink_takes_nothing() {
        let source = Script::new(Vec::new(), vec![7; 3 * PIECE_BYTES]);
        let sink = Script::new(vec![Step::Later; 100], Vec::new());
        let mut flow = Flow::default();
        let mut scratch = vec![0; PIECE_BYTES];
        for _ in 0..50 {
            let turn = flow.turn(&source, &sink, &mut scratch).unwrap();
            assert_eq!(turn, Turn::Waits);
            assert_eq!(source.bytes.borrow().len(), 2 * PIECE_BYTES);
        }
    }

    #[test]
    fn a_busy_flow_leaves_others_their_turn() {
        let source = Script::new(Vec::new(), vec![7; 100 * PIECE_BYTES]);
        let sink = Script::new(Vec::new(), Vec::new());
        let mut scratch = vec![0; PIECE_BYTES];
        let turn = Flow::default().turn(&source, &sink, &mut scratch).unwrap();
        assert_eq!(turn, Turn::Again);
        assert_eq!(sink.bytes.borrow().len(), PIECES_PER_TURN * PIECE_BYTES);
    }

    #[test]
    fn words_of_our_own_are_followed_by_the_end() {
        let source = Script::new(Vec::new(), vec![7; 10]);
        let sink = Script::new(Vec::new(), Vec::new());
        let mut flow = Flow::only_words(b"no".to_vec());
        let turn = flow.turn(&source, &sink, &mut []).unwrap();
        assert_eq!(turn, Turn::Finished);
        assert_eq!(*sink.bytes.borrow(), b"no");
        assert!(sink.finished.get());
    }
}
