//! Keyed storage with constant-time access whose keys are never reused, so that a late answer finds nothing rather than
//! somebody else's request.
//!
//! Invariant: a key is valid from its `insert` to its `remove`, and never again.

/// Position and life count of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    index: u32,
    life: u32,
}

#[derive(Debug)]
struct Slot<T> {
    life: u32,
    value: Option<T>,
}

#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), used: 0 }
    }

    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { life: 0, value: None });
            model::u32_of(self.slots.len() - 1)
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        self.used += 1;
        Key { index, life: slot.life }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.life == key.life { slot.value.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.life != key.life {
            return None;
        }
        let value = slot.value.take()?;
        self.used -= 1;
        // A slot whose lives are used up is retired, never wrapped.
        if let Some(next) = slot.life.checked_add(1) {
            slot.life = next;
            self.free.push(key.index);
        }
        Some(value)
    }

    /// Takes everything out, in order of position.
    pub fn drain(&mut self) -> Vec<T> {
        let keys: Vec<Key> = self.iter().map(|(key, _)| key).collect();
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    pub const fn len(&self) -> usize {
        self.used
    }

    /// Every value with its key, in order of position.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| {
            let key = Key { index: model::u32_of(at), life: slot.life };
            slot.value.as_ref().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_finds_a_later_value() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(second.index, first.index, "the slot is used again");
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.drain(), ['b']);
    }
}
