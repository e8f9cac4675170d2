use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::server::Event;
use super::{Api, ApiError, Guest};

/// The thread that serves the API while the machine runs. Dropping it ends
/// it, with its socket.
#[derive(Debug)]
pub struct ApiThread {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
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
        let end = eventfd(0, flags).map_err(|errno| ApiError::Start(errno.into()))?;
        let end = Arc::new(end);
        let theirs = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn(move || {
                if first() {
                    api.serve(theirs.as_fd(), guest.as_ref());
                }
            })
            .map_err(ApiError::Start)?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for ApiThread {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            // A panic of the thread has ended it as well.
            thread.join().unwrap_or_default();
        }
    }
}

impl Api {
    /// Serves until `end` becomes readable, or clients cannot be waited for.
    fn serve(&mut self, end: std::os::fd::BorrowedFd<'_>, guest: &impl Guest) {
        loop {
            match self.server.next(end, None) {
                Ok(Event::Request(request)) => {
                    let result = self.run(&request, guest);
                    self.answer(result);
                }
                Ok(Event::Late) => {}
                Ok(Event::Woken) | Err(_) => return,
            }
        }
    }
}
