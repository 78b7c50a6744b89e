//! The always-consistent key-value store.
