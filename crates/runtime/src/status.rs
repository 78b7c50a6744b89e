//! The answer every role gives to "how are you".

use crate::peer::Identity;
use std::sync::OnceLock;
use wire::common::Status;

/// Allocations since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocations {
    pub count: u64,
    pub bytes: u64,
}

static ALLOCATIONS: OnceLock<fn() -> Allocations> = OnceLock::new();

/// From now on every status tells what `count` says; for builds whose allocator counts.
pub fn tell_allocations(count: fn() -> Allocations) {
    // A second caller means the same allocator.
    let _ = ALLOCATIONS.set(count);
}

/// `details_json` is an object.
#[must_use]
pub fn status(identity: &Identity, state: &str, details_json: String) -> Status {
    let details_json = match ALLOCATIONS.get() {
        Some(count) => with_allocations(&details_json, count()),
        None => details_json,
    };
    Status {
        role: identity.role,
        name: identity.name.clone(),
        pid: std::process::id(),
        since_unix_ms: identity.started_unix_ms,
        state: state.to_owned(),
        details_json,
    }
}

fn with_allocations(object: &str, Allocations { count, bytes }: Allocations) -> String {
    let inner = object.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let Some(inner) = inner.map(str::trim) else { return object.to_owned() };
    let comma = if inner.is_empty() { "" } else { "," };
    format!("{{\"allocations\":{{\"count\":{count},\"bytes\":{bytes}}}{comma}{inner}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_join_the_details() {
        let some = Allocations { count: 2, bytes: 30 };
        let said = "{\"allocations\":{\"count\":2,\"bytes\":30}";
        assert_eq!(with_allocations("{}", some), format!("{said}}}"));
        assert_eq!(with_allocations("{\"a\":1}", some), format!("{said},\"a\":1}}"));
        assert_eq!(with_allocations("no object", some), "no object");
    }
}
