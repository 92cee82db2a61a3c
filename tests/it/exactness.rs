//! What a store decides, to the hit and to the microsecond: the same cases over every store, random histories against the
//! plain model (`model.rs`), and what only Redis has: its keys, their layout, expiry and size, batches, callers that go
//! away and time that goes back. Time is stepped; nothing here waits for it.

mod bounded_log;
mod buckets;
mod cases;
mod clocks;
mod crowds;
mod denials;
mod histories;
mod layout;
mod leases;
mod long_run;
mod redis_only;
mod take_backs;
mod windows;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind, Tally, Verdict};
use distributed_rate_limiter::limit::{Algorithm, Burst, Cost, Limit, LogEntries, Window};
use distributed_rate_limiter::metrics::{RedisSeries, StoreSeries};
use distributed_rate_limiter::store::redis::{RedisDeployment, RedisOptions};
use distributed_rate_limiter::store::{Clock, Memory, Redis, SteppedClock, Store, StoreError};
use redis::Value;
use tokio::runtime::Runtime;

use crate::support::cluster::Cluster;
use crate::support::redis::RedisServer;

/// A store to be asked, the clock that it goes by, and for a Redis store its server.
struct Bench {
    runtime: Runtime,
    store: Store,
    clock: SteppedClock,
    server: Option<RedisServer>,
}

/// A limit on a counter of its own, in the domain "d" for the client "alice".
#[derive(Clone, Copy)]
struct Rule {
    action: &'static str,
    limit: u64,
    /// Microseconds.
    window: u64,
    algorithm: Algorithm,
}

/// Where stepped time starts: some microsecond of the year 2026, at no edge of anything.
const START: u64 = 1_795_200_123_456_789;

/// A token bucket whose burst is the limit.
const BUCKET: Algorithm = Algorithm::TokenBucket { burst: None };

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const DAY: u64 = 86_400 * SECOND;

/// Far above what a test machine needs, so that no answer is late.
const TIMEOUT: Duration = Duration::from_secs(20);

impl Bench {
    fn memory() -> Self {
        let clock = SteppedClock::starting_at(START);
        Self { runtime: runtime(), store: memory_store(&clock), clock, server: None }
    }

    fn redis() -> Self {
        Self::on(RedisServer::start_without_expiry())
    }

    /// On this server; nothing expires on most.
    fn on(server: RedisServer) -> Self {
        let clock = SteppedClock::starting_at(START);
        Self { runtime: runtime(), store: redis_store(&server, &clock), clock, server: Some(server) }
    }

    fn decide(&self, hits: &[Hit<'_>]) -> Verdict {
        self.runtime.block_on(self.store.decide(hits, None)).expect("the store answers")
    }

    /// One hit as a request of its own.
    fn ask(&self, hit: &Hit<'_>) -> (bool, Tally) {
        let verdict = self.decide(std::slice::from_ref(hit));
        assert_eq!(verdict.tallies.len(), 1);
        (verdict.admitted, verdict.tallies[0])
    }

    /// What is counted on the rule's counter.
    fn used(&self, rule: Rule) -> u64 {
        self.ask(&rule.hits(0)).1.used
    }

    /// Requests that are in flight at the same time, asked in this order.
    fn together(&self, requests: &[Vec<Hit<'_>>]) -> Vec<Result<Verdict, StoreError>> {
        self.runtime.block_on(together(&self.store, requests))
    }

    fn server(&self) -> &RedisServer {
        self.server.as_ref().expect("this bench has a Redis")
    }

    /// All that the store holds, as text to compare: of a memory store the number of its counters.
    fn contents(&self) -> String {
        if let Store::Memory(memory) = &self.store {
            return memory.len().to_string();
        }
        let dump = |key: String| format!("{key} {:?}", self.server().command(&["DUMP", &key]));
        self.keys().into_iter().map(dump).collect::<Vec<_>>().join("\n")
    }

    /// When the rule's key is set to expire, in the store's time.
    fn expires_at(&self, rule: Rule) -> u64 {
        let at = integer(&self.server().command(&["PEXPIRETIME", &rule.key()])); // of WITHOUT_EXPIRY
        u64::try_from(at).unwrap_or_else(|_| panic!("{}: no key, or none that expires: {at}", rule.key()))
    }

    /// The keys in Redis, sorted.
    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = redis::from_redis_value(self.server().command(&["KEYS", "*"])).expect("keys are text");
        keys.sort();
        keys
    }
}

impl Rule {
    /// A log of 128 entries.
    const fn new(action: &'static str, limit: u64, window: u64) -> Self {
        Self { action, limit, window, algorithm: Algorithm::SlidingWindowLog { log_entries: LogEntries::DEFAULT } }
    }

    fn by(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    fn entries(self, entries: u32) -> Self {
        self.by(Algorithm::SlidingWindowLog { log_entries: LogEntries::new(entries).unwrap() })
    }

    fn burst(self, burst: u64) -> Self {
        self.by(Algorithm::TokenBucket { burst: Some(Burst::new(burst).unwrap()) })
    }

    /// A hit of cost 1, enforced, on the request's first descriptor.
    fn hit(self) -> Hit<'static> {
        Hit {
            descriptor: 0,
            kind: Kind::Enforce,
            counter: Counter {
                domain: "d",
                client: ["alice"].into_iter().collect(),
                action: Action::named(self.action),
                algorithm: self.algorithm,
                window: Window::from_micros(self.window).unwrap(),
            },
            limit: Limit::new(self.limit).unwrap(),
            cost: Cost::take(1),
            count_denied: false,
            on_store_failure: None,
            lease: None,
        }
    }

    /// The same of another cost.
    fn hits(self, cost: u64) -> Hit<'static> {
        Hit { cost: Cost::take(cost), ..self.hit() }
    }

    fn refund(self, hits: u64) -> Hit<'static> {
        Hit { cost: Cost::refund(hits), ..self.hit() }
    }

    /// A hit of that cost that counts when denied.
    fn charge(self, cost: u64) -> Hit<'static> {
        Hit { count_denied: true, ..self.hits(cost) }
    }

    /// The time that a log's hits share an entry for where they don't fit one by one, or were denied.
    fn coarse_tick(self) -> u64 {
        let Algorithm::SlidingWindowLog { log_entries } = self.algorithm else { panic!("only a log has ticks") };
        self.window.div_ceil(u64::from(log_entries.get()) - 1)
    }

    /// Its counter's key in Redis.
    fn key(self) -> String {
        let tag = match self.algorithm {
            Algorithm::SlidingWindowLog { .. } => "log",
            Algorithm::TokenBucket { .. } => "tb",
            Algorithm::FixedWindow => "fw",
        };
        format!("1{{d|alice}}{tag}|{}|{}", self.window, self.action)
    }
}

/// Runs a case on both stores.
fn on_every_store(case: impl Fn(&Bench)) {
    for (name, bench) in [("memory", Bench::memory()), ("redis", Bench::redis())] {
        eprintln!("on {name}"); // shown where the case fails
        case(&bench);
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built")
}

fn memory_store(clock: &SteppedClock) -> Store {
    Store::Memory(Arc::new(Memory::new(10_000, Clock::Stepped(clock.clone()), StoreSeries::detached())))
}

fn redis_store(server: &RedisServer, clock: &SteppedClock) -> Store {
    let options = RedisOptions { denials_max: 0, clock: Clock::Stepped(clock.clone()), ..RedisOptions::new(server.url(), TIMEOUT) };
    Store::Redis(Redis::new(&options, RedisSeries::detached()).expect("the address can be read"))
}

fn cluster_store(cluster: &Cluster, clock: &SteppedClock) -> Store {
    let mut options = RedisOptions { denials_max: 0, clock: Clock::Stepped(clock.clone()), ..RedisOptions::new(cluster.url(), TIMEOUT) };
    options.site.deployment = RedisDeployment::Cluster;
    Store::Redis(Redis::new(&options, RedisSeries::detached()).expect("the addresses can be read"))
}

/// A store on two Redis, one of them for windows of a second or less.
fn per_second_store(all: &RedisServer, short: &RedisServer, clock: &SteppedClock) -> Store {
    let per_second = Some(RedisOptions::new(short.url(), TIMEOUT).site);
    let clock = Clock::Stepped(clock.clone());
    let options = RedisOptions { denials_max: 0, clock, per_second, ..RedisOptions::new(all.url(), TIMEOUT) };
    Store::Redis(Redis::new(&options, RedisSeries::detached()).expect("the addresses can be read"))
}

/// Polls them all in this order, so that a store is asked in this order, and waits for every answer.
async fn together(store: &Store, requests: &[Vec<Hit<'_>>]) -> Vec<Result<Verdict, StoreError>> {
    let mut asked: Vec<_> = requests.iter().map(|hits| Box::pin(store.decide(hits, None))).collect();
    let mut answers: Vec<_> = requests.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, answer) in asked.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *answer = Some(ready);
            }
        }
        if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

/// Polls a future so many times, whatever wakes it, and drops it. Whether it was done by then.
async fn poll_and_drop(mut future: Pin<Box<dyn Future<Output = Result<Verdict, StoreError>> + '_>>, times: usize) -> bool {
    for _ in 0..times {
        let ready = poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await;
        if ready {
            return true;
        }
        // The runtime's other tasks, such as the store's own, go on between two polls.
        tokio::task::yield_now().await;
    }
    false
}

fn integer(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        other => panic!("a number, not {other:?}"),
    }
}
