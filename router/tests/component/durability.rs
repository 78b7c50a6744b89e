//! What an edge was told is durable was synced before it was told, and every life has an epoch of its own.
//!
//! A synced page cache looks like an unsynced one, so the log's own words are the witness: each record says how far the
//! log was on stable storage when it was written (P8). A record written after an acknowledgement must vouch for it.

use model::RequestSeq;
use router_core::log::Found;
use router_core::log::record::Op;
use wire::router::{Durability, code};

use crate::support::{Disk, World};

/// The record of the write at `cluster`, and the one that followed it.
fn record_at(records: &[Found], cluster: u64) -> &Found {
    let mut found =
        records.iter().filter(|f| f.record.op == Op::Write && f.record.cluster.0 == cluster);
    let first = found.next().unwrap();
    assert!(found.next().is_none(), "each cluster is written once");
    first
}

#[test]
fn what_is_told_to_be_durable_was_synced_before() {
    let world = World::new();
    let router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    // (cluster, durable by itself or by a flush behind it)
    for cluster in 0..12 {
        let durability = if cluster % 3 == 1 { Durability::Durable } else { Durability::Normal };
        disk.write(cluster * 4096, &[1; 4096], durability);
        if cluster % 3 == 2 {
            let flushed = disk.flush();
            assert_eq!(flushed.lsn.0, cluster + 1);
        }
    }
    disk.write(12 * 4096, &[1; 4096], Durability::Normal);
    router.kill();
    let scan = world.scan_log();
    assert_eq!(scan.damages, []);
    let mut vouched = 0;
    for cluster in (0..12).filter(|cluster| cluster % 3 != 0) {
        let told = record_at(&scan.records, cluster).record.end();
        let next = &record_at(&scan.records, cluster + 1).record;
        assert!(
            told <= next.synced_through,
            "cluster {cluster} was acknowledged as durable up to {told}; the next record says {}",
            next.synced_through
        );
        vouched += 1;
    }
    assert_eq!(vouched, 8);
}

/// h_05.
#[test]
fn every_start_claims_an_epoch_of_its_own() {
    let world = World::new();
    let mut router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    let mut epoch = world.vdisk("demo").epoch;
    for life in 0..4 {
        disk.write(life * 4096, &[7; 4096], Durability::Durable);
        assert_eq!(disk.flush().epoch, epoch);
        if life % 2 == 0 {
            router.kill();
        } else {
            router.stop();
        }
        router = world.start();
        disk.reattach(&router);
        let next = world.vdisk("demo").epoch;
        assert_eq!(next, epoch.next(), "P10: a restart in place is a new owner");
        epoch = next;
    }
    disk.check_all();
    router.stop();
}

#[test]
fn p3_the_number_of_a_refused_change_is_used_up_for_good() {
    let world = World::new();
    let mut router = world.start();
    router.create("demo", 8 << 20);
    let mut disk = Disk::attach(&router, "demo");
    assert_eq!(disk.try_write(8 << 20, &[1; 4096]).unwrap_err().code, code::OUT_OF_RANGE);
    disk.write(4096, &[1; 4096], Durability::Normal);
    assert_eq!(disk.try_write(8 << 20, &[1; 4096]).unwrap_err().code, code::OUT_OF_RANGE);
    disk.write(0, &[2; 512], Durability::Normal);
    assert_eq!((disk.void(1).lsn.0, disk.void(3).lsn.0), (3, 4), "each has a record");
    assert_eq!(disk.void(3).lsn.0, 4, "once");
    assert_eq!(disk.try_read(0, 0).unwrap_err().code, code::OUT_OF_RANGE);
    disk.flush();
    // From the log, then from the TLog in the backend.
    for _ in 0..2 {
        router.kill();
        router = world.start();
        let applied = disk.try_reattach(&router).unwrap().applied;
        assert_eq!((applied.contiguous, applied.above.len()), (RequestSeq(4), 0));
        disk.replay_complete();
        disk.check_all();
        disk.sync();
    }
    router.stop();
}
