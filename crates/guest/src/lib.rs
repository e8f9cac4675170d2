//! What a microVM boots from.
//!
//! [`kernel`] makes an ELF file of a kernel's image, for the monitor.

pub mod kernel;
