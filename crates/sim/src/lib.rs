//! The simulated world: seeded scheduler, faulty network, disks, clocks, trace.
