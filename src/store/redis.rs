//! The Redis store: counters in one Redis, shared by any number of servers, decided by one script. It asks its denials
//! first, then the Redis, within one deadline. It knows neither rules nor protocols; `redis/node.rs` batches requests,
//! `redis/breaker.rs` spares a dead Redis and its callers, `redis/primary.rs` knows where it is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

mod batch;
mod breaker;
mod link;
mod node;
mod primary;

use super::denial::{Asked, Denials, Known};
use super::{Clock, StoreError, StoreFailure};
use crate::hit::{Ballot, Hit, Tally, Verdict};
use crate::metrics::RedisSeries;
use batch::Ask;
use breaker::Breaker;
use node::Node;
use primary::Primary;

/// A Redis, asked from one runtime: its batch and its connection stay on the thread of whoever asks. Clones share both;
/// what all runtimes of a server share, [`Redis::on_another_runtime`] does.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
    node: Arc<Node>,
}

/// Where Redis is, how it is entered, and how long it may take.
#[derive(Clone)]
pub struct RedisOptions {
    pub deployment: RedisDeployment,
    /// Single: `host:port`, the path of a Unix socket, or a URL `redis://USER:PASSWORD@HOST:PORT/DATABASE` (`rediss://` for
    /// TLS). Sentinel: `MASTER,HOST:PORT,HOST:PORT`, the name of the primary and the Sentinels that watch it.
    pub url: String,
    /// `PASSWORD` or `USER:PASSWORD`, in place of the URL's.
    pub auth: Option<String>,
    /// The same, for the Sentinels.
    pub sentinel_auth: Option<String>,
    /// Everything goes over TLS.
    pub tls: Option<RedisTls>,
    /// What each key begins with. Without braces: the hash tag's come first.
    pub key_prefix: String,
    /// One deadline over queueing, connecting and the call. More than 0.
    pub timeout: Duration,
    /// The most denials that are remembered; 0 has every request ask.
    pub denials_max: usize,
    pub clock: Clock,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisDeployment {
    /// One address, whoever stands behind it.
    #[default]
    Single,
    /// The primary that Sentinels name.
    Sentinel,
}

/// TLS toward Redis. Certificates and keys are PEM.
#[derive(Clone, Default)]
pub struct RedisTls {
    /// The authorities that may have signed the server's certificate; None takes the system's.
    pub ca: Option<Vec<u8>>,
    /// Our own certificate and its key, where the server asks for one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Any name in the server's certificate will do.
    pub skip_hostname_verification: bool,
}

/// An address, or a certificate, that can't be read. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    #[error("REDIS_URL is neither host:port, nor the path of a Unix socket, nor redis://USER:PASSWORD@HOST:PORT/DATABASE: {0}")]
    Address(String),
    #[error("with REDIS_TYPE=sentinel, REDIS_URL is MASTER,HOST:PORT,HOST:PORT...: the primary's name, and at least one Sentinel")]
    Sentinels,
    #[error("REDIS_TLS_CACERT, REDIS_TLS_CLIENT_CERT or REDIS_TLS_CLIENT_KEY holds no PEM that can be used: {0}")]
    Certificates(String),
}

/// What all runtimes of a server share.
struct Shared {
    breaker: Arc<Breaker>,
    denials: Arc<Denials>,
    key_prefix: String,
    timeout: Duration,
    clock: Clock,
}

/// Of a request with more hits no denial is remembered: each is compared with those before it.
const REMEMBERED_HITS_MAX: usize = 64;

/// Denials remembered unless told otherwise; a few hundred bytes each.
pub const DENIALS_DEFAULT: usize = 65_536;

impl RedisOptions {
    /// A single Redis, with nothing special.
    pub fn new(url: impl Into<String>, timeout: Duration) -> Self {
        Self {
            deployment: RedisDeployment::Single,
            url: url.into(),
            auth: None,
            sentinel_auth: None,
            tls: None,
            key_prefix: String::new(),
            timeout,
            denials_max: DENIALS_DEFAULT,
            clock: Clock::System,
        }
    }
}

impl Redis {
    /// A store that connects when it is first asked.
    ///
    /// # Errors
    /// An address, or a certificate, that can't be read.
    pub fn new(options: &RedisOptions, series: RedisSeries) -> Result<Self, RedisUrlError> {
        let denials = Arc::new(Denials::new(options.denials_max));
        let breaker = Arc::new(Breaker::new(Primary::new(options)?, Arc::clone(&denials), series.clone()));
        let (key_prefix, timeout, clock) = (options.key_prefix.clone(), options.timeout, options.clock.clone());
        Ok(Self::of(Arc::new(Shared { breaker, denials, key_prefix, timeout, clock }), series))
    }

    /// The same store for another runtime: with a queue and connections of its own.
    pub fn on_another_runtime(&self, series: RedisSeries) -> Self {
        Self::of(Arc::clone(&self.shared), series)
    }

    fn of(shared: Arc<Shared>, series: RedisSeries) -> Self {
        let (breaker, denials) = (Arc::clone(&shared.breaker), Arc::clone(&shared.denials));
        let node = Arc::new(Node::new(breaker, denials, shared.clock.clone(), shared.timeout, series));
        Self { shared, node }
    }

    /// Decides a request's hits as a whole, within the store's timeout or `within`, whichever is less. Where denials that
    /// are remembered deny the request, nobody is asked. Once the batch is sent, the hits are counted whether or not the
    /// caller still waits.
    ///
    /// # Errors
    /// No verdict in time, no connection, an open breaker, a full queue, or an error that Redis answered with.
    pub async fn decide(&self, hits: &[Hit<'_>], within: Option<Duration>) -> Result<Verdict, StoreError> {
        let within = within.map_or(self.shared.timeout, |within| within.min(self.shared.timeout));
        let deadline = Instant::now() + within;
        let asks = batch::asks(hits, &self.shared.key_prefix);
        let asked = self.shared.denials.asked(self.shared.clock.now());
        if let Some(denied) = self.denied(hits, &asks, asked) {
            self.node.series.denial_answers.increment(1);
            return Ok(denied);
        }
        self.node.series.store.calls.increment(1);
        let answer = self.node.ask(Arc::clone(&asks), deadline, within).await;
        self.forget_refunded(hits, &asks);
        match &answer {
            Ok(verdict) => self.remember(hits, &asks, asked, verdict),
            Err(error) => self.node.series.store.failed(StoreFailure::from(error)),
        }
        answer
    }

    /// Waits until nothing is queued or under way, for as long as one batch may take.
    pub async fn drain(&self) {
        self.node.drain().await;
    }

    pub(super) fn key_prefix(&self) -> &str {
        &self.shared.key_prefix
    }

    /// The verdict on a request that denials deny. Whoever gives back, or counts when denied, is for Redis to hear.
    fn denied(&self, hits: &[Hit<'_>], asks: &[Ask], asked: Asked) -> Option<Verdict> {
        if !self.shared.denials.are_kept() || !hits.iter().all(leaves_nothing_when_denied) {
            return None;
        }
        let mut ballot = Ballot::default();
        let known: SmallVec<[Option<Known>; 2]> = asks.iter().map(|ask| self.shared.denials.find(&ask.key, &ask.terms, asked.at)).collect();
        let mut rest = known.as_slice();
        for descriptor in hits.chunk_by(|one, other| one.descriptor == other.descriptor) {
            let (mine, others) = rest.split_at(descriptor.len());
            rest = others;
            ballot.cast(descriptor[0].kind, mine.iter().any(Option::is_some));
        }
        if ballot.admits() {
            return None;
        }
        let tallies = hits.iter().zip(asks).zip(known).map(|((hit, ask), known)| match known {
            Some(Known { remaining, wait }) => {
                let (used, reset) = (ask.terms.limit.saturating_sub(remaining), Duration::from_micros(wait));
                Tally { over: true, used, remaining, reset }
            }
            None => hit.unasked(),
        });
        Some(Verdict { admitted: false, by_denial: true, tallies: tallies.collect() })
    }

    /// Forgets what a refund has made untrue; one without an answer may have been carried out all the same.
    fn forget_refunded(&self, hits: &[Hit<'_>], asks: &[Ask]) {
        hits.iter().zip(asks).filter(|(hit, _)| hit.cost.is_refund()).for_each(|(_, ask)| self.shared.denials.forget(&ask.key));
    }

    /// Keeps what a verdict says of counters that are over.
    fn remember(&self, hits: &[Hit<'_>], asks: &[Ask], asked: Asked, verdict: &Verdict) {
        let denials = &self.shared.denials;
        if !denials.are_kept() || asks.len() > REMEMBERED_HITS_MAX || !hits.iter().all(leaves_nothing_when_denied) {
            return;
        }
        for (at, (ask, tally)) in asks.iter().zip(&verdict.tallies).enumerate() {
            if tally.over {
                // The wait is for the cost together with what the request's earlier hits asked of the counter, at most all.
                let earlier: u64 = asks[..at].iter().filter(|earlier| earlier.key == ask.key).map(|earlier| earlier.terms.amount).sum();
                let wait = u64::try_from(tally.reset.as_micros()).unwrap_or(u64::MAX);
                denials.note(&ask.key, &ask.terms, ask.terms.need + earlier, asked, Known { remaining: tally.remaining, wait });
            }
        }
    }
}

/// Whether a denial of the hit would change nothing in its counter.
fn leaves_nothing_when_denied(hit: &Hit<'_>) -> bool {
    !hit.count_denied && !hit.cost.is_refund()
}

impl fmt::Debug for RedisOptions {
    /// Without the address and the credentials, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deployment, tls, key_prefix, timeout, denials_max, .. } = self;
        f.debug_struct("Redis")
            .field("deployment", deployment)
            .field("tls", &tls.is_some())
            .field("key_prefix", key_prefix)
            .field("timeout", timeout)
            .field("denials_max", denials_max)
            .finish_non_exhaustive()
    }
}
