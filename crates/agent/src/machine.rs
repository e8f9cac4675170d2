//! What concerns the machine as a whole: clock, randomness, network, end.

use rustix::fs::{Mode, OFlags};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec};
use skiff_wire::agent::SEED_BYTES_MAX;
use skiff_wire::launcher::{MachineNetwork, Refusal};

use crate::requests::{kernel, refuse};
use crate::sys;

const SECOND_NS: u64 = 1_000_000_000;

/// Sets the clock that says what day it is.
pub(crate) fn set_clock(unix_ns: u64) -> Result<(), Refusal> {
    const STEP: &str = "clock";
    let time = Timespec {
        tv_sec: i64::try_from(unix_ns / SECOND_NS).map_err(|error| refuse(STEP, error))?,
        tv_nsec: i64::try_from(unix_ns % SECOND_NS).map_err(|error| refuse(STEP, error))?,
    };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|errno| kernel(STEP, "set the clock", errno))
}

/// Makes the kernel's randomness another one than that of whoever has the
/// same memory.
pub(crate) fn reseed(seed: &[u8]) -> Result<(), Refusal> {
    const STEP: &str = "reseed";
    if seed.is_empty() || seed.len() > SEED_BYTES_MAX {
        let message = format!("{} bytes are not 1 to {SEED_BYTES_MAX}", seed.len());
        return Err(refuse(STEP, message));
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let random = rustix::fs::open("/dev/random", flags, Mode::empty())
        .map_err(|errno| kernel(STEP, "open /dev/random", errno))?;
    sys::add_entropy(&random, seed)
        .and_then(|()| sys::reseed(&random))
        .map_err(|error| refuse(STEP, error))
}

/// Sets up the way out of the machine.
pub(crate) fn connect(network: &MachineNetwork) -> Result<(), Refusal> {
    skiff_net::connect_machine(network).map_err(|error| Refusal {
        errno: error.raw_os_error().unwrap_or(0),
        ..refuse(
            "network",
            format!("set up the machine's interface: {error}"),
        )
    })
}

/// The kernel's release.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Writes back what is to be written, and switches the machine off. Returns
/// only to say why not.
pub fn power_off() -> std::io::Error {
    rustix::fs::sync();
    match rustix::system::reboot(RebootCommand::PowerOff) {
        Err(errno) => errno.into(),
        Ok(()) => std::io::Error::other("the machine stays on"),
    }
}
