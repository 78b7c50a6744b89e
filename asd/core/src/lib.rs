//! Decides for the ASD: records, segments, recovery, space.
