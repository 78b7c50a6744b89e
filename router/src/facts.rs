//! The facts in arakoon that a router reads and changes: routers, vPools, vDisks, names, attachments.
//!
//! Invariant: a record is changed only by a transaction that asserts the bytes it was read as (L4).

use std::collections::BTreeMap;
use std::time::Duration;

use arakoon_client::{
    ArakoonClient, ReadError, Session, SessionError, SessionInfo, SessionOptions, TransactError,
    Transaction,
};
use bytes::Bytes;
use model::{Incarnation, Revision, RouterId, VdiskId};
use router_core::rebalance::near_edge;
use tokio::time::Instant;
use wire::WireError;
use wire::dtl::DtlMode;
use wire::facts::{
    AttachmentsRecord, ContestRecord, DtlRecord, DtlTargets, LossRecord, MaintenanceRecord,
    RebalanceTurn, Record, RouterLoad, RouterRecord, VdiskRecord, VpoolDtl, VpoolRecord, key,
};
use wire::router::code;

/// How long a request of an edge or operator waits for arakoon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where [`ContestRecord`]s lie: `key::vdisk_contest`.
const CONTESTS: &str = "vdisk-contest/";

#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Transact(#[from] TransactError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the record {key} can't be read: {problem}")]
    Record { key: String, problem: String },
}

impl FactsError {
    /// Somebody else changed what was read: read again and decide anew.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Transact(TransactError::Assertion(_)))
    }

    #[must_use]
    pub fn to_wire(&self) -> WireError {
        WireError::retry(code::RECOVERING, self.to_string())
    }
}

/// A record with the bytes it was read as.
#[derive(Debug, Clone)]
pub struct Read<T> {
    pub value: T,
    pub bytes: Bytes,
}

/// A vDisk's record, and that of its DTL if it has one: changed together or not at all.
pub struct Change<'a> {
    pub vdisk: (&'a Read<VdiskRecord>, VdiskRecord),
    pub dtl: Option<(&'a Read<DtlRecord>, DtlRecord)>,
}

#[derive(Clone)]
pub struct Facts {
    client: ArakoonClient,
}

fn record<T: Record>(key: &[u8], bytes: Bytes) -> Result<Read<T>, FactsError> {
    let value = T::from_record(bytes.clone()).map_err(|error| FactsError::Record {
        key: key.escape_ascii().to_string(),
        problem: error.to_string(),
    })?;
    Ok(Read { value, bytes })
}

impl Facts {
    #[must_use]
    pub fn new(client: &ArakoonClient) -> Self {
        Self { client: client.with_deadline(PATIENCE) }
    }

    /// What is asked for after this isn't begun any more.
    #[must_use]
    pub fn until(&self, end: Option<Instant>) -> Self {
        let left = end.map_or(PATIENCE, |end| end.saturating_duration_since(Instant::now()));
        Self { client: self.client.with_deadline(left.min(PATIENCE)) }
    }

    async fn get<T: Record>(&self, key: Bytes) -> Result<Option<Read<T>>, FactsError> {
        match self.client.get(&key).await? {
            None => Ok(None),
            Some(bytes) => record(&key, bytes).map(Some),
        }
    }

    async fn all<T: Record>(&self, prefix: &str) -> Result<Vec<Read<T>>, FactsError> {
        let entries = self.client.prefix(prefix).await?;
        entries.into_iter().map(|(key, bytes)| record(&key, bytes)).collect()
    }

    /// The word of an operator who took the router out of service.
    pub async fn maintenance(
        &self,
        router: RouterId,
    ) -> Result<Option<Read<MaintenanceRecord>>, FactsError> {
        self.get(key::router_maintenance(router)).await
    }

    /// A router's record, together with what else is to be set.
    pub async fn stand(&self, router: &RouterRecord, also: Transaction) -> Result<(), FactsError> {
        self.client.commit(also.set(key::router(router.router), router.to_record())).await?;
        Ok(())
    }

    /// The router's record and its session at once, if what `asserted` says still holds. Whoever held one under this id
    /// before is dead: the caller has the lock on its data.
    pub async fn open_session(
        &self,
        router: &RouterRecord,
        asserted: Transaction,
    ) -> Result<Session, FactsError> {
        let id = key::router_session(router.router);
        let known = self.client.sessions(&id).await?.into_iter();
        let former = known.filter(|session| session.id == id).map(|session| session.incarnation);
        let options = SessionOptions {
            replaces: former.last(),
            along: asserted.set(key::router(router.router), router.to_record()),
            ..SessionOptions::new(&id)
        };
        Ok(Session::open(&self.client, options).await?)
    }

    /// The record of a router that stops, and the end of its session.
    pub async fn sign_off(
        &self,
        router: &RouterRecord,
        session: Option<Incarnation>,
    ) -> Result<(), FactsError> {
        let mut last = Transaction::new().set(key::router(router.router), router.to_record());
        if let Some(incarnation) = session {
            last = last.close_session(key::router_session(router.router), incarnation);
        }
        self.client.commit(last).await?;
        Ok(())
    }

    /// The routers' sessions that live.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, FactsError> {
        Ok(self.client.sessions(key::ROUTERS).await?)
    }

    pub async fn routers(&self) -> Result<Vec<RouterRecord>, FactsError> {
        Ok(self.all(key::ROUTERS).await?.into_iter().map(|read| read.value).collect())
    }

    pub async fn router(&self, router: RouterId) -> Result<Option<Read<RouterRecord>>, FactsError> {
        self.get(key::router(router)).await
    }

    pub async fn vpool(&self, name: &str) -> Result<Option<VpoolRecord>, FactsError> {
        Ok(self.get(key::vpool(name)).await?.map(|read| read.value))
    }

    /// What vDisks made in this vPool get.
    pub async fn vpool_dtl(&self, name: &str) -> Result<DtlMode, FactsError> {
        let read: Option<Read<VpoolDtl>> = self.get(key::vpool_dtl(name)).await?;
        Ok(read.map_or(DtlMode::NoTarget, |read| read.value.mode))
    }

    /// `None`: the vDisk has no DTL, whatever it had before.
    pub async fn dtl(&self, vdisk: VdiskId) -> Result<Option<Read<DtlRecord>>, FactsError> {
        let read = self.dtl_record(vdisk).await?;
        Ok(read.filter(|read| read.value.mode != DtlMode::NoTarget))
    }

    /// Also of a vDisk that has none any more.
    pub async fn dtl_record(&self, vdisk: VdiskId) -> Result<Option<Read<DtlRecord>>, FactsError> {
        self.get(key::vdisk_dtl(vdisk)).await
    }

    /// How many DTL targets an operator wants the vDisk to have. `None`: as routers stand.
    pub async fn dtl_wish(&self, vdisk: VdiskId) -> Result<Option<usize>, FactsError> {
        let read: Option<Read<DtlTargets>> = self.get(key::vdisk_dtl_targets(vdisk)).await?;
        Ok(read.map(|read| read.value.count.into()))
    }

    /// Asserts the vDisk's record: only its owner changes this.
    pub async fn change_dtl_wish(&self, owner: &VdiskRecord, count: u8) -> Result<(), FactsError> {
        let key = key::vdisk_dtl_targets(owner.vdisk);
        let wish = DtlTargets { count }.to_record();
        let transaction =
            Transaction::new().assert_value(key::vdisk(owner.vdisk), owner.to_record());
        self.client.commit(transaction.set(&key, wish)).await?;
        Ok(())
    }

    /// The DTL targets of every vDisk that has any.
    pub async fn dtl_targets(&self) -> Result<BTreeMap<VdiskId, Vec<RouterId>>, FactsError> {
        let entries = self.client.prefix(key::VDISK_DTLS).await?;
        let target = |(key, bytes): (Bytes, Bytes)| {
            let read: Read<DtlRecord> = record(&key, bytes)?;
            Ok(key::vdisk_of_dtl(&key).map(|vdisk| (vdisk, read.value.facts.targets)))
        };
        entries.into_iter().filter_map(|entry| target(entry).transpose()).collect()
    }

    /// What routers said last of what they carry.
    pub async fn loads(&self) -> Result<BTreeMap<RouterId, RouterLoad>, FactsError> {
        let entries = self.client.prefix(key::LOADS).await?;
        let load = |(key, bytes): (Bytes, Bytes)| {
            let read: Read<RouterLoad> = record(&key, bytes)?;
            Ok(key::router_of_load(&key).map(|router| (router, read.value)))
        };
        entries.into_iter().filter_map(|entry| load(entry).transpose()).collect()
    }

    pub async fn tell_load(&self, router: RouterId, load: &RouterLoad) -> Result<(), FactsError> {
        let told = Transaction::new().set(key::router_load(router), load.to_record());
        self.client.commit(told).await?;
        Ok(())
    }

    /// Who hands a vDisk over for the sake of load now, or began to.
    pub async fn rebalance_turn(&self) -> Result<Option<Read<RebalanceTurn>>, FactsError> {
        self.get(key::rebalance_turn()).await
    }

    /// Fails when somebody else was quicker, or the session is over.
    pub async fn take_turn(
        &self,
        old: Option<Read<RebalanceTurn>>,
        turn: &RebalanceTurn,
    ) -> Result<(), FactsError> {
        let key = key::rebalance_turn();
        let taken = Transaction::new()
            .assert_is(&key, old.map(|read| read.bytes))
            .assert_session_lives(key::router_session(turn.router), turn.incarnation)
            .set(&key, turn.to_record());
        self.client.commit(taken).await?;
        Ok(())
    }

    pub async fn end_turn(&self, turn: &RebalanceTurn) -> Result<(), FactsError> {
        let key = key::rebalance_turn();
        let ended = Transaction::new().assert_value(&key, turn.to_record()).delete(&key);
        self.client.commit(ended).await?;
        Ok(())
    }

    /// Where the edges run that vDisks are attached to, as far as it is known.
    pub async fn edge_domains(&self) -> Result<BTreeMap<VdiskId, String>, FactsError> {
        let entries = self.client.prefix(key::ATTACHMENTS).await?;
        let domain = |(key, bytes): (Bytes, Bytes)| {
            let read: Read<AttachmentsRecord> = record(&key, bytes)?;
            Ok(key::vdisk_of_attachments(&key).zip(near_edge(&read.value)))
        };
        entries.into_iter().filter_map(|entry| domain(entry).transpose()).collect()
    }

    /// The owner's proposals: fails when somebody has claimed the vDisk, as the epoch is in the record.
    pub async fn change_dtl(
        &self,
        vdisk: VdiskId,
        old: &Read<DtlRecord>,
        new: &DtlRecord,
    ) -> Result<(), FactsError> {
        let (old, new) = (Some(old.bytes.clone()), Some(new.to_record()));
        self.client.compare_and_set(key::vdisk_dtl(vdisk), old, new).await?;
        Ok(())
    }

    /// The record is still as it was read, and the vDisk this owner's at this epoch: nothing changes.
    pub async fn confirm_dtl(
        &self,
        owner: &Read<VdiskRecord>,
        dtl: &Read<DtlRecord>,
    ) -> Result<(), FactsError> {
        let vdisk = owner.value.vdisk;
        let confirmed = Transaction::new()
            .assert_value(key::vdisk(vdisk), owner.bytes.clone())
            .assert_value(key::vdisk_dtl(vdisk), dtl.bytes.clone());
        self.client.commit(confirmed).await?;
        Ok(())
    }

    /// Commits a change together with what `also` asserts.
    pub async fn change(
        &self,
        change: Change<'_>,
        also: Transaction,
    ) -> Result<Read<VdiskRecord>, FactsError> {
        let (old, new) = change.vdisk;
        let (key, bytes) = (key::vdisk(new.vdisk), new.to_record());
        let mut all = also.assert_value(&key, old.bytes.clone()).set(&key, bytes.clone());
        if let Some((old, new_dtl)) = change.dtl {
            let key = key::vdisk_dtl(new.vdisk);
            all = all.assert_value(&key, old.bytes.clone()).set(&key, new_dtl.to_record());
        }
        self.client.commit(all).await?;
        Ok(Read { value: new, bytes })
    }

    /// A vDisk that never had a DTL gets a record of one, together with its own change and what `also` asserts.
    pub async fn first_dtl(
        &self,
        (old, new): (&Read<VdiskRecord>, VdiskRecord),
        dtl: &DtlRecord,
        also: Transaction,
    ) -> Result<Read<VdiskRecord>, FactsError> {
        let key = key::vdisk_dtl(new.vdisk);
        let also = also.assert_absent(&key).set(&key, dtl.to_record());
        self.change(Change { vdisk: (old, new), dtl: None }, also).await
    }

    /// `None`: it was never contested.
    pub async fn contest(&self, vdisk: VdiskId) -> Result<Option<Read<ContestRecord>>, FactsError> {
        self.get(key::vdisk_contest(vdisk)).await
    }

    /// `None`: it never lost anything that an operator gave up.
    pub async fn losses(&self, vdisk: VdiskId) -> Result<Option<Read<LossRecord>>, FactsError> {
        self.get(key::vdisk_loss(vdisk)).await
    }

    /// Of all vDisks that ever were.
    pub async fn contests(&self) -> Result<Vec<(VdiskId, ContestRecord)>, FactsError> {
        let mut all = Vec::new();
        for (key, bytes) in self.client.prefix(CONTESTS).await? {
            let name =
                key.strip_prefix(CONTESTS.as_bytes()).and_then(|id| std::str::from_utf8(id).ok());
            let Some(vdisk) = name.and_then(|id| id.parse().ok()) else { continue };
            all.push((vdisk, record::<ContestRecord>(&key, bytes)?.value));
        }
        Ok(all)
    }

    pub async fn vdisk(&self, vdisk: VdiskId) -> Result<Option<Read<VdiskRecord>>, FactsError> {
        self.get(key::vdisk(vdisk)).await
    }

    pub async fn vdisks(&self) -> Result<Vec<Read<VdiskRecord>>, FactsError> {
        self.all(key::VDISKS).await
    }

    pub async fn vdisk_id(&self, name: &str) -> Result<Option<VdiskId>, FactsError> {
        let key = key::vdisk_name(name);
        let Some(bytes) = self.client.get(&key).await? else { return Ok(None) };
        let id: [u8; 16] = bytes[..].try_into().map_err(|_| FactsError::Record {
            key: key.escape_ascii().to_string(),
            problem: format!("{} bytes instead of 16", bytes.len()),
        })?;
        Ok(Some(VdiskId(u128::from_le_bytes(id))))
    }

    pub async fn vdisk_by_name(&self, name: &str) -> Result<Option<Read<VdiskRecord>>, FactsError> {
        match self.vdisk_id(name).await? {
            Some(vdisk) => self.vdisk(vdisk).await,
            None => Ok(None),
        }
    }

    /// Name and record at once, if the name is free.
    pub async fn create_vdisk(&self, vdisk: &VdiskRecord, mode: DtlMode) -> Result<(), FactsError> {
        let name = key::vdisk_name(&vdisk.name);
        let id = Bytes::copy_from_slice(&vdisk.vdisk.0.to_le_bytes());
        let mut transaction = Transaction::new()
            .assert_absent(&name)
            .assert_absent(key::vdisk(vdisk.vdisk))
            .set(&name, id)
            .set(key::vdisk(vdisk.vdisk), vdisk.to_record());
        if mode != DtlMode::NoTarget {
            let dtl = DtlRecord::new(mode);
            transaction = transaction.set(key::vdisk_dtl(vdisk.vdisk), dtl.to_record());
        }
        self.client.commit(transaction).await?;
        Ok(())
    }

    pub async fn change_vdisk(
        &self,
        old: &Read<VdiskRecord>,
        new: &VdiskRecord,
    ) -> Result<Read<VdiskRecord>, FactsError> {
        let bytes = new.to_record();
        self.client
            .compare_and_set(key::vdisk(new.vdisk), Some(old.bytes.clone()), Some(bytes.clone()))
            .await?;
        Ok(Read { value: new.clone(), bytes })
    }

    /// The last step of a deletion: its objects are gone already.
    pub async fn remove_vdisk(&self, old: &Read<VdiskRecord>) -> Result<(), FactsError> {
        let vdisk = old.value.vdisk;
        let transaction = Transaction::new()
            .assert_value(key::vdisk(vdisk), old.bytes.clone())
            .delete(key::vdisk_name(&old.value.name))
            .delete(key::attachments(vdisk))
            .delete(key::vdisk_dtl(vdisk))
            .delete(key::vdisk_dtl_targets(vdisk))
            .delete(key::vdisk_contest(vdisk))
            .delete(key::vdisk_loss(vdisk))
            .delete(key::vdisk(vdisk));
        self.client.commit(transaction).await?;
        Ok(())
    }

    /// `None` bytes = never attached.
    pub async fn attachments(
        &self,
        vdisk: VdiskId,
    ) -> Result<(AttachmentsRecord, Option<Bytes>), FactsError> {
        let read: Option<Read<AttachmentsRecord>> = self.get(key::attachments(vdisk)).await?;
        Ok(match read {
            Some(read) => (read.value, Some(read.bytes)),
            None => {
                let last_generation = model::AttachmentGeneration::ZERO;
                (AttachmentsRecord { last_generation, live: Vec::new() }, None)
            }
        })
    }

    /// Asserts the vDisk's epoch too: only its owner changes attachments.
    pub async fn change_attachments(
        &self,
        owner: &VdiskRecord,
        old: Option<Bytes>,
        new: &AttachmentsRecord,
    ) -> Result<Revision, FactsError> {
        let key = key::attachments(owner.vdisk);
        let transaction = Transaction::new()
            .assert_value(key::vdisk(owner.vdisk), owner.to_record())
            .assert_is(&key, old)
            .set(&key, new.to_record());
        Ok(self.client.commit(transaction).await?)
    }
}
