//! The limiter: a request in, a decision out. It takes a snapshot of the rules, has them find the hits, asks the store
//! once for all of them, and makes the decision of the tallies; where the store gives no answer, the failure policy does.
//! [`RateLimiter::is_allowed`] is the same for one action, without rules. It knows no wire format.

use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tracing::warn;

use crate::descriptor::{LimitOverride, Request};
use crate::hit::{Action, Counter, Hit, Kind, Tally, Verdict};
use crate::limit::{Algorithm, Cost, Limit, LimitError, Window};
use crate::metrics::{Metrics, PolicySeries, RuleSeries};
use crate::rules::{Found, LiveRules, Match};
use crate::store::{Memory, Store, StoreError};

/// Decides requests by live rules on a store. One for each runtime; what they share, their stores and rules share.
pub struct RateLimiter {
    rules: Arc<LiveRules>,
    store: Store,
    fallback: Fallback,
    metrics: Arc<Metrics>,
    answers: PolicySeries,
    failure_logged: OncePerMinute,
    override_logged: OncePerMinute,
}

/// What answers while the store does not.
#[derive(Clone)]
pub struct Fallback {
    pub policy: FailurePolicy,
    /// Decides under [`FailurePolicy::Local`].
    pub memory: Arc<Memory>,
}

/// Who answers while the store does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// This server enforces the limits by itself, in memory.
    #[default]
    Local,
    /// Every hit fits.
    Allow,
    /// No hit fits.
    Deny,
    /// The caller gets the error.
    Error,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub admitted: bool,
    /// One for each descriptor, in order.
    pub statuses: SmallVec<[Status; 2]>,
}

/// The answer to one descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub over: bool,
    /// None where nothing limits the descriptor; then the rest says nothing.
    pub current_limit: Option<CurrentLimit>,
    /// Hits left.
    pub remaining: u64,
    /// When over: until this cost fits. When within: until the oldest counted hit leaves, the window at most.
    pub reset: Duration,
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

/// No word of [`FailurePolicy`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of local, allow, deny, error")]
pub struct UnknownPolicy(String);

/// Keeps a log line from being written more than once a minute.
#[derive(Default)]
struct OncePerMinute(Mutex<Option<Instant>>);

impl RateLimiter {
    pub fn new(rules: Arc<LiveRules>, store: Store, fallback: Fallback, metrics: Arc<Metrics>) -> Self {
        Self {
            answers: metrics.policy(fallback.policy.as_str()),
            rules,
            store,
            fallback,
            metrics,
            failure_logged: OncePerMinute::default(),
            override_logged: OncePerMinute::default(),
        }
    }

    /// Decides a request. `within` is the time that the caller still has, if it said.
    ///
    /// # Errors
    /// The store gave no answer, and the failure policy is `error`.
    pub async fn decide(&self, request: &Request, within: Option<Duration>) -> Result<Decision, StoreError> {
        let rules = self.rules.current();
        let found = rules.find(request);
        self.note(request, &found);
        let verdict = self.ask(&found.hits, within).await?;
        Ok(conclude(&found, &verdict))
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
        let (remaining, reset_after) = verdict.tallies.first().map_or((0, Duration::ZERO), |tally| (tally.remaining, reset(&hit, tally)));
        Ok(Answer { allowed: verdict.admitted, remaining, reset_after })
    }

    /// Waits until what is under way toward the store has been answered.
    pub async fn drain(&self) {
        self.store.drain().await;
    }

    async fn ask(&self, hits: &[Hit<'_>], within: Option<Duration>) -> Result<Verdict, StoreError> {
        match self.store.decide(hits, within).await {
            Ok(verdict) => Ok(verdict),
            Err(error) => self.by_policy(hits, error),
        }
    }

    fn by_policy(&self, hits: &[Hit<'_>], error: StoreError) -> Result<Verdict, StoreError> {
        let policy = self.fallback.policy;
        if self.failure_logged.due() {
            warn!(%error, policy = policy.as_str(), "the store gives no answer; the failure policy does (logged once a minute)");
        }
        self.answers.answers.increment(1);
        match policy {
            FailurePolicy::Local => Ok(self.fallback.memory.decide(hits)),
            FailurePolicy::Allow => Ok(all(hits, |hit| Tally { over: false, remaining: hit.limit.get(), reset: Duration::ZERO })),
            // Nothing is known of the counter, and the store may be back soon.
            FailurePolicy::Deny => {
                let over = |hit: &Hit<'_>| !hit.cost.is_refund();
                Ok(all(hits, |hit| Tally { over: over(hit), remaining: 0, reset: Duration::from_secs(1) }))
            }
            FailurePolicy::Error => Err(error),
        }
    }

    /// Counts what the rules did not know.
    fn note(&self, request: &Request, found: &Found<'_>) {
        if let Some(Match::UnknownDomain) = found.matches.first() {
            self.metrics.unmatched_domains.increment(1);
            return;
        }
        for (descriptor, matched) in request.descriptors().iter().zip(&found.matches) {
            if let Match::NoRule = matched {
                self.metrics.unmatched_descriptors.increment(1);
            }
            if let Some(LimitOverride::UnknownUnit(unit)) = descriptor.limit {
                self.metrics.dropped_overrides.increment(1);
                if self.override_logged.due() {
                    warn!(
                        unit,
                        domain = request.domain(),
                        "a limit override of an unknown unit was dropped, the rules apply (logged once a minute)"
                    );
                }
            }
        }
    }
}

impl FailurePolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Error => "error",
        }
    }
}

impl FromStr for FailurePolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let all = [Self::Local, Self::Allow, Self::Deny, Self::Error];
        all.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| UnknownPolicy(text.to_owned()))
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
        Ok(Hit { descriptor: 0, kind: Kind::Enforce, counter, limit, cost: Cost::take(self.cost), count_denied: false })
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

impl Status {
    /// A limit in shadow mode is never over; past it, nothing remains.
    fn of(hit: &Hit<'_>, tally: &Tally, name: Option<Arc<str>>) -> Self {
        let shadowed = tally.over && hit.kind.is_shadow();
        Self {
            over: tally.over && !shadowed,
            current_limit: Some(CurrentLimit { limit: hit.limit, window: hit.counter.window, name }),
            remaining: if shadowed { 0 } else { tally.remaining },
            reset: reset(hit, tally),
        }
    }
}

impl OncePerMinute {
    fn due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(60));
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

fn all(hits: &[Hit<'_>], tally: impl Fn(&Hit<'_>) -> Tally) -> Verdict {
    let tallies: SmallVec<[Tally; 2]> = hits.iter().map(tally).collect();
    let admitted = !hits.iter().zip(&tallies).any(|(hit, tally)| tally.over && !hit.kind.is_shadow());
    Verdict { admitted, tallies }
}

/// A wait in whole seconds, as both doors tell it: rounded up, so that whoever waits so long is not early, and at least 1
/// when over.
pub fn whole_seconds(reset: Duration, over: bool) -> u64 {
    (reset.as_secs() + u64::from(reset.subsec_nanos() > 0)).max(u64::from(over))
}

/// The wait to tell. When within, a coarse log's last tick is left out: a 60-second rule says 60, never 61.
fn reset(hit: &Hit<'_>, tally: &Tally) -> Duration {
    let window = Duration::from_micros(hit.counter.window.micros());
    if tally.over { tally.reset } else { tally.reset.min(window) }
}

fn conclude(found: &Found<'_>, verdict: &Verdict) -> Decision {
    let mut tallied = found.hits.iter().zip(&verdict.tallies).peekable();
    let mut statuses = SmallVec::with_capacity(found.matches.len());
    for (index, matched) in found.matches.iter().enumerate() {
        let mut status: Option<Status> = None;
        while let Some((hit, tally)) = tallied.next_if(|(hit, _)| hit.descriptor == index) {
            let mut name = None;
            if let Match::Rule(rule) = matched {
                count(&rule.series, hit, tally);
                name = rule.name().cloned();
            }
            let this = Status::of(hit, tally, name);
            status = Some(match status {
                Some(other) => tighter(other, this),
                None => this,
            });
        }
        statuses.push(status.unwrap_or_default());
    }
    Decision { admitted: verdict.admitted, statuses }
}

fn count(series: &RuleSeries, hit: &Hit<'_>, tally: &Tally) {
    if hit.cost.is_refund() {
        return;
    }
    let cost = hit.cost.amount();
    series.total_hits.increment(cost);
    match (tally.over, hit.kind.is_shadow()) {
        (false, _) => series.within_limit.increment(cost),
        (true, true) => series.shadow_mode.increment(cost),
        (true, false) => series.over_limit.increment(cost),
    }
}

/// Of a descriptor's limits: the one over with the longest wait; else the one with the least left, then the longest wait.
fn tighter(a: Status, b: Status) -> Status {
    let b_wins = match (a.over, b.over) {
        (true, true) => b.reset > a.reset,
        (false, false) => (b.remaining, std::cmp::Reverse(b.reset)) < (a.remaining, std::cmp::Reverse(a.reset)),
        (_, b_over) => b_over,
    };
    if b_wins { b } else { a }
}
