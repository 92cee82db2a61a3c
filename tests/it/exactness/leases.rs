//! Leased rules over one Redis, in stepped time: what Redis counts is, at every moment, at least what the clients were granted
//! in the last window, and once all leases are given back no more than that and the hits of one tick and a quarter.

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::histories::check;
use super::*;
use distributed_rate_limiter::limit::Lease;

#[derive(Clone, Copy, Debug)]
enum Event {
    Step(u64),
    /// By one of the servers.
    Take(usize, u64),
    Sweep(usize),
    /// Of hits that were admitted and still count, if there are so many.
    Refund(usize, u64),
}

const WINDOW: u64 = 10 * SECOND;
const TICK: u64 = WINDOW / 200;
const LIMIT: u64 = 300;

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3_usize, 1..=3_u64).prop_map(|(server, hits)| Event::Take(server, hits)),
        24 => (0..3_usize).prop_map(|server| Event::Take(server, 1)),
        12 => (0..TICK).prop_map(Event::Step),
        1 => (0..WINDOW).prop_map(Event::Step),
        1 => (0..3_usize).prop_map(Event::Sweep),
        1 => (0..3_usize, 1..=5_u64).prop_map(|(server, hits)| Event::Refund(server, hits)),
    ]
}

#[test]
fn what_redis_counts_is_what_was_admitted_and_what_is_leased() {
    let server = RedisServer::start_without_expiry();
    let runtime = runtime();
    let log = Algorithm::SlidingWindowLog { log_entries: LogEntries::LEASED };
    for (number, algorithm) in [log, Algorithm::FixedWindow].into_iter().enumerate() {
        let rule = Rule { action: "a", limit: LIMIT, window: WINDOW, algorithm };
        let leased = |cost| Hit { lease: Some(Lease::new(LIMIT / 10).unwrap()), ..rule.hits(cost) };
        check(20_261_126 + number as u64, 60, prop::collection::vec(event(), 1..=400), |events| {
            server.command(&["FLUSHALL"]);
            let clock = SteppedClock::starting_at(START);
            let stores = [(); 3].map(|()| redis_store(&server, &clock));
            runtime.block_on(async {
                let (mut admitted, mut refunded) = (Vec::new(), false);
                // In a fixed window all that is in it, of a log what is in the last window.
                let counts = |at: u64, slack: u64, now: u64| match algorithm {
                    Algorithm::FixedWindow => at / WINDOW == now / WINDOW,
                    _ => at + WINDOW + slack > now,
                };
                let sum = |admitted: &[(u64, u64)], slack: u64| {
                    let now = clock.now();
                    admitted.iter().filter(|(at, _)| counts(*at, slack, now)).map(|(_, hits)| hits).sum::<u64>()
                };
                for event in events {
                    match event {
                        Event::Step(micros) => clock.step(micros),
                        Event::Take(server, cost) => {
                            let verdict = stores[server].decide(&[leased(cost)], None).await.unwrap();
                            if verdict.admitted {
                                admitted.push((clock.now(), cost));
                            }
                        }
                        Event::Sweep(server) => stores[server].sweep_leases(),
                        Event::Refund(server, most) => {
                            let hits = most.min(sum(&admitted, 0));
                            let refund = Hit { cost: Cost::refund(hits), ..leased(1) };
                            stores[server].decide(&[refund], None).await.unwrap();
                            let now = clock.now();
                            let mut left = hits;
                            for (_, held) in admitted.iter_mut().filter(|(at, _)| counts(*at, 0, now)) {
                                let taken = left.min(*held);
                                (*held, left) = (*held - taken, left - taken);
                            }
                            refunded |= hits > 0;
                        }
                    }
                    let used = stores[0].decide(&[rule.hits(0)], None).await.unwrap().tallies[0].used;
                    let least = sum(&admitted, 0);
                    if used < least || used > LIMIT {
                        return Err(TestCaseError::fail(format!("{event:?}: {used} used, {least} admitted, of {LIMIT}")));
                    }
                }
                for store in &stores {
                    store.drain().await;
                }
                let used = stores[0].decide(&[rule.hits(0)], None).await.unwrap().tallies[0].used;
                let (least, most) = (sum(&admitted, 0), sum(&admitted, TICK + TICK / 4));
                // A refund takes the oldest hits of what Redis counts, some of which may have left for us.
                if used < least || used > most && !refunded {
                    return Err(TestCaseError::fail(format!("{used} used at the end, {least} to {most} admitted")));
                }
                Ok(())
            })
        });
    }
}

/// Hits on a leased log.
fn leased(cost: u64) -> Hit<'static> {
    let algorithm = Algorithm::SlidingWindowLog { log_entries: LogEntries::LEASED };
    let rule = Rule { action: "a", limit: LIMIT, window: WINDOW, algorithm };
    Hit { lease: Some(Lease::new(LIMIT / 10).unwrap()), ..rule.hits(cost) }
}

/// Asks until it is denied, and says how many were admitted.
async fn admitted(store: &Store, hit: &Hit<'_>) -> u64 {
    let mut admitted = 0;
    while store.decide(std::slice::from_ref(hit), None).await.unwrap().admitted {
        admitted += hit.cost.amount();
    }
    admitted
}

#[test]
fn more_leases_than_a_queue_has_room_for_are_all_given_back() {
    let server = RedisServer::start_without_expiry();
    let store = redis_store(&server, &SteppedClock::starting_at(START));
    let names: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    let of = |name, cost| {
        let Hit { counter, .. } = leased(1);
        Hit { counter: Counter { client: [name].into_iter().collect(), ..counter }, ..leased(cost) }
    };
    let ask = async |cost| {
        let mut used = Vec::new();
        for some in names.chunks(1_000) {
            let asked = some.iter().map(async |name| store.decide(&[of(name.as_str(), cost)], None).await.unwrap().tallies[0].used);
            used.extend(join_all(asked).await);
        }
        used
    };
    runtime().block_on(async {
        for _ in 0..5 {
            ask(1).await;
        }
        let held = ask(0).await.into_iter().filter(|used| *used > 5).count();
        assert!(held > 9_000, "{held} leases");
        store.drain().await;
        assert!(ask(0).await.into_iter().all(|used| used == 5));
    });
}

#[test]
fn a_refund_of_more_than_was_taken_gives_no_more_than_the_limit() {
    let server = RedisServer::start_without_expiry();
    let clock = SteppedClock::starting_at(START);
    let store = redis_store(&server, &clock);
    runtime().block_on(async {
        for _ in 0..20 {
            assert!(store.decide(&[leased(1)], None).await.unwrap().admitted);
        }
        let peek = || async { store.decide(&[leased(0)], None).await.unwrap().tallies[0].used };
        assert!(peek().await > 20, "a lease is held");
        for _ in 0..3 {
            store.decide(&[Hit { cost: Cost::refund(20), ..leased(1) }], None).await.unwrap();
            assert_eq!(peek().await, 0);
        }
        assert_eq!(admitted(&store, &leased(1)).await, LIMIT);
    });
}

#[test]
fn room_that_a_refund_makes_is_seen_at_once() {
    let server = RedisServer::start_without_expiry();
    let clock = SteppedClock::starting_at(START);
    let store = redis_store(&server, &clock);
    runtime().block_on(async {
        assert_eq!(admitted(&store, &leased(1)).await, LIMIT);
        store.decide(&[Hit { cost: Cost::refund(50), ..leased(1) }], None).await.unwrap();
        assert_eq!(admitted(&store, &leased(1)).await, 50);
        // What another server gives back is seen after a while.
        let other = redis_store(&server, &clock);
        other.decide(&[Hit { cost: Cost::refund(7), ..leased(1) }], None).await.unwrap();
        assert_eq!(admitted(&store, &leased(1)).await, 0);
        clock.step(5 * SECOND);
        assert_eq!(admitted(&store, &leased(1)).await, 7);
    });
}

#[test]
fn a_cost_fits_whenever_the_remaining_hits_say_so() {
    let server = RedisServer::start_without_expiry();
    let store = redis_store(&server, &SteppedClock::starting_at(START));
    let leased = |cost| Hit { lease: Some(Lease::new(LIMIT / 2).unwrap()), ..leased(cost) };
    runtime().block_on(async {
        let mut remaining = 0;
        for _ in 0..20 {
            remaining = store.decide(&[leased(1)], None).await.unwrap().tallies[0].remaining;
        }
        assert!(store.decide(&[leased(0)], None).await.unwrap().tallies[0].used > 20, "a lease is held");
        assert_eq!(remaining, LIMIT - 20);
        assert!(store.decide(&[leased(remaining)], None).await.unwrap().admitted);
        assert!(!store.decide(&[leased(1)], None).await.unwrap().admitted);
    });
}
