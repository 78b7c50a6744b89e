//! Transactions against a plain map, sessions against their rows.

use super::*;
use model::ClientId;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Rows = BTreeMap<Bytes, Bytes>;

/// A machine with its rows, written after every transaction or in batches.
#[derive(Default)]
struct Bench {
    rows: Rows,
    machine: Machine,
    index: u64,
}

impl Bench {
    fn batch(&mut self, transactions: &[Transaction]) -> Vec<Outcome> {
        let mut overlay = Overlay::new(&self.rows);
        let mut outcomes = Vec::new();
        for transaction in transactions {
            self.index += 1;
            let revision = Revision(self.index);
            outcomes.push(self.machine.apply(&mut overlay, revision, transaction).unwrap());
        }
        let changes = overlay.into_changes();
        for (row, value) in changes {
            match value {
                Some(value) => self.rows.insert(row, value),
                None => self.rows.remove(&row),
            };
        }
        outcomes
    }

    fn one(&mut self, transaction: &Transaction) -> Outcome {
        self.batch(std::slice::from_ref(transaction)).remove(0)
    }

    fn open(&mut self) -> ClientId {
        let opener = ClientId(77);
        match self.one(&transaction(opener, 0, vec![], vec![])) {
            Outcome::Committed(revision) => session_id(opener, revision),
            other @ (Outcome::AssertionFailed(_)
            | Outcome::BadCounter { .. }
            | Outcome::PrefixTooLarge { .. }
            | Outcome::Expired
            | Outcome::SessionRefused(_)
            | Outcome::SessionsFull) => panic!("{other:?}"),
        }
    }

    fn value(&self, key: &str) -> Option<Bytes> {
        self.rows.get(&rows::user(key.as_bytes())).cloned()
    }

    fn user_rows(&self) -> BTreeMap<Vec<u8>, Bytes> {
        let user = self
            .rows
            .iter()
            .filter_map(|(row, value)| Some((rows::user_key(row)?.to_vec(), value.clone())));
        user.collect()
    }
}

fn transaction(
    client: ClientId,
    request: u64,
    assertions: Vec<Assertion>,
    updates: Vec<Update>,
) -> Transaction {
    Transaction { client, request, answered_below: 1, assertions, updates }
}

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn set(name: &str, value: &'static str) -> Update {
    Update::Set { key: key(name), value: Bytes::from_static(value.as_bytes()) }
}

fn add(name: &str, delta: i64) -> Update {
    Update::Add { key: key(name), delta }
}

#[test]
fn a_failed_assertion_changes_nothing_and_tells_what_it_found() {
    let mut bench = Bench::default();
    let client = bench.open();
    bench.one(&transaction(client, 1, vec![], vec![set("a", "1")]));
    let absent = Assertion::Value { key: key("a"), expected: None };
    let there = Assertion::Exists { key: key("a") };
    let outcome = bench.one(&transaction(client, 2, vec![there, absent], vec![set("b", "2")]));
    let found = Some(Bytes::from_static(b"1"));
    assert_eq!(
        outcome,
        Outcome::AssertionFailed(AssertionFailed { index: 1, key: key("a"), found })
    );
    assert_eq!(bench.value("b"), None);
}

#[test]
fn a_refused_counter_takes_the_whole_transaction_back() {
    let mut bench = Bench::default();
    let client = bench.open();
    bench.one(&transaction(client, 1, vec![], vec![set("text", "xyz"), add("full", i64::MAX)]));
    for (request, bad) in [(2, "text"), (3, "full")] {
        let outcome =
            bench.one(&transaction(client, request, vec![], vec![set("b", "2"), add(bad, 1)]));
        assert_eq!(outcome, Outcome::BadCounter { key: key(bad) });
        assert_eq!(bench.value("b"), None);
    }
    bench.one(&transaction(client, 4, vec![], vec![add("n", 5), add("n", -7)]));
    assert_eq!(bench.value("n"), Some(Bytes::copy_from_slice(&(-2i64).to_le_bytes())));
}

#[test]
fn a_repeated_request_gets_its_first_outcome_and_runs_once() {
    let mut bench = Bench::default();
    let client = bench.open();
    let count = transaction(client, 1, vec![], vec![add("n", 1)]);
    let failing =
        transaction(client, 2, vec![Assertion::Exists { key: key("later") }], vec![add("n", 1)]);
    let first = bench.batch(&[count.clone(), failing.clone()]);
    bench.one(&transaction(client, 3, vec![], vec![set("later", "now")]));
    assert_eq!(bench.batch(&[count, failing]), first, "what failed first must not happen later");
    assert_eq!(bench.value("n"), Some(Bytes::copy_from_slice(&1i64.to_le_bytes())));
}

#[test]
fn what_is_forgotten_is_refused_and_never_runs() {
    let mut bench = Bench::default();
    let client = bench.open();
    let first = transaction(client, 1, vec![], vec![add("n", 1)]);
    bench.one(&first);
    let mut told = transaction(client, 3, vec![], vec![]);
    told.answered_below = 3;
    bench.one(&told);
    assert_eq!(bench.one(&first), Outcome::Expired);
    assert_eq!(bench.one(&transaction(client, 2, vec![], vec![add("n", 1)])), Outcome::Expired);
    assert_eq!(
        bench.one(&transaction(ClientId(5), 1, vec![], vec![add("n", 1)])),
        Outcome::Expired
    );
    assert_eq!(bench.value("n"), Some(Bytes::copy_from_slice(&1i64.to_le_bytes())));
}

#[test]
fn a_session_remembers_so_many_results_and_no_more() {
    let mut bench = Bench::default();
    let client = bench.open();
    let many = model::u64_of(SESSION_REQUESTS_MAX) + 10;
    for request in 1..=many {
        bench.one(&transaction(client, request, vec![], vec![add("n", 1)]));
    }
    assert_eq!(bench.one(&transaction(client, 10, vec![], vec![add("n", 1)])), Outcome::Expired);
    let kept = bench.one(&transaction(client, 11, vec![], vec![add("n", 1)]));
    assert!(matches!(kept, Outcome::Committed(_)));
    let total = i64::try_from(many).unwrap();
    assert_eq!(bench.value("n"), Some(Bytes::copy_from_slice(&total.to_le_bytes())));
    let results = bench.rows.keys().filter(|row| rows::result_request(row).is_some()).count();
    assert_eq!(results, SESSION_REQUESTS_MAX);
}

#[test]
fn the_session_used_longest_ago_is_forgotten_first() {
    let mut bench = Bench::default();
    let (oldest, used) = (bench.open(), bench.open());
    bench.one(&transaction(oldest, 1, vec![], vec![add("n", 1)]));
    for _ in 2..SESSIONS_MAX {
        bench.open();
    }
    bench.one(&transaction(used, 1, vec![], vec![]));
    assert_eq!(bench.machine.session_count(), SESSIONS_MAX);
    bench.open();
    assert_eq!(bench.machine.session_count(), SESSIONS_MAX);
    assert_eq!(bench.one(&transaction(oldest, 1, vec![], vec![add("n", 1)])), Outcome::Expired);
    assert!(matches!(bench.one(&transaction(used, 2, vec![], vec![])), Outcome::Committed(_)));
    assert_eq!(bench.value("n"), Some(Bytes::copy_from_slice(&1i64.to_le_bytes())));
    assert!(!bench.rows.contains_key(&rows::result(oldest, 1)));
}

#[test]
fn a_prefix_too_large_for_one_entry_is_refused_whole() {
    let mut bench = Bench::default();
    let client = bench.open();
    for number in 0..=DELETE_PREFIX_MAX {
        bench.rows.insert(rows::user(format!("p/{number:06}").as_bytes()), Bytes::new());
    }
    let delete = |request| {
        let update = Update::DeletePrefix { prefix: key("p/") };
        transaction(client, request, vec![], vec![set("x", "1"), update])
    };
    assert_eq!(bench.one(&delete(1)), Outcome::PrefixTooLarge { prefix: key("p/") });
    assert_eq!((bench.user_rows().len(), bench.value("x")), (DELETE_PREFIX_MAX + 1, None));
    bench.rows.remove(&rows::user(b"p/000000"));
    assert!(matches!(bench.one(&delete(2)), Outcome::Committed(_)));
    assert_eq!(bench.user_rows().len(), 1);
}

#[test]
fn outcomes_v1_are_frozen() {
    let failed = AssertionFailed { index: 1, key: key("k"), found: None };
    let refused = |found| Outcome::SessionRefused(SessionRefused { id: key("s"), found });
    let cases: [(Outcome, &[u8]); 7] = [
        (Outcome::Committed(Revision(9)), b"\x01\x09\0\0\0\0\0\0\0"),
        (Outcome::AssertionFailed(failed), b"\x02\x01\0\0\0\x01\0\0\0k\0"),
        (Outcome::BadCounter { key: key("k") }, b"\x03\x01\0\0\0k"),
        (Outcome::PrefixTooLarge { prefix: key("p") }, b"\x04\x01\0\0\0p"),
        (Outcome::Expired, b"\x05"),
        (refused(None), b"\x06\x01\0\0\0s\0"),
        (Outcome::SessionsFull, b"\x07"),
    ];
    for (outcome, bytes) in cases {
        assert_eq!(wire::encode_to_bytes(&outcome)[..], *bytes);
        assert_eq!(wire::decode_all(Bytes::from_static(bytes)), Ok(outcome));
    }
}

/// The plain way to run a transaction.
fn model_run(map: &mut BTreeMap<Vec<u8>, Bytes>, transaction: &Transaction) -> bool {
    for assertion in &transaction.assertions {
        let holds = match assertion {
            Assertion::Value { key, expected } => map.get(&key[..]) == expected.as_ref(),
            Assertion::Exists { key } => map.contains_key(&key[..]),
            Assertion::SessionLives { .. } | Assertion::SessionGone { .. } => {
                unreachable!("sessions have tests of their own")
            }
        };
        if !holds {
            return false;
        }
    }
    let mut next = map.clone();
    for update in &transaction.updates {
        match update {
            Update::Set { key, value } => drop(next.insert(key.to_vec(), value.clone())),
            Update::Delete { key } => drop(next.remove(&key[..])),
            Update::DeletePrefix { prefix } => next.retain(|key, _| !key.starts_with(prefix)),
            Update::Add { key, delta } => match added(next.get(&key[..]).cloned(), *delta) {
                Some(value) => drop(next.insert(key.to_vec(), value)),
                None => return false,
            },
            Update::OpenSession { .. }
            | Update::RenewSession { .. }
            | Update::CloseSession { .. } => unreachable!("sessions have tests of their own"),
        }
    }
    *map = next;
    true
}

fn any_key() -> impl Strategy<Value = Bytes> {
    "[ab]{1,3}".prop_map(|name: String| Bytes::from(name))
}

fn any_value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        any::<i64>().prop_map(|n| Bytes::copy_from_slice(&n.to_le_bytes())),
        Just(Bytes::from_static(b"v"))
    ]
}

fn any_transaction() -> impl Strategy<Value = (Vec<Assertion>, Vec<Update>)> {
    let assertion = prop_oneof![
        (any_key(), proptest::option::of(any_value()))
            .prop_map(|(key, expected)| Assertion::Value { key, expected }),
        any_key().prop_map(|key| Assertion::Exists { key }),
    ];
    let update = prop_oneof![
        4 => (any_key(), any_value()).prop_map(|(key, value)| Update::Set { key, value }),
        1 => any_key().prop_map(|key| Update::Delete { key }),
        1 => "[ab]{0,2}".prop_map(|prefix: String| Update::DeletePrefix { prefix: Bytes::from(prefix) }),
        1 => (any_key(), any::<i64>()).prop_map(|(key, delta)| Update::Add { key, delta }),
    ];
    (proptest::collection::vec(assertion, 0..2), proptest::collection::vec(update, 0..5))
}

proptest! {
    /// Whatever the batches: outcomes and rows are those of a plain map, and memory is what the rows say.
    #[test]
    fn transactions_do_what_a_plain_map_does(
        all in proptest::collection::vec((any_transaction(), any::<bool>(), any::<bool>()), 1..40),
    ) {
        let mut bench = Bench::default();
        let client = bench.open();
        let mut map = BTreeMap::new();
        let mut batch = Vec::new();
        let mut wanted = Vec::new();
        for (number, ((assertions, updates), repeat, flush)) in all.into_iter().enumerate() {
            let next = transaction(client, model::u64_of(number) + 1, assertions, updates);
            wanted.push(model_run(&mut map, &next));
            batch.push(next.clone());
            if repeat {
                wanted.push(*wanted.last().unwrap());
                batch.push(next);
            }
            if flush {
                let got: Vec<bool> = bench
                    .batch(&std::mem::take(&mut batch))
                    .iter()
                    .map(|outcome| matches!(outcome, Outcome::Committed(_)))
                    .collect();
                prop_assert_eq!(got, std::mem::take(&mut wanted));
                prop_assert_eq!(&bench.user_rows(), &map);
                prop_assert_eq!(&Machine::load(&bench.rows).unwrap(), &bench.machine);
            }
        }
        let mut seen = 0;
        bench.rows.scan(
            crate::view::Span { start: b"", end: None },
            wire::arakoon::Direction::Backward,
            &mut |_, _| { seen += 1; std::ops::ControlFlow::Continue(()) },
        ).unwrap();
        prop_assert_eq!(seen, bench.rows.len());
    }
}
