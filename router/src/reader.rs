//! Reads: what is pending in memory, else where the page map points, else zeroes.
//!
//! A read is answered at once when memory has it all; only a cold one becomes a task. Objects are never overwritten, so a
//! location that was looked up stays good while its frame is on the way.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use model::{ByteRange, Cluster, ClusterRange, Epoch, ObjectId, ScoNumber, VdiskId};
use router_core::overlay::{Lookup, RunKind};
use router_core::page::{Location, PAGE_CLUSTERS, Page, place};
use router_core::sco::Frame;
use router_core::{CLUSTER, crc32c, plan};
use runtime::rpc::Responder;
use wire::WireError;
use wire::router::{Extent, ExtentKind, Extents, ReadDone, code};

use crate::frames::{Fetched, FrameKey, Part, ReadError};
use crate::map_store::MapError;
use crate::router::{Router, read_failed};
use crate::state::{Serving, Slot};

static ZEROES: [u8; CLUSTER] = [0; CLUSTER];
/// CRC-32C of a cluster of zeroes.
const ZERO_CRC: u32 = 0x98f9_4189;
/// Sequential reads in a row before the next bytes are fetched ahead.
const STREAK: u32 = 2;
/// Clusters fetched ahead: 1 MiB.
const AHEAD: u64 = 256;
/// Pages that one block status looks at; it may end early.
const STATUS_PAGES: usize = 1024;

/// What a cluster holds.
#[derive(Debug, Clone)]
pub enum Content {
    Data(Bytes, u32),
    Zero,
}

/// Which of the clusters asked for, and where it lies.
type Wanted = (usize, Location);

enum Probe {
    Known(Content),
    At(Location),
    /// The map's page isn't in memory.
    Page,
}

/// Pages and frames in memory. Neighbours mostly share both, so the last ones are kept at hand.
struct Memory<'a> {
    router: &'a Router,
    vdisk: VdiskId,
    page: Option<(u64, Option<Arc<Page>>)>,
    frame: Option<(FrameKey, Option<Frame>)>,
}

impl Memory<'_> {
    fn probe(&mut self, cluster: Cluster) -> Probe {
        let (number, index) = place(cluster);
        let page = match &self.page {
            Some((last, page)) if *last == number => page,
            Some(_) | None => {
                let page = self.router.maps.peek(self.vdisk, number);
                &self.page.insert((number, page)).1
            }
        };
        match page.as_ref().map(|page| page.get(index)) {
            Some(None) => Probe::Known(Content::Zero),
            Some(Some(location)) => self.probe_frame(cluster, location),
            None => Probe::Page,
        }
    }

    fn probe_frame(&mut self, cluster: Cluster, location: Location) -> Probe {
        let key = FrameKey::of(self.vdisk, location);
        let frame = match &self.frame {
            Some((last, frame)) if *last == key => frame,
            Some(_) | None => {
                let frame = self.router.frames.cached(&key);
                &self.frame.insert((key, frame)).1
            }
        };
        match frame.as_ref().and_then(|frame| frame.cluster(location, cluster).ok()) {
            Some((data, checksum)) => Probe::Known(Content::Data(data, checksum)),
            None => Probe::At(location),
        }
    }
}

impl From<MapError> for ReadError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::BadPage { .. }
            | MapError::Damaged(_)
            | MapError::Mismatch { .. }
            | MapError::Closed(_) => Self::MapDamaged(error.to_string()),
            MapError::Behind(_) => Self::MapBehind(error.to_string()),
            MapError::Store(_) | MapError::Incoming(_) => Self::Map(error.to_string()),
        }
    }
}

impl Router {
    /// Until `keep` says no.
    fn probe_while<T>(
        &self,
        vdisk: VdiskId,
        clusters: &[Cluster],
        keep: impl Fn(Probe) -> Option<T>,
    ) -> Option<Vec<T>> {
        let state = self.state();
        let overlay = match state.volumes.get(&vdisk) {
            Some(Slot::Serving(serving)) => Some(&serving.core.overlay),
            Some(_) | None => None,
        };
        let mut memory = Memory { router: self, vdisk, page: None, frame: None };
        let mut probes = Vec::with_capacity(clusters.len());
        for cluster in clusters {
            let found = overlay.map_or(Lookup::Below, |overlay| overlay.lookup(*cluster));
            probes.push(keep(match found {
                Lookup::Data(data, checksum) => Probe::Known(Content::Data(data, checksum)),
                Lookup::Unmapped => Probe::Known(Content::Zero),
                Lookup::Below => memory.probe(*cluster),
            })?);
        }
        Some(probes)
    }

    fn probe(&self, vdisk: VdiskId, clusters: &[Cluster]) -> Vec<Probe> {
        self.probe_while(vdisk, clusters, Some).expect("all are kept")
    }

    /// The content of clusters, if memory has all of it.
    pub fn peek_all(&self, vdisk: VdiskId, clusters: &[Cluster]) -> Option<Vec<Content>> {
        self.probe_while(vdisk, clusters, |probe| match probe {
            Probe::Known(content) => Some(content),
            Probe::At(_) | Probe::Page => None,
        })
    }

    /// The content of clusters, wherever it is.
    ///
    /// # Errors
    /// When a cluster can't be read or fails its checksum.
    pub async fn read_clusters(
        &self,
        vdisk: VdiskId,
        clusters: &[Cluster],
    ) -> Result<Vec<Content>, ReadError> {
        let read = self.try_read_clusters(vdisk, clusters).await;
        if let Err(ReadError::MapDamaged(reason)) = &read {
            self.ask_for_rebuild(vdisk, reason);
        }
        read
    }

    /// The committer rebuilds the map: it is the only one that changes it.
    fn ask_for_rebuild(&self, vdisk: VdiskId, reason: &str) {
        tracing::error!(%vdisk, reason, "the page map is damaged");
        if let Ok(serving) = self.state().serving(vdisk) {
            serving.map_damaged = true;
            serving.committer.notify_one();
        }
    }

    async fn try_read_clusters(
        &self,
        vdisk: VdiskId,
        clusters: &[Cluster],
    ) -> Result<Vec<Content>, ReadError> {
        let mut probes = self.probe(vdisk, clusters);
        if probes.iter().any(|probe| matches!(probe, Probe::Page)) {
            self.load_pages(vdisk, clusters, &probes).await?;
            // Probed anew as a whole: what was committed meanwhile left the overlay for the map.
            probes = self.probe(vdisk, clusters);
        }
        let mut contents = Vec::with_capacity(clusters.len());
        let mut cold: BTreeMap<ScoNumber, Vec<Wanted>> = BTreeMap::new();
        for (index, (probe, cluster)) in probes.into_iter().zip(clusters).enumerate() {
            let location = match probe {
                Probe::Known(content) => {
                    contents.push(Some(content));
                    continue;
                }
                Probe::At(location) => Some(location),
                // Evicted again in between: asked for directly.
                Probe::Page => self.load_location(vdisk, *cluster).await?,
            };
            match location {
                Some(location) => {
                    contents.push(None);
                    cold.entry(location.number()).or_default().push((index, location));
                }
                None => contents.push(Some(Content::Zero)),
            }
        }
        self.read_cold(vdisk, clusters, cold, &mut contents).await?;
        Ok(contents.into_iter().map(|content| content.expect("all were filled")).collect())
    }

    async fn read_cold(
        &self,
        vdisk: VdiskId,
        clusters: &[Cluster],
        cold: BTreeMap<ScoNumber, Vec<Wanted>>,
        contents: &mut [Option<Content>],
    ) -> Result<(), ReadError> {
        if let Some((number, wanted)) = cold.first_key_value()
            && cold.len() == 1
            && let [(index, location)] = wanted[..]
        {
            let object = self.object(vdisk, *number)?;
            let frame = self.frames.one(object, location).await?;
            contents[index] = Some(content_of(&frame, object, location, clusters[index])?);
            return Ok(());
        }
        let mut coming: Vec<(ObjectId, Fetched, Vec<Wanted>)> = Vec::new();
        for (number, wanted) in cold {
            let object = self.object(vdisk, number)?;
            let frame_of = |(_, location): &Wanted| FrameKey::of(vdisk, *location);
            let by_frame = wanted.chunk_by(|one, next| frame_of(one) == frame_of(next));
            let by_frame: Vec<Vec<Wanted>> = by_frame.map(<[_]>::to_vec).collect();
            let part_of =
                |wanted: &Vec<Wanted>| (wanted[0].1, Part::with(wanted.len(), wanted[0].1));
            let parts: Vec<_> = by_frame.iter().map(part_of).collect();
            let fetched = self.frames.fetch(object, &parts);
            coming.extend(
                fetched
                    .into_iter()
                    .zip(by_frame)
                    .map(|(fetched, wanted)| (object, fetched, wanted)),
            );
        }
        for (object, fetched, wanted) in coming {
            let frame = fetched.get().await?;
            for (index, location) in wanted {
                contents[index] = Some(content_of(&frame, object, location, clusters[index])?);
            }
        }
        Ok(())
    }

    fn object(&self, vdisk: VdiskId, number: ScoNumber) -> Result<ObjectId, ReadError> {
        self.maps.object(vdisk, number).ok_or_else(|| {
            ReadError::Map(format!("SCO {number} of vDisk {vdisk} has no known epoch"))
        })
    }

    async fn load_pages(
        &self,
        vdisk: VdiskId,
        clusters: &[Cluster],
        probes: &[Probe],
    ) -> Result<(), ReadError> {
        let missing = clusters.iter().zip(probes).filter(|(_, probe)| matches!(probe, Probe::Page));
        let mut pages: Vec<u64> = missing.map(|(cluster, _)| cluster.0 / PAGE_CLUSTERS).collect();
        pages.dedup();
        let maps = self.maps.clone();
        blocking(move || pages.into_iter().try_for_each(|page| maps.load(vdisk, page).map(drop)))
            .await
    }

    async fn load_location(
        &self,
        vdisk: VdiskId,
        cluster: Cluster,
    ) -> Result<Option<Location>, ReadError> {
        let maps = self.maps.clone();
        let (page, index) = router_core::page::place(cluster);
        blocking(move || maps.load(vdisk, page).map(|page| page.get(index))).await
    }

    /// Answers a read whose request passed its checks.
    pub fn read(self: &Arc<Self>, vdisk: VdiskId, range: ByteRange, responder: Responder) {
        let clusters: Vec<Cluster> = range.clusters_touched().iter().collect();
        let (epoch, ahead) = match self.note_read(vdisk, range) {
            Ok(noted) => noted,
            Err(error) => return responder.fail(error),
        };
        match self.peek_all(vdisk, &clusters) {
            Some(contents) if self.may_answer(vdisk) => {
                answer(range, &clusters, contents, responder);
            }
            Some(_) | None => {
                let router = Arc::clone(self);
                tokio::spawn(async move {
                    let contents = match router.read_clusters(vdisk, &clusters).await {
                        Ok(contents) => contents,
                        Err(error) => return responder.fail(read_failed(&error)),
                    };
                    match router.wait_to_answer((vdisk, epoch)).await {
                        Ok(()) => answer(range, &clusters, contents, responder),
                        Err(error) => responder.fail(error),
                    }
                });
            }
        }
        if let Some(ahead) = ahead {
            let router = Arc::clone(self);
            tokio::spawn(async move {
                let clusters: Vec<Cluster> = ahead.iter().collect();
                // Only warms the cache; a reader that needs it meets the error itself.
                let _ = router.read_clusters(vdisk, &clusters).await;
            });
        }
    }

    /// P16: whether data that were gathered before now may be answered.
    fn may_answer(&self, vdisk: VdiskId) -> bool {
        match self.state().serving(vdisk) {
            Ok(serving) if serving.handing_over => false,
            Ok(serving) => {
                let seen = serving.core.last_lsn();
                serving.protection.as_ref().is_none_or(|p| p.may_show(seen))
            }
            Err(_) => false,
        }
    }

    /// P16: waits until data that were gathered before now, under this epoch, may be answered.
    ///
    /// # Errors
    /// When the right to read doesn't come in time, or the vDisk isn't served here any more.
    pub async fn wait_to_answer(&self, (vdisk, epoch): (VdiskId, Epoch)) -> Result<(), WireError> {
        let waits_for = self.serving_at(vdisk, epoch, Serving::wait_to_show)?;
        if let Some((right, seen)) = waits_for {
            right.wait(seen).await?;
        }
        // The next owner may serve already: it needs nothing of this one once the record has changed.
        if self.serving_at(vdisk, epoch, |serving| serving.handing_over)? {
            return Err(WireError::retry(code::RECOVERING, "the vDisk is being handed over"));
        }
        Ok(())
    }

    /// It may have been away meanwhile: what was gathered before says nothing of what is there now.
    fn serving_at<T>(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        ask: impl FnOnce(&mut Serving) -> T,
    ) -> Result<T, WireError> {
        let mut state = self.state();
        match state.serving(vdisk)? {
            serving if serving.core.epoch() == epoch => Ok(ask(serving)),
            _ => Err(opened_anew()),
        }
    }

    /// Remembers where readers are; returns under which epoch this one began, and what to fetch ahead of a sequential one.
    fn note_read(
        &self,
        vdisk: VdiskId,
        range: ByteRange,
    ) -> Result<(Epoch, Option<ClusterRange>), WireError> {
        let mut state = self.state();
        let serving = state.serving(vdisk)?;
        let epoch = serving.core.epoch();
        let sequential = serving.read_end == range.start();
        serving.read_streak = if sequential { serving.read_streak.saturating_add(1) } else { 0 };
        serving.read_end = range.end();
        // Each stretch is fetched once: when the reader crosses into it.
        let stretch = AHEAD * CLUSTER as u64;
        let crossed = range.start() / stretch != range.end() / stretch;
        if serving.read_streak < STREAK || !crossed {
            return Ok((epoch, None));
        }
        let size = serving.core.size_bytes / CLUSTER as u64;
        let start = (range.end() / stretch * AHEAD).min(size);
        let end = (start + 2 * AHEAD).min(size);
        let ahead = ClusterRange { start: Cluster(start), end: Cluster(end) };
        Ok((epoch, (start < end).then_some(ahead)))
    }

    /// Which parts of a range are mapped; may end early.
    ///
    /// # Errors
    /// When the map can't be read.
    pub async fn block_status(
        &self,
        vdisk: VdiskId,
        range: ByteRange,
        extents_max: usize,
    ) -> Result<Extents, WireError> {
        let touched = range.clusters_touched();
        let mut runs: Vec<(ExtentKind, u64)> = Vec::new();
        let mut at = touched.start;
        let mut pages = 0;
        while at < touched.end && runs.len() <= extents_max && pages < STATUS_PAGES {
            let pending = self.state().serving(vdisk)?.core.overlay.run(at, touched.end);
            let (kind, len) = match pending {
                (RunKind::Data, len) => (ExtentKind::Data, len),
                (RunKind::Hole, len) => (ExtentKind::Hole, len),
                (RunKind::Below, len) => {
                    pages += 1;
                    let maps = self.maps.clone();
                    blocking(move || map_run(&maps, vdisk, at, Cluster(at.0 + len)))
                        .await
                        .inspect_err(|error| {
                            if let ReadError::MapDamaged(reason) = error {
                                self.ask_for_rebuild(vdisk, reason);
                            }
                        })
                        .map_err(|error: ReadError| read_failed(&error))?
                }
            };
            at = Cluster(at.0 + len);
            match runs.last_mut() {
                Some((last, total)) if *last == kind => *total += len,
                Some(_) | None => runs.push((kind, len)),
            }
        }
        runs.truncate(extents_max.max(1));
        Ok(Extents { extents: clip(range, &runs) })
    }
}

fn content_of(
    frame: &Frame,
    object: ObjectId,
    location: Location,
    cluster: Cluster,
) -> Result<Content, ReadError> {
    let (data, checksum) = frame
        .cluster(location, cluster)
        .map_err(|error| ReadError::Damaged { object, reason: error.to_string() })?;
    Ok(Content::Data(data, checksum))
}

fn opened_anew() -> WireError {
    WireError::retry(code::RECOVERING, "the vDisk was opened anew meanwhile")
}

/// The kind of the map from `at` on, and for how many clusters (at most to the end of its page, or of a gap).
fn map_run(
    maps: &crate::map_store::MapStore,
    vdisk: VdiskId,
    at: Cluster,
    end: Cluster,
) -> Result<(ExtentKind, u64), MapError> {
    let (number, index) = router_core::page::place(at);
    let page = maps.load(vdisk, number)?;
    if page.is_empty() {
        let next = maps.next_page(vdisk, number + 1)?;
        let stop = next.map_or(end.0, |page| end.0.min(page * PAGE_CLUSTERS));
        return Ok((ExtentKind::Hole, stop - at.0));
    }
    let mapped = page.get(index).is_some();
    let stop = (index..512).find(|i| page.get(*i).is_some() != mapped).unwrap_or(512);
    let kind = if mapped { ExtentKind::Data } else { ExtentKind::Hole };
    Ok((kind, ((stop - index) as u64).min(end.0 - at.0)))
}

/// Runs of clusters as extents of the bytes asked for.
fn clip(range: ByteRange, runs: &[(ExtentKind, u64)]) -> Vec<Extent> {
    let mut at = range.clusters_touched().start.0 * CLUSTER as u64;
    let mut extents = Vec::with_capacity(runs.len());
    for (kind, clusters) in runs {
        let end = at + clusters * CLUSTER as u64;
        let len = end.min(range.end()).saturating_sub(at.max(range.start()));
        at = end;
        if 0 < len {
            extents.push(Extent { len, kind: *kind });
        }
    }
    extents
}

fn answer(range: ByteRange, clusters: &[Cluster], contents: Vec<Content>, responder: Responder) {
    let mut checksums = Vec::with_capacity(contents.len());
    let mut parts = Vec::with_capacity(contents.len());
    for (cluster, content) in clusters.iter().zip(contents) {
        let (start, len) = plan::part(range, *cluster);
        let (data, checksum) = match content {
            Content::Data(data, checksum) => (data, checksum),
            Content::Zero => (Bytes::from_static(&ZEROES), ZERO_CRC),
        };
        if len == CLUSTER {
            checksums.push(checksum);
            parts.push(data);
        } else {
            let part = data.slice(start..start + len);
            checksums.push(crc32c(&part));
            parts.push(part);
        }
    }
    responder.reply_parts(&ReadDone { checksums }, parts);
}

/// Runs blocking map work off the request thread.
async fn blocking<T, F>(work: F) -> Result<T, ReadError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, MapError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ReadError::Map(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_zeroes_is_what_it_says() {
        assert_eq!(crc32c(&ZEROES), ZERO_CRC);
    }

    #[test]
    fn extents_cover_exactly_the_bytes_asked_for() {
        let range = ByteRange::new(100, 3 * 4096).unwrap();
        let extents = clip(range, &[(ExtentKind::Data, 1), (ExtentKind::Hole, 3)]);
        assert_eq!(
            extents,
            vec![
                Extent { len: 3996, kind: ExtentKind::Data },
                Extent { len: 3 * 4096 - 3996, kind: ExtentKind::Hole }
            ]
        );
    }
}
