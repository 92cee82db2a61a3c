//! Hits that are taken back after others were recorded on top of them, or after their caller has gone: a request's other part
//! answers late, because its Redis is paused, and denies.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::histories::check;
use super::*;
use crate::model::Model;
use crate::support::redis::WITHOUT_EXPIRY;

/// A Redis for all windows, and one for the short ones that can be paused.
struct TwoRedis {
    all: RedisServer,
    short: RedisServer,
    runtime: Runtime,
}

/// What happens to a counter.
#[derive(Clone, Copy, Debug)]
enum Event {
    Take(u64),
    /// At most what is counted without the hits that are to be taken back.
    Refund(u64),
    Step(u64),
}

/// What denies a request, when it is asked.
const DENYING: Rule = Rule { action: "denying", limit: 0, window: SECOND, algorithm: Algorithm::FixedWindow };

impl TwoRedis {
    fn start() -> Self {
        Self { all: RedisServer::start_without_expiry(), short: RedisServer::start_without_expiry(), runtime: runtime() }
    }

    fn empty(&self) {
        self.all.command(&["FLUSHALL"]);
        self.short.command(&["FLUSHALL"]);
    }

    /// Hits are recorded, then the meanwhile goes by, and only then their request is denied elsewhere.
    fn take_back_after(&self, store: &Store, hit: Hit<'static>, meanwhile: impl AsyncFnOnce()) {
        self.short.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
        let hits = [Hit { descriptor: 0, ..hit }, Hit { descriptor: 1, ..DENYING.hit() }];
        let verdict = self.runtime.block_on(async {
            let mut asked = Box::pin(store.decide(&hits, None));
            assert!(poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_pending())).await);
            // A peek goes behind them on their way.
            store.decide(&[Hit { cost: Cost::take(0), ..hits[0].clone() }], None).await.unwrap();
            meanwhile().await;
            self.short.command(&["CLIENT", "UNPAUSE"]);
            let verdict = asked.await.unwrap();
            store.drain().await;
            verdict
        });
        assert!(!verdict.admitted && !verdict.tallies[0].over && verdict.tallies[1].over, "{verdict:?}");
    }
}

fn events(count: usize, step: u64) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1..=3_u64).prop_map(Event::Take),
        1 => (1..=3_u64).prop_map(Event::Refund),
        2 => (0..=step).prop_map(Event::Step),
        1 => prop::sample::select(vec![0, 1, 2]).prop_map(Event::Step),
    ];
    prop::collection::vec(event, 0..=count)
}

#[test]
fn a_log_and_a_fixed_window_are_as_if_hits_taken_back_had_never_been() {
    let redis = TwoRedis::start();
    let entries = |count| Algorithm::SlidingWindowLog { log_entries: LogEntries::new(count).unwrap() };
    for (number, algorithm) in [entries(128), entries(5), Algorithm::FixedWindow].into_iter().enumerate() {
        // More than is ever taken: what happens meanwhile does not hang on what is to be taken back.
        let rule = Rule { action: "a", limit: 120, window: 10 * SECOND, algorithm };
        let histories = (events(8, 4 * SECOND), 1..=10_u64, events(8, 4 * SECOND), events(16, 4 * SECOND));
        check(20_261_125 + number as u64, 120, histories, |(before, hits, meanwhile, after)| {
            redis.empty();
            let (clock, mut model) = (SteppedClock::starting_at(START), Model::default());
            let store = per_second_store(&redis.all, &redis.short, &clock);
            let is_refunded = meanwhile.iter().any(|event| matches!(event, Event::Refund(_)));
            let mut play = async |events: &[Event], compared: bool, may_hold_more: bool| {
                for event in events {
                    let hit = match event {
                        Event::Step(micros) => {
                            clock.step(*micros);
                            rule.hits(0)
                        }
                        Event::Take(hits) => rule.hits(*hits),
                        Event::Refund(hits) => rule.refund((*hits).min(model.decide(clock.now(), &[rule.hits(0)]).tallies[0].used)),
                    };
                    let hits = [hit];
                    let got = store.decide(&hits, None).await.unwrap();
                    let expected = model.decide(clock.now(), &hits);
                    assert!(expected.admitted && got.admitted);
                    // A log's refund takes the oldest hits: if those are about to be taken back, they are out, and others stay.
                    let differs = if may_hold_more { got.tallies[0].used < expected.tallies[0].used } else { got != expected };
                    if compared && differs {
                        return Err(TestCaseError::fail(format!("{event:?} at {}: expected {expected:?}\ngot {got:?}", clock.now())));
                    }
                }
                Ok(())
            };
            redis.runtime.block_on(play(&before, true, false))?;
            let may_hold_more = is_refunded && algorithm != Algorithm::FixedWindow;
            let mut played = Ok(());
            redis.take_back_after(&store, rule.hits(hits), async || played = play(&meanwhile, false, false).await);
            played?;
            redis.runtime.block_on(play(&[Event::Step(0)], true, may_hold_more))?;
            redis.runtime.block_on(play(&after, true, may_hold_more))
        });
    }
}

#[test]
fn of_a_bucket_what_may_have_drained_meanwhile_is_not_taken_back() {
    let redis = TwoRedis::start();
    let rule = Rule { action: "a", limit: 10, window: 10 * SECOND, algorithm: BUCKET };
    // What it held before, what is to be taken back, the wait, and what is left: with the hits alone in it they drain, so what
    // has drained counts as theirs.
    for (before, hits, wait, left) in
        [(0, 4, 1_500_000, 0), (0, 4, 5 * SECOND, 0), (5, 4, 2 * SECOND, 5), (5, 4, 0, 5), (6, 1, 2 * SECOND, 5)]
    {
        redis.empty();
        let clock = SteppedClock::starting_at(START);
        let store = per_second_store(&redis.all, &redis.short, &clock);
        if before > 0 {
            redis.runtime.block_on(store.decide(&[rule.hits(before)], None)).unwrap();
        }
        redis.take_back_after(&store, rule.hits(hits), async || clock.step(wait));
        let used = redis.runtime.block_on(store.decide(&[rule.hits(0)], None)).unwrap().tallies[0].used;
        assert_eq!(used, left, "{before}, {hits} after {wait}");
    }
}

#[test]
fn a_request_whose_caller_goes_away_is_counted_where_it_is_admitted_and_nowhere_else() {
    let redis = TwoRedis::start();
    let clock = SteppedClock::starting_at(START);
    let store = per_second_store(&redis.all, &redis.short, &clock);
    let rule = Rule { action: "a", limit: 10, window: MINUTE, algorithm: Algorithm::default() };
    let passing = Rule { action: "passing", limit: 10, ..DENYING };
    for (other, left) in [(DENYING, 0), (passing, 3)] {
        let hits = [Hit { descriptor: 0, ..rule.hits(3) }, Hit { descriptor: 1, ..other.hit() }];
        redis.short.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
        redis.runtime.block_on(async {
            let mut asked = Box::pin(store.decide(&hits, None));
            assert!(poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_pending())).await);
            drop(asked);
            let used = async || store.decide(&[rule.hits(0)], None).await.unwrap().tallies[0].used;
            assert_eq!(used().await, 3, "recorded, while the other part waits");
            redis.short.command(&["CLIENT", "UNPAUSE"]);
            store.drain().await;
            assert_eq!(used().await, left);
        });
    }
}

#[test]
fn a_denied_request_whose_caller_goes_away_is_counted_nowhere_although_a_node_is_silent() {
    let (cluster, clock, runtime) = (Cluster::of(3, false, &WITHOUT_EXPIRY), SteppedClock::starting_at(START), runtime());
    let names: Vec<String> = (0..100).map(|number| format!("client-{number}")).collect();
    let on = |primary| names.iter().find(|name| cluster.primary_of(cluster.slot(&format!("1{{d|{name}}}"))) == primary).unwrap();
    let clients = [0, 1, 2].map(|primary| on(primary).as_str());
    let hit = |primary: usize, limit| {
        let Hit { counter, .. } = Rule::new("a", limit, MINUTE).hit();
        let counter = Counter { client: [clients[primary]].into_iter().collect(), ..counter };
        Hit { descriptor: primary, counter, ..Rule::new("a", limit, MINUTE).hits(3) }
    };
    let mut options = RedisOptions { denials_max: 0, clock: Clock::Stepped(clock), ..RedisOptions::new(cluster.url(), TIMEOUT / 40) };
    options.site.deployment = RedisDeployment::Cluster;
    let store = Store::Redis(Redis::new(&options, RedisSeries::detached()).expect("the addresses can be read"));
    runtime.block_on(async {
        let used = async || store.decide(&[Hit { cost: Cost::take(0), ..hit(0, 10) }], None).await.unwrap().tallies[0].used;
        for primary in 0..3 {
            while store.decide(&[hit(primary, 0)], None).await.is_err() {}
        }
        cluster.nodes[2].signal("STOP");
        let hits = [hit(0, 10), hit(1, 0), hit(2, 10)];
        let mut asked = Box::pin(store.decide(&hits, None));
        assert!(poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_pending())).await);
        assert_eq!(used().await, 3);
        drop(asked);
        store.drain().await;
        cluster.nodes[2].signal("CONT");
        assert_eq!(used().await, 0);
    });
}

#[test]
fn a_denied_request_is_told_what_is_left_without_it() {
    let redis = TwoRedis::start();
    let clock = SteppedClock::starting_at(START);
    let store = per_second_store(&redis.all, &redis.short, &clock);
    for algorithm in Algorithm::ALL {
        let rule = Rule { action: "a", limit: 10, window: MINUTE, algorithm };
        let hits = [Hit { descriptor: 0, ..rule.hits(3) }, Hit { descriptor: 1, ..rule.hit() }, Hit { descriptor: 2, ..DENYING.hit() }];
        let told = redis.runtime.block_on(store.decide(&hits, None)).unwrap();
        redis.runtime.block_on(store.drain());
        let peeked = redis.runtime.block_on(store.decide(&[rule.hits(0)], None)).unwrap();
        assert_eq!(told.tallies[0], peeked.tallies[0], "{algorithm:?}");
        assert_eq!(told.tallies[1], peeked.tallies[0], "{algorithm:?}");
        assert_eq!((peeked.tallies[0].used, peeked.tallies[0].remaining), (0, 10));
    }
}

#[test]
fn a_descriptor_over_in_one_redis_is_recorded_in_none() {
    let redis = TwoRedis::start();
    let clock = SteppedClock::starting_at(START);
    let store = per_second_store(&redis.all, &redis.short, &clock);
    let rule = Rule { action: "a", limit: 10, window: MINUTE, algorithm: Algorithm::default() };
    let ask = |hits: &[Hit<'_>]| {
        let verdict = redis.runtime.block_on(store.decide(hits, None)).unwrap();
        redis.runtime.block_on(store.drain());
        verdict
    };
    // In shadow it denies nothing; the other descriptor is recorded.
    let shadow = |hit: Hit<'static>| Hit { kind: Kind::Shadow, ..hit };
    assert!(ask(&[shadow(rule.hit()), shadow(DENYING.hit()), Hit { descriptor: 1, ..rule.hits(2) }]).admitted);
    assert_eq!(ask(&[rule.hits(0)]).tallies[0].used, 2);
    // Of quotas one that fits is enough, wherever it lies; where none fits, nothing is recorded.
    let quota = |descriptor, hit: Hit<'static>| Hit { descriptor, kind: Kind::Quota, ..hit };
    assert!(ask(&[quota(0, rule.hit()), quota(1, DENYING.hit())]).admitted);
    assert_eq!(ask(&[rule.hits(0)]).tallies[0].used, 3);
    assert!(!ask(&[quota(0, rule.hits(9)), quota(1, DENYING.hit())]).admitted);
    assert!(!ask(&[quota(0, rule.hit()), Hit { descriptor: 1, ..DENYING.hit() }]).admitted);
    // Counted although denied, it stays.
    assert!(!ask(&[rule.charge(4), Hit { descriptor: 1, ..DENYING.hit() }]).admitted);
    assert_eq!(ask(&[rule.hits(0)]).tallies[0].used, 7);
    // A refund stays as well.
    assert!(!ask(&[rule.refund(2), Hit { descriptor: 1, ..DENYING.hit() }]).admitted);
    assert_eq!(ask(&[rule.hits(0)]).tallies[0].used, 5);
}
