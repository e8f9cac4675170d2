//! Which class an instance gets, and why.

use std::sync::Arc;
use std::time::Duration;

use skiff_sandbox::{Backend, Needs};
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

    /// It serves, or may be found to.
    fn may_serve(&self) -> bool {
        match self {
            Self::Trial(trial) if trial.verdict.borrow().is_none() => true,
            _ => self.backend().is_ok(),
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

/// The classes of this worker. Who asks for none gets a virtual machine where
/// that serves and can do what is needed, otherwise a container and the reason.
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
    pub(crate) async fn settled(&self, request: IsolationRequest, needs: Needs) {
        let wants_machine = match request {
            IsolationRequest::Microvm => true,
            IsolationRequest::Auto => self.machines_lack(needs).is_none(),
            IsolationRequest::Container | IsolationRequest::Null => false,
        };
        if let (true, Seat::Trial(trial)) = (wants_machine, &self.microvm) {
            trial.settled().await;
        }
    }

    /// The class of a request's instances, as far as it is known: a trial that
    /// goes on is one that will succeed.
    pub(crate) fn expected(&self, request: IsolationRequest, needs: Needs) -> IsolationClass {
        match request {
            IsolationRequest::Microvm => IsolationClass::Microvm,
            IsolationRequest::Container => IsolationClass::Container,
            IsolationRequest::Null => IsolationClass::Null,
            IsolationRequest::Auto
                if self.machines_lack(needs).is_none() && self.microvm.may_serve() =>
            {
                IsolationClass::Microvm
            }
            IsolationRequest::Auto => IsolationClass::Container,
        }
    }

    /// The backend for a request and the reason for its class; an error says
    /// which class cannot serve and why.
    pub(crate) fn choose(
        &self,
        request: IsolationRequest,
        needs: Needs,
    ) -> Result<(Arc<dyn Backend>, String), (IsolationClass, String)> {
        let asked = |seat: &Seat, class: IsolationClass| match seat.backend() {
            Ok(backend) => Ok((backend.clone(), format!("{}: asked for", class.as_str()))),
            Err(why) => Err((class, why)),
        };
        match request {
            IsolationRequest::Microvm => asked(&self.microvm, IsolationClass::Microvm),
            IsolationRequest::Container => asked(&self.container, IsolationClass::Container),
            IsolationRequest::Null => asked(&self.null, IsolationClass::Null),
            IsolationRequest::Auto => match self.machine_for_auto(needs) {
                Ok(machine) => {
                    let reason = "microvm: virtual machines come up on this host";
                    Ok((machine.clone(), reason.to_owned()))
                }
                Err(why) => match self.container.backend() {
                    Ok(backend) => Ok((backend.clone(), format!("container: {why}"))),
                    Err(why) => Err((IsolationClass::Container, why)),
                },
            },
        }
    }

    /// The backend of virtual machines, if who asks for no class gets one;
    /// otherwise why not.
    fn machine_for_auto(&self, needs: Needs) -> Result<&Arc<dyn Backend>, String> {
        let backend = self.microvm.backend()?;
        match self.machines_lack(needs) {
            Some(what) => Err(format!("the class microvm cannot {what}")),
            None => Ok(backend),
        }
    }

    /// What machines cannot do of this, whatever the host is worth.
    fn machines_lack(&self, needs: Needs) -> Option<&'static str> {
        self.microvm.holder()?.lacks(needs)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use skiff_sandbox::{CreateSpec, Created, Found, NullBackend, SandboxError};

    use super::*;

    const NOTHING: Needs = Needs {
        egress: false,
        disk: false,
    };
    const DISK: Needs = Needs {
        egress: false,
        disk: true,
    };

    /// Virtual machines that cannot write to a disk, and of which none is made.
    #[derive(Debug)]
    struct Machines;

    impl Backend for Machines {
        fn class(&self) -> IsolationClass {
            IsolationClass::Microvm
        }

        fn lacks(&self, needs: Needs) -> Option<&'static str> {
            needs.disk.then_some("write to a disk")
        }

        fn create(&self, _: CreateSpec) -> BoxFuture<'_, Result<Created, SandboxError>> {
            unreachable!("the class is chosen, and no more")
        }

        fn adopt(&self) -> BoxFuture<'_, Result<Vec<Found>, SandboxError>> {
            unreachable!("the class is chosen, and no more")
        }
    }

    fn containers() -> Backends {
        Backends::container(Arc::new(NullBackend::default()))
    }

    /// Containers beside machines that are tried.
    fn tried() -> (Backends, Trial) {
        let trial = Trial::of(Arc::new(Machines));
        let backends = containers().with_microvm(Seat::Trial(trial.clone()));
        (backends, trial)
    }

    fn reason(backends: &Backends, request: IsolationRequest, needs: Needs) -> String {
        backends.choose(request, needs).unwrap().1
    }

    fn refused(backends: &Backends, request: IsolationRequest) -> (IsolationClass, String) {
        backends.choose(request, NOTHING).unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_the_verdict_but_not_for_ever() {
        for request in [IsolationRequest::Microvm, IsolationRequest::Auto] {
            let (decided, trial) = tried();
            let settled = decided.settled(request, NOTHING);
            tokio::join!(settled, async { trial.end(Ok(())) });
            let (_, reason) = decided.choose(request, NOTHING).unwrap();
            assert!(reason.starts_with("microvm: "), "{reason}");
        }
        let (undecided, _trial) = tried();
        undecided
            .settled(IsolationRequest::Container, NOTHING)
            .await;
        undecided.settled(IsolationRequest::Microvm, NOTHING).await;
        let (_, why) = refused(&undecided, IsolationRequest::Microvm);
        assert!(why.contains("being tried"), "{why}");
        let reason = reason(&undecided, IsolationRequest::Auto, NOTHING);
        assert!(
            reason.starts_with("container: this host is being tried"),
            "{reason}"
        );
    }

    #[test]
    fn a_class_is_taken_with_its_reason() {
        let mut backends = containers();
        let reason = |b: &Backends, r| reason(b, r, NOTHING);
        assert_eq!(
            reason(&backends, IsolationRequest::Auto),
            "container: virtual machines are not set up"
        );
        assert_eq!(
            reason(&backends, IsolationRequest::Container),
            "container: asked for"
        );
        assert_eq!(
            refused(&backends, IsolationRequest::Microvm),
            (
                IsolationClass::Microvm,
                "virtual machines are not set up".to_owned()
            )
        );
        let (_, why) = refused(&backends, IsolationRequest::Null);
        assert!(why.contains("configuration"), "{why}");
        backends.microvm = Seat::Ready(Arc::new(Machines));
        assert_eq!(
            reason(&backends, IsolationRequest::Microvm),
            "microvm: asked for"
        );
        backends.microvm = Seat::Missing("no /dev/kvm".to_owned());
        backends.container = Seat::Missing("no launcher".to_owned());
        assert_eq!(refused(&backends, IsolationRequest::Auto).1, "no launcher");
    }

    #[test]
    fn who_asks_for_no_class_gets_a_machine_where_they_come_up_and_can_do_it() {
        let (backends, trial) = tried();
        assert_eq!(backends.holders().count(), 2);
        trial.end(Ok(()));
        let auto = |backends: &Backends, needs| reason(backends, IsolationRequest::Auto, needs);
        assert_eq!(
            auto(&backends, NOTHING),
            "microvm: virtual machines come up on this host"
        );
        assert_eq!(
            auto(&backends, DISK),
            "container: the class microvm cannot write to a disk"
        );
    }

    #[test]
    fn where_machines_do_not_come_up_containers_say_why_and_nothing_falls_back() {
        for why in [
            "this host's KVM is a program and too slow",
            "/dev/kvm cannot be opened",
            "Linux 6.1.0 does not come up here",
        ] {
            let (backends, trial) = tried();
            trial.end(Err(why.to_owned()));
            // The first word counts.
            trial.end(Ok(()));
            assert_eq!(
                reason(&backends, IsolationRequest::Auto, NOTHING),
                format!("container: {why}")
            );
            let told = refused(&backends, IsolationRequest::Microvm);
            assert_eq!(told, (IsolationClass::Microvm, why.to_owned()));
        }
    }

    #[test]
    fn a_class_is_expected_before_it_is_known() {
        let (backends, trial) = tried();
        let expected = |request, needs| backends.expected(request, needs);
        let auto = |needs| expected(IsolationRequest::Auto, needs);
        assert_eq!(auto(NOTHING), IsolationClass::Microvm);
        assert_eq!(auto(DISK), IsolationClass::Container);
        trial.end(Err("it does not boot".to_owned()));
        assert_eq!(auto(NOTHING), IsolationClass::Container);
        for (request, class) in [
            (IsolationRequest::Microvm, IsolationClass::Microvm),
            (IsolationRequest::Container, IsolationClass::Container),
            (IsolationRequest::Null, IsolationClass::Null),
        ] {
            assert_eq!(expected(request, NOTHING), class);
        }
        assert_eq!(
            containers().expected(IsolationRequest::Auto, NOTHING),
            IsolationClass::Container
        );
    }
}
