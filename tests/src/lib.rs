//! Clusters, simulated and real; workloads; oracles.
