//! Properties of rounds, and what is preferred.

use super::*;
use proptest::prelude::*;

const ALL: Limits = Limits { moves_max: usize::MAX, slack: 0, alike: Measure::Number };
const BY_LOAD: Limits = Limits { alike: Measure::Load, ..ALL };
/// More rounds than any of these cases needs; a pair of routers that played ping-pong would need more.
const ROUNDS_MAX: usize = 2_000;

fn home(router: u128, domain: &str) -> Home {
    let (router, domain) = (RouterId(router), domain.into());
    Home { router, domain, room: None, carries: 0, is_known: true }
}

fn placed(vdisk: u128, owner: u128, targets: &[u128]) -> Placed {
    let targets = targets.iter().map(|id| RouterId(*id)).collect();
    let (vdisk, owner) = (VdiskId(vdisk), RouterId(owner));
    Placed { vdisk, owner, load: 0, targets, edge: None, stays: false }
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
fn slack_keeps_what_is_nearly_even() {
    let homes = [home(1, ""), home(2, "")];
    let five: Vec<Placed> = (0..5).map(|id| placed(id, 1, &[])).collect();
    assert_eq!(plan(&homes, &five, Limits { slack: 4, ..ALL }), []);
    assert_eq!(plan(&homes, &five, Limits { slack: 3, ..ALL }).len(), 1);
    assert_eq!(plan(&homes, &five, ALL).len(), 2);
}

/// Of one router; what each is asked for.
fn asked(owner: u128, loads: &[u64]) -> Vec<Placed> {
    let vdisk =
        |(id, load): (u128, &u64)| Placed { load: *load, ..placed(owner * 1000 + id, owner, &[]) };
    (0..).zip(loads).map(vdisk).collect()
}

#[test]
fn by_load_busy_vdisks_are_spread_and_idle_ones_stay() {
    let homes = [home(1, ""), home(2, "")];
    let mut all = asked(1, &[0, 5, 400, 0, 300, 1]);
    assert_eq!(to(&plan(&homes, &all, BY_LOAD)), [(1002, 2)]);
    all[2].owner = RouterId(2);
    assert_eq!(plan(&homes, &all, BY_LOAD), [], "306 and 400 are as near as moves can make them");
    assert_eq!(plan(&homes, &asked(1, &[0; 500]), BY_LOAD), [], "however many are idle");
    assert_eq!(plan(&homes, &asked(1, &[9, 9, 9]), BY_LOAD), [], "nobody notices");
}

/// A vDisk that is more than a router's share: what is asked of the others doesn't make up for their moving.
#[test]
fn one_busy_vdisk_doesnt_send_all_others_away() {
    let homes = [home(1, ""), home(2, "")];
    let mut all = asked(1, &[5000]);
    all.extend((1..100).map(|id| Placed { load: 15, ..placed(id, 1, &[]) }));
    all.extend((100..200).map(|id| Placed { load: 15, ..placed(id, 2, &[]) }));
    assert_eq!(plan(&homes, &all, BY_LOAD), []);
    all[7].load = 900;
    assert_eq!(to(&plan(&homes, &all, BY_LOAD)), [(7, 2)], "the one that is worth it");
}

#[test]
fn by_load_none_goes_to_who_is_full_or_may_carry_more_than_is_known() {
    let all = asked(1, &[400, 300]);
    let full = Home { room: Some(0), ..home(2, "") };
    assert_eq!(plan(&[home(1, ""), full], &all, BY_LOAD), []);
    let opening = Home { is_known: false, ..home(2, "") };
    assert_eq!(plan(&[home(1, ""), opening.clone()], &all, BY_LOAD), []);
    let busy = Home { carries: 200, ..home(3, "") };
    assert_eq!(to(&plan(&[home(1, ""), opening, busy], &all, BY_LOAD)), [(1001, 3)]);
}

/// Two that carry little aren't evened out while a third, which can't be helped, carries nearly all.
#[test]
fn by_load_only_who_carries_more_than_the_average_gives() {
    let homes = [home(1, ""), home(2, ""), home(3, "")];
    let mut all = asked(1, &[1000]);
    all.extend(asked(2, &[150, 150]));
    assert_eq!(plan(&homes, &all, BY_LOAD), []);
    all[0].load = 200;
    assert_eq!(to(&plan(&homes, &all, BY_LOAD)), [(2000, 3)]);
}

#[test]
fn a_move_that_was_planned_stands_while_it_is_worth_while() {
    let homes = [home(1, ""), home(2, "")];
    let all = asked(1, &[400, 390, 0]);
    let step = plan(&homes, &all, BY_LOAD)[0];
    assert!(stands(&homes, &all, BY_LOAD, &step));
    let otherwise = asked(1, &[400, 410, 0]);
    assert!(stands(&homes, &otherwise, BY_LOAD, &step), "another would be a little better");
    assert!(!stands(&homes, &asked(1, &[4, 410, 0]), BY_LOAD, &step), "it is idle now");
    let moved: Vec<Placed> =
        all.iter().map(|p| Placed { owner: RouterId(2), ..p.clone() }).collect();
    assert!(!stands(&homes, &moved, BY_LOAD, &step), "it isn't there any more");
    let rests: Vec<Placed> = all.iter().map(|p| Placed { stays: true, ..p.clone() }).collect();
    assert!(!stands(&homes, &rests, BY_LOAD, &step));
    let full = [home(1, ""), Home { room: Some(0), ..home(2, "") }];
    assert!(!stands(&full, &all, BY_LOAD, &step));
    assert!(!stands(&homes[..1], &all, BY_LOAD, &step), "its taker isn't in service any more");
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

/// Most are idle, some busy, a few busier than all others.
fn any_load() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0_u64..5, 4 => 0_u64..500, 1 => 0_u64..20_000]
}

fn any_measure() -> impl Strategy<Value = Measure> {
    prop_oneof![Just(Measure::Number), Just(Measure::Load)]
}

/// Owners beyond those in service: draining, offline, gone.
fn any_vdisks() -> impl Strategy<Value = Vec<Placed>> {
    let one =
        (0_u128..8, any_load(), prop::collection::vec(0_u128..8, 0..3), prop::option::of(0_u8..3));
    prop::collection::vec(one, 0..40).prop_map(|vdisks| {
        let vdisk =
            |(id, (owner, load, targets, edge)): (u128, (u128, u64, Vec<u128>, Option<u8>))| {
                let edge = edge.map(|edge| format!("dc/{edge}"));
                Placed { load, edge, ..placed(id, owner, &targets) }
            };
        (0..).zip(vdisks).map(vdisk).collect()
    })
}

proptest! {
    #[test]
    fn rounds_end_within_their_bounds_and_what_is_out_of_service_is_left_alone(
        homes in any_homes(), mut all in any_vdisks(), moves_max in 1_usize..5, slack in 0_u64..10,
        alike in any_measure(),
    ) {
        let before = all.clone();
        settle(&homes, &mut all, Limits { moves_max, slack, alike })?;
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
        let times = settle(&homes, &mut all, Limits { moves_max, slack, ..ALL })?;
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

    /// While nothing else changes: no vDisk comes back, none moves for nothing, and in the end all is as even as moves can make it.
    #[test]
    fn by_load_each_move_counts_and_none_is_undone(mut all in any_vdisks(), routers in 2_u128..6) {
        let homes: Vec<Home> = (0..routers).map(|id| home(id, "")).collect();
        all.iter_mut().for_each(|vdisk| vdisk.edge = None);
        let carried = |all: &[Placed], router: RouterId| -> u64 {
            all.iter().filter(|p| p.owner == router).map(|p| p.load).sum()
        };
        let total: u64 = homes.iter().map(|home| carried(&all, home.router)).sum();
        let one = Limits { moves_max: 1, ..BY_LOAD };
        for _ in 0..ROUNDS_MAX {
            let Some(step) = plan(&homes, &all, one).pop() else { return Ok(()) };
            let apart = |all: &[Placed]| carried(all, step.from).abs_diff(carried(all, step.to));
            let before = apart(&all);
            let at = all.iter().position(|p| p.vdisk == step.vdisk).unwrap();
            prop_assert!(10 <= all[at].load, "it is idle");
            let mean = total / u64::try_from(routers).unwrap();
            prop_assert!(mean <= carried(&all, step.from));
            all[at].owner = step.to;
            prop_assert!(apart(&all) + (mean / 5).max(20) <= before, "for too little");
            let back = Move { from: step.to, to: step.from, ..step };
            prop_assert!(!stands(&homes, &all, BY_LOAD, &back));
        }
        prop_assert!(false, "rounds don't end");
    }

    /// What is asked of vDisks changes all the time.
    #[test]
    fn by_load_noise_undoes_no_move(
        mut all in any_vdisks(), routers in 2_u128..6, noise in prop::collection::vec(-100_i64..=100, 40),
    ) {
        let homes: Vec<Home> = (0..routers).map(|id| home(id, "")).collect();
        all.iter_mut().for_each(|vdisk| vdisk.edge = None);
        let Some(step) = plan(&homes, &all, Limits { moves_max: 1, ..BY_LOAD }).pop() else { return Ok(()) };
        let at = all.iter().position(|p| p.vdisk == step.vdisk).unwrap();
        all[at].owner = step.to;
        // All together by as much as a tenth of what a router carries.
        let in_service = |p: &&Placed| p.owner.0 < routers;
        let total: u64 = all.iter().filter(in_service).map(|p| p.load).sum();
        let parts: i64 = noise.iter().map(|part| part.abs()).sum::<i64>().max(1);
        let most = i64::try_from(u128::from(total) / routers / 10).unwrap();
        for (vdisk, part) in all.iter_mut().zip(&noise) {
            vdisk.load = vdisk.load.saturating_add_signed(part * most / parts);
        }
        let back = Move { from: step.to, to: step.from, ..step };
        prop_assert!(!stands(&homes, &all, BY_LOAD, &back));
    }

    /// Each router knows its own vDisks one by one, and of the others only what they carry together.
    #[test]
    fn what_others_carry_is_enough_to_know(homes in any_homes(), all in any_vdisks(), me in 0_u128..6) {
        let me = RouterId(me);
        let mut of_all = all.clone();
        of_all.iter_mut().for_each(|vdisk| vdisk.stays |= vdisk.owner != me);
        let sum = |router: RouterId| all.iter().filter(|p| p.owner == router).map(|p| p.load).sum();
        let told = homes.iter().map(|home| {
            let carries = if home.router == me { 0 } else { sum(home.router) };
            Home { carries, ..home.clone() }
        });
        let told: Vec<Home> = told.collect();
        let mine: Vec<Placed> = all.iter().filter(|p| p.owner == me).cloned().collect();
        prop_assert_eq!(plan(&told, &mine, BY_LOAD), plan(&homes, &of_all, BY_LOAD));
    }

    #[test]
    fn noise_within_the_slack_undoes_nothing(
        owners in prop::collection::vec(0_u128..4, 0..40), slack in 1_u64..6, gone in 0_usize..40,
    ) {
        let homes: Vec<Home> = (0..4).map(|id| home(id, "")).collect();
        let mut all: Vec<Placed> = (0..).zip(&owners).map(|(id, owner)| placed(id, *owner, &[])).collect();
        settle(&homes, &mut all, Limits { moves_max: 1, ..ALL })?;
        // One vDisk less, anywhere: routers are at most two apart, and that is within the slack.
        if !all.is_empty() {
            all.remove(gone % all.len());
        }
        prop_assert_eq!(plan(&homes, &all, Limits { moves_max: 9, slack, ..ALL }), []);
    }
}

#[test]
fn one_router_at_a_time_and_none_that_is_gone_is_waited_for() {
    let turn =
        RebalanceTurn { router: RouterId(2), incarnation: Incarnation(7), vdisk: VdiskId(1) };
    let me = RouterId(1);
    let lives = |router: RouterId, incarnation: Incarnation| (router.0, incarnation.0) == (2, 7);
    assert!(is_free(None, me, lives));
    assert!(!is_free(Some(&turn), me, lives));
    assert!(is_free(Some(&RebalanceTurn { incarnation: Incarnation(6), ..turn }), me, lives));
    assert!(is_free(Some(&turn), RouterId(2), lives), "left behind by itself");
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
