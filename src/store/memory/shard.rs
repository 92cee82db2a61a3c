//! One shard of the memory store: its counters by key, and the order in which they expire. It knows how counters are
//! kept, not how they are decided.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

use super::Home;
use crate::store::algorithm::State;

#[derive(Default)]
pub(super) struct Shard {
    /// Places in `slots`, by key.
    places: HashTable<usize>,
    slots: Slab<Slot>,
    /// Exactly one entry for each slot: its expiry, or an earlier time that is put right when it comes to the top. (A later
    /// one, where a refund let what it held leave earlier.)
    expiries: BinaryHeap<Reverse<(u64, usize)>>,
}

struct Slot {
    /// Most fit in place: a look-up then touches one place less, which is in no cache.
    key: SmallVec<[u8; 72]>,
    hash: u64,
    window: u64,
    state: State,
}

/// What came of the note that was first in the order of expiry.
pub(super) enum Popped {
    /// The counter is gone, which expires, or has expired, at this time.
    Gone(u64),
    /// The counter was hit again since it was noted.
    Later,
}

impl Shard {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes a counter out of its slot, to be put back under the same lock. None where there is none.
    pub fn take(&mut self, hash: u64, key: &[u8]) -> Option<(usize, State)> {
        let slots = &self.slots;
        let place = *self.places.find(hash, |place| slots.get(*place).is_some_and(|slot| slot.key[..] == *key))?;
        let slot = self.slots.get_mut(place)?;
        Some((place, std::mem::take(&mut slot.state)))
    }

    /// Puts a counter back. An empty one gets no new slot; a slot goes only when its time comes.
    pub fn put(&mut self, home: &Home, state: State, now: u64) {
        match home.slot.and_then(|place| self.slots.get_mut(place)) {
            Some(slot) => slot.state = state,
            None if state.used(now, home.window) > 0 => {
                let expiry = state.leaves(home.window);
                let place = self.slots.insert(Slot { key: SmallVec::from_slice(&home.key), hash: home.hash, window: home.window, state });
                let slots = &self.slots;
                self.places.insert_unique(home.hash, place, |place| slots.get(*place).map_or(0, |slot| slot.hash));
                self.expiries.push(Reverse((expiry, place)));
            }
            None => {}
        }
    }

    /// Lets counters go that have expired by now, after `most` looks at the latest. Says whether that was not enough.
    pub fn sweep(&mut self, now: u64, most: usize) -> bool {
        (0..most).all(|_| self.pop_first(now).is_some())
    }

    /// Looks at what is noted to expire first, if that is by `time`: removes the counter, or notes its later expiry.
    pub fn pop_first(&mut self, time: u64) -> Option<Popped> {
        let Reverse((noted, place)) = self.expiries.peek().copied()?;
        if noted > time {
            return None;
        }
        let expiry = self.slots.get(place).map_or(0, |slot| slot.state.leaves(slot.window));
        self.expiries.pop();
        if expiry > noted {
            self.expiries.push(Reverse((expiry, place)));
            return Some(Popped::Later);
        }
        if let Some(slot) = self.slots.try_remove(place)
            && let Ok(entry) = self.places.find_entry(slot.hash, |other| *other == place)
        {
            entry.remove();
        }
        Some(Popped::Gone(expiry))
    }
}
