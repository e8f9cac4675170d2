//! `skiff doctor`: what this machine can serve.

use std::path::Path;

use anyhow::bail;

use super::args::{self, Output};
use super::{kernels, output};
use crate::server::configuration;

/// Looks at this host and says what is missing and what to do about it.
///
/// # Errors
/// When the container class cannot be served here.
pub fn execute(args: &args::Doctor, shape: Output) -> anyhow::Result<()> {
    let checks = skiff_sandbox::host_checks();
    let kernel = guest_kernel(args.config.as_deref())
        .unwrap_or_else(|error| format!("not known: {error:#}"));
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
            // Nothing fails for want of it yet.
            rows.push(serde_json::json!({
                "name": GUEST_KERNEL, "ok": true, "detail": kernel, "remedy": "",
            }));
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
            output::line(
                "isolation: container; microvm with `--isolation microvm`, where a server's trial \
                 of this host finds that machines come up",
            );
        }
    }
    if checks.iter().any(|check| !check.ok) {
        bail!("this machine cannot serve the class container");
    }
    Ok(())
}

const GUEST_KERNEL: &str = "guest kernel";

/// What microVMs would boot.
fn guest_kernel(config: Option<&Path>) -> anyhow::Result<String> {
    let config = configuration(config, &[])?;
    let default = kernels::of_data_dir(&config.data_dir).default()?;
    Ok(match default {
        Some(kernel) => format!("{}, for microVMs", kernel.version),
        None => "none; `skiff kernel install` adds one for microVMs".to_owned(),
    })
}
