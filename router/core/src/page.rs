//! A page of the page map: 512 packed locations (P26).
//!
//! ```text
//!  63                               18 17           2 1 0
//! ┌───────────────────────────────────┬──────────────┬───┐
//! │ SCO number (46 bits, from 1)      │ slot (16)    │n-1│   0 = unmapped
//! └───────────────────────────────────┴──────────────┴───┘
//! ```
//! `n` = clusters in the slot's group, so a location alone says which bytes of the object to read and verify.
//!
//! Invariant: a stored page carries a checksum over its key and content; one that fails is never used.

use model::{Cluster, MapGeneration, ScoNumber, VdiskId};

use crate::crc32c;

/// Locations in a page.
pub const PAGE_CLUSTERS: u64 = 512;
/// Bytes of a page that is stored whole.
pub const PAGE_BYTES: usize = 512 * 8 + 4;
/// Bytes of one location with its index, in a page that is stored as a list.
const LISTED_BYTES: usize = 2 + 8;
/// Up to this many locations are stored as a list: a vDisk written here and there would else write 4 KiB of zeroes per page.
const LISTED_MAX: usize = 256;
/// Most clusters in one SCO.
pub const SLOTS_MAX: u32 = 1 << 16;

/// Where a cluster's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location(u64);

impl Location {
    /// # Panics
    /// When a part is out of range: a bug, the builder of SCOs keeps the limits.
    #[must_use]
    pub fn new(number: ScoNumber, slot: u32, group: u32) -> Self {
        assert!(0 < number.0 && number.0 < 1 << 46, "SCO number {number} out of range");
        assert!(
            slot < SLOTS_MAX && (1..=4).contains(&group),
            "slot {slot} of {group} out of range"
        );
        Self(number.0 << 18 | u64::from(slot) << 2 | u64::from(group - 1))
    }

    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// `None` for 0, the unmapped.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw >> 18 == 0 { None } else { Some(Self(raw)) }
    }

    #[must_use]
    pub const fn number(self) -> ScoNumber {
        ScoNumber(self.0 >> 18)
    }

    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 >> 2 & 0xffff) as u32
    }

    /// Clusters in the group of this slot.
    #[must_use]
    pub const fn group(self) -> u32 {
        (self.0 & 3) as u32 + 1
    }
}

/// 512 locations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    entries: Box<[u64; 512]>,
}

impl Default for Page {
    fn default() -> Self {
        Self { entries: Box::new([0; 512]) }
    }
}

/// A stored page that can't be believed: the map must be rebuilt (L6).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("page {page} of vDisk {vdisk} fails its checksum")]
pub struct BadPage {
    pub vdisk: VdiskId,
    pub page: u64,
}

/// (page, index) of a cluster.
#[must_use]
pub const fn place(cluster: Cluster) -> (u64, usize) {
    (cluster.0 / PAGE_CLUSTERS, (cluster.0 % PAGE_CLUSTERS) as usize)
}

impl Page {
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Location> {
        Location::from_raw(self.entries[index])
    }

    /// Returns what was there.
    pub fn set(&mut self, index: usize, location: Option<Location>) -> Option<Location> {
        let new = location.map_or(0, Location::raw);
        Location::from_raw(std::mem::replace(&mut self.entries[index], new))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| *entry == 0)
    }

    /// Mapped locations with their index.
    pub fn mapped(&self) -> impl Iterator<Item = (usize, Location)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(at, raw)| Some((at, Location::from_raw(*raw)?)))
    }

    /// Stored form under `key`.
    #[must_use]
    pub fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mapped = self.mapped().count();
        let mut out = Vec::with_capacity(PAGE_BYTES.min(mapped * LISTED_BYTES + 4));
        if mapped <= LISTED_MAX {
            for (index, location) in self.mapped() {
                let index = u16::try_from(index).expect("a page has 512 places");
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&location.raw().to_le_bytes());
            }
        } else {
            out.reserve_exact(PAGE_BYTES);
            for entry in &self.entries[..] {
                out.extend_from_slice(&entry.to_le_bytes());
            }
        }
        let crc = crc32c(key) ^ crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` when the bytes aren't a page stored under `key`.
    #[must_use]
    pub fn decode(key: &[u8], bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c(key) ^ crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut page = Self::default();
        if bytes.len() == PAGE_BYTES {
            for (entry, raw) in page.entries.iter_mut().zip(body.chunks_exact(8)) {
                *entry = u64::from_le_bytes(raw.try_into().expect("8 bytes"));
            }
            // One form per page: a shorter one would have been a list.
            return (LISTED_MAX < page.mapped().count()).then_some(page);
        }
        let (listed, rest) = body.as_chunks::<LISTED_BYTES>();
        if !rest.is_empty() || LISTED_MAX < listed.len() {
            return None;
        }
        let mut next = 0;
        for [low, high, raw @ ..] in listed {
            let index = usize::from(u16::from_le_bytes([*low, *high]));
            let location = Location::from_raw(u64::from_le_bytes(*raw))?;
            if index < next || page.entries.len() <= index {
                return None;
            }
            page.set(index, Some(location));
            next = index + 1;
        }
        Some(page)
    }
}

/// Key of a page: `p`, vDisk, page, generation, all big-endian so that pages of a vDisk lie in order.
#[must_use]
pub fn page_key(vdisk: VdiskId, page: u64, generation: MapGeneration) -> [u8; 33] {
    let mut key = [0; 33];
    key[0] = b'p';
    key[1..17].copy_from_slice(&vdisk.0.to_be_bytes());
    key[17..25].copy_from_slice(&page.to_be_bytes());
    key[25..33].copy_from_slice(&generation.0.to_be_bytes());
    key
}

/// What a mapped cluster adds to the digest of a map: a sum, so that the order of changes doesn't matter.
#[must_use]
pub fn digest_of(cluster: Cluster, location: Location) -> u64 {
    // splitmix64's finaliser: cheap, and no two nearby inputs give related sums.
    let mut z = cluster.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ location.raw();
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_location_has_these_bits() {
        let location = Location::new(ScoNumber(1), 2, 4);
        assert_eq!(location.raw(), 1 << 18 | 2 << 2 | 3);
        assert_eq!(Location::from_raw(0), None);
        assert_eq!(Location::new(ScoNumber((1 << 46) - 1), 65535, 1).raw(), u64::MAX - 3);
    }

    #[test]
    fn a_page_is_bound_to_its_key_and_every_flip_is_seen() {
        let mut page = Page::default();
        page.set(7, Some(Location::new(ScoNumber(3), 9, 2)));
        let key = page_key(VdiskId(1), 5, MapGeneration(0));
        for filled in [1, LISTED_MAX, LISTED_MAX + 1, 512] {
            for index in 0..filled {
                page.set((index + 7) % 512, Some(Location::new(ScoNumber(3), 9, 2)));
            }
            let bytes = page.encode(&key);
            let listed = filled * LISTED_BYTES + 4;
            assert_eq!(bytes.len(), if filled <= LISTED_MAX { listed } else { PAGE_BYTES });
            assert_eq!(Page::decode(&key, &bytes).as_ref(), Some(&page));
            assert_eq!(Page::decode(&page_key(VdiskId(1), 6, MapGeneration(0)), &bytes), None);
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                assert_eq!(Page::decode(&key, &bad), None);
            }
            assert_eq!(Page::decode(&key, &bytes[1..]), None);
        }
    }

    #[test]
    fn a_list_is_in_order_within_the_page_and_never_of_unmapped_places() {
        let key = page_key(VdiskId(1), 5, MapGeneration(0));
        let location = Location::new(ScoNumber(3), 9, 2).raw();
        let stored = |entries: &[(u16, u64)]| {
            let mut bytes = Vec::new();
            for (index, raw) in entries {
                bytes.extend_from_slice(&index.to_le_bytes());
                bytes.extend_from_slice(&raw.to_le_bytes());
            }
            let crc = crc32c(&key) ^ crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            Page::decode(&key, &bytes)
        };
        assert!(stored(&[]).is_some_and(|page| page.is_empty()));
        assert!(stored(&[(0, location), (511, location)]).is_some());
        for bad in [&[(5, location), (5, location)][..], &[(5, location), (4, location)]] {
            assert_eq!(stored(bad), None);
        }
        assert_eq!(stored(&[(512, location)]), None);
        assert_eq!(stored(&[(1, 0)]), None);
    }

    proptest! {
        #[test]
        fn locations_survive_packing(number in 1u64..1 << 46, slot in 0u32..SLOTS_MAX, group in 1u32..=4) {
            let l = Location::new(ScoNumber(number), slot, group);
            prop_assert_eq!((l.number().0, l.slot(), l.group()), (number, slot, group));
            prop_assert_eq!(Location::from_raw(l.raw()), Some(l));
        }
    }
}
