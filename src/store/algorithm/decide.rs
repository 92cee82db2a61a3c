//! Decides one request's hits, as a whole, on counters that the caller holds: judges each hit on top of the earlier
//! ones, takes the vote, records what the verdict leaves, and only then tallies. decide.lua is its twin in Redis. It
//! knows neither keys nor locks.

use smallvec::SmallVec;

use super::sliding_window_log::{Log, LogAsk};
use crate::hit::{Hit, Kind, Tallies, Tally, Verdict};

/// A counter while a request is decided on it.
#[derive(Debug)]
pub(in crate::store) struct State {
    pub log: Log,
    /// Hits that the request takes if it is admitted.
    asked: u64,
    /// Hits that it takes (+) or gives back (-) in any case.
    sure: i64,
}

/// How a request's descriptors have fared.
#[derive(Clone, Copy, Debug, Default)]
struct Ballot {
    denied: bool,
    quotas: u32,
    quotas_fitting: u32,
}

/// A hit, judged.
struct Judged {
    ask: LogAsk,
    over: bool,
    /// Its descriptor is over: of it, only denied hits that count are recorded.
    out: bool,
    /// What its counter had been asked for before it.
    asked_before: u64,
}

/// Decides a request. `places` says for each hit which of `counters` is its own; their logs are as of `now`, in
/// microseconds, with all that has left let go.
pub(in crate::store) fn decide(hits: &[Hit<'_>], places: &[usize], counters: &mut [State], now: u64) -> Verdict {
    let mut judged: SmallVec<[Judged; 2]> = SmallVec::with_capacity(hits.len());
    let mut ballot = Ballot::default();
    let mut from = 0;
    for descriptor in hits.chunk_by(|a, b| a.descriptor == b.descriptor) {
        let places = &places[from..from + descriptor.len()];
        let mine = descriptor.iter().zip(places).map(|(hit, place)| judge(hit, &mut counters[*place]));
        judged.extend(mine);
        let over = judged[from..].iter().any(|judged| judged.over);
        if over {
            for ((hit, judged), place) in descriptor.iter().zip(&mut judged[from..]).zip(places) {
                judged.out = true;
                if judged.takes_if_admitted(hit) {
                    counters[*place].asked -= judged.ask.amount;
                }
            }
        }
        ballot.cast(descriptor[0].kind, over);
        from += descriptor.len();
    }
    let admitted = ballot.admits();
    for ((hit, judged), place) in hits.iter().zip(&judged).zip(places) {
        record(hit, judged, &mut counters[*place].log, now, admitted);
    }
    let tallies: Tallies = judged.iter().zip(places).map(|(judged, place)| judged.tally(&counters[*place].log, now, admitted)).collect();
    Verdict { admitted, tallies }
}

impl State {
    pub fn of(log: Log) -> Self {
        Self { log, asked: 0, sure: 0 }
    }
}

fn judge(hit: &Hit<'_>, counter: &mut State) -> Judged {
    let ask = LogAsk::new(hit);
    // Below 2^53: a log holds at most 2^52, and a request's hits that fit at most the limit. Summed in this order, for
    // what is given back may be what the request itself takes.
    let used = (counter.log.used() + counter.asked).saturating_add_signed(counter.sure);
    let mut judged = Judged { ask, over: used + ask.need > ask.limit, out: false, asked_before: counter.asked };
    if hit.cost.is_refund() {
        judged.over = false;
        counter.sure -= ask.amount.min(used) as i64;
    } else if hit.count_denied {
        counter.sure += ask.amount.min(Log::USED_MOST.saturating_sub(used)) as i64;
    } else if !judged.over {
        counter.asked += ask.amount;
    }
    judged
}

fn record(hit: &Hit<'_>, judged: &Judged, log: &mut Log, now: u64, admitted: bool) {
    let ask = &judged.ask;
    if hit.cost.is_refund() {
        log.refund(ask.amount);
    } else if ask.amount == 0 {
        // A peek, or a cost that never fits.
    } else if admitted && !judged.out {
        log.record(now, ask.amount, ask.tick);
    } else if hit.count_denied {
        let room = Log::USED_MOST - log.used();
        log.record(now, ask.amount.min(room), ask.coarse_tick);
    }
}

impl Judged {
    fn takes_if_admitted(&self, hit: &Hit<'_>) -> bool {
        !self.over && !hit.cost.is_refund() && !hit.count_denied
    }

    fn tally(&self, log: &Log, now: u64, admitted: bool) -> Tally {
        let ask = &self.ask;
        let wait = if self.over {
            // What the request's earlier hits asked of the counter is asked again next time, unless it is counted already.
            let need = if admitted { ask.need } else { ask.need + self.asked_before };
            log.wait(now, ask.window, ask.limit, need)
        } else {
            Some(log.oldest_leaves(ask.window).map_or(0, |time| time.saturating_sub(now)))
        };
        ask.tally(self.over, log.used(), wait)
    }
}

impl Ballot {
    /// Takes one descriptor's outcome: over, where any of its limits is.
    fn cast(&mut self, kind: Kind, over: bool) {
        self.denied |= over && kind == Kind::Enforce;
        if kind.is_quota() {
            self.quotas += 1;
            self.quotas_fitting += u32::from(!over || kind.is_shadow());
        }
    }

    /// No enforcing descriptor is over, and of the quota descriptors, where there are any, at least one fits.
    fn admits(self) -> bool {
        !self.denied && (self.quotas == 0 || self.quotas_fitting > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_enforcing_descriptor_denies_and_quotas_deny_together() {
        use Kind::{Enforce, Quota, QuotaShadow, Shadow};
        for (descriptors, admitted) in [
            (&[][..], true),
            (&[(Enforce, false)], true),
            (&[(Enforce, false), (Enforce, true)], false),
            (&[(Shadow, true)], true),
            (&[(Quota, true)], false),
            (&[(Quota, true), (Quota, false)], true),
            (&[(Quota, true), (Quota, true), (Enforce, false)], false),
            (&[(Quota, true), (QuotaShadow, true)], true),
            (&[(Quota, false), (Enforce, true)], false),
        ] {
            let mut ballot = Ballot::default();
            descriptors.iter().for_each(|(kind, over)| ballot.cast(*kind, *over));
            assert_eq!(ballot.admits(), admitted, "{descriptors:?}");
        }
    }
}
