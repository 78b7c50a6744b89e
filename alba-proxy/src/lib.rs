//! Objects to frames to fragments, and back.
