//! What the log tells of something that is away: that it is, and that it is back, of one outage in a minute at most; of one
//! that lasts, as soon as the minute is over. So the last line says what is.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Default)]
pub(super) struct OutageLog(Mutex<Told>);

#[derive(Default)]
struct Told {
    /// When an outage was last told of.
    last: Option<Instant>,
    /// The one under way is.
    is_under_way: bool,
}

const PAUSE: Duration = Duration::from_secs(60);

impl OutageLog {
    /// To be called again and again while it lasts.
    pub fn lasts(&self, tell: impl FnOnce()) {
        let mut told = self.0.lock();
        if !told.is_under_way && told.last.is_none_or(|last| last.elapsed() >= PAUSE) {
            *told = Told { last: Some(Instant::now()), is_under_way: true };
            tell();
        }
    }

    pub fn is_over(&self, tell: impl FnOnce()) {
        if std::mem::take(&mut self.0.lock().is_under_way) {
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
        log.0.lock().last = Instant::now().checked_sub(PAUSE);
        log.lasts(|| lines.push("away for long"));
        log.is_over(|| lines.push("back"));
        assert_eq!(lines, ["away", "back", "away for long", "back"]);
    }
}
