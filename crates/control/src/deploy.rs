//! A deployment: from what a user asks for to requests that reach it.
//!
//! ```text
//!   asked ── checked ── image pinned ──┬── same as the newest ready ──▶ unchanged
//!     │         │            │         │                                (traffic moves if it must)
//!     ▼         ▼            ▼         ▼ one transaction: number, revision, use of its image
//!  refused   refused      failed    PENDING ── fleet knows it ── one instance is probed
//!                                      │                              │            │
//!                        crash ────────┤                       no answer        answers
//!             next start: FAILED, "interrupted"                       │            │
//!                                                                     ▼            ▼ one transaction:
//!                                                                  FAILED     READY, traffic moved
//!                                                       old one serves on          │
//!                                                                                  ▼
//!                                                        gateway and fleet told, old revisions collected
//!                                                        (a crash before: the next start tells them)
//! ```
//! What stands in one transaction happens whole or not at all. A deployment
//! that has begun runs to its end also when its client goes away: it belongs
//! to the server's tasks.

use std::sync::Arc;
use std::time::Duration;

use skiff_types::api::{self, ApiError, DeployEvent, RevisionState};
use skiff_types::{
    ContainerSpec, Digest, EnvValue, IsolationRequest, Probe, ProbeKind, RevisionId, RevisionSpec,
    ServiceName, Tag,
};
use tokio::sync::watch;

use crate::compose;
use crate::control::{Control, is_fault};
use crate::db::{Change, Found};
use crate::error::{
    ControlError, conflict, exhausted, failed, forbidden, internal, invalid, not_found, unsupported,
};
use crate::events::Events;
use crate::key;
use crate::library::Pin;
use crate::limit::START_MARGIN;
use crate::manifest::open_spec;
use crate::operations::check_reference;
use crate::port::{CodeRoot, Composition, PullRequest, StartFailure};
use crate::publish::{Publication, plan, revision_route};
use crate::record::{Mark, NumberRecord, ProjectRecord, RevisionRecord, ServiceRecord, Target};
use crate::traffic::revision_id;

/// What a user asks for.
#[derive(Debug)]
pub(crate) enum Wish {
    Deploy(Box<api::Deploy>),
    Function {
        deploy: Box<api::Deploy>,
        overlay: Option<Overlay>,
        /// An ARN.
        role: String,
    },
    Scale(api::Scale),
}

/// What is laid over the image of a deployment.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    /// Over its image; else there is nothing below, and that is only a name.
    pub on_image: bool,
    /// Zip files, the lowest first.
    pub code: Vec<(Digest, CodeRoot)>,
    /// Variables to add to the image's.
    pub env: Vec<String>,
    /// Where its process begins.
    pub working_dir: String,
}

/// One deployment under way.
#[derive(Debug)]
pub(crate) struct Deployment {
    control: Control,
    project: ProjectRecord,
    service: ServiceName,
    wish: Wish,
    events: Events<DeployEvent>,
    /// Changes when it shall end, for its service is to be deleted.
    end: watch::Receiver<()>,
}

/// A revision before its images are pinned, and how it is to be put in place.
#[derive(Debug)]
struct Draft {
    spec: RevisionSpec,
    auth: Option<api::RegistryAuth>,
    tag: Option<Tag>,
    stay: bool,
    force: bool,
    overlay: Option<Overlay>,
    /// The digests are those of a revision that exists.
    pinned: bool,
}

/// Why it does not serve, and what its instance wrote last.
#[derive(Debug)]
struct Refusal {
    error: ControlError,
    log: Vec<String>,
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self {
            error,
            log: Vec::new(),
        }
    }
}

impl Control {
    /// Checks what can be checked at once and starts the deployment; its
    /// last event says how it ended.
    pub(crate) async fn begin_deploy(
        &self,
        project: ProjectRecord,
        service: ServiceName,
        wish: Wish,
        events: Events<DeployEvent>,
    ) -> Result<(), ControlError> {
        check_service_name(&service)?;
        let place = key::service(&project.id, &service);
        let current = self.db().get::<ServiceRecord>(&place).await?;
        let ticket = self.ticket(&project.id, &service)?;
        let deployment = Deployment {
            control: self.clone(),
            project,
            service,
            wish,
            events,
            end: ticket.end(),
        };
        let draft = deployment.draft(current.as_ref()).await?;
        deployment.check(&draft, current.as_ref()).await?;
        let operation = self.operation()?;
        self.inner.tasks.spawn("deploy", async move {
            let _operation = operation;
            let _turn = ticket.wait().await;
            deployment.run().await;
        });
        Ok(())
    }
}

/// `TAG---NAME` is the host of a tagged revision: no service may look like one.
fn check_service_name(service: &ServiceName) -> Result<(), ControlError> {
    if service.as_str().contains("---") {
        return Err(invalid(format!(
            "the service name {service} contains ---, which stands between a tag and a name in host names"
        )));
    }
    Ok(())
}

impl Deployment {
    async fn run(self) {
        let last = match self.steps().await {
            Ok(service) => DeployEvent::Done {
                service: Box::new(service),
            },
            Err(refusal) => {
                self.log_refusal(&refusal.error);
                let error: ApiError = refusal.error.to_api();
                let log = refusal.log;
                DeployEvent::Failed { error, log }
            }
        };
        self.events.tell(last);
    }

    fn log_refusal(&self, error: &ControlError) {
        let (project, service) = (&self.project.id, &self.service);
        if is_fault(error) {
            tracing::error!(%project, %service, %error, "a deployment failed");
        } else {
            tracing::info!(%project, %service, %error, "a deployment was refused");
        }
    }

    async fn steps(&self) -> Result<api::Service, Refusal> {
        let place = key::service(&self.project.id, &self.service);
        let current = self.control.db().get::<ServiceRecord>(&place).await?;
        let mut draft = self.draft(current.as_ref()).await?;
        self.check(&draft, current.as_ref()).await?;
        // Held until the revision that uses them is stored.
        let pins = self.pin_images(&mut draft).await?;
        if !draft.force
            && let Some(current) = &current
            && let Some(number) = self.same_as(current, &draft.spec).await?
        {
            self.unchanged(current, number, &draft).await?;
        } else {
            let id = self.store_pending(current.as_ref(), &draft.spec).await?;
            drop(pins);
            self.validate(&id, &draft).await?;
        }
        self.control
            .collect_revisions(&self.project, &self.service)
            .await;
        Ok(self.control.describe(&self.project, &self.service).await?)
    }

    /// The revision that is asked for, with digests still open.
    async fn draft(&self, current: Option<&Found<ServiceRecord>>) -> Result<Draft, ControlError> {
        match &self.wish {
            Wish::Deploy(deploy) => Ok(self.open(deploy, None)),
            Wish::Function {
                deploy,
                overlay,
                role,
            } => {
                let mut draft = self.open(deploy, overlay.clone());
                draft.spec.role = Some(role.clone());
                Ok(draft)
            }
            Wish::Scale(scale) => self.scaled(scale, current).await,
        }
    }

    fn open(&self, deploy: &api::Deploy, overlay: Option<Overlay>) -> Draft {
        Draft {
            spec: self.open_spec(deploy),
            auth: deploy.registry_auth.clone(),
            tag: deploy.tag.clone(),
            stay: deploy.no_traffic,
            force: deploy.force,
            overlay,
            pinned: false,
        }
    }

    /// The spec that a body asks for, a function with its names.
    fn open_spec(&self, deploy: &api::Deploy) -> RevisionSpec {
        let mut spec = open_spec(deploy);
        let Some(function) = spec.function.take() else {
            return spec;
        };
        let function = function.complete(&self.project.id, &self.service);
        for container in &mut spec.containers {
            // Whoever serves its runtime knows when it is ready.
            container.probe = Probe {
                kind: ProbeKind::Tcp,
                start_timeout_s: function.init_timeout_s,
                liveness_period_s: 0,
            };
        }
        spec.function = Some(function);
        spec
    }

    /// The newest ready revision with another scaling.
    async fn scaled(
        &self,
        scale: &api::Scale,
        current: Option<&Found<ServiceRecord>>,
    ) -> Result<Draft, ControlError> {
        if scale.min.is_none() && scale.max.is_none() {
            return Err(invalid("neither min nor max is given"));
        }
        let service = &self.service;
        let current = current.ok_or_else(|| not_found(format!("there is no service {service}")))?;
        let latest = current.record.latest_ready;
        let latest = latest.ok_or_else(|| {
            conflict(format!(
                "no revision of {service} is ready: there is nothing to scale"
            ))
        })?;
        let mut spec = self.revision(latest).await?.spec;
        spec.scaling.min = scale.min.unwrap_or(spec.scaling.min);
        spec.scaling.max = scale.max.unwrap_or(spec.scaling.max);
        Ok(Draft {
            spec,
            auth: None,
            tag: None,
            stay: false,
            force: false,
            overlay: None,
            pinned: true,
        })
    }

    async fn revision(&self, number: u32) -> Result<RevisionRecord, ControlError> {
        let id = revision_id(&self.project.id, &self.service, number);
        let found = self
            .control
            .db()
            .get::<RevisionRecord>(&key::revision(&id))
            .await?;
        let found = found
            .ok_or_else(|| internal(format!("the revision {id} is ready and does not exist")))?;
        Ok(found.record)
    }

    /// All that can be refused before anything is fetched or changed.
    async fn check(
        &self,
        draft: &Draft,
        current: Option<&Found<ServiceRecord>>,
    ) -> Result<(), ControlError> {
        draft.spec.validate()?;
        check_containers(&draft.spec)?;
        let null = draft.spec.isolation == IsolationRequest::Null;
        if null && !self.control.inner.base.config.allow_null {
            return Err(forbidden(
                "the null class is for measuring: the server's configuration does not allow it",
            ));
        }
        if draft.stay && current.is_none_or(|found| found.record.latest_ready.is_none()) {
            return Err(invalid(format!(
                "no revision of {} serves yet: the first one gets the traffic, leave no_traffic out",
                self.service
            )));
        }
        check_quota(&self.project, &draft.spec)?;
        self.check_secrets(&draft.spec).await
    }

    async fn check_secrets(&self, spec: &RevisionSpec) -> Result<(), ControlError> {
        for var in spec.containers.iter().flat_map(|container| &container.env) {
            if let EnvValue::Secret(name) = &var.value
                && !self
                    .control
                    .inner
                    .base
                    .vault
                    .exists(&self.project.id, name)
                    .await?
            {
                return Err(failed(format!(
                    "the secret {name}, which {} is to be set from, does not exist: `skiff secret set {name}` makes it",
                    var.name
                )));
            }
        }
        Ok(())
    }

    /// What may take long, and may be cut off anywhere.
    async fn unless_ended<T>(
        &self,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let mut end = self.end.clone();
        tokio::select! {
            done = work => done,
            Ok(()) = end.changed() => {
                Err(conflict(format!("the service {} is being deleted", self.service)))
            }
        }
    }

    /// Finds or pulls each image and writes its digest into the draft.
    async fn pin_images(&self, draft: &mut Draft) -> Result<Vec<Pin>, ControlError> {
        let mut pins = Vec::with_capacity(draft.spec.containers.len());
        for container in &mut draft.spec.containers {
            let name = if draft.pinned {
                container.digest.as_str().to_owned()
            } else {
                container.image.clone()
            };
            let request = PullRequest {
                reference: name,
                platform: None,
                auth: draft.auth.clone(),
            };
            let image = container.image.clone();
            let progress = self.events.progress(move |bytes, total| DeployEvent::Pull {
                image: image.clone(),
                bytes,
                total,
            });
            let library = &self.control.inner.library;
            let fetched = self.unless_ended(library.ensure(request, progress));
            let (image, pin) = match &draft.overlay {
                None => fetched.await?,
                Some(overlay) => {
                    let mut base = None;
                    if overlay.on_image {
                        let (image, pin) = fetched.await?;
                        check_entrypoint(container, &image.config)?;
                        base = Some(image.digest);
                        pins.push(pin);
                    }
                    library.compose(overlay.over(base)).await?
                }
            };
            if !image.runs_here {
                return Err(failed(format!(
                    "the image {} is for {}, which this machine does not run: build it for this machine's processor, or name a tag that has it",
                    container.image, image.platform
                )));
            }
            container.digest = image.digest;
            compose::args(container, &image.config)?;
            pins.push(pin);
        }
        Ok(pins)
    }

    /// The number of the newest ready revision, if it is this one.
    async fn same_as(
        &self,
        current: &Found<ServiceRecord>,
        spec: &RevisionSpec,
    ) -> Result<Option<u32>, ControlError> {
        let Some(latest) = current.record.latest_ready else {
            return Ok(None);
        };
        let same = self.revision(latest).await?.spec == *spec;
        Ok(same.then_some(latest))
    }

    /// No new revision: only the traffic may have to move.
    async fn unchanged(
        &self,
        current: &Found<ServiceRecord>,
        number: u32,
        draft: &Draft,
    ) -> Result<(), ControlError> {
        let name = revision_id(&self.project.id, &self.service, number).name();
        self.events.tell(DeployEvent::Unchanged { name });
        let new = current
            .record
            .after_deploy(number, draft.tag.clone(), draft.stay);
        if new.routed() == current.record.routed()
            && new.shares() == current.record.shares()
            && new.tags() == current.record.tags()
        {
            return Ok(());
        }
        self.control
            .move_traffic(&self.project, &self.service, current, new)
            .await
    }

    /// One transaction: the number is taken, the revision exists and uses its
    /// images, and so does the service if it is the first.
    async fn store_pending(
        &self,
        current: Option<&Found<ServiceRecord>>,
        spec: &RevisionSpec,
    ) -> Result<RevisionId, ControlError> {
        let _projects = self.control.inner.projects.read().await;
        let db = self.control.db();
        if !db.exists(&key::project(&self.project.id)).await? {
            return Err(not_found(format!(
                "there is no project {}",
                self.project.name
            )));
        }
        let number_key = key::number(&self.project.id, &self.service);
        let number = db.get::<NumberRecord>(&number_key).await?;
        let (last, version) = number.map_or((0, 0), |found| (found.record.last, found.version));
        let last = last
            .checked_add(1)
            .ok_or_else(|| exhausted("the service has no number left"))?;
        let id = revision_id(&self.project.id, &self.service, last);
        let now = self.control.inner.base.now();
        let record = RevisionRecord {
            created_unix_ms: now,
            state: RevisionState::Pending,
            reason: None,
            spec: spec.clone(),
        };
        let mut change = Change::default()
            .expect(&number_key, version)
            .put(&number_key, &NumberRecord { last })?
            .put(key::revision(&id), &record)?
            .put(key::pending(&id), &Mark {})?;
        for container in &spec.containers {
            change = change.put(key::used(&container.digest, &id), &Mark {})?;
        }
        if current.is_none() {
            let place = key::service(&id.project, &id.service);
            change = change
                .expect_absent(&place)
                .put(&place, &new_service(now))?;
        }
        db.commit(change).await?;
        self.events.tell(DeployEvent::Revision { name: id.name() });
        Ok(id)
    }

    /// Starts one instance; what it does decides.
    async fn validate(&self, id: &RevisionId, draft: &Draft) -> Result<(), Refusal> {
        let fleet = Arc::clone(&self.control.inner.ports.fleet);
        let router = Arc::clone(&self.control.inner.ports.router);
        // The gateway first: the instance goes into its rotation.
        router.put_revision(revision_route(
            &self.control.inner.base.config,
            id,
            &draft.spec,
        )?);
        fleet.put_revision(plan(id, &draft.spec, false));
        self.events.tell(DeployEvent::Validating);
        let deadline = start_deadline(&draft.spec);
        let started = async {
            let started = tokio::time::timeout(deadline, fleet.start_one(id)).await;
            Ok(started.unwrap_or_else(|_| Err(late(id, deadline))))
        };
        let ended = match self.unless_ended(started).await {
            Ok(Ok(_instance)) => self.promote(id, draft).await.map_err(Refusal::from),
            Ok(Err(failure)) => Err(Refusal {
                log: failure.log.clone(),
                error: failure.into(),
            }),
            Err(error) => Err(error.into()),
        };
        let Err(refusal) = ended else {
            return Ok(());
        };
        let reason = refusal.error.to_api().message;
        if self.control.fail_pending(id, reason).await? == RevisionState::Ready {
            // The store did not answer in time and had done it all the same.
            self.control
                .tell_service(&self.project, &self.service)
                .await?;
            return Ok(());
        }
        fleet.remove_revision(id);
        router.remove_revision(id);
        self.control.inner.base.forget(id);
        Err(refusal)
    }

    /// One transaction: the revision is ready and the traffic moved.
    async fn promote(&self, id: &RevisionId, draft: &Draft) -> Result<(), ControlError> {
        let db = self.control.db();
        let place = key::service(&id.project, &id.service);
        let current = db.get::<ServiceRecord>(&place).await?;
        let current =
            current.ok_or_else(|| conflict(format!("the service {} is gone", id.service)))?;
        let revision = db.get::<RevisionRecord>(&key::revision(id)).await?;
        let revision =
            revision.ok_or_else(|| conflict(format!("the revision {} is gone", id.name())))?;
        let new = current
            .record
            .after_deploy(id.number, draft.tag.clone(), draft.stay);
        let before = current.record.routed();
        let config = &self.control.inner.base.config;
        let told =
            Publication::prepare(db, config, &self.project, &self.service, &before, &new).await?;
        let ready = RevisionRecord {
            state: RevisionState::Ready,
            ..revision.record
        };
        let change = Change::default()
            .expect(&place, current.version)
            .expect(key::revision(id), revision.version)
            .put(key::revision(id), &ready)?
            .put(&place, &new)?
            .delete(key::pending(id));
        db.commit(change).await?;
        self.control.forget_view(&id.project, &id.service);
        told.apply(&self.control.inner.ports);
        Ok(())
    }
}

impl Control {
    /// One transaction: a revision that was being validated has failed.
    /// Answers what it is now: a transaction that was told as failed may have
    /// happened, and what is ready stays so.
    pub(crate) async fn fail_pending(
        &self,
        id: &RevisionId,
        reason: String,
    ) -> Result<RevisionState, ControlError> {
        let place = key::revision(id);
        let found = self.db().get::<RevisionRecord>(&place).await?;
        let mut change = Change::default().delete(key::pending(id));
        if let Some(found) = &found {
            change = change.expect(&place, found.version);
        }
        match found {
            Some(found) if found.record.state == RevisionState::Pending => {
                let record = RevisionRecord {
                    state: RevisionState::Failed,
                    reason: Some(reason),
                    ..found.record
                };
                self.db().commit(change.put(&place, &record)?).await?;
                Ok(RevisionState::Failed)
            }
            other => {
                self.db().commit(change).await?;
                Ok(other.map_or(RevisionState::Failed, |found| found.record.state))
            }
        }
    }
}

impl Overlay {
    fn over(&self, base: Option<Digest>) -> Composition {
        Composition {
            base,
            code: self.code.clone(),
            env: self.env.clone(),
            working_dir: self.working_dir.clone(),
        }
    }
}

/// A runtime's image starts it; its only argument is a handler.
fn check_entrypoint(
    container: &ContainerSpec,
    image: &crate::port::ImageConfig,
) -> Result<(), ControlError> {
    if container.command.is_empty() && image.entrypoint.is_empty() {
        return Err(failed(format!(
            "the image {} has no Entrypoint: that of a runtime has one, which takes a handler as its argument",
            container.image
        )));
    }
    Ok(())
}

fn new_service(created_unix_ms: u64) -> ServiceRecord {
    ServiceRecord {
        created_unix_ms,
        latest_ready: None,
        targets: vec![Target {
            revision: None,
            percent: 100,
            tag: None,
        }],
        kept: Default::default(),
    }
}

/// What the types leave open.
fn check_containers(spec: &RevisionSpec) -> Result<(), ControlError> {
    if spec.containers.len() > 1 {
        return Err(unsupported(format!(
            "the revision has {} containers: no class of isolation runs more than one yet",
            spec.containers.len()
        )));
    }
    for container in &spec.containers {
        check_reference(&container.image)?;
        if container.name.parse::<ServiceName>().is_err() {
            return Err(invalid(
                "a container's name is 1 to 50 of a-z, 0-9 and -, a letter first",
            ));
        }
        let start = container.probe.start_timeout_s;
        if !(1..=3600).contains(&start) {
            return Err(invalid(format!(
                "probe.start_timeout_s is {start}: between 1 and 3600 is expected"
            )));
        }
        let period = container.probe.liveness_period_s;
        if period > 86_400 {
            return Err(invalid(format!(
                "probe.liveness_period_s is {period}: between 0 and 86400 is expected"
            )));
        }
    }
    Ok(())
}

/// A revision that can never have the instances it always wants is refused.
pub(crate) fn check_quota(
    project: &ProjectRecord,
    spec: &RevisionSpec,
) -> Result<(), ControlError> {
    let least = spec.scaling.min.max(1);
    let memory = u64::from(spec.resources.memory_mib) * u64::from(least);
    let name = &project.name;
    match project.quota {
        api::Quota {
            instances: Some(most),
            ..
        } if least > most => Err(exhausted(format!(
            "{least} instances are wanted always and the project {name} may have {most}"
        ))),
        api::Quota {
            memory_mib: Some(most),
            ..
        } if memory > most => Err(exhausted(format!(
            "{least} instances need {memory} MiB of memory and the project {name} may have {most} MiB"
        ))),
        _ => Ok(()),
    }
}

fn start_deadline(spec: &RevisionSpec) -> Duration {
    let probe = spec
        .containers
        .iter()
        .map(|container| container.probe.start_timeout_s);
    Duration::from_secs(probe.max().unwrap_or_default().into()) + START_MARGIN
}

fn late(id: &RevisionId, deadline: Duration) -> StartFailure {
    StartFailure {
        kind: skiff_types::ErrorKind::Timeout,
        message: format!(
            "the first instance of {} did not come up within {} s",
            id.name(),
            deadline.as_secs()
        ),
        log: Vec::new(),
    }
}
