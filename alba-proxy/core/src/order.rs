//! What a refused commit means: of a put whose transaction asserts {epoch, manifest absent, head = predecessor} (P18).
//!
//! Invariant: the answer depends on one consistent look at (epoch, manifest, head) only, so a repeated put gets
//! the same answer wherever it is asked.

use model::{AttemptId, Epoch, ObjectId};

/// What the metadata said when it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// `None`: no such namespace (any more).
    pub epoch: Option<Epoch>,
    pub head: Option<ObjectId>,
    /// Digest and attempt of the object that already stands under this id.
    pub existing: Option<([u8; 16], AttemptId)>,
}

/// What the put asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub epoch: Epoch,
    pub expected_head: Option<ObjectId>,
    pub digest: [u8; 16],
    pub attempt: AttemptId,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoNamespace,
    /// Somebody else owns the namespace (L4).
    Fenced(Epoch),
    /// The same bytes are committed already, by another attempt: the put succeeded before (P21).
    AlreadyDone,
    /// This very attempt is committed: its fragments are the object's.
    Mine,
    /// Other bytes under the same id (P21).
    Conflict,
    /// A predecessor is still on its way: wait for it.
    NotYet,
    /// Nothing stands against it any more (or the refusal was about an older state): commit again.
    Again,
    /// The head is another one, and waiting won't help.
    WrongHead,
}

#[must_use]
pub fn judge(asked: &Asked, found: &Found) -> Refusal {
    let Some(epoch) = found.epoch else { return Refusal::NoNamespace };
    // Before the epoch: what is committed stays committed, whoever owns the namespace since.
    if let Some(existing) = found.existing {
        return match existing {
            (_, attempt) if attempt == asked.attempt => Refusal::Mine,
            (digest, _) if digest == asked.digest => Refusal::AlreadyDone,
            _ => Refusal::Conflict,
        };
    }
    if epoch != asked.epoch {
        return Refusal::Fenced(epoch);
    }
    match found.head.cmp(&asked.expected_head) {
        std::cmp::Ordering::Less => Refusal::NotYet,
        std::cmp::Ordering::Equal => Refusal::Again,
        std::cmp::Ordering::Greater => Refusal::WrongHead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ScoNumber, VdiskId};

    const MINE: AttemptId = AttemptId(7);
    const OTHER: AttemptId = AttemptId(8);

    #[test]
    fn each_refusal_has_one_meaning() {
        let object =
            |number| ObjectId { vdisk: VdiskId(1), epoch: Epoch(3), number: ScoNumber(number) };
        let asked = Asked {
            epoch: Epoch(3),
            expected_head: Some(object(5)),
            digest: [1; 16],
            attempt: MINE,
        };
        let found = Found { epoch: Some(Epoch(3)), head: Some(object(5)), existing: None };
        let with = |change: &dyn Fn(&mut Found)| {
            let mut found = found;
            change(&mut found);
            judge(&asked, &found)
        };
        assert_eq!(with(&|_| ()), Refusal::Again);
        assert_eq!(with(&|f| f.epoch = None), Refusal::NoNamespace);
        assert_eq!(with(&|f| f.epoch = Some(Epoch(4))), Refusal::Fenced(Epoch(4)));
        assert_eq!(with(&|f| f.epoch = Some(Epoch(2))), Refusal::Fenced(Epoch(2)));
        assert_eq!(with(&|f| f.head = Some(object(4))), Refusal::NotYet);
        assert_eq!(with(&|f| f.head = None), Refusal::NotYet);
        assert_eq!(with(&|f| f.head = Some(object(6))), Refusal::WrongHead);
        assert_eq!(with(&|f| f.existing = Some(([1; 16], OTHER))), Refusal::AlreadyDone);
        assert_eq!(with(&|f| f.existing = Some(([2; 16], OTHER))), Refusal::Conflict);
        assert_eq!(with(&|f| f.existing = Some(([1; 16], MINE))), Refusal::Mine);
        // Committed under its epoch, then fenced, then asked again: it did happen.
        assert_eq!(
            with(&|f| {
                f.epoch = Some(Epoch(9));
                f.head = Some(object(8));
                f.existing = Some(([1; 16], OTHER));
            }),
            Refusal::AlreadyDone
        );
    }
}
