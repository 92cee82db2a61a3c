//! Looking at counters, and clearing them, by a request that would count on them: what the admin port does. Nothing here is
//! counted, neither in a counter nor in a rule's series.

use super::RateLimiter;
use super::conclude::reset;
use crate::descriptor::Request;
use crate::hit::{Counter, Hit, Kind};
use crate::limit::{Cost, Limit};
use crate::rules::{Explanation, Live};
use crate::store::StoreError;

impl RateLimiter {
    /// What the rules do to a request, and what each of its counters holds now, as text to read.
    pub async fn explain(&self, request: &Request) -> String {
        let rules = self.rules.current();
        let mut explanation = rules.explain(request);
        let filled_in = self.fill_in(&mut explanation).await;
        let mut text = explanation.to_string();
        if let Err(error) = filled_in {
            text.push_str(&format!("\nThe counters can't be read now: {error}\n"));
        }
        if self.modes.quota {
            text.push_str("\nQUOTA_MODE is on: every limit is a quota, and a descriptor without one is a quota that fits.\n");
        }
        if self.modes.shadow {
            text.push_str("\nSHADOW_MODE is on: every request passes.\n");
        }
        text
    }

    /// Clears the counters that a request would count on, here and where the fallback keeps them. Gives their keys.
    ///
    /// # Errors
    /// The store gave no answer; the counters may have been cleared.
    pub async fn reset(&self, request: &Request) -> Result<Vec<String>, StoreError> {
        let rules = self.rules.current();
        let mut explanation = rules.explain(request);
        // All that a counter can hold, given back.
        let everything = Cost::refund(Cost::MOST);
        let hits: Vec<_> = explanation.limits_mut().map(|limit| hit(limit.counter.clone(), limit.limit, everything)).collect();
        self.fallback.memory.decide(&hits);
        self.store.decide(&hits, None).await?;
        Ok(hits.iter().map(|hit| self.store.key_of(&hit.counter)).collect())
    }

    /// One call of peeks for all counters.
    async fn fill_in(&self, explanation: &mut Explanation<'_>) -> Result<(), StoreError> {
        for limit in explanation.limits_mut() {
            limit.key = Some(self.store.key_of(&limit.counter));
        }
        let peek = Cost::take(0);
        let hits: Vec<_> = explanation.limits_mut().map(|limit| hit(limit.counter.clone(), limit.limit, peek)).collect();
        let verdict = self.store.decide(&hits, None).await?;
        let told: Vec<_> = hits.iter().zip(&verdict.tallies).map(|(hit, tally)| (*tally, reset(hit, tally))).collect();
        for (limit, (tally, reset)) in explanation.limits_mut().zip(told) {
            limit.live = Some(Live { used: tally.used, remaining: tally.remaining, reset });
        }
        Ok(())
    }
}

/// A hit that denies nothing, and is counted only if it gives back.
fn hit(counter: Counter<'_>, limit: Limit, cost: Cost) -> Hit<'_> {
    Hit { descriptor: 0, kind: Kind::Shadow, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::descriptor::{Descriptor, Entry, RequestBounds};
    use crate::hit::FailurePolicy;
    use crate::limiter::Fallback;
    use crate::metrics::{Metrics, StoreSeries};
    use crate::rules::{DomainSpec, Limits, LiveRules, RateLimit, RuleSpec, Rules};
    use crate::store::{Clock, Memory, SteppedClock, Store};

    fn limiter() -> RateLimiter {
        let (limit, window) = (Limit::from(2), "10s".parse().unwrap());
        let limit = RateLimit { name: None, limit, window, algorithm: Default::default(), lease: None, replaces: vec![] };
        let rule = RuleSpec { key: "client".into(), limits: Limits::All(vec![limit]), ..RuleSpec::default() };
        let rules = Rules::new(vec![DomainSpec { name: "d".into(), rules: vec![rule], ..DomainSpec::default() }]).unwrap();
        let clock = Clock::Stepped(SteppedClock::starting_at(1_000_000_000));
        let memory = Arc::new(Memory::new(100, clock, StoreSeries::detached()));
        let fallback = Fallback { policy: FailurePolicy::Local, share: 1.0, memory: Arc::clone(&memory) };
        RateLimiter::new(Arc::new(LiveRules::new(rules)), Store::Memory(memory), fallback, Arc::new(Metrics::new().unwrap()))
    }

    fn request() -> Request {
        let descriptor = Descriptor { entries: vec![Entry::new("client", "x")], ..Descriptor::default() };
        Request::new("d".into(), vec![descriptor], 1, RequestBounds::default()).unwrap()
    }

    #[tokio::test]
    async fn explaining_tells_the_counter_and_counts_nothing() {
        let limiter = limiter();
        for (used, left) in [(0, 2), (1, 1), (2, 0)] {
            for _ in 0..2 {
                let told = limiter.explain(&request()).await;
                assert!(told.contains("key       1{d|x}log|10000000|client\n"), "{told}");
                assert!(told.contains(&format!("{used} used, {left} left")), "{told}");
            }
            limiter.decide(&request(), None).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_reset_unblocks_a_client() {
        let limiter = limiter();
        let admitted = async || limiter.decide(&request(), None).await.unwrap().admitted;
        assert!(admitted().await && admitted().await && !admitted().await);
        assert_eq!(limiter.reset(&request()).await.unwrap(), ["1{d|x}log|10000000|client"]);
        assert!(admitted().await && admitted().await && !admitted().await);
    }
}
