//! The operations. Reads are linearizable; everything is retried over all nodes until the deadline.

use crate::cluster::{Cluster, Failed};
use crate::request_session::{OpenRequest, RequestSession};
use crate::ttl_session::SessionInfo;
use crate::{ReadError, TransactError, Transaction};
use bytes::Bytes;
use model::{ClientId, Revision};
use runtime::config::NodeEntry;
use runtime::peer::Identity;
use runtime::rpc::Call;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::arakoon::{
    self, AssertionFailed, Changes, ChangesAsk, Committed, Consistency, Direction, Entries, Get,
    RANGE_ENTRIES_MAX, Range, SessionFact, SessionList, SessionRefused, SessionsAsk, Values, code,
    method, prefix_end,
};
use wire::arakoon::{Assertion, Update};
use wire::common::Status;

/// How long an operation is retried unless said otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Most entries that [`ArakoonClient::prefix`] gives.
pub const PREFIX_ENTRIES_MAX: usize = 1_000_000;
/// A node that answers a status question more slowly than this is as good as dead.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// A question that waits must be answered before its node is given up for another.
const WATCH_WAIT_MAX: Duration = Duration::from_secs(2);

/// What to watch: keys and sessions with a TTL, each under any of these prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    pub keys: Vec<Bytes>,
    pub sessions: Vec<Bytes>,
}

/// What changed, by name: read it to know how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub keys: Vec<Bytes>,
    /// Opened, in other hands, or gone.
    pub sessions: Vec<Bytes>,
    /// Ask from here next.
    pub through: Revision,
}

/// A handle to a cluster; clones share connections, leader and session.
#[derive(Clone)]
pub struct ArakoonClient {
    shared: Arc<Shared>,
    deadline: Duration,
}

struct Shared {
    cluster: Cluster,
    /// Opened with the first transaction, and anew when the nodes have forgotten it.
    session: tokio::sync::Mutex<Option<Arc<RequestSession>>>,
}

impl ArakoonClient {
    /// Connects when first used.
    #[must_use]
    pub fn new(nodes: &[NodeEntry], identity: &Arc<Identity>) -> Self {
        let cluster = Cluster::new(nodes, identity);
        let shared = Arc::new(Shared { cluster, session: tokio::sync::Mutex::new(None) });
        Self { shared, deadline: DEADLINE_DEFAULT }
    }

    /// The same cluster, with another deadline per operation.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline }
    }

    /// # Errors
    /// See [`ReadError`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ReadError> {
        let values = self.multi_get(vec![Bytes::copy_from_slice(key.as_ref())]).await?;
        Ok(values.into_iter().next().flatten())
    }

    /// All values as of one moment.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn multi_get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, ReadError> {
        let get = Get { keys, consistency: Consistency::Linearizable };
        let values: Values =
            self.shared.cluster.ask(method::GET, &get, self.until()).await.map_err(read_failed)?;
        Ok(values.values)
    }

    /// Up to `limit` entries with `start <= key < end`. Each page of a long range is as of its own moment.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn range(
        &self,
        start: impl AsRef<[u8]>,
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        Ok(self.range_at(start.as_ref(), end, limit).await?.0)
    }

    /// With the revision of the first page: what changed later than that is seen, or told by [`Self::changes`].
    async fn range_at(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, Revision), ReadError> {
        let mut start = Bytes::copy_from_slice(start);
        let end = end.map(Bytes::copy_from_slice);
        let (mut found, mut revision) = (Vec::new(), None);
        while found.len() < limit {
            let left = u32::try_from(limit - found.len()).unwrap_or(u32::MAX);
            let range = Range {
                start: start.clone(),
                end: end.clone(),
                direction: Direction::Forward,
                limit: left.min(RANGE_ENTRIES_MAX),
                consistency: Consistency::Linearizable,
            };
            // A long range is as many operations as it has pages, each with its own deadline.
            let ask = self.shared.cluster.ask(method::RANGE, &range, self.until());
            let page: Entries = ask.await.map_err(read_failed)?;
            revision.get_or_insert(page.revision);
            found.extend(page.entries);
            match found.last() {
                Some((last, _)) if page.more => start = behind(last),
                _ => break,
            }
        }
        Ok((found, revision.unwrap_or_default()))
    }

    /// All entries whose keys begin with `prefix`.
    ///
    /// # Errors
    /// See [`ReadError`]; more than [`PREFIX_ENTRIES_MAX`] entries are too many.
    pub async fn prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        Ok(self.prefix_at(prefix).await?.0)
    }

    /// The same, with a revision to watch from.
    ///
    /// # Errors
    /// As for [`Self::prefix`].
    pub async fn prefix_at(
        &self,
        prefix: impl AsRef<[u8]>,
    ) -> Result<(Vec<(Bytes, Bytes)>, Revision), ReadError> {
        let prefix = prefix.as_ref();
        let end = prefix_end(prefix);
        let found = self.range_at(prefix, end.as_deref(), PREFIX_ENTRIES_MAX + 1).await?;
        if found.0.len() > PREFIX_ENTRIES_MAX {
            return Err(ReadError::TooMany { limit: PREFIX_ENTRIES_MAX });
        }
        Ok(found)
    }

    /// Living sessions with a TTL whose ids begin with `prefix`; linearizable, ages by the leader's clock (P17).
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn sessions(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<SessionInfo>, ReadError> {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        let ask = SessionsAsk { prefix, consistency: Consistency::Linearizable };
        let ask = self.shared.cluster.ask(method::SESSIONS, &ask, self.until());
        let list: SessionList = ask.await.map_err(read_failed)?;
        let info = |SessionFact { id, record }| SessionInfo::new(id, &record);
        Ok(list.sessions.into_iter().map(info).collect())
    }

    /// What changed after revision `since`, under any of the watched prefixes; waits for the first change up to `wait`
    /// (2 s at most: ask again). `None`: the nodes don't remember so far back, read everything again.
    ///
    /// The revision to begin with is that of a read: [`Self::prefix_at`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn changes(
        &self,
        watched: &Watched,
        since: Revision,
        wait: Duration,
    ) -> Result<Option<Changed>, ReadError> {
        let wait = wait.min(WATCH_WAIT_MAX);
        let ask = ChangesAsk {
            since,
            keys: watched.keys.clone(),
            sessions: watched.sessions.clone(),
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let deadline = self.until() + wait;
        let ask = self.shared.cluster.ask(method::CHANGES, &ask, deadline);
        let Changes { keys, sessions, through, compacted } = ask.await.map_err(read_failed)?;
        Ok((!compacted).then_some(Changed { keys, sessions, through }))
    }

    /// # Errors
    /// See [`TransactError`].
    pub async fn set(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
    ) -> Result<Revision, TransactError> {
        self.commit(Transaction::new().set(key, value)).await
    }

    /// No error when the key is absent.
    ///
    /// # Errors
    /// See [`TransactError`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Revision, TransactError> {
        self.commit(Transaction::new().delete(key)).await
    }

    /// Changes the key from exactly `expected` to `new`; `None` = absent.
    ///
    /// # Errors
    /// See [`TransactError`].
    pub async fn compare_and_set(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<Revision, TransactError> {
        let transaction = Transaction::new().assert_is(&key, expected);
        self.commit(match new {
            Some(value) => transaction.set(key, value),
            None => transaction.delete(key),
        })
        .await
    }

    /// # Errors
    /// See [`TransactError`].
    pub async fn commit(&self, transaction: Transaction) -> Result<Revision, TransactError> {
        self.transact(transaction.assertions, transaction.updates).await
    }

    /// Either every assertion holds and every update happens, or nothing does.
    ///
    /// # Errors
    /// See [`TransactError`].
    pub async fn transact(
        &self,
        assertions: Vec<Assertion>,
        updates: Vec<Update>,
    ) -> Result<Revision, TransactError> {
        let deadline = self.until();
        let mut body = arakoon::Transaction {
            client: ClientId(0),
            request: 0,
            answered_below: 0,
            assertions,
            updates,
        };
        loop {
            let request = self.begin(deadline).await?;
            body.client = request.session.id;
            body.request = request.number;
            body.answered_below = request.answered_below();
            let answer = self.shared.cluster.ask(method::TRANSACT, &body, deadline).await;
            match answer {
                Ok(Committed { revision }) => return Ok(revision),
                // Forgotten before this transaction was ever tried: it can safely run under a new session.
                Err(Failed::Refused { error, maybe_done: false })
                    if error.code == code::EXPIRED_REQUEST && Instant::now() < deadline =>
                {
                    self.leave_session(&request.session).await;
                }
                Err(failed) => return Err(transact_failed(failed)),
            }
        }
    }

    /// How each node is doing, or why it didn't say.
    pub async fn status(&self) -> Vec<(String, Result<Status, String>)> {
        let mut asked = tokio::task::JoinSet::new();
        for (at, (name, client)) in self.shared.cluster.nodes().enumerate() {
            let (name, client) = (name.to_owned(), client.clone());
            asked.spawn(async move {
                let call = Call::within(STATUS_TIMEOUT);
                let answer =
                    client.call::<(), Status>(wire::common::method::STATUS, &(), call).await;
                (at, name, answer.map(|(status, _)| status).map_err(|error| error.to_string()))
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(at, _, _)| *at);
        answers.into_iter().map(|(_, name, answer)| (name, answer)).collect()
    }

    fn until(&self) -> Instant {
        Instant::now() + self.deadline
    }

    /// A request number in the session, which is opened if need be.
    async fn begin(&self, deadline: Instant) -> Result<OpenRequest, TransactError> {
        let late = || TransactError::Unavailable {
            outcome_unknown: false,
            reason: "too many transactions of this client are under way".into(),
        };
        let begin = async {
            let session = self.session(deadline).await?;
            Ok(session.begin().await)
        };
        tokio::time::timeout_at(deadline, begin).await.map_err(|_| late())?
    }

    async fn session(&self, deadline: Instant) -> Result<Arc<RequestSession>, TransactError> {
        let mut session = self.shared.session.lock().await;
        if let Some(open) = &*session {
            return Ok(Arc::clone(open));
        }
        let opener = ClientId(runtime::random::u128());
        let open = arakoon::Transaction {
            client: opener,
            request: 0,
            answered_below: 0,
            assertions: Vec::new(),
            updates: Vec::new(),
        };
        // Opening twice leaves an unused session behind and nothing else: its outcome is never a worry.
        let opened = self.shared.cluster.ask(method::TRANSACT, &open, deadline).await;
        let Committed { revision } = opened.map_err(|failed| match failed {
            Failed::GaveUp { reason, .. } => {
                TransactError::Unavailable { outcome_unknown: false, reason }
            }
            Failed::Refused { error, .. } => TransactError::Refused(error),
        })?;
        let opened = Arc::new(RequestSession::new(arakoon::session_id(opener, revision)));
        *session = Some(Arc::clone(&opened));
        Ok(opened)
    }

    async fn leave_session(&self, left: &Arc<RequestSession>) {
        let mut session = self.shared.session.lock().await;
        if session.as_ref().is_some_and(|current| Arc::ptr_eq(current, left)) {
            *session = None;
        }
    }
}

/// The first key behind `key`.
fn behind(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

fn read_failed(failed: Failed) -> ReadError {
    match failed {
        Failed::GaveUp { reason, .. } => ReadError::Unavailable { reason },
        Failed::Refused { error, .. } => ReadError::Refused(error),
    }
}

/// What became of the transaction itself, under its request number: the same for every attempt. Other refusals are one
/// node's about one attempt.
const fn is_outcome(code: u16) -> bool {
    matches!(
        code,
        code::ASSERTION_FAILED | code::SESSION_REFUSED | code::BAD_COUNTER | code::SESSIONS_FULL
    )
}

fn transact_failed(failed: Failed) -> TransactError {
    match failed {
        Failed::GaveUp { maybe_done, reason } => {
            TransactError::Unavailable { outcome_unknown: maybe_done, reason }
        }
        // An earlier attempt may have run, and this no says nothing about it (P28).
        Failed::Refused { error, maybe_done: true } if !is_outcome(error.code) => {
            TransactError::Unavailable { outcome_unknown: true, reason: error.message }
        }
        Failed::Refused { error, .. } if error.code == code::ASSERTION_FAILED => {
            match wire::decode_all::<AssertionFailed>(error.detail.clone()) {
                Ok(failed) => TransactError::Assertion(failed),
                Err(_) => TransactError::Refused(error),
            }
        }
        Failed::Refused { error, .. } if error.code == code::SESSION_REFUSED => {
            match wire::decode_all::<SessionRefused>(error.detail.clone()) {
                Ok(refused) => TransactError::Session(refused),
                Err(_) => TransactError::Refused(error),
            }
        }
        Failed::Refused { error, .. } => TransactError::Refused(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::WireError;

    #[test]
    fn p28_a_refusal_decides_about_an_earlier_attempt_only_if_it_is_the_transactions_outcome() {
        let failed = |code, maybe_done| {
            transact_failed(Failed::Refused { error: WireError::refuse(code, "no"), maybe_done })
        };
        for code in [code::BAD_COUNTER, code::SESSIONS_FULL] {
            for maybe_done in [false, true] {
                assert!(matches!(failed(code, maybe_done), TransactError::Refused(_)), "{code}");
            }
        }
        for code in [code::EXPIRED_REQUEST, code::TOO_LARGE, wire::error::code::FORBIDDEN] {
            assert!(matches!(failed(code, false), TransactError::Refused(_)), "{code}");
            let doubt = failed(code, true);
            assert!(
                matches!(doubt, TransactError::Unavailable { outcome_unknown: true, .. }),
                "{code}"
            );
        }
    }
}
