//! A run of a store whose every state is remembered, and the judge of what a copy of its files opens as.
//!
//! Invariant: `states` begins with the state at the last synced write; each further one is one unsynced write later.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use arakoon::store::{OpenOptions, RocksStore};
use arakoon_core::view::{Changes, Span};
use arakoon_core::{LogWrite, Store, View};
use bytes::Bytes;
use fastrand::Rng;
use raft::eraftpb::{Entry, EntryType, HardState};
use raft::{GetEntriesContext, Storage};
use wire::arakoon::Direction;

use crate::sample::Sample;

const ENTRY_LEN: std::ops::RangeInclusive<usize> = 100..=6_000;
const ROWS: u64 = 24;

/// Everything that a store shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// (index, term, data) of what the log holds.
    log: BTreeMap<u64, (u64, Bytes)>,
    term: u64,
    vote: u64,
    commit: u64,
    applied: u64,
    rows: BTreeMap<Bytes, Bytes>,
}

pub struct Run {
    dir: tempfile::TempDir,
    /// `None` only while it is opened again.
    store: Option<RocksStore>,
    states: Vec<State>,
    /// Length of each write-ahead log that a sync covers.
    synced: BTreeMap<String, u64>,
    /// The witness as it was at some earlier moment: it is synced lazily.
    witness: Vec<u8>,
    random: Rng,
}

fn open(dir: &Path) -> Result<RocksStore, String> {
    let options = OpenOptions { cluster: "c".into(), node: 1, voters: vec![1, 2, 3] };
    RocksStore::open(dir, &options).map_err(|error| error.to_string())
}

impl Run {
    pub fn new(random: Rng) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(dir.path()).unwrap());
        let state = State {
            log: BTreeMap::new(),
            term: 1,
            vote: 1,
            commit: 0,
            applied: 0,
            rows: BTreeMap::new(),
        };
        let synced = BTreeMap::new();
        let mut run = Self { dir, store, states: vec![state], synced, witness: Vec::new(), random };
        run.sync();
        run.witness = std::fs::read(run.dir.path().join("witness")).unwrap();
        run
    }

    fn now(&self) -> &State {
        self.states.last().unwrap()
    }

    pub fn states_since_sync(&self) -> u64 {
        self.states.len() as u64
    }

    /// SST files there are.
    pub fn flushed_files(&self) -> usize {
        let files = std::fs::read_dir(self.dir.path().join("db")).unwrap();
        files
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "sst"))
            .count()
    }

    pub fn step(&mut self) {
        match self.random.u32(0..100) {
            0..=39 => self.append(),
            40..=84 => self.apply(),
            85..=92 => self.overwrite(),
            93..=95 => self.compact(),
            96 => self.restart(),
            _ => self.sync(),
        }
    }

    fn store(&mut self) -> &mut RocksStore {
        self.store.as_mut().unwrap()
    }

    /// As after a kill: everything is there, and RocksDB writes what was in memory into SST files.
    fn restart(&mut self) {
        self.store = None;
        let store = open(self.dir.path()).unwrap();
        assert_eq!(seen(&store).as_ref(), Ok(self.now()));
        self.store = Some(store);
        let now = self.now().clone();
        // What recovery found is in files that are synced, or in a log that is read again.
        self.states = vec![now];
        self.synced = crate::sample::write_ahead_logs(self.dir.path());
    }

    fn entry(&mut self, index: u64, term: u64) -> Entry {
        let mut data = vec![0; self.random.usize(ENTRY_LEN)];
        self.random.fill(&mut data);
        let mut entry = Entry { data: Bytes::from(data), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryNormal);
        (entry.index, entry.term) = (index, term);
        entry
    }

    fn last(&self) -> u64 {
        self.now().log.keys().next_back().copied().unwrap_or(self.now().applied)
    }

    /// New entries; most of the time everything before them is committed.
    fn append(&mut self) {
        let (from, term) = (self.last() + 1, self.now().term);
        let count = self.random.u64(1..=2);
        let entries = (from..from + count).map(|index| self.entry(index, term)).collect();
        let commit = self.random.u64(self.now().commit..from);
        self.persist(entries, term, commit);
    }

    /// A new leader's entries over what wasn't committed.
    fn overwrite(&mut self) {
        let (commit, last) = (self.now().commit, self.last());
        if commit == last {
            return;
        }
        let term = self.now().term + 1;
        let from = self.random.u64(commit + 1..=last);
        let entry = self.entry(from, term);
        self.persist(vec![entry], term, commit);
    }

    pub fn sync(&mut self) {
        let (term, commit) = (self.now().term, self.now().commit);
        self.persist(Vec::new(), term, commit);
    }

    fn persist(&mut self, entries: Vec<Entry>, term: u64, commit: u64) {
        let mut state = self.now().clone();
        if let Some(first) = entries.first() {
            state.log.split_off(&first.index);
        }
        for entry in &entries {
            state.log.insert(entry.index, (entry.term, entry.data.clone()));
        }
        (state.term, state.commit) = (term, commit);
        let mut hard = HardState::default();
        (hard.term, hard.vote, hard.commit) = (term, 1, commit);
        let write = LogWrite { snapshot: None, entries, hard_state: Some(hard), sync: true };
        self.store().persist(write).unwrap();
        self.states = vec![state];
        self.synced = crate::sample::write_ahead_logs(self.dir.path());
    }

    /// Not synced: the log can be applied again.
    fn apply(&mut self) {
        let mut state = self.now().clone();
        if state.applied == state.commit {
            return;
        }
        let to = self.random.u64(state.applied + 1..=state.commit);
        let mut changes = Changes::new();
        for index in state.applied + 1..=to {
            let row = Bytes::from(format!("u{}", index % ROWS));
            let value = (index % 7 != 0).then(|| state.log[&index].1.clone());
            match &value {
                Some(value) => state.rows.insert(row.clone(), value.clone()),
                None => state.rows.remove(&row),
            };
            changes.insert(row, value);
        }
        state.applied = to;
        self.store().apply(changes, to).unwrap();
        self.states.push(state);
    }

    fn compact(&mut self) {
        let mut state = self.now().clone();
        let Some(first) = state.log.keys().next().copied() else { return };
        if state.applied < first {
            return;
        }
        let through = self.random.u64(first..=state.applied);
        state.log = state.log.split_off(&(through + 1));
        self.store().compact(through).unwrap();
        self.states.push(state);
    }

    pub fn sample(&mut self) -> Sample {
        let sample = Sample::take(self.dir.path(), &self.synced, &self.witness);
        if self.random.u8(..4) == 0 {
            self.store().settle();
            self.witness = std::fs::read(self.dir.path().join("witness")).unwrap();
        }
        sample
    }
}

/// Which of the states since the last synced write the files open as.
///
/// # Errors
/// When the store refuses, or can't read a row: it says why, and serves nothing.
pub fn judge(dir: &Path, run: &Run) -> Result<u64, String> {
    let store = open(dir)?;
    let state = seen(&store)?;
    let known = run.states.iter().position(|known| *known == state);
    let Some(known) = known else {
        let (log, now) = (state.log.keys().next_back(), run.now().log.keys().next_back());
        panic!(
            "opened as a state that never was since the last sync: applied {}, last entry {log:?}; it was {} and {now:?}",
            state.applied,
            run.now().applied
        );
    };
    Ok(known as u64)
}

fn seen(store: &RocksStore) -> Result<State, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let hard = store.initial_state().map_err(|error| text(&error))?.hard_state;
    let first = store.first_index().map_err(|error| text(&error))?;
    let end = store.last_index().map_err(|error| text(&error))? + 1;
    let context = GetEntriesContext::empty(false);
    let entries = store.entries(first, end, None, context).map_err(|error| text(&error))?;
    let log = entries.into_iter().map(|entry| (entry.index, (entry.term, entry.data))).collect();
    let mut rows = BTreeMap::new();
    let span = Span { start: b"u", end: Some(b"v") };
    store
        .scan(span, Direction::Forward, &mut |row, value| {
            rows.insert(Bytes::copy_from_slice(row), Bytes::copy_from_slice(value));
            ControlFlow::Continue(())
        })
        .map_err(|error| text(&error))?;
    let (term, vote, commit) = (hard.term, hard.vote, hard.commit);
    Ok(State { log, term, vote, commit, applied: store.applied(), rows })
}
