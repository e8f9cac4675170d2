//! The serial port: what the guest says, as much as it may.

use std::fs::File;
use std::io::Write;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skiff_base::{Clock, SystemClock};
use skiff_virtio::{Bucket, TokenBucket};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

/// The port and its interrupt.
#[derive(Debug)]
pub(super) struct SerialPort {
    uart: Serial<Interrupt, NoEvents, Limited>,
}

impl SerialPort {
    pub(super) fn new(interrupt: EventFd, output: File, limit: Bucket) -> Self {
        let output = Limited {
            output,
            limit: TokenBucket::new(limit, SystemClock.now()),
            dropped: 0,
        };
        Self {
            uart: Serial::new(Interrupt(interrupt), output),
        }
    }

    pub(super) fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    pub(super) fn write(&mut self, offset: u8, value: u8) {
        // It fails only when the input is full or the interrupt cannot be
        // raised: nobody gives input, and a guest that is not interrupted
        // looks by itself.
        self.uart.write(offset, value).unwrap_or_default();
    }

    pub(super) fn dropped(&self) -> u64 {
        self.uart.writer().dropped
    }
}

#[derive(Debug)]
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// Output that neither grows without a bound nor makes the guest's vCPU wait.
#[derive(Debug)]
struct Limited {
    output: File,
    limit: TokenBucket,
    dropped: u64,
}

impl Limited {
    /// Whether the output takes something at once: a pipe that nobody empties
    /// does not.
    fn is_ready(&self) -> bool {
        let mut polled = [PollFd::new(&self.output, PollFlags::OUT)];
        let ready = poll(&mut polled, Some(&Timespec::default()));
        let [polled] = polled;
        matches!(ready, Ok(1)) && polled.revents().contains(PollFlags::OUT)
    }
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = bytes.len() as u64;
        if self.limit.take(length, SystemClock.now())
            && self.is_ready()
            && let Ok(written) = self.output.write(bytes)
        {
            return Ok(written);
        }
        self.dropped += length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;

    fn port(output: File, size: u64) -> SerialPort {
        let limit = Bucket {
            size,
            one_time_burst: 0,
            refill: Duration::from_secs(1_000_000),
        };
        SerialPort::new(EventFd::new(0).unwrap(), output, limit)
    }

    #[test]
    fn what_is_over_the_limit_is_dropped_and_counted() {
        let mut file = tempfile::tempfile().unwrap();
        let mut port = port(file.try_clone().unwrap(), 5);
        for byte in b"hello, world" {
            port.write(0, *byte);
        }
        assert_eq!(port.dropped(), 7);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_pipe_that_nobody_empties_does_not_stop_the_guest() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut port = port(File::from(OwnedFd::from(writer)), 1 << 20);
        for _ in 0..200_000 {
            port.write(0, b'x');
        }
        assert!(port.dropped() > 0);
        drop(reader);
        port.write(0, b'x');
    }
}
