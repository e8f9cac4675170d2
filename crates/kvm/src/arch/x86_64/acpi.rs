//! The tables that tell a kernel what the machine has.
//!
//! The machine is a hardware-reduced one (ACPI 6.5, section 4.1): no PM timer,
//! no SCI, no fixed events. Stock kernels have no other way to find devices on
//! virtio-mmio.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use super::boot::BootError;
use super::layout;
use crate::Ram;

const OEM: [u8; 6] = *b"SKIFF ";
const TABLE: [u8; 8] = *b"SKIFFVM ";
const REVISION: u32 = 1;
/// The ACPI id of Linux's virtio-mmio driver.
const VIRTIO_MMIO: &str = "LNRO0005";
/// A 16550 serial port.
const SERIAL: &str = "PNP0501";
/// The machine's generation (Microsoft, "Virtual Machine Generation ID"): by
/// this kernels know it, and the other name is ours.
const GENERATION: &str = "VM_Gen_Counter";
const GENERATION_ID: &str = "SKIFVGID";
/// Whose interrupts are events of other devices (ACPI 6.5, section 5.6.9).
const EVENTS: &str = "ACPI0013";
/// The event that says that the generation is a new one.
const NEW_GENERATION: u8 = 0x80;
/// Of the FADT's boot flags: no VGA, no CMOS clock. Its keyboard controller
/// flag is clear: kernels need not look for a keyboard.
const BOOT_ARCH: u16 = (1 << 2) | (1 << 5);
/// Every table starts at such an address.
const ALIGNMENT: u64 = 16;

/// A device's window and its interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Where its registers are.
    pub address: u64,
    /// Which interrupt it raises.
    pub gsi: u32,
}

/// What the tables tell of.
#[derive(Debug, Clone)]
pub struct Devices {
    /// How many vCPUs there are.
    pub vcpus: u8,
    /// Devices on virtio-mmio.
    pub virtio: Vec<Slot>,
    /// Whether there is a serial port.
    pub serial: bool,
}

/// Writes the tables, and returns where their root is.
pub(super) fn write(memory: &Ram, devices: &Devices) -> Result<GuestAddress, BootError> {
    // The root comes first, where firmware has it, and is written last.
    let mut place = Place {
        memory,
        next: layout::ACPI + Rsdp::len() as u64,
    };
    let dsdt = place.put(&dsdt(devices))?;
    let fadt = place.put(&fadt(dsdt))?;
    let madt = place.put(&madt(devices.vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place.put(&xsdt)?;
    place.next = layout::ACPI;
    place.put(&Rsdp::new(OEM, xsdt)).map(GuestAddress)
}

struct Place<'a> {
    memory: &'a Ram,
    next: u64,
}

impl Place<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next.next_multiple_of(ALIGNMENT);
        let end = at + bytes.len() as u64;
        if end > layout::ACPI_END {
            return Err(BootError::Acpi { bytes: bytes.len() });
        }
        self.memory.write_slice(&bytes, GuestAddress(at))?;
        self.next = end;
        Ok(at)
    }
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_PORT + 1);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"SKIFFVMM").into();
    fadt.finalize()
}

fn port(number: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(number),
    )
}

fn dsdt(devices: &Devices) -> Sdt {
    let mut aml = Vec::new();
    for (number, slot) in (0_u8..).zip(&devices.virtio) {
        virtio(number, *slot)
            .iter()
            .for_each(|byte| aml.push(*byte));
    }
    if devices.serial {
        aml.extend(serial());
    }
    aml.extend(generation());
    // Switching off is sleep type 5.
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&5_u8, &ZERO, &ZERO, &ZERO]),
    )
    .to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

fn virtio(number: u8, slot: Slot) -> Vec<u8> {
    let window = u32::try_from(slot.address).unwrap_or(u32::MAX);
    let length = u32::try_from(layout::DEVICE_BYTES).unwrap_or(u32::MAX);
    in_system_bus(&Device::new(
        Path::new(&format!("V{number:03}")),
        vec![
            &Name::new("_HID".into(), &VIRTIO_MMIO),
            &Name::new("_UID".into(), &number),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, window, length),
                    &Interrupt::new(true, true, false, false, slot.gsi),
                ]),
            ),
        ],
    ))
}

fn serial() -> Vec<u8> {
    let ports = u8::try_from(layout::SERIAL_PORTS).unwrap_or(u8::MAX);
    in_system_bus(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new("_HID".into(), &EISAName::new(SERIAL)),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, ports),
                    &Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                ]),
            ),
        ],
    ))
}

/// The generation's place, and the device that tells of a new one.
fn generation() -> Vec<u8> {
    let place = u32::try_from(layout::GENERATION).unwrap_or(u32::MAX);
    let mut bytes = in_system_bus(&Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new("_HID".into(), &GENERATION_ID),
            &Name::new("_CID".into(), &GENERATION),
            &Name::new("_DDN".into(), &GENERATION),
            &Name::new("ADDR".into(), &Package::new(vec![&place, &ZERO])),
        ],
    ));
    let interrupt = Interrupt::new(true, true, false, false, layout::GENERATION_GSI);
    bytes.extend(in_system_bus(&Device::new(
        Path::new("GED0"),
        vec![
            &Name::new("_HID".into(), &EVENTS),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &NEW_GENERATION)],
            ),
        ],
    )));
    bytes
}

fn in_system_bus(device: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    Scope::new("_SB_".into(), vec![device]).to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, GuestRam};

    fn tables(devices: &Devices) -> (GuestRam, u64) {
        let ram = GuestRam::allocate(&layout::memory(4), Backing::Private).unwrap();
        let root = write(ram.memory(), devices).unwrap().0;
        (ram, root)
    }

    fn read(ram: &GuestRam, address: u64, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        ram.memory()
            .read_slice(&mut buffer, GuestAddress(address))
            .unwrap();
        buffer
    }

    /// A table by its address; its checksum must be right.
    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let length: u32 = ram.memory().read_obj(GuestAddress(address + 4)).unwrap();
        let bytes = read(ram, address, length as usize);
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "the checksum of {:?}", &bytes[..4]);
        bytes
    }

    fn address(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_root() {
        let slots = [(0xc000_0000, 5), (0xc000_1000, 6)];
        let devices = Devices {
            vcpus: 3,
            virtio: slots.map(|(address, gsi)| Slot { address, gsi }).to_vec(),
            serial: true,
        };
        let (ram, root) = tables(&devices);
        assert_eq!(root, layout::ACPI);
        let pointer = read(&ram, root, 36);
        assert_eq!(&pointer[..8], b"RSD PTR ");
        for length in [20, 36] {
            let sum = pointer[..length]
                .iter()
                .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "the checksum over {length} bytes");
        }
        let xsdt = table(&ram, address(&pointer, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&ram, address(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
        let madt = table(&ram, address(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        let dsdt = table(&ram, address(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let has = |needle: &[u8]| dsdt.windows(needle.len()).any(|part| part == needle);
        assert!(has(b"V000") && has(b"V001") && !has(b"V002"));
        assert!(has(b"LNRO0005") && has(b"COM1") && has(b"_S5_"));
        assert!(has(&0xc000_1000_u32.to_le_bytes()));
        assert!(has(b"VM_Gen_Counter") && has(b"ACPI0013") && has(b"_EVT"));
        assert!(has(&[
            b'A', b'D', b'D', b'R', 0x12, 8, 2, 0x0c, 0, 0xf0, 0x0f, 0, 0
        ]));
    }

    #[test]
    fn the_largest_machine_fits() {
        let virtio = (0..layout::max_devices() as u64)
            .zip(layout::FIRST_GSI..)
            .map(|(number, gsi)| Slot {
                address: layout::DEVICES + number * layout::DEVICE_BYTES,
                gsi,
            })
            .collect();
        let (_, root) = tables(&Devices {
            vcpus: 254,
            virtio,
            serial: true,
        });
        assert_eq!(root, layout::ACPI);
    }

    #[test]
    fn a_machine_without_a_serial_port_tells_of_none() {
        let (ram, _) = tables(&Devices {
            vcpus: 1,
            virtio: Vec::new(),
            serial: false,
        });
        let all = read(&ram, layout::ACPI, 4096);
        assert!(!all.windows(4).any(|part| part == b"COM1"));
    }
}
