//! Leased rules over one Redis, in stepped time: what Redis counts is, at every moment, at least what the clients were granted
//! in the last window, and once all leases are given back no more than that and the hits of one tick and a quarter.

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
                let mut admitted = Vec::new();
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
                if !(least..=most).contains(&used) {
                    return Err(TestCaseError::fail(format!("{used} used at the end, {least} to {most} admitted")));
                }
                Ok(())
            })
        });
    }
}
