//! A verifying load: random requests over several connections, every answer judged by the [`History`].
//!
//! Requests overlap freely, in time and in place; they are a multiple of 512 bytes, mostly of 4 KiB. Whoever runs it
//! may kill servers meanwhile: a lost connection ends the load of that connection, or is opened again, as asked.
//!
//! Invariant: a request is in the history before it is sent, and acknowledged there only after its answer arrived.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sim::Random;

use crate::history::{Effect, History, Survival, Violation};
use crate::nbd::{Command, Completion, Connection, Request, Silence, Target};
use crate::stamp::{Observed, Stamp, UNIT};

/// An answer that takes longer than this never comes: the server is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How a test looks at the image: in pieces of this size.
const READ_BYTES: u32 = 1 << 20;
/// Violations that are shown; one cause makes thousands.
const SHOWN_MAX: usize = 10;
const UNITS_MAX: u64 = 128;

/// What load to make.
#[derive(Debug, Clone)]
pub struct Load {
    /// Random choices; the run's number in the stamps, too.
    pub seed: u64,
    pub connections: usize,
    /// Requests in flight per connection.
    pub depth: usize,
    /// Pause between requests of a connection; zero is as fast as it goes.
    pub pace: Duration,
    /// Reads and writes of one cluster each, anywhere, and nothing else.
    pub clusters: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self { seed: 1, connections: 3, depth: 8, pace: Duration::ZERO, clusters: false }
    }
}

/// The part of a vDisk that one verifying run has for itself, and what is known of it.
pub struct Verifier {
    target: Target,
    run: u64,
    history: Arc<Mutex<History>>,
    units: u64,
    counts: Arc<Counts>,
}

/// What the load did; to see that it did something.
#[derive(Debug, Default)]
pub struct Counts {
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    pub flushes: AtomicU64,
    pub zeroes: AtomicU64,
    /// Requests that the server answered with an error.
    pub errors: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// A load that is going on.
pub struct Going {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<anyhow::Result<Ended>>>,
}

/// How the load of one connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to, and everything was answered.
    Stopped,
    /// The connection was lost with requests unanswered.
    Lost(String),
}

impl Verifier {
    /// Takes the first `bytes` of an export, which must be all zeroes there.
    pub fn new(target: Target, run: u64, bytes: u64) -> Self {
        let units = bytes / UNIT as u64;
        let history = History::new(usize::try_from(units).expect("fits in memory"));
        let history = Arc::new(Mutex::new(history));
        Self { target, run, history, units, counts: Arc::default() }
    }

    /// The same data as seen through another door.
    #[must_use]
    pub fn moved(&self, target: Target) -> Self {
        let (history, counts) = (Arc::clone(&self.history), Arc::clone(&self.counts));
        Self { target, run: self.run, history, units: self.units, counts }
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Operations in the history since the last check of a crash.
    #[must_use]
    pub fn operations(&self) -> usize {
        lock(&self.history).len()
    }

    /// Starts a load in the background.
    pub fn start(&self, load: &Load) -> anyhow::Result<Going> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut random = Random::new(load.seed);
        let mut threads = Vec::new();
        for number in 0..load.connections {
            let connection = Connection::open_within(&self.target, Duration::from_secs(30))?;
            let mut worker = Worker {
                connection,
                random: random.fork(),
                history: Arc::clone(&self.history),
                counts: Arc::clone(&self.counts),
                run: self.run,
                units: self.units,
                flying: BTreeMap::new(),
                next_cookie: 0,
            };
            let (stop, load) = (Arc::clone(&stop), load.clone());
            let thread = thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || worker.run(&load, &stop))?;
            threads.push(thread);
        }
        Ok(Going { stop, threads })
    }

    /// Runs a load for some time, with everything answered at the end.
    pub fn run_for(&self, load: &Load, time: Duration) -> anyhow::Result<()> {
        let going = self.start(load)?;
        thread::sleep(time);
        for ended in going.stop()? {
            ensure!(ended == Ended::Stopped, "{ended:?}");
        }
        Ok(())
    }

    /// A flush that covers everything acknowledged so far.
    pub fn flush(&self) -> anyhow::Result<()> {
        let mut connection = Connection::open_within(&self.target, Duration::from_secs(30))?;
        let began = lock(&self.history).now();
        connection.flush()?;
        lock(&self.history).flushed(began);
        Ok(())
    }

    /// Reads all units.
    pub fn image(&self) -> anyhow::Result<Vec<Observed>> {
        let mut connection = Connection::open_within(&self.target, Duration::from_secs(60))?;
        let bytes = self.units * UNIT as u64;
        let mut image = Vec::with_capacity(usize::try_from(self.units)?);
        let mut offset = 0;
        while offset < bytes {
            let len = u32::try_from((bytes - offset).min(READ_BYTES.into()))?;
            let data = connection.read(offset, len)?;
            image.extend(observe(self.run, offset / UNIT as u64, &data));
            offset += u64::from(len);
        }
        Ok(image)
    }

    /// Reads everything and judges it, with nothing in flight. After a crash the image is where the next load begins.
    pub fn check(&self, survival: Survival) -> anyhow::Result<()> {
        let image = self.image()?;
        let mut history = lock(&self.history);
        report(&history.check_image(&image, survival))?;
        if survival == Survival::Crash {
            history.rebase(&image);
        }
        Ok(())
    }
}

impl Going {
    /// Lets what is in flight finish; how each connection ended.
    pub fn stop(self) -> anyhow::Result<Vec<Ended>> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits for the loads to end by themselves: when the server is gone.
    pub fn wait(self) -> anyhow::Result<Vec<Ended>> {
        let mut ended = Vec::new();
        for thread in self.threads {
            let outcome = thread.join().map_err(|_| anyhow::anyhow!("a load panicked"))?;
            ended.push(outcome?);
        }
        Ok(ended)
    }

    /// Whether one of the connections has ended already.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(thread::JoinHandle::is_finished)
    }
}

/// A request whose answer is awaited.
#[derive(Debug, Clone)]
enum Flying {
    Write { operation: u64 },
    Durable { operation: u64 },
    Read { began: u64, unit: u64 },
    Flush { began: u64 },
}

/// Units that a request covers.
#[derive(Debug, Clone, Copy)]
struct Place {
    unit: u64,
    count: u64,
}

struct Worker {
    connection: Connection,
    random: Random,
    history: Arc<Mutex<History>>,
    counts: Arc<Counts>,
    run: u64,
    units: u64,
    flying: BTreeMap<u64, (Flying, Instant)>,
    next_cookie: u64,
}

impl Worker {
    fn run(&mut self, load: &Load, stop: &AtomicBool) -> anyhow::Result<Ended> {
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && self.flying.is_empty() {
                return Ok(Ended::Stopped);
            }
            while !stopping && self.flying.len() < load.depth {
                let sent = if load.clusters { self.submit_cluster() } else { self.submit() };
                if let Err(error) = sent {
                    return Ok(Ended::Lost(error.to_string()));
                }
                if !load.pace.is_zero() {
                    thread::sleep(load.pace);
                }
            }
            match self.connection.next(Duration::from_secs(1)) {
                Ok(completion) => self.complete(completion)?,
                Err(Silence::Lost(reason)) => return Ok(Ended::Lost(reason)),
                Err(Silence::TimedOut) => self.check_patience()?,
            }
        }
    }

    fn check_patience(&self) -> anyhow::Result<()> {
        let now = Instant::now();
        let stuck = self.flying.values().find(|(_, sent)| ANSWER_LIMIT < now - *sent);
        ensure!(stuck.is_none(), "no answer within {ANSWER_LIMIT:?} to {stuck:?}");
        Ok(())
    }

    /// Half writes, a third reads, some flushes, trims and zeroes.
    fn submit(&mut self) -> std::io::Result<()> {
        match self.random.below(100) {
            0..45 => self.write(Command::Write),
            45..50 => self.write(Command::WriteFua),
            50..85 => self.read(),
            85..90 => self.zero(Command::WriteZeroes),
            90..94 => self.zero(Command::Trim),
            _ => self.flush(),
        }
    }

    fn submit_cluster(&mut self) -> std::io::Result<()> {
        let place = Place { unit: self.random.below(self.units / 8) * 8, count: 8 };
        if self.random.below(2) == 0 {
            return self.write_to(Command::Write, place);
        }
        let began = lock(&self.history).now();
        self.send(Command::Read, place, &[], Flying::Read { began, unit: place.unit })
    }

    fn write(&mut self, command: Command) -> std::io::Result<()> {
        let place = self.place();
        self.write_to(command, place)
    }

    fn write_to(&mut self, command: Command, Place { unit, count }: Place) -> std::io::Result<()> {
        let operation = lock(&self.history).begin(Effect::Write, unit..unit + count);
        let mut data = vec![0; usize::try_from(count).expect("small") * UNIT];
        for (unit, bytes) in (unit..).zip(data.chunks_exact_mut(UNIT)) {
            Stamp { run: self.run, unit, operation }.write_to(bytes);
        }
        let flying = if command == Command::WriteFua {
            Flying::Durable { operation }
        } else {
            Flying::Write { operation }
        };
        self.send(command, Place { unit, count }, &data, flying)
    }

    fn zero(&mut self, command: Command) -> std::io::Result<()> {
        let Place { mut unit, mut count } = self.place();
        if command == Command::Trim {
            // What a trim does to part of a cluster is left to the server.
            unit -= unit % 8;
            count = count.next_multiple_of(8).min(self.units - unit);
        }
        let operation = lock(&self.history).begin(Effect::Zero, unit..unit + count);
        self.send(command, Place { unit, count }, &[], Flying::Write { operation })
    }

    fn read(&mut self) -> std::io::Result<()> {
        let Place { unit, count } = self.place();
        let began = lock(&self.history).now();
        self.send(Command::Read, Place { unit, count }, &[], Flying::Read { began, unit })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let began = lock(&self.history).now();
        self.send(Command::Flush, Place { unit: 0, count: 0 }, &[], Flying::Flush { began })
    }

    /// Where the next request goes: mostly whole clusters, and half of them to a tenth of the place.
    fn place(&mut self) -> Place {
        let longest = if self.random.below(10) == 0 { UNITS_MAX } else { 16 };
        let mut count = 1 + self.random.below(longest);
        let hot = self.random.below(2) == 0;
        let span = if hot { (self.units / 10).max(UNITS_MAX) } else { self.units };
        let mut unit = self.random.below(span.min(self.units) - count.min(span) + 1);
        if self.random.below(5) != 0 {
            unit -= unit % 8;
            count = count.next_multiple_of(8);
        }
        Place { unit, count: count.min(self.units - unit) }
    }

    fn send(
        &mut self,
        command: Command,
        Place { unit, count }: Place,
        data: &[u8],
        flying: Flying,
    ) -> std::io::Result<()> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.flying.insert(cookie, (flying, Instant::now()));
        let len = u32::try_from(count * UNIT as u64).expect("small");
        let offset = unit * UNIT as u64;
        self.connection.submit(&Request { cookie, command, offset, len, data })
    }

    fn complete(&mut self, Completion { cookie, result }: Completion) -> anyhow::Result<()> {
        let (flying, _) = self.flying.remove(&cookie).context("an answer nobody asked for")?;
        let Ok(data) = result else {
            // It may or may not have happened; the history knows it as begun.
            Counts::add(&self.counts.errors);
            return Ok(());
        };
        let mut history = lock(&self.history);
        match flying {
            Flying::Write { operation } => {
                Counts::add(&self.counts.writes);
                history.acknowledged(operation);
            }
            Flying::Durable { operation } => {
                Counts::add(&self.counts.writes);
                history.acknowledged_durably(operation);
            }
            Flying::Flush { began } => {
                Counts::add(&self.counts.flushes);
                history.flushed(began);
            }
            Flying::Read { began, unit } => {
                Counts::add(&self.counts.reads);
                let observed: Vec<_> = observe(self.run, unit, &data).collect();
                report(&history.check_read(began, unit, &observed))?;
            }
        }
        Ok(())
    }
}

fn observe(run: u64, first: u64, data: &[u8]) -> impl Iterator<Item = Observed> {
    (first..)
        .zip(data.chunks_exact(UNIT))
        .map(move |(unit, bytes)| Stamp::observe(run, unit, bytes))
}

fn report(violations: &[Violation]) -> anyhow::Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> =
        violations.iter().take(SHOWN_MAX).map(std::string::ToString::to_string).collect();
    bail!("{} units are wrong:\n{}", violations.len(), shown.join("\n"))
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().expect("no load panics while it holds the history")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{is_installed, wait_until};
    use crate::tool::{Running, Tool};

    const BYTES: u64 = 4 << 20;

    /// An honest server in memory, by somebody else.
    fn server(dir: &std::path::Path) -> Option<(Running, Target)> {
        if !is_installed("nbdkit") {
            eprintln!("SKIPPED: nbdkit is not installed");
            return None;
        }
        let socket = dir.join("s");
        let tool = Tool::new("nbdkit").args(["--foreground", "--unix"]).arg(&socket);
        let running = tool.args(["memory", "8M"]).spawn().unwrap();
        wait_until(Duration::from_secs(20), "nbdkit", || Ok(socket.exists())).unwrap();
        let target = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
        Some((running, target))
    }

    #[test]
    fn an_honest_server_passes_and_did_work() {
        let dir = tempfile::tempdir().unwrap();
        let Some((_running, target)) = server(dir.path()) else { return };
        let verifier = Verifier::new(target, 7, BYTES);
        verifier.run_for(&Load::default(), Duration::from_millis(800)).unwrap();
        verifier.check(Survival::Alive).unwrap();
        for counter in
            [&verifier.counts().writes, &verifier.counts().reads, &verifier.counts().flushes]
        {
            assert!(0 < Counts::get(counter));
        }
        assert_eq!(Counts::get(&verifier.counts().errors), 0);
    }

    #[test]
    fn a_server_that_loses_one_acknowledged_cluster_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let Some((_running, target)) = server(dir.path()) else { return };
        let verifier = Verifier::new(target.clone(), 7, BYTES);
        verifier.run_for(&Load::default(), Duration::from_millis(500)).unwrap();
        let image = verifier.image().unwrap();
        let written = image.iter().position(|seen| matches!(seen, Observed::Write(_))).unwrap();
        let mut connection = Connection::open(&target).unwrap();
        connection.write(written as u64 * UNIT as u64, &[0; UNIT]).unwrap();
        let error = verifier.check(Survival::Alive).unwrap_err().to_string();
        assert!(error.starts_with("1 units are wrong"), "{error}");
    }

    #[test]
    fn a_server_that_dies_ends_the_load() {
        let dir = tempfile::tempdir().unwrap();
        let Some((running, target)) = server(dir.path()) else { return };
        let verifier = Verifier::new(target, 7, BYTES);
        let going = verifier.start(&Load::default()).unwrap();
        drop(running);
        for ended in going.wait().unwrap() {
            assert!(matches!(ended, Ended::Lost(_)), "{ended:?}");
        }
    }
}
