//! Page maps that other routers read from here: whole ones, of one moment each, part by part on their asking.
//!
//! Whatever is on disk may be lent, own or copied, up to date or not: who reads checks it against the backend (L6).
//!
//! Invariant: few are lent at once, each holds one part in memory, and one that is asked for seldom, or for too long, is
//! given up (L8).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use model::{Now, ScoNumber};
use router_core::map_stream::{LOAN, Part};
use runtime::clock::boot_now;
use wire::WireError;
use wire::router::{MapPart, ReadMap, code};

use crate::map_store::{Cut, MapError};
use crate::router::Router;

/// Maps being read at once.
const LENT_MAX: usize = 4;
/// Bytes of one part: it goes through the thread that serves requests.
const PART_BYTES: usize = 1 << 20;

struct Loan {
    cut: Arc<Cut>,
    /// The part that is asked for next.
    next: u32,
    asked: Now,
}

/// See the module's page.
#[derive(Default)]
pub struct Lent(Mutex<BTreeMap<u64, Loan>>);

impl Lent {
    fn loans(&self) -> MutexGuard<'_, BTreeMap<u64, Loan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more.
    fn begin(&self, name: u64, cut: &Arc<Cut>, now: Now) -> Result<(), WireError> {
        let mut loans = self.loans();
        loans.retain(|_, loan| now.since(loan.asked) < LOAN.idle);
        if LENT_MAX <= loans.len() {
            let message = format!("{LENT_MAX} page maps are being read here already");
            return Err(WireError::retry(code::NO_MAP, message));
        }
        loans.insert(name, Loan { cut: Arc::clone(cut), next: 1, asked: now });
        Ok(())
    }

    fn go_on(&self, name: u64, part: u32, now: Now) -> Result<Arc<Cut>, WireError> {
        let mut loans = self.loans();
        match loans.get_mut(&name) {
            Some(loan) if loan.next == part => {
                (loan.next, loan.asked) = (part + 1, now);
                Ok(Arc::clone(&loan.cut))
            }
            Some(_) | None => {
                Err(no_map("its parts are kept for who asks for one after the other"))
            }
        }
    }

    fn end(&self, name: u64) {
        self.loans().remove(&name);
    }
}

fn no_map(why: impl std::fmt::Display) -> WireError {
    WireError::refuse(code::NO_MAP, format!("no such page map here: {why}"))
}

impl Router {
    /// The next part of a page map for another router.
    ///
    /// # Errors
    /// `NO_MAP` when there is none that helps, or it can't be read to the end.
    pub(crate) async fn lend_map(&self, ask: &ReadMap) -> Result<(MapPart, Bytes), WireError> {
        let (name, part) = if ask.cut == 0 {
            let bytes_max = model::usize_of(self.config.map_part_size).min(PART_BYTES);
            let cut = Arc::new(self.maps.cut(ask.vdisk, bytes_max, LOAN));
            // Never 0, which asks for a new one.
            let name = runtime::random::u64() | 1;
            self.lent.begin(name, &cut, boot_now())?;
            (name, cut.next().await)
        } else {
            let cut = self.lent.go_on(ask.cut, ask.part, boot_now())?;
            (ask.cut, cut.next().await)
        };
        let part = part.and_then(|part| is_wanted(part, ask.least));
        if part.as_ref().map_or(true, |part| part.last) {
            self.lent.end(name);
        }
        let part = part.map_err(no_map)?;
        let encoded = tokio::task::spawn_blocking(move || Bytes::from(part.encode())).await;
        Ok((MapPart { cut: name }, encoded.map_err(no_map)?))
    }
}

fn is_wanted(part: Part, least: ScoNumber) -> Result<Part, MapError> {
    match part.state.object {
        Some(object) if least <= object.number => Ok(part),
        Some(_) | None => {
            let problem = format!("it ends before SCO {least}");
            Err(MapError::Mismatch { vdisk: part.vdisk, problem })
        }
    }
}
