//! Golden bytes, round trips, and every kind of damage.

use super::*;
use model::{ScoNumber, VdiskId};
use proptest::prelude::*;

/// A manifest with these places under a policy at disk level.
pub(crate) fn manifest_with(policy: &str, places: &[Place]) -> Manifest {
    let policies: model::PolicyList = policy.parse().unwrap();
    let policy = policies.policies()[0];
    assert_eq!(places.len(), usize::from(policy.total()));
    Manifest {
        object: ObjectId { vdisk: VdiskId(1), epoch: Epoch(2), number: ScoNumber(3) },
        attempt: AttemptId(4),
        epoch: Epoch(2),
        preset: "default".into(),
        preset_version: 5,
        policy,
        level: policies.level(),
        codec_id: 1,
        protection: Protection::Aes256Gcm { namespace_key: 1 },
        frame_size: 16384,
        plain_len: 100,
        digest: [6; 16],
        stripe_len: 116,
        fragments: places
            .iter()
            .map(|place| FragmentRecord {
                place: *place,
                len: if *place == Place::Empty { 0 } else { 116 },
                crc: 7,
            })
            .collect(),
        frame_table: Bytes::from_static(&[8, 9]),
        meta: Bytes::from_static(b"meta"),
    }
}

/// The frozen bytes of version 1: change them only with the version.
#[test]
fn golden_bytes() {
    let places = [Place::Empty, Place::Stored(OsdId(0x0a0b)), Place::Hole];
    let bytes = manifest_with("2,1,2,1", &places).to_bytes();
    let id = |last: u8| [vec![0; 15], vec![last]].concat();
    let le_id = |low: [u8; 2]| [low.to_vec(), vec![0; 14]].concat();
    let expected: Vec<u8> = [
        vec![1],
        // Object: big-endian vDisk, epoch, number.
        id(1),
        vec![0, 0, 0, 0, 0, 0, 0, 2],
        vec![0, 0, 0, 0, 0, 0, 0, 3],
        // Attempt, epoch, preset, its version.
        le_id([4, 0]),
        vec![2, 0, 0, 0, 0, 0, 0, 0],
        vec![7, 0, 0, 0],
        b"default".to_vec(),
        vec![5, 0, 0, 0, 0, 0, 0, 0],
        // k, m, c, x, level, codec.
        vec![2, 1, 2, 1, 0, 1],
        // Protection and its key, frame size, plain length.
        vec![1, 1, 0, 0, 0],
        vec![0, 0x40, 0, 0],
        vec![100, 0, 0, 0, 0, 0, 0, 0],
        vec![6; 16],
        // Stripe length, fragments.
        vec![116, 0, 0, 0],
        vec![0, 0, 0, 0, 7, 0, 0, 0, 0],
        vec![116, 0, 0, 0, 7, 0, 0, 0, 2],
        le_id([0x0b, 0x0a]),
        vec![116, 0, 0, 0, 7, 0, 0, 0, 1],
        // Frame table, meta.
        vec![2, 0, 0, 0, 8, 9],
        vec![4, 0, 0, 0],
        b"meta".to_vec(),
    ]
    .concat();
    assert_eq!(&bytes[..bytes.len() - 4], &expected[..]);
    assert_eq!(bytes[bytes.len() - 4..], crc_fast::crc32_iscsi(&expected).to_le_bytes());
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::Empty),
        Just(Place::Hole),
        any::<u128>().prop_map(|osd| Place::Stored(OsdId(osd)))
    ]
}

proptest! {
    #[test]
    fn manifests_survive_their_bytes_and_no_damage_goes_unseen(
        places in proptest::collection::vec(place(), 6), flip: prop::sample::Index, bit in 0..8_u8,
    ) {
        let manifest = manifest_with("4,2,5,1", &places);
        let bytes = manifest.to_bytes();
        prop_assert_eq!(Manifest::from_bytes(&bytes), Ok(manifest.clone()));
        let count = |counts: fn(&Place) -> bool| {
            u8::try_from(places.iter().filter(|place| counts(place)).count()).unwrap()
        };
        prop_assert_eq!(manifest.holes(), count(|place| *place == Place::Hole));
        prop_assert_eq!(manifest.present() + manifest.holes(), 6);

        let mut bad = bytes.to_vec();
        let at = flip.index(bad.len());
        bad[at] ^= 1 << bit;
        prop_assert!(Manifest::from_bytes(&Bytes::from(bad)).is_err());
        prop_assert!(Manifest::from_bytes(&bytes.slice(..at)).is_err());
    }

    #[test]
    fn garbage_under_a_right_checksum_never_panics(body: Vec<u8>) {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&body);
        let crc = crc_fast::crc32_iscsi(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let _ = Manifest::from_bytes(&Bytes::from(bytes));
    }
}

#[test]
fn impossible_fields_are_named() {
    let resum = |mut bytes: Vec<u8>| {
        let cut = bytes.len() - 4;
        let crc = crc_fast::crc32_iscsi(&bytes[..cut]).to_le_bytes();
        bytes[cut..].copy_from_slice(&crc);
        Manifest::from_bytes(&Bytes::from(bytes))
    };
    let good = manifest_with("2,1,2,1", &[Place::Hole; 3]).to_bytes().to_vec();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        resum(bytes)
    };
    // Offsets: 1 + object 32 + attempt 16 + epoch 8 + preset 4+7 + version 8.
    let policy = 76;
    assert_eq!(with(0, 2), Err(ManifestError::Version(2)));
    assert_eq!(with(policy, 0), Err(ManifestError::Field("the policy")));
    assert_eq!(with(policy + 4, 9), Err(ManifestError::Field("the policy's level")));
    assert_eq!(with(policy + 6, 7), Err(ManifestError::Field("the protection")));
    // A hole must have bytes: its first fragment begins behind key, sizes, digest and stripe length.
    let fragment = policy + 6 + 5 + 4 + 8 + 16 + 4;
    assert_eq!(with(fragment, 0), Err(ManifestError::Field("a fragment")));
    assert!(matches!(with(fragment + 8, 3), Err(ManifestError::Decode(_))));
    let mut longer = good.clone();
    longer.extend_from_slice(&[0; 3]);
    assert!(matches!(
        resum(longer),
        Err(ManifestError::Decode(DecodeError::Trailing { extra: 3 }))
    ));
    assert!(Manifest::from_bytes(&Bytes::new()).is_err());
}
