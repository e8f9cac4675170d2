//! Services: deploy, apply, describe, traffic.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use http::Method;
use skiff_types::api::{
    Deploy, DeployContainer, DeployEvent, Rollback, Scale, Service, SetTraffic, TrafficTarget,
};
use skiff_types::limits::{DEFAULT_TIMEOUT_S, FUNCTION_DISK_MIB};
use skiff_types::{
    CpuMode, EnvValue, EnvVar, FunctionSpec, IsolationRequest, Probe, ProbeKind, Protocol,
    Resources, Scaling, ServiceName, WritableLayer,
};

use super::args::{self, CpuArg, IsolationArg, Output, ProtocolArg};
use super::client::full;
use super::output::{self, Bar};
use super::{Scope, segment};

/// Of a function, seconds.
const DEFAULT_FUNCTION_TIMEOUT_S: u32 = 3;
/// Services asked for at once.
const PAGE: usize = 1000;

/// `skiff deploy`.
pub async fn deploy(scope: &Scope, args: args::Deploy) -> anyhow::Result<()> {
    let name = args.name.clone();
    let deploy = deployment(args)?;
    roll_out(scope, &name, &deploy).await
}

/// `skiff apply`.
pub async fn apply(scope: &Scope, file: &Path) -> anyhow::Result<()> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?
    } else {
        std::fs::read_to_string(file)
            .with_context(|| format!("{} cannot be read", file.display()))?
    };
    let manifest = skiff_control::Manifest::parse(&text)
        .map_err(|error| anyhow!("{}: {}", file.display(), skiff_base::chain(&error)))?;
    for (name, mut deploy) in manifest.services {
        deploy.registry_auth = credentials(&deploy)?;
        roll_out(scope, &name, &deploy).await?;
    }
    Ok(())
}

async fn roll_out(scope: &Scope, name: &ServiceName, deploy: &Deploy) -> anyhow::Result<()> {
    follow(
        scope,
        name,
        Method::PUT,
        &scope.path(&format!("services/{name}")),
        deploy,
    )
    .await
}

async fn follow(
    scope: &Scope,
    name: &ServiceName,
    method: Method,
    path: &str,
    body: &impl serde::Serialize,
) -> anyhow::Result<()> {
    let body = full(serde_json::to_vec(body)?);
    let mut events = scope
        .client
        .stream::<DeployEvent>(method, path, "application/json", body)
        .await?;
    let bar = Bar::new("pulling");
    while let Some(event) = events.next().await? {
        if scope.output == Output::Json {
            output::line(serde_json::to_string(&event)?);
        }
        match event {
            DeployEvent::Pull { bytes, total, .. } => bar.set(bytes, total),
            DeployEvent::Revision { name } => {
                bar.clear();
                if scope.output == Output::Text {
                    output::note(format!("revision {name}"));
                }
            }
            DeployEvent::Validating => bar.clear(),
            DeployEvent::Unchanged { name } => {
                if scope.output == Output::Text {
                    output::note(format!(
                        "{name} is this already; --force makes a new revision all the same"
                    ));
                }
            }
            DeployEvent::Done { service } => {
                bar.clear();
                if scope.output == Output::Text {
                    output::line(&service.url);
                }
                return Ok(());
            }
            DeployEvent::Failed { error, log } => {
                bar.clear();
                if scope.output == Output::Text {
                    log.iter()
                        .for_each(|line| output::note(format!("  | {line}")));
                }
                bail!("{}", error.message);
            }
        }
    }
    bail!("the server ended the deployment of {name} without a result; see `skiff describe {name}`")
}

/// A function takes one event at a time and stands between events; AWS's
/// default timeout is 3 seconds. Its handler is also its image's argument, as
/// AWS's images want it.
fn as_function(mut args: args::Deploy) -> args::Deploy {
    args.concurrency = 1;
    args.cpu_mode = CpuArg::Request;
    args.timeout = args.timeout.or(Some(DEFAULT_FUNCTION_TIMEOUT_S));
    if args.args.is_empty() {
        args.args.extend(args.handler.clone());
    }
    args
}

fn deployment(args: args::Deploy) -> anyhow::Result<Deploy> {
    let args = match args.function {
        true => as_function(args),
        false => args,
    };
    let mut env = Vec::new();
    for text in &args.env {
        let (name, value) = pair(text, "NAME=VALUE")?;
        env.push(EnvVar {
            name,
            value: EnvValue::Value(value),
        });
    }
    for text in &args.secret {
        let (name, secret) = pair(text, "NAME=SECRET")?;
        env.push(EnvVar {
            name,
            value: EnvValue::Secret(secret.parse()?),
        });
    }
    let probe = Probe {
        kind: args.probe.map_or(ProbeKind::Tcp, ProbeKind::Http),
        start_timeout_s: args.start_timeout,
        liveness_period_s: args.liveness,
    };
    let container = DeployContainer {
        name: "main".to_owned(),
        image: args.image,
        command: args.command,
        args: args.args,
        env,
        port: args.port,
        protocol: match args.protocol {
            ProtocolArg::Http1 => Protocol::Http1,
            ProtocolArg::H2c => Protocol::H2c,
        },
        probe,
        essential: true,
    };
    let function = args.function.then(|| FunctionSpec {
        handler: args.handler.clone(),
        init_timeout_s: args.init_timeout,
        ..FunctionSpec::default()
    });
    let mut deploy = Deploy {
        containers: vec![container],
        resources: Resources {
            memory_mib: args.memory,
            cpu_millis: cpu_millis(args.cpu)?,
            cpu_mode: match args.cpu_mode {
                CpuArg::Always => CpuMode::Always,
                CpuArg::Request => CpuMode::Request,
            },
            writable: match (args.disk, args.function) {
                (None, true) => WritableLayer::Disk(FUNCTION_DISK_MIB),
                (None | Some(0), _) => WritableLayer::Tmpfs(0),
                (Some(mib), _) => WritableLayer::Disk(mib),
            },
            ..Resources::default()
        },
        scaling: Scaling {
            concurrency: args.concurrency,
            min: args.min,
            max: args.max,
            keep_alive_s: args.keep_alive,
        },
        timeout_s: args.timeout.unwrap_or(DEFAULT_TIMEOUT_S),
        egress: args.egress,
        isolation: match args.isolation {
            IsolationArg::Auto => IsolationRequest::Auto,
            IsolationArg::Container => IsolationRequest::Container,
            IsolationArg::Microvm => IsolationRequest::Microvm,
            IsolationArg::Null => IsolationRequest::Null,
        },
        function,
        tag: args.tag,
        no_traffic: args.no_traffic,
        force: args.force,
        registry_auth: None,
    };
    deploy.registry_auth = credentials(&deploy)?;
    Ok(deploy)
}

fn credentials(deploy: &Deploy) -> anyhow::Result<Option<skiff_types::api::RegistryAuth>> {
    match deploy.containers.first() {
        Some(container) => super::images::credentials(&container.image),
        None => Ok(None),
    }
}

/// CPUs as thousandths.
pub fn cpu_millis(cpus: f64) -> anyhow::Result<u32> {
    if !(0.01..=256.0).contains(&cpus) {
        bail!("{cpus} CPUs cannot be given: between 0.01 and 256 is expected");
    }
    format!("{:.0}", cpus * 1000.0)
        .parse()
        .context("the CPUs are no number")
}

/// Splits at the first `=`.
pub fn pair(text: &str, form: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .with_context(|| format!("`{text}` is not {form}"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `skiff ls`.
pub async fn list(scope: &Scope) -> anyhow::Result<()> {
    let mut services: Vec<Service> = Vec::new();
    loop {
        let after = services
            .last()
            .map(|last| format!("&after={}", last.name))
            .unwrap_or_default();
        let path = scope.path(&format!("services?limit={PAGE}{after}"));
        let page: Vec<Service> = scope.client.get(&path).await?;
        let whole = page.len() == PAGE;
        services.extend(page);
        if !whole {
            break;
        }
    }
    output::show(scope.output, &services, |services| {
        let rows: Vec<_> = services.iter().map(summary).collect();
        output::table(
            &["NAME", "URL", "REVISION", "INSTANCES", "CLASS", "FUNCTION"],
            &rows,
        );
    })
}

fn summary(service: &Service) -> Vec<String> {
    let traffic = service.traffic.iter().filter(|target| target.percent > 0);
    let shares: Vec<String> = traffic.map(share).collect();
    vec![
        service.name.to_string(),
        service.url.clone(),
        shares.join(","),
        service.instances.len().to_string(),
        classes(service),
        function(service).unwrap_or("–").to_owned(),
    ]
}

/// What AWS's clients call it, if it is a function.
fn function(service: &Service) -> Option<&str> {
    let function = service.revisions.first()?.spec.function.as_ref()?;
    Some(&function.name)
}

/// The classes of its instances, with the reason of each.
fn classes(service: &Service) -> String {
    let reasons = service.instances.iter().map(|one| &*one.class_reason);
    let reasons: BTreeSet<&str> = reasons.collect();
    match reasons.len() {
        0 => "–".to_owned(),
        _ => Vec::from_iter(reasons).join("; "),
    }
}

fn share(target: &TrafficTarget) -> String {
    let tag = target
        .tag
        .as_ref()
        .map(|tag| format!(" ({tag})"))
        .unwrap_or_default();
    if target.percent == 100 {
        return format!("{}{tag}", target.revision);
    }
    format!("{}={}%{tag}", target.revision, target.percent)
}

/// `skiff describe`.
pub async fn describe(scope: &Scope, name: &ServiceName) -> anyhow::Result<()> {
    let service: Service = scope
        .client
        .get(&scope.path(&format!("services/{name}")))
        .await?;
    show_service(scope, &service)
}

fn show_service(scope: &Scope, service: &Service) -> anyhow::Result<()> {
    output::show(scope.output, service, |service| {
        output::line(format!("{}  {}", service.name, service.url));
        if let Some(function) = function(service) {
            output::line(format!("function: {function}"));
        }
        let shares: Vec<String> = service.traffic.iter().map(share).collect();
        output::line(format!("traffic: {}", shares.join(", ")));
        output::line("");
        let rows: Vec<Vec<String>> = service.revisions.iter().map(revision_row).collect();
        output::table(&["REVISION", "STATE", "CREATED", "IMAGE", "REASON"], &rows);
        output::line("");
        let rows: Vec<Vec<String>> = service.instances.iter().map(instance_row).collect();
        output::table(
            &[
                "INSTANCE",
                "REVISION",
                "STATE",
                "IN FLIGHT",
                "MEMORY",
                "CLASS",
            ],
            &rows,
        );
    })
}

fn revision_row(revision: &skiff_types::api::Revision) -> Vec<String> {
    let image = revision
        .spec
        .containers
        .first()
        .map(|container| container.image.clone());
    vec![
        revision.name.clone(),
        format!("{:?}", revision.state).to_lowercase(),
        output::time(revision.created_unix_ms),
        image.unwrap_or_default(),
        revision.reason.clone().unwrap_or_default(),
    ]
}

fn instance_row(instance: &skiff_types::api::Instance) -> Vec<String> {
    vec![
        instance.id.to_string(),
        instance.revision.clone(),
        instance.state.clone(),
        instance.in_flight.to_string(),
        instance
            .memory_mib
            .map_or_else(|| "–".to_owned(), |mib| format!("{mib} MiB")),
        format!("{} ({})", instance.class.as_str(), instance.class_reason),
    ]
}

/// `skiff traffic`.
pub async fn traffic(scope: &Scope, args: args::Traffic) -> anyhow::Result<()> {
    let path = scope.path(&format!("services/{}", args.name));
    if args.targets.is_empty() {
        let service: Service = scope.client.get(&path).await?;
        return output::show(scope.output, &service.traffic, |targets| {
            targets
                .iter()
                .for_each(|target| output::line(share(target)));
        });
    }
    let targets = args
        .targets
        .iter()
        .map(|text| target(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let body = SetTraffic { targets };
    let service: Service = scope
        .client
        .call(Method::PUT, &format!("{path}/traffic"), Some(&body))
        .await?;
    show_service(scope, &service)
}

fn target(text: &str) -> anyhow::Result<TrafficTarget> {
    let (revision, rest) = pair(text, "REVISION=PERCENT[,TAG]")?;
    let (percent, tag) = match rest.split_once(',') {
        Some((percent, tag)) => (percent, Some(tag.parse()?)),
        None => (rest.as_str(), None),
    };
    let percent = percent
        .trim_end_matches('%')
        .parse()
        .with_context(|| format!("`{percent}` in `{text}` is not a share of 0 to 100"))?;
    Ok(TrafficTarget {
        revision,
        percent,
        tag,
    })
}

/// `skiff rollback`.
pub async fn rollback(scope: &Scope, args: args::Rollback) -> anyhow::Result<()> {
    let path = scope.path(&format!("services/{}/rollback", args.name));
    let service: Service = scope
        .client
        .call(Method::POST, &path, Some(&Rollback { to: args.to }))
        .await?;
    show_service(scope, &service)
}

/// `skiff scale`.
pub async fn scale(scope: &Scope, args: args::Scale) -> anyhow::Result<()> {
    let path = scope.path(&format!("services/{}/scale", args.name));
    let body = Scale {
        min: args.bounds.min,
        max: args.bounds.max,
    };
    follow(scope, &args.name, Method::POST, &path, &body).await
}

/// `skiff rm`.
pub async fn remove(scope: &Scope, name: &ServiceName) -> anyhow::Result<()> {
    let path = scope.path(&format!("services/{}", segment(name.as_str())));
    let _null: serde_json::Value = scope
        .client
        .call(Method::DELETE, &path, None::<&()>)
        .await?;
    if scope.output == Output::Text {
        output::note(format!("{name} is removed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_revision_percent_and_tag() {
        let read = target("hello-00001=10%,next").unwrap();
        assert_eq!((read.revision.as_str(), read.percent), ("hello-00001", 10));
        assert_eq!(read.tag.unwrap().as_str(), "next");
        assert!(target("hello-00001").is_err());
        assert!(
            target("hello-00001=x")
                .unwrap_err()
                .to_string()
                .contains("not a share")
        );
    }

    #[test]
    fn cpus_become_thousandths() {
        assert_eq!(cpu_millis(0.25).unwrap(), 250);
        assert!(cpu_millis(0.0).is_err());
        assert!(cpu_millis(f64::NAN).is_err());
    }
}
