//! Where mutations begin: good bytes of every format, made by the product's own encoders.
//!
//! They are kept as files in `corpus/<target>/`, beside inputs that once found something. A test compares the two,
//! so a format that changes by accident is seen here too.
//!
//! Invariant: made from constants; the same on every machine.

use bytes::Bytes;
use edge_core::nbd::handshake_flag::{FIXED_NEWSTYLE, NO_ZEROES};
use edge_core::nbd::{OPTION_MAGIC, REQUEST_MAGIC, command, option};
use fastrand::Rng;
use model::{
    AttachmentGeneration, AttemptId, Cluster, ClusterRange, Epoch, Lap, LogId, Lsn, MapGeneration,
    ObjectId, OsdId, RequestSeq, ScoNumber, VdiskId,
};
use router_core::log::record::{encode_list, record_len};
use router_core::log::{ListEntry, Op, Record};
use router_core::page::{Location, Page, page_key};
use router_core::tlog::{Meta, Run, Tlog};
use wire::{DecodeError, encode_to_bytes};

use super::entries::{MESSAGES, crc32c};

/// Good bytes for a target; empty where they are random each time (certificates).
pub fn samples(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire_frame" => vec![frame(b"body")],
        "wire_message" => messages(),
        "facts" => facts(),
        "nbd_handshake" => handshakes(),
        "nbd_request" => vec![requests()],
        "log_record" => vec![write(3 << 15, 0, 9).0, list(1 << 15, 0)],
        "log_segment" => vec![log_segment()],
        "dtl_run" => vec![[&[2][..], &dtl_run()].concat()],
        "dtl_chunk" => vec![dtl_chunk()],
        "dtl_promises" => vec![dtl_promises()],
        "sco" => vec![sco()],
        "tlog" => vec![tlog().encode(), meta().encode().to_vec()],
        "page" => vec![page()],
        "map_part" => map_parts(),
        "manifest" => vec![manifest()],
        "frame_table" => frame_tables(),
        "sealed_stream" => vec![vec![0, 0, 1, 5, 0, 0], vec![1, 3, 0, 9, 1, 7, 2, 0, 0, 1]],
        "wrapped_key" => vec![wrapped_key()],
        "asd_record" => vec![asd_record(8192, b"key", b"123456789"), asd_segment_header()],
        "asd_segment" => vec![asd_segment()],
        "asd_index" => asd_rows(),
        "raft_entry" => raft_entries(),
        "raft_message" => vec![grown(&super::entries::raft_message_decodes, 5)],
        "config" => configs(),
        "key_file" => {
            vec![format!("# keys\nv1 1 {}\nv1 2 {}\n", "5a".repeat(32), "c3".repeat(32)).into()]
        }
        "tls_files" => tls_files(),
        other => panic!("no samples for {other}"),
    }
}

/// Whether samples of this target are the same in every run.
pub fn is_frozen(target: &str) -> bool {
    target != "tls_files"
}

fn tls_files() -> Vec<Vec<u8>> {
    let (authority, router) = super::config::genuine();
    let pems = [&authority.cert_pem, &router.cert_pem, &router.key_pem];
    (0..).zip(pems).map(|(which, pem)| [&[which], pem.as_bytes()].concat()).collect()
}

/// Grows bytes until they decode: what is missing is added, mostly small numbers; what is illegal is drawn again.
pub fn grown(decode: &dyn Fn(Bytes) -> Result<(), DecodeError>, seed: u64) -> Vec<u8> {
    const TRIES: u32 = 10_000;
    let mut random = Rng::with_seed(seed);
    let mut bytes: Vec<u8> = Vec::new();
    for _ in 0..TRIES {
        match decode(Bytes::copy_from_slice(&bytes)) {
            Ok(()) => return bytes,
            // A length that came out absurd: draw it again.
            Err(DecodeError::Short { missing }) if 64 < missing => bytes.clear(),
            Err(DecodeError::Short { missing }) => {
                let mut more = vec![0; missing];
                more[0] = random.u8(0..4);
                bytes.extend(more);
            }
            Err(DecodeError::Trailing { extra }) => bytes.truncate(bytes.len() - extra),
            Err(DecodeError::Illegal { .. } | DecodeError::Utf8) => {
                let cut = random.usize(0..=bytes.len().min(3));
                bytes.truncate(bytes.len() - cut);
                bytes.push(random.u8(1..8));
            }
        }
    }
    panic!("no message of this kind grows from seed {seed}");
}

fn messages() -> Vec<Vec<u8>> {
    let one = |(which, kind): (u8, &super::entries::MessageKind)| {
        [vec![which], grown(&kind.decode, u64::from(which))].concat()
    };
    (0..).zip(MESSAGES).map(one).collect()
}

fn map_parts() -> Vec<Vec<u8>> {
    use router_core::checkpoint::PartMeta;
    use router_core::map::{Totals, cluster_at};
    use router_core::map_state::MapState;
    use router_core::map_stream::Cutter;
    use router_core::page::digest_of;
    let vdisk = VdiskId(3);
    let object = ObjectId { vdisk, epoch: Epoch(2), number: ScoNumber(7) };
    let (mut page, mut totals) = (Page::default(), Totals::default());
    for index in 0..3 {
        let location = Location::new(ScoNumber(7), 4, 2);
        page.set(index, Some(location));
        totals.add(digest_of(cluster_at(9, index), location));
    }
    let state = MapState { object: Some(object), last_lsn: Lsn(40), totals, epochs: 1 };
    let mut cutter = Cutter::new(vdisk, state.clone(), 1 << 16);
    let key = page_key(vdisk, 9, MapGeneration(0));
    assert!(cutter.epoch(ScoNumber(1), Epoch(2)).is_none());
    assert!(cutter.page(9, page.encode(&key).into()).is_none());
    let meta = PartMeta { map: object, last_lsn: Lsn(40), index: 1, last: true };
    vec![cutter.finish().encode(), meta.encode().to_vec(), state.encode()]
}

fn dtl_entry(lsn: u64, op: Op, payload: Bytes) -> router_core::log::pool::Entry {
    router_core::log::pool::Entry {
        copied: false,
        vdisk: super::dtl::VDISK,
        epoch: Epoch(2),
        lsn: Lsn(lsn),
        generation: AttachmentGeneration(1),
        seq: RequestSeq(lsn),
        last: true,
        op,
        cluster: Cluster(lsn),
        count: 1,
        checksums: if payload.is_empty() { Vec::new() } else { vec![crc32c(&payload)] },
        payload,
    }
}

fn dtl_run() -> Vec<u8> {
    let write = dtl_entry(5, Op::Write, vec![5; 4096].into());
    let trim = dtl_entry(6, Op::Trim, Bytes::new());
    let records = [write, trim].map(|entry| router_core::dtl::records::outgoing(&entry));
    records.into_iter().flat_map(|record| [record.header, record.payload].concat()).collect()
}

fn dtl_chunk() -> Vec<u8> {
    use router_core::dtl::block::Header;
    let run = dtl_run();
    let header = |offset, previous_end, synced| {
        let (nonce, chunk, first, len) = (0xfeed, 3, Lsn(5), model::u32_of(run.len()));
        Header { nonce, chunk, offset, previous_end, first, synced: Lsn(synced), len }.bytes()
    };
    let mut chunk = [&header(0, 0, 0)[..], &run].concat();
    let end = model::u64_of(chunk.len());
    chunk.resize(8192, 0);
    chunk.extend(header(8192, end, 6));
    chunk.extend(&run);
    chunk
}

fn dtl_promises() -> Vec<u8> {
    use router_core::dtl::block::{LogPromise, Promises};
    let generation = model::DtlGeneration(2);
    let log = LogPromise { generation, epoch: Epoch(3), nonce: 4, base: Lsn(5), failed: true };
    Promises { fence: Epoch(6), logs: vec![log] }.to_file().to_vec()
}

fn frame(body: &[u8]) -> Vec<u8> {
    use wire::frame::{FrameHeader, FrameKind, FrameMeta};
    let meta = FrameMeta { kind: FrameKind::Request, method: 3, request: 7, deadline_ms: 100 };
    [&FrameHeader::new(meta, body, 0).encode()[..], body].concat()
}

fn facts() -> Vec<Vec<u8>> {
    use wire::facts as f;
    let kinds: [fn(Bytes) -> Result<(), DecodeError>; 13] = [
        record::<f::OsdRecord>,
        record::<f::PresetRecord>,
        record::<f::BackendRecord>,
        record::<f::VpoolRecord>,
        record::<f::RouterRecord>,
        record::<f::VdiskRecord>,
        record::<f::AttachmentsRecord>,
        record::<alba_proxy_core::namespace::HeadMeta>,
        record::<f::VpoolDtl>,
        record::<f::DtlRecord>,
        record::<f::ContestRecord>,
        record::<f::LossRecord>,
        record::<f::RebalanceTurn>,
    ];
    let mut all: Vec<Vec<u8>> = (0..).zip(kinds).map(|(seed, kind)| grown(&kind, seed)).collect();
    all.push(alba_proxy_core::namespace::head_to_bytes(object()).to_vec());
    all
}

fn record<T: wire::facts::Record>(bytes: Bytes) -> Result<(), DecodeError> {
    T::from_record(bytes).map(drop)
}

fn option_of(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("short");
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn handshakes() -> Vec<Vec<u8>> {
    let flags = u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    let go =
        [&4_u32.to_be_bytes()[..], b"demo", &1_u16.to_be_bytes(), &3_u16.to_be_bytes()].concat();
    let context = [
        &4_u32.to_be_bytes()[..],
        b"demo",
        &1_u32.to_be_bytes(),
        &15_u32.to_be_bytes(),
        b"base:allocation",
    ]
    .concat();
    let start = |mood: u8| [vec![7, mood], flags.clone()].concat();
    vec![
        [
            start(14),
            option_of(option::STRUCTURED_REPLY, &[]),
            option_of(option::LIST_META_CONTEXT, &context),
            option_of(option::SET_META_CONTEXT, &context),
            option_of(option::INFO, &go),
            option_of(option::GO, &go),
        ]
        .concat(),
        [start(14), option_of(option::EXPORT_NAME, b"demo")].concat(),
        [start(4), option_of(option::LIST, &[]), option_of(option::ABORT, &[])].concat(),
        [start(1), option_of(option::LIST, &[]), option_of(option::STARTTLS, &[])].concat(),
    ]
}

fn requests() -> Vec<u8> {
    let mut out = vec![0];
    for (kind, offset, len) in [
        (command::READ, 0_u64, 4096_u32),
        (command::WRITE, 512, 512),
        (command::TRIM, 8192, 1 << 20),
        (command::WRITE_ZEROES, 0, 1 << 30),
        (command::BLOCK_STATUS, 0, 4096),
        (command::CACHE, 0, 4096),
        (command::FLUSH, 0, 0),
        (command::DISC, 0, 0),
    ] {
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(0_u16.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(77_u64.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        if kind == command::WRITE {
            out.extend(vec![5; 512]);
        }
    }
    out
}

fn log_record(position: u64, previous_end: u64, op: Op, lsn: u64, payload: &[u8]) -> Record {
    let checksums = match op {
        Op::Write => payload.chunks_exact(4096).map(crc32c).collect(),
        Op::Trim | Op::Zero => Vec::new(),
        Op::Start | Op::List => vec![crc32c(payload)],
    };
    Record {
        log: LogId(0xfeed),
        lap: Lap(position >> 15),
        position,
        previous_end,
        synced_through: 0,
        vdisk: VdiskId(1),
        epoch: Epoch(1),
        lsn: Lsn(lsn),
        generation: AttachmentGeneration(1),
        seq: RequestSeq(lsn),
        last: true,
        copied: false,
        op,
        cluster: Cluster(42),
        count: if op == Op::Write { (payload.len() / 4096) as u64 } else { 3 },
        payload_len: u32::try_from(payload.len()).expect("short"),
        checksums,
    }
}

fn bytes_of(record: &Record, payload: &[u8]) -> Vec<u8> {
    let mut out = record.header();
    out.extend_from_slice(payload);
    out.resize(record_len(record.checksums.len(), payload.len()), 0);
    out
}

fn write(position: u64, previous_end: u64, lsn: u64) -> (Vec<u8>, u64) {
    let payload = [u8::try_from(lsn).expect("small"); 4096];
    let record = log_record(position, previous_end, Op::Write, lsn, &payload);
    (bytes_of(&record, &payload), record.end())
}

fn list(position: u64, previous_end: u64) -> Vec<u8> {
    let payload = encode_list(&[ListEntry { lap: Lap(position >> 15), end: 0 }]);
    bytes_of(&log_record(position, previous_end, Op::Start, 0, &payload), &payload)
}

fn log_segment() -> Vec<u8> {
    let base = 1 << 15;
    let mut out = list(base, 0);
    for lsn in 1..=4 {
        let at = base + out.len() as u64;
        let record = if lsn == 3 {
            bytes_of(&log_record(at, at, Op::Trim, lsn, &[]), &[])
        } else {
            write(at, at, lsn).0
        };
        out.extend(record);
    }
    out
}

fn object() -> ObjectId {
    ObjectId { vdisk: VdiskId(1), epoch: Epoch(2), number: ScoNumber(3) }
}

fn sco() -> Vec<u8> {
    let location = Location::new(ScoNumber(3), 0, 1);
    let data = [9; 4096];
    let mut out = [&location.raw().to_le_bytes()[..], &42_u64.to_le_bytes(), &data].concat();
    out.extend(42_u64.to_le_bytes());
    out.extend(crc32c(&data).to_le_bytes());
    out.extend(7_u32.to_le_bytes());
    out
}

fn tlog() -> Tlog {
    Tlog {
        object: object(),
        first_lsn: Lsn(5),
        last_lsn: Lsn(9),
        size_bytes: 1 << 30,
        epochs: vec![(Epoch(1), Lsn(1)), (Epoch(2), Lsn(6))],
        unmaps: vec![ClusterRange { start: Cluster(10), end: Cluster(20) }],
        runs: vec![Run { start: Cluster(1), count: 3 }, Run { start: Cluster(700), count: 2 }],
        applied: vec![(
            AttachmentGeneration(1),
            wire::router::AppliedSequences {
                contiguous: RequestSeq(4),
                above: vec![RequestSeq(6)],
            },
        )],
    }
}

fn meta() -> Meta {
    Meta {
        first_lsn: Lsn(5),
        last_lsn: Lsn(9),
        clusters: 5,
        tlog_offset: 20_560,
        tlog_len: 200,
        predecessor: Some(object()),
    }
}

fn page() -> Vec<u8> {
    let mut page = Page::default();
    page.set(3, Some(Location::new(ScoNumber(3), 0, 1)));
    page.set(511, Some(Location::new(ScoNumber(1 << 40), 65_535, 4)));
    page.encode(&page_key(VdiskId(3), 9, MapGeneration(1)))
}

fn manifest() -> Vec<u8> {
    use alba_proxy_core::manifest::{FragmentRecord, Manifest, Place, Protection};
    let policies: model::PolicyList = "2,1,2,1".parse().expect("a policy");
    let place =
        |place| FragmentRecord { place, len: if place == Place::Empty { 0 } else { 116 }, crc: 7 };
    let manifest = Manifest {
        object: object(),
        attempt: AttemptId(4),
        epoch: Epoch(2),
        preset: "default".into(),
        preset_version: 5,
        policy: policies.policies()[0],
        level: policies.level(),
        codec_id: 1,
        protection: Protection::Aes256Gcm { namespace_key: 1 },
        frame_size: 16_384,
        plain_len: 100,
        digest: [6; 16],
        stripe_len: 116,
        fragments: [Place::Empty, Place::Stored(OsdId(0x0a0b)), Place::Hole].map(place).into(),
        frame_table: Bytes::from_static(&[8, 9]),
        meta: meta().encode(),
    };
    manifest.to_bytes().to_vec()
}

fn frame_tables() -> Vec<Vec<u8>> {
    use codec::{FrameSize, FrameTable, Suite};
    let odd = FrameSize::new(16_384 + 64).expect("four clusters and their trailers");
    let tables = [
        FrameTable::all_raw(Suite::Aes256Gcm, FrameSize::DEFAULT, 100_000),
        FrameTable::all_raw(Suite::Crc32c, odd, 70_000),
        FrameTable::new(Suite::Aes256Gcm, FrameSize::DEFAULT, 40_000, &[900, 16_384, 77]),
    ];
    tables.into_iter().map(|table| table.expect("it fits").encode()).collect()
}

fn wrapped_key() -> Vec<u8> {
    use codec::{Engine, KeyEncryptionKey, NamespaceKey};
    let kek = KeyEncryptionKey::new(1, [7; 32], Engine::AwsLc);
    kek.wrap(b"owner", &NamespaceKey::new([42; 32]), [3; 12]).to_vec()
}

fn asd_record(offset: u64, key: &'static [u8], data: &[u8]) -> Vec<u8> {
    use asd_core::record::{Header, Kind};
    let header = Header {
        kind: Kind::Put,
        key: Bytes::from_static(key),
        data_len: u32::try_from(data.len()).expect("short"),
        number: 3,
        osd: OsdId(9),
        lap: Lap(4),
        offset,
        seq: 17,
        synced: 4096,
        prev_end: 65_536,
        checksums: data.chunks(wire::asd::BLOCK).map(crc32c).collect(),
    };
    [&header.encode()[..], data].concat()
}

fn asd_segment_header() -> Vec<u8> {
    use asd_core::segment::SegmentHeader;
    SegmentHeader { osd: OsdId(9), len: 1 << 20, freed: Lap(7), closed_at: None }.encode()[..64]
        .to_vec()
}

fn asd_segment() -> Vec<u8> {
    let mut out = vec![1, 0];
    let mut at = 4096;
    for (key, len) in [(&b"one"[..], 100), (b"two", 5000), (b"three", 0)] {
        let mut record = asd_record(at, key, &vec![5; len]);
        record.resize(record.len().next_multiple_of(64), 0);
        at += record.len() as u64;
        out.extend(record);
    }
    out
}

fn asd_rows() -> Vec<Vec<u8>> {
    use asd_core::disk::FileId;
    use asd_core::index::{Checkpoint, Entry, Location, Meta, SegmentRow};
    use asd_core::record::Kind;
    let at = Location { lap: Lap(2), offset: 3, file: FileId(4) };
    let entry = Entry { kind: Kind::Tombstone, seq: 1, at, data_len: 5, stale: 6 };
    let checkpoint = Checkpoint { lap: Lap(1), offset: 2, number: 3, prev_end: 4 };
    vec![
        entry.encode().to_vec(),
        SegmentRow { file: FileId(1), len: 2, used: 3, live: 4 }.encode().to_vec(),
        Meta { checkpoint, next_seq: 5, fragments: 6, live_bytes: 7, digest: 8 }.encode().to_vec(),
    ]
}

fn raft_entries() -> Vec<Vec<u8>> {
    use arakoon_core::entry::EntryRecord;
    use arakoon_core::leader_entry;
    let data = Bytes::from_static(b"data");
    let entry = EntryRecord { version: 1, kind: 0, chain: 5, term: 2, data, context: Bytes::new() };
    let session = arakoon_core::rows::SessionRow::new(3, model::Revision(4));
    let (incarnation, opened) = (model::Incarnation(7), model::Revision(5));
    let record = wire::arakoon::SessionRecord {
        incarnation,
        ttl_ms: 9000,
        renewal: 2,
        opened,
        age_ms: 1000,
    };
    let at = leader_entry::SessionAt { id: Bytes::from_static(b"r/1"), incarnation, renewal: 2 };
    let expire = encode_to_bytes(&leader_entry::LeaderEntry::Expire(vec![at]));
    let with = |data| encode_to_bytes(&EntryRecord { data, ..entry.clone() }).to_vec();
    vec![
        encode_to_bytes(&entry).to_vec(),
        encode_to_bytes(&session).to_vec(),
        with(arakoon_core::rows::ttl_session_row(&record)),
        with(expire),
    ]
}

fn configs() -> Vec<Vec<u8>> {
    let edge = include_str!("../../../edge/example.toml");
    let texts = [
        asd::EXAMPLE,
        router::EXAMPLE,
        edge,
        alba_proxy::config::EXAMPLE,
        arakoon::config::EXAMPLE,
    ];
    // As an operator would: every line that is commented out is also tried for real.
    let all = |text: &str| text.replace("\n# ", "\n").replace("\n#", "\n");
    let with = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
    (0..)
        .zip(texts)
        .flat_map(|(which, text)| [with(which, text), with(which, &all(text))])
        .collect()
}
