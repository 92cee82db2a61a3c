//! The limiter: a request in, a decision out. It takes a snapshot of the rules, has them find the hits, asks the store
//! once for all of them, and makes the decision of the tallies; where the store gives no answer, the failure policy does
//! (`limiter/fallback.rs`). [`RateLimiter::is_allowed`] is the same for one action, without rules. It knows no wire format.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

mod conclude;
mod fallback;
mod inspect;
mod notices;

use crate::descriptor::{LimitOverride, Request};
use crate::hit::{Action, Counter, FailurePolicy, Hit, Kind, Tally, Verdict};
use crate::limit::{Algorithm, Cost, Limit, LimitError, Window};
use crate::metrics::{Metrics, PolicySeries};
use crate::rules::{Found, LiveRules, Match, Metadata};
use crate::store::{Store, StoreError};
pub use fallback::Fallback;
pub use notices::Notices;

/// Decides requests by live rules on a store. One for each runtime; what they share, their stores, rules and notices share.
pub struct RateLimiter {
    rules: Arc<LiveRules>,
    store: Store,
    fallback: Fallback,
    metrics: Arc<Metrics>,
    answers: [PolicySeries; FailurePolicy::ALL.len()],
    modes: Modes,
    notices: Arc<Notices>,
}

/// How all requests are decided, whatever the rules say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modes {
    /// Every request passes; all else is as without it.
    pub shadow: bool,
    /// Every descriptor is a quota descriptor, one without a rule as one that fits.
    pub quota: bool,
    /// Hits above this share of their limit count as near it; 0 to 1.
    pub near_limit_ratio: f64,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub admitted: bool,
    /// One for each descriptor, in order.
    pub statuses: SmallVec<[Status; 2]>,
}

/// The answer to one descriptor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub over: bool,
    /// None where nothing limits the descriptor; then the rest says nothing.
    pub current_limit: Option<CurrentLimit>,
    /// Hits left; 2^32 - 1 for a descriptor of an unlimited rule.
    pub remaining: u64,
    /// When over: until this cost fits. When within: until the oldest counted hit leaves, the window at most.
    pub reset: Duration,
    /// It denies the request only together with all others of its kind.
    pub quota: bool,
    /// The path of the rule whose limit this is.
    pub rule: Option<Arc<str>>,
    /// What the rule tells Envoy, where the descriptor is not over.
    pub metadata: Option<Arc<Metadata>>,
}

/// The limit that a status speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurrentLimit {
    pub limit: Limit,
    pub window: Window,
    pub name: Option<Arc<str>>,
}

/// One question without rules: has the client done the action fewer than `limit` times in the last `time_window` seconds?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Empty, which no rules file can name, unless a rule's counter is to be shared.
    pub domain: &'a str,
    pub client_id: &'a str,
    pub action: &'a str,
    /// 1 to 10^15.
    pub limit: u64,
    /// Seconds, 1 to 10 years' worth.
    pub time_window: u64,
    /// How many times the action is done; 0 only looks.
    pub cost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub allowed: bool,
    /// How many times more the action may be done now.
    pub remaining: u64,
    /// When allowed: until the oldest time counted is forgotten. When not: until this cost fits.
    pub reset_after: Duration,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error("client_id must not be empty")]
    EmptyClientId,
    #[error("action must not be empty")]
    EmptyAction,
    #[error("limit must be a positive integer, not 0")]
    ZeroLimit,
    #[error("limit must be at most {most}, not {0}", most = Limit::MOST)]
    LargeLimit(u64),
    #[error("time_window must be a positive integer of seconds, not 0")]
    ZeroTimeWindow,
    #[error("time_window must be at most {most} seconds (10 years), not {0}", most = 10 * Window::YEAR.micros() / Window::SECOND.micros())]
    LongTimeWindow(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RateLimiter {
    pub fn new(rules: Arc<LiveRules>, store: Store, fallback: Fallback, metrics: Arc<Metrics>) -> Self {
        let answers = FailurePolicy::ALL.map(|policy| metrics.policy(policy.as_str()));
        Self { rules, store, fallback, metrics, answers, modes: Modes::default(), notices: Arc::default() }
    }

    /// The same in other modes.
    pub fn in_modes(self, modes: Modes) -> Self {
        Self { modes, ..self }
    }

    /// The same, writing no more to the log than all that share `notices` may together.
    pub fn sharing(self, notices: Arc<Notices>) -> Self {
        Self { notices, ..self }
    }

    /// Decides a request. `within` is the time that the caller still has, if it said.
    ///
    /// # Errors
    /// The store gave no answer, and the failure policy is `error`.
    pub async fn decide(&self, request: &Request, within: Option<Duration>) -> Result<Decision, StoreError> {
        let rules = self.rules.current();
        let mut found = rules.find(request);
        self.note(request, &found);
        if self.modes.quota {
            make_quotas(&mut found);
        }
        let verdict = self.ask(&found.hits, within).await?;
        let mut decision = conclude::conclude(request, &found, &verdict, self.modes);
        if self.modes.shadow && !decision.admitted {
            self.metrics.global_shadow_mode.increment(1);
            decision.admitted = true;
        }
        Ok(decision)
    }

    /// True while the client has done the action fewer than `limit` times in the last `time_window` seconds; then it has
    /// done it once more. Counts by a sliding-window log, on every server that shares the store.
    ///
    /// # Errors
    /// An empty client or action, a limit or window that is 0 or too large, or no answer under the policy `error`.
    pub async fn is_allowed(&self, client_id: &str, action: &str, limit: u64, time_window: u64) -> Result<bool, QuestionError> {
        let question = Question { domain: "", client_id, action, limit, time_window, cost: 1 };
        Ok(self.answer(question).await?.allowed)
    }

    /// [`RateLimiter::is_allowed`] with a cost, a domain, and what is left.
    ///
    /// # Errors
    /// As there.
    pub async fn answer(&self, question: Question<'_>) -> Result<Answer, QuestionError> {
        let hit = question.hit()?;
        let verdict = self.ask(std::slice::from_ref(&hit), None).await?;
        let (remaining, reset_after) =
            verdict.tallies.first().map_or((0, Duration::ZERO), |tally| (tally.remaining, conclude::reset(&hit, tally)));
        Ok(Answer { allowed: verdict.admitted, remaining, reset_after })
    }

    /// Ends all leases, for good, and waits until what is under way toward the store has been answered. Requests are decided
    /// after it as before, but each asks the store.
    pub async fn drain(&self) {
        self.store.drain().await;
    }

    async fn ask(&self, hits: &[Hit<'_>], within: Option<Duration>) -> Result<Verdict, StoreError> {
        self.store.decide_or(hits, within, |decided, error| self.stand_in(hits, decided, error)).await
    }

    /// Answers for a store that has decided only some of a request's hits, or none.
    fn stand_in(&self, hits: &[Hit<'_>], decided: &[Option<Tally>], error: StoreError) -> Result<Verdict, StoreError> {
        self.notices.store_failed(&error, self.fallback.policy);
        let undecided = || hits.iter().zip(decided).filter(|(_, tally)| tally.is_none()).map(|(hit, _)| hit);
        for (policy, series) in FailurePolicy::ALL.into_iter().zip(&self.answers) {
            if undecided().any(|hit| self.fallback.policy(hit) == policy) {
                series.answers.increment(1);
            }
        }
        self.fallback.decide(hits, decided, error)
    }

    /// Counts what the rules did not know, or let through.
    fn note(&self, request: &Request, found: &Found<'_>) {
        match found.matches.first() {
            Some(Match::UnknownDomain) => {
                self.metrics.unmatched_domains.increment(1);
                return self.notices.unmatched(request, None);
            }
            Some(Match::Exempt) => self.metrics.exempted_requests.increment(1),
            _ => {}
        }
        for (descriptor, matched) in request.descriptors().iter().zip(&found.matches) {
            if let Match::NoRule = matched {
                self.metrics.unmatched_descriptors.increment(1);
                self.notices.unmatched(request, Some(descriptor));
            }
            if let Some(LimitOverride::NoWindow { unit, multiplier }) = descriptor.limit {
                self.metrics.dropped_overrides.increment(1);
                self.notices.override_dropped(request.domain(), unit, multiplier);
            }
        }
    }
}

impl Default for Modes {
    /// Neither mode, and the reference server's ratio.
    fn default() -> Self {
        Self { shadow: false, quota: false, near_limit_ratio: 0.8 }
    }
}

impl Decision {
    /// The status that speaks for the request: the last one over that denies by itself, else the one with the least left; of
    /// equals one that is over, and the first.
    pub fn deciding(&self) -> Option<&Status> {
        let limited = || self.statuses.iter().filter(|status| status.current_limit.is_some());
        limited()
            .rfind(|status| status.over && !status.quota)
            .or_else(|| limited().min_by_key(|status| (status.told_remaining(), !status.over)))
    }
}

impl Status {
    /// What is told to be left: nothing when over.
    pub fn told_remaining(&self) -> u64 {
        if self.over { 0 } else { self.remaining }
    }
}

/// A wait in whole seconds, as both doors tell it: rounded up, so that whoever waits so long is not early, and at least 1
/// when over.
pub fn whole_seconds(reset: Duration, over: bool) -> u64 {
    (reset.as_secs() + u64::from(reset.subsec_nanos() > 0)).max(u64::from(over))
}

/// Makes each hit one of a quota. A descriptor without a limit is a quota that fits: then no other can deny.
fn make_quotas(found: &mut Found<'_>) {
    let fits = |matched: &Match<'_>| matches!(matched, Match::NoRule | Match::NoLimit | Match::Replaced(_));
    let denies = !found.matches.iter().any(fits);
    for hit in &mut found.hits {
        hit.kind = match (denies, hit.kind.is_shadow()) {
            (true, false) => Kind::Quota,
            (true, true) => Kind::QuotaShadow,
            (false, _) => Kind::Shadow,
        };
    }
}

impl Question<'_> {
    fn hit(&self) -> Result<Hit<'_>, QuestionError> {
        if self.client_id.is_empty() {
            return Err(QuestionError::EmptyClientId);
        }
        if self.action.is_empty() {
            return Err(QuestionError::EmptyAction);
        }
        let limit = NonZeroU64::new(self.limit).ok_or(QuestionError::ZeroLimit)?.get();
        let time_window = NonZeroU64::new(self.time_window).ok_or(QuestionError::ZeroTimeWindow)?.get();
        let counter = Counter {
            domain: self.domain,
            client: [self.client_id].into_iter().collect(),
            action: Action::named(self.action),
            algorithm: Algorithm::default(),
            window: Window::from_secs(time_window).map_err(|_: LimitError| QuestionError::LongTimeWindow(time_window))?,
        };
        let limit = Limit::new(limit).map_err(|_: LimitError| QuestionError::LargeLimit(limit))?;
        Ok(Hit {
            descriptor: 0,
            kind: Kind::Enforce,
            counter,
            limit,
            cost: Cost::take(self.cost),
            count_denied: false,
            on_store_failure: None,
            lease: None,
        })
    }
}

impl QuestionError {
    /// The field of the question that is wrong; None where the store is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::EmptyClientId => Some("client_id"),
            Self::EmptyAction => Some("action"),
            Self::ZeroLimit | Self::LargeLimit(_) => Some("limit"),
            Self::ZeroTimeWindow | Self::LongTimeWindow(_) => Some("time_window"),
            Self::Store(_) => None,
        }
    }
}
