//! The port to whoever serves functions' runtimes.

use std::fmt::Debug;
use std::sync::Arc;

use skiff_sandbox::Sandbox;
use skiff_types::{FunctionLaunch, InstanceId};
use skiff_wire::launcher::ProcessSpec;

use crate::OutputTap;

/// Stands between the worker, with all that is above it, and the sandboxes of
/// functions: what it gives takes requests as if it were an application that
/// listens, and is ready when the runtime in it is.
pub trait FunctionHost: Debug + Send + Sync + 'static {
    /// Serves the runtime in it from now on, for as long as what is returned
    /// is held. Called on a runtime; returns at once. `made_with` is what the
    /// sandbox was made to run; nothing of one that a former server started.
    fn host(
        &self,
        function: &FunctionLaunch,
        made_with: Option<ProcessSpec>,
        sandbox: Arc<dyn Sandbox>,
        output: Option<Arc<OutputTap>>,
    ) -> Arc<dyn Sandbox>;
    /// It is about to be removed, or is left to the next server, which will
    /// want its runtime's calls: only an invocation that runs is seen to its end.
    fn let_go(&self, instance: InstanceId);
}
