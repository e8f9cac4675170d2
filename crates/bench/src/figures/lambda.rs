//! Functions: warm invocations by AWS's API beside the bare handler's loop,
//! throughput, cold starts by runtime, and a hundred of them at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use serde_json::{Value, json};
use skiff_testkit::{Server, fixture, lacking_for};

use crate::api::Api;
use crate::context::{Context, Service};
use crate::peers::{Bundle, Ministack, RuntimeApi};
use crate::procfs;
use crate::report::{Bound, Figure, Report, Spec};
use crate::sample_image::text;
use crate::signed::Door;
use crate::stats::{median, quantile};
use crate::time::{ms, now};

const EVENT: &str = r#"{"hello": "world"}"#;
const LIMIT: Duration = Duration::from_secs(60);
/// Invocations of one round, after those that warm up.
const ROUND: usize = 200;
const WARM_UP: usize = 20;
/// How long callers ask for a rate.
const LOADED: Duration = Duration::from_secs(3);
const CALLERS: usize = 64;
const BURST: usize = 100;

const ADDED: Spec = Spec {
    name: "lambda_warm_added_p50_ms",
    unit: "ms",
    bound: Bound::AtMost(1.0),
    peer: Some("the bare handler's loop, whole"),
};
const P99: Spec = Spec {
    name: "lambda_warm_p99_ms",
    unit: "ms",
    bound: Bound::AtMost(5.0),
    peer: Some("the bare handler's loop"),
};
const MINISTACK: Spec = Spec {
    name: "lambda_warm_vs_ministack",
    unit: "ms",
    bound: Bound::None,
    peer: Some("MiniStack, a handler without walls"),
};
pub const WARM: &[Spec] = &[ADDED, P99, MINISTACK];

const RPS_1: Spec = shown("lambda_rust_rps_1", "1/s");
const RPS_64: Spec = shown("lambda_rust_rps_64", "1/s");
const CPU: Spec = shown("lambda_cpu_us_per_invoke", "µs");
pub const RATE: &[Spec] = &[RPS_1, RPS_64, CPU];

const COLD_PYTHON: Spec = beside_bare("lambda_cold_python_ms");
const COLD_RUST: Spec = beside_bare("lambda_cold_rust_ms");
const COLD_SHELL: Spec = beside_bare("lambda_cold_shell_ms");
const COLD_GO: Spec = beside_bare("lambda_cold_go_ms");
const COLD_NODE: Spec = beside_bare("lambda_cold_node_ms");
const COLD_JAVA: Spec = beside_bare("lambda_cold_java_ms");
pub const COLD: &[Spec] = &[
    COLD_PYTHON,
    COLD_RUST,
    COLD_SHELL,
    COLD_GO,
    COLD_NODE,
    COLD_JAVA,
];

const ERRORS: Spec = Spec {
    name: "cold_burst_100_errors",
    unit: "",
    bound: Bound::AtMost(0.0),
    peer: None,
};
const BURST_P99: Spec = shown("cold_burst_100_p99_ms", "ms");
pub const AT_ONCE: &[Spec] = &[ERRORS, BURST_P99];

pub(super) const fn shown(name: &'static str, unit: &'static str) -> Spec {
    Spec {
        name,
        unit,
        bound: Bound::None,
        peer: None,
    }
}

const fn beside_bare(name: &'static str) -> Spec {
    Spec {
        name,
        unit: "ms",
        bound: Bound::None,
        peer: Some("the runtime's bare start"),
    }
}

/// What a runtime is started by in its image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runtime {
    image: &'static str,
    command: &'static [&'static str],
}

const PYTHON: Runtime = Runtime {
    image: "python-function",
    command: &["/usr/bin/python3", "-m", "awslambdaric", "app.handler"],
};
pub(super) const RUST: Runtime = Runtime {
    image: "rust-function",
    command: &["/var/task/bootstrap"],
};
const SHELL: Runtime = Runtime {
    image: "shell-function",
    command: &["/var/task/bootstrap"],
};
const GO: Runtime = Runtime {
    image: "go-function",
    command: &["/var/task/bootstrap"],
};
const NODE: Runtime = Runtime {
    image: "node-function",
    command: &[
        "/usr/local/bin/node",
        "/var/task/node_modules/aws-lambda-ric/index.mjs",
        "app.handler",
    ],
};
const JAVA: Runtime = Runtime {
    image: "java-function",
    command: &[
        "/opt/java/bin/java",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        "/var/task:/var/task/lib/*",
        "com.amazonaws.services.lambda.runtime.api.client.AWSLambda",
        "App::handleRequest",
    ],
};

impl Runtime {
    /// The runtime in its unpacked image, without any walls.
    fn bare(self, context: &Context, root: &Path, api: &RuntimeApi) -> anyhow::Result<Service> {
        // The linker and the JVM find themselves there.
        std::fs::create_dir_all(root.join("proc"))?;
        let (root, address) = (text(root), api.address().to_string());
        let env = [
            ("AWS_LAMBDA_RUNTIME_API", address.as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", "bare"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/bare"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "bare"),
            ("LAMBDA_TASK_ROOT", "/var/task"),
            ("_HANDLER", self.command.last().copied().unwrap_or_default()),
            ("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/bin"),
        ];
        let own = ["--mount-proc", "--root", &root, "--wd", "/var/task", "--"];
        context.spawn_with("unshare", &[&own, self.command].concat(), &env)
    }

    /// Milliseconds from the start of the bare runtime to its first answer.
    fn bare_start(self, context: &Context, root: &Path) -> anyhow::Result<f64> {
        let api = RuntimeApi::start()?;
        let start = now();
        let process = self.bare(context, root, &api)?;
        api.invoke(EVENT.as_bytes(), LIMIT)?;
        let took = ms(now().since(start));
        drop(process);
        Ok(took)
    }
}

/// One with more settings and the images of these.
pub(super) fn server(context: &Context, settings: &[&str], runtimes: &[Runtime]) -> Server {
    let server = context.server(&[&["lambda.listen=127.0.0.1:0"], settings].concat());
    for runtime in runtimes {
        server.import(runtime.image);
    }
    server
}

/// Warm invocations, signed, beside the bare loop.
pub fn warm(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let server = server(context, &[], &[PYTHON]);
    let own = Door::of(&server)?;
    own.caller(0)?.create("warm", &image(PYTHON))?;
    let bundle = Bundle::unpack(context, &fixture(PYTHON.image), "warm")?;
    let api = RuntimeApi::start()?;
    let process = PYTHON.bare(context, &bundle.root(), &api)?;
    let ministack = Ministack::start(context);
    let door = ministack.map(|running| (running.door(), running));
    // Why it is missing, if it is: the other figures stand without it.
    let mut emulated = match &door {
        Ok((door, _running)) => emulated(context, door),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    // Now, since a connection that is idle for long is closed.
    let mut caller = own.caller(1)?;
    let mut round = |count| {
        let mut taken = [const { Vec::new() }; 2];
        for _ in 0..count {
            taken[0].push(caller.invoke("warm", EVENT, EVENT)?);
            taken[1].push(api.invoke(EVENT.as_bytes(), LIMIT)?);
        }
        anyhow::Ok(taken)
    };
    round(WARM_UP)?;
    let [mut added, mut whole, mut plain, mut theirs] = [const { Vec::new() }; 4];
    let [mut p99, mut plain_p99] = [const { Vec::new() }; 2];
    for number in 0..context.rounds(10) {
        let [ours, bare] = round(ROUND)?;
        added.push(median(&ours) - median(&bare));
        whole.push(median(&ours));
        plain.push(median(&bare));
        p99.push(quantile(&ours, 990));
        plain_p99.push(quantile(&bare, 990));
        // Behind the others: what it does after its answers is not theirs.
        if let (Ok(()), Ok((door, _))) = (&emulated, &door) {
            match emulated_round(door, number) {
                Ok(taken) => theirs.push(median(&taken)),
                Err(error) => emulated = Err(error),
            }
        }
    }
    drop(process);
    report.add(Figure::absolute_beside(ADDED, added, plain));
    report.add(Figure::absolute_beside(P99, p99, plain_p99));
    report.add(match emulated {
        Ok(()) => Figure::ratio(MINISTACK, whole, theirs),
        Err(error) => Figure::missing(MINISTACK, format!("{error:#}")),
    });
    Ok(())
}

/// Makes MiniStack's function, which answers.
fn emulated(context: &Context, door: &Door) -> anyhow::Result<()> {
    let mut caller = door.caller(1)?;
    caller.create("warm", &Ministack::echo(context)?)?;
    caller.invoke("warm", EVENT, EVENT)?;
    Ok(())
}

/// Of MiniStack's, by a connection of its own: one is closed after 1,000.
fn emulated_round(door: &Door, number: usize) -> anyhow::Result<Vec<f64>> {
    let mut caller = door.caller(2 + number)?;
    let taken = (0..ROUND).map(|_| caller.invoke("warm", EVENT, EVENT));
    taken.collect()
}

pub(super) fn image(runtime: Runtime) -> Value {
    let image = format!("{}:1", runtime.image);
    json!({"PackageType": "Image", "Code": {"ImageUri": image}})
}

/// How many a static handler answers, and what each costs the server.
pub fn rate(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let server = server(context, &[], &[RUST]);
    let door = Door::of(&server)?;
    door.caller(0)?.create("rate", &image(RUST))?;
    let pid = i32::try_from(server.pid())?;
    let [mut alone, mut many, mut cpu_us] = [const { Vec::new() }; 3];
    let window = context.shortened(LOADED);
    for round in 0..=context.rounds(10) {
        let cpu = procfs::cpu_seconds(&[pid])?;
        let one = answered(&door, 1, window)?;
        let spent = procfs::cpu_seconds(&[pid])? - cpu;
        let all = answered(&door, CALLERS, window)?;
        // The first starts the instances.
        if round > 0 {
            alone.push(one as f64 / window.as_secs_f64());
            many.push(all as f64 / window.as_secs_f64());
            cpu_us.push(spent * 1e6 / one.max(1) as f64);
        }
    }
    report.add(Figure::absolute(RPS_1, alone));
    report.add(Figure::absolute(RPS_64, many));
    report.add(Figure::absolute(CPU, cpu_us));
    Ok(())
}

/// Invocations that so many callers have answered within a while.
fn answered(door: &Door, callers: usize, window: Duration) -> anyhow::Result<usize> {
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=callers)
            .map(|seed| {
                scope.spawn(move || {
                    let mut caller = door.caller(seed)?;
                    let mut count = 0;
                    while !over.load(Ordering::Relaxed) {
                        caller.invoke("rate", EVENT, r#"{"hello":"world"}"#)?;
                        count += 1;
                    }
                    anyhow::Ok(count)
                })
            })
            .collect();
        std::thread::sleep(window);
        over.store(true, Ordering::Relaxed);
        let threads = threads.into_iter();
        threads
            .map(|thread| thread.join().map_err(|_| anyhow!("a caller panicked"))?)
            .sum()
    })
}

/// Cold starts of each runtime, with their phases.
pub fn cold(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let runtimes = [
        (COLD_PYTHON, PYTHON),
        (COLD_RUST, RUST),
        (COLD_SHELL, SHELL),
        (COLD_GO, GO),
        (COLD_NODE, NODE),
        (COLD_JAVA, JAVA),
    ];
    let server = server(context, &[], &[]);
    let api = Api::of(&server);
    for (spec, runtime) in runtimes {
        if let Some(tools) = lacking_for(runtime.image) {
            let reason = format!("this machine lacks {tools}");
            report.add(Figure::missing(spec, reason));
            continue;
        }
        server.import(runtime.image);
        let bundle = Bundle::unpack(context, &fixture(runtime.image), runtime.image)?;
        api.deploy(runtime.image, &deployment(runtime.image))?;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        // The first round of each side fills caches.
        for round in 0..=context.rounds(12) {
            api.wait_for_instances(runtime.image, 0)?;
            let own = request(&server, runtime.image)?;
            let plain = runtime.bare_start(context, &bundle.root())?;
            if round > 0 {
                ours.push(own);
                bare.push(plain);
                for (phase, took) in explained(&server, runtime.image)? {
                    phases.entry(phase).or_default().push(took);
                }
            }
        }
        for (phase, took) in &phases {
            println!("    {} {phase}: {:.2} ms", runtime.image, median(took));
        }
        report.add(Figure::ratio(spec, ours, bare));
    }
    Ok(())
}

/// The phases of a function's last cold start, milliseconds.
fn explained(server: &Server, name: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let traces = server.json(&["trace", name, "-n", "1"]);
    let phases = traces[0]["phases_us"].as_array().context("no phases")?;
    let named = phases
        .iter()
        .filter_map(|phase| Some((phase[0].as_str()?.to_owned(), phase[1].as_f64()? / 1e3)));
    Ok(named.collect())
}

fn deployment(image: &str) -> Value {
    json!({
        "containers": [{"image": format!("{image}:1")}],
        "function": {},
        "timeout_s": 30,
        "isolation": "container",
        "resources": {
            "memory_mib": 128,
            "cpu_mode": "request",
            // As `skiff deploy --function` makes them.
            "writable": {"disk": 512},
        },
        "scaling": {"concurrency": 1, "keep_alive_s": 0},
    })
}

/// Milliseconds to the last byte of an event's answer, by the own door.
fn request(server: &Server, name: &str) -> anyhow::Result<f64> {
    let address: SocketAddr = format!("127.0.0.1:{}", server.port()).parse()?;
    let start = now();
    let reply = crate::probe::post(address, &server.host_of(name), EVENT, LIMIT)?;
    let took = ms(now().since(start));
    let same = serde_json::from_str::<Value>(&reply)? == serde_json::from_str::<Value>(EVENT)?;
    ensure!(same, "{name} answered {reply}");
    Ok(took)
}

/// A hundred functions at zero with one event each.
pub fn at_once(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let server = server(context, &[], &[RUST]);
    let api = Api::of(&server);
    let names: Vec<String> = (0..BURST).map(|index| format!("burst-{index}")).collect();
    api.deploy_many(&names, &deployment(RUST.image))?;
    let (mut errors, mut p99) = (0, Vec::new());
    for _ in 0..context.rounds(10) {
        for name in &names {
            api.wait_for_instances(name, 0)?;
        }
        let replies: Vec<anyhow::Result<f64>> = std::thread::scope(|scope| {
            let server = &server;
            let asked: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(move || request(server, name)))
                .collect();
            let asked = asked.into_iter();
            asked
                .map(|reply| reply.join().map_err(|_| anyhow!("a caller panicked"))?)
                .collect()
        });
        for error in replies
            .iter()
            .filter_map(|reply| reply.as_ref().err())
            .take(3)
        {
            println!("    {error:#}");
        }
        errors += replies.iter().filter(|reply| reply.is_err()).count();
        p99.push(quantile(
            &replies.into_iter().flatten().collect::<Vec<_>>(),
            990,
        ));
    }
    report.add(Figure::absolute(ERRORS, vec![errors as f64]));
    report.add(Figure::absolute(BURST_P99, p99));
    Ok(())
}
