//! Decides for arakoon: transactions, dedup, reads over a Raft log.
