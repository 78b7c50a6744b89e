//! An object as a reader holds it: its manifest, and what follows from it once (layout, seal, code).

use crate::error::ProxyError;
use crate::namespaces::Namespace;
use alba_proxy_core::Manifest;
use alba_proxy_core::manifest::Protection;
use bytes::Bytes;
use codec::{
    DecodeError, Decoder, FrameTable, Layout, ObjectBinding, ObjectSeal, Shape, Suite, Vandermonde,
};
use model::{FragmentIndex, FragmentKey, NamespaceId};
use std::ops::Range;

/// What reading and repairing an object needs; immutable but for the places in the manifest.
pub struct Loaded {
    pub namespace: NamespaceId,
    pub manifest: Manifest,
    /// As arakoon has it: what an update asserts.
    pub record: Bytes,
    pub table: FrameTable,
    pub layout: Layout,
    pub code: Vandermonde,
    pub seal: ObjectSeal,
}

impl Loaded {
    /// Everything a manifest claims is checked against everything else: it may be wrong, never believed half.
    pub fn new(namespace: &Namespace, record: Bytes) -> Result<Self, ProxyError> {
        let broken = |why: &dyn std::fmt::Display| {
            ProxyError::broken(format!("a manifest of namespace {}", namespace.id()), why)
        };
        let manifest = Manifest::from_bytes(&record).map_err(|error| broken(&error))?;
        let table = FrameTable::decode(&manifest.frame_table).map_err(|error| broken(&error))?;
        let policy = manifest.policy;
        let layout = Layout::new(&table, policy.k()).map_err(|error| broken(&error))?;
        let lens_agree = manifest
            .indexed()
            .all(|(index, fragment)| layout.fragment_len(index.get()) == fragment.len);
        if !lens_agree
            || manifest.plain_len != u64::from(table.plain_len())
            || manifest.codec_id != codec::CODEC_ID
            || manifest.stripe_len != layout.stripe_len()
            || matches!(manifest.protection, Protection::Crc32c) != (table.suite() == Suite::Crc32c)
        {
            return Err(broken(&format!("{}: its fields don't agree", manifest.object)));
        }
        let shape = Shape::new(policy.k(), policy.m())
            .ok_or_else(|| broken(&"k and m are no shape of the code"))?;
        let keys = namespace.keys_for(manifest.protection)?;
        let object = manifest.object.to_bytes();
        let binding = ObjectBinding { object: &object, attempt: manifest.attempt.0.to_be_bytes() };
        let seal =
            ObjectSeal::for_table(&keys, &table, &binding).map_err(|error| broken(&error))?;
        Ok(Self {
            namespace: namespace.id(),
            manifest,
            record,
            table,
            layout,
            code: Vandermonde::new(shape),
            seal,
        })
    }

    pub fn key(&self, fragment: u8) -> FragmentKey {
        let index = FragmentIndex::new(fragment).expect("fragments of a manifest are below 32");
        self.manifest.key_of(self.namespace, index)
    }

    /// Verifies and decodes neighbouring frames that lie one behind the other in `stored`.
    pub fn decode_frames(
        &self,
        decoder: &mut Decoder,
        frames: Range<u32>,
        stored: &[u8],
    ) -> Result<Vec<u8>, DecodeError> {
        let infos = || frames.clone().filter_map(|frame| self.table.frame(frame));
        let total: usize = infos().map(|frame| model::usize_of(frame.plain_len.into())).sum();
        let mut plain = Vec::with_capacity(total);
        let mut from = 0;
        for frame in infos() {
            let end = from + model::usize_of(frame.stored_len.into());
            let stored = stored.get(from..end).ok_or(DecodeError::Mismatch)?;
            decoder.append_frame(&self.seal, &frame, stored, &mut plain)?;
            from = end;
        }
        Ok(plain)
    }

    /// Bytes this costs in a cache.
    pub fn weight(&self) -> u64 {
        // The record, the table and the layout decoded, and the fixed parts.
        model::u64_of(2 * self.record.len()) + 16 * u64::from(self.table.frames()) + 2048
    }
}
