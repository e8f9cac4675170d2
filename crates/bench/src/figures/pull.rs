//! Pulling an image from a registry on the loopback until it can be run,
//! beside skopeo with umoci and beside `ctr`: caches dropped before, all
//! written to disk within.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use skiff_testkit::{Registry, Server, fixture};

use crate::context::{Context, lacking};
use crate::peers::Containerd;
use crate::report::{Bound, Figure, Report, Spec};
use crate::sample_image::{layout, text};
use crate::time::{ms, now};

/// What is pulled: most of the sample's userland.
const FOLDERS: [&str; 2] = ["usr/bin", "usr/lib"];
const LAYERS: usize = 8;

const UMOCI: [Spec; 2] = [
    spec("pull_vs_umoci", Bound::AtMost(0.67), "skopeo + umoci"),
    spec(
        "pull_vs_umoci_8_layers",
        Bound::AtMost(0.67),
        "skopeo + umoci",
    ),
];
const CTR: [Spec; 2] = [
    spec("pull_vs_ctr", Bound::None, "ctr image pull"),
    spec("pull_vs_ctr_8_layers", Bound::None, "ctr image pull"),
];
pub const SPECS: &[Spec] = &[UMOCI[0], CTR[0], UMOCI[1], CTR[1]];

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
    let registry = Registry::start();
    let setting = format!("images.plain_http={}", registry.address());
    let server = context.server(&[&setting]);
    let lacks = lacking("containerd").or_else(|| lacking("ctr"));
    let containerd = match lacks {
        None => Some(Containerd::start(context)?),
        Some(_) => None,
    };
    for (index, layout) in layouts(context)?.iter().enumerate() {
        let reference = registry.push(layout, &format!("pull-{index}:1"));
        let (mut ours, mut umoci, mut ctr) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..context.rounds(10) {
            ours.push(with_skiff(context, &server, &reference)?);
            umoci.push(with_umoci(context, &reference)?);
            if let Some(containerd) = &containerd {
                ctr.push(with_ctr(context, containerd, &reference)?);
            }
            println!(
                "    {:.0} ms, umoci {:.0} ms, ctr {:?} ms",
                ours[round],
                umoci[round],
                ctr.get(round)
            );
        }
        report.add(Figure::ratio(UMOCI[index], ours.clone(), umoci));
        report.add(match &lacks {
            None => Figure::ratio(CTR[index], ours, ctr),
            Some(reason) => Figure::missing(CTR[index], reason),
        });
    }
    Ok(())
}

/// The same files in one layer and in eight.
fn layouts(context: &Context) -> anyhow::Result<[PathBuf; 2]> {
    let bundle = context.home().join("pull-root");
    let image = format!("{}:1", fixture("hello-python").display());
    context.run("umoci", &["unpack", "--image", &image, &text(&bundle)])?;
    let root = bundle.join("rootfs");
    let find = [&FOLDERS[..], &["(", "-type", "f", "-o", "-type", "l", ")"]].concat();
    let mut command = vec!["-C".to_owned(), text(&root), "find".to_owned()];
    command.extend(find.iter().map(|word| (*word).to_owned()));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let listed = context.run("env", &command)?;
    let mut files: Vec<&str> = listed.lines().collect();
    files.sort_unstable();
    // A third of them, so that a round is short.
    let files: Vec<&str> = files.into_iter().step_by(3).collect();
    let one = tar(context, &root, "all", &files)?;
    let part = files.len().div_ceil(LAYERS).max(1);
    let parts = files.chunks(part).enumerate();
    let tars = parts
        .map(|(index, files)| tar(context, &root, &format!("part-{index}"), files))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok([
        layout(context, "pull-one", &[one])?,
        layout(context, "pull-eight", &tars)?,
    ])
}

fn tar(context: &Context, root: &Path, name: &str, files: &[&str]) -> anyhow::Result<PathBuf> {
    let list = context.home().join(format!("pull-{name}.list"));
    std::fs::write(&list, files.join("\n"))?;
    let path = context.home().join(format!("pull-{name}.tar"));
    let (file, root, list) = (text(&path), text(root), text(&list));
    let args = [
        "--create",
        "--file",
        &file,
        "--directory",
        &root,
        "--files-from",
        &list,
    ];
    context.run("tar", &args)?;
    Ok(path)
}

/// Milliseconds of some work on cold caches, its writing to disk included.
fn timed(context: &Context, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    context.run("sync", &[])?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("caches cannot be dropped")?;
    let start = now();
    work()?;
    context.run("sync", &[])?;
    Ok(ms(now().since(start)))
}

fn with_skiff(context: &Context, server: &Server, reference: &str) -> anyhow::Result<f64> {
    let took = timed(context, || {
        let _pulled = server.cli(&["image", "pull", reference]).ok();
        Ok(())
    })?;
    let _removed = server.cli(&["image", "rm", reference]).ok();
    let _pruned = server.cli(&["image", "prune"]).ok();
    Ok(took)
}

fn with_umoci(context: &Context, reference: &str) -> anyhow::Result<f64> {
    let folder = context.home().join("pull-umoci");
    let layout = format!("{}:1", folder.join("layout").display());
    let bundle = text(&folder.join("bundle"));
    std::fs::create_dir_all(&folder)?;
    let (source, target) = (format!("docker://{reference}"), format!("oci:{layout}"));
    let took = timed(context, || {
        let plain = [
            "copy",
            "--quiet",
            "--insecure-policy",
            "--src-tls-verify=false",
        ];
        context.run("skopeo", &[&plain[..], &[&source, &target]].concat())?;
        context
            .run("umoci", &["unpack", "--image", &layout, &bundle])
            .map(drop)
    })?;
    std::fs::remove_dir_all(&folder)?;
    Ok(took)
}

fn with_ctr(
    context: &Context,
    containerd: &Containerd<'_>,
    reference: &str,
) -> anyhow::Result<f64> {
    let took = timed(context, || {
        containerd
            .ctr(&["image", "pull", "--plain-http", reference])
            .map(drop)
    })?;
    containerd.ctr(&["image", "rm", "--sync", reference])?;
    Ok(took)
}
