//! The DTL's target under attack: each promise by itself, and power cuts after every step of random lives.
//!
//! Invariant: whatever was answered is found again by whoever seals (P11, P12), and a sealed target takes nothing lower.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cuts;
mod disk;
mod owner;
mod power_cut;
mod simulation;
mod support;
mod target;
