//! What the edge decides, as pure code: the NBD protocol, and the session that keeps a vDisk's writes safe.
//!
//! - [`nbd`]: bytes from users to requests, and answers back to bytes. Knows nothing of routers.
//! - [`session`]: one vDisk attachment: order, acknowledgement, replay log, what to do after a cut connection.
//! - [`route`]: which router address to try next, and after what pause.
//!
//! Nothing here reads a clock, a socket or a random source; the crate `edge` acts on what is decided here.

pub mod nbd;
pub mod route;
pub mod session;
mod slab;
