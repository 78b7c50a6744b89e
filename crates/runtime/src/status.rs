//! The answer every role gives to "how are you".

use crate::peer::Identity;
use wire::common::Status;

#[must_use]
pub fn status(identity: &Identity, state: &str, details_json: String) -> Status {
    Status {
        role: identity.role,
        name: identity.name.clone(),
        pid: std::process::id(),
        since_unix_ms: identity.started_unix_ms,
        state: state.to_owned(),
        details_json,
    }
}
