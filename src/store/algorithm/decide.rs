//! Decides one request's hits, as a whole, on counters that the caller holds: judges each hit on top of the earlier
//! ones, takes the vote, records what the verdict leaves, and only then tallies. decide.lua is its twin in Redis. It
//! knows neither keys nor locks.

use smallvec::SmallVec;

use super::{State, Terms};
use crate::hit::{Ballot, Hit, Tallies, Tally, Verdict};

/// A counter while a request is decided on it.
#[derive(Debug)]
pub(in crate::store) struct Held {
    pub state: State,
    /// Hits that the request takes if it is admitted.
    asked: u64,
    /// Hits that it takes (+) or gives back (-) in any case.
    sure: i64,
}

/// A hit, judged.
struct Judged {
    terms: Terms,
    over: bool,
    /// Its descriptor is over: of it, only denied hits that count are recorded.
    out: bool,
    /// What its counter had been asked for before it.
    asked_before: u64,
    /// What it takes in any case.
    charged: i64,
}

/// Decides a request. `places` says for each hit which of `counters` is its own; these are as of `now`, in microseconds,
/// with all that has left let go.
pub(in crate::store) fn decide(hits: &[Hit<'_>], places: &[usize], counters: &mut [Held], now: u64) -> Verdict {
    let mut judged: SmallVec<[Judged; 2]> = SmallVec::with_capacity(hits.len());
    let mut ballot = Ballot::default();
    let mut from = 0;
    for descriptor in hits.chunk_by(|a, b| a.descriptor == b.descriptor) {
        let places = &places[from..from + descriptor.len()];
        let mine = descriptor.iter().zip(places).map(|(hit, place)| Judged::new(hit, &mut counters[*place], now));
        judged.extend(mine);
        let over = judged[from..].iter().any(|judged| judged.over);
        if over {
            put_out(descriptor, &mut judged[from..], places, counters, now);
        }
        ballot.cast(descriptor[0].kind, over);
        from += descriptor.len();
    }
    let admitted = ballot.admits();
    for ((hit, judged), place) in hits.iter().zip(&judged).zip(places) {
        record(hit, judged, &mut counters[*place].state, now, admitted);
    }
    let tallies: Tallies = judged.iter().zip(places).map(|(judged, place)| judged.tally(&counters[*place].state, now, admitted)).collect();
    Verdict { admitted, by_denial: false, tallies }
}

/// Takes a descriptor that is over out of what later ones are judged on, but for its count_denied hits.
fn put_out(hits: &[Hit<'_>], judged: &mut [Judged], places: &[usize], counters: &mut [Held], now: u64) {
    for ((hit, judged), place) in hits.iter().zip(judged.iter_mut()).zip(places) {
        judged.out = true;
        judged.take_back(hit, &mut counters[*place]);
    }
    // Anew, for there may be more room without the others.
    for ((hit, judged), place) in hits.iter().zip(judged).zip(places) {
        if hit.count_denied && !hit.cost.is_refund() {
            judged.charge(&mut counters[*place], now);
        }
    }
}

fn record(hit: &Hit<'_>, judged: &Judged, state: &mut State, now: u64, admitted: bool) {
    let Terms { window, amount, most, pace, pace_denied, .. } = judged.terms;
    if hit.cost.is_refund() {
        state.refund(now, window, amount);
    } else if amount == 0 {
        // A peek, or a cost that never fits.
    } else if admitted && !judged.out {
        state.record(now, window, amount, pace);
    } else if hit.count_denied {
        let hits = amount.min(most.saturating_sub(state.used(now, window)));
        if hits > 0 {
            state.record(now, window, hits, pace_denied);
        }
    }
}

impl Held {
    pub fn new(state: State) -> Self {
        Self { state, asked: 0, sure: 0 }
    }

    /// What the request leaves on the counter, as far as it has been judged. Below 2^53: a counter holds at most 2^52, and
    /// a request's hits that fit at most the limit. Summed in this order, for what is given back may be what the request
    /// itself takes.
    fn used(&self, now: u64, window: u64) -> u64 {
        (self.state.used(now, window) + self.asked).saturating_add_signed(self.sure)
    }
}

impl Judged {
    fn new(hit: &Hit<'_>, counter: &mut Held, now: u64) -> Self {
        let terms = Terms::of(hit);
        let used = counter.used(now, terms.window);
        let over = used + terms.need > terms.limit && !hit.cost.is_refund();
        let mut judged = Self { terms, over, out: false, asked_before: counter.asked, charged: 0 };
        if hit.cost.is_refund() {
            counter.sure -= terms.amount.min(used) as i64;
        } else if hit.count_denied {
            judged.charge(counter, now);
        } else if !over {
            counter.asked += terms.amount;
        }
        judged
    }

    fn charge(&mut self, counter: &mut Held, now: u64) {
        let room = self.terms.most.saturating_sub(counter.used(now, self.terms.window));
        self.charged = self.terms.amount.min(room) as i64;
        counter.sure += self.charged;
    }

    fn take_back(&self, hit: &Hit<'_>, counter: &mut Held) {
        counter.sure -= self.charged;
        if !self.over && !hit.cost.is_refund() && !hit.count_denied {
            counter.asked -= self.terms.amount;
        }
    }

    fn tally(&self, state: &State, now: u64, admitted: bool) -> Tally {
        let Terms { limit, window, need, .. } = self.terms;
        let used = state.used(now, window);
        let wait = if self.over {
            // What the request's earlier hits asked of the counter is asked again next time, unless it is counted already.
            let need = if admitted { need } else { need + self.asked_before };
            match limit.checked_sub(need) {
                None => None,
                Some(hits) if used <= hits => Some(0),
                Some(hits) => Some(state.wait(now, window, hits)),
            }
        } else {
            state.reset(now, window, limit)
        };
        self.terms.tally(self.over, used, wait)
    }
}
