//! Logs that no owner and no claimant will ever ask for: their vDisk was deleted, or they were replaced, while this router
//! was away.
//!
//! Decided from arakoon's record alone, read linearizably after the logs were seen here: a log is made only after a record
//! has named it (P12), generations only grow, and a claimant reads no generation but the record's own and its `previous`
//! one. So a generation that the record left behind is never named again, however late a message comes. Which messages
//! don't come says nothing.
//!
//! Invariant: what a record may still lead anybody to is kept (L2, P13).

use model::{DtlGeneration, Now, RouterId};
use wire::dtl::DtlFacts;

use super::{Disk, Effect, Refusal, Target};

/// Whether this router's log of `generation` may still count. `facts`: `None` when the vDisk is gone.
#[must_use]
pub fn may_count(facts: Option<&DtlFacts>, me: RouterId, generation: DtlGeneration) -> bool {
    let Some(facts) = facts else { return false };
    let named = |of: DtlGeneration, targets: &[RouterId]| of == generation && targets.contains(&me);
    // A later one than the record's can't be, as the record was read afterwards; it would be kept.
    facts.generation < generation
        || named(facts.generation, &facts.targets)
        || facts.previous.as_ref().is_some_and(|p| named(p.generation, &p.targets))
}

impl<D: Disk> Target<D> {
    /// Forgets these generations, which [`may_count`] no more.
    pub fn forget(&mut self, gone: &[DtlGeneration], now: Now, out: &mut Vec<Effect>) {
        let held = |generation: &DtlGeneration| gone.contains(generation);
        // One whose promise isn't on disk yet was named by arakoon just now.
        let forgotten = self.logs.extract_if(.., |g, slot| held(g) && !slot.is_new);
        let chunks: Vec<Effect> =
            forgotten.map(|(_, slot)| Effect::Remove(slot.log.chunks())).collect();
        if chunks.is_empty() {
            return;
        }
        out.extend(chunks);
        for waiter in self.syncs.extract_if(.., |waiter| held(&waiter.generation)) {
            out.push(Effect::Answer { ticket: waiter.ticket, answer: Err(Refusal::NoLog) });
        }
        // The next file of promises doesn't name them; nobody waits for it.
        self.version += 1;
        self.progress(now, out);
    }
}
