//! Owns vDisks and log-structures their writes.
