//! What the tests over these programs share.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

const DEVICE: &str = "/dev/kvm";

/// A program runs for milliseconds; this is for a machine that does all else
/// meanwhile.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether there is a KVM to test on. Where there is none it says so, past
/// the capture of a test's output.
#[must_use]
pub fn has_kvm() -> bool {
    let there = Path::new(DEVICE).exists();
    if !there {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let message = format!("{test} is not run: there is no {DEVICE}; make test-kvm runs it\n");
        // A message that cannot be written changes no result.
        std::io::stderr()
            .write_all(message.as_bytes())
            .unwrap_or_default();
    }
    there
}

/// How long a test waits at most, on a machine that `SKIFF_SLOWNESS` tells of.
#[must_use]
pub fn deadline() -> Duration {
    let slowness = std::env::var("SKIFF_SLOWNESS");
    let slowness = slowness.ok().and_then(|text| text.parse().ok());
    DEADLINE * slowness.unwrap_or(1)
}
