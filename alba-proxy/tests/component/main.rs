//! The proxy over loopback, with an arakoon and ASDs in memory that speak the real protocols and can be hurt.

mod cluster;
mod fakes;
mod loss;
mod order;
mod roundtrip;
