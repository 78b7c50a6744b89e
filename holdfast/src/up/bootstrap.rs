//! From processes to a cluster that serves I/O: starts role after role, waits until each answers, writes the facts that
//! the next one needs, makes the vDisks, and believes nothing before a read through NBD has returned.
//!
//! A cluster that has run before may start with some of its parts missing, as it may run so; a new one needs them all.

use crate::client::{Admin, arakoon_failure, call, status_of};
use crate::cluster::{Cluster, Member};
use crate::failure::Failure;
use crate::probe::{ProbeError, nbd_uri, probe};
use crate::role::ProcessRole;
use crate::up::facts::{self, FoundOsd, VPOOL};
use crate::up::plan::{DEFAULT_VDISK, VdiskWanted};
use crate::up::screen::Screen;
use crate::up::spawn::log_tail;
use crate::up::supervise::{Command, Fleet, ProcessState};
use model::ByteSize;
use runtime::config::Parsed;
use runtime::rpc::{CallError, Client};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::facts::{Record, VdiskRecord, key};
use wire::router::{CreateVdisk, VdiskInfo};
use wire::{ErrorClass, asd, router};

/// Replaying a long log takes its time; longer than this needs a look by a person.
const ROLE_DEADLINE: Duration = Duration::from_secs(120);
const CALL_LIMIT: Duration = Duration::from_secs(5);
const ARAKOON_LIMIT: Duration = Duration::from_secs(30);
const IO_DEADLINE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Ends in a row after which a process is believed to be unable to start.
const FAILURES_MAX: u32 = 3;

/// Whether any of the cluster's processes has ever run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    First,
    Later,
}

/// What the front door gave us.
pub struct Bootstrap<'a> {
    pub fleet: &'a Fleet,
    pub admin: &'a Admin,
    pub vdisks: &'a [VdiskWanted],
    pub screen: &'a Screen,
}

impl Bootstrap<'_> {
    /// Returns the cluster with what was learnt of its members, once every vDisk was tried.
    ///
    /// # Errors
    /// When the cluster can't serve; the message shows the culprit's log.
    pub async fn run(&self, mut cluster: Cluster) -> Result<Cluster, Failure> {
        let fresh = cluster.members.iter().all(|member| !member.initialized);
        let life = if fresh { Life::First } else { Life::Later };
        for role in ProcessRole::ALL {
            let up = self.start_role(&cluster, role, life).await?;
            let found = match role {
                ProcessRole::Asd => self.identify(&cluster, &up).await?,
                ProcessRole::Arakoon
                | ProcessRole::AlbaProxy
                | ProcessRole::Router
                | ProcessRole::Edge => Vec::new(),
            };
            self.remember(&mut cluster, &up, &found).await?;
            match role {
                ProcessRole::Arakoon => self.await_majority(&cluster).await?,
                ProcessRole::Asd => {
                    facts::write(&self.admin.arakoon(&cluster, ARAKOON_LIMIT), &cluster, &found)
                        .await?;
                }
                ProcessRole::Router => self.make_vdisks(&cluster, &up).await?,
                ProcessRole::AlbaProxy | ProcessRole::Edge => {}
            }
        }
        self.show_io(&cluster, life).await?;
        Ok(cluster)
    }

    /// Starts all members of a role; returns those that answer.
    async fn start_role(
        &self,
        cluster: &Cluster,
        role: ProcessRole,
        life: Life,
    ) -> Result<BTreeSet<String>, Failure> {
        let members: Vec<&Member> = cluster.of_role(role).collect();
        self.screen.step(&format!("starting {} {role}", members.len()));
        let ids = members.iter().map(|member| member.id.clone()).collect();
        self.fleet.send(Command::Start(ids)).await;
        let clients: BTreeMap<&str, Client> =
            members.iter().map(|member| (member.id.as_str(), self.admin.member(member))).collect();
        let deadline = Instant::now() + ROLE_DEADLINE;
        let mut up = BTreeSet::new();
        loop {
            let mut hopeless = Vec::new();
            for (id, client) in &clients {
                match self.state_of(id) {
                    ProcessState::Running { pid } if !up.contains(*id) => {
                        // Another process may answer at that address; only our own counts.
                        if status_of(client, CALL_LIMIT).await.is_ok_and(|status| status.pid == pid)
                        {
                            up.insert((*id).to_owned());
                        }
                    }
                    state if is_hopeless(&state) => hopeless.push((*id, state)),
                    ProcessState::Idle
                    | ProcessState::Running { .. }
                    | ProcessState::Waiting { .. }
                    | ProcessState::Dead { .. }
                    | ProcessState::Lost
                    | ProcessState::Stopped => {}
                }
            }
            let settled = up.len() + hopeless.len() >= clients.len();
            if !settled && Instant::now() < deadline {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            if up.len() < needed(role, clients.len(), life) {
                return Err(self.start_failure(cluster, role, &up));
            }
            for (id, state) in hopeless {
                let log = if state == ProcessState::Lost {
                    String::new()
                } else {
                    log_tail(&cluster.log_file(id))
                };
                self.screen.event(
                    format!("going on without {id}: {}\n{log}", describe(&state)).trim_end(),
                );
            }
            return Ok(up);
        }
    }

    fn state_of(&self, id: &str) -> ProcessState {
        self.fleet.states.borrow().get(id).cloned().unwrap_or(ProcessState::Idle)
    }

    fn start_failure(
        &self,
        cluster: &Cluster,
        role: ProcessRole,
        up: &BTreeSet<String>,
    ) -> Failure {
        let mut text = format!(
            "the cluster can't start: {} of {} {role} answer",
            up.len(),
            cluster.of_role(role).count()
        );
        let mut configuration = false;
        for member in cluster.of_role(role).filter(|member| !up.contains(&member.id)) {
            let state = self.state_of(&member.id);
            configuration |= matches!(&state, ProcessState::Waiting { why, .. } | ProcessState::Dead { why } if why.configuration);
            let log = cluster.log_file(&member.id);
            text.push_str(&format!("\n{}: {}\n{}", member.id, describe(&state), log_tail(&log)));
        }
        if configuration { Failure::Config(text) } else { Failure::Failed(text) }
    }

    async fn await_majority(&self, cluster: &Cluster) -> Result<(), Failure> {
        self.screen.step("waiting for arakoon to elect a leader");
        let arakoon = self.admin.arakoon(cluster, ARAKOON_LIMIT);
        match arakoon.get(key::backend(crate::up::files::BACKEND)).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let tails: Vec<String> = cluster
                    .of_role(ProcessRole::Arakoon)
                    .map(|member| log_tail(&cluster.log_file(&member.id)))
                    .collect();
                Err(Failure::Failed(format!(
                    "arakoon doesn't serve: {error}\n{}",
                    tails.join("\n")
                )))
            }
        }
    }

    async fn identify(
        &self,
        cluster: &Cluster,
        up: &BTreeSet<String>,
    ) -> Result<Vec<FoundOsd>, Failure> {
        let mut found = Vec::new();
        for member in cluster.of_role(ProcessRole::Asd).filter(|member| up.contains(&member.id)) {
            let client = self.admin.member(member);
            let identity: asd::Identity =
                call(&client, asd::method::IDENTIFY, &(), CALL_LIMIT).await.map_err(|error| {
                    Failure::failed(format!("{} doesn't tell who it is: {error}", member.id))
                })?;
            if let Some(Parsed(known)) = &member.osd
                && *known != identity.osd
            {
                return Err(Failure::failed(format!(
                    "{} has another disk than before: its id is {}, and was {known}. Put the right directory back at {}",
                    member.id,
                    identity.osd,
                    cluster.data_dir(&member.id).display()
                )));
            }
            found.push(FoundOsd {
                osd: identity.osd,
                id: member.id.clone(),
                address: member.endpoint.0.to_string(),
                capacity_bytes: identity.capacity_bytes,
            });
        }
        Ok(found)
    }

    /// Writes down who has data now, so that its loss is seen later.
    async fn remember(
        &self,
        cluster: &mut Cluster,
        up: &BTreeSet<String>,
        found: &[FoundOsd],
    ) -> Result<(), Failure> {
        let before = cluster.clone();
        for member in cluster.members.iter_mut().filter(|member| up.contains(&member.id)) {
            member.initialized = true;
            if let Some(osd) = found.iter().find(|osd| osd.id == member.id) {
                member.osd = Some(Parsed(osd.osd));
            }
        }
        if *cluster != before {
            cluster.save()?;
            self.fleet.send(Command::Adopt(Arc::new(cluster.clone()))).await;
        }
        Ok(())
    }

    /// Makes the vDisks that were asked for and aren't there; in a cluster without any, the default one.
    async fn make_vdisks(&self, cluster: &Cluster, up: &BTreeSet<String>) -> Result<(), Failure> {
        let existing = vdisks(self.admin, cluster).await?;
        let default: VdiskWanted = DEFAULT_VDISK.parse().expect("the default is a vDisk");
        let wanted = if existing.is_empty() && self.vdisks.is_empty() {
            vec![default]
        } else {
            self.vdisks.to_vec()
        };
        let routers: Vec<&Member> =
            cluster.of_role(ProcessRole::Router).filter(|member| up.contains(&member.id)).collect();
        for (at, VdiskWanted { name, size }) in wanted.iter().enumerate() {
            match existing.iter().find(|vdisk| vdisk.name == *name) {
                Some(vdisk) if vdisk.size_bytes == size.0 => {}
                Some(vdisk) => {
                    return Err(Failure::config(format!(
                        "--vdisk {name}:{}: {name} exists with {}; leave the option out, and change its size with \
                         `holdfast vdisk resize {name} --size …`",
                        size.to_string().replace(' ', ""),
                        ByteSize(vdisk.size_bytes)
                    )));
                }
                None => {
                    self.screen.step(&format!("making vDisk {name}"));
                    // One after the other; the others if one takes none.
                    let mut turn = routers.clone();
                    turn.rotate_left(at % routers.len().max(1));
                    self.make_vdisk(&turn, name, *size).await?;
                }
            }
        }
        Ok(())
    }

    async fn make_vdisk(
        &self,
        routers: &[&Member],
        name: &str,
        size: ByteSize,
    ) -> Result<(), Failure> {
        let mut turn = routers.iter().cycle();
        let create = CreateVdisk {
            name: name.to_owned(),
            size_bytes: size.0,
            vpool: VPOOL.to_owned(),
            dtl: None,
        };
        let deadline = Instant::now() + ARAKOON_LIMIT;
        loop {
            let router = turn.next().ok_or_else(|| Failure::failed("no router answers"))?;
            let client = self.admin.member(router);
            let made: Result<VdiskInfo, CallError> =
                call(&client, router::method::CREATE_VDISK, &create, ARAKOON_LIMIT).await;
            match made {
                Ok(_) => return Ok(()),
                // Our own earlier try, whose answer was lost.
                Err(error) if error.code() == Some(router::code::EXISTS) => return Ok(()),
                Err(error) if error.class() == ErrorClass::Retry && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => {
                    return Err(Failure::failed(format!(
                        "{} can't make vDisk {name}: {error}",
                        router.id
                    )));
                }
            }
        }
    }

    /// Reads through NBD from every vDisk, and prints where each is as soon as that works.
    async fn show_io(&self, cluster: &Cluster, life: Life) -> Result<(), Failure> {
        self.screen.step("waiting for I/O through NBD");
        let vdisks = vdisks(self.admin, cluster).await?;
        let deadline = Instant::now() + IO_DEADLINE;
        let mut probes = tokio::task::JoinSet::new();
        for vdisk in vdisks.iter().filter(|vdisk| !vdisk.deleting) {
            let (endpoint, name) = (cluster.nbd.clone(), vdisk.name.clone());
            probes.spawn(async move {
                let outcome = loop {
                    match probe(&endpoint, &name, CALL_LIMIT).await {
                        Err(error) if Instant::now() >= deadline => break Err(error),
                        Err(_) => tokio::time::sleep(LOOK_AGAIN * 4).await,
                        Ok(_) => break Ok(()),
                    }
                };
                (name, outcome)
            });
        }
        let (mut served, mut last) = (0, None);
        while let Some(joined) = probes.join_next().await {
            let (name, outcome) = joined.map_err(Failure::failed)?;
            match outcome {
                Ok(()) => {
                    served += 1;
                    self.screen.ready(&nbd_uri(&cluster.nbd, &name));
                }
                Err(error) => {
                    self.screen.event(&format!(
                        "vDisk {name} doesn't serve: {error}; `holdfast vdisk show {name}` may say why"
                    ));
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if served == 0 && life == Life::First => Err(io_failure(cluster, &error)),
            Some(_) | None => Ok(()),
        }
    }
}

fn io_failure(cluster: &Cluster, error: &ProbeError) -> Failure {
    let tails: Vec<String> = [ProcessRole::Edge, ProcessRole::Router, ProcessRole::AlbaProxy]
        .into_iter()
        .flat_map(|role| cluster.of_role(role))
        .map(|member| log_tail(&cluster.log_file(&member.id)))
        .collect();
    Failure::Failed(format!("no I/O through NBD at {}: {error}\n{}", cluster.nbd, tails.join("\n")))
}

/// Every vDisk that arakoon knows.
///
/// # Errors
/// When arakoon can't be reached, or a record can't be read.
pub async fn vdisks(admin: &Admin, cluster: &Cluster) -> Result<Vec<VdiskRecord>, Failure> {
    let entries =
        admin.arakoon(cluster, ARAKOON_LIMIT).prefix(key::VDISKS).await.map_err(arakoon_failure)?;
    let mut vdisks = Vec::new();
    for (key, value) in entries {
        let record = VdiskRecord::from_record(value).map_err(|error| {
            Failure::failed(format!("the record {}: {error}", key.escape_ascii()))
        })?;
        vdisks.push(record);
    }
    vdisks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(vdisks)
}

/// It won't come up by waiting.
fn is_hopeless(state: &ProcessState) -> bool {
    match state {
        ProcessState::Waiting { failures, why, .. } => {
            why.configuration || *failures >= FAILURES_MAX
        }
        ProcessState::Dead { .. } | ProcessState::Lost => true,
        ProcessState::Idle | ProcessState::Running { .. } | ProcessState::Stopped => false,
    }
}

fn describe(state: &ProcessState) -> String {
    match state {
        ProcessState::Waiting { why, .. } | ProcessState::Dead { why } => why.text.clone(),
        ProcessState::Lost => "its data directory is gone".to_owned(),
        ProcessState::Running { pid } => format!("pid {pid} runs, and doesn't answer"),
        ProcessState::Idle | ProcessState::Stopped => "it isn't running".to_owned(),
    }
}

/// How many of `count` must answer before the next role starts.
fn needed(role: ProcessRole, count: usize, life: Life) -> usize {
    match role {
        _ if life == Life::First => count,
        ProcessRole::Arakoon => count / 2 + 1,
        // Without any, objects are only out of reach, and come back with the disks.
        ProcessRole::Asd => 0,
        ProcessRole::AlbaProxy | ProcessRole::Router | ProcessRole::Edge => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::supervise::Why;

    #[test]
    fn a_new_cluster_needs_all_and_an_old_one_what_it_can_run_with() {
        assert_eq!(needed(ProcessRole::Arakoon, 3, Life::First), 3);
        assert_eq!(needed(ProcessRole::Arakoon, 3, Life::Later), 2);
        assert_eq!(needed(ProcessRole::Arakoon, 5, Life::Later), 3);
        assert_eq!(needed(ProcessRole::Asd, 6, Life::First), 6);
        assert_eq!(needed(ProcessRole::Asd, 6, Life::Later), 0);
        assert_eq!(needed(ProcessRole::Router, 2, Life::Later), 1);
    }

    #[test]
    fn wrong_configuration_is_hopeless_at_once_and_others_after_some_tries() {
        let waiting = |failures, configuration| ProcessState::Waiting {
            until: Instant::now(),
            failures,
            why: Why { text: String::new(), configuration },
        };
        assert!(is_hopeless(&waiting(1, true)));
        assert!(!is_hopeless(&waiting(2, false)));
        assert!(is_hopeless(&waiting(3, false)));
        assert!(is_hopeless(&ProcessState::Lost));
        assert!(!is_hopeless(&ProcessState::Running { pid: 1 }));
    }
}
