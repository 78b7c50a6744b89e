//! Segment files that remember every write until a sync covers it, and can be asked what a power cut would leave.
//!
//! Unlike the disk of the simulated world this one isn't lived on after a cut only: at any moment it gives as many
//! possible contents as are asked for, so that every prefix of a run can be attacked.
//!
//! Invariant: what an image shows is the synced bytes, and of what was written since, per 512-byte sector, any write or
//! none, in any order; a sector itself is never torn.

use std::collections::BTreeMap;

use sim::{Chance, Random};

const SECTOR: usize = 512;

/// What a power cut does to the writes that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    AllLost,
    AllKept,
    /// Only the newest reached the disk: it was taken out of turn.
    NewestKept,
    /// Only the newest didn't.
    NewestLost,
    /// The newest reached it up to some sector.
    Torn,
    /// Each sector by itself.
    Sectors(Chance),
}

/// The cuts that are tried at every moment; the random ones are drawn anew each time.
pub const CUTS: [Cut; 8] = [
    Cut::AllLost,
    Cut::AllKept,
    Cut::NewestKept,
    Cut::NewestLost,
    Cut::Torn,
    Cut::Sectors(Chance::percent(10)),
    Cut::Sectors(Chance::percent(50)),
    Cut::Sectors(Chance::percent(90)),
];

#[derive(Debug, Clone)]
struct Written {
    file: u32,
    offset: usize,
    bytes: Vec<u8>,
}

/// A sync under way: so many of the pending writes are covered, where they are of these files.
#[derive(Debug, Clone)]
pub struct Syncing {
    files: Vec<u32>,
    covered: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Files {
    synced: BTreeMap<u32, Vec<u8>>,
    pending: Vec<Written>,
}

pub type Image = BTreeMap<u32, Vec<u8>>;

impl Files {
    /// A file appears with its zeroes on disk, as zero-write, sync and rename make it.
    pub fn create(&mut self, file: u32, len: usize) {
        self.synced.entry(file).or_insert_with(|| vec![0; len]);
    }

    pub fn names(&self) -> Vec<u32> {
        self.synced.keys().copied().collect()
    }

    pub fn write(&mut self, file: u32, offset: usize, bytes: Vec<u8>) {
        self.pending.push(Written { file, offset, bytes });
    }

    pub fn begin_sync(&self, files: &[u32]) -> Syncing {
        Syncing { files: files.to_vec(), covered: self.pending.len() }
    }

    pub fn end_sync(&mut self, sync: &Syncing) {
        let pending = std::mem::take(&mut self.pending);
        for (at, written) in pending.into_iter().enumerate() {
            if at < sync.covered && sync.files.contains(&written.file) {
                put(&mut self.synced, &written, 0..written.bytes.len());
            } else {
                self.pending.push(written);
            }
        }
    }

    /// What is there when the process is killed and the machine lives on.
    pub fn seen(&self) -> Image {
        self.image(Cut::AllKept, &mut Random::new(0))
    }

    /// What a power cut now may leave.
    pub fn image(&self, cut: Cut, random: &mut Random) -> Image {
        let mut image = self.synced.clone();
        let newest = self.pending.len().saturating_sub(1);
        for (number, written) in self.pending.iter().enumerate() {
            let whole = 0..written.bytes.len();
            match cut {
                Cut::AllLost => {}
                Cut::AllKept => put(&mut image, written, whole),
                Cut::NewestKept if number == newest => put(&mut image, written, whole),
                Cut::NewestLost if number < newest => put(&mut image, written, whole),
                Cut::NewestKept | Cut::NewestLost => {}
                Cut::Torn if number < newest => put(&mut image, written, whole),
                Cut::Torn => {
                    let sectors = sectors(written);
                    let kept = random.index(sectors.len() + 1);
                    sectors[..kept].iter().for_each(|part| put(&mut image, written, part.clone()));
                }
                Cut::Sectors(chance) => {
                    for part in sectors(written) {
                        if random.happens(chance) {
                            put(&mut image, written, part);
                        }
                    }
                }
            }
        }
        image
    }

    /// The power was cut, and this is what was left.
    pub fn from_image(image: Image) -> Self {
        Self { synced: image, pending: Vec::new() }
    }
}

/// The parts of a write that lie in one sector each.
fn sectors(written: &Written) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < written.bytes.len() {
        let end = (written.offset + at + 1).next_multiple_of(SECTOR) - written.offset;
        parts.push(at..end.min(written.bytes.len()));
        at = end;
    }
    parts
}

fn put(image: &mut Image, written: &Written, part: std::ops::Range<usize>) {
    let file = image.get_mut(&written.file).expect("a file is created before it is written");
    let start = written.offset + part.start;
    file[start..start + part.len()].copy_from_slice(&written.bytes[part]);
}
