//! The sliding-window log: every hit, or every tick of hits, is remembered for one window. Here is the log as the memory
//! store keeps it; sliding_window_log.lua is its twin in Redis, and the one that must cope with time that goes back. It
//! knows no keys, requests or clocks: time is an argument, in microseconds.

use std::collections::VecDeque;

/// A counter's hits of the last window, oldest first, an entry each tick.
#[derive(Debug, Default)]
pub(in crate::store) struct Log {
    entries: VecDeque<LogEntry>,
    /// The running total below which all hits have left or were refunded. Totals wrap around at 2^64.
    base: u64,
}

#[derive(Debug)]
struct LogEntry {
    /// When its hits count as made.
    time: u64,
    /// The running total after them.
    total: u64,
}

impl Log {
    /// Lets go of what has left by now: a hit made at t counts until t + window, that moment excluded.
    pub fn expire(&mut self, now: u64, window: u64) {
        let left = self.entries.partition_point(|entry| entry.time + window <= now);
        if let Some(last) = left.checked_sub(1).and_then(|last| self.entries.get(last)) {
            // A refund may have taken more than has left.
            if last.total.wrapping_sub(self.base) <= self.used() {
                self.base = last.total;
            }
            self.entries.drain(..left);
        }
    }

    pub fn used(&self) -> u64 {
        self.entries.back().map_or(0, |newest| newest.total.wrapping_sub(self.base))
    }

    /// Records hits at the end of the tick, or in the newest entry where that lies later still: time never goes back.
    pub fn record(&mut self, now: u64, hits: u64, tick: u64) {
        let at = now - now % tick + tick - 1;
        match self.entries.back_mut() {
            Some(newest) if newest.time >= at => newest.total = newest.total.wrapping_add(hits),
            newest => {
                let total = newest.map_or(self.base, |newest| newest.total).wrapping_add(hits);
                self.entries.push_back(LogEntry { time: at, total });
            }
        }
    }

    /// Takes the oldest hits out, as if they had left; at most all.
    pub fn refund(&mut self, hits: u64) {
        let used = self.used();
        let gone = hits.min(used);
        self.base = self.base.wrapping_add(gone);
        let kept = used - gone;
        let base = self.base;
        self.entries.drain(
            ..self.entries.partition_point(|entry| {
                // Totals of entries at or below the base have wrapped: they seem above all that is kept.
                let above = entry.total.wrapping_sub(base);
                above == 0 || above > kept
            }),
        );
    }

    /// When the oldest counted hits leave; 0 where there are none.
    pub fn oldest_leaves(&self, window: u64) -> u64 {
        self.entries.front().map_or(0, |oldest| oldest.time + window)
    }

    /// When the newest counted hits leave, and with them the last of what the log holds; 0 where there are none.
    pub fn newest_leaves(&self, window: u64) -> u64 {
        self.entries.back().map_or(0, |newest| newest.time + window)
    }

    /// Until at most `hits`, fewer than now, are counted.
    pub fn wait(&self, now: u64, window: u64, hits: u64) -> u64 {
        let leaving = self.used().saturating_sub(hits);
        let by = self.entries.partition_point(|entry| entry.total.wrapping_sub(self.base) < leaving);
        self.entries.get(by).map_or(0, |entry| (entry.time + window).saturating_sub(now))
    }
}
