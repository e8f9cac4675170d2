//! `skiff doctor`: what this machine can serve.

use std::path::Path;

use anyhow::bail;

use super::args::{self, Output};
use super::{kernels, output};
use crate::server::{configuration, microvm};

/// Looks at this host and says what is missing and what to do about it.
///
/// # Errors
/// When the container class cannot be served here.
pub fn execute(args: &args::Doctor, shape: Output) -> anyhow::Result<()> {
    let checks = skiff_sandbox::host_checks();
    let config = configuration(args.config.as_deref(), &[])?;
    let kernel =
        guest_kernel(&config.data_dir).unwrap_or_else(|error| format!("not known: {error:#}"));
    let isolation = isolation(microvm::outlook(
        &config.data_dir,
        &config.run_dir,
        config.microvm.monitor.as_deref(),
    ));
    match shape {
        Output::Json => {
            let mut rows: Vec<_> = checks
                .iter()
                .map(|check| {
                    serde_json::json!({
                        "name": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy,
                    })
                })
                .collect();
            // Nothing fails for want of these.
            for (name, detail) in [(GUEST_KERNEL, kernel), (ISOLATION, isolation)] {
                rows.push(serde_json::json!({
                    "name": name, "ok": true, "detail": detail, "remedy": "",
                }));
            }
            output::line(serde_json::to_string_pretty(&rows)?);
        }
        Output::Text => {
            for check in &checks {
                output::line(format!(
                    "{:4}  {}: {}",
                    if check.ok { "ok" } else { "FAIL" },
                    check.name,
                    check.detail
                ));
                if !check.ok {
                    output::line(format!("      {}", check.remedy));
                }
            }
            output::line(format!("      {GUEST_KERNEL}: {kernel}"));
            output::line(format!("{ISOLATION}: {isolation}"));
        }
    }
    if checks.iter().any(|check| !check.ok) {
        bail!("this machine cannot serve the class container");
    }
    Ok(())
}

const GUEST_KERNEL: &str = "guest kernel";
const ISOLATION: &str = "isolation";

/// Which classes instances may have here, and which they have by default.
fn isolation(machines: Result<&'static str, String>) -> String {
    match machines {
        Ok(why) => format!("microvm, or container with `--isolation container`; {why}"),
        Err(why) => format!("container; no microvm: {why}"),
    }
}

/// What microVMs would boot.
fn guest_kernel(data_dir: &Path) -> anyhow::Result<String> {
    let default = kernels::of_data_dir(data_dir).default()?;
    Ok(match default {
        Some(kernel) => format!("{}, for microVMs", kernel.version),
        None => "none; `skiff kernel install` adds one for microVMs".to_owned(),
    })
}
