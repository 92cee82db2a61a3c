//! The breaker before a Redis: while it is open nobody asks that Redis, and answers come at once from the failure policy.
//! A probe beside the requests connects until a primary answers as fast as a request needs it to, and closes it. All runtimes
//! of a server share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::Value;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::link::{FAILURES_MAX, Trouble};
use super::primary::Primary;
use crate::metrics::RedisSeries;
use crate::seldom::OutageLog;
use crate::store::StoreError;
use crate::store::denial::Denials;

pub(super) struct Breaker {
    pub primary: Primary,
    denials: Arc<Denials>,
    /// What a call may take.
    timeout: Duration,
    open: AtomicBool,
    /// How often it has opened. A connection from before is not trusted.
    epoch: AtomicU64,
    /// This Redis serves nothing any more: another one does.
    retired: AtomicBool,
    log: Arc<OutageLog>,
    series: RedisSeries,
}

/// The probe of an open breaker.
struct Probe {
    breaker: Arc<Breaker>,
    why: StoreError,
}

/// Connecting, with all greetings, takes no longer than this, or it has failed.
pub(super) const CONNECT_MAX: Duration = Duration::from_millis(500);

/// A probe's pause after a failure.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

impl Breaker {
    pub fn new(primary: Primary, denials: Arc<Denials>, timeout: Duration, log: Arc<OutageLog>, series: RedisSeries) -> Self {
        let (open, epoch, retired) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
        Self { primary, denials, timeout, open, epoch, retired, log, series }
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
        tokio::spawn(Probe { breaker: Arc::clone(self), why: why.clone() }.run());
    }
}

impl Probe {
    async fn run(self) {
        let Self { breaker, why } = &self;
        let redis = &breaker.primary;
        let tell = || warn!(%redis, "Redis gives no answer: {why}; it is asked no more until it does (told once a minute)");
        breaker.log.lasts(tell);
        while !self.answered().await {
            if breaker.retired.load(Ordering::Acquire) || Arc::strong_count(breaker) == 1 {
                return; // Nobody will ask this Redis.
            }
            sleep(PROBE_PAUSE).await;
            breaker.log.lasts(tell);
        }
        // Whoever answers now may know less, or more, than what was denied by.
        breaker.denials.clear();
        breaker.log.is_over(|| info!(%redis, "Redis answers again"));
    }

    /// Whether there is a primary which answers in the time that a call has, as often in a row as it had not. One that is
    /// slower is of no use: requests would wait for it in vain.
    async fn answered(&self) -> bool {
        let Ok(Ok(mut connection)) = timeout(CONNECT_MAX, self.breaker.primary.connect()).await else { return false };
        for _ in 0..FAILURES_MAX {
            // A script, which waits as ours does where Redis holds writes back (CLIENT PAUSE WRITE, a failover).
            let mut script = redis::cmd("EVAL");
            let asked = script.arg("return 1").arg(0).query_async::<Value>(&mut connection);
            match timeout(self.breaker.timeout, asked).await {
                Ok(Ok(_)) => {}
                // Calls that come to this are no sign of trouble either.
                Ok(Err(error)) if Trouble::of(&StoreError::from(&error)).is_none() => {}
                _ => return false,
            }
        }
        true
    }
}

impl Drop for Probe {
    /// Also where its runtime has gone: then the next failures open the breaker anew.
    fn drop(&mut self) {
        self.breaker.series.breakers_open.decrement(1.0);
        self.breaker.open.store(false, Ordering::Release);
    }
}
