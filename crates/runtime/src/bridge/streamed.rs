//! The end of a streamed answer.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Bridge;
use crate::journal::{Done, Status};
use crate::trailers::{Ending, StreamError};
use crate::words;

/// A runtime's end and that of its answer come together: so long is waited for
/// the other one.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Resolves when the runtime has posted all, to what it failed with if it did;
/// to nothing when its answer broke off.
pub(crate) type Whole = oneshot::Receiver<Result<(), StreamError>>;

/// What ended an answer.
enum Ended {
    Told(Result<(), StreamError>),
    Exit,
    Late,
}

impl Bridge {
    /// Waits for a streamed answer's end and tells it. Whether the instance goes
    /// on.
    pub(super) async fn see_out(
        &self,
        whole: Whole,
        failed: Done<'_>,
        over: impl Future<Output = ()>,
        wants_log: bool,
        ending: oneshot::Sender<Ending>,
    ) -> bool {
        let ended = tokio::select! {
            ended = self.ended(whole, failed.id) => ended,
            () = over => Ended::Late,
        };
        let goes_on = matches!(ended, Ended::Told(_));
        let error = match ended {
            Ended::Told(Ok(())) => {
                let status = Status::Success;
                self.journal.done(Done { status, ..failed }).await;
                None
            }
            Ended::Told(Err(told)) => {
                let (status, error) = (Status::Error, Some(told.kind.as_str()));
                let done = Done {
                    status,
                    error,
                    ..failed
                };
                self.journal.done(done).await;
                Some(told)
            }
            Ended::Exit => {
                let told = self.note_end(failed).await;
                let told = told.unwrap_or_else(|| words::truncated(failed.id));
                Some(StreamError::of_body(&told))
            }
            Ended::Late => {
                let status = Status::Timeout;
                self.end_in_time(Done { status, ..failed }).await;
                let told = words::timed_out(failed.id, self.function.timeout_s);
                Some(StreamError::of_body(&told))
            }
        };
        let log = self.journal.tail(wants_log).await;
        // Who has hung up needs no answer.
        let _gone = ending.send(Ending { error, log });
        goes_on
    }

    async fn ended(&self, mut whole: Whole, id: &str) -> Ended {
        let told = tokio::select! {
            told = &mut whole => told.ok(),
            () = self.exit() => {
                let told = timeout(LAST_WORD, whole).await;
                told.ok().and_then(Result::ok)
            }
        };
        if let Some(told) = told {
            return Ended::Told(told);
        }
        // It broke off, mostly because the runtime has ended.
        match timeout(LAST_WORD, self.exit()).await {
            Ok(()) => Ended::Exit,
            Err(_alive) => Ended::Told(Err(StreamError::of_body(&words::truncated(id)))),
        }
    }
}
