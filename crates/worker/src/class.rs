//! Which class an instance gets, and why.

use std::sync::Arc;
use std::time::Duration;

use skiff_sandbox::Backend;
use skiff_types::{IsolationClass, IsolationRequest};
use tokio::sync::watch;
use tokio::time::timeout;

/// For the verdict of a trial that goes on.
const TRIAL_WAIT: Duration = Duration::from_secs(60);

/// One class on this worker.
#[derive(Clone, Debug)]
pub enum Seat {
    /// It serves.
    Ready(Arc<dyn Backend>),
    /// Whether it serves is being found out.
    Trial(Trial),
    /// It does not, for this reason.
    Missing(String),
}

/// A class that is tried while the worker serves already. What it left before
/// is adopted whatever comes of it.
#[derive(Clone, Debug)]
pub struct Trial {
    backend: Arc<dyn Backend>,
    verdict: watch::Sender<Option<Result<(), String>>>,
}

impl Trial {
    /// One that begins.
    #[must_use]
    pub fn of(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            verdict: watch::Sender::default(),
        }
    }

    /// It serves from now on, or does not for this reason. The first word
    /// counts.
    pub fn end(&self, verdict: Result<(), String>) {
        self.verdict
            .send_if_modified(|known| known.is_none() && known.replace(verdict).is_none());
    }

    /// Waits for the verdict, for a while: a start that comes with the server
    /// is better late than refused.
    async fn settled(&self) {
        let mut verdict = self.verdict.subscribe();
        // Too late or never: then it is still being tried.
        drop(timeout(TRIAL_WAIT, verdict.wait_for(Option::is_some)).await);
    }
}

impl Seat {
    fn backend(&self) -> Result<&Arc<dyn Backend>, String> {
        match self {
            Self::Ready(backend) => Ok(backend),
            Self::Trial(trial) => match &*trial.verdict.borrow() {
                Some(Ok(())) => Ok(&trial.backend),
                Some(Err(why)) => Err(why.clone()),
                None => Err("this host is being tried: ask again in a moment".to_owned()),
            },
            Self::Missing(why) => Err(why.clone()),
        }
    }

    /// Who may have sandboxes, whether or not it makes more.
    fn holder(&self) -> Option<&Arc<dyn Backend>> {
        match self {
            Self::Ready(backend) | Self::Trial(Trial { backend, .. }) => Some(backend),
            Self::Missing(_) => None,
        }
    }
}

/// The classes of this worker.
#[derive(Clone, Debug)]
pub struct Backends {
    /// KVM virtual machines.
    pub microvm: Seat,
    /// Namespaced containers.
    pub container: Seat,
    /// Nothing, for measuring.
    pub null: Seat,
}

impl Backends {
    /// Containers alone.
    #[must_use]
    pub fn container(backend: Arc<dyn Backend>) -> Self {
        Self {
            microvm: Seat::Missing("virtual machines are not set up".to_owned()),
            container: Seat::Ready(backend),
            null: Seat::Missing("the configuration does not allow it".to_owned()),
        }
    }

    /// The class null beside what there is.
    #[must_use]
    pub fn with_null(mut self, backend: Arc<dyn Backend>) -> Self {
        self.null = Seat::Ready(backend);
        self
    }

    /// Virtual machines beside what there is.
    #[must_use]
    pub fn with_microvm(mut self, seat: Seat) -> Self {
        self.microvm = seat;
        self
    }

    /// Those that may have sandboxes.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        [&self.microvm, &self.container, &self.null]
            .into_iter()
            .filter_map(Seat::holder)
    }

    /// Waits until it is known whether the class that a request needs serves.
    pub(crate) async fn settled(&self, request: IsolationRequest) {
        if let (IsolationRequest::Microvm, Seat::Trial(trial)) = (request, &self.microvm) {
            trial.settled().await;
        }
    }

    /// The backend for a request and the reason for its class; an error says
    /// which class cannot serve and why.
    pub(crate) fn choose(
        &self,
        request: IsolationRequest,
    ) -> Result<(Arc<dyn Backend>, String), (IsolationClass, String)> {
        let asked = |seat: &Seat, class: IsolationClass| match seat.backend() {
            Ok(backend) => Ok((backend.clone(), format!("{}: asked for", class.as_str()))),
            Err(why) => Err((class, why)),
        };
        match request {
            IsolationRequest::Microvm => asked(&self.microvm, IsolationClass::Microvm),
            IsolationRequest::Container => asked(&self.container, IsolationClass::Container),
            IsolationRequest::Null => asked(&self.null, IsolationClass::Null),
            // Machines cannot do all that containers can yet.
            IsolationRequest::Auto => match (self.microvm.backend(), self.container.backend()) {
                (Ok(_), Ok(backend)) => {
                    let reason = "container: `--isolation microvm` was not asked for";
                    Ok((backend.clone(), reason.to_owned()))
                }
                (Err(why), Ok(backend)) => Ok((backend.clone(), format!("container: {why}"))),
                (_, Err(why)) => Err((IsolationClass::Container, why)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_sandbox::NullBackend;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_the_verdict_but_not_for_ever() {
        let backends = || {
            let trial = Trial::of(Arc::new(NullBackend::default()));
            let containers = Backends::container(Arc::new(NullBackend::default()));
            (containers.with_microvm(Seat::Trial(trial.clone())), trial)
        };
        let (decided, trial) = backends();
        let settled = decided.settled(IsolationRequest::Microvm);
        tokio::join!(settled, async { trial.end(Ok(())) });
        assert!(decided.choose(IsolationRequest::Microvm).is_ok());
        let (undecided, _trial) = backends();
        undecided.settled(IsolationRequest::Container).await;
        undecided.settled(IsolationRequest::Microvm).await;
        assert!(undecided.choose(IsolationRequest::Microvm).is_err());
    }

    #[test]
    fn a_class_is_taken_with_its_reason() {
        let seat = || Seat::Ready(Arc::new(NullBackend::default()));
        let mut backends = Backends::container(Arc::new(NullBackend::default()));
        let reason = |b: &Backends, r| b.choose(r).map(|(_, reason)| reason);
        let refused = |b: &Backends, r| b.choose(r).unwrap_err();
        assert_eq!(
            reason(&backends, IsolationRequest::Auto).unwrap(),
            "container: virtual machines are not set up"
        );
        assert_eq!(
            reason(&backends, IsolationRequest::Container).unwrap(),
            "container: asked for"
        );
        let (class, why) = refused(&backends, IsolationRequest::Microvm);
        assert_eq!(class, IsolationClass::Microvm);
        assert_eq!(why, "virtual machines are not set up");
        assert!(
            refused(&backends, IsolationRequest::Null)
                .1
                .contains("configuration")
        );
        backends.microvm = seat();
        assert!(
            reason(&backends, IsolationRequest::Auto)
                .unwrap()
                .starts_with("container: `--isolation microvm`")
        );
        assert_eq!(
            reason(&backends, IsolationRequest::Microvm).unwrap(),
            "microvm: asked for"
        );
        let trial = Trial::of(Arc::new(NullBackend::default()));
        backends.microvm = Seat::Trial(trial.clone());
        assert_eq!(backends.holders().count(), 2);
        let (_, why) = refused(&backends, IsolationRequest::Microvm);
        assert!(why.contains("being tried"), "{why}");
        trial.end(Err("it does not boot".to_owned()));
        trial.end(Ok(()));
        let (_, why) = refused(&backends, IsolationRequest::Microvm);
        assert_eq!(why, "it does not boot");
        backends.microvm = Seat::Missing("no /dev/kvm".to_owned());
        backends.container = Seat::Missing("no launcher".to_owned());
        assert_eq!(refused(&backends, IsolationRequest::Auto).1, "no launcher");
    }
}
