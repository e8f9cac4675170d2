//! Which class an instance gets, and why.

use std::sync::Arc;

use skiff_sandbox::Backend;
use skiff_types::{IsolationClass, IsolationRequest};

/// One class on this worker.
#[derive(Clone, Debug)]
pub enum Seat {
    /// It serves.
    Ready(Arc<dyn Backend>),
    /// It does not, for this reason.
    Missing(String),
}

impl Seat {
    fn backend(&self) -> Result<&Arc<dyn Backend>, &str> {
        match self {
            Self::Ready(backend) => Ok(backend),
            Self::Missing(why) => Err(why),
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
            microvm: Seat::Missing("no microVM support in this build".to_owned()),
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

    /// Those that serve.
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        [&self.microvm, &self.container, &self.null]
            .into_iter()
            .filter_map(|seat| seat.backend().ok())
    }

    /// The backend for a request and the reason for its class; an error says
    /// which class cannot serve and why.
    pub(crate) fn choose(
        &self,
        request: IsolationRequest,
    ) -> Result<(Arc<dyn Backend>, String), (IsolationClass, String)> {
        let asked = |seat: &Seat, class: IsolationClass| match seat.backend() {
            Ok(backend) => Ok((backend.clone(), format!("{}: asked for", class.as_str()))),
            Err(why) => Err((class, why.to_owned())),
        };
        match request {
            IsolationRequest::Microvm => asked(&self.microvm, IsolationClass::Microvm),
            IsolationRequest::Container => asked(&self.container, IsolationClass::Container),
            IsolationRequest::Null => asked(&self.null, IsolationClass::Null),
            IsolationRequest::Auto => match (self.microvm.backend(), self.container.backend()) {
                (Ok(backend), _) => Ok((backend.clone(), "microvm: the strongest".to_owned())),
                (Err(why), Ok(backend)) => Ok((backend.clone(), format!("container: {why}"))),
                (Err(_), Err(why)) => Err((IsolationClass::Container, why.to_owned())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_sandbox::NullBackend;

    use super::*;

    #[test]
    fn auto_takes_the_strongest_and_says_why_it_is_no_stronger() {
        let seat = || Seat::Ready(Arc::new(NullBackend::default()));
        let mut backends = Backends::container(Arc::new(NullBackend::default()));
        let reason = |b: &Backends, r| b.choose(r).map(|(_, reason)| reason);
        let refused = |b: &Backends, r| b.choose(r).unwrap_err();
        assert_eq!(
            reason(&backends, IsolationRequest::Auto).unwrap(),
            "container: no microVM support in this build"
        );
        assert_eq!(
            reason(&backends, IsolationRequest::Container).unwrap(),
            "container: asked for"
        );
        let (class, why) = refused(&backends, IsolationRequest::Microvm);
        assert_eq!(class, IsolationClass::Microvm);
        assert_eq!(why, "no microVM support in this build");
        assert!(
            refused(&backends, IsolationRequest::Null)
                .1
                .contains("configuration")
        );
        backends.microvm = seat();
        assert!(
            reason(&backends, IsolationRequest::Auto)
                .unwrap()
                .starts_with("microvm")
        );
        backends.microvm = Seat::Missing("no /dev/kvm".to_owned());
        backends.container = Seat::Missing("no launcher".to_owned());
        assert_eq!(refused(&backends, IsolationRequest::Auto).1, "no launcher");
    }
}
