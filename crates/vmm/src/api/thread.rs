use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::{Api, ApiError, Guest};

/// The thread that serves the API while the machine runs. Dropping it ends
/// it, with its socket.
#[derive(Debug)]
pub struct ApiThread {
    end: Arc<End>,
    thread: Option<JoinHandle<()>>,
}

/// How the thread is told that it is over.
#[derive(Debug)]
struct End {
    event: OwnedFd,
    /// Why, for the log.
    why: Mutex<Option<String>>,
}

impl ApiThread {
    /// Starts it, and does `first` in it before anything else; if that fails,
    /// nobody is answered.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn(
        mut api: Api,
        guest: Arc<impl Guest>,
        first: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Self, ApiError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = eventfd(0, flags).map_err(|errno| ApiError::Start(errno.into()))?;
        let end = Arc::new(End {
            event,
            why: Mutex::default(),
        });
        let theirs = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn(move || {
                if first() {
                    api.serve(theirs.event.as_fd(), guest.as_ref());
                    let why = theirs.why.lock().unwrap_or_else(PoisonError::into_inner);
                    api.finish(guest.as_ref(), why.as_deref());
                }
            })
            .map_err(ApiError::Start)?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }

    /// Ends it when the guest has ended, and has it say why.
    pub fn end(self, why: String) {
        let said = self.end.why.lock();
        *said.unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

impl Drop for ApiThread {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.end.event, &1_u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            // A panic of the thread has ended it as well.
            thread.join().unwrap_or_default();
        }
    }
}
