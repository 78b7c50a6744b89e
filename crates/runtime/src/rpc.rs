//! Requests and answers over frames: pipelined, answered in any order, with deadlines that travel and bounds everywhere.
//!
//! [`serve`] runs a [`Service`]; [`Client`] calls one. A connection has one reader and one writer task; what queued while
//! the writer was busy goes out in one vectored write. A service is called synchronously and may answer at once, or hand
//! its [`Responder`] to whoever will: no task is spawned for a request.

mod client;
mod connection;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Call, CallError, Client, ClientOptions, Connection};
pub use server::{Request, Responder, ServerOptions, Service, serve};
