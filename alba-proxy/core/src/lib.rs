//! Decides for the proxy: placement, uploads, read plans, hole filling, health of OSDs; and the formats it owns.
//!
//! Nothing here knows a clock, a socket, a file or chance: time, seeds and answers of OSDs are arguments, so
//! every decision can be replayed from its inputs.
//!
//! * [`manifest`], [`namespace`], [`keys`]: what is stored in arakoon, byte by byte.
//! * [`placement`]: which OSD gets which fragment; [`policy`]: which policy a write can use now.
//! * [`upload`]: one put attempt, from the first fragment to the decision.
//! * [`read`]: which bytes of which fragments answer a read, and what instead when some are lost.
//! * [`line`]: which small reads go to an OSD together.
//! * [`fill`]: how holes of an object are filled. [`health`]: what we know of each OSD.
//! * [`order`]: what a refused commit means (P18, P21).

pub mod fill;
pub mod health;
pub mod keys;
pub mod line;
pub mod manifest;
pub mod namespace;
pub mod order;
pub mod placement;
pub mod policy;
pub mod read;
mod rng;
pub mod upload;

pub use health::{HealthView, OsdCondition};
pub use manifest::{FragmentRecord, Manifest, ManifestError, Place};
pub use placement::{Candidate, Occupied};
pub use upload::{PutAnswer, Upload, Verdict};
