//! Wire ⇄ router: decodes, checks, and hands each request to whoever answers it.
//!
//! Writes, flushes and reads that memory can answer are handled right here, in the reader's own turn: no task, no channel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{AttachmentGeneration, ByteRange, VdiskId};
use router_core::plan;
use runtime::clock::boot_now;
use runtime::peer::Peer;
use runtime::rpc::{Request, Responder, Service};
use runtime::status::status;
use wire::router::{
    Adoption, Attach, AttachMode, BlockStatus, Contest, Contested, CreateVdisk, Detach, Durability,
    EXTENTS_MAX, EndAttachment, Flush, IO_MAX, Locate, Read, ReadMap, RecoverVdisk, ReplayComplete,
    ResizeVdisk, SetStanding, SetVdisk, Transfer, Unmap, VdiskName, Write, code, method,
};
use wire::{Encode, Role, WireError, common};

use crate::admin::json_text;
use crate::router::Router;
use crate::state::{Job, JobKind, Slot, State};

/// Answers the router's protocol.
pub struct Server {
    pub router: Arc<Router>,
}

impl Service for Server {
    fn call(&self, request: Request, responder: Responder) {
        let answered = match request.method {
            method::WRITE => self.write(&request, responder),
            method::READ => self.read(&request, responder),
            method::FLUSH => self.flush(&request, responder),
            method::UNMAP => self.unmap(&request, responder),
            _ => self.seldom(&request, responder),
        };
        if let Err((responder, error)) = answered {
            responder.fail(error);
        }
    }
}

type Answered = Result<(), (Responder, WireError)>;

/// Decodes and checks, giving the responder back with the reason when something is wrong.
macro_rules! checked {
    ($responder:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Err(($responder, error)),
        }
    };
}

/// What every I/O request must pass: attached, inside the vDisk, and (for changes) not read-only.
fn check_io(
    state: &mut State,
    peer: &Arc<Peer>,
    (vdisk, generation): (VdiskId, AttachmentGeneration),
    range: Option<ByteRange>,
    access: Access,
) -> Result<(), WireError> {
    let stopping = state.stopping;
    let serving = state.serving(vdisk)?;
    let session = serving.session(generation)?;
    if serving.handing_over {
        return Err(WireError::retry(code::RECOVERING, "the vDisk is being handed over"));
    }
    if access.changes() {
        if session.mode == AttachMode::ReadOnly {
            return Err(WireError::refuse(code::READ_ONLY, "the attachment is read-only"));
        }
        if stopping {
            return Err(WireError::retry(wire::error::code::STOPPING, "the router is stopping"));
        }
    } else if !serving.awaiting.is_empty() && access.looks() {
        // P6: until every writer has replayed, what is here may be older than what was acknowledged.
        return Err(WireError::retry(code::RECOVERING, "waiting for attached edges to replay"));
    }
    if let Some(session) = serving.sessions.get_mut(&generation)
        && session.peer.as_ptr() != Arc::as_ptr(peer)
    {
        session.peer = Arc::downgrade(peer);
    }
    match range {
        Some(range) if serving.core.size_bytes < range.end() => {
            let size = serving.core.size_bytes;
            let message =
                format!("bytes {} to {} of a vDisk of {size}", range.start(), range.end());
            Err(WireError::refuse(code::OUT_OF_RANGE, message))
        }
        Some(_) | None => {
            let moves = matches!(access, Access::Read | Access::Write);
            let bytes = range.filter(|_| moves).map_or(0, ByteRange::len);
            serving.demand.count(bytes);
            Ok(())
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// At what is mapped: moves no data.
    Look,
    Write,
    /// Changes a range of any length, and moves no data.
    Unmap,
    /// Neither looks nor changes.
    Flush,
}

impl Access {
    const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Unmap)
    }

    const fn looks(self) -> bool {
        matches!(self, Self::Read | Self::Look)
    }
}

fn bytes_at(offset: u64, len: u64) -> Result<ByteRange, WireError> {
    ByteRange::new(offset, len).ok_or_else(|| no_range(offset, len))
}

fn range_of(offset: u64, len: u64) -> Result<ByteRange, WireError> {
    if len == 0 { Err(no_range(offset, len)) } else { bytes_at(offset, len) }
}

fn no_range(offset: u64, len: u64) -> WireError {
    WireError::refuse(code::OUT_OF_RANGE, format!("{len} bytes at {offset}"))
}

fn io_range(offset: u64, len: u64) -> Result<ByteRange, WireError> {
    if u64::from(IO_MAX) < len {
        let message = format!("{len} bytes in one request; at most {IO_MAX}");
        return Err(WireError::refuse(code::OUT_OF_RANGE, message));
    }
    range_of(offset, len)
}

impl Server {
    fn write(&self, request: &Request, responder: Responder) -> Answered {
        let write: Write = checked!(responder, request.decode());
        let range = checked!(responder, io_range(write.offset, request.payload.len() as u64));
        if !plan::checksums_match(range, &request.payload, &write.checksums) {
            let message = "the payload doesn't match its checksums; send it again";
            return Err((responder, WireError::refuse(code::BAD_CHECKSUM, message)));
        }
        let job = Job {
            vdisk: write.vdisk,
            range,
            kind: JobKind::Write(request.payload.clone(), write.checksums),
            generation: write.generation,
            seq: write.seq,
            durable: write.durability == Durability::Durable,
            responder,
            again: Vec::new(),
        };
        self.submit(job, &request.peer)
    }

    fn unmap(&self, request: &Request, responder: Responder) -> Answered {
        let unmap: Unmap = checked!(responder, request.decode());
        // None of no bytes is refused: it uses up the number of a change that was refused for good.
        let range = checked!(responder, bytes_at(unmap.offset, unmap.len));
        let job = Job {
            vdisk: unmap.vdisk,
            range,
            kind: JobKind::Unmap(unmap.kind),
            generation: unmap.generation,
            seq: unmap.seq,
            durable: unmap.durability == Durability::Durable,
            responder,
            again: Vec::new(),
        };
        self.submit(job, &request.peer)
    }

    fn submit(&self, job: Job, peer: &Arc<Peer>) -> Answered {
        let mut actions = Vec::new();
        let access = match job.kind {
            JobKind::Write(..) => Access::Write,
            JobKind::Unmap(_) => Access::Unmap,
        };
        let mut state = self.router.state();
        let checked =
            check_io(&mut state, peer, (job.vdisk, job.generation), Some(job.range), access);
        if let Err(error) = checked {
            return Err((job.responder, error));
        }
        state.submit(job, boot_now(), &mut actions);
        drop(state);
        self.router.wake_append();
        self.router.run_actions(actions);
        Ok(())
    }

    fn flush(&self, request: &Request, responder: Responder) -> Answered {
        let flush: Flush = checked!(responder, request.decode());
        let mut state = self.router.state();
        checked!(
            responder,
            check_io(
                &mut state,
                &request.peer,
                (flush.vdisk, flush.generation),
                None,
                Access::Flush
            )
        );
        state.flush(flush.vdisk, responder);
        drop(state);
        self.router.wake_append();
        Ok(())
    }

    fn read(&self, request: &Request, responder: Responder) -> Answered {
        let read: Read = checked!(responder, request.decode());
        let range = checked!(responder, io_range(read.offset, read.len.into()));
        {
            let mut state = self.router.state();
            checked!(
                responder,
                check_io(
                    &mut state,
                    &request.peer,
                    (read.vdisk, read.generation),
                    Some(range),
                    Access::Read
                )
            );
        }
        self.router.read(read.vdisk, range, responder);
        Ok(())
    }

    fn seldom(&self, request: &Request, responder: Responder) -> Answered {
        let router = Arc::clone(&self.router);
        let deadline =
            request.deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        match request.method {
            dtl if wire::dtl::method::is_dtl(dtl) => {
                if request.peer.role == Role::Edge {
                    let message = "the DTL is between routers";
                    let code = wire::error::code::FORBIDDEN;
                    return Err((responder, WireError::refuse(code, message)));
                }
                router.dtl.call(request, responder);
            }
            method::REPLAY_COMPLETE => {
                let done: ReplayComplete = checked!(responder, request.decode());
                let mut state = router.state();
                let serving = checked!(responder, state.serving(done.vdisk));
                checked!(responder, serving.session(done.generation).map(|_| ()));
                serving.awaiting.remove(&done.generation);
                responder.reply(&(), Bytes::new());
            }
            method::BLOCK_STATUS => {
                let ask: BlockStatus = checked!(responder, request.decode());
                let range = checked!(responder, range_of(ask.offset, ask.len));
                {
                    let mut state = router.state();
                    checked!(
                        responder,
                        check_io(
                            &mut state,
                            &request.peer,
                            (ask.vdisk, ask.generation),
                            Some(range),
                            Access::Look
                        )
                    );
                }
                let max = ask.extents_max.clamp(1, EXTENTS_MAX) as usize;
                spawn(responder, async move {
                    let epoch = router.state().serving(ask.vdisk)?.core.epoch();
                    let found = router.block_status(ask.vdisk, range, max).await;
                    router.wait_to_answer((ask.vdisk, epoch)).await?;
                    found
                });
            }
            method::ATTACH => {
                let attach: Attach = checked!(responder, request.decode());
                let asker = (Arc::clone(&request.peer), request.deadline);
                tokio::spawn(router.attach(attach, asker, responder));
            }
            method::DETACH => {
                let detach: Detach = checked!(responder, request.decode());
                tokio::spawn(router.detach(detach, responder));
            }
            method::CONTEST => {
                let contest: Contest = checked!(responder, request.decode());
                spawn(responder, async move { router.contest(&contest).await });
            }
            method::LOCATE => {
                let locate: Locate = checked!(responder, request.decode());
                spawn(responder, async move { router.locate(&locate.name).await });
            }
            method::LIST => spawn(responder, async move { router.list().await }),
            common::method::STATUS => responder.reply(&self.status(), Bytes::new()),
            _ => return self.administer(request, responder, deadline),
        }
        Ok(())
    }

    fn administer(
        &self,
        request: &Request,
        responder: Responder,
        deadline: Option<Duration>,
    ) -> Answered {
        let router = Arc::clone(&self.router);
        if request.peer.role == Role::Edge {
            let message = "edges do I/O; vDisks are administered by operators and routers";
            return Err((responder, WireError::refuse(wire::error::code::FORBIDDEN, message)));
        }
        match request.method {
            method::TRANSFER_VDISK => {
                let transfer: Transfer = checked!(responder, request.decode());
                spawn(responder, async move {
                    router.transfer(router.owned_by_name(&transfer.name).await?, transfer.to).await
                });
            }
            method::RECOVER_VDISK => {
                let ask: RecoverVdisk = checked!(responder, request.decode());
                spawn(responder, async move { router.recover_vdisk(&ask).await });
            }
            method::END_ATTACHMENT => {
                let ask: EndAttachment = checked!(responder, request.decode());
                spawn(responder, async move { router.end_attachment_of(&ask).await });
            }
            method::CREATE_VDISK => {
                let create: CreateVdisk = checked!(responder, request.decode());
                spawn(responder, async move { router.create(&create).await });
            }
            method::DELETE_VDISK => {
                let name: VdiskName = checked!(responder, request.decode());
                spawn(responder, async move {
                    router.delete(router.owned_by_name(&name.name).await?).await
                });
            }
            method::RESIZE_VDISK => {
                let resize: ResizeVdisk = checked!(responder, request.decode());
                spawn(responder, async move {
                    router.resize(router.owned_by_name(&resize.name).await?, &resize).await
                });
            }
            method::SET_VDISK => {
                let set: SetVdisk = checked!(responder, request.decode());
                let until = request.deadline;
                spawn(responder, async move {
                    router.set_vdisk(router.owned_by_name(&set.name).await?, &set, until).await
                });
            }
            method::SHOW_VDISK => {
                let name: VdiskName = checked!(responder, request.decode());
                spawn(
                    responder,
                    async move { router.show(router.owned_by_name(&name.name).await?) },
                );
            }
            method::SYNC_VDISK => {
                let name: VdiskName = checked!(responder, request.decode());
                // A little earlier than the caller gives up, so that it hears why.
                let patience = deadline.map(|left| left.saturating_sub(left / 20));
                spawn(responder, async move {
                    router.sync(router.owned_by_name(&name.name).await?, patience).await
                });
            }
            _ => return self.converse(request, responder),
        }
        Ok(())
    }

    /// What routers ask each other, and what is asked of a router rather than of a vDisk.
    fn converse(&self, request: &Request, responder: Responder) -> Answered {
        let router = Arc::clone(&self.router);
        match request.method {
            method::SET_STANDING => {
                let standing: SetStanding = checked!(responder, request.decode());
                spawn(responder, async move { router.set_standing(&standing).await });
            }
            method::PREPARE_ADOPTION => {
                let adoption: Adoption = checked!(responder, request.decode());
                spawn(responder, async move { router.prepare_adoption(adoption.vdisk).await });
            }
            common::method::EVENTS => {
                let ask: common::EventsAsk = checked!(responder, request.decode());
                let list = router.events.list(&ask, router.identity.incarnation);
                responder.reply(&list, Bytes::new());
            }
            method::CARRIED => responder.reply(&router.carried(), Bytes::new()),
            method::LIST_MAPS => responder.reply(&router.map_copies(), Bytes::new()),
            method::READ_MAP => {
                let ask: ReadMap = checked!(responder, request.decode());
                tokio::spawn(async move {
                    match router.lend_map(&ask).await {
                        Ok((part, bytes)) => responder.reply(&part, bytes),
                        Err(error) => responder.fail(error),
                    }
                });
            }
            method::ADOPT => {
                let adoption: Adoption = checked!(responder, request.decode());
                spawn(responder, async move { router.adopt(adoption.vdisk).await });
            }
            method::CONTESTED => {
                let contested: Contested = checked!(responder, request.decode());
                responder.finish(router.contested(&contested));
            }
            _ => return Err((responder, request.unknown_method())),
        }
        Ok(())
    }

    fn status(&self) -> wire::common::Status {
        let router = &self.router;
        let state = router.state();
        let mut vdisks = Vec::new();
        let mut word = "running";
        for (vdisk, slot) in &state.volumes {
            let (name, problem) = match slot {
                Slot::Serving(serving) => (serving.record.name.clone(), serving.degraded.clone()),
                // Served well, elsewhere.
                Slot::Elsewhere(_) => continue,
                Slot::Gap(reason) | Slot::Fenced(reason) => (String::new(), Some(reason.clone())),
                Slot::Opening(stage) => (String::new(), Some(stage.to_string())),
                Slot::Deleting => (String::new(), None),
            };
            word = match slot {
                Slot::Gap(_) => "gap",
                Slot::Opening(_) if word == "running" => "recovering",
                Slot::Serving(_) if problem.is_some() && word == "running" => "degraded",
                Slot::Opening(_)
                | Slot::Serving(_)
                | Slot::Fenced(_)
                | Slot::Elsewhere(_)
                | Slot::Deleting => word,
            };
            vdisks.push(format!(
                r#"{{"vdisk":"{vdisk}","name":"{}","state":"{}","problem":"{}"}}"#,
                json_text(&name),
                slot.name(),
                json_text(&problem.unwrap_or_default())
            ));
        }
        if state.log_problem.is_some() {
            word = "log-full";
        }
        let log_problem = json_text(state.log_problem.as_deref().unwrap_or_default());
        let health = router.backend.health();
        let proxies: Vec<String> = health
            .iter()
            .map(|(address, ok)| format!(r#"{{"address":"{address}","ok":{ok}}}"#))
            .collect();
        let details = format!(
            concat!(
                r#"{{"router":"{}","vdisks":[{}],"log_used_bytes":{},"log_capacity_bytes":{},"#,
                r#""log_problem":"{}","pending_bytes":{},"proxies":[{}]}}"#
            ),
            router.id,
            vdisks.join(","),
            state.log.used(),
            state.log.capacity(),
            log_problem,
            state.pending_bytes(),
            proxies.join(",")
        );
        status(&router.identity, word, details)
    }
}

fn spawn<T, F>(responder: Responder, work: F)
where
    T: Encode,
    F: Future<Output = Result<T, WireError>> + Send + 'static,
{
    tokio::spawn(async move { responder.finish(work.await) });
}
