//! AWS Lambda's API: functions over HTTP, for clients that sign as AWS's do.
//!
//! ```text
//!  request ─ key known? ─ operation served? ─ body ─ signature ─ replayed? ─▶ operation
//!              403            501           400, 413     403         403
//! ```
//! Every call is signed by a key of a project, which is the account; nothing
//! is answered without, but at a function's URL that its policy opens and at a
//! hook with its token. Invocations go to the gateway within this process.

mod aliases;
mod body;
mod cache;
mod call;
mod code;
mod events;
mod functions;
mod hooks;
mod invoke;
mod layers;
mod links;
mod list;
mod logs;
mod operation;
mod policies;
mod provisioned;
mod record;
mod room;
mod scheduler;
mod settings;
mod show;
mod sign;
mod sources;
mod state;
mod streamed;
mod upload;
mod urls;

use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use serde_json::json;
use skiff_lambda::{Arns, Code, FunctionName, FunctionRef, LambdaError, Replays, decode_query};
use skiff_queue::LogError;
use skiff_types::ProjectId;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use crate::control::{Control, ServiceKey};
use crate::error::ControlError;
use crate::http::Peer;
use crate::key;
use crate::port::{Objects, Revisions};
use crate::record::ProjectRecord;
use call::{Call, Reply, invalid};
use hooks::HookPlace;
use links::Links;
use operation::{Api, Operation};
use record::UrlRecord;
use room::Rooms;
use urls::{Denied, UrlPlace, from_gateway};

use cache::Cache;
pub(crate) use cache::{Keys, KnownKey, Views};
pub(crate) use call::uuid;
pub use events::{EventSettings, ServiceSettings};
pub(crate) use events::{Events, check_qualifier};
pub(crate) use hooks::HOOK_PATH;
pub(crate) use record::{FunctionRecord, LayerRecord};
pub(crate) use sources::Sources;
pub(crate) use state::CodeInUse;
pub use urls::{URL_HOST, URL_PATH};

/// Memory for the bodies of all calls under way, bytes, and as much again for
/// those of requests to functions' URLs.
const BODIES_BYTES: usize = 256 * 1024 * 1024;
/// Zip files that arrive at once, each in a file of its own.
const UPLOADS_MAX: usize = 8;
/// Clients' connections; each has one call at a time.
const CONNECTIONS_MAX: usize = 4096;
/// Calls under way, those whose callers have hung up too.
const CALLS_MAX: usize = 2 * CONNECTIONS_MAX;
/// How long a connection of the gateway's may be without a request: longer than
/// the gateway keeps one, so that none ends just when it is used again.
const GATEWAY_IDLE: Duration = Duration::from_secs(300);
/// Concurrent executions of a project without a quota, as is told.
const CONCURRENT_EXECUTIONS: u32 = 1000;

/// How the API is served.
#[derive(Clone, Debug)]
pub struct LambdaConfig {
    /// The region that signatures and ARNs name.
    pub region: String,
    /// Whether functions that are made here reach the public internet.
    pub egress: bool,
    /// How events are kept, tried and told on.
    pub events: EventSettings,
    /// Runtimes' images by the runtimes' names, before AWS's own.
    pub runtimes: BTreeMap<String, String>,
    /// Where S3's buckets are.
    pub objects: Option<Arc<dyn Objects>>,
}

/// The API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LambdaStartError {
    /// Its events cannot be gone on with.
    #[error("the log of events cannot be opened")]
    Log(#[from] LogError),
    /// Its schedules and event sources cannot.
    #[error("the schedules and event sources cannot be read")]
    Store(#[from] ControlError),
}

/// The API, ready to be served; events are under way.
#[derive(Debug)]
pub struct LambdaFront(Arc<Front>);

/// What serves the API.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) control: Control,
    pub(crate) region: String,
    egress: bool,
    runtimes: BTreeMap<String, String>,
    objects: Option<Arc<dyn Objects>>,
    revisions: Arc<dyn Revisions>,
    links: Links,
    replays: Mutex<Replays>,
    /// Calls under way.
    calls: Arc<Semaphore>,
    bodies: Arc<Rooms>,
    /// Room for those of requests to URLs, which anyone may send.
    url_bodies: Arc<Rooms>,
    /// Zip files that are arriving.
    uploads: Semaphore,
    conversions: Semaphore,
    /// Logs that are being read.
    log_reads: Semaphore,
    /// Invocations under way of functions with a reservation.
    running: Arc<Mutex<HashMap<ServiceKey, u32>>>,
    pub(crate) events: Arc<Events>,
    /// Where functions' URLs lead, by their ids.
    urls: Cache<String, UrlRecord>,
    /// Functions of which the fleet is about to be told anew.
    retelling: provisioned::Due,
}

impl Control {
    /// Opens the log of events, and goes on with what is in it, with the
    /// schedules and with event sources.
    ///
    /// # Errors
    /// When the log cannot be opened or the store not be read.
    pub async fn lambda(
        &self,
        config: LambdaConfig,
        revisions: Arc<dyn Revisions>,
    ) -> Result<LambdaFront, LambdaStartError> {
        let now = self.inner.base.now();
        let (settings, region) = (config.events, config.region.clone());
        let opened = tokio::task::spawn_blocking(move || Events::open(settings, &region, now));
        let events = Arc::new(opened.await.unwrap_or(Err(LogError::Closed))?);
        let events = Arc::clone(self.inner.events.get_or_init(|| events));
        let front = Arc::new(Front {
            control: self.clone(),
            region: config.region,
            egress: config.egress,
            runtimes: config.runtimes,
            objects: config.objects,
            revisions,
            links: Links::default(),
            replays: Mutex::default(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            bodies: Rooms::new(BODIES_BYTES),
            url_bodies: Rooms::new(BODIES_BYTES),
            uploads: Semaphore::new(UPLOADS_MAX),
            conversions: Semaphore::new(code::CONVERSIONS_MAX),
            log_reads: Semaphore::new(logs::READS_MAX),
            running: Arc::default(),
            events,
            urls: Cache::default(),
            retelling: Arc::default(),
        });
        front.load_schedules().await?;
        front.load_sources().await?;
        let dispatching = Arc::clone(&front).dispatch();
        self.inner.tasks.spawn("events", dispatching);
        let scheduling = Arc::clone(&front).run_schedules();
        self.inner.tasks.spawn("schedules", scheduling);
        let polling = Arc::clone(&front).run_sources();
        self.inner.tasks.spawn("event sources", polling);
        Ok(LambdaFront(front))
    }
}

impl LambdaFront {
    /// What the gateway's requests to functions' URLs come to.
    #[must_use]
    pub fn urls(&self) -> UrlDoor {
        UrlDoor(self.0.clone())
    }

    /// Serves the API. Returns after [`Control::stop`].
    pub async fn serve(self, listener: TcpListener) {
        let control = self.0.control.clone();
        let router = Router::new().fallback(answer).with_state(self.0);
        let prepare = |stream| ready(Some(stream));
        control
            .accept_all(&listener, prepare, router, CONNECTIONS_MAX)
            .await;
    }
}

/// Functions' URLs, for connections of the gateway's.
#[derive(Clone, Debug)]
pub struct UrlDoor(Arc<Front>);

impl UrlDoor {
    /// Serves one connection, until it ends or after [`Control::stop`]. Nothing
    /// but URLs can be reached by it, and the gateway's `x-forwarded-for` is
    /// believed.
    pub fn serve(&self, stream: DuplexStream) {
        let router = Router::new().fallback(answer_of_url);
        let router = router.with_state(self.0.clone());
        let stream = ready(Some(stream));
        let control = &self.0.control;
        control.serve_stream(stream, Peer::default(), router, None, GATEWAY_IDLE);
    }
}

async fn answer_of_url(
    State(front): State<Arc<Front>>,
    mut request: axum::extract::Request,
) -> Response {
    let Some(place) = UrlPlace::of(&request) else {
        return Denied::Unknown.into_response();
    };
    from_gateway(&mut request);
    let serving = front.clone();
    let answering = async move { serving.answer_url(place, request, &uuid()).await };
    to_its_end(&front, answering).await
}

async fn answer(State(front): State<Arc<Front>>, request: axum::extract::Request) -> Response {
    let answering = answer_any(front.clone(), request);
    to_its_end(&front, answering).await
}

/// What a call has begun goes on when its caller hangs up: a function does, and
/// a change is not left half done.
async fn to_its_end(
    front: &Front,
    answering: impl Future<Output = Response> + Send + 'static,
) -> Response {
    let Ok(place) = Arc::clone(&front.calls).try_acquire_owned() else {
        let message = format!("{CALLS_MAX} calls are under way: try again later");
        let error = LambdaError::throttled("CallerRateLimitExceeded", message);
        return Reply::error(&error).into_response();
    };
    let (sender, answered) = oneshot::channel();
    let tasks = &front.control.inner.tasks;
    tasks.spawn("call", async move {
        let _place = place;
        if sender.send(answering.await).is_err() {
            tracing::debug!("the caller has hung up");
        }
    });
    answered.await.unwrap_or_else(|_| {
        let error = LambdaError::new(Code::Service, "the server is stopping");
        Reply::error(&error).into_response()
    })
}

async fn answer_any(front: Arc<Front>, request: axum::extract::Request) -> Response {
    let request_id = uuid();
    if let Some(place) = UrlPlace::of(&request) {
        return front.answer_url(place, request, &request_id).await;
    }
    if let Some(place) = HookPlace::of(request.uri().path()) {
        return front.answer_hook(place, request, &request_id).await;
    }
    let api = Api::of(request.uri().path(), request.headers());
    let reply = front.reply(api, request, &request_id).await;
    let reply = reply.unwrap_or_else(|error| match api {
        Api::Lambda => Reply::error(&error),
        Api::Scheduler => scheduler::error(&error),
        Api::Logs => logs::error(&error),
    });
    let mut response = reply.into_response();
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    response
}

impl Front {
    async fn reply(
        &self,
        api: Api,
        request: axum::extract::Request,
        request_id: &str,
    ) -> Result<Reply, LambdaError> {
        let (parts, body) = request.into_parts();
        let signed = self.signed(&parts, api).await?;
        let operation = Operation::of(&parts.method, parts.uri.path(), &parts.headers)?;
        let now_ms = self.control.inner.base.now();
        let (body, room, zip) = match operation.zip_member() {
            Some((name, member)) => {
                let uploaded = self.read_upload(&parts, body, name, member).await?;
                self.verify_upload(&signed, &uploaded, now_ms)?;
                (uploaded.json, None, uploaded.zip)
            }
            None => {
                let project = signed.key.project.id.clone();
                let (read, room) = self
                    .read(project, &parts, body, operation.invokes())
                    .await?;
                let body = self.verify(&signed, read, operation.only_reads(), now_ms)?;
                (body, Some(room), None)
            }
        };
        let query = decode_query(parts.uri.query().unwrap_or_default());
        let call = Call {
            project: signed.key.project.clone(),
            signer: signed.signer(),
            now_ms,
            request_id: request_id.to_owned(),
            query: query.ok_or_else(|| invalid("the query is not percent-encoded UTF-8"))?,
            headers: parts.headers,
            body,
            room,
            zip,
        };
        self.run(operation, call).await
    }

    async fn run(&self, operation: Operation, mut call: Call) -> Result<Reply, LambdaError> {
        use Operation as O;
        match operation {
            O::CreateFunction => self.create_function(&call).await,
            O::ListFunctions => self.list_functions(&call).await,
            O::GetFunction(name) => self.get_function(&call, &name, true).await,
            O::DeleteFunction(name) => self.delete_function(&call, &name).await,
            O::GetFunctionConfiguration(name) => self.get_function(&call, &name, false).await,
            O::UpdateFunctionConfiguration(name) => self.update_configuration(&call, &name).await,
            O::UpdateFunctionCode(name) => self.update_code(&call, &name).await,
            O::PublishVersion(name) => self.publish_version(&call, &name).await,
            O::ListVersionsByFunction(name) => self.list_versions(&call, &name).await,
            O::Invoke(name) => self.invoke(&mut call, &name).await,
            O::InvokeWithResponseStream(name) => self.invoke_streaming(&mut call, &name).await,
            O::CreateAlias(name) => self.create_alias(&call, &name).await,
            O::ListAliases(name) => self.list_aliases(&call, &name).await,
            O::GetAlias(name, alias) => self.get_alias(&call, &name, &alias).await,
            O::UpdateAlias(name, alias) => self.update_alias(&call, &name, &alias).await,
            O::DeleteAlias(name, alias) => self.delete_alias(&call, &name, &alias).await,
            O::AddPermission(name) => self.add_permission(&call, &name).await,
            O::GetPolicy(name) => self.get_policy(&call, &name).await,
            O::RemovePermission(name, sid) => self.remove_permission(&call, &name, &sid).await,
            O::PutFunctionConcurrency(name) => self.put_concurrency(&call, &name).await,
            O::GetFunctionConcurrency(name) => self.get_concurrency(&call, &name).await,
            O::DeleteFunctionConcurrency(name) => self.delete_concurrency(&call, &name).await,
            O::PutProvisionedConcurrencyConfig(name) => self.put_provisioned(&call, &name).await,
            O::GetProvisionedConcurrencyConfig(name) => self.get_provisioned(&call, &name).await,
            O::DeleteProvisionedConcurrencyConfig(name) => {
                self.delete_provisioned(&call, &name).await
            }
            O::PutFunctionEventInvokeConfig(name) => {
                self.set_event_config(&call, &name, true).await
            }
            O::UpdateFunctionEventInvokeConfig(name) => {
                self.set_event_config(&call, &name, false).await
            }
            O::GetFunctionEventInvokeConfig(name) => self.get_event_config(&call, &name).await,
            O::DeleteFunctionEventInvokeConfig(name) => {
                self.delete_event_config(&call, &name).await
            }
            O::ListFunctionEventInvokeConfigs(name) => self.list_event_configs(&call, &name).await,
            O::CreateEventSourceMapping => self.create_mapping(&call).await,
            O::ListEventSourceMappings => self.list_mappings(&call).await,
            O::GetEventSourceMapping(id) => self.get_mapping(&call, &id).await,
            O::UpdateEventSourceMapping(id) => self.update_mapping(&call, &id).await,
            O::DeleteEventSourceMapping(id) => self.delete_mapping(&call, &id).await,
            O::CreateFunctionUrlConfig(name) => self.create_url(&call, &name).await,
            O::GetFunctionUrlConfig(name) => self.get_url(&call, &name).await,
            O::UpdateFunctionUrlConfig(name) => self.update_url(&call, &name).await,
            O::DeleteFunctionUrlConfig(name) => self.delete_url(&call, &name).await,
            O::ListFunctionUrlConfigs(name) => self.list_urls(&call, &name).await,
            O::Scheduler(operation) => self.run_scheduler(operation, &call).await,
            O::Logs(operation) => self.run_logs(operation, &call).await,
            O::GetAccountSettings => self.account_settings(&call).await,
            O::FunctionZip(name, zip) => self.function_zip(&call, &name, &zip).await,
            O::LayerZip(owner, name, number) => self.layer_zip(&call, &owner, &name, &number).await,
            O::ListLayers => self.list_layers(&call).await,
            O::PublishLayerVersion(name) => self.publish_layer(&call, &name).await,
            O::ListLayerVersions(name) => self.list_layer_versions(&call, &name).await,
            O::GetLayerVersion(name, n) => self.get_layer(&call, &name, Some(&n)).await,
            O::DeleteLayerVersion(name, n) => self.delete_layer(&call, &name, &n).await,
            O::AddLayerVersionPermission(name, n) => {
                self.add_layer_permission(&call, &name, &n).await
            }
            O::GetLayerVersionPolicy(name, n) => self.get_layer_policy(&call, &name, &n).await,
            O::RemoveLayerVersionPermission(name, n, sid) => {
                self.remove_layer_permission(&call, &name, &n, &sid).await
            }
            O::ListTags(arn) => self.list_tags(&call, &arn).await,
            O::TagResource(arn) => self.tag(&call, &arn).await,
            O::UntagResource(arn) => self.untag(&call, &arn).await,
        }
    }

    async fn account_settings(&self, call: &Call) -> Result<Reply, LambdaError> {
        let prefix = key::functions(&call.project.id);
        let functions = self
            .control
            .db()
            .all::<record::FunctionRecord>(&prefix)
            .await?;
        let zips = functions
            .iter()
            .filter_map(|found| found.record.latest.code.as_ref());
        let zipped = zips.fold(0, |sum: u64, code| sum.saturating_add(code.zip_bytes));
        let reserved = functions
            .iter()
            .filter_map(|found| found.record.reserved_concurrency);
        let most = executions(&call.project);
        let open = most.saturating_sub(reserved.fold(0, u32::saturating_add));
        let reply = json!({
            "AccountLimit": {
                "TotalCodeSize": 0,
                "CodeSizeUnzipped": code::UNPACKED_BYTES_MAX,
                "CodeSizeZipped": upload::ZIP_BYTES_MAX,
                "ConcurrentExecutions": most,
                "UnreservedConcurrentExecutions": open,
            },
            "AccountUsage": {"TotalCodeSize": zipped, "FunctionCount": functions.len()},
        });
        Ok(Reply::json(StatusCode::OK, reply))
    }

    pub(crate) fn arns(&self, account: &ProjectId) -> Arns {
        Arns {
            region: self.region.clone(),
            account: account.clone(),
        }
    }

    fn arn(&self, call: &Call, target: &FunctionRef) -> String {
        let arns = self.arns(&call.project.id);
        arns.named(&target.name, target.qualifier.as_ref())
    }

    /// The function of the path and of `Qualifier`, whoever it belongs to.
    fn named(&self, call: &Call, text: &str) -> Result<FunctionRef, LambdaError> {
        let mut target = FunctionRef::parse(text).map_err(invalid)?;
        if target
            .region
            .as_ref()
            .is_some_and(|region| *region != self.region)
        {
            let message = format!("the ARN is of another region: {} is served", self.region);
            return Err(LambdaError::new(Code::ResourceNotFound, message));
        }
        let asked = call.param("Qualifier").map(str::parse).transpose();
        let asked = asked.map_err(invalid)?;
        if asked.is_some() && target.qualifier.is_some() && asked != target.qualifier {
            return Err(invalid(
                "The derived qualifier from the function name does not match the specified qualifier.",
            ));
        }
        target.qualifier = target.qualifier.or(asked);
        Ok(target)
    }

    /// The same, of the caller's project.
    fn target(&self, call: &Call, text: &str) -> Result<FunctionRef, LambdaError> {
        let target = self.named(call, text)?;
        self.own(call, target)
    }

    fn own(&self, call: &Call, target: FunctionRef) -> Result<FunctionRef, LambdaError> {
        match &target.account {
            Some(account) if *account != call.project.id => Err(not_yours()),
            _ => Ok(target),
        }
    }

    /// What is stored of a function of the caller's project.
    async fn record(
        &self,
        call: &Call,
        name: &FunctionName,
    ) -> Result<FunctionRecord, LambdaError> {
        Ok(self.control.function(&call.project.id, name).await?.record)
    }

    /// Changes that; what the change gives, and what is stored now.
    async fn change<T>(
        &self,
        call: &Call,
        name: &FunctionName,
        change: impl FnMut(&mut FunctionRecord) -> Result<T, LambdaError>,
    ) -> Result<(T, FunctionRecord), LambdaError> {
        self.control
            .change_function(&call.project.id, name, change)
            .await
    }

    /// The same, where a qualifier has no meaning.
    fn unqualified(&self, call: &Call, text: &str) -> Result<FunctionName, LambdaError> {
        let target = self.target(call, text)?;
        match target.qualifier {
            None => Ok(target.name),
            Some(_) => Err(invalid("this operation takes no version and no alias")),
        }
    }
}

/// Concurrent executions of a project.
fn executions(project: &ProjectRecord) -> u32 {
    project.quota.requests.unwrap_or(CONCURRENT_EXECUTIONS)
}

/// Whether there is such a function is not told.
fn not_yours() -> LambdaError {
    let message = "the key is of another project, and no policy of the function lets it in";
    LambdaError::new(Code::AccessDenied, message)
}
