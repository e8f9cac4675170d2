//! The memory that firmware would tell of.

use super::layout;
use crate::Region;

/// Whether memory is for anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Usable,
    Reserved,
}

impl Kind {
    /// Its number in both protocols.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::Reserved => 2,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) region: Region,
    pub(super) kind: Kind,
}

/// The regions, with what lies below 1 MiB and is not the kernel's taken out.
pub(super) fn of(regions: &[Region]) -> Vec<Entry> {
    let mut map = Vec::with_capacity(regions.len() + 2);
    let mut add = |start: u64, end: u64, kind| {
        if start < end {
            map.push(Entry {
                region: Region {
                    start,
                    bytes: end - start,
                },
                kind,
            });
        }
    };
    for region in regions {
        if region.start == 0 {
            add(0, layout::LOW_END, Kind::Usable);
            add(layout::LOW_END, layout::RESERVED_END, Kind::Reserved);
        }
        add(
            region.start.max(layout::RESERVED_END),
            region.end(),
            Kind::Usable,
        );
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_covers_all_memory_once() {
        let regions = layout::memory(5 * 1024);
        let map = of(&regions);
        let covered: u64 = map.iter().map(|entry| entry.region.bytes).sum();
        let given: u64 = regions.iter().map(|region| region.bytes).sum();
        assert_eq!(covered, given);
        assert!(
            map.windows(2)
                .all(|pair| pair[0].region.end() <= pair[1].region.start)
        );
        let reserved: Vec<_> = map
            .iter()
            .filter(|entry| entry.kind == Kind::Reserved)
            .collect();
        assert_eq!(reserved.len(), 1);
        assert_eq!(reserved[0].region.start, layout::LOW_END);
        assert_eq!(reserved[0].region.end(), layout::RESERVED_END);
    }
}
