//! Where counters live, behind one call: [`Store::decide`] takes all hits of a request and decides them as a whole, in
//! this process's memory or in Redis. Above this module nobody knows how a store does it; below it nobody knows rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

mod algorithm;
mod denial;
mod key;
mod lease;
pub mod memory;
pub mod redis;

use rustix::time::{ClockId, clock_gettime};

use crate::hit::{Action, Counter, Hit, Kind, Tally, Verdict};
use crate::limit::{Algorithm, Cost, Limit, Window};
use crate::metrics::StoreFailure;
pub use memory::Memory;
pub use redis::{Redis, RedisOptions};

/// A store. Cheap to clone; clones share their counters.
#[derive(Clone)]
pub enum Store {
    Memory(Arc<Memory>),
    Redis(Redis),
}

/// The time that a store goes by. A memory store takes `System` for the wall clock at start plus monotonic time; a Redis
/// store takes it for Redis's own clock.
#[derive(Clone, Default)]
pub enum Clock {
    #[default]
    System,
    /// Time stands until it is stepped, for tests. Redis expires keys by its own clock all the same: a stepped one that is a
    /// window behind that records what is gone at once.
    Stepped(SteppedClock),
}

/// Microseconds since the Unix epoch, set by hand. Clones step together.
#[derive(Clone)]
pub struct SteppedClock(Arc<AtomicU64>);

/// Why a store gave no verdict. The hits may have been counted all the same, once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("no answer from the store within {0:?}")]
    Deadline(Duration),
    #[error("no connection to the store: {0}")]
    Connection(String),
    #[error("the queue toward the store is full")]
    QueueFull,
    #[error("the store is not asked until it answers a probe")]
    BreakerOpen,
    #[error("the store answered with an error: {0}")]
    Reply(String),
}

impl Store {
    /// Decides a request's hits as a whole. `within` is the time that the caller still has; the store keeps to the
    /// smaller of it and its own timeout. No hits are always admitted, unasked.
    ///
    /// # Errors
    /// The store gave no verdict, or not on all hits: see [`StoreError`]. The memory store always gives one.
    pub async fn decide(&self, hits: &[Hit<'_>], within: Option<Duration>) -> Result<Verdict, StoreError> {
        self.decide_or(hits, within, |_, error| Err(error)).await
    }

    /// The same; where the store gives no verdict, or not on all hits, `stand_in` does. It gets the tallies of the hits that
    /// the store has decided, in order with None for the others, and why there are none.
    ///
    /// # Errors
    /// The stand-in's.
    pub async fn decide_or(
        &self,
        hits: &[Hit<'_>],
        within: Option<Duration>,
        stand_in: impl FnOnce(&[Option<Tally>], StoreError) -> Result<Verdict, StoreError>,
    ) -> Result<Verdict, StoreError> {
        if hits.is_empty() {
            return Ok(Verdict { admitted: true, by_denial: false, tallies: Default::default() });
        }
        match self {
            Self::Memory(memory) => Ok(memory.decide(hits)),
            // Boxed: in place it would make every call's future, in memory too, larger than the 1,024 bytes up to which mimalloc is
            // quickest.
            Self::Redis(redis) => Box::pin(redis.decide(hits, within, stand_in)).await,
        }
    }

    /// Whether the store answers now: it is asked to look at counters that nobody counts on, of a short window and a long one,
    /// which may lie in two Redis.
    pub async fn is_ready(&self) -> bool {
        let peek = |(descriptor, window)| Hit {
            descriptor,
            kind: Kind::Shadow,
            counter: Counter {
                domain: "",
                client: Default::default(),
                action: Action::named("ready"),
                algorithm: Algorithm::FixedWindow,
                window,
            },
            limit: Limit::from(1),
            cost: Cost::take(0),
            count_denied: false,
            on_store_failure: None,
            lease: None,
        };
        self.decide(&[(0, Window::SECOND), (1, Window::MINUTE)].map(peek), None).await.is_ok()
    }

    /// The name under which this store keeps a counter, as text: what can be looked up in Redis.
    pub fn key_of(&self, counter: &Counter<'_>) -> String {
        let prefix = match self {
            Self::Memory(_) => "",
            Self::Redis(redis) => redis.key_prefix(),
        };
        String::from_utf8_lossy(&key::encode(prefix, counter)).into_owned()
    }

    /// Gives back what leases that have ended did not spend. To be called every second or so, in the runtime that this store
    /// is for.
    pub fn sweep_leases(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(redis) => redis.sweep_leases(),
        }
    }

    /// Ends all leases, for good, and waits until what is under way toward the store has been answered, its timeout at most.
    pub async fn drain(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(redis) => redis.drain().await,
        }
    }
}

/// The name under which every store keeps a counter, as text, where no key prefix is set: what `explain` tells.
pub fn key_of(counter: &Counter<'_>) -> String {
    String::from_utf8_lossy(&key::encode("", counter)).into_owned()
}

impl From<&StoreError> for StoreFailure {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Deadline(_) => Self::Deadline,
            StoreError::Connection(_) => Self::Connection,
            StoreError::QueueFull => Self::QueueFull,
            StoreError::BreakerOpen => Self::BreakerOpen,
            StoreError::Reply(_) => Self::Reply,
        }
    }
}

impl Clock {
    /// Microseconds since the Unix epoch. The system's wall clock is read once per process, so a jump changes nothing.
    fn now(&self) -> u64 {
        match self {
            Self::System => system_now(),
            Self::Stepped(clock) => clock.now(),
        }
    }
}

impl Clock {
    /// Microseconds of a clock that never jumps, and that goes on while the machine is suspended.
    fn steady(&self) -> u64 {
        match self {
            Self::System => {
                let now = clock_gettime(STEADY);
                now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
            }
            Self::Stepped(clock) => clock.now(),
        }
    }
}

/// Linux's monotonic clock stops while the machine is suspended.
#[cfg(target_os = "linux")]
const STEADY: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const STEADY: ClockId = ClockId::Monotonic;

impl SteppedClock {
    pub fn starting_at(micros: u64) -> Self {
        Self(Arc::new(AtomicU64::new(micros)))
    }

    pub fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn step(&self, micros: u64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }

    pub fn set(&self, micros: u64) {
        self.0.store(micros, Ordering::SeqCst);
    }
}

fn system_now() -> u64 {
    static START: std::sync::OnceLock<(Duration, Instant)> = std::sync::OnceLock::new();
    let (wall, started) = START.get_or_init(|| (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Instant::now()));
    u64::try_from((*wall + started.elapsed()).as_micros()).unwrap_or(u64::MAX)
}
