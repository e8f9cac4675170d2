//! A hundred cold starts at once: a hundred services at zero with one request
//! each, beside a hundred `ctr run --net-host`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;
use skiff_base::Monotonic;
use skiff_testkit::{Server, fixture};

use crate::api::{Api, deployment};
use crate::context::{Context, free_port, lacking};
use crate::peers::Containerd;
use crate::probe::first_byte_every;
use crate::report::{Bound, Figure, Report, Spec};
use crate::stats::quantile;
use crate::time::now;

const COUNT: usize = 100;
/// Between two attempts of a client: a hundred that try every millisecond would
/// take the cores from what they wait for.
const AGAIN: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(120);

const ERRORS: Spec = Spec {
    name: "burst_100_errors",
    unit: "",
    bound: Bound::AtMost(0.0),
    peer: None,
};
const LAST: Spec = Spec {
    name: "burst_100_vs_ctr",
    unit: "ms",
    bound: Bound::AtMost(0.5),
    peer: Some("ctr run --net-host"),
};
const P99: Spec = Spec {
    name: "burst_100_p99_ms",
    unit: "ms",
    bound: Bound::None,
    peer: None,
};
pub const SPECS: &[Spec] = &[ERRORS, LAST, P99];

/// One burst: each first byte, or why there was none.
type Burst = Vec<anyhow::Result<f64>>;

/// Takes the group.
pub fn take(context: &Context, report: &mut Report) -> anyhow::Result<()> {
    let server = context.server(&[]);
    let api = Api::of(&server);
    server.import("testapp");
    let names: Vec<String> = (0..COUNT).map(|index| format!("burst-{index}")).collect();
    api.deploy_many(
        &names,
        &deployment("testapp:1", "container", &json!({"keep_alive_s": 1})),
    )?;
    let lacks = lacking("containerd").or_else(|| lacking("ctr"));
    let containerd = match lacks {
        None => Some(Containerd::start(context)?),
        Some(_) => None,
    };
    let image = containerd
        .as_ref()
        .map(|it| it.import(&fixture("testapp"), "testapp"))
        .transpose()?;

    let (mut errors, mut last, mut p99, mut ctr) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..context.rounds(10) {
        for name in &names {
            api.wait_for_instances(name, 0)?;
        }
        let burst = skiff(&server, &names)?;
        for error in burst
            .iter()
            .filter_map(|result| result.as_ref().err())
            .take(3)
        {
            println!("    {error:#}");
        }
        errors.push(burst.iter().filter(|result| result.is_err()).count() as f64);
        let good: Vec<f64> = burst.into_iter().flatten().collect();
        last.push(quantile(&good, 1000));
        p99.push(quantile(&good, 990));
        if let (Some(containerd), Some(image)) = (&containerd, &image) {
            ctr.push(with_ctr(containerd, image, round)?);
        }
        println!(
            "    last first byte: {:.0} ms, ctr {:?} ms",
            last[round],
            ctr.get(round)
        );
    }
    // One error in any round is one too many: not their median.
    report.add(Figure::absolute(ERRORS, vec![errors.iter().sum()]));
    report.add(match lacks {
        None => Figure::ratio(LAST, last, ctr),
        Some(reason) => Figure::missing(LAST, reason),
    });
    report.add(Figure::absolute(P99, p99));
    Ok(())
}

fn skiff(server: &Server, names: &[String]) -> anyhow::Result<Burst> {
    let address: SocketAddr = format!("127.0.0.1:{}", server.port()).parse()?;
    let hosts: Vec<String> = names.iter().map(|name| server.host_of(name)).collect();
    let start = now();
    Ok(at_once(
        start,
        hosts.iter().map(|host| (address, host.as_str())),
    ))
}

/// The last first byte of a hundred containers, milliseconds.
fn with_ctr(containerd: &Containerd<'_>, image: &str, round: usize) -> anyhow::Result<f64> {
    let ports = (0..COUNT)
        .map(|_| free_port())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ids: Vec<String> = (0..COUNT)
        .map(|index| format!("burst-{round}-{index}"))
        .collect();
    let start = now();
    let clients = ids
        .iter()
        .zip(&ports)
        .map(|(id, port)| containerd.run(image, id, *port))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let addresses = ports
        .iter()
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port)));
    let burst = at_once(start, addresses.map(|address| (address, "localhost")));
    for client in clients {
        let _succeeded = client.finish(LIMIT)?;
    }
    for id in &ids {
        containerd.remove(id)?;
    }
    let took = burst.into_iter().collect::<anyhow::Result<Vec<f64>>>()?;
    Ok(quantile(&took, 1000))
}

fn at_once<'a>(start: Monotonic, of: impl Iterator<Item = (SocketAddr, &'a str)>) -> Burst {
    std::thread::scope(|scope| {
        let clients: Vec<_> = of
            .map(|(address, host)| {
                scope.spawn(move || first_byte_every(AGAIN, address, host, "/", start, LIMIT))
            })
            .collect();
        let each = clients.into_iter();
        each.map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect()
    })
}
