//! Ranges of objects out: the core's read plan, carried out against what can be reached now; and what mends objects with
//! the same means: filling holes, rewriting fragments that reads found bad.
//!
//! Invariant: an answer consists of frames that verified; else there is an error, never other bytes (L5).

use std::ops::Range;
use std::rc::Rc;

use alba_proxy_core::health::{Failure, OsdCondition};
use alba_proxy_core::manifest::{Manifest, Place};
use alba_proxy_core::read::{Answer, ColumnState, Fetch, Rank, ReadPlan};
use alba_proxy_core::{fill, upload};
use asd_core::read::{Reading, Want};
use bytes::Bytes;
use codec::{
    DecodeError, Decoder, ErasureCode, FrameTable, Layout, NamespaceKeys, ObjectBinding,
    ObjectSeal, Shape, StoredObject, Vandermonde,
};
use model::{FragmentIndex, Now, ObjectId, ScoNumber};
use sim::Chance;
use wire::asd::PutCondition;

use super::storage::{Attempt, Fill, NAMESPACE, Storage, What};

/// An object as a reader holds it.
pub struct Loaded {
    pub manifest: Manifest,
    table: FrameTable,
    layout: Layout,
    code: Vandermonde,
    seal: ObjectSeal,
}

impl Loaded {
    fn new(manifest: Manifest, keys: &NamespaceKeys) -> Self {
        let table = FrameTable::decode(&manifest.frame_table).expect("we made it");
        let policy = manifest.policy;
        let layout = Layout::new(&table, policy.k()).expect("we made it");
        let object = manifest.object.to_bytes();
        let binding = ObjectBinding { object: &object, attempt: manifest.attempt.0.to_be_bytes() };
        let seal = ObjectSeal::for_table(keys, &table, &binding).expect("a short id");
        let shape = Shape::new(policy.k(), policy.m()).expect("a policy is a shape");
        Self { manifest, table, layout, code: Vandermonde::new(shape), seal }
    }

    /// Verifies and decodes neighbouring frames that lie one behind the other.
    fn decode(
        &self,
        decoder: &mut Decoder,
        frames: Range<u32>,
        stored: &[u8],
    ) -> Result<Vec<u8>, DecodeError> {
        let mut plain = Vec::new();
        let mut from = 0;
        for frame in frames.filter_map(|frame| self.table.frame(frame)) {
            let end = from + frame.stored_len as usize;
            let to = plain.len();
            plain.resize(to + frame.plain_len as usize, 0);
            let bytes = stored.get(from..end).ok_or(DecodeError::Mismatch)?;
            decoder.decode_frame(&self.seal, &frame, bytes, &mut plain[to..])?;
            from = end;
        }
        Ok(plain)
    }
}

/// Why there is no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Too little can be reached now.
    Now,
    /// Every fragment was looked at, and fewer than k are sound.
    Lost(ObjectId),
}

/// A range of a fragment that is wanted.
struct Wanted {
    fragment: u8,
    range: Range<u32>,
    others_only: bool,
}

enum Column {
    Direct(Bytes),
    Rebuild(Vec<(u8, Bytes)>),
    Lost,
}

/// Neighbouring frames that lie one behind the other in one fragment.
struct Piece {
    frames: Range<u32>,
    fragment: u8,
    stored: Range<u32>,
}

enum Fetched {
    Good(Bytes),
    Bad,
    /// No answer: nothing is said about the fragment.
    Silent,
}

impl Storage {
    /// Bytes of an object, for the router.
    pub fn read(&mut self, number: ScoNumber, from: u64, len: u32) -> Result<Bytes, Unreadable> {
        let object = self.register.by_number[&number];
        let usable = |at: &usize| self.reach.router[*at] && self.proxies[*at].is_some();
        let order = [self.favourite, 1 - self.favourite];
        let Some(proxy) = order.into_iter().find(usable) else {
            self.counts.count("read: no proxy can be reached");
            return Err(Unreadable::Now);
        };
        let from = u32::try_from(from).expect("objects are small");
        let answer = self.read_object(proxy, object, from..from + len);
        if let Err(Unreadable::Lost(object)) = answer {
            self.lost = Some(object);
        }
        answer
    }

    /// The manifest as the proxy remembers it, else as arakoon has it.
    fn loaded(&mut self, proxy: usize, object: ObjectId) -> Option<Rc<Loaded>> {
        let remembered = self.proxies[proxy].as_ref()?.loaded.get(&object);
        remembered.map(Rc::clone).or_else(|| self.loaded_anew(proxy, object))
    }

    fn loaded_anew(&mut self, proxy: usize, object: ObjectId) -> Option<Rc<Loaded>> {
        let manifest = self.look_up(proxy, object)?;
        let loaded = Rc::new(Loaded::new(manifest, &self.keys));
        self.proxies[proxy].as_mut()?.loaded.insert(object, Rc::clone(&loaded));
        Some(loaded)
    }

    fn read_object(
        &mut self,
        proxy: usize,
        object: ObjectId,
        range: Range<u32>,
    ) -> Result<Bytes, Unreadable> {
        let loaded = self.loaded(proxy, object).ok_or(Unreadable::Now)?;
        match self.read_range(proxy, &loaded, range.clone()) {
            Ok(bytes) => Ok(bytes),
            // The places may have changed since: only a fresh manifest may call an object lost.
            Err(_) => {
                let fresh = self.loaded_anew(proxy, object).ok_or(Unreadable::Now)?;
                self.read_range(proxy, &fresh, range)
            }
        }
    }

    fn read_range(
        &mut self,
        proxy: usize,
        loaded: &Rc<Loaded>,
        range: Range<u32>,
    ) -> Result<Bytes, Unreadable> {
        let size = loaded.table.frame_size().bytes();
        let frames = range.start / size..range.end.div_ceil(size);
        let mut plain = Vec::with_capacity(range.len());
        for piece in pieces(loaded, frames) {
            let bytes = match self.read_piece(proxy, loaded, &piece) {
                Some(bytes) => bytes,
                None => self.salvage(proxy, loaded, &piece)?,
            };
            let start = piece.frames.start * size;
            let from = range.start.max(start) - start;
            let to = (range.end - start).min(u32::try_from(bytes.len()).expect("small"));
            plain.extend_from_slice(&bytes[from as usize..to as usize]);
        }
        Ok(Bytes::from(plain))
    }

    fn read_piece(&mut self, proxy: usize, loaded: &Rc<Loaded>, piece: &Piece) -> Option<Vec<u8>> {
        for others_only in [false, true] {
            let (fragment, range) = (piece.fragment, piece.stored.clone());
            let (column, _) = self.gather(proxy, loaded, &Wanted { fragment, range, others_only });
            let (stored, how) = match column {
                Column::Direct(stored) => (stored.to_vec(), "read: direct"),
                Column::Rebuild(sources) => {
                    let mut stored = vec![0; piece.stored.len()];
                    let want = &mut [(piece.fragment, &mut stored[..])];
                    let rebuilt =
                        loaded.code.reconstruct(piece.stored.len(), &borrowed(&sources), want);
                    if rebuilt.is_err() {
                        continue;
                    }
                    (stored, "read: rebuilt from others")
                }
                Column::Lost => continue,
            };
            match loaded.decode(&mut self.decoder, piece.frames.clone(), &stored) {
                Ok(plain) => {
                    self.counts.count(how);
                    return Some(plain);
                }
                Err(error) => assert!(error.is_damage(), "{error}"),
            }
        }
        None
    }

    /// The last resort: all fragments whole, those that aren't as the manifest says left out.
    fn salvage(
        &mut self,
        proxy: usize,
        loaded: &Rc<Loaded>,
        piece: &Piece,
    ) -> Result<Vec<u8>, Unreadable> {
        let manifest = &loaded.manifest;
        let mut fragments = Vec::new();
        let mut silent = false;
        for (fragment, record) in (0_u8..).zip(&manifest.fragments) {
            let fetched = match record.place {
                Place::Stored(osd) => {
                    let range = 0..record.len;
                    self.fetch(proxy, loaded, &Fetch { column: 0, fragment, osd, range })
                }
                Place::Hole | Place::Empty => Fetched::Bad,
            };
            silent |= matches!(fetched, Fetched::Silent);
            fragments.push(match fetched {
                Fetched::Good(bytes) => Some(bytes),
                Fetched::Bad | Fetched::Silent => None,
            });
        }
        let crcs: Vec<u32> = manifest.fragments.iter().map(|record| record.crc).collect();
        let stored = StoredObject {
            table: &loaded.table,
            layout: &loaded.layout,
            fragments: &fragments,
            fragment_crcs: &crcs,
        };
        let size = loaded.table.frame_size().bytes();
        let end = (piece.frames.end * size).min(loaded.table.plain_len());
        let range = piece.frames.start * size..end;
        match self.decoder.decode(&loaded.seal, &stored, &loaded.code, range) {
            Ok(plain) => {
                self.counts.count("read: salvaged");
                Ok(plain)
            }
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                self.counts.count("read: unreadable now");
                Err(if silent { Unreadable::Now } else { Unreadable::Lost(manifest.object) })
            }
        }
    }

    /// Carries a read plan out for one column; and whether nobody was silent.
    fn gather(&mut self, proxy: usize, loaded: &Rc<Loaded>, want: &Wanted) -> (Column, bool) {
        let process = self.proxies[proxy].as_ref().expect("it reads");
        let rank = |osd| match process.health.condition(osd) {
            OsdCondition::Ok | OsdCondition::Full => Rank::Good,
            OsdCondition::Suspect => Rank::Doubtful,
            OsdCondition::Down => Rank::Down,
        };
        let columns = [(want.fragment, want.range.clone())];
        let mut plan = ReadPlan::new(&loaded.manifest, &columns, rank);
        let mut open = Vec::new();
        if want.others_only {
            open.extend(plan.answered(0, want.fragment, Answer::Bad));
        }
        open.extend(plan.start());
        let mut found: Vec<(u8, Bytes)> = Vec::new();
        let mut all_answered = true;
        while !plan.is_settled() {
            if self.random.happens(Chance::percent(2)) {
                self.counts.count("read: others asked too, for slowness");
                open.extend(plan.hedge());
            }
            let fetch = open.swap_remove(self.random.index(open.len()));
            let answer = match self.fetch(proxy, loaded, &fetch) {
                Fetched::Good(bytes) => {
                    found.push((fetch.fragment, bytes));
                    Answer::Good
                }
                Fetched::Bad => Answer::Bad,
                Fetched::Silent => {
                    all_answered = false;
                    Answer::Bad
                }
            };
            open.extend(plan.answered(0, fetch.fragment, answer));
        }
        let of = |at: u8| found.iter().find(|(fragment, _)| *fragment == at);
        let column = match plan.state(0) {
            ColumnState::Direct => {
                of(want.fragment).map_or(Column::Lost, |(_, bytes)| Column::Direct(bytes.clone()))
            }
            ColumnState::Rebuild(sources) => {
                let bytes = |at| of(at).map(|(_, bytes)| bytes.clone()).unwrap_or_default();
                Column::Rebuild(sources.into_iter().map(|at| (at, bytes(at))).collect())
            }
            ColumnState::Pending | ColumnState::Lost => Column::Lost,
        };
        (column, all_answered)
    }

    fn fetch(&mut self, proxy: usize, loaded: &Rc<Loaded>, fetch: &Fetch) -> Fetched {
        let at = self.index_of(fetch.osd);
        let asd = &self.asds[at];
        let index = FragmentIndex::new(fetch.fragment).expect("below 32");
        let key = loaded.manifest.key_of(NAMESPACE, index).to_bytes();
        let want = Want { offset: fetch.range.start, len: fetch.range.end - fetch.range.start };
        if asd.has_refused() {
            return Fetched::Bad;
        }
        let reading = if self.reach.asds[proxy][at] { asd.read(&key, want) } else { None };
        let record = loaded.manifest.fragments[usize::from(fetch.fragment)];
        let damage = match reading {
            None => {
                let process = self.proxies[proxy].as_mut().expect("it reads");
                let now = Now::default();
                process.health.failure(fetch.osd, Failure::Unreachable, now, 0);
                return Fetched::Silent;
            }
            Some(Reading::Found { bytes, .. }) => {
                let whole = fetch.range == (0..record.len);
                if !whole || codec::crc32c(&bytes) == record.crc {
                    return Fetched::Good(bytes);
                }
                "read: fragment isn't the one meant"
            }
            Some(Reading::Absent) => "read: fragment missing",
            Some(Reading::OutOfRange { .. } | Reading::Elsewhere | Reading::Corrupt { .. }) => {
                "read: fragment damaged"
            }
        };
        self.counts.count(damage);
        assert!(
            self.asds[at].unlucky,
            "{damage}: {} of {} on {}, an honest disk",
            fetch.fragment, loaded.manifest.object, fetch.osd
        );
        self.note_repair(proxy, loaded.manifest.object, fetch.fragment);
        Fetched::Bad
    }

    /// Whole fragments, rebuilt from k others and checked against the manifest.
    fn rebuild_whole(
        &mut self,
        proxy: usize,
        loaded: &Rc<Loaded>,
        missing: &[u8],
    ) -> Option<Vec<(u8, Bytes)>> {
        let range = 0..loaded.manifest.stripe_len;
        let want = Wanted { fragment: *missing.first()?, range, others_only: true };
        let (Column::Rebuild(sources), _) = self.gather(proxy, loaded, &want) else { return None };
        let records = &loaded.manifest.fragments;
        let empty = |at: &u8| vec![0; records[usize::from(*at)].len as usize];
        let mut rebuilt: Vec<Vec<u8>> = missing.iter().map(empty).collect();
        let mut wants: Vec<(u8, &mut [u8])> =
            missing.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
        let stripe_len = loaded.manifest.stripe_len as usize;
        loaded.code.reconstruct(stripe_len, &borrowed(&sources), &mut wants).ok()?;
        let sound = |(at, bytes): (&u8, Vec<u8>)| {
            let right = codec::crc32c(&bytes) == records[usize::from(*at)].crc;
            right.then(|| (*at, Bytes::from(bytes)))
        };
        missing.iter().zip(rebuilt).map(sound).collect()
    }

    /// One repair and one object with holes, as the proxy's background does.
    pub fn maintain(&mut self, proxy: usize, now: Now) {
        let Some(process) = &mut self.proxies[proxy] else { return };
        if let Some((object, fragment)) = process.repairs.pop_front() {
            self.repair(proxy, object, fragment, now);
        }
        let holed = self.register.manifests.values().filter(|manifest| 0 < manifest.holes());
        let holed: Vec<ObjectId> = holed.map(|manifest| manifest.object).collect();
        if let Some(object) = self.random.pick(&holed).copied() {
            self.fill(proxy, object, now);
        }
    }

    fn repair(&mut self, proxy: usize, object: ObjectId, fragment: u8, now: Now) {
        let Some(loaded) = self.loaded_anew(proxy, object) else { return };
        let Place::Stored(osd) = loaded.manifest.fragments[usize::from(fragment)].place else {
            return;
        };
        if !self.proxies[proxy].as_ref().is_some_and(|process| process.health.writable(osd)) {
            return;
        }
        let Some(rebuilt) = self.rebuild_whole(proxy, &loaded, &[fragment]) else { return };
        let attempt = Attempt { object, attempt: loaded.manifest.attempt };
        self.counts.count("repair: fragment rebuilt");
        for (fragment, bytes) in rebuilt {
            let index = FragmentIndex::new(fragment).expect("below 32");
            let what = What::Repair(attempt, upload::Put { index, osd });
            self.send_fragment(proxy, what, (bytes, PutCondition::Always), now);
        }
    }

    fn fill(&mut self, proxy: usize, object: ObjectId, now: Now) {
        let Some(loaded) = self.loaded_anew(proxy, object) else { return };
        let attempt = Attempt { object, attempt: loaded.manifest.attempt };
        let process = self.proxies[proxy].as_ref().expect("it just loaded");
        if process.fills.contains_key(&attempt) {
            return;
        }
        let seed = self.random.u64();
        let puts = fill::plan(&loaded.manifest, &self.candidates(proxy), seed);
        let missing: Vec<u8> = puts.iter().map(|put| put.index.get()).collect();
        let Some(rebuilt) = self.rebuild_whole(proxy, &loaded, &missing) else { return };
        let stored = Vec::new();
        let fill = Fill { waiting: puts.iter().copied().collect(), stored };
        self.proxies[proxy].as_mut().expect("it just loaded").fills.insert(attempt, fill);
        for (fragment, bytes) in rebuilt {
            let put = puts.iter().find(|put| put.index.get() == fragment).expect("asked for");
            let what = What::Fill(attempt, *put);
            self.send_fragment(proxy, what, (bytes, PutCondition::Always), now);
        }
    }

    /// A put into a hole was answered.
    pub fn filled(
        &mut self,
        proxy: usize,
        attempt: Attempt,
        (put, stored): (upload::Put, bool),
        now: Now,
    ) {
        let Some(process) = &mut self.proxies[proxy] else { return };
        let Some(fill) = process.fills.get_mut(&attempt) else { return };
        fill.waiting.remove(&put);
        if stored {
            fill.stored.push(put);
        }
        if fill.waiting.is_empty() {
            let fill = process.fills.remove(&attempt).expect("just found");
            if !fill.stored.is_empty() {
                self.counts.count("fill: holes filled");
                self.record_places(proxy, attempt, fill.stored, now);
            }
        }
    }
}

fn borrowed(sources: &[(u8, Bytes)]) -> Vec<(u8, &[u8])> {
    sources.iter().map(|(fragment, bytes)| (*fragment, bytes.as_ref())).collect()
}

fn pieces(loaded: &Loaded, frames: Range<u32>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for frame in frames {
        let place = loaded.layout.place(frame).expect("a frame of the table has a place");
        let end = place.offset + place.stored_len;
        match pieces.last_mut() {
            Some(piece)
                if piece.fragment == place.fragment
                    && piece.frames.end == frame
                    && piece.stored.end == place.offset =>
            {
                piece.frames.end = frame + 1;
                piece.stored.end = end;
            }
            Some(_) | None => pieces.push(Piece {
                frames: frame..frame + 1,
                fragment: place.fragment,
                stored: place.offset..end,
            }),
        }
    }
    pieces
}
