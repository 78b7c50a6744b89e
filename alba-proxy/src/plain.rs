//! The plain case of a read: frames one behind the other in one fragment, whose OSD is well. Nearly every small read of a
//! healthy backend is this, so it goes without a plan, a timer or a task of its own, and with others to the same OSD in
//! one call ([`Line`]).
//!
//! ```text
//! request ─ plain? ─▶ line of its OSD ─▶ one get for all that wait ─▶ verify, decode, answer
//!              │ no                                 │ silent, failed, absent, corrupt, not genuine
//!              └────────────▶ the way of `read`, which knows the other fragments ◀┘
//! ```
//!
//! Whatever isn't a verified answer sends that read, and only that one, the general way from the start: it asks the OSD
//! again, and there damage is noted and rebuilt. Reads that waited [`HEDGE_AFTER`], and those that the OSD says are damaged,
//! are asked of the others first: a slow OSD isn't asked twice, and damage that an OSD found is counted once.
//!
//! Invariant: what is answered here was verified by the OSD's checksum and by the frames' own protection (L5); a read is
//! in a line, in one call, or on the general way, and is answered once.

use crate::gather::{Damage, HEDGE_AFTER};
use crate::object::Loaded;
use crate::osds::{Got, Wanted};
use crate::proxy::Proxy;
use crate::read::{Piece, assemble, check_ranges, decode_piece, first_byte};
use alba_proxy_core::Place;
use alba_proxy_core::line::{Line, Next};
use alba_proxy_core::read::Rank;
use bytes::Bytes;
use model::OsdId;
use runtime::rpc::Responder;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use wire::WireError;
use wire::asd::Priority;
use wire::proxy::ReadObject;

/// Stored bytes of a stretch: longer ones gain nothing from company.
const STRETCH_MAX: usize = 32 << 10;
/// Frames of a stretch: however well they are compressed, they are decoded on the proxy's loop.
const FRAMES_MAX: usize = 4;

/// A read as it was asked for.
pub struct Ask {
    pub request: ReadObject,
    pub deadline: Instant,
    pub responder: Responder,
}

/// A read that waits for one OSD.
struct Plain {
    ask: Ask,
    came: Instant,
    stretch: Stretch,
}

/// What it needs: one piece of one fragment.
struct Stretch {
    loaded: Arc<Loaded>,
    piece: Piece,
    osd: OsdId,
}

/// The lines before all OSDs: as many as there ever were OSDs.
#[derive(Default)]
pub struct Lines(Mutex<BTreeMap<OsdId, Line<Plain>>>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<OsdId, Line<Plain>>> {
        // A line changes in single steps, so a panic elsewhere leaves a usable one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Answers a read, whichever way.
    pub fn read(self: &Arc<Self>, ask: Ask) {
        match self.stretch_of(&ask.request) {
            Some(stretch) => {
                let osd = stretch.osd;
                let plain = Plain { ask, came: Instant::now(), stretch };
                let next = self.lines.lock().entry(osd).or_default().push(plain);
                match next {
                    // It runs after what is being done now, and takes along what that still puts in line.
                    Next::Begin => drop(tokio::spawn(Arc::clone(self).call(osd))),
                    Next::Nothing => {}
                }
            }
            None => self.read_anyhow(ask, HEDGE_AFTER),
        }
    }

    /// The general way, as a task of its own.
    fn read_anyhow(self: &Arc<Self>, ask: Ask, hedge_after: Duration) {
        let proxy = Arc::clone(self);
        tokio::spawn(async move {
            let Ask { request, deadline, responder } = ask;
            match proxy.read_object(&request, (deadline, hedge_after)).await {
                Ok((done, payload)) => responder.reply_parts(&done, payload),
                Err(error) => responder.fail(WireError::from(error)),
            }
        });
    }

    /// `None`: it isn't the plain case, or not for sure.
    fn stretch_of(&self, request: &ReadObject) -> Option<Stretch> {
        check_ranges(&request.ranges).ok()?;
        self.namespaces.get(request.namespace)?;
        let loaded = self.manifests.get(&(request.namespace, request.object))?;
        let piece = Piece::around(&loaded, &request.ranges)?;
        let Place::Stored(osd) = loaded.manifest.fragments[usize::from(piece.fragment)].place
        else {
            return None;
        };
        let is_short = piece.stored.len() <= STRETCH_MAX && piece.frames.len() <= FRAMES_MAX;
        let is_plain = is_short && self.osds.rank(osd) == Rank::Good;
        is_plain.then_some(Stretch { loaded, piece, osd })
    }

    /// One get for what waits for this OSD.
    async fn call(self: Arc<Self>, osd: OsdId) {
        let reads = self.lines.lock().entry(osd).or_default().take();
        let Some(first) = reads.first() else { return };
        let hedge_at = first.came + HEDGE_AFTER;
        let wanted: Vec<Wanted> = reads.iter().map(|read| read.stretch.wanted()).collect();
        let get = self.osds.get(osd, &wanted, Priority::Client);
        tokio::pin!(get);
        let in_time = tokio::time::timeout_at(hedge_at, &mut get).await;
        match in_time {
            Ok(Ok(answers)) => {
                for (read, got) in reads.into_iter().zip(answers) {
                    self.answer(read, got);
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%osd, %error, "fragments can't be read from an OSD");
                for read in reads {
                    self.read_anyhow(read.ask, HEDGE_AFTER);
                }
            }
            Err(_) => {
                for read in reads {
                    self.read_anyhow(read.ask, Duration::ZERO);
                }
                // How it ends still tells of the OSD's health.
                let _ = get.await;
            }
        }
    }

    fn answer(self: &Arc<Self>, read: Plain, got: Got) {
        if matches!(got, Got::Corrupt) {
            return self.read_round(read);
        }
        let Plain { ask, stretch, .. } = read;
        if ask.responder.is_gone() {
            return;
        }
        match self.decoded(&stretch, got) {
            Some(plain) => {
                let part = (first_byte(&stretch.loaded, &stretch.piece), plain);
                let (done, payload) = assemble(&[part], &ask.request.ranges);
                self.note_found(&ask.request);
                ask.responder.reply_parts(&done, payload);
            }
            None => self.read_anyhow(ask, HEDGE_AFTER),
        }
    }

    /// The OSD knows that what it has is bad, and counted it: it is noted here and rebuilt from the others. Asked again,
    /// the OSD would count the same damage twice.
    fn read_round(self: &Arc<Self>, read: Plain) {
        let Plain { ask, stretch, .. } = read;
        let Stretch { loaded, piece, .. } = &stretch;
        self.note_damage(loaded, piece.fragment, Damage::Corrupt, Priority::Client);
        if !ask.responder.is_gone() {
            self.read_anyhow(ask, Duration::ZERO);
        }
    }

    /// `None`: the OSD hasn't it, or what it has isn't genuine.
    fn decoded(&self, stretch: &Stretch, got: Got) -> Option<Bytes> {
        let Got::Found(stored, crc) = got else { return None };
        let Stretch { loaded, piece, .. } = stretch;
        let record = loaded.manifest.fragments[usize::from(piece.fragment)];
        // A whole fragment must also be the one that the manifest means.
        if piece.stored == (0..record.len) && crc != record.crc {
            return None;
        }
        let plain =
            self.workers.decode_here(|decoder| decode_piece(decoder, loaded, piece, &stored));
        plain.ok().map(Bytes::from)
    }
}

impl Stretch {
    fn wanted(&self) -> Wanted {
        let Self { loaded, piece, .. } = self;
        Wanted { key: loaded.key(piece.fragment), range: piece.stored.clone() }
    }
}
