//! The disk keeps what it promises, and no more than that.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const LEN: usize = 16 * SECTOR;
const SIZE: u64 = LEN as u64;

fn disk(seed: u64) -> Disk {
    Disk::new(Random::new(seed), SIZE)
}

#[test]
fn a_fresh_disk_reads_zeroes() {
    assert_eq!(disk(1).read(100, 1000), Ok(vec![0; 1000]));
}

#[test]
fn what_was_written_is_read_at_once_across_sectors() {
    let mut disk = disk(1);
    disk.write(500, &[7; 600]).unwrap();
    let bytes = disk.read(499, 602).unwrap();
    assert_eq!((bytes[0], bytes[601]), (0, 0));
    assert!(bytes[1..601].iter().all(|byte| *byte == 7));
}

#[test]
fn past_the_end_is_refused() {
    let mut disk = disk(1);
    assert_eq!(disk.write(SIZE - 1, &[1, 2]), Err(DiskError::OutOfRange));
    assert_eq!(disk.read(u64::MAX, 2), Err(DiskError::OutOfRange));
    assert_eq!(disk.read(SIZE, 0), Ok(vec![]));
}

#[test]
fn a_process_crash_loses_nothing_but_a_later_power_cut_may() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let mut disk = disk(seed);
        disk.write(0, &[1; SECTOR]).unwrap();
        disk.process_crash();
        assert_eq!(disk.read(0, 1), Ok(vec![1]));
        disk.power_cut();
        seen.insert(disk.read(0, 1).unwrap()[0]);
    }
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

#[test]
fn a_power_cut_tears_and_reorders_what_was_not_synced() {
    let (mut torn, mut reordered) = (false, false);
    for seed in 0..100 {
        let mut disk = disk(seed);
        disk.write(0, &[1; 2 * SECTOR]).unwrap();
        disk.write(2 * SECTOR as u64, &[2; SECTOR]).unwrap();
        disk.power_cut();
        let bytes = disk.read(0, 3 * SECTOR).unwrap();
        let (first, second, third) = (bytes[0], bytes[SECTOR], bytes[2 * SECTOR]);
        torn |= first != second;
        reordered |= third == 2 && first == 0 && second == 0;
    }
    assert!(torn && reordered);
}

#[test]
fn a_full_disk_refuses_new_sectors_and_takes_old_ones() {
    let mut disk = disk(1);
    disk.limit_space(2 * SECTOR as u64);
    disk.write(0, &[1; 2 * SECTOR]).unwrap();
    assert_eq!(disk.write(2 * SECTOR as u64, &[1]), Err(DiskError::Full));
    disk.write(0, &[2; SECTOR]).unwrap();
    disk.sync().unwrap();
    assert_eq!(disk.write(2 * SECTOR as u64, &[1]), Err(DiskError::Full));
    assert_eq!(disk.fault_counts().of("full disk"), 2);
}

#[test]
fn a_failed_sync_makes_nothing_durable() {
    let mut lost = 0;
    for seed in 0..50 {
        let mut disk = disk(seed);
        disk.faults.sync_error = Chance::ALWAYS;
        disk.write(0, &[1; SECTOR]).unwrap();
        assert_eq!(disk.sync(), Err(DiskError::Io));
        disk.power_cut();
        lost += u32::from(disk.read(0, 1).unwrap()[0] == 0);
    }
    assert!(0 < lost);
}

#[test]
fn a_failed_write_may_have_taken_effect() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let mut disk = disk(seed);
        disk.faults.write_error = Chance::ALWAYS;
        assert_eq!(disk.write(0, &[1; SECTOR]), Err(DiskError::Io));
        seen.insert(disk.read(0, 1).unwrap()[0]);
    }
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

#[test]
fn lost_and_misdirected_writes_are_confirmed_all_the_same() {
    let mut disk = disk(1);
    disk.faults.lost_write = Chance::ALWAYS;
    disk.write(0, &[1; SECTOR]).unwrap();
    assert_eq!(disk.read(0, LEN), Ok(vec![0; LEN]));
    disk.faults.lost_write = Chance::NEVER;
    disk.faults.misdirected_write = Chance::ALWAYS;
    disk.write(0, &[1; 8]).unwrap();
    let held = disk.read(0, LEN).unwrap();
    assert_eq!(held.iter().filter(|byte| **byte == 1).count(), 8);
}

#[test]
fn rot_flips_one_bit_of_what_is_held() {
    let mut disk = disk(1);
    assert_eq!(disk.rot(), None);
    disk.write(SECTOR as u64, &[0x55; SECTOR]).unwrap();
    disk.sync().unwrap();
    let offset = disk.rot().unwrap();
    let byte = disk.read(offset, 1).unwrap()[0];
    assert_eq!((byte ^ 0x55).count_ones(), 1);
}

#[test]
fn a_slow_disk_is_slow() {
    let mut disk = disk(1);
    disk.faults.slow = Chance::ALWAYS;
    assert!(Duration::from_millis(50) <= disk.latency());
    assert_eq!(disk.fault_counts().of("slow disk"), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Write { offset: u64, len: usize, value: u8 },
    Sync,
    PowerCut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..SIZE - 1200, 1_usize..1200, any::<u8>())
        .prop_map(|(offset, len, value)| Step::Write { offset, len, value });
    prop::collection::vec(
        prop_oneof![6 => write, 2 => Just(Step::Sync), 1 => Just(Step::PowerCut)],
        0..40,
    )
}

proptest! {
    /// The model keeps, for each byte, the synced value and every value written since: a read after a power cut must
    /// give one of them, and before it the newest.
    #[test]
    fn synced_bytes_survive_and_others_are_one_of_their_versions(seed: u64, steps in steps()) {
        let mut disk = disk(seed);
        let mut versions: Vec<Vec<u8>> = vec![vec![0]; LEN];
        for step in steps {
            match step {
                Step::Write { offset, len, value } => {
                    disk.write(offset, &vec![value; len]).unwrap();
                    let start = usize::try_from(offset).unwrap();
                    for known in &mut versions[start..start + len] {
                        known.push(value);
                    }
                }
                Step::Sync => {
                    disk.sync().unwrap();
                    for known in &mut versions {
                        *known = vec![*known.last().unwrap()];
                    }
                }
                Step::PowerCut => {
                    disk.power_cut();
                    let bytes = disk.read(0, LEN).unwrap();
                    for (known, byte) in versions.iter_mut().zip(bytes) {
                        prop_assert!(known.contains(&byte));
                        *known = vec![byte];
                    }
                }
            }
            let bytes = disk.read(0, LEN).unwrap();
            prop_assert!(versions.iter().zip(&bytes).all(|(known, byte)| known.last() == Some(byte)));
        }
    }

    #[test]
    fn a_life_is_a_function_of_its_seed(seed: u64, steps in steps()) {
        let live = || {
            let mut disk = disk(seed);
            disk.faults.write_error = Chance::percent(10);
            disk.faults.lost_write = Chance::percent(10);
            for step in &steps {
                match step {
                    Step::Write { offset, len, value } => drop(disk.write(*offset, &vec![*value; *len])),
                    Step::Sync => drop(disk.sync()),
                    Step::PowerCut => disk.power_cut(),
                }
            }
            disk.read(0, LEN).unwrap()
        };
        prop_assert_eq!(live(), live());
    }
}
