//! What a network does to messages between nodes: delay, loss, duplication, reordering, cuts in one or both directions.
//!
//! The network holds no messages. It answers when the copies of one arrive, and on arrival whether the way is open at
//! that moment; [`World`](crate::World) keeps the messages. A link can keep its order, like one TCP connection, or not.
//!
//! Invariant: on a link that keeps its order no message overtakes an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::faults::FaultCounts;
use crate::random::{Chance, Random};

/// A node of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As one TCP connection: later messages wait for earlier ones.
    Kept,
    /// As datagrams, or messages spread over connections.
    Free,
}

/// How a link treats its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub delay: RangeInclusive<Duration>,
    pub loss: Chance,
    pub duplication: Chance,
    pub order: Order,
}

impl Link {
    /// A link without faults: a little delay, in order.
    #[must_use]
    pub fn good() -> Self {
        Self {
            delay: Duration::from_micros(50)..=Duration::from_micros(300),
            loss: Chance::NEVER,
            duplication: Chance::NEVER,
            order: Order::Kept,
        }
    }

    /// Loses, repeats and reorders a few of a hundred.
    #[must_use]
    pub fn bad() -> Self {
        Self {
            delay: Duration::from_micros(50)..=Duration::from_millis(20),
            loss: Chance::percent(3),
            duplication: Chance::percent(2),
            order: Order::Free,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Network {
    random: Random,
    usual: Link,
    special: BTreeMap<(NodeId, NodeId), Link>,
    last_arrival: BTreeMap<(NodeId, NodeId), Duration>,
    cut: BTreeSet<(NodeId, NodeId)>,
    faults: FaultCounts,
}

impl Network {
    #[must_use]
    pub fn new(random: Random, usual: Link) -> Self {
        Self {
            random,
            usual,
            special: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            cut: BTreeSet::new(),
            faults: FaultCounts::default(),
        }
    }

    /// Gives one direction of a pair a link of its own.
    pub fn set_link(&mut self, from: NodeId, to: NodeId, link: Link) {
        self.special.insert((from, to), link);
    }

    /// All links without a setting of their own, from now on.
    pub fn set_usual(&mut self, link: Link) {
        self.usual = link;
    }

    /// Nothing passes from `from` to `to`; the other direction is as it was.
    pub fn cut_one_way(&mut self, from: NodeId, to: NodeId) {
        if self.cut.insert((from, to)) {
            self.faults.count("one-way cut");
        }
    }

    /// No message passes between a node of one side and a node of the other.
    pub fn partition(&mut self, one: &[NodeId], other: &[NodeId]) {
        self.faults.count("partition");
        for &a in one {
            for &b in other {
                self.cut.extend([(a, b), (b, a)]);
            }
        }
    }

    /// Heals all cuts.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    #[must_use]
    pub fn is_open(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
    }

    #[must_use]
    pub fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    /// When the copies of a message sent now arrive: none, one or two moments.
    ///
    /// Whether the way is open is asked again on arrival ([`Network::is_open`]): a cut takes what is under way with it.
    pub fn carry(&mut self, now: Duration, from: NodeId, to: NodeId) -> Arrivals {
        let link = self.special.get(&(from, to)).unwrap_or(&self.usual).clone();
        if self.random.happens(link.loss) {
            self.faults.count("loss");
            return Arrivals { first: None, second: None };
        }
        let first = Some(self.arrival(now, (from, to), &link));
        let second = self.random.happens(link.duplication).then(|| {
            self.faults.count("duplication");
            self.arrival(now, (from, to), &link)
        });
        Arrivals { first, second }
    }

    fn arrival(&mut self, now: Duration, pair: (NodeId, NodeId), link: &Link) -> Duration {
        let wished = now + self.random.duration(&link.delay);
        let last = self.last_arrival.entry(pair).or_default();
        match link.order {
            Order::Kept => *last = wished.max(*last),
            Order::Free if wished < *last => {
                self.faults.count("reordering");
                return wished;
            }
            Order::Free => *last = wished,
        }
        *last
    }
}

/// The moments at which copies of one message arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrivals {
    pub first: Option<Duration>,
    pub second: Option<Duration>,
}

impl Arrivals {
    pub fn iter(self) -> impl Iterator<Item = Duration> {
        self.first.into_iter().chain(self.second)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    #[test]
    fn a_good_link_delivers_each_message_once() {
        let mut network = Network::new(Random::new(1), Link::good());
        for _ in 0..1000 {
            assert_eq!(network.carry(Duration::ZERO, A, B).iter().count(), 1);
        }
        assert_eq!(network.faults(), &FaultCounts::default());
    }

    #[test]
    fn a_bad_link_loses_repeats_and_reorders() {
        let mut network = Network::new(Random::new(1), Link::bad());
        let delivered: usize =
            (0..1000).map(|_| network.carry(Duration::ZERO, A, B).iter().count()).sum();
        let lost = network.faults().of("loss");
        let repeated = network.faults().of("duplication");
        assert!(0 < lost && 0 < repeated && 0 < network.faults().of("reordering"));
        assert_eq!(u64::try_from(delivered).unwrap(), 1000 - lost + repeated);
    }

    #[test]
    fn a_one_way_cut_leaves_the_other_direction_open() {
        let mut network = Network::new(Random::new(1), Link::good());
        network.cut_one_way(A, B);
        assert!(!network.is_open(A, B));
        assert!(network.is_open(B, A));
        network.heal();
        assert!(network.is_open(A, B));
    }

    #[test]
    fn a_partition_cuts_between_the_sides_and_not_within() {
        let mut network = Network::new(Random::new(1), Link::good());
        network.partition(&[A], &[B, C]);
        assert!(!network.is_open(A, B) && !network.is_open(C, A));
        assert!(network.is_open(B, C));
    }

    proptest! {
        #[test]
        fn nothing_overtakes_on_a_link_that_keeps_its_order(seed: u64, gaps in prop::collection::vec(0_u64..100, 1..50)) {
            let mut network = Network::new(Random::new(seed), Link::good());
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            for gap in gaps {
                now += Duration::from_micros(gap);
                let arrival = network.carry(now, A, B).first.expect("nothing is lost");
                prop_assert!(now <= arrival && last <= arrival);
                last = arrival;
            }
        }
    }
}
