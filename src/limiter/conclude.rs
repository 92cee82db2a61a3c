//! From a verdict to a decision: one status for each descriptor, and what its rule counts. Pure; numbers and waits are
//! still exact here, the doors round them.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{CurrentLimit, Decision, Modes, Status};
use crate::descriptor::Request;
use crate::hit::{Counter, Hit, Tally, Verdict};
use crate::metrics::HitCounts;
use crate::rules::{Found, Match, Rule, RuleLimit};

/// What an unlimited rule has left.
const UNLIMITED: u64 = u32::MAX as u64;

pub(super) fn conclude(request: &Request, found: &Found<'_>, verdict: &Verdict, modes: Modes) -> Decision {
    let mut statuses = SmallVec::with_capacity(found.matches.len());
    let before = used_before(&found.hits, verdict);
    let mut from = 0;
    for (index, (matched, descriptor)) in found.matches.iter().zip(request.descriptors()).enumerate() {
        let count = found.hits[from..].iter().take_while(|hit| hit.descriptor == index).count();
        let mine = from..from + count;
        from = mine.end;
        let judged = mine.map(|at| (at, (&found.hits[at], &verdict.tallies[at])));
        let Some((at, (hit, tally))) = judged.reduce(|one, other| if is_tighter(other.1, one.1) { other } else { one }) else {
            let remaining = if let Match::Unlimited(_) = matched { UNLIMITED } else { 0 };
            statuses.push(Status { remaining, ..Status::default() });
            continue;
        };
        let rule = match matched {
            Match::Rule(rule) => Some(*rule),
            _ => None,
        };
        if let Some(rule) = rule {
            let counts = counts(hit, tally.over, before[at], rule.kind().is_shadow(), modes.near_limit_ratio);
            rule.count(descriptor, &HitCounts { over_by_denial: if verdict.by_denial { counts.over } else { 0 }, ..counts });
        }
        statuses.push(status(hit, tally, found.limits[at], rule, modes.quota));
    }
    Decision { admitted: verdict.admitted, statuses }
}

/// A rule in shadow mode is never over; past its limit, nothing remains.
fn status(hit: &Hit<'_>, tally: &Tally, limit: Option<&RuleLimit>, rule: Option<&Rule>, quota: bool) -> Status {
    let shadowed = tally.over && rule.is_some_and(|rule| rule.kind().is_shadow());
    let over = tally.over && !shadowed;
    Status {
        over,
        current_limit: Some(CurrentLimit {
            limit: hit.limit,
            window: hit.counter.window,
            name: limit.and_then(|limit| limit.name.clone()),
        }),
        remaining: if shadowed { 0 } else { tally.remaining },
        reset: reset(hit, tally),
        quota: quota || hit.kind.is_quota(),
        rule: rule.map(|rule| Arc::clone(rule.path())),
        metadata: rule.filter(|_| !over).and_then(Rule::metadata).cloned(),
    }
}

/// The wait to tell. When within, a coarse log's last tick is left out: a 60-second rule says 60, never 61.
pub(super) fn reset(hit: &Hit<'_>, tally: &Tally) -> Duration {
    let window = Duration::from_micros(hit.counter.window.micros());
    if tally.over { tally.reset } else { tally.reset.min(window) }
}

/// Of a descriptor's limits: the one over with the longest wait; else the one with the least left, then the longest wait.
fn is_tighter((hit, tally): (&Hit<'_>, &Tally), (other_hit, other): (&Hit<'_>, &Tally)) -> bool {
    let (wait, other_wait) = (reset(hit, tally), reset(other_hit, other));
    match (tally.over, other.over) {
        (true, true) => wait > other_wait,
        (false, false) => (tally.remaining, other_wait) < (other.remaining, wait),
        (over, _) => over,
    }
}

/// Up to so many hits are compared with each other; more are looked up.
const COMPARED_MAX: usize = 8;

/// What each hit's counter held when it was judged: what it held before the request, and on top the request's earlier hits
/// that fitted or were recorded all the same. (What the request gave back is left out.)
fn used_before(hits: &[Hit<'_>], verdict: &Verdict) -> SmallVec<[u64; 2]> {
    let taken = |hit: &Hit<'_>| if hit.cost.is_refund() { 0 } else { hit.cost.amount() };
    if let ([hit], [tally]) = (hits, verdict.tallies.as_slice()) {
        let recorded = if hit.count_denied || verdict.admitted && !tally.over { taken(hit) } else { 0 };
        return [tally.used.saturating_sub(recorded)].into_iter().collect();
    }
    // Of each counter, at the place of the first hit on it.
    let mut held: SmallVec<[u64; 8]> = verdict.tallies.iter().map(|tally| tally.used).collect();
    let (firsts, mut at) = (firsts(hits), 0);
    for descriptor in hits.chunk_by(|one, other| one.descriptor == other.descriptor) {
        let mine = at..at + descriptor.len();
        at = mine.end;
        let fits = verdict.admitted && !verdict.tallies[mine.clone()].iter().any(|tally| tally.over);
        for (hit, first) in descriptor.iter().zip(&firsts[mine]) {
            if hit.count_denied || fits {
                held[*first] = held[*first].saturating_sub(taken(hit));
            }
        }
    }
    let judged = hits.iter().zip(&verdict.tallies).zip(&firsts).map(|((hit, tally), first)| {
        let before = held[*first];
        if hit.count_denied || !tally.over {
            held[*first] = before.saturating_add(taken(hit));
        }
        before
    });
    judged.collect()
}

/// Of each hit the place of the first one on its counter.
fn firsts<'h>(hits: &[Hit<'h>]) -> SmallVec<[usize; 8]> {
    if hits.len() <= COMPARED_MAX {
        let first = |(at, hit): (usize, &Hit<'h>)| hits[..at].iter().position(|other| other.counter == hit.counter).unwrap_or(at);
        return hits.iter().enumerate().map(first).collect();
    }
    let mut seen = HashMap::<&Counter<'_>, usize>::with_capacity(hits.len());
    hits.iter().enumerate().map(|(at, hit)| *seen.entry(&hit.counter).or_insert(at)).collect()
}

/// What the reference server counts of a hit that was judged on top of `before`: its cost, split at the near-limit threshold
/// and at the limit.
fn counts(hit: &Hit<'_>, over: bool, before: u64, shadow: bool, near_limit_ratio: f64) -> HitCounts {
    if hit.cost.is_refund() {
        return HitCounts::default();
    }
    let (cost, limit) = (hit.cost.amount(), hit.counter.algorithm.capacity(hit.limit, hit.counter.window));
    let after = before.saturating_add(cost);
    // A limit is below 2^53: the product is exact enough for its floor.
    let near_from = (limit as f64 * near_limit_ratio) as u64;
    let between = |from: u64, to: u64| after.min(to).saturating_sub(before.max(from));
    let over_limit = if over { between(limit, u64::MAX) } else { 0 };
    HitCounts {
        total: cost,
        within: if over { 0 } else { cost },
        near: between(near_from, limit),
        over: over_limit,
        over_by_denial: 0,
        shadow: if shadow { over_limit } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hit::{Action, Kind};
    use crate::limit::{Algorithm, Cost, Limit, Window};

    fn hit(limit: u32, cost: Cost) -> Hit<'static> {
        let client = ["c"].into_iter().collect();
        let counter = Counter { domain: "d", client, action: Action::named("a"), algorithm: Algorithm::default(), window: Window::MINUTE };
        let limit = Limit::from(limit);
        Hit { descriptor: 0, kind: Kind::Enforce, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None }
    }

    fn tally(over: bool, used: u64) -> Tally {
        Tally { over, used, remaining: 0, reset: Duration::ZERO }
    }

    /// within, near, over; of a hit alone in its request
    fn split(limit: u32, cost: u64, over: bool, used: u64, recorded: bool) -> (u64, u64, u64) {
        let hit = Hit { count_denied: over && recorded, ..hit(limit, Cost::take(cost)) };
        let verdict = Verdict { admitted: recorded && !over, by_denial: false, tallies: [tally(over, used)].into_iter().collect() };
        let before = used_before(std::slice::from_ref(&hit), &verdict)[0];
        let counts = counts(&hit, over, before, false, 0.8);
        assert_eq!((counts.total, counts.shadow), (cost, 0));
        (counts.within, counts.near, counts.over)
    }

    #[test]
    fn a_cost_is_split_at_the_threshold_and_at_the_limit() {
        // Of a limit of 10, near is above 8.
        assert_eq!(split(10, 1, false, 1, true), (1, 0, 0));
        assert_eq!(split(10, 1, false, 8, true), (1, 0, 0));
        assert_eq!(split(10, 1, false, 9, true), (1, 1, 0));
        assert_eq!(split(10, 5, false, 10, true), (5, 2, 0));
        // Denied: not recorded, or recorded all the same.
        assert_eq!(split(10, 1, true, 10, false), (0, 0, 1));
        assert_eq!(split(10, 5, true, 7, false), (0, 2, 2));
        assert_eq!(split(10, 5, true, 12, true), (0, 2, 2));
        assert_eq!(split(10, 5, true, 20, true), (0, 0, 5));
        // One that fitted in a denied request.
        assert_eq!(split(10, 1, false, 8, false), (1, 1, 0));
        // With a limit of 1 the first hit is near; with 0 all are over.
        assert_eq!(split(1, 1, false, 1, true), (1, 1, 0));
        assert_eq!(split(0, 3, true, 0, false), (0, 0, 3));
    }

    #[test]
    fn a_refund_counts_nothing_and_the_part_over_a_shadow_rule_is_told_apart() {
        assert_eq!(counts(&hit(5, Cost::refund(3)), false, 2, false, 0.8), HitCounts::default());
        let shadow = counts(&hit(5, Cost::take(3)), true, 4, true, 0.8);
        assert_eq!((shadow.over, shadow.shadow), (2, 2));
    }

    #[test]
    fn each_hit_of_a_request_is_split_on_top_of_those_before_it() {
        let before = |overs: &[bool], admitted: bool, used: u64| {
            let hits: Vec<_> = (0..overs.len()).map(|descriptor| Hit { descriptor, ..hit(2, Cost::take(1)) }).collect();
            let tallies = overs.iter().map(|over| tally(*over, used)).collect();
            used_before(&hits, &Verdict { admitted, by_denial: false, tallies }).to_vec()
        };
        // A limit of 2, three times in one request, on a counter that holds nothing: denied, and nothing recorded.
        assert_eq!(before(&[false, false, true], false, 0), [0, 1, 2]);
        // Twice, and admitted.
        assert_eq!(before(&[false, false], true, 2), [0, 1]);
        // The third is in shadow: admitted, without it.
        assert_eq!(before(&[false, false, true], true, 2), [0, 1, 2]);
    }
}
