use std::fmt::Display;

use skiff_wire::launcher::Refusal;

/// What goes wrong in a step is told as the wire tells it, from the innermost
/// call to the client: the step, what was done in it, the kernel's number.
pub(crate) type Step<T> = Result<T, Refusal>;

/// A refusal of our own, without a kernel's error number.
pub(crate) fn refuse(step: &str, message: impl Display) -> Refusal {
    Refusal {
        step: step.to_owned(),
        errno: 0,
        message: message.to_string(),
    }
}

/// Names the step and the deed that an error of the kernel belongs to.
pub(crate) trait Context<T> {
    /// `what` says what was done, with the path or name.
    fn at(self, step: &str, what: impl Display) -> Step<T>;
}

impl<T> Context<T> for Result<T, rustix::io::Errno> {
    fn at(self, step: &str, what: impl Display) -> Step<T> {
        self.map_err(|errno| Refusal {
            step: step.to_owned(),
            errno: errno.raw_os_error(),
            message: format!("{what}: {errno}"),
        })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn at(self, step: &str, what: impl Display) -> Step<T> {
        self.map_err(|error| Refusal {
            step: step.to_owned(),
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("{what}: {error}"),
        })
    }
}
