//! Who has asked what, so that a repeated request is answered and not run again.
//!
//! Bounded twice (L8): the least recently used session is forgotten when there are too many, and in a session the oldest
//! results when a client doesn't say that it has the answers. What is forgotten is refused, never run (P28).

use super::Outcome;
use crate::rows::{self, SessionRow};
use crate::store::StoreError;
use crate::view::{Overlay, Span, View};
use bytes::Bytes;
use model::{ClientId, Revision};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use wire::arakoon::{Direction, Transaction};

/// Sessions that are remembered.
pub const SESSIONS_MAX: usize = 4096;
/// Results that are remembered per session. Clients keep fewer requests open than that.
pub const SESSION_REQUESTS_MAX: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
struct Session {
    /// Requests below are answered or forgotten.
    floor: u64,
    last_used: Revision,
    /// Requests at or above the floor that ran; their outcomes lie in rows.
    ran: BTreeSet<u64>,
}

pub enum Admission {
    Run,
    Repeated,
    Expired,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    by_client: BTreeMap<ClientId, Session>,
    /// Order in which sessions are forgotten. A log index uses one session, so `last_used` is unique.
    by_use: BTreeMap<Revision, ClientId>,
}

impl Sessions {
    pub fn load(view: &impl View) -> Result<Self, StoreError> {
        let mut all = Self::default();
        let (start, end) = rows::sessions_range();
        each(view, Span { start: &start, end: Some(&end) }, |row, value| {
            let client = rows::session_client(row)?;
            let value = SessionRow::from_row(Bytes::copy_from_slice(value)).ok()?;
            let (floor, last_used) = (value.floor, value.last_used);
            all.by_client.insert(client, Session { floor, last_used, ran: BTreeSet::new() });
            all.by_use.insert(last_used, client).is_none().then_some(())
        })?;
        let (start, end) = rows::results_range();
        each(view, Span { start: &start, end: Some(&end) }, |row, _| {
            let (client, request) = rows::result_request(row)?;
            all.by_client.get_mut(&client)?.ran.insert(request).then_some(())
        })?;
        Ok(all)
    }

    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    pub fn open<V: View>(
        &mut self,
        rows: &mut Overlay<'_, V>,
        client: ClientId,
        revision: Revision,
    ) -> Result<(), StoreError> {
        while self.by_client.len() >= SESSIONS_MAX {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.forget(rows, oldest);
        }
        let session = Session { floor: 1, last_used: revision, ran: BTreeSet::new() };
        rows.put(rows::session(client), row_of(&session));
        self.by_use.insert(revision, client);
        if self.by_client.insert(client, session).is_some() {
            return Err(StoreError::corrupt("a session id was given twice"));
        }
        Ok(())
    }

    fn forget<V: View>(&mut self, rows: &mut Overlay<'_, V>, client: ClientId) {
        let Some(session) = self.by_client.remove(&client) else { return };
        rows.delete(rows::session(client));
        for request in session.ran {
            rows.delete(rows::result(client, request));
        }
    }

    pub fn admit(&self, transaction: &Transaction) -> Admission {
        let request = transaction.request;
        match self.by_client.get(&transaction.client) {
            None => Admission::Expired,
            Some(session) if session.ran.contains(&request) => Admission::Repeated,
            Some(session) if request < session.floor => Admission::Expired,
            Some(_) => Admission::Run,
        }
    }

    /// # Panics
    /// When the session isn't there; [`Self::admit`] said it is.
    pub fn remember<V: View>(
        &mut self,
        rows: &mut Overlay<'_, V>,
        transaction: &Transaction,
        revision: Revision,
        outcome: &Outcome,
    ) {
        let client = transaction.client;
        let session = self.by_client.get_mut(&client).expect("the request was admitted");
        session.ran.insert(transaction.request);
        rows.put(rows::result(client, transaction.request), wire::encode_to_bytes(outcome));
        session.floor = session.floor.max(transaction.answered_below);
        while let Some(&oldest) = session.ran.first() {
            if oldest >= session.floor && session.ran.len() <= SESSION_REQUESTS_MAX {
                break;
            }
            session.ran.pop_first();
            session.floor = session.floor.max(oldest + 1);
            rows.delete(rows::result(client, oldest));
        }
        self.by_use.remove(&session.last_used);
        session.last_used = revision;
        self.by_use.insert(revision, client);
        rows.put(rows::session(client), row_of(session));
    }
}

fn row_of(session: &Session) -> Bytes {
    wire::encode_to_bytes(&SessionRow::new(session.floor, session.last_used))
}

/// Calls `take` per row; `None` from it means that the row isn't one of ours.
pub fn each(
    view: &impl View,
    span: Span<'_>,
    mut take: impl FnMut(&[u8], &[u8]) -> Option<()>,
) -> Result<(), StoreError> {
    let mut good = true;
    view.scan(span, Direction::Forward, &mut |row, value| {
        good = take(row, value).is_some();
        if good { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if good { Ok(()) } else { Err(StoreError::corrupt("session rows contradict each other")) }
}
