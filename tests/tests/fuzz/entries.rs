//! One entry point per decoder: bytes from a stranger in, no panic, and what was taken goes out again as the same bytes.
//!
//! They take nothing but bytes, so that any driver can use them. Formats under a checksum are tried twice, as they are and sealed again, because
//! a mutation that never gets past the checksum tests nothing but the checksum.
//!
//! Invariant: a function here panics only when a promise is broken; whether the bytes were good is no matter.

use bytes::Bytes;
use wire::{Decode, DecodeError, Encode, decode_all, encode_to_bytes};

/// A decoder under attack.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "wire_frame", run: fuzz_wire_frame },
    Target { name: "wire_message", run: fuzz_wire_message },
    Target { name: "facts", run: fuzz_facts },
    Target { name: "nbd_handshake", run: super::nbd::fuzz_handshake },
    Target { name: "nbd_request", run: super::nbd::fuzz_request },
    Target { name: "log_record", run: super::router::fuzz_log_record },
    Target { name: "log_segment", run: super::router::fuzz_log_segment },
    Target { name: "dtl_run", run: super::dtl::fuzz_run },
    Target { name: "dtl_chunk", run: super::dtl::fuzz_chunk },
    Target { name: "dtl_promises", run: super::dtl::fuzz_promises },
    Target { name: "sco", run: super::router::fuzz_sco },
    Target { name: "tlog", run: super::router::fuzz_tlog },
    Target { name: "page", run: super::router::fuzz_page },
    Target { name: "map_part", run: super::router::fuzz_map_part },
    Target { name: "manifest", run: fuzz_manifest },
    Target { name: "frame_table", run: super::sealed::fuzz_frame_table },
    Target { name: "sealed_stream", run: super::sealed::fuzz_sealed_stream },
    Target { name: "wrapped_key", run: super::sealed::fuzz_wrapped_key },
    Target { name: "asd_record", run: super::asd::fuzz_record },
    Target { name: "asd_segment", run: super::asd::fuzz_segment },
    Target { name: "asd_index", run: super::asd::fuzz_index },
    Target { name: "raft_entry", run: fuzz_raft_entry },
    Target { name: "raft_message", run: fuzz_raft_message },
    Target { name: "config", run: super::config::fuzz_config },
    Target { name: "tls_files", run: super::config::fuzz_tls_files },
    Target { name: "key_file", run: super::config::fuzz_key_file },
];

/// CRC-32C, as every format here uses it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    codec::crc32c(bytes)
}

/// The bytes with their last four made the checksum of the rest.
pub fn sealed_at_the_end(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    if let Some((body, sum)) = out.split_last_chunk_mut::<4>() {
        *sum = crc32c(body).to_le_bytes();
    }
    out
}

fn fuzz_wire_frame(data: &[u8]) {
    use wire::frame::{FrameHeader, HEADER_LEN};
    let Some((header, rest)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(frame) = FrameHeader::decode(header) else { return };
    let body = &rest[..rest.len().min(model::usize_of(frame.body_len.into()))];
    if frame.verify(body).is_ok() && body.len() == model::usize_of(frame.body_len.into()) {
        // Byte 5 is reserved and not covered by any meaning.
        let mut expected = *header;
        expected[5] = 0;
        assert_eq!(frame.encode(), expected, "a verified header is what encode writes");
    }
}

/// Decodes one message; what decodes must encode to the same bytes: there is one form of each value.
fn message<T: Decode + Encode>(body: &Bytes) {
    if let Ok(value) = decode_all::<T>(body.clone()) {
        assert_eq!(encode_to_bytes(&value), *body, "{}", std::any::type_name::<T>());
    }
}

/// One kind of message.
pub struct MessageKind {
    check: fn(&Bytes),
    /// Whether bytes are one; samples are grown by it.
    pub decode: fn(Bytes) -> Result<(), DecodeError>,
}

const fn kind<T: Decode + Encode>() -> MessageKind {
    MessageKind { check: message::<T>, decode: decodes::<T> }
}

fn decodes<T: Decode>(bytes: Bytes) -> Result<(), DecodeError> {
    decode_all::<T>(bytes).map(drop)
}

/// As [`MessageKind::decode`], for what Raft sends.
pub fn raft_message_decodes(bytes: Bytes) -> Result<(), DecodeError> {
    decodes::<wire::arakoon::RaftMessage>(bytes)
}

/// Every message that crosses a socket, and the hello before them.
pub const MESSAGES: &[MessageKind] = {
    use wire::{arakoon as a, asd as d, common as c, dtl as t, proxy as p, router as r};
    &[
        kind::<c::Hello>(),
        kind::<c::Status>(),
        kind::<wire::WireError>(),
        kind::<a::Transaction>(),
        kind::<a::Committed>(),
        kind::<a::AssertionFailed>(),
        kind::<a::Get>(),
        kind::<a::Values>(),
        kind::<a::Range>(),
        kind::<a::Entries>(),
        kind::<a::Leader>(),
        kind::<a::RaftBatch>(),
        kind::<a::SnapshotAsk>(),
        kind::<a::JoinAsk>(),
        kind::<a::JoinAnswer>(),
        kind::<a::SnapshotRows>(),
        kind::<d::Identity>(),
        kind::<d::MultiPut>(),
        kind::<d::PutResults>(),
        kind::<d::MultiGet>(),
        kind::<d::GetResults>(),
        kind::<d::Delete>(),
        kind::<d::List>(),
        kind::<d::Listing>(),
        kind::<d::Verify>(),
        kind::<d::VerifyResults>(),
        kind::<d::Stats>(),
        kind::<p::CreateNamespace>(),
        kind::<p::DeleteNamespace>(),
        kind::<p::RaiseEpoch>(),
        kind::<p::ReadHead>(),
        kind::<p::Head>(),
        kind::<p::PutObject>(),
        kind::<p::PutDone>(),
        kind::<p::ReadObject>(),
        kind::<p::ReadDone>(),
        kind::<p::ListObjects>(),
        kind::<p::Objects>(),
        kind::<p::DeleteObjects>(),
        kind::<p::NamespaceHealth>(),
        kind::<p::FillHoles>(),
        kind::<p::Health>(),
        kind::<r::Locate>(),
        kind::<r::Location>(),
        kind::<r::Attach>(),
        kind::<r::Attached>(),
        kind::<r::ReplayComplete>(),
        kind::<r::Detach>(),
        kind::<r::Read>(),
        kind::<r::ReadDone>(),
        kind::<r::Write>(),
        kind::<r::Unmap>(),
        kind::<r::Applied>(),
        kind::<r::Flush>(),
        kind::<r::Flushed>(),
        kind::<r::BlockStatus>(),
        kind::<r::Extents>(),
        kind::<r::VdiskNames>(),
        kind::<r::CreateVdisk>(),
        kind::<r::VdiskName>(),
        kind::<r::ResizeVdisk>(),
        kind::<r::VdiskInfo>(),
        kind::<r::SyncDone>(),
        kind::<a::SessionRefused>(),
        kind::<a::SessionsAsk>(),
        kind::<a::SessionList>(),
        kind::<a::ChangesAsk>(),
        kind::<a::Changes>(),
        kind::<r::Transfer>(),
        kind::<r::Transferred>(),
        kind::<r::SetStanding>(),
        kind::<r::Adoption>(),
        kind::<r::Contest>(),
        kind::<r::Contested>(),
        kind::<r::MapCopies>(),
        kind::<r::RecoverVdisk>(),
        kind::<r::Recovery>(),
        kind::<t::Open>(),
        kind::<t::Create>(),
        kind::<t::Opened>(),
        kind::<t::Append>(),
        kind::<t::Appended>(),
        kind::<t::Sync>(),
        kind::<t::Synced>(),
        kind::<t::Renew>(),
        kind::<t::Renewed>(),
        kind::<t::Trim>(),
        kind::<t::Seal>(),
        kind::<t::Sealed>(),
        kind::<t::ReadRecords>(),
        kind::<t::Records>(),
        kind::<t::LogsOf>(),
        kind::<t::LogList>(),
        kind::<c::EventsAsk>(),
        kind::<c::EventList>(),
        kind::<r::EndAttachment>(),
        kind::<r::EndedAttachment>(),
        kind::<r::SetVdisk>(),
        kind::<p::CreateBeside>(),
        kind::<r::ReadMap>(),
        kind::<r::MapPart>(),
        kind::<r::Carried>(),
    ]
};

/// The first byte says which message the rest is taken for.
fn fuzz_wire_message(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    (MESSAGES[usize::from(*which) % MESSAGES.len()].check)(&Bytes::copy_from_slice(body));
}

fn record<T: wire::facts::Record + std::fmt::Debug + PartialEq>(bytes: &Bytes) {
    if let Ok(value) = T::from_record(bytes.clone()) {
        let (name, written) = (std::any::type_name::<T>(), value.to_record());
        match bytes.first() {
            Some(version) if *version == T::VERSION => assert_eq!(written, *bytes, "{name}"),
            // One of an older version is written as one of this.
            _ => assert_eq!(T::from_record(written).ok(), Some(value), "{name}"),
        }
    }
}

/// Records that lie in arakoon: every reader may meet any of them.
fn fuzz_facts(data: &[u8]) {
    use wire::facts as f;
    let bytes = Bytes::copy_from_slice(data);
    record::<f::OsdRecord>(&bytes);
    record::<f::PresetRecord>(&bytes);
    record::<f::BackendRecord>(&bytes);
    record::<f::VpoolRecord>(&bytes);
    record::<f::RouterRecord>(&bytes);
    record::<f::VdiskRecord>(&bytes);
    record::<f::AttachmentsRecord>(&bytes);
    record::<f::VpoolDtl>(&bytes);
    record::<f::DtlRecord>(&bytes);
    record::<f::ContestRecord>(&bytes);
    record::<f::LossRecord>(&bytes);
    record::<f::MaintenanceRecord>(&bytes);
    record::<f::RouterLoad>(&bytes);
    record::<f::RebalanceTurn>(&bytes);
    record::<f::DtlTargets>(&bytes);
    record::<alba_proxy_core::namespace::HeadMeta>(&bytes);
    if let Some(object) = alba_proxy_core::namespace::head_from_bytes(data) {
        assert_eq!(alba_proxy_core::namespace::head_to_bytes(object), data);
    }
}

fn fuzz_manifest(data: &[u8]) {
    use alba_proxy_core::Manifest;
    for bytes in [data.to_vec(), sealed_at_the_end(data)] {
        let bytes = Bytes::from(bytes);
        let Ok(manifest) = Manifest::from_bytes(&bytes) else { continue };
        assert_eq!(manifest.to_bytes(), bytes, "one form of each manifest");
        assert!(manifest.holes() <= manifest.policy.total());
        let _ = (manifest.stored_len(), manifest.present(), manifest.stored().count());
    }
}

fn fuzz_raft_entry(data: &[u8]) {
    use arakoon_core::entry::{decode, encode, verify};
    let Ok((entry, chain)) = decode(7, Bytes::copy_from_slice(data)) else { return };
    let _ = verify(1, &entry, chain);
    let (row, right) = encode(1, &entry);
    assert_eq!(row.len(), data.len());
    assert_eq!(decode(7, row), Ok((entry.clone(), right)));
    assert_eq!(verify(1, &entry, right), Ok(right));
    if let Ok(session) = arakoon_core::rows::SessionRow::from_row(Bytes::copy_from_slice(data)) {
        assert_eq!(encode_to_bytes(&session), data);
    }
    message::<arakoon_core::leader_entry::LeaderEntry>(&entry.data);
    if let Ok(session) = arakoon_core::rows::ttl_session_from_row(entry.data.clone()) {
        assert_eq!(arakoon_core::rows::ttl_session_row(&session), entry.data);
    }
}

fn fuzz_raft_message(data: &[u8]) {
    use arakoon_core::convert::{from_wire, to_wire};
    let Ok(message) = decode_all::<wire::arakoon::RaftMessage>(Bytes::copy_from_slice(data)) else {
        return;
    };
    let Ok(raft) = from_wire(message.clone()) else { return };
    assert_eq!(to_wire(raft).map(|again| again.kind), Some(message.kind), "what came may go");
}
