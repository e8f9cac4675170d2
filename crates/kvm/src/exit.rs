use std::fmt;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestExit {
    /// The guest asked to be reset.
    Reset,
    /// The guest asked to be switched off.
    PowerOff,
    /// The guest faulted while it handled a fault that it got handling one.
    TripleFault,
    /// KVM met an instruction that it can neither run nor emulate.
    Emulation {
        /// Where the instruction is.
        instruction_pointer: u64,
        /// Its bytes, when KVM gives them.
        bytes: Vec<u8>,
    },
    /// KVM ended the guest for a reason of its own.
    Kvm(String),
    /// A vCPU's thread ended in a way that it must not.
    Monitor(String),
    /// The monitor was asked to stop.
    Stopped,
}

impl GuestExit {
    /// Whether the guest, or whoever runs it, meant to end it.
    #[must_use]
    pub const fn is_orderly(&self) -> bool {
        matches!(self, Self::Reset | Self::PowerOff | Self::Stopped)
    }

    /// One word for it.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::PowerOff => "power-off",
            Self::TripleFault => "triple-fault",
            Self::Emulation { .. } => "emulation-failure",
            Self::Kvm(_) => "kvm-error",
            Self::Monitor(_) => "monitor-error",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for GuestExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::PowerOff => f.write_str("the guest asked to be switched off"),
            Self::TripleFault => f.write_str("the guest died of a triple fault"),
            Self::Emulation {
                instruction_pointer,
                bytes,
            } => {
                write!(
                    f,
                    "KVM cannot emulate the instruction at {instruction_pointer:#x}"
                )?;
                if !bytes.is_empty() {
                    f.write_str(", bytes")?;
                }
                for byte in bytes {
                    write!(f, " {byte:02x}")?;
                }
                Ok(())
            }
            Self::Kvm(what) => write!(f, "KVM ended the guest: {what}"),
            Self::Monitor(what) => write!(f, "the monitor failed: {what}"),
            Self::Stopped => f.write_str("the monitor was asked to stop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_failure_shows_the_instruction() {
        let exit = GuestExit::Emulation {
            instruction_pointer: 0x1000,
            bytes: vec![0xf0, 0x0f],
        };
        assert_eq!(
            exit.to_string(),
            "KVM cannot emulate the instruction at 0x1000, bytes f0 0f"
        );
        assert!(!exit.is_orderly());
        assert!(GuestExit::PowerOff.is_orderly());
    }
}
