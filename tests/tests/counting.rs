//! Counting gates: what one 4 KiB write, read and flush, and 4 MiB on their way to the backend, cost each role.
//!
//! Calls, bytes and allocations don't depend on how fast the machine is, so they can be held to a budget where times
//! can't. `budgets.toml` has the most that is allowed; a change that does better should lower it, and none may raise it
//! without saying why. Allocations are counted by development builds only.
//!
//! A copy needs a call or an allocation, so their bytes together bound the copies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use holdfast_tests::cluster::{Cluster, Options};
use holdfast_tests::nbd::Connection;
use holdfast_tests::owner::wait_in_sync;
use holdfast_tests::syscalls::{Counter, Counts};

const BLOCK: usize = 4096;
/// Operations that a figure is the mean of: what happens by the clock meanwhile (pings, heartbeats) fades.
const OPERATIONS: u64 = 400;
/// Rounds, of which the cheapest counts: what happens by the clock meanwhile only adds, and adds more the slower the
/// machine is.
const ROUNDS: usize = 4;
const BUDGETS: &str = include_str!("../budgets.toml");

type Figures = BTreeMap<&'static str, f64>;
type ByRole = BTreeMap<&'static str, Figures>;

struct Meter {
    cluster: Cluster,
    client: Connection,
    /// (role, processes that do the work).
    roles: Vec<(&'static str, Vec<String>)>,
    next: u64,
}

impl Meter {
    fn start(dtl: &str) -> Self {
        let options = Options { up: Vec::new(), ..Options::default() };
        let cluster = Cluster::start(options.with(&["--dtl", dtl])).unwrap();
        if dtl != "none" {
            wait_in_sync(&cluster).unwrap();
        }
        let shown = cluster.json(&["vdisk", "show", "demo"]).unwrap();
        let owner = shown["owner"].as_str().unwrap().to_owned();
        let ids = |role| cluster.ids(role).unwrap();
        let others = ids("router").into_iter().filter(|router| *router != owner).collect();
        let roles = vec![
            ("edge", ids("edge")),
            ("router", vec![owner]),
            ("dtl", others),
            ("alba-proxy", ids("alba-proxy")),
            ("asd", ids("asd")),
        ];
        let client = Connection::open(&cluster.target("demo")).unwrap();
        let mut meter = Self { cluster, client, roles, next: 0 };
        meter.write(64);
        meter.client.flush().unwrap();
        meter.cluster.holdfast(&["vdisk", "sync", "demo"]).unwrap();
        meter
    }

    /// Writes blocks that don't compress, each somewhere else.
    fn write(&mut self, count: u64) {
        let mut rng = fastrand::Rng::with_seed(self.next);
        for _ in 0..count {
            let data: Vec<u8> = (0..BLOCK).map(|_| rng.u8(..)).collect();
            self.client.write(self.next % 16_384 * BLOCK as u64, &data).unwrap();
            self.next += 1;
        }
    }

    /// Runs `work` some times and says what `roles` used for it when they used least, per operation.
    fn measure(
        &mut self,
        operations: u64,
        roles: &[&'static str],
        work: impl Fn(&mut Self),
    ) -> ByRole {
        let rounds = (0..ROUNDS).map(|_| self.measure_once(operations, roles, &work));
        rounds.reduce(cheapest).unwrap()
    }

    fn measure_once(
        &mut self,
        operations: u64,
        roles: &[&'static str],
        work: impl FnOnce(&mut Self),
    ) -> ByRole {
        let watched: Vec<(&'static str, String)> = self
            .roles
            .iter()
            .filter(|(role, _)| roles.contains(role))
            .flat_map(|(role, ids)| ids.iter().map(|id| (*role, id.clone())))
            .collect();
        let before = self.allocations();
        let attach = |(role, id): &(&'static str, String)| {
            let pid = self.cluster.pid(id).unwrap();
            (*role, Counter::attach(pid, self.cluster.scratch(&format!("strace-{id}"))).unwrap())
        };
        let counters: Vec<(&'static str, Counter)> = watched.iter().map(attach).collect();
        work(self);
        let mut counts: BTreeMap<&'static str, Counts> = BTreeMap::new();
        for (role, counter) in counters {
            *counts.entry(role).or_default() += counter.finish().unwrap();
        }
        let after = self.allocations();
        let each = |total: u64| total as f64 / operations as f64;
        let mut all = BTreeMap::new();
        for (role, counts) in counts {
            let (mut allocations, mut allocated) = (0, 0);
            for (_, id) in watched.iter().filter(|(of, _)| *of == role) {
                allocations += after[id].0 - before[id].0;
                allocated += after[id].1 - before[id].1;
            }
            let figures = Figures::from([
                ("socket_calls", each(counts.socket_calls)),
                ("socket_bytes", each(counts.socket_bytes)),
                ("file_calls", each(counts.file_calls)),
                ("file_bytes", each(counts.file_bytes)),
                ("syncs", each(counts.syncs)),
                ("allocations", each(allocations)),
                ("allocated_bytes", each(allocated)),
            ]);
            all.insert(role, figures);
        }
        all
    }

    /// Allocations and their bytes by process.
    fn allocations(&self) -> BTreeMap<String, (u64, u64)> {
        let status = self.cluster.status().unwrap();
        let each = status["processes"].as_array().unwrap().iter().map(|process| {
            let counted = &process["details"]["allocations"];
            let number = |name: &str| counted[name].as_u64().unwrap_or(0);
            (process["id"].as_str().unwrap().to_owned(), (number("count"), number("bytes")))
        });
        each.collect()
    }
}

fn strace_works() -> bool {
    let traced = Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    traced.is_ok_and(|status| status.success())
}

/// h_17.
#[test]
fn no_operation_costs_more_than_its_budget() {
    if !strace_works() {
        println!("SKIPPED: strace is missing or may not trace here");
        return;
    }
    // A router that copies its log to nobody: what the copy costs is counted on its own, below.
    let mut meter = Meter::start("none");
    let mut measured = BTreeMap::new();
    let ack = ["edge", "router"];
    measured.insert("write", meter.measure(OPERATIONS, &ack, |meter| meter.write(OPERATIONS)));
    measured.insert(
        "flush",
        meter.measure(OPERATIONS, &ack, |meter| {
            for _ in 0..OPERATIONS {
                meter.write(1);
                meter.client.flush().unwrap();
            }
        }),
    );
    // What was just written lies in the router's memory.
    let read = |meter: &mut Meter| {
        for number in 0..OPERATIONS {
            meter.client.read((meter.next - 1 - number) * BLOCK as u64, 4096).unwrap();
        }
    };
    measured.insert("read", meter.measure(OPERATIONS, &ack, read));
    meter.cluster.holdfast(&["vdisk", "sync", "demo"]).unwrap();
    // Scattered, and none of it in the router's read cache, so only once: one frame of one fragment each.
    let cold = |meter: &mut Meter| {
        for number in 0..100 {
            meter.client.read((64 + number * 8) * BLOCK as u64, 4096).unwrap();
        }
    };
    measured.insert(
        "cold read",
        meter.measure_once(100, &["edge", "router", "alba-proxy", "asd"], cold),
    );
    // 4 MiB: one object, made, coded and stored.
    let drain = |meter: &mut Meter| {
        meter.write(1024);
        meter.cluster.holdfast(&["vdisk", "sync", "demo"]).unwrap();
    };
    measured
        .insert("4 MiB to the backend", meter.measure(1, &["router", "alba-proxy", "asd"], drain));
    judge(&measured);
}

/// The second copy of the log: what it costs the owner, and what the router that keeps it.
#[test]
fn a_second_copy_of_the_log_costs_no_more_than_its_budget() {
    if !strace_works() {
        println!("SKIPPED: strace is missing or may not trace here");
        return;
    }
    let mut meter = Meter::start("sync");
    let mut measured = BTreeMap::new();
    let both = ["router", "dtl"];
    measured.insert(
        "write with DTL",
        meter.measure(OPERATIONS, &both, |meter| meter.write(OPERATIONS)),
    );
    measured.insert(
        "flush with DTL",
        meter.measure(OPERATIONS, &both, |meter| {
            for _ in 0..OPERATIONS {
                meter.write(1);
                meter.client.flush().unwrap();
            }
        }),
    );
    judge(&measured);
}

/// The smaller of each two figures.
fn cheapest(mut one: ByRole, other: ByRole) -> ByRole {
    for (role, figures) in other {
        for (name, value) in figures {
            one.entry(role)
                .or_default()
                .entry(name)
                .and_modify(|figure| *figure = figure.min(value));
        }
    }
    one
}

fn judge(measured: &BTreeMap<&str, ByRole>) {
    let budgets = budgets();
    let (mut table, mut over) = (String::new(), Vec::new());
    for (operation, roles) in measured {
        for (role, figures) in roles {
            writeln!(table, "[\"{operation}\".{role}]").unwrap();
            for (name, value) in figures {
                let budget = budgets.get(&format!("{operation}/{role}/{name}")).copied();
                writeln!(table, "{name} = {value:.2}    # budget {budget:?}").unwrap();
                if budget.is_none_or(|budget| *value > budget) {
                    over.push(format!(
                        "{operation}, {role}: {name} is {value:.2}, allowed {budget:?}"
                    ));
                }
            }
        }
    }
    println!("{table}");
    assert!(over.is_empty(), "over budget (tests/budgets.toml):\n{}\n\n{table}", over.join("\n"));
}

/// `operation/role/figure` → the most that is allowed.
fn budgets() -> BTreeMap<String, f64> {
    let mut section = String::new();
    let mut budgets = BTreeMap::new();
    for line in BUDGETS.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let (operation, role) = name.rsplit_once('.').unwrap();
            section = format!("{}/{role}", operation.trim_matches('"'));
        } else if let Some((name, value)) = line.split_once('=') {
            let value = value.split('#').next().unwrap().trim().parse().unwrap();
            budgets.insert(format!("{section}/{}", name.trim()), value);
        }
    }
    budgets
}
