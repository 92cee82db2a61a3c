//! The breaker before a Redis: while it is open nobody asks that Redis, and answers come at once from the failure policy.
//! A probe beside the requests connects until a primary answers, and closes it. All runtimes of a server share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::primary::Primary;
use crate::metrics::RedisSeries;
use crate::store::StoreError;
use crate::store::denial::Denials;

pub(super) struct Breaker {
    pub primary: Primary,
    denials: Arc<Denials>,
    open: AtomicBool,
    /// How often it has opened. A connection from before is not trusted.
    epoch: AtomicU64,
    /// This Redis serves nothing any more: another one does.
    retired: AtomicBool,
    /// When an opening was last written to the log.
    logged: Mutex<Option<Instant>>,
    series: RedisSeries,
}

/// The probe of an open breaker.
struct Probe(Arc<Breaker>);

/// Connecting, with all greetings, takes no longer than this, or it has failed.
pub(super) const CONNECT_MAX: Duration = Duration::from_millis(500);

/// A probe's pause after a failure.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// However often a Redis comes and goes, the log tells of it once in so long.
const LOG_PAUSE: Duration = Duration::from_secs(60);

impl Breaker {
    pub fn new(primary: Primary, denials: Arc<Denials>, series: RedisSeries) -> Self {
        let (open, epoch, retired, logged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        Self { primary, denials, open, epoch, retired, logged, series }
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Ends its probe: nobody waits for this Redis.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Opens it, if it is closed, and sets a probe to work on the current runtime.
    pub fn open(self: &Arc<Self>, why: &StoreError) {
        if self.open.swap(true, Ordering::AcqRel) {
            return;
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.series.breaker_openings.increment(1);
        self.series.breakers_open.increment(1.0);
        let mut logged = self.logged.lock();
        let due = logged.is_none_or(|last| last.elapsed() >= LOG_PAUSE);
        if due {
            *logged = Some(Instant::now());
            warn!(redis = %self.primary, "Redis gives no answer: {why}; it is asked no more until it does (told once a minute)");
        }
        tokio::spawn(Probe(Arc::clone(self)).run(due));
    }
}

impl Probe {
    async fn run(self, log: bool) {
        loop {
            if let Ok(Ok(_connection)) = timeout(CONNECT_MAX, self.0.primary.connect()).await {
                break;
            }
            if self.0.retired.load(Ordering::Acquire) || Arc::strong_count(&self.0) == 1 {
                return; // Nobody will ask this Redis.
            }
            sleep(PROBE_PAUSE).await;
        }
        // Whoever answers now may know less, or more, than what was denied by.
        self.0.denials.clear();
        if log {
            info!(redis = %self.0.primary, "Redis answers again");
        }
    }
}

impl Drop for Probe {
    /// Also where its runtime has gone: then the next failures open the breaker anew.
    fn drop(&mut self) {
        self.0.series.breakers_open.decrement(1.0);
        self.0.open.store(false, Ordering::Release);
    }
}
