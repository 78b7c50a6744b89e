//! The vDisks that users may open: which there are, which are attached by this edge, and by what rules.

use crate::attach::Seeker;
use crate::config::Config;
use crate::directory::{Directory, DirectoryError};
use crate::tokens::Tokens;
use crate::vdisk::{self, ConnectionGuard, Phase, Spawn, Vdisk};
use edge_core::nbd::Access;
use edge_core::nbd::handshake::{Export, Refusal};
use edge_core::route::Route;
use edge_core::session::Settings;
use runtime::clock::boot_now;
use runtime::peer::Identity;
use runtime::rpc::ClientOptions;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use wire::WireError;
use wire::router::{Attach, AttachMode, INFLIGHT_MAX, code};

/// How long a user waits for a vDisk to be opened before being told what stands in the way.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// A router with requests under way and silent for a while is pinged this often; silence is noticed as much too late.
const PING_MIN: Duration = Duration::from_millis(250);
const PING_MAX: Duration = Duration::from_secs(1);
/// A router that answers pings but not a request for `failover_after` is given up too; a busy one isn't at once.
const CALL_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// vDisks attached at once by one edge.
const VDISKS_MAX: usize = 4096;

struct Slot {
    vdisk: Vdisk,
    task: JoinHandle<()>,
}

pub struct Exports {
    config: Config,
    identity: Arc<Identity>,
    tokens: Arc<Tokens>,
    directory: Directory,
    slots: Mutex<BTreeMap<String, Slot>>,
}

impl Exports {
    pub fn new(config: Config, identity: Arc<Identity>, tokens: Arc<Tokens>) -> Self {
        let directory = Directory::new(Arc::clone(&identity), config.routers.clone());
        Self { config, identity, tokens, directory, slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        // A panic while the lock is held leaves a map that is still a map.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access(&self, name: &str) -> Access {
        let read_only = self.config.read_only.iter().any(|listed| listed == name);
        if read_only { Access::ReadOnly } else { Access::ReadWrite }
    }

    fn mode(&self, name: &str) -> AttachMode {
        let shared = self.config.shared.iter().any(|listed| listed == name);
        match self.access(name) {
            Access::ReadOnly => AttachMode::ReadOnly,
            Access::ReadWrite if shared => AttachMode::Shared,
            Access::ReadWrite => AttachMode::Exclusive,
        }
    }

    fn export(&self, name: &str, size: u64) -> Export {
        Export {
            name: name.to_owned(),
            description: format!("Holdfast vDisk {name}"),
            size,
            access: self.access(name),
        }
    }

    pub async fn names(&self) -> Result<Vec<String>, String> {
        let list = self.directory.list().await.map_err(|error| error.to_string())?;
        Ok(list.names.into_iter().map(|(name, _)| name).collect())
    }

    /// The name that is meant: the empty one stands for the default export.
    async fn resolve(&self, asked: &str) -> Result<String, Refusal> {
        if !asked.is_empty() {
            return Ok(asked.to_owned());
        }
        if let Some(name) = &self.config.default_export {
            return Ok(name.clone());
        }
        let mut names = self.names().await.map_err(Refusal::Unavailable)?;
        match names.len() {
            1 => Ok(names.remove(0)),
            0 => Err(Refusal::Unknown("there is no vDisk yet".to_owned())),
            count => Err(Refusal::Unknown(format!(
                "there are {count} vDisks and no default one: name the export"
            ))),
        }
    }

    /// Facts about an export, without attaching it.
    pub async fn look(&self, asked: &str) -> Result<Export, Refusal> {
        let name = self.resolve(asked).await?;
        let location =
            self.directory.locate(&name).await.map_err(|error| refusal(&name, &error))?;
        Ok(self.export(&name, location.size_bytes))
    }

    /// Opens an export for a connection: attaches the vDisk unless it is.
    pub async fn open(&self, asked: &str) -> Result<(Export, ConnectionGuard), Refusal> {
        let name = self.resolve(asked).await?;
        let deadline = tokio::time::Instant::now() + OPEN_PATIENCE;
        loop {
            let guard = self.attached_or_attaching(&name)?;
            let was_attached = matches!(guard.vdisk().phase(), Phase::Attached { .. });
            let settled = tokio::time::timeout_at(deadline, guard.vdisk().settled()).await;
            match settled {
                Ok(Phase::Attached { size, .. }) if !guard.vdisk().is_over() => {
                    // It may have grown since it was attached.
                    let size = if was_attached { self.size_now(&name, size).await? } else { size };
                    return Ok((self.export(&name, size), guard));
                }
                Ok(Phase::Refused(error)) => return Err(refused(&name, &error)),
                Ok(Phase::Attached { .. } | Phase::Over(_) | Phase::Seeking)
                    if tokio::time::Instant::now() < deadline =>
                {
                    // It is just being let go: wait for that, then attach anew.
                    drop(guard);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(Phase::Over(why)) => {
                    return Err(Refusal::Unavailable(format!(
                        "vDisk `{name}` can't be opened: {why}"
                    )));
                }
                Ok(Phase::Attached { .. } | Phase::Seeking) => {
                    return Err(Refusal::Unavailable(format!("vDisk `{name}` is being detached")));
                }
                Err(_) => {
                    let trouble = guard.vdisk().trouble();
                    let text = format!("vDisk `{name}` can't be attached now: {trouble}");
                    return Err(Refusal::Unavailable(text));
                }
            }
        }
    }

    async fn size_now(&self, name: &str, known: u64) -> Result<u64, Refusal> {
        match self.directory.locate(name).await {
            Ok(location) => Ok(location.size_bytes),
            // Its attachment looks for a router too; what is known will do meanwhile.
            Err(DirectoryError::Unreachable(_)) => Ok(known),
            Err(error @ DirectoryError::Refused(_)) => Err(refusal(name, &error)),
        }
    }

    fn attached_or_attaching(&self, name: &str) -> Result<ConnectionGuard, Refusal> {
        let mut slots = self.slots();
        // vDisks whose task ended and that nobody asked for since.
        slots.retain(|other, slot| other == name || !slot.task.is_finished());
        if let Some(slot) = slots.get(name)
            && !slot.vdisk.is_over()
        {
            return Ok(slot.vdisk.connect());
        }
        if slots.len() >= VDISKS_MAX {
            return Err(Refusal::Unavailable(format!(
                "this edge serves {VDISKS_MAX} vDisks already"
            )));
        }
        let after = slots.remove(name).map(|slot| slot.task);
        let (vdisk, task) = vdisk::spawn(self.beginning(name, after));
        let guard = vdisk.connect();
        slots.insert(name.to_owned(), Slot { vdisk, task });
        Ok(guard)
    }

    fn beginning(&self, name: &str, after: Option<JoinHandle<()>>) -> Spawn {
        let mode = self.mode(name);
        let request = Attach {
            name: name.to_owned(),
            edge: self.tokens.edge(),
            edge_name: self.config.name.clone(),
            mode,
            reclaim: None,
            take_over: self.config.take_over,
            domain: self.config.domain.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let options = ClientOptions {
            silence_max: self.config.failover_after,
            ping_after: (self.config.failover_after / 32).clamp(PING_MIN, PING_MAX),
            calls_max: 2 * INFLIGHT_MAX,
            ..ClientOptions::default()
        };
        let seeds = self.config.routers.iter().map(ToString::to_string).collect();
        let seeker = Seeker {
            route: Route::new(seeds),
            identity: Arc::clone(&self.identity),
            options,
            request,
            trouble: Arc::default(),
            failover_after: self.config.failover_after,
            missed_since: boot_now(),
            lost: None,
            next_contest: boot_now(),
        };
        let settings = Settings {
            log_bytes: self.config.replay_log_bytes,
            io_deadline: self.config.io_deadline,
            call_timeout: self.config.failover_after.max(CALL_TIMEOUT_MIN),
            shared: mode == AttachMode::Shared,
            ..Settings::default()
        };
        let tokens = Arc::clone(&self.tokens);
        Spawn { seeker, settings, tokens, detach_after: self.config.detach_after, after }
    }

    /// Flushes and detaches everything.
    pub async fn close(&self) {
        let slots = std::mem::take(&mut *self.slots());
        let mut closing = tokio::task::JoinSet::new();
        for (_, Slot { vdisk, task }) in slots {
            closing.spawn(async move {
                vdisk.close().await;
                // Ends right after it said so.
                let _ = task.await;
            });
        }
        while closing.join_next().await.is_some() {}
    }

    /// For status: one JSON object per attached vDisk. Names and addresses need no escaping by their own rules.
    pub fn to_json(&self) -> String {
        let mut out = String::from("[");
        let slots = self.slots();
        // One whose task has ended stays in its slot until somebody asks for a vDisk again.
        let live = slots.iter().filter(|(_, slot)| !slot.task.is_finished());
        for (at, (name, slot)) in live.enumerate() {
            let figures = slot.vdisk.figures();
            let comma = if at == 0 { "" } else { "," };
            let router = figures.router.replace(['"', '\\'], "?");
            let stats = figures.stats;
            let _ = write!(
                out,
                "{comma}{{\"name\":\"{name}\",\"router\":\"{router}\",\"epoch\":{},\"mode\":\"{}\",\"connections\":{},\
                 \"in_flight\":{},\"waiting_ms\":{},\"unflushed_bytes\":{},\"reconnects\":{},\"replayed\":{},\"errors\":{},\"damaged\":{}",
                figures.epoch.map_or(0, |epoch| epoch.0),
                word(self.mode(name)),
                slot.vdisk.connections(),
                stats.in_flight,
                figures.waiting.as_millis(),
                stats.log_bytes,
                stats.reconnects,
                stats.replayed,
                stats.errors,
                stats.damaged,
            );
            let usages = [
                ("reads", stats.reads),
                ("writes", stats.writes),
                ("unmaps", stats.unmaps),
                ("flushes", stats.flushes),
            ];
            for (kind, usage) in usages {
                let _ = write!(
                    out,
                    ",\"{kind}\":{{\"count\":{},\"bytes\":{},\"waited_us\":{},\"longest_us\":{}}}",
                    usage.count,
                    usage.bytes,
                    usage.waited.as_micros(),
                    usage.longest.as_micros(),
                );
            }
            out.push('}');
        }
        out.push(']');
        out
    }
}

const fn word(mode: AttachMode) -> &'static str {
    match mode {
        AttachMode::Exclusive => "exclusive",
        AttachMode::Shared => "shared",
        AttachMode::ReadOnly => "read-only",
    }
}

fn refusal(name: &str, error: &DirectoryError) -> Refusal {
    match error {
        DirectoryError::Refused(error) => refused(name, error),
        DirectoryError::Unreachable(_) => Refusal::Unavailable(error.to_string()),
    }
}

fn refused(name: &str, error: &WireError) -> Refusal {
    match error.code {
        code::NO_VDISK => Refusal::Unknown(format!("there is no vDisk `{name}`")),
        code::ATTACHED_ELSEWHERE => Refusal::Denied(format!(
            "vDisk `{name}` is attached elsewhere: {}; stop that edge, or let this one say `take_over = true`",
            error.message
        )),
        _ => Refusal::Denied(format!("vDisk `{name}`: {}", error.message)),
    }
}
