//! From a launch to what a sandbox is made of.

use skiff_sandbox::{CreateSpec, LayerFile, Needs};
use skiff_types::{InstanceId, Launch, WritableLayer};
use skiff_wire::launcher::{ProcessSpec, Writable};

const fn mib(count: u32) -> u64 {
    (count as u64) << 20
}

/// The launch's layers.
pub fn layer_files(launch: &Launch) -> Vec<LayerFile> {
    let file = |(digest, path): &(_, std::path::PathBuf)| LayerFile {
        digest: skiff_types::Digest::clone(digest),
        path: path.clone(),
    };
    launch.layers.iter().map(file).collect()
}

/// What its class must have.
pub const fn needs(launch: &Launch) -> Needs {
    Needs {
        egress: launch.egress,
        disk: matches!(launch.resources.writable, WritableLayer::Disk(_)),
    }
}

/// The application.
pub fn process_spec(launch: &Launch, nofile: u64) -> ProcessSpec {
    ProcessSpec {
        args: launch.args.clone(),
        env: launch.env.clone(),
        cwd: launch.cwd.clone(),
        uid: launch.uid,
        gid: launch.gid,
        additional_gids: launch.additional_gids.clone(),
        nofile,
    }
}

/// The launch's, and what each instance of a function is told of itself.
fn environment(instance: InstanceId, launch: &Launch) -> Vec<String> {
    let mut env = launch.env.clone();
    if let Some(function) = &launch.function {
        let version = &function.spec.version;
        let stream = skiff_lambda::log_stream(version, instance);
        env.push(format!("AWS_LAMBDA_LOG_STREAM_NAME={stream}"));
    }
    env
}

/// What the sandbox is made of.
pub fn create_spec(
    instance: InstanceId,
    launch: &Launch,
    layers: Vec<LayerFile>,
    nofile: u64,
    label: Vec<u8>,
) -> CreateSpec {
    let resources = &launch.resources;
    let memory_bytes = mib(resources.memory_mib);
    CreateSpec {
        instance,
        layers,
        process: ProcessSpec {
            env: environment(instance, launch),
            ..process_spec(launch, nofile)
        },
        hostname: instance.to_string(),
        memory_bytes,
        cpu_millis: resources.cpu_millis,
        pids: resources.pids,
        writable: match resources.writable {
            // A write is to fail before the instance is ended for its memory.
            WritableLayer::Tmpfs(0) => Writable::Tmpfs {
                bytes: memory_bytes / 2,
            },
            WritableLayer::Tmpfs(size) => Writable::Tmpfs { bytes: mib(size) },
            WritableLayer::Disk(size) => Writable::Disk { bytes: mib(size) },
        },
        // As AWS has it: a function writes to /tmp.
        readonly_root: launch.function.is_some(),
        egress: launch.egress,
        function: launch.function.is_some(),
        label,
    }
}
