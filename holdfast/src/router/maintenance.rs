//! A router taken out of service, and taken back.
//!
//! A router that runs is asked; for one that doesn't, arakoon is told, and it finds the mark when it starts.
//!
//! Invariant: the mark of a router that doesn't run is set together with its record as it was read, so one that just
//! starts isn't overwritten.

use super::{Desk, LIMIT};
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::vdisk::recover::operator;
use arakoon_client::Transaction;
use serde_json::json;
use wire::facts::{MaintenanceRecord, Record, RouterRecord, RouterState, key};

impl Desk<'_> {
    pub(super) async fn offline(&self, name: &str, format: Format) -> Result<(), Failure> {
        let known = self.known().await?;
        let router = known.router(name)?;
        let left: Vec<&str> = known.owned(router.router).map(|vdisk| vdisk.name.as_str()).collect();
        let runs = known.heard(router.router).is_some();
        if runs && !left.is_empty() {
            return Err(Failure::failed(format!(
                "{name} owns {} vDisks ({}); `holdfast router drain {name}` hands them over first",
                left.len(),
                left.join(", ")
            )));
        }
        if runs {
            self.set_standing(router, RouterState::Offline).await?;
        } else {
            self.mark(router, RouterState::Offline).await?;
        }
        if format.json {
            return print_json(
                &json!({"id": name, "state": "offline", "runs": runs, "left": left}),
            );
        }
        print(&format!(
            "{name} is chosen for nothing until `holdfast router resume {name}`, restarts or not\n"
        ));
        if !left.is_empty() {
            print(&format!(
                "it doesn't run, and others must claim what it owns: {}\nan edge that asks makes them; what can't be claimed, `holdfast vdisk recover NAME` explains\n",
                left.join(", ")
            ));
        }
        Ok(())
    }

    /// Marks a router that doesn't run, or takes the mark away.
    pub(super) async fn mark(
        &self,
        router: &RouterRecord,
        wanted: RouterState,
    ) -> Result<(), Failure> {
        let offline = wanted == RouterState::Offline;
        let (key, mark) = (key::router(router.router), key::router_maintenance(router.router));
        // One that stopped cleanly stays Offline: others take what it left behind.
        let state = match (router.state, offline) {
            (RouterState::Offline, _) => RouterState::Offline,
            (RouterState::Online | RouterState::Draining, true) => RouterState::Draining,
            (RouterState::Online | RouterState::Draining, false) => RouterState::Online,
        };
        let record = RouterRecord { state, ..router.clone() };
        let both =
            Transaction::new().assert_value(&key, router.to_record()).set(&key, record.to_record());
        let at_unix_ms = runtime::clock::unix_ms();
        let both = if offline {
            both.set(&mark, MaintenanceRecord { at_unix_ms, by: operator() }.to_record())
        } else {
            both.delete(&mark)
        };
        let arakoon = self.admin.arakoon(self.cluster, LIMIT);
        arakoon.commit(both).await.map(drop).map_err(|error| {
            Failure::failed(format!(
                "router {}: {error}; if it just starts or stops, try again",
                router.name
            ))
        })
    }
}
