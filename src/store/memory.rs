//! The memory store: counters of this process, in shards behind short locks. All counters of a request are locked
//! together, so that a request is decided as a whole; the number of counters is bounded, and when a shard is full the
//! counter that expires first goes. Exact for one process; also the fallback while Redis is away.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

mod shard;

use super::Clock;
use super::algorithm::State;
use super::algorithm::decide::{Held, decide};
use super::key::{self, Key};
use crate::hit::{Hit, Verdict};
use crate::limit::Algorithm;
use crate::metrics::StoreSeries;
use shard::{Popped, Shard};

/// Counters in this process, shared by all its threads.
pub struct Memory {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    clock: Clock,
    counters_per_shard: usize,
    series: StoreSeries,
}

/// Where a counter that a request touches lives.
struct Home {
    key: Key,
    hash: u64,
    shard: usize,
    algorithm: Algorithm,
    window: u64,
    /// None while the shard does not hold it.
    slot: Option<usize>,
}

/// The largest number of shards; a small store has fewer, so that what expires first is the first of all.
const SHARDS_MAX: usize = 64;

/// A shard is worth its own lock from so many counters on.
const COUNTERS_PER_SHARD_MIN: usize = 1_024;

/// The most counters that a request looks at, for each of its own, in a shard that is full. Those that were hit again since they
/// were last looked at stay: a thirty-second of a shard's counters, at worst, is held above its bound until later requests have
/// looked at all of them.
const LOOKS_MAX: usize = 32;

/// The most counters that a sweep looks at under one hold of a shard's lock.
const SWEEP_MAX: usize = 256;

impl Memory {
    /// A store of at most `counters_max` counters. (A request's own are let in first, and the surplus goes after it; a few above
    /// the bound may stay a while, so that no request has to look at many.)
    pub fn new(counters_max: usize, clock: Clock, series: StoreSeries) -> Self {
        let counters_max = counters_max.max(1);
        let shards = (counters_max / COUNTERS_PER_SHARD_MIN).clamp(1, SHARDS_MAX);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            clock,
            counters_per_shard: counters_max / shards,
            series,
        }
    }

    /// Decides a request's hits as a whole. No await, no I/O: a caller that goes away leaves nothing half done.
    pub fn decide(&self, hits: &[Hit<'_>]) -> Verdict {
        self.series.calls.increment(1);
        let (mut homes, places) = self.homes(hits);
        let mut shards = self.lock(&mut homes);
        // Read under the locks: a counter never sees an earlier time after a later one.
        let now = self.clock.now();
        let mut counters: SmallVec<[Held; 2]> = SmallVec::with_capacity(homes.len());
        for home in &mut homes {
            let (slot, state) = shards[home.shard].take(home.hash, &home.key).unzip();
            home.slot = slot;
            let mut state = state.unwrap_or_else(|| State::new(home.algorithm));
            state.settle(now, home.window);
            counters.push(Held::new(state));
        }
        let verdict = decide(hits, &places, &mut counters, now);
        let looks = LOOKS_MAX * homes.len();
        for (home, counter) in homes.iter().zip(counters) {
            shards[home.shard].put(home, counter.state, now);
        }
        shards.iter_mut().for_each(|shard| self.trim(shard, now, looks));
        verdict
    }

    /// Lets counters go whose hits have all left, and measures how many are held.
    pub fn sweep(&self) {
        self.sweeps().for_each(drop);
    }

    /// The same in steps, a few counters each, under one hold of a lock; whoever has others to think of rests between them.
    pub fn sweeps(&self) -> impl Iterator<Item = ()> {
        let now = self.clock.now();
        let mut shards = self.shards.iter().peekable();
        let mut held = 0;
        std::iter::from_fn(move || {
            while let Some(shard) = shards.peek() {
                let mut shard = shard.lock();
                if shard.sweep(now, SWEEP_MAX) {
                    return Some(());
                }
                held += shard.len();
                drop(shard);
                shards.next();
            }
            self.series.counters.set(held as f64);
            None
        })
    }

    /// Lets what is above the shard's bound go, the counters that expire first, after so many looks at the latest.
    fn trim(&self, shard: &mut Shard, now: u64, looks: usize) {
        for _ in 0..looks {
            if shard.len() <= self.counters_per_shard {
                return;
            }
            // Only a counter that still holds hits is a loss.
            if let Some(Popped::Gone(expiry)) = shard.pop_first(u64::MAX)
                && expiry > now
            {
                self.series.evictions.increment(1);
            }
        }
    }

    /// How many counters are held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The homes of the hits' counters, each once, and for each hit which of them is its own.
    fn homes(&self, hits: &[Hit<'_>]) -> (SmallVec<[Home; 2]>, SmallVec<[usize; 2]>) {
        let mut homes: SmallVec<[Home; 2]> = SmallVec::new();
        let mut places = SmallVec::with_capacity(hits.len());
        for hit in hits {
            let key = key::encode("", &hit.counter);
            let hash = self.hasher.hash_one(&key);
            let known = homes.iter().position(|home| home.hash == hash && home.key == key);
            places.push(known.unwrap_or(homes.len()));
            if known.is_none() {
                // A shard's table goes by the hash's low bits and its top seven.
                let shard = (hash >> 32) as usize % self.shards.len();
                let (algorithm, window) = (hit.counter.algorithm, hit.counter.window.micros());
                homes.push(Home { key, hash, shard, algorithm, window, slot: None });
            }
        }
        (homes, places)
    }

    /// Locks the counters' shards, in one order for all threads. A home's `shard` then is its place among the guards.
    fn lock(&self, homes: &mut [Home]) -> SmallVec<[MutexGuard<'_, Shard>; 2]> {
        let mut numbers: SmallVec<[usize; 2]> = homes.iter().map(|home| home.shard).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for home in homes {
            home.shard = numbers.partition_point(|number| *number < home.shard);
        }
        numbers.iter().map(|number| self.shards[*number].lock()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hit::{Action, Counter, Kind};
    use crate::limit::{Algorithm, Cost, Limit, Window};
    use crate::metrics::Metrics;
    use crate::store::SteppedClock;

    fn hit(client: &'static str, window: Window) -> Hit<'static> {
        let client = [client].into_iter().collect();
        let counter = Counter { domain: "d", client, action: Action::named("a"), algorithm: Algorithm::default(), window };
        Hit {
            descriptor: 0,
            kind: Kind::Enforce,
            counter,
            limit: Limit::from(1),
            cost: Cost::take(1),
            count_denied: false,
            on_store_failure: None,
            lease: None,
        }
    }

    fn store(counters_max: usize) -> (Memory, SteppedClock) {
        let clock = SteppedClock::starting_at(1_000_000_000);
        (Memory::new(counters_max, Clock::Stepped(clock.clone()), StoreSeries::detached()), clock)
    }

    #[test]
    fn when_full_the_counter_that_expires_first_goes_and_is_counted() {
        let (clock, metrics) = (SteppedClock::starting_at(1_000_000_000), Metrics::new().unwrap());
        let memory = Memory::new(3, Clock::Stepped(clock.clone()), metrics.store("memory"));
        memory.decide(&[hit("long", Window::DAY)]);
        memory.decide(&[hit("short", Window::MINUTE)]);
        memory.decide(&[hit("shortest", Window::SECOND)]);
        clock.step(2_000_000);
        // What has expired makes room first, and that is no loss.
        assert!(memory.decide(&[hit("other", Window::HOUR)]).admitted);
        assert!(memory.decide(&[hit("new", Window::HOUR)]).admitted);
        assert_eq!(memory.len(), 3);
        assert!(!memory.decide(&[hit("long", Window::DAY)]).admitted);
        assert!(!memory.decide(&[hit("new", Window::HOUR)]).admitted);
        assert!(memory.decide(&[hit("short", Window::MINUTE)]).admitted, "it expired first, so it went");
        assert!(metrics.render().contains("ratelimit_store_evictions{store=\"memory\"} 2\n"), "{}", metrics.render());
    }

    #[test]
    fn a_counter_that_is_hit_again_moves_back_in_the_order_of_expiry() {
        let (memory, clock) = store(2);
        let again = Hit { limit: Limit::from(9), ..hit("again", Window::MINUTE) };
        memory.decide(std::slice::from_ref(&again));
        clock.step(30_000_000);
        memory.decide(&[hit("other", Window::MINUTE)]);
        clock.step(10_000_000);
        memory.decide(std::slice::from_ref(&again));
        memory.decide(&[hit("third", Window::MINUTE)]);
        assert!(memory.decide(&[hit("other", Window::MINUTE)]).admitted, "it went, though `again` was there before it");
    }

    #[test]
    fn a_full_store_passes_over_many_counters_that_were_hit_again_in_many_requests() {
        let (memory, clock) = store(1_000);
        let clients: Vec<&'static str> = (0..2_000).map(|number| &*String::leak(format!("client-{number}"))).collect();
        let again = |client| Hit { limit: Limit::from(9), ..hit(client, Window::HOUR) };
        for _ in 0..2 {
            for client in &clients[..999] {
                memory.decide(&[again(client)]);
                clock.step(1);
            }
        }
        memory.decide(&[hit("first", Window::MINUTE)]);
        // A look for each of 1,000 that are noted too early: as many requests as that takes, 32 at a time.
        let mut most = 0;
        for client in &clients[999..1_100] {
            memory.decide(&[again(client)]);
            most = most.max(memory.len());
        }
        assert!((1_002..=1_000 + 1_000 / LOOKS_MAX + 1).contains(&most), "{most}");
        assert_eq!(memory.len(), 1_000);
        // In the order of expiry all the same: first the minute's, then those that were hit first the second time.
        let held = |client| memory.decide(&[Hit { cost: Cost::take(0), ..again(client) }]).tallies[0].used;
        assert_eq!((held("first"), held(clients[0]), held(clients[99]), held(clients[100])), (0, 0, 0, 2));
    }

    #[test]
    fn idle_counters_are_swept_and_denied_hits_make_none() {
        let (memory, clock) = store(10_000);
        for client in ["a", "b", "c"] {
            memory.decide(&[hit(client, Window::MINUTE)]);
        }
        let nothing = Hit { limit: Limit::from(0), ..hit("denied", Window::MINUTE) };
        assert!(!memory.decide(&[nothing]).admitted);
        let peek = Hit { cost: Cost::take(0), ..hit("peek", Window::MINUTE) };
        assert!(memory.decide(&[peek]).admitted);
        memory.sweep();
        assert_eq!(memory.len(), 3);
        clock.step(60_000_000);
        memory.sweep();
        assert!(memory.is_empty());
    }

    #[test]
    fn a_counter_of_any_algorithm_goes_when_all_that_it_holds_has_left() {
        // 1,000 s is 40 s into a window of the clock, and a bucket drains 1 of 2 hits in half a minute.
        for (algorithm, leaves) in Algorithm::ALL.into_iter().zip([60_000_000, 30_000_000, 20_000_000]) {
            let (memory, clock) = store(100);
            let mut hit = Hit { limit: Limit::from(2), ..hit("a", Window::MINUTE) };
            hit.counter.algorithm = algorithm;
            memory.decide(&[hit]);
            clock.step(leaves - 1);
            memory.sweep();
            assert_eq!(memory.len(), 1, "{algorithm:?}");
            clock.step(1);
            memory.sweep();
            assert!(memory.is_empty(), "{algorithm:?}");
        }
    }

    #[test]
    fn a_request_wider_than_the_store_is_still_decided_whole() {
        let (memory, _clock) = store(1);
        let hits: Vec<_> = ["a", "b", "c", "a"]
            .into_iter()
            .enumerate()
            .map(|(descriptor, client)| Hit { descriptor, ..hit(client, Window::DAY) })
            .collect();
        let verdict = memory.decide(&hits);
        assert!(!verdict.admitted && verdict.tallies[3].over && !verdict.tallies[0].over);
        assert!(memory.decide(&hits[..3]).admitted);
        assert_eq!(memory.len(), 1);
    }
}
