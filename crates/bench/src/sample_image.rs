//! Images that the figures need besides the tests' fixtures.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::context::Context;

/// An OCI layout whose image `1` runs this binary as the upstream.
///
/// # Errors
/// When it cannot be made.
pub fn upstream(context: &Context) -> anyhow::Result<PathBuf> {
    let root = context.home().join("upstream-root");
    let own = std::env::current_exe()?;
    copy_into(&root, &own, Path::new("/upstream"))?;
    let libraries = context.run("ldd", &[&own.display().to_string()])?;
    for word in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        copy_into(&root, Path::new(word), Path::new(word))?;
    }
    let tar = context.home().join("upstream.tar");
    context.run(
        "tar",
        &[
            "--create",
            "--file",
            &text(&tar),
            "--directory",
            &text(&root),
            ".",
        ],
    )?;
    let layout = layout(context, "upstream", &[tar])?;
    let image = format!("{}:1", layout.display());
    let command = [
        "--config.entrypoint",
        "/upstream",
        "--config.cmd",
        "upstream",
    ];
    context.run(
        "umoci",
        &[&["config", "--image", &image][..], &command].concat(),
    )?;
    Ok(layout)
}

/// An OCI layout with these tars as gzip layers of its image `1`.
///
/// # Errors
/// When it cannot be made.
pub fn layout(context: &Context, name: &str, tars: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let layout = context.home().join(name);
    let image = format!("{}:1", layout.display());
    context.run("umoci", &["init", "--layout", &text(&layout)])?;
    context.run("umoci", &["new", "--image", &image])?;
    for tar in tars {
        context.run(
            "umoci",
            &["raw", "add-layer", "--image", &image, &text(tar)],
        )?;
    }
    Ok(layout)
}

pub fn text(path: &Path) -> String {
    path.display().to_string()
}

fn copy_into(root: &Path, from: &Path, to: &Path) -> anyhow::Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    let folder = to.parent().context("a file has a folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
    Ok(())
}
