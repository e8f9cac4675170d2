//! What is done for a request.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use skiff_kvm::ThreadError;
use skiff_virtio::block::{SectorRange, WindowError};
use skiff_wire::monitor::{
    Answer, Envelope, MESSAGE_BYTES_MAX, Reason, Refusal, Reply, Request, VERSION,
};

use super::Controlled;
use crate::MachineError;

/// Does what a client asks. `greeted` says whether it said hello.
pub(super) fn answer(
    machine: &impl Controlled,
    greeted: &mut bool,
    envelope: Envelope,
    fds: Vec<OwnedFd>,
) -> Answer {
    Answer {
        id: envelope.id,
        result: result(machine, greeted, envelope.request, fds),
    }
}

fn result(
    machine: &impl Controlled,
    greeted: &mut bool,
    request: Request,
    mut fds: Vec<OwnedFd>,
) -> Result<Reply, Refusal> {
    let wanted = usize::from(matches!(request, Request::Map { .. }));
    if fds.len() != wanted {
        return Err(invalid(format!(
            "{} descriptors came with a request that needs {wanted}: it was not sent with it, or \
             no more can be open",
            fds.len()
        )));
    }
    if !*greeted && !matches!(request, Request::Hello { .. }) {
        return Err(invalid("the first request must be Hello".into()));
    }
    let done = match request {
        Request::Hello { version } if version == VERSION => {
            *greeted = true;
            return Ok(Reply::Hello {
                version: VERSION,
                pid: std::process::id(),
                program: env!("CARGO_PKG_VERSION").into(),
            });
        }
        Request::Hello { version } => {
            return Err(invalid(format!(
                "version {version} is asked for, and this monitor speaks {VERSION}"
            )));
        }
        Request::Map {
            disk,
            first_sector,
            sectors,
        } => {
            let range = SectorRange {
                first_sector,
                sectors,
            };
            match fds.pop() {
                Some(fd) => machine.map(&disk, range, File::from(fd)),
                None => Ok(()),
            }
        }
        Request::Unmap { disk, first_sector } => machine.unmap(&disk, first_sector),
        Request::Pause => machine.pause(),
        Request::Resume => machine.resume(),
        Request::RenewGeneration => machine.renew_generation(),
        Request::Stats => return Ok(Reply::Stats(machine.stats())),
        Request::Stop => {
            machine.stop();
            Ok(())
        }
    };
    match done {
        Ok(()) => Ok(Reply::Done),
        Err(error) => Err(refusal(
            reason(&error),
            skiff_base::chain(&error).to_string(),
        )),
    }
}

fn reason(error: &MachineError) -> Reason {
    match error {
        MachineError::Window {
            source: WindowError::Busy { .. },
            ..
        }
        | MachineError::Thread(ThreadError::Late { .. }) => Reason::Busy,
        MachineError::Io { source, .. } if source.kind() == ErrorKind::TimedOut => Reason::Busy,
        MachineError::Window { .. } | MachineError::NoDisk { .. } => Reason::Invalid,
        MachineError::Thread(ThreadError::Ended { .. }) => Reason::Ended,
        _ => Reason::Failed,
    }
}

fn invalid(message: String) -> Refusal {
    refusal(Reason::Invalid, message)
}

fn refusal(reason: Reason, mut message: String) -> Refusal {
    let fits = |end: &usize| message.is_char_boundary(*end);
    let end = (0..=MESSAGE_BYTES_MAX).rev().find(fits).unwrap_or(0);
    message.truncate(end);
    Refusal { reason, message }
}
