//! Watches against a list of all changes that ever were.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn ask(since: u64, prefix: &str) -> ChangesAsk {
    let keys = vec![Bytes::copy_from_slice(prefix.as_bytes())];
    ChangesAsk { since: Revision(since), keys, sessions: vec![], wait_ms: 1000 }
}

fn row(key: &str) -> Bytes {
    rows::user(key.as_bytes())
}

fn wait(watches: &mut Watches, ticket: u64, ask: ChangesAsk) {
    let deadline = Now(Duration::from_secs(ticket));
    watches.waiting.push(Waiter { ticket: Ticket(ticket), ask, deadline });
}

#[test]
fn who_waits_is_told_of_changes_under_its_prefix_only() {
    let mut watches = Watches::new(10);
    wait(&mut watches, 1, ask(10, "a/"));
    wait(&mut watches, 2, ask(10, "b/"));
    let sessions = vec![Bytes::from_static(b"r/")];
    let session = ChangesAsk { keys: vec![], sessions, ..ask(10, "") };
    wait(&mut watches, 3, session.clone());
    watches.record(11, vec![row("a/1"), row("c")]);
    assert_eq!(watches.due(11), [Ticket(1)]);
    watches.record(12, vec![rows::ttl_session(b"r/1"), row("r/2")]);
    assert_eq!(watches.due(12), [Ticket(3)]);
    let found = watches.changes(&session, 12);
    assert_eq!((found.keys.len(), &found.sessions[..]), (0, &[Bytes::from_static(b"r/1")][..]));
    assert_eq!(watches.expire(Now(Duration::from_secs(2))), [Ticket(2)]);
    assert!(watches.waiting.is_empty());
}

#[test]
fn a_node_behind_the_revision_asked_from_waits_for_what_comes_after_it() {
    let mut watches = Watches::new(10);
    wait(&mut watches, 1, ask(12, "a"));
    watches.record(11, vec![row("a")]);
    assert_eq!(watches.due(11), []);
    assert_eq!(watches.changes(&ask(12, "a"), 11).through, Revision(12));
    watches.record(12, vec![row("a")]);
    assert_eq!(watches.due(12), [], "that one was seen by who asks");
    watches.record(13, vec![row("a")]);
    assert_eq!(watches.due(13), [Ticket(1)]);
}

#[test]
fn a_snapshot_and_a_flood_make_watchers_read_again() {
    let mut watches = Watches::new(0);
    wait(&mut watches, 1, ask(0, "a"));
    watches.forget(50);
    assert_eq!(watches.due(50), [Ticket(1)]);
    assert!(watches.changes(&ask(0, "a"), 50).compacted);
    assert!(!watches.changes(&ask(50, "a"), 50).compacted);
    wait(&mut watches, 2, ask(50, "a"));
    watches.record(51, (0..=RECENT_MAX).map(|number| row(&format!("b{number}"))).collect());
    assert_eq!(watches.due(51), [Ticket(2)]);
    assert!(watches.changes(&ask(50, "a"), 51).compacted && watches.recent.is_empty());
    assert_eq!(watches.bytes, 0);
}

proptest! {
    /// A watcher that asks on from each answer misses nothing, however the list was cut and whenever it asks.
    #[test]
    fn nothing_is_missed(
        entries in proptest::collection::vec(proptest::collection::vec("[ab]{1,2}", 0..4), 1..60),
        asks in proptest::collection::vec(any::<bool>(), 60),
        floods in proptest::collection::vec(0u8..12, 60),
    ) {
        let mut watches = Watches::new(0);
        let (mut since, mut unseen) = (0, BTreeSet::new());
        for (index, keys) in (1u64..).zip(&entries) {
            let at = model::usize_of(index) - 1;
            let mut changed: Vec<Bytes> = keys.iter().map(|key| row(key)).collect();
            if floods[at] == 0 {
                changed.extend((0..RECENT_MAX).map(|number| row(&format!("z{number}"))));
            }
            watches.record(index, changed);
            watches.due(index);
            unseen.extend(keys.iter().filter(|key| key.starts_with('a')).cloned());
            if !asks[at] {
                continue;
            }
            let found = watches.changes(&ask(since, "a"), index);
            prop_assert_eq!(found.through, Revision(index));
            let told: BTreeSet<String> =
                found.keys.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect();
            prop_assert!(found.compacted || told == unseen, "{:?}, not {:?}", told, unseen);
            unseen.clear();
            since = index;
        }
        prop_assert!(watches.recent.len() <= RECENT_MAX && watches.bytes <= RECENT_BYTES_MAX);
    }
}
