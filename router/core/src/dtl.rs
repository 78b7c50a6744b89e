//! The distributed transaction log (DTL): what an owner has logged and the backend doesn't have yet, at a second place.
//!
//! | module | decides |
//! | --- | --- |
//! | [`records`] | runs of records as they cross the socket and lie on the target's disk |
//! | [`block`] | bytes of a target's files |
//! | [`store`] | one log of one vDisk at a target: files, what of them counts after a crash |
//! | [`target`] | what a target promises, and when it may answer (L4, P12, P16) |
//! | [`owner`] | to whom an owner copies its log, what may be acknowledged, what arakoon must be told (P11, P13, P16) |
//! | [`takeover`] | what a claimant may believe (P13, L7) |
//! | [`mode`] | how its mode changes while the vDisk is served |
//! | [`loss`] | what an operator gives up who starts a vDisk without what is missing (L7) |
//!
//! Invariant: a flush is acknowledged only for what every target named in arakoon has on stable storage (P11), so sealing
//! any one of them shows a successor everything that was promised.

pub mod block;
pub mod loss;
pub mod mode;
pub mod owner;
pub mod records;
pub mod store;
pub mod takeover;
pub mod target;
