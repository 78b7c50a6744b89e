//! Forgets logs that nobody will ask for any more: of vDisks that were deleted, or that took other targets, while this
//! router was away (L8).
//!
//! Whoever deletes a vDisk or replaces a target tells it so, best effort; this is for those that didn't hear it. What may
//! be forgotten is [`may_count`]'s to say, from records read after the logs were listed.

use std::sync::Arc;
use std::time::Duration;

use model::{DtlGeneration, VdiskId};
use router_core::dtl::target::may_count;
use runtime::random::jitter;

use crate::facts::FactsError;
use crate::router::Router;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(300);
/// When arakoon couldn't be asked.
const AGAIN: Duration = Duration::from_secs(5);

impl Router {
    pub(crate) async fn sweep_loop(self: Arc<Self>) {
        loop {
            let pause = match self.sweep().await {
                Ok(()) => PERIOD,
                Err(error) => {
                    tracing::debug!(%error, "can't ask which DTL logs are still needed");
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(jitter(pause)) => {}
                () = self.stop.wait() => return,
            }
        }
    }

    async fn sweep(&self) -> Result<(), FactsError> {
        for (vdisk, generations) in self.dtl.held() {
            let gone = self.orphans(vdisk, generations.as_deref()).await?;
            match (&generations, gone) {
                (_, None) => {}
                (Some(_), Some(gone)) if gone.is_empty() => {}
                (Some(_), Some(gone)) => {
                    tracing::info!(%vdisk, ?gone, "forgetting DTL logs that arakoon's record doesn't need any more");
                    self.dtl.forget(vdisk, &gone);
                }
                (None, Some(_)) => {
                    tracing::info!(%vdisk, "forgetting unreadable DTL logs of a vDisk that is gone");
                    self.dtl.forget_unreadable(vdisk);
                }
            }
        }
        Ok(())
    }

    /// Which of these generations count for nothing any more; `None`: of logs that can't be read all may still count.
    async fn orphans(
        &self,
        vdisk: VdiskId,
        generations: Option<&[DtlGeneration]>,
    ) -> Result<Option<Vec<DtlGeneration>>, FactsError> {
        let dtl = self.facts.dtl_record(vdisk).await?;
        if dtl.is_none() && self.facts.vdisk(vdisk).await?.is_some() {
            // Its deletion isn't done.
            return Ok(None);
        }
        let facts = dtl.as_ref().map(|read| &read.value.facts);
        let Some(generations) = generations else {
            return Ok(facts.is_none().then(Vec::new));
        };
        let counts = |generation: &&DtlGeneration| may_count(facts, self.id, **generation);
        let gone = generations.iter().filter(|one| !counts(one));
        Ok(Some(gone.copied().collect()))
    }
}
