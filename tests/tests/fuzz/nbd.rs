//! NBD's two phases: a negotiation in any pieces, and requests against any terms.
//!
//! Invariant: whatever a client sends, an answer is bounded by what it sent, and the machine never runs on without input.

use bytes::BytesMut;
use edge_core::nbd::handshake::{Export, Handshake, OPTIONS_MAX, Purpose, Query, Refusal, Step};
use edge_core::nbd::request::{Command, HEADER_LEN, Request, Terms};
use edge_core::nbd::{Access, PAYLOAD_MAX};

const EXPORT_SIZE: u64 = 1 << 30;

/// The first two bytes say into which pieces the rest is cut, and how the server's questions are answered.
pub fn fuzz_handshake(data: &[u8]) {
    let Some(([cut, mood], stream)) = data.split_first_chunk::<2>() else { return };
    let mut out = BytesMut::new();
    let mut handshake = Handshake::begin(&mut out);
    let mut input = BytesMut::new();
    let piece = usize::from(*cut).max(1);
    let (mut questions, mut answered) = (0_u32, 0);
    for part in stream.chunks(piece) {
        input.extend_from_slice(part);
        loop {
            let before = input.len();
            let Ok(step) = handshake.advance(&mut input, &mut out) else { return };
            assert!(input.len() <= before);
            match step {
                Step::Wait => break,
                Step::Begin(terms) => {
                    assert_eq!(terms.size, EXPORT_SIZE);
                    return;
                }
                Step::Close => return,
                Step::Ask(query) => {
                    questions += 1;
                    assert!(questions <= OPTIONS_MAX, "a question needs an option");
                    match answer(&mut handshake, &query, *mood, &mut out) {
                        Some(Step::Wait) => {}
                        Some(_) | None => return,
                    }
                }
            }
        }
        assert!(
            out.len() - answered <= 1 << 20,
            "an answer to {} bytes is {}",
            part.len(),
            out.len()
        );
        answered = out.len();
    }
}

fn answer(handshake: &mut Handshake, query: &Query, mood: u8, out: &mut BytesMut) -> Option<Step> {
    match query {
        Query::List if mood & 1 == 0 => {
            handshake.answer_list(Ok(vec!["demo".to_owned(), String::new()]), out);
            Some(Step::Wait)
        }
        Query::List => {
            handshake.answer_list(Err("no router answers".to_owned()), out);
            Some(Step::Wait)
        }
        Query::Export { name, purpose } => {
            let access = if mood & 2 == 0 { Access::ReadOnly } else { Access::ReadWrite };
            let export = Export {
                name: name.clone(),
                description: "a vDisk".to_owned(),
                size: EXPORT_SIZE,
                access,
            };
            let given = match (mood >> 2 & 3, purpose) {
                (0, Purpose::Open) => Err(Refusal::Denied("held by another edge".to_owned())),
                (1, _) => Err(Refusal::Unknown(name.clone())),
                (2, _) => Err(Refusal::Unavailable("later".to_owned())),
                (_, _) => Ok(export),
            };
            handshake.answer_export(given, out).ok()
        }
    }
}

/// A stream of requests; the first byte is the terms.
pub fn fuzz_request(data: &[u8]) {
    let Some((mood, mut stream)) = data.split_first() else { return };
    let terms = Terms {
        size: EXPORT_SIZE,
        access: if mood & 1 == 0 { Access::ReadWrite } else { Access::ReadOnly },
        structured: mood & 2 == 0,
        block_status: mood & 4 == 0,
    };
    while let Some((header, rest)) = stream.split_first_chunk::<HEADER_LEN>() {
        let Ok(request) = Request::parse(header) else { return };
        match terms.check(&request) {
            Ok(Command::Disconnect) => return,
            Ok(command) => possible(&terms, command),
            Err(_) => {}
        }
        let payload = model::usize_of(request.payload_len().into());
        stream = rest.get(payload..).unwrap_or_default();
    }
}

/// What passed the check lies inside the export and is allowed there.
fn possible(terms: &Terms, command: Command) {
    let inside = |offset: u64, len: u32| {
        assert!(0 < len && offset.checked_add(len.into()).is_some_and(|end| end <= terms.size));
    };
    match command {
        Command::Read { offset, len } => {
            inside(offset, len);
            assert!(len <= PAYLOAD_MAX);
        }
        Command::Write { offset, len, .. } => {
            inside(offset, len);
            assert!(len <= PAYLOAD_MAX && terms.access != Access::ReadOnly);
        }
        Command::Unmap { offset, len, .. } => {
            inside(offset, len);
            assert!(terms.access != Access::ReadOnly);
        }
        Command::BlockStatus { offset, len, .. } => {
            inside(offset, len);
            assert!(terms.block_status);
        }
        Command::Flush | Command::Nothing | Command::Disconnect => {}
    }
}
