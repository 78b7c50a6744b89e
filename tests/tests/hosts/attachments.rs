//! Two edges and one exclusive vDisk (P4).

use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::cluster::wait_until;
use holdfast_tests::history::Survival;
use holdfast_tests::nbd::Connection;
use holdfast_tests::owner::progress;
use holdfast_tests::workload::Counts;

use crate::Scene;

/// How long a refusal may take.
const LIMIT: Duration = Duration::from_secs(30);

pub fn second_edge(scene: &Scene) -> anyhow::Result<()> {
    let going = scene.load(51)?;
    let refused = Connection::open(&scene.spread.target(2)?);
    let said = refused.err().map(|error| format!("{error:#}"));
    eprintln!("the second edge is told: {said:?}");
    ensure!(
        said.is_some_and(|said| said.contains("edge-1")),
        "the second edge isn't refused by the name of the first"
    );
    progress(&scene.verifier, &going, 50)?;
    let third = Connection::open_within(&scene.spread.target(3)?, LIMIT)?;
    wait_until(LIMIT, "the first edge to fail its requests", || {
        Ok(0 < Counts::get(&scene.verifier.counts().errors) || going.has_ended())
    })?;
    drop(going.stop());
    drop(third);
    // What the first one was promised, the next one has (L1).
    scene.verifier.moved(scene.spread.target(3)?).check(Survival::Alive)
}
