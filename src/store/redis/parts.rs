//! A request whose hits lie in several slots of a Cluster, or in two Redis: each part is decided by itself, all at once, and
//! here they are put together. Where the whole is denied, what a part has recorded is taken back. Pure: it knows which hits
//! lie together, not where.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::batch::{Answer, Ask};
use crate::hit::{Ballot, Tally, Verdict};

/// Hits of a request that lie in one slot, in order.
pub(super) struct Part {
    /// The place of their deployment among the store's.
    pub site: usize,
    pub slot: u16,
    /// Their places among the request's hits.
    pub hits: SmallVec<[usize; 4]>,
}

/// What the parts have said so far.
pub(super) struct Told {
    pub asks: Arc<[Ask]>,
    /// None for a hit whose part has not answered.
    pub tallies: SmallVec<[Option<Tally>; 4]>,
    /// Where a hit is counted that is counted only because its part admitted it.
    counted: SmallVec<[Option<Counted>; 4]>,
}

/// Where a hit is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// In Redis, recorded there.
    InRedis(u64),
    /// Among the hits of a lease that is recorded there.
    InLease(u64),
}

/// Deals hits, each by its place among the request's, its site and its slot, to parts.
pub(super) fn deal(places: impl Iterator<Item = (usize, (usize, u16))>) -> SmallVec<[Part; 2]> {
    let mut parts = SmallVec::<[Part; 2]>::new();
    for (hit, (site, slot)) in places {
        match parts.iter_mut().find(|part| part.site == site && part.slot == slot) {
            Some(part) => part.hits.push(hit),
            None => parts.push(Part { site, slot, hits: [hit].into_iter().collect() }),
        }
    }
    parts
}

impl Told {
    pub fn nothing(asks: Arc<[Ask]>) -> Self {
        let (tallies, counted) = asks.iter().map(|_| (None, None)).unzip();
        Self { asks, tallies, counted }
    }

    /// Takes what a lease says of a hit.
    pub fn leased(&mut self, hit: usize, tally: Tally, recorded_at: Option<u64>) {
        self.tallies[hit] = Some(tally);
        self.counted[hit] = recorded_at.map(Counted::InLease);
    }

    /// Whether what is known denies the request, however the other hits fare.
    pub fn denies(&self, known: impl Fn(usize) -> bool) -> bool {
        let mut ballot = Ballot::default();
        for mut mine in self.by_descriptor() {
            let kind = self.asks[mine.start].kind;
            ballot.cast(kind, mine.any(|hit| self.tallies[hit].is_some_and(|tally| tally.over) || known(hit)));
        }
        !ballot.admits()
    }

    /// Takes the answer to a part.
    pub fn take(&mut self, part: &Part, answer: &Answer) {
        for (hit, tally) in part.hits.iter().zip(&answer.verdict.tallies) {
            self.tallies[*hit] = Some(*tally);
        }
        let descriptor = |hit: &usize| self.asks[*hit].descriptor;
        let mut recorded_at = answer.recorded_at.iter();
        for mine in part.hits.chunk_by(|one, other| descriptor(one) == descriptor(other)) {
            let over = mine.iter().any(|hit| self.tallies[*hit].is_some_and(|tally| tally.over));
            for (hit, at) in mine.iter().zip(&mut recorded_at) {
                let for_its_part = answer.verdict.admitted && !over && self.asks[*hit].is_ordinary();
                self.counted[*hit] = for_its_part.then_some(Counted::InRedis(*at));
            }
        }
    }

    /// The verdict on the request, if all parts have answered.
    pub fn verdict(&self) -> Option<Verdict> {
        let tallies = self.tallies.iter().copied().collect::<Option<_>>()?;
        Some(Verdict { admitted: !self.denies(|_| false), by_denial: false, tallies })
    }

    /// The hits that must not stay counted under this verdict, and where each is; the verdict's tallies are then as without
    /// them.
    pub fn settle(&self, verdict: &mut Verdict) -> Vec<(usize, Counted)> {
        let mut back = Vec::new();
        for mine in self.by_descriptor() {
            if !verdict.admitted || verdict.tallies[mine.clone()].iter().any(|tally| tally.over) {
                back.extend(mine.filter_map(|hit| Some((hit, self.counted[hit]?))));
            }
        }
        for (hit, _) in &back {
            let taken = &self.asks[*hit];
            for (ask, tally) in self.asks.iter().zip(&mut verdict.tallies) {
                if ask.key == taken.key {
                    let used = tally.used.saturating_sub(taken.terms.amount);
                    let reset = (!tally.over && used == 0 && ask.is_free_when_empty()).then_some(0);
                    let wait = reset.or_else(|| u64::try_from(tally.reset.as_micros()).ok());
                    *tally = ask.terms.tally(tally.over, used, wait);
                }
            }
        }
        back
    }

    /// All hits that are counted because their parts admitted them, and where each is.
    pub fn counted(&self) -> Vec<(usize, Counted)> {
        self.counted.iter().enumerate().filter_map(|(hit, counted)| Some((hit, (*counted)?))).collect()
    }

    /// The places of each descriptor's hits.
    fn by_descriptor(&self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        self.asks.chunk_by(|one, other| one.descriptor == other.descriptor).map(move |mine| {
            let places = from..from + mine.len();
            from = places.end;
            places
        })
    }
}
