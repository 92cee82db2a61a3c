//! The fixed window: hits are counted from each whole multiple of the window since the Unix epoch on, and all leave at
//! its end. Here is the count as the memory store keeps it; fixed_window.lua is its twin in Redis, and the one that must
//! cope with time that goes back. It knows no keys, requests or clocks: time is an argument, in microseconds.

/// The hits of one window.
#[derive(Debug, Default)]
pub(in crate::store) struct FixedWindow {
    /// The window begins at so many times its length.
    number: u64,
    count: u64,
}

impl FixedWindow {
    pub fn settle(&mut self, now: u64, window: u64) {
        let number = now / window;
        if self.number < number {
            *self = Self { number, count: 0 };
        }
    }

    pub fn used(&self) -> u64 {
        self.count
    }

    pub fn record(&mut self, hits: u64) {
        self.count += hits;
    }

    pub fn refund(&mut self, hits: u64) {
        self.count = self.count.saturating_sub(hits);
    }

    /// When all its hits leave.
    pub fn ends(&self, window: u64) -> u64 {
        (self.number + 1) * window
    }
}
