//! The proxy over loopback, with an arakoon and ASDs in memory that speak the real protocols and can be hurt.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
mod fakes;
mod loss;
mod old;
mod order;
mod plain;
mod roundtrip;
