//! The plain model that stores are compared with: every recorded hit of a log is kept one by one, a bucket's level is an
//! exact fraction, and a request is decided by going through what the design says, with no thought of cost. It shares no
//! code with the stores and knows none.

use std::collections::HashMap;
use std::time::Duration;

use distributed_rate_limiter::hit::{Counter, Hit, Kind, Tally, Verdict};
use distributed_rate_limiter::limit::{Algorithm, Cost};

/// All counters, and what is in them.
#[derive(Default)]
pub struct Model(HashMap<Name, Kept>);

/// What makes two hits add up: of a counter's algorithm its name alone.
pub type Name = (String, Vec<String>, String, &'static str, u64);

/// What is recorded on a counter.
#[derive(Clone)]
enum Kept {
    Log(Log),
    Bucket(Bucket),
    Window(Window),
}

/// The hits recorded on a log, in the order in which they were. Their times never go down.
#[derive(Clone, Default)]
struct Log(Vec<Recorded>);

#[derive(Clone)]
struct Recorded {
    /// It counts in (at - window, at]'s windows: from when it was recorded until `at + window`, exclusive.
    at: u64,
    hits: u64,
}

/// What a token bucket held at a time, and how many hits flow out of it per window.
#[derive(Clone, Default)]
struct Bucket {
    /// In hits, as the numerator of a fraction over the window in microseconds.
    level: u128,
    at: u64,
    limit: u64,
}

/// The hits of the fixed window that begins at so many times its length.
#[derive(Clone, Default)]
struct Window {
    number: u64,
    hits: u64,
}

/// The largest `used` of a log or a fixed window: what is recorded beyond is cut off.
const USED_MAX: u64 = 1 << 52;

impl Model {
    /// What a store must say to `hits` at `now` (microseconds), given all that it was asked before.
    pub fn decide(&mut self, now: u64, hits: &[Hit<'_>]) -> Verdict {
        for hit in hits {
            let kept = self.0.entry(name(&hit.counter)).or_insert_with(|| Kept::new(hit.counter.algorithm));
            kept.settle(now, hit.counter.window.micros());
        }
        let (fits, over_descriptors) = self.judge(now, hits);
        let admitted = is_admitted(hits, &over_descriptors);
        for hit in hits {
            let kept = self.0.get_mut(&name(&hit.counter)).expect("it was settled");
            record(kept, now, hit, admitted && !over_descriptors.contains(&hit.descriptor));
        }
        let tallies = (0..hits.len()).map(|at| self.tally(now, hits, at, &fits, &over_descriptors, admitted)).collect();
        Verdict { admitted, by_denial: false, tallies }
    }

    /// The moments at which something recorded on the counter leaves, ascending; of a bucket, the first ones.
    pub fn leaving(&self, counter: &Counter<'_>) -> Vec<u64> {
        let window = counter.window.micros();
        match self.0.get(&name(counter)) {
            None => Vec::new(),
            Some(Kept::Log(log)) => log.0.iter().map(|entry| entry.at + window).collect(),
            Some(Kept::Bucket(bucket)) => {
                let used = bucket.used(window);
                (used.saturating_sub(20)..used).rev().map(|hits| bucket.at + bucket.wait(window, hits)).collect()
            }
            Some(Kept::Window(kept)) => vec![(kept.number + 1) * window],
        }
    }

    /// Whether each hit fits, and which descriptors are over. A hit is judged on top of what the request's earlier hits
    /// would leave behind, were the request admitted.
    fn judge(&self, now: u64, hits: &[Hit<'_>]) -> (Vec<bool>, Vec<usize>) {
        let (mut fits, mut over) = (Vec::new(), Vec::new());
        for (at, hit) in hits.iter().enumerate() {
            let counter = name(&hit.counter);
            let mut kept = self.0[&counter].clone();
            for (earlier, fitted) in hits[..at].iter().zip(&fits) {
                if name(&earlier.counter) == counter {
                    record(&mut kept, now, earlier, *fitted && stands(earlier, hit, &over));
                }
            }
            let fit = hit.cost.is_refund() || kept.used(hit.counter.window.micros()) + hit.cost.need() <= capacity(hit);
            fits.push(fit);
            if !fit && !over.contains(&hit.descriptor) {
                over.push(hit.descriptor);
            }
        }
        (fits, over)
    }

    fn tally(&self, now: u64, hits: &[Hit<'_>], at: usize, fits: &[bool], over: &[usize], admitted: bool) -> Tally {
        let hit = &hits[at];
        let counter = name(&hit.counter);
        let (kept, window, capacity) = (&self.0[&counter], hit.counter.window.micros(), capacity(hit));
        let used = kept.used(window);
        let remaining = capacity.saturating_sub(used);
        if fits[at] {
            let reset = Duration::from_micros(kept.reset(now, window, capacity));
            return Tally { over: false, used, remaining, reset };
        }
        let mut need = hit.cost.need();
        if !admitted {
            // What the judgement counted on top, and what is now not recorded, must fit as well.
            for (earlier, fitted) in hits[..at].iter().zip(fits) {
                let is_lost = *fitted && stands(earlier, hit, over) && !earlier.count_denied && !earlier.cost.is_refund();
                if is_lost && name(&earlier.counter) == counter {
                    need += earlier.cost.amount();
                }
            }
        }
        let reset = if need > capacity { window } else { kept.wait(now, window, capacity - need) };
        Tally { over: true, used, remaining, reset: Duration::from_micros(reset) }
    }
}

impl Kept {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::SlidingWindowLog { .. } => Self::Log(Log::default()),
            Algorithm::TokenBucket { .. } => Self::Bucket(Bucket::default()),
            Algorithm::FixedWindow => Self::Window(Window::default()),
        }
    }

    /// What has left by now is gone.
    fn settle(&mut self, now: u64, window: u64) {
        match self {
            Self::Log(log) => log.0.retain(|entry| entry.at + window > now),
            Self::Bucket(bucket) => {
                let flowed_out = u128::from(now - bucket.at) * u128::from(bucket.limit);
                (bucket.level, bucket.at) = (bucket.level.saturating_sub(flowed_out), now);
            }
            Self::Window(kept) if kept.number < now / window => *kept = Window { number: now / window, hits: 0 },
            Self::Window(_) => {}
        }
    }

    /// The hits that count; of a bucket, its level rounded up.
    fn used(&self, window: u64) -> u64 {
        match self {
            Self::Log(log) => log.used(),
            Self::Bucket(bucket) => bucket.used(window),
            Self::Window(kept) => kept.hits,
        }
    }

    fn refund(&mut self, window: u64, hits: u64) {
        match self {
            Self::Log(log) => log.refund(hits),
            Self::Bucket(bucket) => bucket.level = bucket.level.saturating_sub(u128::from(hits) * u128::from(window)),
            Self::Window(kept) => kept.hits = kept.hits.saturating_sub(hits),
        }
    }

    /// The time until at most `most` hits are left.
    fn wait(&self, now: u64, window: u64, most: u64) -> u64 {
        match self {
            Self::Log(log) => log.wait(now, window, most),
            Self::Bucket(bucket) => bucket.wait(window, most),
            Self::Window(kept) if kept.hits <= most => 0,
            Self::Window(kept) => (kept.number + 1) * window - now,
        }
    }

    /// What a hit that fits is told.
    fn reset(&self, now: u64, window: u64, capacity: u64) -> u64 {
        match self {
            Self::Log(log) => log.0.first().map_or(0, |oldest| oldest.at + window - now),
            Self::Bucket(bucket) if bucket.level == 0 => 0,
            Self::Bucket(_) if capacity == 0 => window,
            Self::Bucket(bucket) => bucket.wait(window, bucket.used(window).min(capacity) - 1),
            Self::Window(kept) => (kept.number + 1) * window - now,
        }
    }
}

impl Bucket {
    fn used(&self, window: u64) -> u64 {
        u64::try_from(self.level.div_ceil(u128::from(window))).expect("a bucket holds no more")
    }

    fn add(&mut self, window: u64, hits: u64, limit: u64) {
        self.level += u128::from(hits) * u128::from(window);
        self.limit = limit;
    }

    fn wait(&self, window: u64, most: u64) -> u64 {
        let above = self.level.saturating_sub(u128::from(most) * u128::from(window));
        if above == 0 { 0 } else { u64::try_from(above.div_ceil(u128::from(self.limit))).expect("no wait is longer") }
    }
}

impl Log {
    fn used(&self) -> u64 {
        self.0.iter().map(|entry| entry.hits).sum()
    }

    fn add(&mut self, now: u64, tick: u64, hits: u64) {
        let hits = hits.min(USED_MAX - self.used());
        if hits > 0 {
            let end_of_tick = now - now % tick + tick - 1;
            let at = self.0.last().map_or(end_of_tick, |newest| newest.at.max(end_of_tick));
            self.0.push(Recorded { at, hits });
        }
    }

    fn refund(&mut self, mut hits: u64) {
        for entry in &mut self.0 {
            let taken = entry.hits.min(hits);
            entry.hits -= taken;
            hits -= taken;
        }
        self.0.retain(|entry| entry.hits > 0);
    }

    /// The time until at most `most` hits are left.
    fn wait(&self, now: u64, window: u64, most: u64) -> u64 {
        let (mut used, mut wait) = (self.used(), 0);
        for entry in &self.0 {
            if used <= most {
                break;
            }
            used -= entry.hits;
            wait = entry.at + window - now;
        }
        wait
    }
}

/// Records a hit as the request's outcome has it: one that `stands`, or a refund, or one that counts when denied.
fn record(kept: &mut Kept, now: u64, hit: &Hit<'_>, stands: bool) {
    let (window, limit, hits) = (hit.counter.window.micros(), hit.limit.get(), hit.cost.amount());
    let is_denied = match hit.cost {
        Cost::Refund(_) => return kept.refund(window, hits),
        Cost::Take(_) if stands => false,
        Cost::Take(_) if hit.count_denied => true,
        Cost::Take(_) => return,
    };
    match (kept, hit.counter.algorithm) {
        (Kept::Log(log), Algorithm::SlidingWindowLog { log_entries }) => {
            let exact = !is_denied && limit <= u64::from(log_entries.get());
            let tick = if exact { 1 } else { window.div_ceil(u64::from(log_entries.get()) - 1) };
            log.add(now, tick, hits);
        }
        (Kept::Bucket(bucket), Algorithm::TokenBucket { .. }) => {
            // A debt is never more than the burst and what flows out in a window.
            let room = (capacity(hit) + limit).saturating_sub(bucket.used(window));
            let hits = if is_denied { hits.min(room) } else { hits };
            if hits > 0 {
                bucket.add(window, hits, limit);
            }
        }
        (Kept::Window(kept), Algorithm::FixedWindow) => kept.hits += hits.min(USED_MAX - kept.hits),
        _ => unreachable!("the algorithm is part of the name"),
    }
}

/// What a counter may hold with a hit that is admitted.
fn capacity(hit: &Hit<'_>) -> u64 {
    match hit.counter.algorithm {
        Algorithm::TokenBucket { burst: Some(burst) } if hit.limit.get() > 0 => burst.get(),
        _ => hit.limit.get(),
    }
}

/// Whether an earlier hit that fits is one that a later hit is judged on top of: one of a descriptor that is over is not,
/// but for the descriptor that is still being judged.
fn stands(earlier: &Hit<'_>, later: &Hit<'_>, over: &[usize]) -> bool {
    earlier.descriptor == later.descriptor || !over.contains(&earlier.descriptor)
}

fn is_admitted(hits: &[Hit<'_>], over_descriptors: &[usize]) -> bool {
    let fits = |hit: &Hit<'_>| !over_descriptors.contains(&hit.descriptor);
    let enforced = hits.iter().all(|hit| hit.kind != Kind::Enforce || fits(hit));
    let mut quotas = hits.iter().filter(|hit| matches!(hit.kind, Kind::Quota | Kind::QuotaShadow)).peekable();
    enforced && (quotas.peek().is_none() || quotas.any(|hit| hit.kind == Kind::QuotaShadow || fits(hit)))
}

fn name(counter: &Counter<'_>) -> Name {
    let client = counter.client.iter().map(|value| (*value).to_owned()).collect();
    (counter.domain.to_owned(), client, counter.action.as_str().to_owned(), counter.algorithm.as_str(), counter.window.micros())
}
