//! Finds the leader, retries exactly once.
