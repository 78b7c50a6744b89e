//! How everything that the log decides lies in one ordered map, so that one snapshot of that map is all there is.
//!
//! | row key | value |
//! |---|---|
//! | `u` ‖ key | the user's value |
//! | `s` ‖ client (16, big-endian) | request session: version 1, floor u64, last used u64 |
//! | `t` ‖ id | session with a TTL (P17): version 1, then [`SessionRecord`] |
//! | `d` ‖ client (16, big-endian) ‖ request (8, big-endian) | outcome of that request |
//!
//! Big-endian so that a session's results lie together and in order. Documented in `docs/formats/arakoon.md`.

use bytes::Bytes;
use model::{ClientId, Revision};
use wire::arakoon::SessionRecord;
use wire::{DecodeError, Encode, message};

const USER: u8 = b'u';
const SESSION: u8 = b's';
const RESULT: u8 = b'd';
const TTL_SESSION: u8 = b't';
const SESSION_V1: u8 = 1;
const TTL_SESSION_V1: u8 = 1;

/// Row of a user's key.
#[must_use]
pub fn user(key: &[u8]) -> Bytes {
    let mut row = Vec::with_capacity(1 + key.len());
    row.push(USER);
    row.extend_from_slice(key);
    Bytes::from(row)
}

/// The user's key in a row; `None` for a row of another kind.
#[must_use]
pub fn user_key(row: &[u8]) -> Option<&[u8]> {
    row.strip_prefix(&[USER])
}

/// First row behind all of the user's.
#[must_use]
pub fn user_end() -> Bytes {
    Bytes::from_static(&[USER + 1])
}

#[must_use]
pub fn session(client: ClientId) -> Bytes {
    let mut row = vec![SESSION];
    row.extend_from_slice(&client.0.to_be_bytes());
    Bytes::from(row)
}

#[must_use]
pub fn result(client: ClientId, request: u64) -> Bytes {
    let mut row = vec![RESULT];
    row.extend_from_slice(&client.0.to_be_bytes());
    row.extend_from_slice(&request.to_be_bytes());
    Bytes::from(row)
}

/// Row of a session with a TTL.
#[must_use]
pub fn ttl_session(id: &[u8]) -> Bytes {
    let mut row = Vec::with_capacity(1 + id.len());
    row.push(TTL_SESSION);
    row.extend_from_slice(id);
    Bytes::from(row)
}

#[must_use]
pub fn ttl_session_id(row: &[u8]) -> Option<&[u8]> {
    row.strip_prefix(&[TTL_SESSION])
}

/// Range of all sessions with a TTL.
#[must_use]
pub const fn ttl_sessions_range() -> ([u8; 1], [u8; 1]) {
    ([TTL_SESSION], [TTL_SESSION + 1])
}

/// Value of the row of a session with a TTL.
#[must_use]
pub fn ttl_session_row(record: &SessionRecord) -> Bytes {
    let mut row = vec![TTL_SESSION_V1];
    record.encode(&mut row);
    Bytes::from(row)
}

/// # Errors
/// When the bytes are no such row of a version we know.
pub fn ttl_session_from_row(mut value: Bytes) -> Result<SessionRecord, DecodeError> {
    match value.first() {
        Some(&TTL_SESSION_V1) => wire::decode_all(value.split_off(1)),
        version => {
            let value = version.copied().unwrap_or_default().into();
            Err(DecodeError::Illegal { what: "version of a session with a TTL", value })
        }
    }
}

/// Range of all sessions.
#[must_use]
pub const fn sessions_range() -> ([u8; 1], [u8; 1]) {
    ([SESSION], [SESSION + 1])
}

/// Range of all results.
#[must_use]
pub const fn results_range() -> ([u8; 1], [u8; 1]) {
    ([RESULT], [RESULT + 1])
}

#[must_use]
pub fn session_client(row: &[u8]) -> Option<ClientId> {
    let id = row.strip_prefix(&[SESSION])?.try_into().ok()?;
    Some(ClientId(u128::from_be_bytes(id)))
}

#[must_use]
pub fn result_request(row: &[u8]) -> Option<(ClientId, u64)> {
    let (client, request) = row.strip_prefix(&[RESULT])?.split_first_chunk::<16>()?;
    let request = request.try_into().ok()?;
    Some((ClientId(u128::from_be_bytes(*client)), u64::from_be_bytes(request)))
}

message! {
    /// Value of a session row.
    pub struct SessionRow {
        pub version: u8,
        /// Requests below aren't remembered any more.
        pub floor: u64,
        pub last_used: Revision,
    }
}

impl SessionRow {
    #[must_use]
    pub const fn new(floor: u64, last_used: Revision) -> Self {
        Self { version: SESSION_V1, floor, last_used }
    }

    /// # Errors
    /// When the bytes are no session row of a version we know.
    pub fn from_row(value: Bytes) -> Result<Self, DecodeError> {
        let row: Self = wire::decode_all(value)?;
        if row.version == SESSION_V1 {
            Ok(row)
        } else {
            Err(DecodeError::Illegal { what: "session version", value: row.version.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_v1_are_frozen() {
        assert_eq!(&user(b"k")[..], b"uk");
        assert_eq!(user_key(b"uk"), Some(&b"k"[..]));
        assert_eq!(user_key(b"dk"), None);
        let mut want = b"s".to_vec();
        want.extend([0; 14]);
        want.extend([1, 2]);
        assert_eq!(session(ClientId(0x0102))[..], want[..]);
        want[0] = b'd';
        want.extend([0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(result(ClientId(0x0102), 9)[..], want[..]);
        assert_eq!(result_request(&want), Some((ClientId(0x0102), 9)));
        assert_eq!(session_client(&session(ClientId(7))), Some(ClientId(7)));
        let row = wire::encode_to_bytes(&SessionRow::new(3, Revision(4)));
        assert_eq!(&row[..], b"\x01\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0");
        assert_eq!(SessionRow::from_row(row), Ok(SessionRow::new(3, Revision(4))));
        assert!(SessionRow::from_row(Bytes::from_static(&[2; 17])).is_err());
    }

    #[test]
    fn ttl_session_rows_v1_are_frozen() {
        assert_eq!(&ttl_session(b"r/1")[..], b"tr/1");
        assert_eq!(ttl_session_id(b"tr/1"), Some(&b"r/1"[..]));
        assert_eq!(ttl_session_id(b"ur/1"), None);
        let record = SessionRecord {
            incarnation: model::Incarnation(7),
            ttl_ms: 9000,
            renewal: 2,
            opened: Revision(5),
            age_ms: 1000,
        };
        let row = ttl_session_row(&record);
        let mut want = b"\x01\x07\0\0\0\0\0\0\0\x28\x23\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        want.extend(b"\x05\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0");
        assert_eq!(row[..], want[..]);
        assert_eq!(ttl_session_from_row(row), Ok(record));
        for bad in [&[][..], &[1], &[2; 41], &[1; 42]] {
            assert!(ttl_session_from_row(Bytes::copy_from_slice(bad)).is_err());
        }
    }
}
