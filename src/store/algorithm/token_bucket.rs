//! The token bucket, by the generic cell rate algorithm (GCRA): hits fill it, and it drains by its limit per window. Here
//! is the bucket as the memory store keeps it; token_bucket.lua is its twin in Redis, and the one that must cope with time
//! that goes back. It knows no keys, requests or clocks: time is an argument, in microseconds.
//!
//! A window drains `limit` hits, so a microsecond drains `limit` parts of a hit cut into `window` parts: in these parts
//! all levels are whole numbers, whatever the limit, and nothing is ever rounded.

/// Until when what it holds takes to drain: `tat + part / limit`, the theoretical arrival time. Nothing before its first hit.
#[derive(Debug, Default)]
pub(in crate::store) struct Bucket {
    /// Whole microseconds since the Unix epoch.
    tat: u64,
    /// Below `limit`.
    part: u64,
    /// How many hits drain per window: the limit of the last recorded hit.
    limit: u64,
}

impl Bucket {
    /// The level in whole hits, rounded up.
    pub fn used(&self, now: u64, window: u64) -> u64 {
        narrow(self.level(now).div_ceil(u128::from(window)))
    }

    /// Fills in hits. From now on it drains by this limit, which is above 0.
    pub fn record(&mut self, now: u64, window: u64, hits: u64, limit: u64) {
        let level = self.level(now) + parts(hits, window);
        self.limit = limit;
        self.set(now, level);
    }

    pub fn refund(&mut self, now: u64, window: u64, hits: u64) {
        let level = self.level(now);
        if level > 0 {
            self.set(now, level.saturating_sub(parts(hits, window)));
        }
    }

    /// Until the level is at most `hits`, which is less than now.
    pub fn wait(&self, now: u64, window: u64, hits: u64) -> u64 {
        let above = self.level(now).saturating_sub(parts(hits, window));
        if above == 0 { 0 } else { narrow(above.div_ceil(u128::from(self.limit))) }
    }

    /// Until there is room for one hit more under `limit`, 0 if it is empty. None: there never is.
    pub fn reset(&self, now: u64, window: u64, limit: u64) -> Option<u64> {
        match self.used(now, window) {
            0 => Some(0),
            used => Some(self.wait(now, window, used.min(limit).checked_sub(1)?)),
        }
    }

    /// The first microsecond at which it is empty.
    pub fn is_empty_at(&self) -> u64 {
        self.tat + u64::from(self.part > 0)
    }

    /// In parts of a hit.
    fn level(&self, now: u64) -> u128 {
        match self.tat.checked_sub(now) {
            Some(whole) => u128::from(whole) * u128::from(self.limit) + u128::from(self.part),
            None => 0,
        }
    }

    fn set(&mut self, now: u64, level: u128) {
        let limit = u128::from(self.limit);
        self.tat = now + narrow(level / limit);
        self.part = narrow(level % limit);
    }
}

/// Hits as parts of a hit.
fn parts(hits: u64, window: u64) -> u128 {
    u128::from(hits) * u128::from(window)
}

/// Below 2^53 by the bounds of limits, bursts and windows.
fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_per_seven_seconds_never_drift() {
        let (now, window, mut bucket) = (1_000_000_007, 7_000_000, Bucket::default());
        for _ in 0..3 * 1_000_000 {
            bucket.record(now, window, 1, 3);
        }
        assert_eq!((bucket.tat, bucket.part), (now + 1_000_000 * window, 0));
    }

    #[test]
    fn a_level_means_the_same_hits_under_every_limit() {
        let (now, window, mut bucket) = (1_000_000_007, 7_000_000, Bucket::default());
        bucket.record(now, window, 1, 3);
        let drained = bucket.level(now + 1_000_001);
        for limit in [1, 4_294_967_295, 1_000_000_000_000_000, 7] {
            bucket.record(now + 1_000_001, window, 1, limit);
            bucket.refund(now + 1_000_001, window, 1);
            assert_eq!(bucket.level(now + 1_000_001), drained, "nothing is lost on the way");
        }
    }
}
