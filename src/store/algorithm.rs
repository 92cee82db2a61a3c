//! How hits are decided, in pure functions of hits, counters and times: the frame that decides a request as a whole
//! (decide) and a file for each algorithm, each with its twin in Lua for Redis. Here stand the terms of a hit, which are
//! one form for all algorithms and both stores, and what the memory store keeps of a counter. Where that lives, and under
//! which key, is the stores' matter.

pub(super) mod decide;
mod fixed_window;
mod sliding_window_log;
mod token_bucket;

use std::time::Duration;

use crate::hit::{Hit, Tally};
use crate::limit::{Algorithm, Cost};
use fixed_window::FixedWindow;
use sliding_window_log::Log;
use token_bucket::Bucket;

/// The script that decides a batch in Redis, less its first line, which reads the time into `TIME`.
pub(super) const SCRIPT: &str = concat!(
    "local now = TIME[1] * 1000000 + TIME[2]\n",
    "local call, try, pack, unpack = redis.call, redis.pcall, struct.pack, struct.unpack\n",
    include_str!("algorithm/digits.lua"),
    include_str!("algorithm/sliding_window_log.lua"),
    include_str!("algorithm/token_bucket.lua"),
    include_str!("algorithm/fixed_window.lua"),
    include_str!("algorithm/decide.lua")
);

/// On what terms one hit is judged and recorded, in plain numbers: hits and microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Terms {
    /// What the counter may hold with this hit: the limit, or of a token bucket its burst.
    pub limit: u64,
    /// What it may hold with hits that are recorded although denied.
    pub most: u64,
    pub window: u64,
    /// What must fit.
    pub need: u64,
    /// What is recorded, or given back.
    pub amount: u64,
    /// How the hits leave: the tick for which a log's hits share an entry, or how many drain from a bucket per window. Of a
    /// fixed window it says only when a lease ends.
    pub pace: u64,
    /// The same, of hits that are recorded although denied.
    pub pace_denied: u64,
}

/// A counter as the memory store keeps it.
#[derive(Debug)]
pub(super) enum State {
    Log(Log),
    Bucket(Bucket),
    Window(FixedWindow),
}

/// The most hits that a log or a fixed window holds, denied ones included: 2^52.
const USED_MOST: u64 = Cost::MOST;

impl Terms {
    pub fn of(hit: &Hit<'_>) -> Self {
        let (limit, window) = (hit.limit, hit.counter.window);
        let capacity = hit.counter.algorithm.capacity(limit, window);
        let leased = hit.lease.and_then(|_| hit.counter.algorithm.lease_tick(window));
        let (most, pace, pace_denied) = match hit.counter.algorithm {
            Algorithm::SlidingWindowLog { log_entries } => {
                let (tick, coarse) = (log_entries.tick(limit, window), log_entries.coarse_tick(window));
                (USED_MOST, leased.unwrap_or(tick), leased.unwrap_or(coarse))
            }
            // The burst, and what one window lets out: no debt takes longer to pay.
            Algorithm::TokenBucket { .. } => (capacity + limit.get(), limit.get(), limit.get()),
            Algorithm::FixedWindow => (USED_MOST, leased.unwrap_or_default(), 0),
        };
        Self { limit: capacity, most, window: window.micros(), need: hit.cost.need(), amount: hit.cost.amount(), pace, pace_denied }
    }

    /// The tally of a hit whose counter holds `used` hits after its request; `wait` is None where it can never fit.
    pub fn tally(&self, over: bool, used: u64, wait: Option<u64>) -> Tally {
        Tally { over, used, remaining: self.limit.saturating_sub(used), reset: Duration::from_micros(wait.unwrap_or(self.window)) }
    }
}

impl State {
    /// A counter that holds nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::SlidingWindowLog { .. } => Self::Log(Log::default()),
            Algorithm::TokenBucket { .. } => Self::Bucket(Bucket::default()),
            Algorithm::FixedWindow => Self::Window(FixedWindow::default()),
        }
    }

    /// Lets go of what has left by `now`. What follows takes the counter as of then.
    pub fn settle(&mut self, now: u64, window: u64) {
        match self {
            Self::Log(log) => log.expire(now, window),
            Self::Bucket(_) => {} // It drains by itself, as time passes.
            Self::Window(counted) => counted.settle(now, window),
        }
    }

    /// The hits that count; of a bucket, its level rounded up.
    pub fn used(&self, now: u64, window: u64) -> u64 {
        match self {
            Self::Log(log) => log.used(),
            Self::Bucket(bucket) => bucket.used(now, window),
            Self::Window(counted) => counted.used(),
        }
    }

    /// Records hits, of which there are some, at the pace of their terms.
    pub fn record(&mut self, now: u64, window: u64, hits: u64, pace: u64) {
        match self {
            Self::Log(log) => log.record(now, hits, pace),
            Self::Bucket(bucket) => bucket.record(now, window, hits, pace),
            Self::Window(counted) => counted.record(hits),
        }
    }

    /// Gives hits back, at most all.
    pub fn refund(&mut self, now: u64, window: u64, hits: u64) {
        match self {
            Self::Log(log) => log.refund(hits),
            Self::Bucket(bucket) => bucket.refund(now, window, hits),
            Self::Window(counted) => counted.refund(hits),
        }
    }

    /// Until at most `hits`, fewer than now, are counted.
    pub fn wait(&self, now: u64, window: u64, hits: u64) -> u64 {
        match self {
            Self::Log(log) => log.wait(now, window, hits),
            Self::Bucket(bucket) => bucket.wait(now, window, hits),
            Self::Window(counted) => counted.ends(window).saturating_sub(now),
        }
    }

    /// Until a log's oldest counted hits leave, a bucket has room for one hit more, 0 if they are empty; until a fixed window
    /// ends. None: never.
    pub fn reset(&self, now: u64, window: u64, limit: u64) -> Option<u64> {
        match self {
            Self::Log(log) => Some(log.oldest_leaves(window).saturating_sub(now)),
            Self::Bucket(bucket) => bucket.reset(now, window, limit),
            Self::Window(counted) => Some(counted.ends(window).saturating_sub(now)),
        }
    }

    /// When the last of what it holds leaves; a time that has passed where it holds nothing.
    pub fn leaves(&self, window: u64) -> u64 {
        match self {
            Self::Log(log) => log.newest_leaves(window),
            Self::Bucket(bucket) => bucket.is_empty_at(),
            Self::Window(counted) => counted.ends(window),
        }
    }
}

impl Default for State {
    /// What stands in a counter's place while it is taken out.
    fn default() -> Self {
        Self::Log(Log::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_algorithms_make_a_counter_no_larger_than_a_log_alone() {
        assert_eq!(size_of::<State>(), size_of::<Log>());
    }
}
