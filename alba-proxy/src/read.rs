//! Ranges of an object out: which frames, which bytes of which fragments, verified and put together.
//!
//! ```text
//! ranges ─▶ frames ─▶ columns (neighbouring frames of one fragment) ─▶ gather ─▶ decode ─▶ slices of the answer
//!                                      ▲ a column that doesn't verify is rebuilt ◀┘
//! ```
//!
//! When even a rebuilt column doesn't verify, some source lies: then all fragments are fetched whole and the liars are
//! found by the manifest's checksums ([`Proxy::salvage`]).
//!
//! Invariant: an answer consists of bytes whose frame verified; else there is an error, never zeroes (L5).

use crate::error::ProxyError;
use crate::gather::{Column, Damage, Trust, Want};
use crate::object::Loaded;
use crate::proxy::Proxy;
use bytes::Bytes;
use codec::{Decoder, ErasureCode, StoredObject};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::asd::Priority;
use wire::common::Severity;
use wire::proxy::{RANGES_MAX, ReadDone, ReadObject};

/// Bytes in one answer.
const ANSWER_MAX: u64 = 64 << 20;

/// Neighbouring frames that lie one behind the other in one fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub frames: Range<u32>,
    pub fragment: u8,
    pub stored: Range<u32>,
}

/// How long a read may take: until when, and after which silence of an OSD others are asked too.
pub type Patience = (Instant, Duration);

/// What a column's bytes turned out to be.
enum Decoded {
    Plain(Vec<u8>),
    /// They don't verify.
    Damaged,
}

impl Proxy {
    pub async fn read_object(
        self: &Arc<Self>,
        request: &ReadObject,
        patience: Patience,
    ) -> Result<(ReadDone, Vec<Bytes>), ProxyError> {
        check_ranges(&request.ranges)?;
        let (object, (deadline, _)) = (request.object, patience);
        let namespace = self.namespace(request.namespace, deadline).await?;
        let cached = self.manifests.get(&(request.namespace, object));
        let known = cached.is_some();
        let mut loaded = match cached {
            Some(loaded) => loaded,
            None => self.fresh_object(&namespace, object, deadline).await?,
        };
        let mut answer = self.read_ranges(&loaded, &request.ranges, patience).await;
        if known && matches!(answer, Err(ProxyError::Unreadable { .. })) {
            // The places may have changed since: only a fresh manifest may call an object lost.
            let fresh = self.fresh_object(&namespace, object, deadline).await?;
            if fresh.record != loaded.record {
                loaded = fresh;
                answer = self.read_ranges(&loaded, &request.ranges, patience).await;
            }
        }
        match &answer {
            Ok(_) => self.note_found(request),
            Err(ProxyError::Unreadable { problem, .. }) => {
                if self.counters.lost((request.namespace, object), problem) {
                    tracing::error!(%object, problem, "an object is LOST unless its OSDs come back");
                    let text = format!("object {object}: {problem}");
                    self.osds.events.note(Severity::Error, "object-lost", &text);
                }
            }
            Err(_) => {}
        }
        answer
    }

    /// A read has a good answer.
    pub fn note_found(&self, request: &ReadObject) {
        let object = request.object;
        self.counters.reads.add(1);
        if self.counters.found((request.namespace, object)) {
            tracing::info!(%object, "a lost object can be read again");
            let text = format!("object {object} can be read again");
            self.osds.events.note(Severity::Info, "object-found", &text);
        }
    }

    async fn read_ranges(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        ranges: &[(u64, u32)],
        patience: Patience,
    ) -> Result<(ReadDone, Vec<Bytes>), ProxyError> {
        let frames = frames_of(loaded, ranges)?;
        let pieces = pieces_of(loaded, &frames);
        let plain = self.read_pieces(loaded, &pieces, patience).await?;
        let first_bytes = pieces.iter().map(|piece| first_byte(loaded, piece));
        let parts: Vec<(u64, Bytes)> = first_bytes.zip(plain).collect();
        Ok(assemble(&parts, ranges))
    }

    async fn read_pieces(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        pieces: &[Piece],
        patience: Patience,
    ) -> Result<Vec<Bytes>, ProxyError> {
        let mut plain: Vec<Option<Bytes>> = vec![None; pieces.len()];
        let mut degraded = false;
        // First as they lie; what then doesn't verify, from the others. The other way round for who has waited already.
        let mut order = [Trust::Own, Trust::OthersOnly];
        if patience.1.is_zero() {
            order.reverse();
        }
        for trust in order {
            let open: Vec<usize> = (0..pieces.len()).filter(|at| plain[*at].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let want = |at: &usize| Want {
                fragment: pieces[*at].fragment,
                range: pieces[*at].stored.clone(),
                trust,
            };
            let wants: Vec<Want> = open.iter().map(want).collect();
            let columns = self.gather(loaded, &wants, Priority::Client, patience).await;
            for (at, column) in open.into_iter().zip(columns) {
                degraded |= matches!(column, Column::Rebuild(_));
                let direct = matches!(column, Column::Direct(_));
                match self.decode_column(loaded, &pieces[at], column).await? {
                    Decoded::Plain(bytes) => plain[at] = Some(Bytes::from(bytes)),
                    Decoded::Damaged if direct => {
                        let (fragment, corrupt) = (pieces[at].fragment, Damage::Corrupt);
                        self.note_damage(loaded, fragment, corrupt, Priority::Client);
                    }
                    // Nobody knows which source lies.
                    Decoded::Damaged => plain[at] = None,
                }
            }
        }
        if degraded {
            self.counters.degraded_reads.add(1);
            tracing::debug!(object = %loaded.manifest.object, "degraded read");
        }
        if plain.iter().any(Option::is_none) {
            return self.salvage(loaded, pieces, patience).await;
        }
        Ok(plain.into_iter().flatten().collect())
    }

    async fn decode_column(
        &self,
        loaded: &Arc<Loaded>,
        piece: &Piece,
        column: Column,
    ) -> Result<Decoded, ProxyError> {
        let len = piece.stored.len();
        let (piece, loaded_here) = (piece.clone(), Arc::clone(loaded));
        let job = move |decoder: &mut Decoder| match column {
            Column::Direct(stored) => decode_piece(decoder, &loaded_here, &piece, &stored),
            Column::Rebuild(sources) => {
                let stored = rebuild(&loaded_here, &piece, &sources)?;
                decode_piece(decoder, &loaded_here, &piece, &stored)
            }
            Column::Lost => Err(codec::ErasureError::NotEnough {
                have: 0,
                need: usize::from(loaded_here.manifest.policy.k()),
            }
            .into()),
        };
        match self.workers.decode(len, job).await {
            Ok(plain) => Ok(Decoded::Plain(plain)),
            Err(error) if error.is_damage() => Ok(Decoded::Damaged),
            Err(error) => Err(ProxyError::broken(loaded.manifest.object, error)),
        }
    }

    /// The last resort: all fragments whole, those that aren't as the manifest says left out.
    async fn salvage(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        pieces: &[Piece],
        patience: Patience,
    ) -> Result<Vec<Bytes>, ProxyError> {
        let manifest = &loaded.manifest;
        let wants: Vec<Want> = (0_u8..)
            .zip(&manifest.fragments)
            .map(|(fragment, record)| Want { fragment, range: 0..record.len, trust: Trust::Own })
            .collect();
        let columns = self.gather(loaded, &wants, Priority::Client, patience).await;
        let fragments: Vec<Option<Bytes>> = columns
            .into_iter()
            .map(|column| match column {
                Column::Direct(bytes) => Some(bytes),
                Column::Rebuild(_) | Column::Lost => None,
            })
            .collect();
        let empty = manifest.fragments.iter().filter(|record| record.len == 0).count();
        let have = fragments.iter().flatten().count() + empty;
        let need = manifest.policy.k();
        let ranges: Vec<Range<u32>> =
            pieces.iter().map(|piece| plain_range(loaded, &piece.frames)).collect();
        let here = Arc::clone(loaded);
        let job = move |decoder: &mut Decoder| {
            let crcs: Vec<u32> = here.manifest.fragments.iter().map(|record| record.crc).collect();
            let stored = StoredObject {
                table: &here.table,
                layout: &here.layout,
                fragments: &fragments,
                fragment_crcs: &crcs,
            };
            ranges
                .into_iter()
                .map(|range| decoder.decode(&here.seal, &stored, &here.code, range))
                .collect::<Result<Vec<Vec<u8>>, _>>()
        };
        match self.workers.decode(usize::MAX, job).await {
            Ok(plain) => Ok(plain.into_iter().map(Bytes::from).collect()),
            Err(error) if error.is_damage() => Err(ProxyError::Unreadable {
                object: manifest.object,
                problem: format!("{have} sound fragments can be read, {need} are needed ({error})"),
            }),
            Err(error) => Err(ProxyError::broken(manifest.object, error)),
        }
    }
}

/// Verifies and decodes the piece's stored bytes.
pub fn decode_piece(
    decoder: &mut Decoder,
    loaded: &Loaded,
    piece: &Piece,
    stored: &[u8],
) -> Result<Vec<u8>, codec::DecodeError> {
    loaded.decode_frames(decoder, piece.frames.clone(), stored)
}

/// Where the piece's plain bytes begin in the object.
pub fn first_byte(loaded: &Loaded, piece: &Piece) -> u64 {
    u64::from(piece.frames.start) * u64::from(loaded.table.frame_size().bytes())
}

/// The piece's stored bytes from the same range of others.
fn rebuild(
    loaded: &Loaded,
    piece: &Piece,
    sources: &[(u8, Bytes)],
) -> Result<Vec<u8>, codec::ErasureError> {
    let have: Vec<(u8, &[u8])> =
        sources.iter().map(|(fragment, bytes)| (*fragment, bytes.as_ref())).collect();
    let mut stored = vec![0; piece.stored.len()];
    let len = stored.len();
    loaded.code.reconstruct(len, &have, &mut [(piece.fragment, &mut stored)])?;
    Ok(stored)
}

pub fn check_ranges(ranges: &[(u64, u32)]) -> Result<(), ProxyError> {
    let total: u64 = ranges.iter().map(|(_, len)| u64::from(*len)).sum();
    if ranges.len() > RANGES_MAX || total > ANSWER_MAX {
        return Err(ProxyError::BadRequest(format!(
            "{} ranges of {total} bytes: at most {RANGES_MAX} of {ANSWER_MAX}",
            ranges.len()
        )));
    }
    Ok(())
}

/// Every frame that a range touches, once.
fn frames_of(loaded: &Loaded, ranges: &[(u64, u32)]) -> Result<BTreeSet<u32>, ProxyError> {
    let plain_len = loaded.manifest.plain_len;
    let size = u64::from(loaded.table.frame_size().bytes());
    let mut frames = BTreeSet::new();
    for (offset, len) in ranges {
        let end = offset.checked_add(u64::from(*len)).filter(|end| *end <= plain_len);
        let Some(end) = end else {
            let object = loaded.manifest.object;
            return Err(ProxyError::BadRequest(format!(
                "{len} bytes at {offset} of {object}, which has {plain_len}"
            )));
        };
        if *len > 0 {
            for frame in offset / size..end.div_ceil(size) {
                frames.insert(u32::try_from(frame).expect("frames of an object fit"));
            }
        }
    }
    Ok(frames)
}

impl Piece {
    /// From the first to the last frame of these ranges, when all lie one behind the other in one fragment; a gap
    /// between ranges is taken along.
    pub fn around(loaded: &Loaded, ranges: &[(u64, u32)]) -> Option<Self> {
        let size = u64::from(loaded.table.frame_size().bytes());
        let (mut start, mut end) = (u64::MAX, 0);
        for (offset, len) in ranges {
            let to = offset.checked_add(u64::from(*len))?;
            if *len == 0 || to > loaded.manifest.plain_len {
                return None;
            }
            (start, end) = (start.min(offset / size), end.max(to.div_ceil(size)));
        }
        let frames = u32::try_from(start).ok()?..u32::try_from(end).ok()?;
        let first = loaded.layout.place(frames.start)?;
        let last = loaded.layout.place(frames.end.checked_sub(1)?)?;
        let stored = first.offset..last.offset + last.stored_len;
        (first.fragment == last.fragment).then_some(Self {
            frames,
            fragment: first.fragment,
            stored,
        })
    }
}

fn pieces_of(loaded: &Loaded, frames: &BTreeSet<u32>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for frame in frames {
        let place = loaded.layout.place(*frame).expect("a frame of the table has a place");
        let end = place.offset + place.stored_len;
        match pieces.last_mut() {
            Some(piece)
                if piece.fragment == place.fragment
                    && piece.frames.end == *frame
                    && piece.stored.end == place.offset =>
            {
                piece.frames.end = frame + 1;
                piece.stored.end = end;
            }
            Some(_) | None => pieces.push(Piece {
                frames: *frame..frame + 1,
                fragment: place.fragment,
                stored: place.offset..end,
            }),
        }
    }
    pieces
}

fn plain_range(loaded: &Loaded, frames: &Range<u32>) -> Range<u32> {
    let size = loaded.table.frame_size().bytes();
    frames.start * size..(frames.end * size).min(loaded.table.plain_len())
}

/// Slices of the decoded parts, range by range, without joining them; and each range's checksum.
pub fn assemble(parts: &[(u64, Bytes)], ranges: &[(u64, u32)]) -> (ReadDone, Vec<Bytes>) {
    let mut payload = Vec::with_capacity(ranges.len());
    let mut checksums = Vec::with_capacity(ranges.len());
    for (offset, len) in ranges {
        let end = offset + u64::from(*len);
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let first =
            parts.partition_point(|(start, bytes)| start + model::u64_of(bytes.len()) <= *offset);
        for (start, bytes) in &parts[first..] {
            if *start >= end {
                break;
            }
            let from = model::usize_of(offset.saturating_sub(*start));
            let to = model::usize_of((end - start).min(model::u64_of(bytes.len())));
            let slice = bytes.slice(from..to);
            digest.update(&slice);
            payload.push(slice);
        }
        let sum = u32::try_from(digest.finalize()).expect("a 32-bit checksum fits in 32 bits");
        checksums.push(sum);
    }
    (ReadDone { checksums }, payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_cut_from_the_parts_that_cover_them(
            ranges in proptest::collection::vec((0..300_u64, 0..100_u32), 1..6),
            cuts in proptest::collection::btree_set(1..400_u64, 0..6),
        ) {
            let plain: Vec<u8> = (0..400_u16).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut borders: Vec<u64> = cuts.into_iter().collect();
            borders.insert(0, 0);
            borders.push(400);
            let parts: Vec<(u64, Bytes)> = borders
                .windows(2)
                .map(|w| {
                    let range = model::usize_of(w[0])..model::usize_of(w[1]);
                    (w[0], Bytes::copy_from_slice(&plain[range]))
                })
                .collect();
            let (done, payload) = assemble(&parts, &ranges);
            let want: Vec<u8> = ranges
                .iter()
                .flat_map(|(at, len)| plain[model::usize_of(*at)..][..model::usize_of((*len).into())].to_vec())
                .collect();
            prop_assert_eq!(payload.concat(), want);
            for ((at, len), sum) in ranges.iter().zip(&done.checksums) {
                let bytes = &plain[model::usize_of(*at)..][..model::usize_of((*len).into())];
                prop_assert_eq!(codec::crc32c(bytes), *sum);
            }
        }
    }
}
