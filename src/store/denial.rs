//! Denials: counters that a store said are over their limit, and for how long at least. Until then whoever asks for as
//! much is denied here, with no call. Bounded; to forget a denial costs one call and nothing else. It knows keys and
//! terms, not how a store is asked.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;

use super::algorithm::Terms;

/// Denials of one store, shared by all its runtimes.
pub(super) struct Denials {
    /// A denial lives in the set that its key's hash names. Full, it gives the place of the denial that ends first.
    sets: Box<[Mutex<Vec<Denial>>]>,
    hasher: DefaultHashBuilder,
    /// Raised to forget all.
    generation: AtomicU64,
}

/// One counter's.
struct Denial {
    key: Box<[u8]>,
    /// The terms that it was judged by: another limit on the same counter asks the store.
    limit: u64,
    pace: u64,
    /// The least cost that is denied.
    need: u64,
    remaining: u64,
    /// When the cost may fit, in microseconds of a clock that never jumps.
    fits: u64,
    /// Until when it is believed.
    until: u64,
    generation: u64,
}

/// When a store was asked: what it says is no younger than that, and void if all was forgotten since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub at: u64,
    generation: u64,
}

/// What is known of a denied counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub remaining: u64,
    /// Microseconds until the cost that was denied may fit; a larger one may have to wait longer.
    pub wait: u64,
}

/// No denial outlives this, in microseconds: what the store could not foresee (a refund, a raised limit elsewhere) is seen
/// that late at most.
pub(super) const DENIAL_CACHE_MAX: u64 = 5_000_000;

/// Denials in one set, looked through one by one.
const WAYS: usize = 8;

impl Denials {
    /// At most so many; 0 remembers none.
    pub fn new(most: usize) -> Self {
        let sets = most.div_ceil(WAYS);
        let hasher = DefaultHashBuilder::default();
        Self { sets: (0..sets).map(|_| Mutex::default()).collect(), hasher, generation: AtomicU64::new(0) }
    }

    pub fn are_kept(&self) -> bool {
        !self.sets.is_empty()
    }

    /// To be taken before the store is asked.
    pub fn asked(&self, at: u64) -> Asked {
        Asked { at, generation: self.generation.load(Ordering::Relaxed) }
    }

    /// What is known of the counter, if a hit on these terms is denied for now.
    pub fn find(&self, key: &[u8], terms: &Terms, now: u64) -> Option<Known> {
        let set = self.set(key)?.lock();
        let denial = set.iter().find(|denial| *denial.key == *key)?;
        let covers = denial.limit == terms.limit && denial.pace == terms.pace && denial.need <= terms.need;
        let valid = denial.until > now && denial.generation == self.generation.load(Ordering::Relaxed);
        (covers && valid).then(|| Known { remaining: denial.remaining, wait: denial.fits - now })
    }

    /// Remembers that from `need` on nothing fits, for so long from the moment when the store was asked.
    pub fn note(&self, key: &[u8], terms: &Terms, need: u64, asked: Asked, known: Known) {
        let Some(set) = self.set(key) else { return };
        let (fits, until) = (asked.at.saturating_add(known.wait), asked.at + known.wait.min(DENIAL_CACHE_MAX));
        let generation = asked.generation;
        let mut set = set.lock();
        let place = match set.iter().position(|denial| *denial.key == *key) {
            Some(place) => {
                // Of two denials of one counter the one that covers more stays, while it lasts.
                let held = &set[place];
                let same = held.limit == terms.limit && held.pace == terms.pace && held.generation == generation;
                if same && held.need <= need && held.until >= until {
                    return;
                }
                Some(place)
            }
            None if set.len() < WAYS => None,
            None => set.iter().enumerate().min_by_key(|(_, denial)| denial.until).map(|(place, _)| place),
        };
        let (limit, pace, remaining) = (terms.limit, terms.pace, known.remaining);
        match place.and_then(|place| set.get_mut(place)) {
            Some(held) if *held.key == *key => {
                *held = Denial { key: std::mem::take(&mut held.key), limit, pace, need, remaining, fits, until, generation }
            }
            Some(held) => *held = Denial { key: key.into(), limit, pace, need, remaining, fits, until, generation },
            None => set.push(Denial { key: key.into(), limit, pace, need, remaining, fits, until, generation }),
        }
    }

    /// Forgets what is known of a counter.
    pub fn forget(&self, key: &[u8]) {
        if let Some(set) = self.set(key) {
            set.lock().retain(|denial| *denial.key != *key);
        }
    }

    pub fn clear(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn set(&self, key: &[u8]) -> Option<&Mutex<Vec<Denial>>> {
        let sets = self.sets.len() as u64;
        (sets > 0).then(|| &self.sets[(self.hasher.hash_one(key) % sets) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(limit: u64, need: u64) -> Terms {
        Terms { limit, most: u64::MAX, window: 60_000_000, need, amount: need, pace: 1, pace_denied: 1 }
    }

    fn known(wait: u64) -> Known {
        Known { remaining: 2, wait }
    }

    #[test]
    fn a_denial_covers_its_cost_and_more_until_its_end_and_no_longer() {
        let denials = Denials::new(100);
        denials.note(b"a", &terms(5, 3), 3, denials.asked(1_000), known(500));
        assert_eq!(denials.find(b"a", &terms(5, 3), 1_100), Some(known(400)));
        assert_eq!(denials.find(b"a", &terms(5, 4), 1_499), Some(known(1)));
        assert_eq!(denials.find(b"a", &terms(5, 3), 1_500), None, "its time is over");
        assert_eq!(denials.find(b"a", &terms(5, 2), 1_100), None, "a smaller cost may fit");
        assert_eq!(denials.find(b"a", &terms(6, 3), 1_100), None, "another limit is judged anew");
        assert_eq!(denials.find(b"b", &terms(5, 3), 1_100), None);
    }

    #[test]
    fn no_denial_outlives_the_bound() {
        let denials = Denials::new(100);
        denials.note(b"a", &terms(5, 1), 1, denials.asked(0), known(u64::MAX));
        assert!(denials.find(b"a", &terms(5, 1), DENIAL_CACHE_MAX - 1).is_some());
        assert_eq!(denials.find(b"a", &terms(5, 1), DENIAL_CACHE_MAX), None);
    }

    #[test]
    fn a_denial_of_a_larger_cost_does_not_displace_one_that_covers_it() {
        let denials = Denials::new(100);
        denials.note(b"a", &terms(5, 1), 1, denials.asked(0), known(1_000));
        denials.note(b"a", &terms(5, 4), 4, denials.asked(0), known(500));
        assert_eq!(denials.find(b"a", &terms(5, 1), 10), Some(known(990)));
        denials.note(b"a", &terms(5, 4), 4, denials.asked(0), known(5_000));
        assert_eq!(denials.find(b"a", &terms(5, 4), 2_000), Some(known(3_000)));
    }

    #[test]
    fn denials_are_bounded_forgotten_one_by_one_and_all_together() {
        let denials = Denials::new(64);
        for number in 0_u32..10_000 {
            denials.note(&number.to_be_bytes(), &terms(5, 1), 1, denials.asked(0), known(1_000));
        }
        let held = denials.sets.iter().map(|set| set.lock().len()).sum::<usize>();
        assert!((60..=64).contains(&held), "{held}");
        denials.note(b"a", &terms(5, 1), 1, denials.asked(0), known(1_000));
        denials.note(b"b", &terms(5, 1), 1, denials.asked(0), known(2_000));
        denials.forget(b"a");
        assert_eq!(denials.find(b"a", &terms(5, 1), 0), None);
        assert!(denials.find(b"b", &terms(5, 1), 0).is_some());
        denials.clear();
        assert_eq!(denials.find(b"b", &terms(5, 1), 0), None);
        denials.note(b"b", &terms(5, 1), 1, denials.asked(0), known(1_000));
        assert!(denials.find(b"b", &terms(5, 1), 0).is_some());
        let asked = denials.asked(0);
        denials.clear();
        denials.note(b"c", &terms(5, 1), 1, asked, known(1_000));
        assert_eq!(denials.find(b"c", &terms(5, 1), 0), None, "it was asked before all was forgotten");
    }

    #[test]
    fn none_are_kept_where_none_are_wanted() {
        let denials = Denials::new(0);
        denials.note(b"a", &terms(5, 1), 1, denials.asked(0), known(1_000));
        assert!(!denials.are_kept() && denials.find(b"a", &terms(5, 1), 0).is_none());
    }
}
