//! Sessions with a TTL in transactions and by leaders' entries: who is refused, what is void, and that rows and memory
//! agree.

use super::*;
use crate::machine::Machine;
use model::ClientId;
use proptest::prelude::*;
use wire::arakoon::{Assertion, Transaction, Update, session_id};

#[derive(Default)]
struct Bench {
    rows: BTreeMap<Bytes, Bytes>,
    machine: Machine,
    client: ClientId,
    request: u64,
    index: u64,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::default();
        bench.run(vec![], vec![]);
        bench.client = session_id(ClientId(0), Revision(1));
        bench.request = 1;
        bench
    }

    fn write<T>(
        &mut self,
        act: impl FnOnce(&mut Machine, &mut Overlay<'_, BTreeMap<Bytes, Bytes>>) -> T,
    ) -> T {
        let mut overlay = Overlay::new(&self.rows);
        let result = act(&mut self.machine, &mut overlay);
        for (row, value) in overlay.into_changes() {
            match value {
                Some(value) => drop(self.rows.insert(row, value)),
                None => drop(self.rows.remove(&row)),
            }
        }
        assert_eq!(Machine::load(&self.rows).unwrap(), self.machine, "memory is what the rows say");
        result
    }

    fn run(&mut self, assertions: Vec<Assertion>, updates: Vec<Update>) -> Outcome {
        let transaction = Transaction {
            client: self.client,
            request: self.request,
            answered_below: self.request,
            assertions,
            updates,
        };
        self.request += 1;
        self.index += 1;
        let revision = Revision(self.index);
        self.write(|machine, rows| machine.apply(rows, revision, &transaction).unwrap())
    }

    fn update(&mut self, update: Update) -> Outcome {
        self.run(vec![], vec![update])
    }

    fn holds(&mut self, assertion: Assertion) -> bool {
        matches!(self.run(vec![assertion], vec![]), Outcome::Committed(_))
    }

    fn follow(&mut self, entry: &LeaderEntry) -> Vec<SessionAt> {
        self.index += 1;
        self.write(|machine, rows| machine.follow(rows, entry))
    }

    fn record(&self) -> Option<SessionRecord> {
        self.machine.ttl_sessions().get(&id()).cloned()
    }
}

fn id() -> Bytes {
    Bytes::from_static(b"router/1")
}

fn open(incarnation: u64, replaces: Option<u64>) -> Update {
    let replaces = replaces.map(Incarnation);
    Update::OpenSession { id: id(), incarnation: Incarnation(incarnation), ttl_ms: 9000, replaces }
}

fn renew(incarnation: u64) -> Update {
    Update::RenewSession { id: id(), incarnation: Incarnation(incarnation) }
}

fn close(incarnation: u64) -> Update {
    Update::CloseSession { id: id(), incarnation: Incarnation(incarnation) }
}

fn lives(incarnation: u64) -> Assertion {
    Assertion::SessionLives { id: id(), incarnation: Incarnation(incarnation) }
}

fn gone(incarnation: u64) -> Assertion {
    Assertion::SessionGone { id: id(), incarnation: Incarnation(incarnation) }
}

fn at(incarnation: u64, renewal: u64) -> SessionAt {
    SessionAt { id: id(), incarnation: Incarnation(incarnation), renewal }
}

fn age(incarnation: u64, renewal: u64, age_ms: u64) -> LeaderEntry {
    LeaderEntry::Ages(vec![SessionAge { at: at(incarnation, renewal), age_ms }])
}

fn committed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Committed(_))
}

#[test]
fn p17_another_incarnation_is_refused_with_the_holder_until_it_is_named_dead_or_gone() {
    let mut bench = Bench::new();
    assert!(committed(&bench.update(open(1, None))));
    let held = bench.record();
    assert_eq!(held.as_ref().unwrap().opened, Revision(2));
    let refused = Outcome::SessionRefused(SessionRefused { id: id(), found: held.clone() });
    for replaces in [None, Some(2), Some(3)] {
        assert_eq!(bench.update(open(2, replaces)), refused);
    }
    assert_eq!(bench.update(renew(2)), refused);
    assert_eq!(bench.record(), held);
    assert!(committed(&bench.update(open(2, Some(1)))));
    assert!(!committed(&bench.update(renew(1))), "the replaced one is dead");
    assert_eq!(bench.follow(&LeaderEntry::Expire(vec![at(2, 1)])), vec![at(2, 1)]);
    let nobody = Outcome::SessionRefused(SessionRefused { id: id(), found: None });
    assert_eq!(bench.update(renew(2)), nobody);
    assert!(committed(&bench.update(open(3, None))));
}

#[test]
fn p17_an_expiry_counts_only_for_the_renewal_it_saw() {
    let mut bench = Bench::new();
    bench.update(open(1, None));
    bench.update(renew(1));
    for void in [at(1, 1), at(1, 3), at(2, 2)] {
        assert_eq!(bench.follow(&LeaderEntry::Expire(vec![void])), vec![]);
    }
    assert_eq!(bench.record().unwrap().renewal, 2);
    assert_eq!(
        bench.follow(&LeaderEntry::Expire(vec![at(1, 2), at(1, 2)])),
        vec![at(1, 2), at(1, 2)]
    );
    assert_eq!(bench.record(), None);
}

#[test]
fn p17_ages_only_grow_and_end_with_their_renewal() {
    let mut bench = Bench::new();
    bench.update(open(1, None));
    for (entry, want) in [
        (age(1, 1, 1000), 1000),
        (age(1, 1, 900), 1000),
        (age(1, 2, 5000), 1000),
        (age(2, 1, 5000), 1000),
        (age(1, 1, 2100), 2100),
    ] {
        bench.follow(&entry);
        assert_eq!(bench.record().unwrap().age_ms, want);
    }
    bench.update(renew(1));
    assert_eq!(bench.record().unwrap().age_ms, 0);
    bench.follow(&age(1, 1, 3000));
    assert_eq!(bench.record().unwrap().age_ms, 0, "late news of an older renewal");
}

#[test]
fn opening_again_renews_and_never_shortens_what_its_holder_relies_on() {
    let mut bench = Bench::new();
    bench.update(open(1, None));
    bench.follow(&age(1, 1, 3000));
    let shorter =
        Update::OpenSession { id: id(), incarnation: Incarnation(1), ttl_ms: 2000, replaces: None };
    assert!(committed(&bench.update(shorter)));
    let record = bench.record().unwrap();
    assert_eq!((record.renewal, record.age_ms, record.ttl_ms), (2, 0, 9000));
    assert_eq!(record.opened, Revision(2));
}

#[test]
fn a_refused_session_takes_the_whole_transaction_back_and_the_other_way_round() {
    let mut bench = Bench::new();
    bench.update(open(1, None));
    let set = Update::Set { key: Bytes::from_static(b"k"), value: Bytes::from_static(b"v") };
    let outcome = bench.run(vec![], vec![set.clone(), close(1), renew(1), set]);
    let nobody = Outcome::SessionRefused(SessionRefused { id: id(), found: None });
    assert_eq!(outcome, nobody, "a transaction sees its own changes");
    assert!(bench.record().is_some() && !bench.rows.contains_key(&rows::user(b"k")));
    let add = Update::Add { key: Bytes::from_static(b"k"), delta: 1 };
    let full = Update::Add { key: Bytes::from_static(b"k"), delta: i64::MAX };
    let outcome = bench.run(vec![], vec![close(1), add, full]);
    assert!(matches!(outcome, Outcome::BadCounter { .. }));
    assert!(bench.record().is_some());
    assert!(committed(&bench.run(vec![lives(1)], vec![close(1)])));
    assert!(committed(&bench.update(close(1))), "closing twice is no error");
}

#[test]
fn assertions_tell_who_was_found() {
    let mut bench = Bench::new();
    assert!(bench.holds(gone(1)) && !bench.holds(lives(1)));
    bench.update(open(1, None));
    assert!(bench.holds(lives(1)) && !bench.holds(gone(1)));
    assert!(
        bench.holds(gone(2)) && !bench.holds(lives(2)),
        "another incarnation is another session"
    );
    let Outcome::AssertionFailed(failed) = bench.run(vec![lives(2)], vec![]) else { panic!() };
    assert_eq!((failed.index, failed.key), (0, id()));
    assert_eq!(failed.found.map(wire::decode_all), bench.record().map(Ok));
}

#[test]
fn one_session_more_than_the_limit_is_refused() {
    let mut bench = Bench::new();
    let named = |number: usize, incarnation| Update::OpenSession {
        id: Bytes::from(format!("r/{number:04}")),
        incarnation: Incarnation(incarnation),
        ttl_ms: 9000,
        replaces: None,
    };
    for part in 0..TTL_SESSIONS_MAX / 512 {
        let updates = (part * 512..(part + 1) * 512).map(|number| named(number, 1)).collect();
        assert!(committed(&bench.run(vec![], updates)));
    }
    assert_eq!(bench.update(open(1, None)), Outcome::SessionsFull);
    let first = Bytes::from_static(b"r/0000");
    assert!(committed(&bench.update(named(0, 1))), "those that live are renewed");
    bench.update(Update::CloseSession { id: first, incarnation: Incarnation(1) });
    assert!(committed(&bench.update(open(1, None))));
}

/// One input of the property below, over a small world.
#[derive(Debug, Clone)]
enum Step {
    Update(Update),
    Leader(LeaderEntry),
}

fn any_step() -> impl Strategy<Value = Step> {
    let number = || 1u64..4;
    prop_oneof![
        (number(), proptest::option::of(number())).prop_map(|(i, r)| Step::Update(open(i, r))),
        number().prop_map(|i| Step::Update(renew(i))),
        number().prop_map(|i| Step::Update(close(i))),
        (number(), number()).prop_map(|(i, r)| Step::Leader(LeaderEntry::Expire(vec![at(i, r)]))),
        (number(), number(), 0u64..4000).prop_map(|(i, r, a)| Step::Leader(age(i, r, a))),
    ]
}

proptest! {
    /// A session ends or changes hands only by its own close, by an expiry of its last renewal, or by who names it dead.
    #[test]
    fn p17_a_session_is_lost_for_three_reasons_only(
        steps in proptest::collection::vec(any_step(), 1..40),
    ) {
        let mut bench = Bench::new();
        for step in steps {
            let before = bench.record();
            let ok = match &step {
                Step::Update(update) => committed(&bench.update(update.clone())),
                Step::Leader(entry) => { bench.follow(entry); true }
            };
            let Some(before) = before else { continue };
            let after = bench.record();
            let kept = after.as_ref().is_some_and(|after| {
                after.incarnation == before.incarnation && after.renewal >= before.renewal
            });
            let last = SessionAt { id: id(), incarnation: before.incarnation, renewal: before.renewal };
            let rightly = match &step {
                Step::Update(Update::CloseSession { incarnation, .. }) => *incarnation == before.incarnation,
                Step::Update(Update::OpenSession { replaces, .. }) => *replaces == Some(before.incarnation),
                Step::Leader(LeaderEntry::Expire(all)) => all.contains(&last),
                Step::Update(_) | Step::Leader(_) => false,
            };
            prop_assert!(kept || (ok && rightly), "{:?}: {:?} became {:?}", step, before, after);
        }
    }
}
