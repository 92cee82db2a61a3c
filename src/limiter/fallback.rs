//! Who answers while the store does not: each hit's failure policy, put together to one verdict. It says nothing about the
//! store; a hit may have been counted there all the same.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::hit::{Ballot, FailurePolicy, Hit, Kind, Tally, Verdict};
use crate::limit::Algorithm;
use crate::store::{Memory, StoreError};

/// What answers while the store does not.
#[derive(Clone)]
pub struct Fallback {
    /// Of the hits whose rule and domain have none.
    pub policy: FailurePolicy,
    /// Of each limit, what [`FailurePolicy::Local`] lets through: 1 for all of it, 1 / n where n servers share the load. More
    /// than 0; a share of a limit above 0 is at least 1.
    pub share: f64,
    /// Decides under [`FailurePolicy::Local`].
    pub memory: Arc<Memory>,
}

/// What is said of a hit.
enum Answer {
    /// By the store, or by a policy that asks nobody.
    Known(Tally),
    /// What the memory says of it is yet to be seen.
    Local,
}

/// What a denial says of the wait: nothing is known of the counter, and the store may be back soon.
const DENIED_FOR: Duration = Duration::from_secs(1);

impl Fallback {
    /// Who answers for a hit.
    pub(super) fn policy(&self, hit: &Hit<'_>) -> FailurePolicy {
        hit.on_store_failure.unwrap_or(self.policy)
    }

    /// Answers for hits that the store has not decided, those without a tally: `error` on any wins, then a denial by `deny`;
    /// else the `local` hits are decided together in memory, and the `allow` hits fit. The verdict is on all hits.
    ///
    /// # Errors
    /// The store's own, where a hit's policy says so.
    pub(super) fn decide(&self, hits: &[Hit<'_>], decided: &[Option<Tally>], error: StoreError) -> Result<Verdict, StoreError> {
        let answers = hits.iter().zip(decided).map(|(hit, decided)| match (decided, self.policy(hit)) {
            (Some(tally), _) => Some(Answer::Known(*tally)),
            (None, FailurePolicy::Error) => None,
            (None, FailurePolicy::Local) => Some(Answer::Local),
            (None, FailurePolicy::Deny) if !hit.cost.is_refund() => Some(Answer::Known(denied_unasked(hit))),
            (None, FailurePolicy::Deny | FailurePolicy::Allow) => Some(Answer::Known(hit.unasked())),
        });
        let answers: SmallVec<[Answer; 2]> = answers.collect::<Option<_>>().ok_or(error)?;
        let admitted = admits(hits, &answers);
        let mut local = admitted.then(|| self.decide_locally(hits, &answers));
        let locally_admitted = local.as_ref().is_none_or(|verdict| verdict.admitted);
        let mut local = local.as_mut().map(|verdict| verdict.tallies.drain(..));
        let tallies = hits.iter().zip(answers).map(|(hit, answer)| match answer {
            Answer::Known(tally) => tally,
            Answer::Local => local.as_mut().and_then(Iterator::next).unwrap_or_else(|| hit.unasked()),
        });
        Ok(Verdict { tallies: tallies.collect(), admitted: admitted && locally_admitted, by_denial: false })
    }

    /// The `local` hits alone. Where another quota fits, theirs can't deny.
    fn decide_locally(&self, hits: &[Hit<'_>], answers: &[Answer]) -> Verdict {
        let fits = |(hit, answer): (&Hit<'_>, &Answer)| match answer {
            Answer::Known(tally) => hit.kind.is_quota() && (!tally.over || hit.kind.is_shadow()),
            Answer::Local => false,
        };
        let quota_fits = hits.iter().zip(answers).any(fits);
        let mine = hits.iter().zip(answers).filter(|(_, answer)| matches!(answer, Answer::Local)).map(|(hit, _)| {
            let kind = if quota_fits && hit.kind.is_quota() { Kind::Shadow } else { hit.kind };
            self.shared(Hit { kind, ..hit.clone() })
        });
        let mine: SmallVec<[Hit<'_>; 2]> = mine.collect();
        self.memory.decide(&mine)
    }
}

impl Fallback {
    /// The hit under this server's share of its limit.
    fn shared<'a>(&self, mut hit: Hit<'a>) -> Hit<'a> {
        if self.share != 1.0 {
            hit.limit = hit.limit.share(self.share);
            if let Algorithm::TokenBucket { burst: Some(burst) } = &mut hit.counter.algorithm {
                *burst = burst.share(self.share);
            }
        }
        hit
    }
}

/// Whether hits of which some are over, and those to be decided locally fit, admit their request.
fn admits(hits: &[Hit<'_>], mut answers: &[Answer]) -> bool {
    let mut ballot = Ballot::default();
    for descriptor in hits.chunk_by(|one, other| one.descriptor == other.descriptor) {
        let (mine, rest) = answers.split_at(descriptor.len());
        answers = rest;
        ballot.cast(descriptor[0].kind, mine.iter().any(|answer| matches!(answer, Answer::Known(tally) if tally.over)));
    }
    ballot.admits()
}

/// A hit that is denied unasked is over with all that it costs, whether it counts as recorded or not.
fn denied_unasked(hit: &Hit<'_>) -> Tally {
    let used = hit.counter.algorithm.capacity(hit.limit, hit.counter.window) + hit.cost.amount();
    Tally { over: true, used, remaining: 0, reset: DENIED_FOR }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hit::{Action, Counter};
    use crate::limit::{Burst, Cost, Limit, Window};
    use crate::metrics::StoreSeries;
    use crate::store::Clock;
    use FailurePolicy::{Allow, Deny, Error, Local};

    fn hits(asked: &[(Kind, FailurePolicy, &'static str)]) -> Vec<Hit<'static>> {
        let hit = |(descriptor, (kind, policy, client)): (usize, &(Kind, FailurePolicy, &'static str))| {
            let client = [*client].into_iter().collect();
            let counter = Counter { domain: "d", client, action: Action::named("a"), algorithm: Algorithm::default(), window: Window::DAY };
            let (limit, cost) = (Limit::from(1), Cost::take(1));
            Hit { descriptor, kind: *kind, counter, limit, cost, count_denied: false, on_store_failure: Some(*policy), lease: None }
        };
        asked.iter().enumerate().map(hit).collect()
    }

    fn fallback() -> Fallback {
        let memory = Arc::new(Memory::new(100, Clock::System, StoreSeries::detached()));
        Fallback { policy: Local, share: 1.0, memory }
    }

    /// Whether it is admitted, and which hits are over; None for an error.
    fn decide(fallback: &Fallback, asked: &[(Kind, FailurePolicy, &'static str)]) -> Option<(bool, Vec<bool>)> {
        let verdict = fallback.decide(&hits(asked), &vec![None; asked.len()], StoreError::QueueFull).ok()?;
        Some((verdict.admitted, verdict.tallies.iter().map(|tally| tally.over).collect()))
    }

    #[test]
    fn error_wins_then_deny_then_local_and_allow_fits() {
        use Kind::{Enforce, Shadow};
        let fallback = fallback();
        assert_eq!(decide(&fallback, &[(Enforce, Local, "a"), (Enforce, Error, "b"), (Enforce, Deny, "c")]), None);
        assert_eq!(decide(&fallback, &[(Enforce, Local, "a"), (Enforce, Deny, "b")]), Some((false, vec![false, true])));
        assert_eq!(decide(&fallback, &[(Enforce, Local, "a"), (Enforce, Allow, "b")]), Some((true, vec![false, false])));
        assert_eq!(decide(&fallback, &[(Enforce, Allow, "b"), (Enforce, Local, "a")]), Some((false, vec![false, true])));
        assert_eq!(decide(&fallback, &[(Shadow, Deny, "b")]), Some((true, vec![true])));
    }

    #[test]
    fn quotas_deny_together_whatever_their_policies() {
        use Kind::{Enforce, Quota, QuotaShadow};
        let fallback = fallback();
        assert_eq!(decide(&fallback, &[(Quota, Deny, "a")]), Some((false, vec![true])));
        assert_eq!(decide(&fallback, &[(Quota, Deny, "a"), (QuotaShadow, Deny, "a")]), Some((true, vec![true, true])));
        assert_eq!(decide(&fallback, &[(Quota, Deny, "a"), (Quota, Local, "a")]), Some((true, vec![true, false])));
        assert_eq!(decide(&fallback, &[(Quota, Deny, "a"), (Quota, Local, "a")]), Some((false, vec![true, true])));
        assert_eq!(decide(&fallback, &[(Quota, Allow, "a"), (Quota, Local, "a")]), Some((true, vec![false, true])));
        assert_eq!(decide(&fallback, &[(Quota, Allow, "a"), (Enforce, Local, "a")]), Some((false, vec![false, true])));
    }

    #[test]
    fn under_a_share_so_much_of_a_limit_or_a_burst_is_let_through() {
        let bucket = Algorithm::TokenBucket { burst: Some(Burst::new(6).unwrap()) };
        for (algorithm, limit, admitted) in
            [(Algorithm::default(), 10, 5), (Algorithm::default(), 1, 1), (Algorithm::default(), 0, 0), (bucket, 10, 3)]
        {
            let fallback = Fallback { share: 0.5, ..fallback() };
            let mut hits = hits(&[(Kind::Enforce, Local, "a")]);
            (hits[0].limit, hits[0].counter.algorithm) = (Limit::from(limit), algorithm);
            let passes =
                (0..20).filter(|_| fallback.decide(&hits, &[None], StoreError::QueueFull).is_ok_and(|verdict| verdict.admitted)).count();
            assert_eq!(passes, admitted, "{algorithm:?} {limit}");
        }
    }

    #[test]
    fn of_a_denied_request_nothing_is_counted_locally() {
        let fallback = fallback();
        for _ in 0..3 {
            assert_eq!(decide(&fallback, &[(Kind::Enforce, Local, "a"), (Kind::Enforce, Deny, "b")]), Some((false, vec![false, true])));
        }
        assert_eq!(decide(&fallback, &[(Kind::Enforce, Local, "a")]), Some((true, vec![false])));
    }
}
