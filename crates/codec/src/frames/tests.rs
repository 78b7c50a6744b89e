//! Tests of [`super`]: known answers, properties, and damage that must be noticed.

use proptest::prelude::*;

use super::*;

#[test]
fn frame_sizes_lie_between_4_kib_and_64_kib_with_trailers() {
    for (good, class) in
        [(4096u32, 12), (8192, 13), (16384, 14), (65536, 16), (16448, 0), (65_792, 0)]
    {
        let size = FrameSize::new(good).unwrap();
        assert_eq!((size.bytes(), size.class()), (good, class));
    }
    for bad in [0u32, 1, 2048, 4095, 65_793, 131_072, 1 << 31] {
        assert_eq!(FrameSize::new(bad), None);
    }
}

/// The frozen bytes of version 1: change them only with the version.
#[test]
fn golden_bytes() {
    let table =
        FrameTable::new(Suite::Aes256Gcm, FrameSize::DEFAULT, 40_000, &[16384, 900, 7232]).unwrap();
    let golden = [
        0x01, 0x01, 0x0e, 0x01, 0x40, 0x9c, 0x00, 0x00, // header
        0x00, 0x00, 0x84, 0x03, 0x00, 0x00, // raw, 900 bytes, raw
        0x7f, 0xa9, 0xf5, 0xe7, // CRC-32C
    ];
    assert_eq!(table.encode(), golden);
    assert_eq!(FrameTable::decode(&golden), Ok(table));

    let raw = FrameTable::new(Suite::Crc32c, FrameSize::MIN, 5000, &[4096, 904]).unwrap();
    let golden = [0x01, 0x00, 0x0c, 0x00, 0x88, 0x13, 0x00, 0x00, 0xe5, 0xf7, 0x8f, 0x29];
    assert_eq!(raw.encode(), golden);
    assert_eq!(FrameTable::decode(&golden), Ok(raw));

    // A raw frame longer than two bytes can say, beside a compressed one.
    let other = FrameTable::new(Suite::Crc32c, FrameSize::MAX, 70_000, &[65_792, 77]).unwrap();
    let bytes = other.encode();
    let golden = [0x01, 0x00, 0x00, 0x01, 0x70, 0x11, 1, 0, 0x00, 0x01, 1, 0, 0, 0, 77, 0];
    assert_eq!(bytes[..bytes.len() - 4], golden);
    assert_eq!(other.frame(0).unwrap().body_len, 65_792);
    assert_eq!(FrameTable::decode(&bytes), Ok(other));
}

fn resum(mut bytes: Vec<u8>) -> Vec<u8> {
    let cut = bytes.len() - 4;
    let sum = crc32c(&bytes[..cut]).to_le_bytes();
    bytes[cut..].copy_from_slice(&sum);
    bytes
}

#[test]
fn fields_out_of_bounds_are_named_even_under_a_right_checksum() {
    let good = FrameTable::new(Suite::Aes256Gcm, FrameSize::DEFAULT, 40_000, &[16384, 900, 7232])
        .unwrap()
        .encode();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        FrameTable::decode(&resum(bytes))
    };
    assert_eq!(with(0, 2), Err(TableError::Version(2)));
    assert_eq!(with(1, 9), Err(TableError::Field { field: "suite", value: 9 }));
    assert_eq!(with(2, 17), Err(TableError::Field { field: "frame size", value: 17 }));
    assert_eq!(with(3, 2), Err(TableError::Field { field: "body kind", value: 2 }));
    assert!(matches!(with(3, 0), Err(TableError::Length { .. })));
    assert!(matches!(with(7, 0xff), Err(TableError::Field { field: "plain length", .. })));
    assert!(matches!(with(6, 1), Err(TableError::Length { .. })));
    assert!(matches!(with(13, 0xff), Err(TableError::Body { frame: 2, .. })));
    let spelled_out_raw = {
        let mut bytes = vec![1, 0, 12, 1, 0x88, 0x13, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&[0; 4]);
        resum(bytes)
    };
    assert_eq!(
        FrameTable::decode(&spelled_out_raw),
        Err(TableError::Field { field: "body kind", value: 1 })
    );
    // A raw frame, and a power of two, have one spelling each.
    let raw_by_length = vec![1, 0, 12, 1, 0x88, 0x13, 0, 0, 0, 0x10, 5, 0, 0, 0, 0, 0];
    assert!(matches!(
        FrameTable::decode(&resum(raw_by_length)),
        Err(TableError::Body { frame: 0, .. })
    ));
    let spelled_out_size = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        FrameTable::decode(&resum(spelled_out_size)),
        Err(TableError::Field { field: "frame size", value: 4096 })
    );
}

#[test]
fn an_empty_object_has_no_frames() {
    let table = FrameTable::new(Suite::Aes256Gcm, FrameSize::DEFAULT, 0, &[]).unwrap();
    assert_eq!((table.frames(), table.stored_len()), (0, 0));
    assert_eq!(table.frame(0), None);
    assert_eq!(FrameTable::decode(&table.encode()), Ok(table));
}

#[test]
fn the_largest_object_fits_and_one_byte_more_does_not() {
    let table = FrameTable::all_raw(Suite::Aes256Gcm, FrameSize::MIN, MAX_OBJECT_BYTES).unwrap();
    assert_eq!(table.stored_len(), MAX_OBJECT_BYTES + 16 * 32768);
    assert!(FrameTable::all_raw(Suite::Aes256Gcm, FrameSize::MIN, MAX_OBJECT_BYTES + 1).is_err());
}

#[test]
fn body_lengths_are_checked() {
    let make = |lens: &[u32]| FrameTable::new(Suite::Crc32c, FrameSize::MIN, 5000, lens);
    assert!(matches!(make(&[4096]), Err(TableError::Length { .. })));
    assert!(matches!(make(&[4096, 904, 1]), Err(TableError::Length { .. })));
    assert!(matches!(make(&[0, 904]), Err(TableError::Body { frame: 0, .. })));
    assert!(matches!(make(&[4097, 904]), Err(TableError::Body { frame: 0, .. })));
    assert!(matches!(make(&[4096, 905]), Err(TableError::Body { frame: 1, .. })));
    assert!(matches!(make(&[4096, u32::MAX]), Err(TableError::Body { frame: 1, .. })));
}

pub fn any_table() -> impl Strategy<Value = FrameTable> {
    let size = prop_oneof![(12u32..=16).prop_map(|log2| 1 << log2), 4096u32..=65_792];
    (size, 0u32..600_000, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(size, plain_len, sealed, raw, mut seed)| {
            let size = FrameSize::new(size).unwrap();
            let suite = if sealed { Suite::Aes256Gcm } else { Suite::Crc32c };
            let lens: Vec<u32> = (0..size.frames_in(plain_len))
                .map(|i| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
                    let plain = plain_of(size, plain_len, i);
                    let random = (seed >> 33) as u32;
                    if raw || random.is_multiple_of(3) {
                        plain
                    } else {
                        1 + random % plain.min(65_535)
                    }
                })
                .collect();
            FrameTable::new(suite, size, plain_len, &lens).unwrap()
        },
    )
}

proptest! {
    #[test]
    fn tables_come_back(table in any_table()) {
        prop_assert_eq!(FrameTable::decode(&table.encode()), Ok(table));
    }

    #[test]
    fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(FrameTable::decode(&bytes).is_err());
        if bytes.len() >= 5 {
            // Past the checksum too: whatever is accepted has exactly one spelling.
            let mut bytes = bytes;
            bytes[0] = TABLE_VERSION;
            bytes[1] &= 1;
            bytes[2] = if bytes[2] < 20 { 0 } else { 12 + bytes[2] % 5 };
            let bytes = resum(bytes);
            if let Ok(table) = FrameTable::decode(&bytes) {
                prop_assert_eq!(table.encode(), bytes);
            }
        }
    }

    #[test]
    fn any_flipped_bit_or_cut_is_found(table in any_table(), at in any::<prop::sample::Index>()) {
        let bytes = table.encode();
        let bit = at.index(bytes.len() * 8);
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(FrameTable::decode(&bad).is_err());
        prop_assert!(FrameTable::decode(&bytes[..at.index(bytes.len())]).is_err());
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(FrameTable::decode(&longer).is_err());
    }
}
