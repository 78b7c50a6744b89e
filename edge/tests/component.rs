//! The edge as users and routers see it: a real edge, a router in memory that can be killed, and every NBD client there
//! is. A tool that is missing is a failure with its remedy, never a silent pass.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test says by panicking what went wrong"
)]

#[path = "component/fake_router.rs"]
mod fake_router;
#[path = "component/rig.rs"]
mod rig;

#[path = "component/clients.rs"]
mod clients;
#[path = "component/failover.rs"]
mod failover;
#[path = "component/odd.rs"]
mod odd;
#[path = "component/sharing.rs"]
mod sharing;
