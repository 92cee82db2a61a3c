//! Many askers at once while time stands: of every window they are admitted exactly the limit, and requests of several
//! hits whole or not at all. What they are admitted in real time is for `concurrency.rs`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;

const LIMIT: u64 = 50;
const ASKERS: usize = 4;
const ASKS: usize = 40;
const WINDOWS: usize = 6;

#[test]
fn threads_on_one_memory_store_are_admitted_exactly_the_limit_in_each_window() {
    let clock = SteppedClock::starting_at(START);
    let store = memory_store(&clock);
    crowd(&clock, || store.clone());
}

#[test]
fn stores_on_one_redis_are_admitted_exactly_the_limit_in_each_window() {
    let server = RedisServer::start_without_expiry();
    let clock = SteppedClock::starting_at(START);
    crowd(&clock, || redis_store(&server, &clock));
}

/// Each asker has a thread, a runtime and a store of its own, as a server's thread has.
fn crowd(clock: &SteppedClock, store: impl Fn() -> Store + Sync) {
    // What the request asks of the second, the first has room for: a request that took of one alone would show.
    for window in 0..WINDOWS {
        // Of two algorithms, by turns.
        let of = |number: usize| Algorithm::ALL[number % 3];
        let (wide, narrow) = (Rule::new("wide", LIMIT * 2, MINUTE).by(of(window)), Rule::new("narrow", LIMIT, MINUTE).by(of(window + 1)));
        let admitted = AtomicU64::new(0);
        thread::scope(|scope| {
            for asker in 0..ASKERS {
                let (store, admitted) = (&store, &admitted);
                scope.spawn(move || {
                    let store = store();
                    // Half of them name the counters in the other order, which must not lock anybody out for good.
                    let (first, second) = if asker % 2 == 0 { (wide, narrow) } else { (narrow, wide) };
                    let request = vec![first.hit(), Hit { descriptor: 1, ..second.hit() }];
                    let answers = runtime().block_on(together(&store, &vec![request; ASKS]));
                    let count = answers.into_iter().filter(|answer| answer.as_ref().expect("the store answers").admitted).count();
                    admitted.fetch_add(count as u64, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(admitted.into_inner(), LIMIT, "in window {window}");
        let used = |rule: Rule| {
            let peek = Rule { limit: Limit::MOST, ..rule }.hits(0);
            Limit::MOST - runtime().block_on(store().decide(&[peek], None)).expect("the store answers").tallies[0].remaining
        };
        assert_eq!((used(wide), used(narrow)), (LIMIT, LIMIT), "a request was counted in one counter alone");
        clock.step(MINUTE);
    }
}
