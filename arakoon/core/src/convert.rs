//! Raft's messages to ours and back, so that no protobuf parser ever sees network bytes.
//!
//! Only kinds that travel between nodes pass; what raft sends to itself (`Hup`, `Beat` …) is refused from outside, and
//! proposals and read requests are never forwarded: clients find the leader themselves.

use crate::entry::{kind_from, kind_number};
use raft::eraftpb::{Entry, Message, MessageType, Snapshot};
use wire::DecodeError;
use wire::arakoon::{RaftEntry, RaftMessage, RaftSnapshot};

/// Kind numbers of the wire format, `docs/formats/arakoon.md`.
const KINDS: [(u8, MessageType); 10] = [
    (3, MessageType::MsgAppend),
    (4, MessageType::MsgAppendResponse),
    (5, MessageType::MsgRequestVote),
    (6, MessageType::MsgRequestVoteResponse),
    (7, MessageType::MsgSnapshot),
    (8, MessageType::MsgHeartbeat),
    (9, MessageType::MsgHeartbeatResponse),
    (14, MessageType::MsgTimeoutNow),
    (17, MessageType::MsgRequestPreVote),
    (18, MessageType::MsgRequestPreVoteResponse),
];

/// Kind number of a snapshot: its data must be fetched before the message is handed in.
pub const SNAPSHOT_KIND: u8 = 7;

/// `None` for a kind that doesn't travel.
#[must_use]
pub fn to_wire(message: Message) -> Option<RaftMessage> {
    let (kind, _) = KINDS.into_iter().find(|(_, kind)| *kind == message.get_msg_type())?;
    let snapshot = message.has_snapshot().then(|| snapshot_to_wire(message.get_snapshot()));
    Some(RaftMessage {
        kind,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry_to_wire).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    })
}

fn entry_to_wire(entry: &Entry) -> RaftEntry {
    RaftEntry {
        kind: kind_number(entry.get_entry_type()),
        term: entry.term,
        index: entry.index,
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

fn snapshot_to_wire(snapshot: &Snapshot) -> RaftSnapshot {
    let metadata = snapshot.get_metadata();
    RaftSnapshot {
        index: metadata.index,
        term: metadata.term,
        voters: metadata.get_conf_state().voters.clone(),
        learners: metadata.get_conf_state().learners.clone(),
        data: snapshot.data.clone(),
    }
}

/// # Errors
/// When a kind is unknown or doesn't travel.
pub fn from_wire(message: RaftMessage) -> Result<Message, DecodeError> {
    let (_, kind) = KINDS
        .into_iter()
        .find(|(number, _)| *number == message.kind)
        .ok_or(DecodeError::Illegal { what: "raft message kind", value: message.kind.into() })?;
    let mut out = Message::default();
    out.set_msg_type(kind);
    out.to = message.to;
    out.from = message.from;
    out.term = message.term;
    out.log_term = message.log_term;
    out.index = message.index;
    let entries: Result<Vec<Entry>, DecodeError> =
        message.entries.into_iter().map(entry_from_wire).collect();
    out.set_entries(entries?.into());
    out.commit = message.commit;
    out.commit_term = message.commit_term;
    if let Some(snapshot) = message.snapshot {
        out.set_snapshot(snapshot_from_wire(snapshot));
    }
    out.request_snapshot = message.request_snapshot;
    out.reject = message.reject;
    out.reject_hint = message.reject_hint;
    out.context = message.context;
    out.priority = message.priority;
    Ok(out)
}

fn entry_from_wire(entry: RaftEntry) -> Result<Entry, DecodeError> {
    let mut out = Entry::default();
    out.set_entry_type(kind_from(entry.kind)?);
    out.term = entry.term;
    out.index = entry.index;
    out.data = entry.data;
    out.context = entry.context;
    Ok(out)
}

fn snapshot_from_wire(snapshot: RaftSnapshot) -> Snapshot {
    let mut out = Snapshot { data: snapshot.data, ..Snapshot::default() };
    let metadata = out.mut_metadata();
    metadata.index = snapshot.index;
    metadata.term = snapshot.term;
    metadata.mut_conf_state().voters = snapshot.voters;
    metadata.mut_conf_state().learners = snapshot.learners;
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn messages_survive_the_wire() {
        let entry =
            Entry { term: 3, index: 9, data: Bytes::from_static(b"tx"), ..Entry::default() };
        let mut snapshot = Snapshot { data: Bytes::from_static(b"handle"), ..Snapshot::default() };
        snapshot.mut_metadata().index = 8;
        snapshot.mut_metadata().term = 2;
        snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
        for (_, kind) in KINDS {
            let mut message = Message::default();
            message.set_msg_type(kind);
            message.to = 1;
            message.from = 2;
            message.term = 4;
            message.log_term = 5;
            message.index = 6;
            message.commit = 7;
            message.commit_term = 8;
            message.reject = true;
            message.reject_hint = 10;
            message.request_snapshot = 11;
            message.priority = -1;
            message.context = Bytes::from_static(b"ctx");
            message.set_entries(vec![entry.clone()].into());
            message.set_snapshot(snapshot.clone());
            let sent = to_wire(message.clone()).unwrap();
            let bytes = wire::encode_to_bytes(&sent);
            assert_eq!(from_wire(wire::decode_all(bytes).unwrap()), Ok(message));
        }
    }

    #[test]
    fn local_and_forwarded_kinds_are_refused() {
        for kind in [0, 1, 2, 10, 11, 12, 13, 15, 16, 19, 255] {
            let mut message = to_wire({
                let mut message = Message::default();
                message.set_msg_type(MessageType::MsgHeartbeat);
                message
            })
            .unwrap();
            message.kind = kind;
            assert!(from_wire(message).is_err(), "{kind}");
        }
        assert_eq!(to_wire(Message::default()), None);
    }
}
