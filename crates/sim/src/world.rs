//! Nodes that send messages and set timers, crash and come back: the queue and the network, joined.
//!
//! A crash takes the node's timers with it, and whatever was under way to it: a restarted process has no memory of what
//! it waited for, and a connection doesn't survive its end. Each node has a life number; what was meant for an earlier
//! life never arrives in a later one. A node may stand still for a while; what is meant for it then waits.
//!
//! Invariant: a node that is down hears nothing, and no event is meant for two lives.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::faults::FaultCounts;
use crate::network::{Link, Network, NodeId};
use crate::queue::{Queue, Ticket};
use crate::random::Random;

/// What happens to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening<M, T> {
    Message { from: NodeId, to: NodeId, message: M },
    Timer { node: NodeId, timer: T },
}

/// An event for one life of one node.
#[derive(Debug, Clone)]
struct Meant<M, T> {
    life: u64,
    happening: Happening<M, T>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    life: u64,
    down: bool,
    paused_until: Duration,
}

#[derive(Debug, Clone)]
pub struct World<M, T> {
    queue: Queue<Meant<M, T>>,
    pub network: Network,
    nodes: BTreeMap<NodeId, Node>,
    faults: FaultCounts,
}

impl<M: Clone, T> World<M, T> {
    #[must_use]
    pub fn new(random: Random, usual: Link) -> Self {
        Self {
            queue: Queue::new(),
            network: Network::new(random, usual),
            nodes: BTreeMap::new(),
            faults: FaultCounts::default(),
        }
    }

    /// Time since the world began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.queue.now()
    }

    /// A message leaves; what becomes of it is the network's affair.
    pub fn send(&mut self, from: NodeId, to: NodeId, message: M) {
        let life = self.node(to).life;
        for moment in self.network.carry(self.queue.now(), from, to).iter() {
            let happening = Happening::Message { from, to, message: message.clone() };
            self.queue.at(moment, Meant { life, happening });
        }
    }

    /// Wakes this life of the node after `delay`.
    pub fn wake(&mut self, node: NodeId, delay: Duration, timer: T) -> Ticket {
        let life = self.node(node).life;
        self.queue.after(delay, Meant { life, happening: Happening::Timer { node, timer } })
    }

    pub fn cancel(&mut self, ticket: Ticket) {
        self.queue.cancel(ticket);
    }

    /// The node stands still, as a process that is stopped or a host that is suspended; what is meant for it waits.
    pub fn pause(&mut self, node: NodeId, length: Duration) {
        self.faults.count("pause");
        let until = self.queue.now() + length;
        self.nodes.entry(node).or_default().paused_until = until;
    }

    /// The node stops at once; its timers and what is under way to it are gone.
    pub fn crash(&mut self, node: NodeId) {
        self.faults.count("crash");
        let entry = self.nodes.entry(node).or_default();
        entry.life += 1;
        entry.down = true;
        entry.paused_until = Duration::ZERO;
    }

    /// The node hears again, in a new life.
    pub fn restart(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().down = false;
    }

    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        !self.node(node).down
    }

    /// Jumps to the next thing that happens to a node that is up and reachable.
    pub fn step(&mut self) -> Option<Happening<M, T>> {
        while let Some(Meant { life, happening }) = self.queue.pop() {
            let (node, open) = match &happening {
                Happening::Message { from, to, .. } => (*to, self.network.is_open(*from, *to)),
                Happening::Timer { node, .. } => (*node, true),
            };
            let Node { life: current, down, paused_until } = self.node(node);
            if self.queue.now() < paused_until {
                self.queue.at(paused_until, Meant { life, happening });
                continue;
            }
            if open && !down && life == current {
                return Some(happening);
            }
        }
        None
    }

    /// Faults of nodes and network together.
    #[must_use]
    pub fn faults(&self) -> FaultCounts {
        let mut faults = self.faults.clone();
        faults.add(self.network.faults());
        faults
    }

    fn node(&self, node: NodeId) -> Node {
        self.nodes.get(&node).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn world() -> World<u32, &'static str> {
        World::new(Random::new(1), Link::good())
    }

    #[test]
    fn messages_arrive_and_timers_fire_in_time() {
        let mut world = world();
        world.wake(A, Duration::from_secs(1), "later");
        world.send(A, B, 7);
        assert_eq!(world.step(), Some(Happening::Message { from: A, to: B, message: 7 }));
        assert_eq!(world.step(), Some(Happening::Timer { node: A, timer: "later" }));
        assert_eq!(world.now(), Duration::from_secs(1));
        assert_eq!(world.step(), None);
    }

    #[test]
    fn a_crash_takes_timers_and_messages_under_way_with_it() {
        let mut world = world();
        world.wake(B, Duration::from_secs(1), "old life");
        world.send(A, B, 1);
        world.crash(B);
        world.restart(B);
        world.wake(B, Duration::from_secs(2), "new life");
        assert_eq!(world.step(), Some(Happening::Timer { node: B, timer: "new life" }));
        assert_eq!(world.faults().of("crash"), 1);
    }

    #[test]
    fn a_node_that_is_down_hears_nothing() {
        let mut world = world();
        world.crash(B);
        world.send(A, B, 1);
        assert_eq!(world.step(), None);
        assert!(!world.is_up(B) && world.is_up(A));
    }

    #[test]
    fn what_is_meant_for_a_node_that_stands_still_waits_in_its_order() {
        let mut world = world();
        world.pause(B, Duration::from_secs(1));
        world.send(A, B, 1);
        world.wake(B, Duration::from_millis(500), "soon");
        world.wake(A, Duration::from_millis(700), "other");
        let other = Happening::Timer { node: A, timer: "other" };
        assert_eq!(world.step(), Some(other), "the others go on");
        assert_eq!(world.step(), Some(Happening::Message { from: A, to: B, message: 1 }));
        assert_eq!(world.now(), Duration::from_secs(1));
        assert_eq!(world.step(), Some(Happening::Timer { node: B, timer: "soon" }));
        assert_eq!(world.faults().of("pause"), 1);
    }

    #[test]
    fn a_cut_takes_what_is_under_way() {
        let mut world = world();
        world.send(A, B, 1);
        world.send(B, A, 2);
        world.network.cut_one_way(A, B);
        assert_eq!(world.step(), Some(Happening::Message { from: B, to: A, message: 2 }));
        assert_eq!(world.step(), None);
    }

    #[test]
    fn a_cancelled_timer_stays_silent() {
        let mut world = world();
        let ticket = world.wake(A, Duration::from_secs(1), "never");
        world.cancel(ticket);
        assert_eq!(world.step(), None);
    }
}
