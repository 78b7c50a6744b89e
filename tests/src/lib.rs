//! Clusters, simulated and real; workloads; oracles.
//!
//! The tests under `tests/` start the real `holdfast` binary as anyone would and look at it from outside, through NBD
//! and the command line. What they share is here.
//!
//! | module | is |
//! | --- | --- |
//! | [`binary`] | where the `holdfast` program is |
//! | [`cluster`] | a running `holdfast up` in a directory of its own, and ways to hurt it |
//! | [`hosts`] | hosts as network namespaces, and cables that can be cut |
//! | [`spread`] | a cluster over such hosts |
//! | [`owner`] | who owns a vDisk, and how its users fare while that changes |
//! | [`tool`] | other people's programs, with a deadline |
//! | [`nbd`] | a small pipelining NBD client of our own |
//! | [`stamp`] | units of 512 bytes that say who wrote them |
//! | [`history`] | what was asked and answered, and the checker that judges what is read |
//! | [`workload`] | a verifying load: random requests, each answer judged |
//! | [`mount`] | a filesystem on a vDisk through nbdfuse and a loop device |
//! | [`pattern`] | plain data as a function of a seed |
//! | [`steps`] | several named checks on one cluster, all reported |
//! | [`trouble`] | whether something failed, so that logs are wanted |
//!
//! Invariant: what a test starts ends with it: processes, mounts, loop devices, directories.

pub mod binary;
pub mod cluster;
pub mod history;
pub mod hosts;
pub mod measure;
pub mod mount;
pub mod nbd;
pub mod owner;
pub mod pattern;
pub mod spread;
pub mod stamp;
pub mod steps;
pub mod syscalls;
pub mod tool;
pub mod trouble;
pub mod workload;

/// Whether to run long: hours rather than minutes.
#[must_use]
pub fn soak() -> bool {
    std::env::var("HOLDFAST_SOAK").is_ok_and(|value| value == "1")
}

/// The first value under `key`, wherever in the document it stands.
#[must_use]
pub fn find<'a>(document: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    use serde_json::Value;
    match document {
        Value::Object(fields) => {
            fields.get(key).or_else(|| fields.values().find_map(|value| find(value, key)))
        }
        Value::Array(values) => values.iter().find_map(|value| find(value, key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_found_at_any_depth() {
        let document = serde_json::json!({"a": [{"b": 1}, {"c": {"d": 2}}]});
        assert_eq!(super::find(&document, "d"), Some(&serde_json::json!(2)));
        assert_eq!(super::find(&document, "x"), None);
    }
}
