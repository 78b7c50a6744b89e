//! CRC-32C of the part of a payload in each cluster that it touches: made where a write enters the edge, checked where
//! a read leaves it, so that damage anywhere between the two is seen (L5).

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use model::{CLUSTER_SIZE, u64_of, usize_of};

fn crc(bytes: &[u8]) -> u32 {
    let sum = checksum(CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum).expect("a CRC-32C has 32 bits")
}

/// The parts of `data` by cluster, when it begins at `offset`.
fn parts(offset: u64, data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = offset;
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = CLUSTER_SIZE - at % CLUSTER_SIZE;
        let (part, later) = rest.split_at(usize_of(room.min(u64_of(rest.len()))));
        rest = later;
        at += u64_of(part.len());
        Some(part)
    })
}

pub fn of_clusters(offset: u64, data: &[u8]) -> Vec<u32> {
    parts(offset, data).map(crc).collect()
}

/// Whether `data`, beginning at `offset`, are what the checksums were made of.
pub fn matches(offset: u64, data: &Bytes, checksums: &[u32]) -> bool {
    let mut sums = checksums.iter();
    parts(offset, data).all(|part| sums.next() == Some(&crc(part))) && sums.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_cluster_borders() {
        let data = Bytes::from(vec![5; 10_000]);
        let lens: Vec<usize> = parts(4000, &data).map(<[u8]>::len).collect();
        assert_eq!(lens, [96, 4096, 4096, 1712]);
        let sums = of_clusters(4000, &data);
        assert!(matches(4000, &data, &sums));
        assert!(!matches(4001, &data, &sums));
        assert!(!matches(4000, &data, &sums[1..]));
        assert!(!matches(4000, &data.slice(1..), &sums));
        let mut long = sums.clone();
        long.push(0);
        assert!(!matches(4000, &data, &long), "one checksum too many");
    }

    #[test]
    fn it_is_crc_32c() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(of_clusters(0, b""), [0; 0]);
    }
}
