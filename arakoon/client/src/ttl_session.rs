//! A session with a TTL, kept alive: its holder may act on it while [`Session::lives`] (P17).
//!
//! ```no_run
//! # async fn f(client: arakoon_client::ArakoonClient) -> Result<(), Box<dyn std::error::Error>> {
//! use arakoon_client::{Session, SessionOptions, Transaction};
//!
//! let session = Session::open(&client, SessionOptions::new("router/r1")).await?;
//! // What is claimed in its name holds only if it lives when the claim is committed.
//! let claim = Transaction::new().set("vdisk/7/owner", "r1");
//! let claim = claim.assert_session_lives(session.id(), session.incarnation());
//! client.commit(claim).await?;
//! while session.lives() { /* serve */ }
//! session.close().await?;
//! # Ok(()) }
//! ```
//!
//! The holder counts from the moment a renewal was *sent*, to TTL minus a margin, on the boot-time clock. The nodes count
//! from the moment it was applied, to TTL and a little more. So the holder has stopped by its own clock before the session
//! can expire, whatever happens to the network, to the nodes, and to the process (suspended time counts).
//!
//! Invariant: `lives_until` is derived from an acknowledged renewal, and from nothing else.

use crate::{ArakoonClient, TransactError, Transaction};
use bytes::Bytes;
use model::{Incarnation, Now, Revision};
use runtime::clock::boot_now;
use runtime::random::jitter;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use wire::arakoon::{Assertion, SessionRecord, SessionRefused};

pub const TTL_DEFAULT: Duration = Duration::from_secs(9);
pub const MARGIN_DEFAULT: Duration = Duration::from_secs(2);
/// Pause after a renewal that nobody answered, and between attempts to open what another holds.
const PAUSE: Duration = Duration::from_millis(300);
/// Sleeps don't count suspended time, deadlines do: so often it is looked again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// 1 to 128 bytes, `router/<id>`.
    pub id: Bytes,
    /// Random unless set; the same one may be opened again when an earlier answer was lost.
    pub incarnation: Incarnation,
    pub ttl: Duration,
    /// The holder stops so long before its TTL is over.
    pub margin: Duration,
    /// An incarnation of the same holder that is known to be dead (its lock is ours): replaced at once.
    pub replaces: Option<Incarnation>,
    /// While another incarnation lives, it is tried again for so long.
    pub wait: Duration,
    /// Happens together with the opening, or not at all.
    pub along: Transaction,
}

impl SessionOptions {
    #[must_use]
    pub fn new(id: impl AsRef<[u8]>) -> Self {
        Self {
            id: Bytes::copy_from_slice(id.as_ref()),
            incarnation: Incarnation(runtime::random::u64()),
            ttl: TTL_DEFAULT,
            margin: MARGIN_DEFAULT,
            replaces: None,
            wait: Duration::ZERO,
            along: Transaction::new(),
        }
    }
}

/// A living session, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    pub id: Bytes,
    pub incarnation: Incarnation,
    pub ttl: Duration,
    /// From 1, one more with every renewal.
    pub renewal: u64,
    pub opened: Revision,
    /// Since the last renewal; it expires when this reaches a little more than the TTL.
    pub age: Duration,
}

impl SessionInfo {
    pub(crate) fn new(id: Bytes, record: &SessionRecord) -> Self {
        Self {
            id,
            incarnation: record.incarnation,
            ttl: Duration::from_millis(record.ttl_ms),
            renewal: record.renewal,
            opened: record.opened,
            age: Duration::from_millis(record.age_ms),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Nothing happened.
    #[error("session `{}` is held by incarnation {}, last heard of {:?} ago", .holder.id.escape_ascii(), .holder.incarnation, .holder.age)]
    Held { holder: SessionInfo },
    /// When the outcome is unknown, opening with the same options is safe.
    #[error(transparent)]
    Transact(#[from] TransactError),
}

/// ```text
/// Open ──expired, replaced──▶ Lost
///  └────────close───────────▶ Closed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// Being renewed. Whether it lives is a matter of time: see [`Session::lives`].
    Open,
    /// For ever: what is needed is a new incarnation.
    Lost,
    Closed,
}

/// What the last answer said.
#[derive(Debug, Clone, Copy)]
struct Standing {
    state: SessionState,
    lives_until: Now,
}

struct Shared {
    client: ArakoonClient,
    id: Bytes,
    incarnation: Incarnation,
    ttl: Duration,
    margin: Duration,
    standing: watch::Sender<Standing>,
}

/// A session that is renewed until it is closed or dropped. A dropped one expires.
pub struct Session {
    shared: Arc<Shared>,
    renewing: AbortHandle,
}

impl Session {
    /// Opens it and renews it every TTL/3 in a task of its own.
    ///
    /// # Errors
    /// When another incarnation holds it, or arakoon can't be reached within the client's deadline.
    pub async fn open(
        client: &ArakoonClient,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        let SessionOptions { id, incarnation, ttl, margin, replaces, wait, along } = options;
        let opening = along.open_session(&id, incarnation, ttl, replaces);
        let patience = boot_now().plus(wait);
        let sent = loop {
            let sent = boot_now();
            match client.commit(opening.clone()).await {
                Ok(_) => break sent,
                Err(TransactError::Session(SessionRefused { id, found: Some(found) })) => {
                    if patience <= boot_now() {
                        return Err(SessionError::Held { holder: SessionInfo::new(id, &found) });
                    }
                    tokio::time::sleep(jitter(PAUSE)).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let standing = Standing { state: SessionState::Open, lives_until: Now::default() };
        let standing = watch::Sender::new(standing);
        let client = client.with_deadline(ttl / 3);
        let shared = Arc::new(Shared { client, id, incarnation, ttl, margin, standing });
        shared.renewed(sent);
        let renewing = tokio::spawn(renew(Arc::clone(&shared), sent)).abort_handle();
        Ok(Self { shared, renewing })
    }

    #[must_use]
    pub fn id(&self) -> &Bytes {
        &self.shared.id
    }

    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    /// Until when the holder may act, on [`boot_now`]'s clock: the moment the last acknowledged renewal was sent, plus TTL,
    /// minus margin. Zero once lost or closed.
    #[must_use]
    pub fn lives_until(&self) -> Now {
        let Standing { state, lives_until } = *self.shared.standing.borrow();
        match state {
            SessionState::Open => lives_until,
            SessionState::Lost | SessionState::Closed => Now::default(),
        }
    }

    /// The holder may act now. To be asked before every act; an Open session that doesn't live may live again, when
    /// arakoon was out of reach and nobody expired it.
    #[must_use]
    pub fn lives(&self) -> bool {
        boot_now() < self.lives_until()
    }

    #[must_use]
    pub fn state(&self) -> SessionState {
        self.shared.standing.borrow().state
    }

    /// Returns when it doesn't live.
    pub async fn ended(&self) {
        let mut standing = self.shared.standing.subscribe();
        loop {
            let left = self.lives_until().since(boot_now());
            if left.is_zero() {
                return;
            }
            // Woken early when it is lost; the sender lives in `self`.
            let _ = tokio::time::timeout(left.min(LOOK_AGAIN), standing.changed()).await;
        }
    }

    /// For transactions that must not happen once it is over.
    #[must_use]
    pub fn lives_assertion(&self) -> Assertion {
        Assertion::SessionLives { id: self.shared.id.clone(), incarnation: self.shared.incarnation }
    }

    /// Ends it at once, here first and then in arakoon.
    ///
    /// # Errors
    /// When arakoon can't be reached; it expires then.
    pub async fn close(self) -> Result<(), TransactError> {
        self.renewing.abort();
        self.shared.end(SessionState::Closed);
        let Shared { client, id, incarnation, .. } = &*self.shared;
        client.commit(Transaction::new().close_session(id, *incarnation)).await.map(drop)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.renewing.abort();
        self.shared.end(SessionState::Closed);
    }
}

impl Shared {
    fn renewed(&self, sent: Now) {
        let lives_until = sent.plus(self.ttl.saturating_sub(self.margin));
        self.standing.send_modify(|standing| standing.lives_until = lives_until);
    }

    fn end(&self, state: SessionState) {
        self.standing.send_if_modified(|standing| {
            let open = standing.state == SessionState::Open;
            if open {
                standing.state = state;
            }
            open
        });
    }
}

/// Renews until the session is lost. Each renewal is one transaction; its retries keep the moment it was first sent.
async fn renew(shared: Arc<Shared>, opened: Now) {
    let id = shared.id.escape_ascii().to_string();
    let renewal = Transaction::new().renew_session(&shared.id, shared.incarnation);
    let mut next = opened.plus(pause(shared.ttl));
    let mut answered = true;
    loop {
        tokio::time::sleep(next.since(boot_now())).await;
        let sent = boot_now();
        match shared.client.commit(renewal.clone()).await {
            Ok(_) => {
                shared.renewed(sent);
                if !answered {
                    tracing::info!(id, "the session is renewed again");
                }
                answered = true;
                next = sent.plus(pause(shared.ttl));
            }
            Err(error @ TransactError::Session(_)) => {
                tracing::warn!(id, %error, "the session is lost");
                return shared.end(SessionState::Lost);
            }
            Err(error) => {
                if answered {
                    tracing::warn!(id, %error, "the session can't be renewed");
                }
                answered = false;
                next = boot_now().plus(jitter(PAUSE));
            }
        }
    }
}

/// TTL/3, a little less by chance, so that holders that began together don't renew together.
fn pause(ttl: Duration) -> Duration {
    ttl * 2 / 9 + jitter(ttl / 9)
}
