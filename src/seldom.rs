//! How often the log is told of what happens again and again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keeps a log line from being written more than once a minute.
#[derive(Default)]
pub(crate) struct OncePerMinute(Mutex<Option<Instant>>);

/// Has the log told of something that is away: that it is, and that it is back. Of one outage in a minute at most; of one that
/// lasts, as soon as the minute is over. So the last line says what is.
#[derive(Default)]
pub(crate) struct OutageLog {
    begun: OncePerMinute,
    /// The one under way is told of.
    is_told: AtomicBool,
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

impl OncePerMinute {
    pub fn due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| last.elapsed() >= MINUTE);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

impl OutageLog {
    /// To be called again and again while it lasts.
    pub fn lasts(&self, tell: impl FnOnce()) {
        if !self.is_told.load(Ordering::Relaxed) && self.begun.due() {
            self.is_told.store(true, Ordering::Relaxed);
            tell();
        }
    }

    pub fn is_over(&self, tell: impl FnOnce()) {
        if self.is_told.swap(false, Ordering::Relaxed) {
            tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outage_in_a_minute_is_told_of_and_its_end_with_it() {
        let (log, mut lines) = (OutageLog::default(), Vec::new());
        for _ in 0..3 {
            log.lasts(|| lines.push("away"));
        }
        for _ in 0..2 {
            log.is_over(|| lines.push("back"));
        }
        log.lasts(|| lines.push("away, too soon"));
        log.is_over(|| lines.push("back, too soon"));
        log.lasts(|| lines.push("away, too soon"));
        *log.begun.0.lock() = Instant::now().checked_sub(MINUTE);
        log.lasts(|| lines.push("away for long"));
        log.is_over(|| lines.push("back"));
        assert_eq!(lines, ["away", "back", "away for long", "back"]);
    }
}
