//! Random histories: the memory store, the Redis script and the plain model are asked the same and must answer the same,
//! every time. proptest makes them from one fixed seed (`PROPTEST_RNG_SEED` and `PROPTEST_CASES` choose others) and cuts
//! a failing one down to the smallest that still fails.

use std::cell::RefCell;

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind};
use distributed_rate_limiter::limit::{Algorithm, Burst, Cost, Limit, LogEntries, Window};
use distributed_rate_limiter::store::{SteppedClock, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

use super::*;
use crate::model::Model;
use crate::support::cluster::Cluster;
use crate::support::redis::WITHOUT_EXPIRY;

#[derive(Clone, Debug)]
pub(super) struct History {
    starts_at: u64,
    /// The rules in force, a counter each.
    rules: Vec<Spec>,
    steps: Vec<Step>,
}

/// A counter's window, and the limits that judge it: the second is there after a reload, or is another rule's.
#[derive(Clone, Copy, Debug)]
struct Spec {
    window: u64,
    limits: [u64; 2],
    algorithms: [Algorithm; 2],
}

/// Time goes on, then some requests come at once.
#[derive(Clone, Debug)]
struct Step {
    pace: Pace,
    requests: Vec<Vec<Descriptor>>,
}

#[derive(Clone, Debug)]
enum Pace {
    Stay,
    Micros(u64),
    /// So many thousandths of the window of a counter.
    PerMille(usize, u64),
    /// To the moment at which the nth thing recorded on a counter leaves, or one microsecond before or after.
    Leaving(usize, usize, i64),
    /// To the end of the current coarse tick of a counter, or one microsecond before or after.
    Tick(usize, i64),
    /// To a whole multiple of a counter's window from now, or one microsecond before or after.
    Windows(usize, u64, i64),
}

#[derive(Clone, Debug)]
struct Descriptor {
    kind: Kind,
    hits: Vec<Ask>,
}

#[derive(Clone, Debug)]
struct Ask {
    counter: usize,
    /// Judged by the counter's other limit.
    other: bool,
    cost: Weight,
    count_denied: bool,
}

#[derive(Clone, Debug)]
enum Weight {
    Take(u64),
    /// What the counter may hold, and so many more.
    Capacity(i64),
    /// So many thousandths of it.
    PerMille(u64),
    Refund(u64),
    RefundPerMille(u64),
}

/// What makes all of one test's histories.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Every rule has one limit, and one number of entries or one burst, for good.
    pub steady: bool,
    pub windows: &'static [u64],
    pub limits: &'static [u64],
    /// For stores that decide a request in parts: without what there is known to differ from one step.
    pub apart: bool,
    pub steps: usize,
    pub seed: u64,
}

/// A client for each counter: in a Cluster they lie apart.
const CLIENTS: [&str; 3] = ["alice", "bob", "carol"];

const ACTIONS: [&str; 3] = ["first", "second", "third"];

/// The year 2200. A script counts to 2^53, which in microseconds is the year 2255.
const LATEST: u64 = 7_258_118_400 * SECOND;

pub(super) const WINDOWS: &[u64] = &[1_000, 1_001, SECOND, 7 * SECOND, MINUTE, DAY];
pub(super) const LIMITS: &[u64] = &[0, 1, 2, 3, 5, 20, 300, 300];
const EXTREME_WINDOWS: &[u64] = &[1_000, SECOND, 7 * SECOND, DAY, 3_650 * DAY - 1, 3_650 * DAY];
pub(super) const EXTREME_LIMITS: &[u64] = &[0, 1, 3, 7, 1_000_003, 4_294_967_295, Limit::MOST - 1, Limit::MOST];

const SEED: u64 = 20_261_124;

#[test]
fn random_histories_in_memory_and_in_redis_end_as_in_the_plain_model() {
    compare(Shape { steady: true, windows: WINDOWS, limits: LIMITS, apart: false, steps: 40, seed: SEED }, 300);
}

#[test]
fn random_histories_with_changing_limits_end_as_in_the_plain_model() {
    compare(Shape { steady: false, windows: WINDOWS, limits: LIMITS, apart: false, steps: 40, seed: SEED + 1 }, 200);
}

#[test]
fn long_random_histories_end_as_in_the_plain_model() {
    compare(Shape { steady: true, windows: WINDOWS, limits: LIMITS, apart: false, steps: 400, seed: SEED + 2 }, 12);
}

#[test]
fn random_histories_of_extreme_numbers_end_as_in_the_plain_model() {
    compare(Shape { steady: false, windows: EXTREME_WINDOWS, limits: EXTREME_LIMITS, apart: false, steps: 40, seed: SEED + 3 }, 200);
}

#[test]
fn requests_over_several_slots_and_over_two_redis_end_as_if_they_were_decided_in_one_step() {
    let cluster = Cluster::start_with(&WITHOUT_EXPIRY);
    let (all, short) = (RedisServer::start_without_expiry(), RedisServer::start_without_expiry());
    let runtime = runtime();
    let shape = Shape { steady: true, windows: WINDOWS, limits: LIMITS, apart: true, steps: 40, seed: SEED + 4 };
    check(shape.seed, 150, history(shape), |history| {
        cluster.primaries().iter().chain([&all, &short]).for_each(|server| drop(server.command(&["FLUSHALL"])));
        let clock = SteppedClock::starting_at(history.starts_at);
        let stores = [("cluster", cluster_store(&cluster, &clock)), ("per second", per_second_store(&all, &short, &clock))];
        runtime.block_on(play(&history, &clock, &stores, true))
    });
}

fn compare(shape: Shape, cases: u32) {
    let server = RedisServer::start_without_expiry();
    let runtime = runtime();
    check(shape.seed, cases, history(shape), |history| {
        server.command(&["FLUSHALL"]);
        let clock = SteppedClock::starting_at(history.starts_at);
        let stores = [("memory", memory_store(&clock)), ("redis", redis_store(&server, &clock))];
        runtime.block_on(play(&history, &clock, &stores, false))
    });
}

/// Runs a property over so many inputs. A failure names the seed and the smallest input that fails.
pub(super) fn check<S: Strategy>(seed: u64, cases: u32, inputs: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: std::fmt::Debug,
{
    let mut config = Config { failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(seed);
    }
    let seed = config.rng_seed;
    if let Err(failure) = TestRunner::new(config).run(&inputs, test) {
        panic!("seed {seed:?}: {failure}");
    }
}

/// Plays a history on stores. Where they decide a request in parts, they are asked for one request at a time.
async fn play(history: &History, clock: &SteppedClock, stores: &[(&str, Store)], in_parts: bool) -> Result<(), TestCaseError> {
    let model = RefCell::new(Model::default());
    for (number, step) in history.steps.iter().enumerate() {
        clock.set(step.pace.from(clock.now(), &history.rules, &model.borrow()));
        let requests: Vec<Vec<Hit<'_>>> = step.requests.iter().map(|request| history.hits(request)).collect();
        let expected: Vec<_> = requests.iter().map(|hits| model.borrow_mut().decide(clock.now(), hits)).collect();
        for (store, answers) in stores {
            let answers = if in_parts { one_by_one(answers, &requests).await } else { together(answers, &requests).await };
            for ((request, expected), got) in requests.iter().zip(&expected).zip(answers) {
                let mut got = got.map_err(|error| TestCaseError::fail(format!("{store}, step {number}: {error}")))?;
                if in_parts {
                    forget_waits_of_denied(&mut got, expected);
                }
                if got != *expected {
                    let (asked, now) = (request.iter().map(brief).collect::<String>(), clock.now());
                    return Err(TestCaseError::fail(format!(
                        "{store}, step {number}, at {now}:{asked}\nexpected {expected:?}\ngot      {got:?}\n"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// Plays a history on servers that share a Redis, each request on the next one of them, on top of what went before.
pub(super) async fn play_in_turn(history: &History, clock: &SteppedClock, model: &mut Model, servers: &[Store]) -> Result<(), String> {
    let mut turn = servers.iter().cycle();
    for (number, step) in history.steps.iter().enumerate() {
        clock.set(step.pace.from(clock.now(), &history.rules, model));
        for (request, server) in step.requests.iter().zip(&mut turn) {
            let hits = history.hits(request);
            let expected = model.decide(clock.now(), &hits);
            let got = server.decide(&hits, None).await.map_err(|error| format!("step {number}: {error}"))?;
            if got != expected {
                let (asked, now) = (hits.iter().map(brief).collect::<String>(), clock.now());
                return Err(format!("step {number}, at {now}:{asked}\nexpected {expected:?}\ngot      {got:?}"));
            }
        }
    }
    Ok(())
}

/// Each request when the one before it is done, and what had to be taken back is.
async fn one_by_one(store: &Store, requests: &[Vec<Hit<'_>>]) -> Vec<Result<Verdict, StoreError>> {
    let mut answers = Vec::new();
    for hits in requests {
        answers.push(store.decide(hits, None).await);
        store.drain().await;
    }
    answers
}

/// A part does not know that its request is denied elsewhere, and tells the waits of one that is not.
fn forget_waits_of_denied(got: &mut Verdict, expected: &Verdict) {
    if !expected.admitted {
        got.tallies.iter_mut().zip(&expected.tallies).for_each(|(got, expected)| got.reset = expected.reset);
    }
}

/// A hit in a line, for the message of a failure.
fn brief(hit: &Hit<'_>) -> String {
    let Hit { descriptor, kind, counter, limit, cost, count_denied, .. } = hit;
    let Counter { action, window, algorithm, .. } = counter;
    let limit = limit.get();
    let charge = if *count_denied { ", count_denied" } else { "" };
    format!("\n  descriptor {descriptor} {kind:?}: {cost:?} on {action}, {limit} per {window} ({algorithm:?}){charge}")
}

impl History {
    fn hits(&self, request: &[Descriptor]) -> Vec<Hit<'static>> {
        let of = |(index, descriptor): (usize, &Descriptor)| {
            let kind = descriptor.kind;
            descriptor.hits.iter().map(|ask| ask.hit(index, kind, &self.rules)).collect::<Vec<_>>()
        };
        request.iter().enumerate().flat_map(of).collect()
    }
}

impl Weight {
    fn is_refund(&self) -> bool {
        matches!(self, Self::Refund(_) | Self::RefundPerMille(_))
    }
}

impl Ask {
    fn hit(&self, descriptor: usize, kind: Kind, rules: &[Spec]) -> Hit<'static> {
        let at = self.counter % rules.len();
        let rule = rules[at];
        let counter = rule.counter(at, self.other);
        let limit = Limit::new(rule.limits[usize::from(self.other)]).unwrap();
        let capacity = counter.algorithm.capacity(limit, counter.window);
        Hit {
            descriptor,
            kind,
            counter,
            limit,
            cost: match self.cost {
                Weight::Take(hits) => Cost::take(hits),
                Weight::Capacity(more) => Cost::take(capacity.saturating_add_signed(more)),
                Weight::PerMille(share) => Cost::take(capacity / 1_000 * share),
                Weight::Refund(hits) => Cost::refund(hits),
                Weight::RefundPerMille(share) => Cost::refund(capacity.div_ceil(1_000) * share),
            },
            count_denied: self.count_denied,
            on_store_failure: None,
            lease: None,
        }
    }
}

impl Spec {
    fn counter(&self, at: usize, other: bool) -> Counter<'static> {
        Counter {
            domain: "histories",
            client: [CLIENTS[at]].into_iter().collect(),
            action: Action::named(ACTIONS[at]),
            algorithm: self.algorithms[usize::from(other)],
            window: Window::from_micros(self.window).unwrap(),
        }
    }
}

impl Pace {
    /// The time after it. It never goes back.
    fn from(&self, now: u64, rules: &[Spec], model: &Model) -> u64 {
        let to = match *self {
            Self::Stay => now,
            Self::Micros(micros) => now + micros,
            Self::PerMille(counter, share) => now + rules[counter % rules.len()].window * share / 1_000,
            Self::Leaving(counter, nth, by) => {
                let at = counter % rules.len();
                let leaving = model.leaving(&rules[at].counter(at, false));
                if leaving.is_empty() { now } else { leaving[nth % leaving.len()].saturating_add_signed(by) }
            }
            Self::Tick(counter, by) => {
                let rule = rules[counter % rules.len()];
                let entries = match rule.algorithms[0] {
                    Algorithm::SlidingWindowLog { log_entries } => u64::from(log_entries.get()),
                    _ => 2, // The window is the tick.
                };
                let tick = rule.window.div_ceil(entries - 1);
                (now - now % tick + tick - 1).saturating_add_signed(by)
            }
            Self::Windows(counter, count, by) => (now + rules[counter % rules.len()].window * count).saturating_add_signed(by),
        };
        to.min(LATEST).max(now)
    }
}

pub(super) fn history(shape: Shape) -> impl Strategy<Value = History> {
    let offset = prop_oneof![4 => 0..DAY, 1 => Just(0)];
    let window = move || prop::sample::select(shape.windows);
    let rules = prop_oneof![
        2 => prop::collection::vec(window().prop_flat_map(move |window| spec(shape, window)), 1..=3),
        // Rules of one window make more of each other's time than rules of several.
        3 => window().prop_flat_map(move |window| prop::collection::vec(spec(shape, window), 1..=3)),
    ];
    (offset, rules, prop::collection::vec(step(), 1..=shape.steps)).prop_map(move |(offset, rules, mut steps)| {
        if shape.apart {
            steps.iter_mut().flat_map(|step| &mut step.requests).for_each(|request| decidable_in_parts(request, &rules));
        }
        History { starts_at: START - START % DAY + offset, rules, steps }
    })
}

/// Without what is known to differ from one step: a descriptor over several slots is not judged so where another one follows it
/// on the same counter; of a log, a denied hit that counts may be recorded in the finer tick; and what is to be taken back
/// leaves less room for it.
fn decidable_in_parts(request: &mut [Descriptor], rules: &[Spec]) {
    let hits_max = if request.len() > 1 { 1 } else { usize::MAX };
    request.iter_mut().for_each(|descriptor| descriptor.hits.truncate(hits_max));
    let counters: Vec<_> = request.iter().flat_map(|descriptor| &descriptor.hits).map(|ask| ask.counter % rules.len()).collect();
    for ask in request.iter_mut().flat_map(|descriptor| &mut descriptor.hits) {
        let counter = ask.counter % rules.len();
        let is_alone = counters.iter().filter(|other| **other == counter).count() == 1;
        let is_log = |algorithm: &Algorithm| matches!(algorithm, Algorithm::SlidingWindowLog { .. });
        ask.count_denied &= is_alone && !rules[counter].algorithms.iter().any(is_log);
    }
}

fn spec(shape: Shape, window: u64) -> impl Strategy<Value = Spec> {
    let limit = || prop::sample::select(shape.limits);
    // What a reload makes of a rule; one in three times another algorithm, which starts another counter.
    let another = prop_oneof![2 => Just(None), 1 => (0..3_u8).prop_map(Some)];
    (0..3_u8, another, limit(), limit(), shaping(), shaping()).prop_map(
        move |(number, another, limit, other_limit, shaping, other_shaping)| {
            let (another, other_limit, other_shaping) =
                if shape.steady { (number, limit, shaping) } else { (another.unwrap_or(number), other_limit, other_shaping) };
            let algorithms = [algorithm(number, limit, window, shaping), algorithm(another, other_limit, window, other_shaping)];
            Spec { window, limits: [limit, other_limit], algorithms }
        },
    )
}

/// A log's entries, and a bucket's burst.
fn shaping() -> impl Strategy<Value = (u32, u64)> {
    let burst = prop::sample::select(vec![0, 0, 0, 1, 2, 5, 30, 1_000_003, Limit::MOST]);
    (prop::sample::select(vec![2, 3, 10, 128, 128]), burst)
}

fn algorithm(number: u8, limit: u64, window: u64, (entries, burst): (u32, u64)) -> Algorithm {
    let (limit, window) = (Limit::new(limit).unwrap(), Window::from_micros(window).unwrap());
    match number {
        0 => Algorithm::SlidingWindowLog { log_entries: LogEntries::new(entries).unwrap() },
        // None where there is no burst, or none that ten years refill.
        1 => Algorithm::TokenBucket { burst: Burst::new(burst).and_then(|burst| burst.refilled_at(limit, window)).ok() },
        _ => Algorithm::FixedWindow,
    }
}

fn step() -> impl Strategy<Value = Step> {
    let requests = prop_oneof![4 => prop::collection::vec(request(), 1), 1 => prop::collection::vec(request(), 2..=4)];
    (pace(), requests).prop_map(|(pace, requests)| Step { pace, requests })
}

fn pace() -> impl Strategy<Value = Pace> {
    let (counter, by) = (0..3_usize, -1..=1_i64);
    prop_oneof![
        6 => Just(Pace::Stay),
        3 => prop::sample::select(vec![1, 2, 10]).prop_map(Pace::Micros),
        6 => (counter.clone(), prop_oneof![0..20_u64, 0..300_u64, 0..1_000_u64]).prop_map(|(counter, share)| Pace::PerMille(counter, share)),
        5 => (counter.clone(), prop_oneof![Just(0), 0..20_usize], by.clone()).prop_map(|(counter, nth, by)| Pace::Leaving(counter, nth, by)),
        2 => (counter.clone(), by.clone()).prop_map(|(counter, by)| Pace::Tick(counter, by)),
        1 => (counter, 1..4_u64, by).prop_map(|(counter, count, by)| Pace::Windows(counter, count, by)),
    ]
}

fn request() -> impl Strategy<Value = Vec<Descriptor>> {
    prop_oneof![3 => prop::collection::vec(descriptor(), 1), 2 => prop::collection::vec(descriptor(), 2..=4)]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let kind = prop_oneof![5 => Just(Kind::Enforce), 2 => Just(Kind::Shadow), 2 => Just(Kind::Quota), 1 => Just(Kind::QuotaShadow)];
    (kind, prop::collection::vec(ask(), 1..=2)).prop_map(|(kind, mut hits)| {
        // A descriptor has one cost: it takes from all its counters or gives back to all.
        let first = hits[0].cost.clone();
        for ask in &mut hits {
            if ask.cost.is_refund() != first.is_refund() {
                ask.cost = first.clone();
            }
        }
        Descriptor { kind, hits }
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let cost = prop_oneof![
        2 => Just(Weight::Take(0)),
        12 => Just(Weight::Take(1)),
        4 => Just(Weight::Take(2)),
        3 => (2..40_u64).prop_map(Weight::Take),
        4 => (-1..=1_i64).prop_map(Weight::Capacity),
        3 => (1..1_000_u64).prop_map(Weight::PerMille),
        1 => prop::sample::select(vec![1 << 52, (1 << 52) + 1, 1 << 63, u64::MAX]).prop_map(Weight::Take),
        4 => prop::sample::select(vec![0, 1, 1, 2, 3, 7, 40, u64::MAX]).prop_map(Weight::Refund),
        1 => (1..=1_000_u64).prop_map(Weight::RefundPerMille),
    ];
    let other = prop::bool::weighted(0.25);
    (0..3_usize, other, cost, prop::bool::weighted(0.15)).prop_map(|(counter, other, cost, count_denied)| Ask {
        counter,
        other,
        cost,
        count_denied,
    })
}
