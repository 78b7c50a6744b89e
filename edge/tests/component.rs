//! The edge as users and routers see it: a real edge, a router in memory that can be killed, and every NBD client there
//! is. A tool that is missing is a failure with its remedy, never a silent pass.

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
