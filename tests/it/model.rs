//! The plain model that stores are compared with: every recorded hit is kept one by one, and a request is decided by
//! going through what the design says, with no thought of cost. It shares no code with the stores and knows none.

use std::collections::HashMap;
use std::time::Duration;

use distributed_rate_limiter::hit::{Counter, Hit, Kind, Tally, Verdict};
use distributed_rate_limiter::limit::{Algorithm, Cost};

/// All counters, and every hit in them.
#[derive(Default)]
pub struct Model(HashMap<Name, Log>);

/// What makes two hits add up: all of a counter but the number of entries that its log may have.
pub type Name = (String, Vec<String>, String, u64);

/// The hits recorded on a counter, in the order in which they were. Their times never go down.
#[derive(Clone, Default)]
pub struct Log(Vec<Recorded>);

#[derive(Clone)]
struct Recorded {
    /// It counts in (at - window, at]'s windows: from when it was recorded until `at + window`, exclusive.
    at: u64,
    hits: u64,
}

/// The largest `used`: what is recorded beyond is cut off.
const USED_MAX: u64 = 1 << 52;

impl Model {
    /// What a store must say to `hits` at `now` (microseconds), given all that it was asked before.
    pub fn decide(&mut self, now: u64, hits: &[Hit<'_>]) -> Verdict {
        for hit in hits {
            self.0.entry(name(&hit.counter)).or_default().settle(now, hit.counter.window.micros());
        }
        let (fits, over_descriptors) = self.judge(now, hits);
        let admitted = is_admitted(hits, &over_descriptors);
        for hit in hits {
            let log = self.0.get_mut(&name(&hit.counter)).expect("it was settled");
            record(log, now, hit, admitted && !over_descriptors.contains(&hit.descriptor));
        }
        let tallies = (0..hits.len()).map(|at| self.tally(now, hits, at, &fits, &over_descriptors, admitted)).collect();
        Verdict { admitted, tallies }
    }

    /// The moments at which something recorded on the counter leaves, ascending.
    pub fn leaving(&self, counter: &Counter<'_>) -> Vec<u64> {
        let log = self.0.get(&name(counter)).map_or(&[][..], |log| &log.0);
        log.iter().map(|entry| entry.at + counter.window.micros()).collect()
    }

    /// Whether each hit fits, and which descriptors are over. A hit is judged on top of what the request's earlier hits
    /// would leave behind, were the request admitted.
    fn judge(&self, now: u64, hits: &[Hit<'_>]) -> (Vec<bool>, Vec<usize>) {
        let (mut fits, mut over) = (Vec::new(), Vec::new());
        for (at, hit) in hits.iter().enumerate() {
            let counter = name(&hit.counter);
            let mut log = self.0[&counter].clone();
            for (earlier, fitted) in hits[..at].iter().zip(&fits) {
                if name(&earlier.counter) == counter {
                    record(&mut log, now, earlier, *fitted && stands(earlier, hit, &over));
                }
            }
            let fit = hit.cost.is_refund() || log.used() + hit.cost.need() <= hit.limit.get();
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
        let (log, window) = (&self.0[&counter], hit.counter.window.micros());
        let used = log.used();
        let remaining = hit.limit.get().saturating_sub(used);
        if fits[at] {
            let reset = log.0.first().map_or(0, |oldest| oldest.at + window - now);
            return Tally { over: false, used, remaining, reset: Duration::from_micros(reset) };
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
        let reset = if need > hit.limit.get() { window } else { log.wait(now, window, hit.limit.get() - need) };
        Tally { over: true, used, remaining, reset: Duration::from_micros(reset) }
    }
}

impl Log {
    /// What a window has passed since is gone; what stands more than a window ahead, time having gone back, is moved.
    fn settle(&mut self, now: u64, window: u64) {
        for entry in &mut self.0 {
            entry.at = entry.at.min(now + window);
        }
        self.0.retain(|entry| entry.at + window > now);
    }

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
fn record(log: &mut Log, now: u64, hit: &Hit<'_>, stands: bool) {
    let Algorithm::SlidingWindowLog { log_entries } = hit.counter.algorithm;
    let coarse = hit.counter.window.micros().div_ceil(u64::from(log_entries.get()) - 1);
    match hit.cost {
        Cost::Refund(_) => log.refund(hit.cost.amount()),
        Cost::Take(_) if stands => {
            let exact = hit.limit.get() <= u64::from(log_entries.get());
            log.add(now, if exact { 1 } else { coarse }, hit.cost.amount());
        }
        Cost::Take(_) if hit.count_denied => log.add(now, coarse, hit.cost.amount()),
        Cost::Take(_) => {}
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
    (counter.domain.to_owned(), client, counter.action.as_str().to_owned(), counter.window.micros())
}
