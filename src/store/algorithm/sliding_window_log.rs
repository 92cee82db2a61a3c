//! The sliding-window log: every hit, or every tick of hits, is remembered for one window. Here is the log as the memory
//! store keeps it; sliding_window_log.lua is its twin in Redis, and the one that must cope with time that goes back. It
//! knows no keys, requests or clocks: time is an argument, in microseconds.

use std::collections::VecDeque;

/// A counter's hits of the last window, an entry each tick. What an ordinary hit asks for stands in place: it reads no entry but
/// the newest.
#[derive(Debug, Default)]
pub(in crate::store) struct Log {
    /// All entries but the newest, oldest first.
    older: VecDeque<LogEntry>,
    /// Its time is 0 where there is no entry.
    newest: LogEntry,
    /// The time of the oldest entry.
    oldest: u64,
    /// The running total below which all hits have left or were refunded. Totals wrap around at 2^64.
    base: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct LogEntry {
    /// When its hits count as made.
    time: u64,
    /// The running total after them.
    total: u64,
}

impl Log {
    /// Lets go of what has left by now: a hit made at t counts until t + window, that moment excluded.
    pub fn expire(&mut self, now: u64, window: u64) {
        if self.oldest + window > now || self.is_empty() {
            return;
        }
        let has_left = |entry: &LogEntry| entry.time + window <= now;
        let left = self.older.partition_point(has_left);
        let last = if has_left(&self.newest) { self.newest } else { self.older[left - 1] };
        // A refund may have taken more than has left.
        if last.total.wrapping_sub(self.base) <= self.used() {
            self.base = last.total;
        }
        self.drop_oldest(left);
        if has_left(&self.newest) {
            self.clear();
        }
    }

    pub fn used(&self) -> u64 {
        self.newest.total.wrapping_sub(self.base)
    }

    /// Records hits at the end of the tick, or in the newest entry where that lies later still: time never goes back.
    pub fn record(&mut self, now: u64, hits: u64, tick: u64) {
        let at = now - now % tick + tick - 1;
        let total = self.newest.total.wrapping_add(hits);
        if self.newest.time >= at {
            self.newest.total = total;
            return;
        }
        if self.is_empty() {
            self.oldest = at;
        } else {
            self.older.push_back(self.newest);
        }
        self.newest = LogEntry { time: at, total };
    }

    /// Takes the oldest hits out, as if they had left; at most all.
    pub fn refund(&mut self, hits: u64) {
        let used = self.used();
        if hits >= used {
            return self.clear();
        }
        self.base = self.base.wrapping_add(hits);
        let (base, kept) = (self.base, used - hits);
        self.drop_oldest(self.older.partition_point(|entry| {
            // Totals of entries at or below the base have wrapped: they seem above all that is kept.
            let above = entry.total.wrapping_sub(base);
            above == 0 || above > kept
        }));
    }

    /// When the oldest counted hits leave; 0 where there are none.
    pub fn oldest_leaves(&self, window: u64) -> u64 {
        if self.is_empty() { 0 } else { self.oldest + window }
    }

    /// When the newest counted hits leave, and with them the last of what the log holds; 0 where there are none.
    pub fn newest_leaves(&self, window: u64) -> u64 {
        if self.is_empty() { 0 } else { self.newest.time + window }
    }

    /// Until at most `hits`, fewer than now, are counted.
    pub fn wait(&self, now: u64, window: u64, hits: u64) -> u64 {
        let leaving = self.used().saturating_sub(hits);
        let by = self.older.partition_point(|entry| entry.total.wrapping_sub(self.base) < leaving);
        (self.older.get(by).unwrap_or(&self.newest).time + window).saturating_sub(now)
    }

    fn is_empty(&self) -> bool {
        self.newest.time == 0
    }

    fn clear(&mut self) {
        self.older.clear();
        self.base = self.newest.total;
        self.newest.time = 0;
    }

    /// Drops so many of the older entries.
    fn drop_oldest(&mut self, count: usize) {
        self.older.drain(..count);
        self.oldest = self.older.front().unwrap_or(&self.newest).time;
    }
}
