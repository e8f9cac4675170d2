//! `skiff doctor`: what this machine can serve.

use anyhow::bail;

use super::args::Output;
use super::output;

/// Looks at this host and says what is missing and what to do about it.
///
/// # Errors
/// When the container class cannot be served here.
pub fn execute(shape: Output) -> anyhow::Result<()> {
    let checks = skiff_sandbox::host_checks();
    match shape {
        Output::Json => {
            let rows: Vec<_> = checks
                .iter()
                .map(|check| {
                    serde_json::json!({
                        "name": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy,
                    })
                })
                .collect();
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
            output::line("isolation: container (this version has no microVM)");
        }
    }
    if checks.iter().any(|check| !check.ok) {
        bail!("this machine cannot serve the class container");
    }
    Ok(())
}
