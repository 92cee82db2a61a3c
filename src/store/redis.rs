//! The Redis store: counters in a Redis, a Cluster, or two of them, shared by any number of servers, decided by one script. It
//! asks its denials first, then Redis, within one deadline: whole where all hits lie together, else in parts
//! (`redis/parts.rs`). It knows neither rules nor protocols; `redis/site.rs` brings a request to its node, `redis/node.rs`
//! batches requests, `redis/breaker.rs` spares a dead Redis and its callers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

mod address;
mod batch;
mod breaker;
mod busy_poll;
mod link;
mod node;
mod options;
mod parts;
mod primary;
mod site;
mod slots;
mod topology;

use super::denial::{Asked, Denials, Known};
use super::lease::{Fetch, Granted, Leases, Taken};
use super::{Clock, StoreError, StoreFailure};
use crate::hit::{Hit, Tally, Verdict};
use crate::limit::Window;
use crate::metrics::RedisSeries;
use batch::Ask;
use breaker::CONNECT_MAX;
use node::{Errand, Manner, Pending, Refusal};
pub use options::{DENIALS_DEFAULT, RedisDeployment, RedisOptions, RedisSite, RedisTls, RedisUrlError};
use parts::{Counted, Part, Told};
use site::{Making, SharedSite, Site};

/// A Redis, asked from one runtime: its batch and its connection stay on the thread of whoever asks. Clones share both;
/// what all runtimes of a server share, [`Redis::on_another_runtime`] does.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
    own: Arc<Own>,
}

/// What all runtimes of a server share.
struct Shared {
    sites: Vec<SharedSite>,
    denials: Arc<Denials>,
    leases: Arc<Leases<Way>>,
    key_prefix: String,
    timeout: Duration,
    busy_poll: Duration,
    clock: Clock,
}

/// What each runtime has for itself.
struct Own {
    /// The Redis for all windows, and where there is another for the short ones, that.
    sites: Vec<Site>,
    /// One holder, and each task that goes on though nobody waits for it.
    tasks: Arc<()>,
    series: RedisSeries,
}

/// How a counter is asked for, whatever for.
#[derive(Clone)]
struct Way {
    site: usize,
    slot: u16,
    ask: Ask,
}

/// A part of a request on its way.
struct Started {
    part: Part,
    errand: Errand,
    pending: Result<Pending, Refusal>,
}

/// A lease that is being fetched.
struct Fetching {
    leases: Arc<Leases<Way>>,
    clock: Clock,
    key: Box<[u8]>,
    answered: bool,
}

/// Timeouts that may pass until what no request waits for is done: one in the queue, one to connect, one for the call, and
/// one to spare.
const UNHURRIED_TIMEOUTS: u32 = 4;

/// Leases that are given back together; far fewer than fit into a node's queue.
const GIVEN_BACK_AT_ONCE: usize = 1_024;

/// How long a drain waits for what goes on though nobody waits for it.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Of a request with more hits no denial is remembered: each is compared with those before it.
const REMEMBERED_HITS_MAX: usize = 64;

impl Redis {
    /// A store that connects when it is first asked.
    ///
    /// # Errors
    /// An address, or a certificate, that can't be read.
    pub fn new(options: &RedisOptions, series: RedisSeries) -> Result<Self, RedisUrlError> {
        let denials = Arc::new(Denials::new(options.denials_max));
        let sites = [Some(&options.site), options.per_second.as_ref()];
        let sites =
            sites.into_iter().flatten().map(|site| SharedSite::new(site, options.timeout, &denials, &series)).collect::<Result<_, _>>()?;
        let shared = Shared {
            sites,
            denials,
            leases: Arc::new(Leases::new()),
            key_prefix: options.key_prefix.clone(),
            timeout: options.timeout,
            busy_poll: options.busy_poll,
            clock: options.clock.clone(),
        };
        Ok(Self::of(Arc::new(shared), series))
    }

    /// The same store for another runtime: with queues and connections of its own.
    pub fn on_another_runtime(&self, series: RedisSeries) -> Self {
        Self::of(Arc::clone(&self.shared), series)
    }

    fn of(shared: Arc<Shared>, series: RedisSeries) -> Self {
        let making = Making {
            denials: Arc::clone(&shared.denials),
            clock: shared.clock.clone(),
            timeout: shared.timeout,
            busy_poll: shared.busy_poll,
            caretakers: Arc::default(),
            series: series.clone(),
        };
        let sites = shared.sites.iter().map(|site| site.site(&making)).collect();
        Self { shared, own: Arc::new(Own { sites, tasks: Arc::default(), series }) }
    }

    /// Decides a request's hits as a whole, within the store's timeout or `within`, whichever is less. Where denials that
    /// are remembered deny the request, nobody is asked. Once they are sent, hits are counted whether or not the caller
    /// still waits. For hits that nobody could be asked about, or that nobody answered for, `stand_in` gives the verdict: it
    /// gets the tallies of the others, and why these have none.
    ///
    /// # Errors
    /// The stand-in's.
    pub async fn decide(
        &self,
        hits: &[Hit<'_>],
        within: Option<Duration>,
        stand_in: impl FnOnce(&[Option<Tally>], StoreError) -> Result<Verdict, StoreError>,
    ) -> Result<Verdict, StoreError> {
        let within = within.map_or(self.shared.timeout, |within| within.min(self.shared.timeout));
        let deadline = Instant::now() + within;
        let asks = batch::asks(hits, &self.shared.key_prefix);
        let asked = self.shared.denials.asked(self.shared.clock.steady());
        let mut answers = Told::nothing(Arc::clone(&asks));
        let from_leases = self.spend(hits, &mut answers);
        if let Some(mut denied) = self.denied(hits, &answers, asked) {
            self.own.series.denial_answers.increment(1);
            self.take_back(&answers, &mut denied);
            return Ok(denied);
        }
        let place = if from_leases > 0 { None } else { self.place_of_all(&asks) };
        let verdict = match (answers.verdict(), place) {
            (Some(mut verdict), _) => {
                self.own.series.lease_answers.increment(1);
                self.take_back(&answers, &mut verdict);
                return Ok(verdict);
            }
            (None, Some((site, slot))) => {
                self.own.series.store.calls.increment(1);
                let errand = Errand { asks: Arc::clone(&asks), slot, manner: Manner::Batched };
                self.own.sites[site].ask(errand, deadline, within).await.map(|answer| answer.verdict)
            }
            (None, None) => {
                self.own.series.store.calls.increment(1);
                // Boxed: it is seldom, and its state would be part of every request's.
                let (told, verdict) = Box::pin(self.ask_in_parts(answers, deadline, within)).await;
                answers = told;
                verdict
            }
        };
        match &verdict {
            Ok(verdict) => self.note(&asks, asked, verdict.tallies.iter().map(Some)),
            Err(_) => self.note(&asks, asked, answers.tallies.iter().map(Option::as_ref)),
        }
        verdict.or_else(|error| {
            self.own.series.store.failed(StoreFailure::from(&error));
            let mut verdict = stand_in(&answers.tallies, error)?;
            self.take_back(&answers, &mut verdict);
            Ok(verdict)
        })
    }

    /// Gives back what leases that have ended did not spend. To be called every second or so.
    pub fn sweep_leases(&self) {
        self.give_all_back(self.shared.leases.sweep(self.shared.clock.steady()));
    }

    /// Ends all leases, for good, and waits until nothing is queued or under way, for as long as one batch may take, and
    /// two seconds for what goes on though nobody waits for it.
    pub async fn drain(&self) {
        self.give_all_back(self.shared.leases.close());
        let done = async {
            while Arc::strong_count(&self.own.tasks) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(DRAIN_MAX, done).await;
        for site in self.own.sites.iter() {
            site.drain().await;
        }
    }

    /// Does what goes on though nobody waits for it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mine = Arc::clone(&self.own.tasks);
        tokio::spawn(async move {
            task.await;
            drop(mine);
        });
    }

    pub(super) fn key_prefix(&self) -> &str {
        &self.shared.key_prefix
    }

    /// Takes what it can of a request's hits from leases; says how many were decided so. Whoever gives back, looks, or counts
    /// when denied is for Redis to hear, and with him his whole request.
    fn spend(&self, hits: &[Hit<'_>], answers: &mut Told) -> usize {
        if !hits.iter().any(|hit| hit.lease.is_some()) {
            return 0;
        }
        let asks = Arc::clone(&answers.asks);
        for (_, ask) in hits.iter().zip(&*asks).filter(|(hit, ask)| hit.lease.is_some() && ask.is_refund()) {
            // Else a refund of more than was taken would take what is counted and not spent yet.
            let unspent = self.shared.leases.end(&ask.key);
            if !unspent.is_empty() {
                self.give_back(self.way(ask), &unspent);
            }
        }
        if !asks.iter().all(Ask::is_ordinary) {
            return 0;
        }
        let mut decided = 0;
        for (at, (hit, ask)) in hits.iter().zip(&*asks).enumerate() {
            let (Some(lease), now) = (hit.lease, self.shared.clock.steady()) else { continue };
            let way = || self.way(ask);
            let (taken, fetch) = self.shared.leases.take(&ask.key, &ask.terms, lease.get(), now, way);
            if let Some(fetch) = fetch {
                self.spawn(self.clone().fetch(fetch));
            }
            let (over, remaining, reset, recorded_at) = match taken {
                Taken::Spent { remaining, reset, recorded_at } => (false, remaining, reset, Some(recorded_at)),
                Taken::Dry { remaining, wait } => (true, remaining, wait, None),
                Taken::Ask { unspent } => {
                    // Ahead of this request's hits, in the order of the queue.
                    if !unspent.is_empty() {
                        self.give_back(way(), &unspent);
                    }
                    continue;
                }
            };
            decided += 1;
            answers.leased(at, ask.terms.tally(over, ask.terms.limit.saturating_sub(remaining), Some(reset)), recorded_at);
        }
        decided
    }

    /// Asks for the next lease of a counter. Whatever comes of it, somebody else may ask after it.
    async fn fetch(self, fetch: Fetch<Way>) {
        let Fetch { way: Way { site, slot, ask }, hits, unspent } = fetch;
        let (leases, clock, key) = (Arc::clone(&self.shared.leases), self.shared.clock.clone(), ask.key.clone());
        let mut fetching = Fetching { leases, clock, key, answered: false };
        self.own.series.lease_fetches.increment(1);
        self.own.series.lease_hits_returned.increment(unspent.iter().map(|(hits, _)| hits).sum());
        let errand = Errand { asks: batch::grant(&ask, hits, &unspent), slot, manner: Manner::Batched };
        // Longer than a request would wait: an answer that comes late gives its lease as well.
        let (sent, within) = (self.shared.clock.steady(), self.shared.timeout * UNHURRIED_TIMEOUTS);
        let answer = self.own.sites[site].ask(errand, Instant::now() + within, within).await;
        let Some(grant) = answer.ok().and_then(|answer| answer.grant) else { return };
        self.own.series.lease_hits_granted.increment(grant.hits);
        let wait = u64::try_from(grant.tally.reset.as_micros()).unwrap_or(u64::MAX);
        let granted = Granted { hits: grant.hits, recorded_at: grant.recorded_at, lasts: grant.lasts, free: grant.tally.remaining, wait };
        fetching.answered = true;
        let late = fetching.leases.granted(&ask.key, &ask.terms, sent, hits, granted, self.shared.clock.steady());
        if let Some(unspent) = late {
            self.give_back(Way { site, slot, ask }, &[unspent]);
        }
    }

    /// Tells Redis of hits that were granted and not spent, each with where it is recorded. Once: what is lost stays counted.
    fn give_back(&self, way: Way, unspent: &[(u64, u64)]) {
        self.spawn(self.leave_unspent(way, unspent));
    }

    /// The same of many leases, a part of them at a time, so that requests find room in the queue.
    fn give_all_back(&self, mut leases: Vec<(Way, Vec<(u64, u64)>)>) {
        let store = self.clone();
        self.spawn(async move {
            while !leases.is_empty() {
                let some = leases.drain(leases.len().saturating_sub(GIVEN_BACK_AT_ONCE)..);
                join_all(some.map(|(way, unspent)| store.leave_unspent(way, &unspent))).await;
            }
        });
    }

    fn leave_unspent(&self, Way { site, slot, ask }: Way, unspent: &[(u64, u64)]) -> impl Future<Output = ()> + Send + use<> {
        self.own.series.lease_hits_returned.increment(unspent.iter().map(|(hits, _)| hits).sum());
        self.leave(site, Errand { asks: batch::give_back(&ask, unspent), slot, manner: Manner::Batched })
    }

    /// Sends what no request waits for, behind what is queued now, and waits for what comes of it. What it takes back stays
    /// counted where it is refused or lost.
    fn leave(&self, site: usize, errand: Errand) -> impl Future<Output = ()> + Send + use<> {
        let within = self.shared.timeout * UNHURRIED_TIMEOUTS + CONNECT_MAX;
        let deadline = Instant::now() + within;
        let (started, asks) = (self.own.sites[site].start(&errand, deadline), Arc::clone(&errand.asks));
        let Self { own, shared } = self.clone();
        async move {
            // Whatever comes of it: an answer may have come too late.
            let _ = own.sites[site].finish(errand, started, deadline, within).await;
            // It may admit again who was denied because of it.
            asks.iter().for_each(|ask| shared.denials.forget(&ask.key));
        }
    }

    /// The verdict on a request that leases or denials deny. Whoever gives back, or counts when denied, is for Redis to hear.
    fn denied(&self, hits: &[Hit<'_>], answers: &Told, asked: Asked) -> Option<Verdict> {
        let Told { asks, tallies, .. } = answers;
        let denials = &self.shared.denials;
        if !asks.iter().all(Ask::leaves_nothing_when_denied) {
            return None;
        }
        let find = |(ask, tally): (&Ask, &Option<Tally>)| if tally.is_none() { denials.find(&ask.key, &ask.terms, asked.at) } else { None };
        let found: SmallVec<[Option<Known>; 2]> = asks.iter().zip(tallies).map(find).collect();
        if !answers.denies(|hit| found[hit].is_some()) {
            return None;
        }
        let tally = |at: usize| {
            let terms = &asks[at].terms;
            let denied = |Known { remaining, wait }| terms.tally(true, terms.limit.saturating_sub(remaining), Some(wait));
            tallies[at].or(found[at].map(denied)).unwrap_or_else(|| hits[at].unasked())
        };
        let tallies = (0..hits.len()).map(tally).collect();
        Some(Verdict { admitted: false, by_denial: true, tallies })
    }

    /// Where all hits of a request lie, if that is one place.
    fn place_of_all(&self, asks: &[Ask]) -> Option<(usize, u16)> {
        let mut places = asks.iter().map(|ask| self.place(ask));
        let first = places.next()?;
        places.all(|place| place == first).then_some(first)
    }

    /// The site and the slot of a hit.
    fn place(&self, ask: &Ask) -> (usize, u16) {
        let site = usize::from(self.own.sites.len() > 1 && ask.terms.window <= Window::SECOND.micros());
        (site, self.own.sites[site].slot(&ask.key))
    }

    fn way(&self, ask: &Ask) -> Way {
        let (site, slot) = self.place(ask);
        Way { site, slot, ask: ask.clone() }
    }

    /// Asks for all parts of a request at once. What one records and another denies is taken back also where the caller has
    /// gone meanwhile.
    async fn ask_in_parts(&self, answers: Told, deadline: Instant, within: Duration) -> (Told, Result<Verdict, StoreError>) {
        let undecided = answers.tallies.iter().enumerate().filter(|(_, tally)| tally.is_none());
        let parts = parts::deal(undecided.map(|(hit, _)| (hit, self.place(&answers.asks[hit]))));
        // Waits only where a Cluster has never been heard of; whose slots are not known fails by itself.
        let mut known = SmallVec::<[_; 2]>::new();
        for part in &parts {
            known.push(self.own.sites[part.site].known(deadline, within).await);
        }
        let asks = Arc::clone(&answers.asks);
        let start = |(part, known): (Part, Result<(), StoreError>)| {
            let asks = batch::part(part.hits.iter().map(|hit| &asks[*hit]));
            let errand = Errand { asks, slot: part.slot, manner: Manner::Batched };
            let pending = known.map_err(Refusal::Failed).and_then(|()| self.own.sites[part.site].start(&errand, deadline));
            Started { part, errand, pending }
        };
        let started = parts.into_iter().zip(known).map(start).collect();
        let (store, (reply, settled)) = (self.clone(), oneshot::channel());
        self.spawn(async move {
            let settled = store.settle(answers, started, deadline, within).await;
            // Where nobody listens and a part has no answer, there is no policy's either; what denies the request does so still.
            if let Err((answers, Err(_))) = reply.send(settled)
                && answers.denies(|_| false)
            {
                store.take_out(&answers, answers.counted());
            }
        });
        settled.await.unwrap_or_else(|_| (Told::nothing(asks), Err(StoreError::Connection("the request was given up".to_owned()))))
    }

    /// Puts together what comes of a request's parts.
    async fn settle(
        &self,
        mut answers: Told,
        started: Vec<Started>,
        deadline: Instant,
        within: Duration,
    ) -> (Told, Result<Verdict, StoreError>) {
        let finish = async |Started { part, errand, pending }| {
            let outcome = self.own.sites[part.site].finish(errand, pending, deadline, within).await;
            (part, outcome)
        };
        let mut failure = None;
        // Side by side: one may be sent on to another node while a silent one is waited for.
        for (part, outcome) in join_all(started.into_iter().map(finish)).await {
            match outcome {
                Ok(answer) => answers.take(&part, &answer),
                Err(error) => failure = Some(error),
            }
        }
        let verdict = match (failure, answers.verdict()) {
            (None, Some(mut verdict)) => {
                self.take_back(&answers, &mut verdict);
                Ok(verdict)
            }
            (failure, _) => Err(failure.unwrap_or(StoreError::QueueFull)),
        };
        (answers, verdict)
    }

    /// Takes back what must not stay counted under this verdict.
    fn take_back(&self, answers: &Told, verdict: &mut Verdict) {
        self.take_out(answers, answers.settle(verdict));
    }

    /// Takes hits back from where they are counted.
    fn take_out(&self, answers: &Told, counted: Vec<(usize, Counted)>) {
        let mut recorded = SmallVec::<[(usize, u64); 2]>::new();
        for (hit, counted) in counted {
            let ask = &answers.asks[hit];
            match counted {
                Counted::InRedis(at) => recorded.push((hit, at)),
                Counted::InLease(at) => self.shared.leases.put_back(&ask.key, ask.terms.amount, at, self.shared.clock.steady()),
            }
        }
        self.own.series.taken_back.increment(recorded.len() as u64);
        let places = recorded.iter().map(|(hit, _)| self.place(&answers.asks[*hit])).enumerate();
        for part in parts::deal(places) {
            let asks = batch::take_back(part.hits.iter().map(|place| (&answers.asks[recorded[*place].0], recorded[*place].1)));
            self.spawn(self.leave(part.site, Errand { asks, slot: part.slot, manner: Manner::Batched }));
        }
    }

    /// Keeps what the tallies, as far as there are any, say of counters that are over; and forgets what a refund has made
    /// untrue: one without an answer may have been carried out all the same.
    fn note<'t>(&self, asks: &[Ask], asked: Asked, tallies: impl Iterator<Item = Option<&'t Tally>>) {
        let Shared { denials, leases, .. } = &*self.shared;
        for ask in asks.iter().filter(|ask| ask.is_refund()) {
            denials.forget(&ask.key);
            leases.refilled(&ask.key);
        }
        if !denials.are_kept() || asks.len() > REMEMBERED_HITS_MAX || !asks.iter().all(Ask::leaves_nothing_when_denied) {
            return;
        }
        for (at, (ask, tally)) in asks.iter().zip(tallies).enumerate() {
            if let Some(tally) = tally.filter(|tally| tally.over) {
                // The wait is for the cost together with what the request's earlier hits asked of the counter, at most all.
                let earlier: u64 = asks[..at].iter().filter(|earlier| earlier.key == ask.key).map(|earlier| earlier.terms.amount).sum();
                let wait = u64::try_from(tally.reset.as_micros()).unwrap_or(u64::MAX);
                denials.note(&ask.key, &ask.terms, ask.terms.need + earlier, asked, Known { remaining: tally.remaining, wait });
            }
        }
    }
}

impl Drop for Fetching {
    /// Also where its runtime has gone.
    fn drop(&mut self) {
        if !self.answered {
            self.leases.failed(&self.key, self.clock.steady());
        }
    }
}
