//! Cold starts, from zero with the image present, beside `ctr run --net-host`
//! and bare `runc run` of the same image, and beside a plain process.
//!
//! One client probes all: it connects, and again every millisecond, until the
//! first byte is there. For Skiff the clock starts with the first connection
//! to the gateway, for the others with the start of their command.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use skiff_testkit::{Server, fixture};

use crate::api::{Api, deployment};
use crate::context::{Context, free_port, lacking};
use crate::peers::{Bundle, Containerd, bare_python};
use crate::probe::first_byte;
use crate::report::{Bound, Figure, Report, Spec};
use crate::time::now;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// Services that are started back to back.
const ROW: usize = 20;

const CTR: Spec = spec(
    "cold_start_vs_ctr",
    Bound::AtMost(0.35),
    "ctr run --net-host",
);
const DRAINED: Spec = spec(
    "cold_start_drained_vs_ctr",
    Bound::AtMost(0.5),
    "ctr run --net-host",
);
const RUNC: Spec = spec("cold_start_vs_runc_bundle", Bound::AtMost(1.0), "runc run");
const PYTHON: Spec = spec(
    "cold_start_python_vs_bare",
    Bound::AtMost(1.2),
    "chroot python3",
);
pub const SPECS: &[Spec] = &[CTR, DRAINED, RUNC, PYTHON];

const fn spec(name: &'static str, bound: Bound, peer: &'static str) -> Spec {
    Spec {
        name,
        unit: "ms",
        bound,
        peer: Some(peer),
    }
}

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let server = context.server(&[]);
    let api = Api::of(&server);
    for image in ["testapp", "hello-python"] {
        server.import(image);
    }
    api.deploy(
        "one",
        &deployment("testapp:1", "container", &json!({"keep_alive_s": 0})),
    )?;
    let row: Vec<String> = (0..ROW).map(|index| format!("row-{index}")).collect();
    api.deploy_many(
        &row,
        &deployment("testapp:1", "container", &json!({"keep_alive_s": 1})),
    )?;
    let python = deployment("hello-python:1", "container", &json!({"keep_alive_s": 0}));
    api.deploy("python", &python)?;
    static_server(context, report, &server, &api, &row)?;
    python_server(context, report, &server, &api)
}

fn static_server(
    context: &Context,
    report: &mut Report,
    server: &Server,
    api: &Api,
    row: &[String],
) -> anyhow::Result<()> {
    let ctr_lacks = lacking("containerd").or_else(|| lacking("ctr"));
    let runc_lacks = lacking("runc");
    let layout = fixture("testapp");
    let containerd = match ctr_lacks {
        None => Some(Containerd::start(context)?),
        Some(_) => None,
    };
    let image = containerd
        .as_ref()
        .map(|it| it.import(&layout, "testapp"))
        .transpose()?;
    let bundle = match runc_lacks {
        None => Some(Bundle::unpack(context, &layout, "testapp")?),
        Some(_) => None,
    };
    let [mut ours, mut drained, mut ctr, mut runc] = [const { Vec::new() }; 4];
    // The first round of each side fills caches.
    for round in 0..=context.rounds(20) {
        ours.push(skiff(server, api, "one")?);
        if let (Some(containerd), Some(image)) = (&containerd, &image) {
            ctr.push(with_ctr(containerd, image, &format!("cold-{round}"))?);
        }
        if let Some(bundle) = &bundle {
            runc.push(with_runc(bundle, &format!("cold-{round}"))?);
        }
        drained.push(last_of(server, api, row)?);
    }
    for samples in [&mut ours, &mut drained, &mut ctr, &mut runc] {
        samples.drain(..usize::from(!samples.is_empty()));
    }
    for (spec, ours, peer, lacks) in [
        (CTR, &ours, &ctr, &ctr_lacks),
        (DRAINED, &drained, &ctr, &ctr_lacks),
        (RUNC, &ours, &runc, &runc_lacks),
    ] {
        report.add(match lacks {
            None => Figure::ratio(spec, ours.clone(), peer.clone()),
            Some(reason) => Figure::missing(spec, reason),
        });
    }
    Ok(())
}

fn python_server(
    context: &Context,
    report: &mut Report,
    server: &Server,
    api: &Api,
) -> anyhow::Result<()> {
    let bundle = Bundle::unpack(context, &fixture("hello-python"), "python")?;
    let root = bundle.root();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=context.rounds(12) {
        let (own, plain) = (skiff(server, api, "python")?, with_chroot(context, &root)?);
        if round > 0 {
            ours.push(own);
            bare.push(plain);
        }
    }
    report.add(Figure::ratio(PYTHON, ours, bare));
    Ok(())
}

/// A cold start of a service that is at zero first.
fn skiff(server: &Server, api: &Api, name: &str) -> anyhow::Result<f64> {
    api.wait_for_instances(name, 0)?;
    request(server, name)
}

fn request(server: &Server, name: &str) -> anyhow::Result<f64> {
    let address: SocketAddr = format!("127.0.0.1:{}", server.port()).parse()?;
    first_byte(address, &server.host_of(name), "/", now(), LIMIT)
}

/// The last of many services, each started as soon as the one before answers.
fn last_of(server: &Server, api: &Api, row: &[String]) -> anyhow::Result<f64> {
    for name in row {
        api.wait_for_instances(name, 0)?;
    }
    let mut last = f64::NAN;
    for name in row {
        last = request(server, name)?;
    }
    Ok(last)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn with_ctr(containerd: &Containerd<'_>, image: &str, id: &str) -> anyhow::Result<f64> {
    let port = free_port()?;
    let start = now();
    let client = containerd.run(image, id, port)?;
    let took = first_byte(loopback(port), "localhost", "/", start, LIMIT)?;
    let _succeeded = client.finish(LIMIT)?;
    containerd.remove(id)?;
    Ok(took)
}

fn with_runc(bundle: &Bundle<'_>, id: &str) -> anyhow::Result<f64> {
    let port = free_port()?;
    bundle.prepare(id, port)?;
    let start = now();
    let client = bundle.run(id)?;
    let took = first_byte(loopback(port), "localhost", "/", start, LIMIT)?;
    let _succeeded = client.finish(LIMIT)?;
    bundle.remove(id)?;
    Ok(took)
}

fn with_chroot(context: &Context, root: &Path) -> anyhow::Result<f64> {
    let port = free_port()?;
    let start = now();
    let process = bare_python(context, root, port)?;
    let took = first_byte(loopback(port), "localhost", "/", start, LIMIT)?;
    drop(process);
    Ok(took)
}
