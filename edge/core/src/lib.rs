//! Decides for the edge: NBD protocol, sessions, replay.
