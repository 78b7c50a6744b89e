//! How far the model looks, and which fault is put into it.
//!
//! Invariant: without a fault every step is what the code does; a fault changes one line of one step.

use crate::step::Step;

/// What is taken out of the protocol. Each must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A claimant reads the targets' logs and doesn't fence them.
    NoSeal,
    /// A flush is acknowledged when the own log is synced.
    AckBeforeDtl,
    /// One target of two has it: that is enough (P11).
    AckByOneTarget,
    /// A restart in place goes on under its old epoch (P10).
    SameEpoch,
    /// Whoever leaves InSync stores no floor (P13).
    NoFloor,
    /// The backend takes commits of any epoch (P18).
    CommitWithoutEpoch,
    /// The head is read before the namespace's epoch is raised (P18).
    HeadBeforeRaise,
    /// Reads don't wait for replays (P6).
    ServeBeforeReplay,
    /// Arakoon ends a session while its holder may still act (P17).
    NoSessionMargin,
    /// A target answers a seal while a lease that it gave still runs (P16).
    NoLeaseMargin,
    /// A claim in a state other than InSync doesn't ask whether the owner's session is over (P16).
    ClaimBesideSession,
    /// The catch-up isn't waited for before InSync is proposed.
    NoCatchUp,
    /// A restart trusts its own log whoever owned the vDisk since (P10).
    TrustOwnLog,
    /// The floor of a restart in place that reached no target tells nothing of the own log (P13).
    FloorWithoutOwnLog,
    /// A target's log counts whatever later epochs wrote (P10).
    LogsWithoutEpochs,
    /// Leaving InSync is proposed, and reads go on by the lease alone (P16).
    LeaseAloneWhileLeaving,
}

impl Fault {
    pub const ALL: [Self; 16] = [
        Self::NoSeal,
        Self::AckBeforeDtl,
        Self::AckByOneTarget,
        Self::SameEpoch,
        Self::NoFloor,
        Self::CommitWithoutEpoch,
        Self::HeadBeforeRaise,
        Self::ServeBeforeReplay,
        Self::NoSessionMargin,
        Self::NoLeaseMargin,
        Self::ClaimBesideSession,
        Self::NoCatchUp,
        Self::TrustOwnLog,
        Self::FloorWithoutOwnLog,
        Self::LogsWithoutEpochs,
        Self::LeaseAloneWhileLeaving,
    ];
}

/// One write of a user's: through which edge, to which block.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub edge: usize,
    pub block: u8,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub name: &'static str,
    /// At most three.
    pub writes: &'static [Wanted],
    /// Openings of the vDisk, the first included; at most four.
    pub lives: u8,
    /// Targets kept in sync.
    pub copies: u32,
    /// Routers killed or cut from power.
    pub crashes: u8,
    /// Targets wiped.
    pub wipes: u8,
    /// Targets cut from power.
    pub target_restarts: u8,
    /// Changes of the DTL's facts that owners propose, the first of each life apart.
    pub changes: u8,
    /// Edges that end.
    pub ends: u8,
    /// What has happened already.
    pub before: &'static [Step],
}

impl Bounds {
    pub fn edges(&self) -> usize {
        self.writes.iter().map(|wanted| wanted.edge + 1).max().unwrap_or(0)
    }
}

/// What a run of the model goes by.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub bounds: Bounds,
    pub fault: Option<Fault>,
}

impl Rules {
    pub fn broken(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}
