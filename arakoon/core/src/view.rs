//! Reading the ordered map, and reading it through changes that aren't written yet.
//!
//! Several transactions are applied before one write to disk, and each must see those before it. An [`Overlay`] holds
//! their changes; `keep` and `discard` make one transaction all or nothing.

use crate::rows;
use crate::store::StoreError;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use wire::arakoon::{Direction, prefix_end};

/// What a scan calls per row; `Break` ends it.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Rows `start <= row < end` (to the very end when `None`).
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    pub start: &'a [u8],
    pub end: Option<&'a [u8]>,
}

/// An ordered map of rows, as of one moment.
pub trait View {
    /// # Errors
    /// When the disk fails.
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Calls `visit` for the rows of the span in the given direction.
    ///
    /// # Errors
    /// When the disk fails.
    fn scan(
        &self,
        span: Span<'_>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError>;
}

/// Changes to rows, in the order of rows: `None` deletes.
pub type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// A view with changes on top.
#[derive(Debug)]
pub struct Overlay<'a, V> {
    base: &'a V,
    /// Changes of transactions that happened.
    kept: Changes,
    /// Changes of the transaction at hand.
    staged: Changes,
    /// Rows whose change watchers want to know of.
    noted: Vec<Bytes>,
}

impl<'a, V: View> Overlay<'a, V> {
    #[must_use]
    pub const fn new(base: &'a V) -> Self {
        Self { base, kept: BTreeMap::new(), staged: BTreeMap::new(), noted: Vec::new() }
    }

    /// # Errors
    /// When the disk fails.
    pub fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.staged.get(row).or_else(|| self.kept.get(row)) {
            Some(changed) => Ok(changed.clone()),
            None => self.base.get(row),
        }
    }

    pub fn put(&mut self, row: Bytes, value: Bytes) {
        self.staged.insert(row, Some(value));
    }

    pub fn delete(&mut self, row: Bytes) {
        self.staged.insert(row, None);
    }

    /// The rows that begin with `prefix`, at most `limit` and one: more than `limit` tells the caller that it's too many.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn rows_with(&self, prefix: &[u8], limit: usize) -> Result<Vec<Bytes>, StoreError> {
        let end = prefix_end(prefix);
        let mut rows: BTreeMap<Bytes, ()> = BTreeMap::new();
        let span = Span { start: prefix, end: end.as_deref() };
        self.base.scan(span, Direction::Forward, &mut |row, _| {
            if self.staged.get(row).or_else(|| self.kept.get(row)).is_none() {
                rows.insert(Bytes::copy_from_slice(row), ());
            }
            if rows.len() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        for layer in [&self.kept, &self.staged] {
            let from = (Bound::Included(prefix), Bound::Unbounded);
            let under = layer.range::<[u8], _>(from).take_while(|(row, _)| row.starts_with(prefix));
            for (row, value) in under {
                match value {
                    Some(_) => rows.insert(row.clone(), ()),
                    None => rows.remove(row),
                };
            }
        }
        Ok(rows.into_keys().take(limit + 1).collect())
    }

    /// The transaction at hand happens.
    pub fn keep(&mut self) {
        let users = self.staged.keys().filter(|row| rows::user_key(row).is_some());
        self.noted.extend(users.cloned());
        self.kept.append(&mut self.staged);
    }

    /// Watchers want to know of this row's change; user's rows are noted by themselves.
    pub fn note(&mut self, row: Bytes) {
        self.noted.push(row);
    }

    /// What was noted since the last call.
    pub fn take_noted(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.noted)
    }

    /// The transaction at hand does not happen.
    pub fn discard(&mut self) {
        self.staged.clear();
    }

    /// All kept changes, for one write.
    ///
    /// # Panics
    /// When a transaction is neither kept nor discarded.
    #[must_use]
    pub fn into_changes(self) -> Changes {
        assert!(self.staged.is_empty(), "a transaction was left undecided");
        self.kept
    }
}

impl View for BTreeMap<Bytes, Bytes> {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(Self::get(self, row).cloned())
    }

    fn scan(
        &self,
        span: Span<'_>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if span.end.is_some_and(|end| end <= span.start) {
            return Ok(());
        }
        let bounds =
            (Bound::Included(span.start), span.end.map_or(Bound::Unbounded, Bound::Excluded));
        let mut rows = self.range::<[u8], _>(bounds);
        while let Some((row, value)) = match direction {
            Direction::Forward => rows.next(),
            Direction::Backward => rows.next_back(),
        } {
            if visit(row, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
