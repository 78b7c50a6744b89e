//! Which checkpoints count and which objects may go, and owners that follow each other in one namespace, killed anywhere.

use super::*;
use proptest::prelude::*;

const VDISK: VdiskId = VdiskId(1);

const fn object(epoch: u64, number: u64) -> ObjectId {
    ObjectId { vdisk: VDISK, epoch: Epoch(epoch), number: ScoNumber(number) }
}

/// Part `index` of so many.
fn listed(at: (u64, u64), map: u64, (index, parts): (u32, u32)) -> Listed {
    let last = index + 1 == parts;
    let meta = PartMeta { map: object(1, map), last_lsn: Lsn(map), index, last };
    Listed { object: object(at.0, at.1), bytes: 5, meta: Some(meta) }
}

#[test]
fn a_checkpoint_counts_from_its_last_object_on_and_only_whole() {
    let mut all = vec![
        listed((1, 4), 10, (0, 2)),
        listed((1, 5), 10, (1, 2)),
        listed((2, 6), 20, (0, 2)),
        listed((2, 7), 20, (1, 3)),
        listed((2, 8), 20, (2, 3)),
        listed((3, 9), 30, (0, 2)),
    ];
    let found = complete(&all);
    assert_eq!(found.iter().map(|one| one.map.number.0).collect::<Vec<_>>(), [20, 10]);
    assert_eq!(found[0].objects().collect::<Vec<_>>(), [object(2, 6), object(2, 7), object(2, 8)]);
    let gone = deletable(&all, found.first());
    assert_eq!(gone, [object(1, 4), object(1, 5), object(3, 9)]);
    assert_eq!(deletable(&all, None).len(), all.len());
    // Without its middle it is none; nor with one of another map, another epoch, or unreadable.
    let middle = all.remove(3);
    assert_eq!(complete(&all).len(), 1);
    for bad in [
        listed((2, 7), 21, (1, 3)),
        listed((2, 7), 20, (2, 4)),
        listed((1, 7), 20, (1, 3)),
        Listed { meta: None, ..middle.clone() },
        Listed { bytes: 1 << 40, ..middle.clone() },
    ] {
        let with = [&all[..], &[bad]].concat();
        assert!(complete(&with).iter().all(|one| one.map.number.0 == 10));
        assert!(complete(&with).iter().all(|one| one.first != object(2, 6)));
    }
    assert_eq!(complete(&[&all[..], &[middle]].concat()).len(), 2);
    // An index beyond the first number there is.
    assert!(complete(&[listed((1, 2), 10, (3, 4))]).is_empty());
}

#[test]
fn a_meta_has_these_bytes() {
    let meta = PartMeta { map: object(2, 3), last_lsn: Lsn(4), index: 5, last: true };
    let bytes = meta.encode();
    assert_eq!(bytes.len(), 50);
    let at = |at: usize| bytes[at];
    assert_eq!((at(0), at(16), at(24), at(32), at(33), at(41), at(45)), (1, 1, 2, 3, 4, 5, 1));
    assert_eq!(PartMeta::decode(&bytes), Some(meta));
    for at in 0..bytes.len() {
        let mut bad = bytes.to_vec();
        bad[at] ^= 0x10;
        assert_eq!(PartMeta::decode(&Bytes::from(bad)), None, "byte {at}");
    }
    assert_eq!(namespace_of(VdiskId(0)).0.to_be_bytes(), *b"map checkpoints\0");
}

fn of_map(map: u64, len: u32) -> Checkpoint {
    Checkpoint { map: object(1, map), last_lsn: Lsn(map), first: object(1, 1), lens: vec![len] }
}

#[test]
fn one_is_written_every_so_many_scos_and_not_at_once_again_after_a_failure() {
    let mut course = Course::new(100, None);
    let now = Now::default();
    let none = Written::default();
    let at = |number| Written { object: Some(object(1, number)), mapped: 0 };
    assert_eq!(course.urgency(none, now), Some(Urgency::Look), "somebody has to look first");
    assert!(!course.is_due(at(1000)));
    course.begin();
    assert!(!course.wants(none, now), "one at a time");
    course.looked(None, 0);
    course.done();
    assert!(!course.wants(at(99), now) && course.wants(at(100), now));
    course.cut();
    course.wrote(of_map(100, 1));
    assert!(!course.wants(at(200), now), "nothing was committed");
    course.committed(1);
    assert!(!course.wants(at(199), now) && course.wants(at(200), now));
    let mut later = now;
    for pause in [10, 20, 40, 80, 160, 320, 600, 600] {
        course.begin();
        course.failed(later);
        assert!(!course.wants(at(200), later.plus(Duration::from_secs(pause - 1))));
        later = later.plus(Duration::from_secs(pause));
        assert!(course.wants(at(200), later));
    }
}

/// A large map costs as much as it writes seldom, in bytes: SCOs may be of any size.
#[test]
fn one_is_due_once_eight_times_its_bytes_were_committed_since() {
    let sco = |mib: u64| mib << 20 >> 12;
    let of_2_tib = Written { object: Some(object(1, 1 << 40)), mapped: 2 << 28 };
    for mib in [1, 4, 64] {
        let mut course = Course::new(100, None);
        course.looked(Some(of_map(100, 1)), 0);
        let scos = (32 << 10) / mib;
        (1..scos).for_each(|_| course.committed(sco(mib)));
        assert!(!course.is_due(of_2_tib), "{mib} MiB");
        course.committed(sco(mib));
        assert!(course.is_due(of_2_tib), "{mib} MiB");
    }
    // What widely scattered pages take beyond that is known from the one before.
    let few = Written { mapped: 1, ..of_2_tib };
    let mut course = Course::new(100, None);
    course.looked(Some(of_map(100, 1 << 20)), 0);
    (1..8 << 8).for_each(|_| course.committed(1));
    assert!(!course.is_due(few));
    // One that only unmaps counts, too, else its TLogs were followed for ever.
    course.committed(0);
    assert!(course.is_due(few));
    // Owners before this one may have written nearly enough.
    let mut course = Course::new(100, None);
    course.looked(Some(of_map(100, 1 << 20)), (8 << 20) - 1);
    assert!(!course.is_due(few));
    course.committed(1);
    assert!(course.is_due(few));
}

#[test]
fn what_is_committed_while_one_is_written_counts_for_the_next() {
    let mut course = Course::new(1, None);
    course.looked(Some(of_map(1, 4096)), 0);
    let at = |number| Written { object: Some(object(1, number)), mapped: 1 };
    (0..8).for_each(|_| course.committed(1));
    assert!(course.is_due(at(9)));
    course.cut();
    (0..7).for_each(|_| course.committed(1));
    course.wrote(of_map(9, 4096));
    assert!(!course.is_due(at(16)));
    course.committed(1);
    assert!(course.is_due(at(17)));
    // One that wasn't finished covers nothing.
    course.cut();
    assert!(course.is_due(at(17)));
}

/// A vDisk that is written to: SCOs of so many clusters, some of them mapped for the first time.
struct Vdisk {
    course: Course,
    scos: Vec<u64>,
    mapped: u64,
    newest: Option<Checkpoint>,
    checkpoints: u64,
}

impl Vdisk {
    fn written(&self) -> Written {
        let number = self.scos.len() as u64;
        let object = (0 < number).then(|| object(1, number));
        Written { object, mapped: self.mapped }
    }

    fn open(every: u64, old: Option<Self>) -> Self {
        let (scos, mapped, newest, checkpoints) = old.map_or((Vec::new(), 0, None, 0), |old| {
            (old.scos, old.mapped, old.newest, old.checkpoints)
        });
        let mut opened =
            Self { course: Course::new(every, None), scos, mapped, newest, checkpoints };
        opened.course = Course::new(every, opened.written().object);
        opened
    }

    fn commit(&mut self, clusters: u64, new: u64) {
        self.scos.push(committed_bytes(clusters));
        self.mapped += new.min(clusters);
        self.course.committed(clusters);
    }

    /// As a router does: looks first, then writes.
    fn serve(&mut self, bytes_per_mapped: u64) {
        let written = self.written();
        if let Some(opened) = self.course.unseen() {
            let number =
                |object: Option<ObjectId>| object.map_or(0, |o| model::usize_of(o.number.0));
            let since = number(self.newest.as_ref().map(|newest| newest.map))..number(opened);
            let bytes = self.scos[since].iter().sum();
            self.course.looked(self.newest.clone(), bytes);
        } else if self.course.is_due(written) {
            self.course.cut();
            let len = self.mapped * bytes_per_mapped;
            let newest = of_map(self.scos.len() as u64, u32::try_from(len).unwrap());
            self.checkpoints += len;
            self.newest = Some(newest.clone());
            self.course.wrote(newest);
        }
    }
}

proptest! {
    /// P26, however small the SCOs are, however widely their clusters are scattered, and however often it is opened anew.
    #[test]
    fn checkpoints_write_no_more_than_an_eighth_of_what_users_write(
        every in 1u64..20,
        bytes_per_mapped in 8u64..=26,
        steps in proptest::collection::vec((0u64..40, 0u64..40, 0u8..30), 1..600),
    ) {
        let mut vdisk = Vdisk::open(every, None);
        for (clusters, new, then) in steps {
            vdisk.commit(clusters, new);
            match then {
                0 => vdisk = Vdisk::open(every, Some(vdisk)),
                1..15 => vdisk.serve(bytes_per_mapped),
                _ => {}
            }
            // Each is larger than the one before by what was newly mapped, which is little beside the data themselves.
            let committed: u64 = vdisk.scos.iter().sum();
            prop_assert!(vdisk.checkpoints * 7 <= committed, "{} of {}", vdisk.checkpoints, committed);
        }
        // And it does come to one: what is replayed is bounded.
        let demanded = vdisk.newest.as_ref().map_or(0, |newest| demanded(newest, vdisk.written()));
        let (before, largest) = (vdisk.newest.clone(), every.max(demanded / 4096 + 1));
        for _ in 0..largest + 2 {
            vdisk.commit(1, 0);
            vdisk.serve(bytes_per_mapped);
        }
        prop_assert_ne!(vdisk.newest, before);
    }

    #[test]
    fn the_most_overdue_is_served_first(
        known in proptest::collection::btree_map(any::<u128>(), (any::<bool>(), 0u64..400, 0u64..400, any::<bool>()), 0..12),
    ) {
        let now = Now::default();
        let courses: BTreeMap<VdiskId, (Course, Written)> = known.into_iter().map(|(id, (looked, scos, clusters, busy))| {
            let mut course = Course::new(100, None);
            if looked {
                course.looked(Some(of_map(100, 4096)), 0);
            }
            course.committed(clusters);
            if busy {
                course.begin();
            }
            (VdiskId(id), (course, Written { object: Some(object(1, 100 + scos)), mapped: 0 }))
        }).collect();
        let all = || courses.iter().map(|(id, (course, written))| (*id, course, *written));
        let chosen = most_urgent(all(), now);
        let urgency = |id: VdiskId| courses[&id].0.urgency(courses[&id].1, now);
        let best = all().filter_map(|(id, _, _)| urgency(id)).max();
        prop_assert_eq!(chosen.and_then(urgency), best);
        prop_assert_eq!(chosen.is_some(), best.is_some());
    }

    /// More to do than can be done: all have their turn, those that are written to more have it more often.
    #[test]
    fn nobody_waits_for_ever_where_there_is_too_much_to_do(
        rates in proptest::collection::vec(1u64..4, 2..12),
        every in 1u64..4,
    ) {
        let mut vdisks: Vec<Vdisk> = rates.iter().map(|_| Vdisk::open(every, None)).collect();
        let rounds = 2 * rates.len() as u64 + 4 * 3 * rates.len() as u64 + every;
        for _ in 0..rounds {
            for (vdisk, rate) in vdisks.iter_mut().zip(&rates) {
                (0..*rate).for_each(|_| vdisk.commit(64, 1));
            }
            let all = vdisks.iter().zip(1..).map(|(vdisk, id)| (VdiskId(id), &vdisk.course, vdisk.written()));
            if let Some(VdiskId(id)) = most_urgent(all, Now::default()) {
                vdisks[usize::try_from(id).unwrap() - 1].serve(8);
            }
        }
        for (vdisk, at) in vdisks.iter().zip(0..) {
            prop_assert!(vdisk.newest.is_some(), "vDisk {} of {:?} was never served", at, &rates);
        }
    }
}

/// The namespace as the proxies keep it, with the vDisk's own epoch beside it.
#[derive(Default)]
struct Namespace {
    /// Of the vDisk's namespace; `None`: it is deleted.
    held: Option<u64>,
    epoch: Option<u64>,
    head: Option<ObjectId>,
    objects: BTreeMap<ObjectId, PartMeta>,
}

impl Namespace {
    fn listed(&self) -> Vec<Listed> {
        let all = self.objects.iter();
        all.map(|(object, meta)| Listed { object: *object, bytes: 5, meta: Some(*meta) }).collect()
    }
}

/// Where an owner is on its way through one checkpoint.
#[derive(Clone)]
enum At {
    Raise,
    Look,
    Tidy(Vec<ObjectId>, Option<Checkpoint>),
    Make(Option<Checkpoint>),
    Head(Option<Checkpoint>),
    Put { head: Option<ObjectId>, index: u32, old: Option<Checkpoint> },
    Drop(Option<Checkpoint>),
    End,
}

/// An owner of an epoch, whose map is of this SCO. Every message is one step, so that others come in between.
struct Owner {
    epoch: u64,
    map: u64,
    parts: u32,
    at: At,
}

impl Owner {
    fn step(&mut self, namespace: &mut Namespace) {
        let fenced = namespace.epoch.is_some_and(|epoch| epoch != self.epoch);
        self.at = match std::mem::replace(&mut self.at, At::End) {
            At::Raise => match namespace.epoch {
                None => At::Make(None),
                Some(epoch) if self.epoch < epoch => At::End,
                Some(_) => {
                    namespace.epoch = Some(self.epoch);
                    At::Look
                }
            },
            At::Look => {
                let listed = namespace.listed();
                let newest = complete(&listed).into_iter().next();
                At::Tidy(deletable(&listed, newest.as_ref()), newest)
            }
            At::Tidy(gone, newest) => {
                if fenced {
                    return;
                }
                namespace.objects.retain(|object, _| !gone.contains(object));
                At::Make(newest)
            }
            At::Make(newest) => {
                if namespace.held != Some(self.epoch) || namespace.epoch > Some(self.epoch) {
                    return;
                }
                namespace.epoch = Some(self.epoch);
                At::Head(newest)
            }
            At::Head(old) => At::Put { head: namespace.head, index: 0, old },
            At::Put { head, index, old } => {
                let object = next_object(VDISK, Epoch(self.epoch), head);
                if fenced || namespace.epoch.is_none() || namespace.head != head {
                    return;
                }
                let last = index + 1 == self.parts;
                let map = object_of(self.map);
                let meta = PartMeta { map, last_lsn: Lsn(self.map), index, last };
                namespace.objects.insert(object, meta);
                namespace.head = Some(object);
                if last {
                    At::Drop(old)
                } else {
                    At::Put { head: Some(object), index: index + 1, old }
                }
            }
            At::Drop(old) => {
                if fenced {
                    return;
                }
                for object in old.iter().flat_map(Checkpoint::objects) {
                    namespace.objects.remove(&object);
                }
                At::End
            }
            At::End => return,
        };
    }
}

const fn object_of(map: u64) -> ObjectId {
    object(1, map)
}

fn newest_map(namespace: &Namespace) -> u64 {
    complete(&namespace.listed()).first().map_or(0, |newest| newest.map.number.0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    /// P18: owners that follow each other, each killed (never scheduled again) or late anywhere, and at last a deletion.
    #[test]
    fn p18_no_owner_of_the_past_spoils_a_newer_checkpoint_or_leaves_anything(
        schedule in proptest::collection::vec((0usize..4, 1u32..4), 1..60),
        claims in proptest::collection::vec(0usize..60, 3),
        deleted_at in 0usize..80,
    ) {
        let mut namespace = Namespace { held: Some(1), ..Namespace::default() };
        let mut owners: Vec<Owner> = Vec::new();
        let mut newest = 0;
        for (at, (who, parts)) in schedule.iter().enumerate() {
            if at == 0 || claims.contains(&at) {
                let epoch = owners.len() as u64 + 1;
                // P18: the vDisk's own namespace first.
                namespace.held = namespace.held.map(|_| epoch);
                owners.push(Owner { epoch, map: 10 * epoch, parts: *parts, at: At::Raise });
            }
            if at == deleted_at {
                // In this order.
                namespace.held = None;
                for owner in &mut owners {
                    owner.step(&mut namespace);
                }
                namespace = Namespace { held: None, ..Namespace::default() };
                newest = 0;
            }
            let count = owners.len();
            owners[who % count].step(&mut namespace);
            let found = newest_map(&namespace);
            prop_assert!(newest <= found, "the checkpoint of SCO {} gave way to {}", newest, found);
            newest = found;
        }
        if namespace.held.is_none() {
            prop_assert!(namespace.epoch.is_none() && namespace.objects.is_empty(), "left over");
            return Ok(());
        }
        // Whatever lies there: the next owner that gets through leaves one checkpoint, its own.
        let epoch = owners.len() as u64 + 1;
        namespace.held = Some(epoch);
        let mut last = Owner { epoch, map: 10 * epoch, parts: 2, at: At::Raise };
        for _ in 0..20 {
            last.step(&mut namespace);
            for owner in &mut owners {
                owner.step(&mut namespace);
            }
        }
        prop_assert_eq!(newest_map(&namespace), last.map);
        prop_assert_eq!(namespace.objects.len(), 2);
    }
}
