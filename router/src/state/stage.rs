//! How far an opening is, for people: one that hangs says where (L9).

use std::fmt;

use model::{ByteSize, Epoch};

/// What an opening waits for (P18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Record,
    MapFree,
    Claim,
    Seal,
    Raise,
    Head,
    Map,
    Recovery,
    /// arakoon has no first proposal of this epoch yet (P10).
    Promise,
    /// The last try failed, and says so.
    Again,
    /// The last try found no room in the write log for so many bytes. It has let go of its epoch: nothing is served by it,
    /// and the next try claims another.
    NoRoom {
        epoch: Epoch,
        needed: u64,
    },
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Record => "arakoon is asked whose it is",
            Self::MapFree => "a look at its page map must end",
            Self::Claim => "arakoon is asked for the claim",
            Self::Seal => "its DTL is sealed",
            Self::Raise => "the backend is told the epoch",
            Self::Head => "the backend is asked for its head",
            Self::Map => "its page map is brought up to date",
            Self::Recovery => "what was promised is read",
            Self::Promise => "arakoon is told what is promised",
            Self::Again => "it is tried again soon",
            Self::NoRoom { needed, .. } => {
                let needed = ByteSize(*needed);
                return write!(
                    out,
                    "the write log here has no room for the {needed} that must be recovered"
                );
            }
        })
    }
}
