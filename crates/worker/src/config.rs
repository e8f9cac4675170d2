use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skiff_sandbox::Sandbox;
use skiff_types::{InstanceId, RevisionId};

use crate::{FunctionHost, LogLimits};

/// Told of every sandbox while it is there, adopted ones included. Calls
/// return at once.
pub trait SandboxWatcher: Debug + Send + Sync + 'static {
    /// It is there; the application in it may not be ready yet, and may need
    /// what is done here to become so.
    fn there(&self, revision: &RevisionId, egress: bool, sandbox: &Arc<dyn Sandbox>);
    /// It is about to be removed, or is left to the next server.
    fn gone(&self, instance: InstanceId);
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where logs are kept.
    pub logs_folder: PathBuf,
    /// How much of them.
    pub log_limits: LogLimits,
    /// Between two samples of every instance.
    pub sample_period: Duration,
    /// Instances at once.
    pub instances_max: usize,
    /// Open files of an application's process.
    pub nofile: u64,
    /// How long making the layers, or the sandbox, may take.
    pub step_deadline: Duration,
    /// How long an adopted instance may take to answer its probe.
    pub adopt_deadline: Duration,
    /// How long after SIGKILL an instance's end is waited for.
    pub kill_deadline: Duration,
    /// Who is told of sandboxes, such as what serves their calls.
    pub watcher: Option<Arc<dyn SandboxWatcher>>,
    /// Who serves functions' runtimes; without it there are no functions.
    pub functions: Option<Arc<dyn FunctionHost>>,
}

impl WorkerConfig {
    /// The defaults, with logs in this folder.
    #[must_use]
    pub fn new(logs_folder: PathBuf) -> Self {
        Self {
            logs_folder,
            log_limits: LogLimits::default(),
            sample_period: Duration::from_secs(10),
            instances_max: 20_000,
            nofile: 65_536,
            step_deadline: Duration::from_secs(120),
            adopt_deadline: Duration::from_secs(10),
            kill_deadline: Duration::from_secs(10),
            watcher: None,
            functions: None,
        }
    }
}
