//! Wire ⇄ operations: decodes a request, runs it until its deadline, answers.
//!
//! Invariant: every request is answered; the runtime bounds how many are under way per connection.

use crate::error::ProxyError;
use crate::plain::Ask;
use crate::proxy::Proxy;
use crate::status::{Surroundings, details_json};
use alba_proxy_core::policy;
use bytes::Bytes;
use runtime::rpc::{Request, Responder, Service};
use runtime::status::status;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::common::Status;
use wire::proxy::{self, method};
use wire::{Decode, Encode, WireError};

/// For callers that don't say how long they wait.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct ProxyService {
    proxy: Arc<Proxy>,
}

/// Runs an operation that answers with a message alone.
fn answer<Q, A, F>(
    request: &Request,
    responder: Responder,
    operation: impl FnOnce(Q, Instant) -> F + Send + 'static,
) where
    Q: Decode,
    A: Encode,
    F: Future<Output = Result<A, ProxyError>> + Send + 'static,
{
    let deadline = deadline_of(request);
    match request.decode::<Q>() {
        Ok(body) => {
            let work = operation(body, deadline);
            tokio::spawn(async move { responder.finish(work.await.map_err(WireError::from)) });
        }
        Err(error) => responder.fail(error),
    }
}

fn deadline_of(request: &Request) -> Instant {
    request.deadline.unwrap_or_else(|| Instant::now() + PATIENCE)
}

impl ProxyService {
    pub const fn new(proxy: Arc<Proxy>) -> Self {
        Self { proxy }
    }

    fn put(&self, request: &Request, responder: Responder) {
        let proxy = Arc::clone(&self.proxy);
        let payload = request.payload.clone();
        answer(request, responder, |body: proxy::PutObject, deadline| async move {
            proxy.put_object(body, payload, deadline).await
        });
    }

    fn read(&self, request: &Request, responder: Responder) {
        let deadline = deadline_of(request);
        match request.decode() {
            Ok(request) => self.proxy.read(Ask { request, deadline, responder }),
            Err(error) => responder.fail(error),
        }
    }

    fn status(&self) -> Status {
        let proxy = &self.proxy;
        let preset = proxy.catalog.shown_preset();
        let candidates = proxy.osds.candidates();
        let active = preset.as_ref().and_then(|p| policy::choose(&p.policies, &candidates));
        let first = preset.as_ref().and_then(|p| p.policies.policies().first().copied());
        let state = match (active, first) {
            (None, _) => "no-policy",
            (Some(active), Some(first)) if active != first => "fallback-policy",
            (Some(_), _) => "running",
        };
        let surroundings = Surroundings {
            backend: proxy.catalog.backend(),
            osds: proxy.osds.views(),
            policies: preset.as_ref().map(|preset| preset.policies.to_string()),
            active_policy: active.map(|policy| policy.to_string()),
        };
        let details = details_json(&proxy.counters, surroundings);
        status(&proxy.identity, state, details)
    }
}

impl Service for ProxyService {
    fn call(&self, request: Request, responder: Responder) {
        let proxy = Arc::clone(&self.proxy);
        match request.method {
            method::PUT_OBJECT => self.put(&request, responder),
            method::READ_OBJECT => self.read(&request, responder),
            method::CREATE_NAMESPACE => {
                answer(&request, responder, |q: proxy::CreateNamespace, deadline| async move {
                    proxy.create_namespace(q.namespace, &q.preset, deadline).await
                });
            }
            method::CREATE_BESIDE => {
                answer(&request, responder, |q: proxy::CreateBeside, deadline| async move {
                    proxy.create_beside(&q, deadline).await
                });
            }
            method::DELETE_NAMESPACE => {
                answer(&request, responder, |q: proxy::DeleteNamespace, deadline| async move {
                    proxy.delete_namespace(q.namespace, q.epoch, deadline).await
                });
            }
            method::RAISE_EPOCH => {
                answer(&request, responder, |q: proxy::RaiseEpoch, deadline| async move {
                    proxy.raise_epoch(q.namespace, q.epoch, deadline).await
                });
            }
            method::READ_HEAD => {
                answer(&request, responder, |q: proxy::ReadHead, deadline| async move {
                    proxy.read_head(q.namespace, deadline).await
                });
            }
            method::LIST_OBJECTS => {
                answer(&request, responder, |q: proxy::ListObjects, deadline| async move {
                    proxy.list_objects(q.namespace, q.after, q.limit, deadline).await
                });
            }
            method::DELETE_OBJECTS => {
                answer(&request, responder, |q: proxy::DeleteObjects, deadline| async move {
                    proxy.delete_objects(q.namespace, q.epoch, &q.objects, deadline).await
                });
            }
            method::NAMESPACE_HEALTH => {
                answer(&request, responder, |q: proxy::NamespaceHealth, deadline| async move {
                    proxy.health(q.namespace, deadline).await
                });
            }
            method::FILL_HOLES => {
                answer(&request, responder, |q: proxy::FillHoles, deadline| async move {
                    proxy.fill_now(q.namespace, deadline).await
                });
            }
            wire::common::method::EVENTS => match request.decode::<wire::common::EventsAsk>() {
                Ok(ask) => {
                    let list = self.proxy.osds.events.list(&ask, self.proxy.identity.incarnation);
                    responder.reply(&list, Bytes::new());
                }
                Err(error) => responder.fail(error),
            },
            wire::common::method::STATUS => responder.reply(&self.status(), Bytes::new()),
            _ => {
                let error = request.unknown_method();
                responder.fail(error);
            }
        }
    }
}
