//! Properties of rounds, and what is preferred.

use super::*;
use proptest::prelude::*;

const ALL: Limits = Limits { moves_max: usize::MAX, slack: 0 };
/// More rounds than any of these cases needs; a pair of routers that played ping-pong would need more.
const ROUNDS_MAX: usize = 2_000;

fn home(router: u128, domain: &str) -> Home {
    Home { router: RouterId(router), domain: domain.into(), room: None }
}

fn placed(vdisk: u128, owner: u128, targets: &[u128]) -> Placed {
    let targets = targets.iter().map(|id| RouterId(*id)).collect();
    let (vdisk, owner) = (VdiskId(vdisk), RouterId(owner));
    Placed { vdisk, owner, weight: 1, targets, edge: None, stays: false }
}

fn to(moves: &[Move]) -> Vec<(u128, u128)> {
    moves.iter().map(|m| (m.vdisk.0, m.to.0)).collect()
}

#[test]
fn the_same_domain_is_preferred_and_then_whoever_has_no_copy_of_the_log() {
    let homes = [home(1, "a"), home(2, "b"), home(3, "a")];
    let vdisks = [placed(1, 1, &[]), placed(2, 1, &[])];
    assert_eq!(to(&plan(&homes, &vdisks, ALL)), [(1, 3)]);
    let homes = [home(1, "a"), home(2, "b"), home(3, "c")];
    let vdisks = [placed(1, 1, &[2]), placed(2, 1, &[2])];
    assert_eq!(to(&plan(&homes, &vdisks, ALL)), [(1, 3)]);
}

#[test]
fn what_is_even_or_has_nowhere_to_go_stays() {
    let vdisks = [placed(1, 1, &[]), placed(2, 1, &[]), placed(3, 2, &[])];
    assert_eq!(plan(&[home(1, ""), home(2, "")], &vdisks, ALL), []);
    assert_eq!(plan(&[home(1, "")], &vdisks, ALL), []);
    assert_eq!(plan(&[], &vdisks, ALL), []);
    let full = Home { room: Some(0), ..home(3, "") };
    assert_eq!(plan(&[home(1, ""), full], &vdisks, ALL), []);
}

#[test]
fn a_vdisk_follows_its_edge_and_balance_does_not_take_it_away() {
    let homes = [home(1, "dc/r1/h1"), home(2, "dc/r2/h2")];
    let near =
        |vdisk, owner, edge: &str| Placed { edge: Some(edge.into()), ..placed(vdisk, owner, &[]) };
    let vdisks = [near(1, 1, "dc/r2/h9"), near(2, 2, "dc/r2/h2"), near(3, 2, "dc/r2/h2")];
    let moves = plan(&homes, &vdisks, ALL);
    assert_eq!((to(&moves), moves[0].why), (vec![(1, 2)], Why::Edge));
    let settled = vdisks.map(|vdisk| Placed { owner: RouterId(2), ..vdisk });
    assert_eq!(plan(&homes, &settled, ALL), [], "one carries nothing, and none comes nearer");
}

#[test]
fn what_cant_be_moved_counts_and_holds_up_no_other() {
    let homes = [home(1, ""), home(2, "")];
    let mut vdisks: Vec<Placed> = (0..4).map(|id| placed(id, 1, &[])).collect();
    vdisks[0].stays = true;
    let one = Limits { moves_max: 1, ..ALL };
    assert_eq!(to(&plan(&homes, &vdisks, one)), [(1, 2)]);
    assert_eq!(plan(&homes, &vdisks, ALL).len(), 2, "it is carried all the same");
}

#[test]
fn slack_keeps_what_is_nearly_even_and_busy_vdisks_weigh_more() {
    let homes = [home(1, ""), home(2, "")];
    let five: Vec<Placed> = (0..5).map(|id| placed(id, 1, &[])).collect();
    assert_eq!(plan(&homes, &five, Limits { slack: 4, ..ALL }), []);
    assert_eq!(plan(&homes, &five, Limits { slack: 3, ..ALL }).len(), 1);
    assert_eq!(plan(&homes, &five, ALL).len(), 2);
    let mut busy = five;
    busy[3].weight = 4;
    assert_eq!(to(&plan(&homes, &busy, ALL)), [(3, 2)]);
}

/// Applies rounds until one is empty; `(moves per vDisk, all that were empty of moves)`.
fn settle(homes: &[Home], all: &mut [Placed], limits: Limits) -> Result<Vec<usize>, TestCaseError> {
    let mut homes = homes.to_vec();
    let mut times = vec![0; all.len()];
    for _ in 0..ROUNDS_MAX {
        let moves = plan(&homes, all, limits);
        if moves.is_empty() {
            return Ok(times);
        }
        prop_assert!(moves.len() <= limits.moves_max);
        for step in &moves {
            let at = all.iter().position(|p| p.vdisk == step.vdisk).unwrap();
            prop_assert_eq!(all[at].owner, step.from, "moved once in a round");
            prop_assert!(step.from != step.to);
            prop_assert!(homes.iter().any(|home| home.router == step.from));
            let taker = homes.iter_mut().find(|home| home.router == step.to);
            let taker = taker.expect("only routers in service are given any");
            if let Some(room) = &mut taker.room {
                prop_assert!(0 < *room, "nothing goes to one that is full");
                *room -= 1;
            }
            let giver = homes.iter_mut().find(|home| home.router == step.from).unwrap();
            giver.room = giver.room.map(|room| room + 1);
            all[at].owner = step.to;
            times[at] += 1;
        }
    }
    Err(TestCaseError::fail("rounds don't end"))
}

fn any_homes() -> impl Strategy<Value = Vec<Home>> {
    let one = (0_u8..3, prop::option::of(0_usize..4));
    prop::collection::vec(one, 0..6).prop_map(|homes| {
        let home = |(id, (domain, room))| Home { room, ..home(id, &format!("dc/{domain}")) };
        (0..).zip(homes).map(home).collect()
    })
}

/// Owners beyond those in service: draining, offline, gone.
fn any_vdisks() -> impl Strategy<Value = Vec<Placed>> {
    let one =
        (0_u128..8, 1_u64..20, prop::collection::vec(0_u128..8, 0..3), prop::option::of(0_u8..3));
    prop::collection::vec(one, 0..40).prop_map(|vdisks| {
        let vdisk =
            |(id, (owner, weight, targets, edge)): (u128, (u128, u64, Vec<u128>, Option<u8>))| {
                let edge = edge.map(|edge| format!("dc/{edge}"));
                Placed { weight, edge, ..placed(id, owner, &targets) }
            };
        (0..).zip(vdisks).map(vdisk).collect()
    })
}

proptest! {
    #[test]
    fn rounds_end_within_their_bounds_and_what_is_out_of_service_is_left_alone(
        homes in any_homes(), mut all in any_vdisks(), moves_max in 1_usize..5, slack in 0_u64..10,
    ) {
        let before = all.clone();
        settle(&homes, &mut all, Limits { moves_max, slack })?;
        for (before, after) in before.iter().zip(&all) {
            let in_service = homes.iter().any(|home| home.router == before.owner);
            prop_assert!(in_service || before.owner == after.owner);
            let domain = |router| homes.iter().find(|h| h.router == router).map_or("", |h| &h.domain);
            if let Some(edge) = &before.edge {
                let near = |placed: &Placed| nearness(edge, domain(placed.owner));
                prop_assert!(near(before) <= near(after), "never farther from its edge");
            }
        }
    }

    #[test]
    fn by_number_all_end_alike_by_as_few_moves_as_can_be_and_none_moves_twice(
        domains in prop::collection::vec(0_u8..3, 1..6),
        owners in prop::collection::vec(0_u128..8, 0..60),
        moves_max in 1_usize..5, slack in 0_u64..5,
    ) {
        let homes: Vec<Home> = (0..).zip(&domains).map(|(id, d)| home(id, &d.to_string())).collect();
        let mut all: Vec<Placed> = (0..).zip(&owners).map(|(id, owner)| placed(id, *owner, &[])).collect();
        let owned = |all: &[Placed]| -> Vec<usize> {
            homes.iter().map(|h| all.iter().filter(|p| p.owner == h.router).count()).collect()
        };
        let before = owned(&all);
        let times = settle(&homes, &mut all, Limits { moves_max, slack })?;
        prop_assert!(times.iter().all(|times| *times <= 1), "{:?}", times);
        let after = owned(&all);
        let apart = after.iter().max().unwrap() - after.iter().min().unwrap();
        prop_assert!(model::u64_of(apart) <= 1 + slack, "{:?}", after);
        prop_assert_eq!(before.iter().sum::<usize>(), after.iter().sum::<usize>());
        if slack == 0 {
            // Who keeps the odd ones is free to choose: those who own the most.
            let (each, more) = (before.iter().sum::<usize>() / homes.len(), before.iter().sum::<usize>() % homes.len());
            let over = before.iter().filter(|count| each < **count).count();
            let must: usize = before.iter().map(|count| count.saturating_sub(each)).sum();
            prop_assert_eq!(times.iter().sum::<usize>(), must - over.min(more));
        }
    }

    #[test]
    fn noise_within_the_slack_undoes_nothing(
        owners in prop::collection::vec(0_u128..4, 0..40), slack in 1_u64..6, gone in 0_usize..40,
    ) {
        let homes: Vec<Home> = (0..4).map(|id| home(id, "")).collect();
        let mut all: Vec<Placed> = (0..).zip(&owners).map(|(id, owner)| placed(id, *owner, &[])).collect();
        settle(&homes, &mut all, Limits { moves_max: 1, slack: 0 })?;
        // One vDisk less, anywhere: routers are at most two apart, and that is within the slack.
        if !all.is_empty() {
            all.remove(gone % all.len());
        }
        prop_assert_eq!(plan(&homes, &all, Limits { moves_max: 9, slack }), []);
    }
}

#[test]
fn a_vdisk_should_be_near_to_who_writes_it_as_far_as_that_is_known() {
    use model::{AttachmentGeneration, EdgeId};
    use wire::facts::AttachmentRecord;
    let live = |domain: &str, mode| AttachmentRecord {
        edge: EdgeId(1),
        edge_name: String::new(),
        generation: AttachmentGeneration(1),
        mode,
        domain: domain.into(),
    };
    let of = |live: &[AttachmentRecord]| {
        let last_generation = AttachmentGeneration(1);
        near_edge(&AttachmentsRecord { last_generation, live: live.to_vec() })
    };
    let reader = live("a", AttachmentMode::ReadOnly);
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[live("", AttachmentMode::Exclusive)]), None);
    assert_eq!(of(&[live("", AttachmentMode::Exclusive), reader.clone()]), Some("a".into()));
    assert_eq!(of(&[reader, live("b", AttachmentMode::Shared)]), Some("b".into()));
}
