//! `holdfast status`: asks every process how it is, all at once, and puts the answers together.
//!
//! It works while anything is down: nothing that doesn't answer within its limit is waited for, and what arakoon can't
//! tell is shown as unknown rather than failing the command.

pub mod report;
pub mod show;

use crate::client::{Admin, call, status_of};
use crate::cluster::{Cluster, Member};
use crate::role::ProcessRole;
use crate::up::files::BACKEND;
use arakoon_client::ArakoonClient;
use report::{Absent, BackendInputs, DiskFacts, ProcessReport, Report, VdiskReport};
use runtime::rpc::Client;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;
use wire::facts::{Record, RouterRecord, VdiskRecord, key};
use wire::{asd, proxy, router};

/// One process that hangs doesn't hold up the answer for longer.
const LIMIT: Duration = Duration::from_secs(2);

/// Keeps connections, so asking every second is cheap.
pub struct Gatherer {
    cluster: Cluster,
    clients: BTreeMap<String, Client>,
    arakoon: ArakoonClient,
}

impl Gatherer {
    #[must_use]
    pub fn new(cluster: &Cluster, admin: &Admin) -> Self {
        let clients = cluster
            .members
            .iter()
            .map(|member| (member.id.clone(), admin.member(member)))
            .collect();
        Self { cluster: cluster.clone(), clients, arakoon: admin.arakoon(cluster, LIMIT) }
    }

    /// Everything, within about twice the limit.
    pub async fn gather(&self) -> Report {
        let (processes, disks, facts) = tokio::join!(self.processes(), self.disks(), self.facts());
        let (vdisk_records, routers, arakoon) = match facts {
            Ok((vdisks, routers)) => (vdisks, routers, Ok(())),
            Err(problem) => (Vec::new(), BTreeMap::new(), Err(problem)),
        };
        let (holes, vdisks) = tokio::join!(
            self.holes(&processes, &vdisk_records),
            self.vdisks(&processes, &vdisk_records, &routers)
        );
        let backend = report::backend(&BackendInputs {
            name: BACKEND,
            policy: self.cluster.choices.policy.0.to_string(),
            processes: &processes,
            disks: &disks,
            holes,
            arakoon,
        });
        Report { cluster: self.cluster.id.clone(), processes, backend, vdisks }
    }

    /// In the order of the cluster's description.
    async fn processes(&self) -> Vec<ProcessReport> {
        let answers =
            ask_all(&self.clients, |client| async move { Some(status_of(&client, LIMIT).await) })
                .await;
        let mut answers = answers;
        let report = |member: &Member| {
            let gone = Err(crate::client::NoStatus::Down("not asked".to_owned()));
            let answer = answers.remove(&member.id).unwrap_or(gone);
            let absent =
                Absent { pid: self.pid_file(&member.id), lost: self.cluster.is_lost(member) };
            report::process(member.role, &member.id, member.endpoint.0.to_string(), answer, absent)
        };
        self.cluster.members.iter().map(report).collect()
    }

    fn pid_file(&self, id: &str) -> Option<u32> {
        std::fs::read_to_string(self.cluster.member_dir(id).join("pid")).ok()?.trim().parse().ok()
    }

    fn clients_of(&self, role: ProcessRole) -> BTreeMap<String, Client> {
        let of_role = self.cluster.of_role(role);
        of_role
            .filter_map(|member| Some((member.id.clone(), self.clients.get(&member.id)?.clone())))
            .collect()
    }

    async fn disks(&self) -> BTreeMap<String, DiskFacts> {
        ask_all(&self.clients_of(ProcessRole::Asd), |client| async move {
            let stats: asd::Stats = within(call(&client, asd::method::STATS, &(), LIMIT)).await?;
            let asd::Stats { state, capacity_bytes, used_bytes, corruptions, .. } = stats;
            Some(DiskFacts { state, capacity_bytes, used_bytes, corruptions })
        })
        .await
    }

    /// vDisks, and names of routers by id.
    async fn facts(&self) -> Result<(Vec<VdiskRecord>, BTreeMap<u128, String>), String> {
        let (vdisks, routers) =
            tokio::join!(self.arakoon.prefix(key::VDISKS), self.arakoon.prefix(key::ROUTERS));
        let (vdisks, routers) =
            (vdisks.map_err(|e| e.to_string())?, routers.map_err(|e| e.to_string())?);
        // A record of a newer program isn't ours to judge: it is left out.
        let mut vdisks: Vec<VdiskRecord> = vdisks
            .into_iter()
            .filter_map(|(_, value)| VdiskRecord::from_record(value).ok())
            .collect();
        vdisks.sort_by(|a, b| a.name.cmp(&b.name));
        let routers =
            routers.into_iter().filter_map(|(_, value)| RouterRecord::from_record(value).ok());
        Ok((vdisks, routers.map(|record| (record.router.0, record.name)).collect()))
    }

    /// Counted by the first proxy that answers; `None` when none can.
    async fn holes(&self, processes: &[ProcessReport], vdisks: &[VdiskRecord]) -> Option<u64> {
        let proxy = processes
            .iter()
            .find(|process| process.role == ProcessRole::AlbaProxy && process.answers())?;
        let client = self.clients.get(&proxy.id)?;
        let mut asked = JoinSet::new();
        for vdisk in vdisks.iter().filter(|vdisk| !vdisk.deleting) {
            let (client, ask) =
                (client.clone(), proxy::NamespaceHealth { namespace: vdisk.vdisk.into() });
            asked.spawn(async move {
                let health = call(&client, proxy::method::NAMESPACE_HEALTH, &ask, LIMIT);
                match tokio::time::timeout(LIMIT, health).await {
                    Ok(Ok(proxy::Health { holes, .. })) => Some(holes),
                    // Never opened, so nothing was ever stored.
                    Ok(Err(error)) if error.code() == Some(proxy::code::NO_NAMESPACE) => Some(0),
                    Ok(Err(_)) | Err(_) => None,
                }
            });
        }
        let mut total = 0_u64;
        while let Some(holes) = asked.join_next().await {
            total = total.saturating_add(holes.ok()??);
        }
        Some(total)
    }

    async fn vdisks(
        &self,
        processes: &[ProcessReport],
        vdisks: &[VdiskRecord],
        routers: &BTreeMap<u128, String>,
    ) -> Vec<VdiskReport> {
        let mut asked = JoinSet::new();
        for vdisk in vdisks {
            let owner =
                routers.get(&vdisk.owner.0).cloned().unwrap_or_else(|| vdisk.owner.to_string());
            let answers = processes.iter().any(|process| process.id == owner && process.answers());
            let client = self.clients.get(&owner).filter(|_| answers).cloned();
            let vdisk = vdisk.clone();
            asked.spawn(async move {
                let (state, dtl) = vdisk_state(&vdisk, client.as_ref()).await;
                VdiskReport {
                    name: vdisk.name,
                    size: vdisk.size_bytes,
                    owner,
                    epoch: vdisk.epoch.0,
                    state,
                    dtl,
                }
            });
        }
        let mut reports = asked.join_all().await;
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }
}

/// As its owner says it: how it is served, and how the second copy of its log is.
async fn vdisk_state(vdisk: &VdiskRecord, owner: Option<&Client>) -> (String, Option<String>) {
    if vdisk.deleting {
        return ("deleting".to_owned(), None);
    }
    let Some(owner) = owner else { return ("owner down".to_owned(), None) };
    let show = router::VdiskName { name: vdisk.name.clone() };
    let shown = call::<_, router::VdiskInfo>(owner, router::method::SHOW_VDISK, &show, LIMIT);
    let word = match tokio::time::timeout(LIMIT, shown).await {
        Ok(Ok(info)) => {
            let details: serde_json::Value =
                serde_json::from_str(&info.details_json).unwrap_or_default();
            return states_of(&details);
        }
        Ok(Err(error)) => match error.code() {
            Some(router::code::RECOVERING) => "recovering",
            Some(router::code::NO_ROOM) => "log too full",
            Some(router::code::GAP) => "needs a decision",
            Some(router::code::NOT_OWNER) => "moving",
            _ => "unavailable",
        },
        Err(_) => "unresponsive",
    };
    (word.to_owned(), None)
}

/// A router says nothing of a DTL where there shall be none.
fn states_of(details: &serde_json::Value) -> (String, Option<String>) {
    let state = details["state"].as_str().unwrap_or("serving").to_owned();
    let dtl = details["dtl"]["dtl_state"].as_str().unwrap_or("standalone").to_owned();
    (state, Some(dtl))
}

async fn within<T, E>(answer: impl Future<Output = Result<T, E>>) -> Option<T> {
    tokio::time::timeout(LIMIT, answer).await.ok()?.ok()
}

/// Asks all at once; those without an answer are left out.
async fn ask_all<T, F>(
    clients: &BTreeMap<String, Client>,
    ask: impl Fn(Client) -> F,
) -> BTreeMap<String, T>
where
    T: Send + 'static,
    F: Future<Output = Option<T>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for (id, client) in clients {
        let (id, answer) = (id.clone(), ask(client.clone()));
        asked.spawn(async move { (id, answer.await) });
    }
    asked.join_all().await.into_iter().filter_map(|(id, answer)| Some((id, answer?))).collect()
}
