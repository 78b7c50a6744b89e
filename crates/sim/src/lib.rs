//! The simulated world: seeded chance, virtual time, a faulty network, faulty disks, a trace with a digest.
//!
//! A pure core says what it wants done (send this, write that, wake me then). A test joins cores by carrying those
//! wishes out in this world instead of the real one, and so sees in seconds the years of bad luck that a cluster meets.
//! Nothing here knows Holdfast: nodes are numbers, messages and timers are any type, disks hold bytes.
//!
//! | module | is |
//! | --- | --- |
//! | [`random`] | the one source of chance, forked into independent streams |
//! | [`queue`] | virtual time and what will happen, in one order |
//! | [`network`] | delay, loss, duplication, reordering, partitions |
//! | [`world`] | queue and network joined: messages and timers of nodes that crash and come back |
//! | [`clock`] | what time a node believes it is: drift, jumps |
//! | [`disk`] | sectors, syncs, power cuts, rot, lies, fullness |
//! | [`files`] | a directory's files as bytes, power cuts of them, and harm done to them |
//! | [`trace`] | what happened, as a digest and the last lines |
//! | [`seeds`] | runs a simulation over many seeds and names the one that failed |
//! | [`shrink`] | makes the schedule of a failed run smaller while it still fails |
//!
//! Invariant: the same seed gives the same life. No clock, no address, no hash order decides anything.

pub mod clock;
pub mod disk;
pub mod faults;
pub mod files;
pub mod network;
pub mod queue;
pub mod random;
pub mod seeds;
pub mod shrink;
pub mod trace;
pub mod world;

pub use clock::Clock;
pub use disk::{Disk, DiskError, DiskFaults, SECTOR};
pub use faults::FaultCounts;
pub use network::{Link, Network, NodeId, Order};
pub use queue::Queue;
pub use random::{Chance, Random};
pub use shrink::Schedule;
pub use trace::Trace;
pub use world::{Happening, World};
