//! The design's two-sided statement of the bounded log, over random streams of hits and charges: over the hits that it
//! recorded, it admits only what an exact log of `window` admits, and refuses only what an exact log of `window + tick`
//! refuses. The times here are those at which hits were asked for, not those under which a store keeps them.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::histories::check;
use super::*;

#[derive(Clone, Debug)]
struct Stream {
    limit: u64,
    entries: u32,
    window: u64,
    asks: Vec<Ask>,
}

/// After thousandths of the window and some microseconds, so much is asked for.
#[derive(Clone, Debug)]
struct Ask {
    per_mille: u64,
    micros: u64,
    cost: u64,
    charge: bool,
}

#[test]
fn a_bounded_log_lies_between_an_exact_log_of_its_window_and_one_of_a_tick_more() {
    let server = RedisServer::start_without_expiry();
    let (runtime, clock) = (runtime(), SteppedClock::starting_at(START));
    check(31, 60, stream(), |stream| {
        server.command(&["FLUSHALL"]);
        for (name, store) in [("memory", memory_store(&clock)), ("redis", redis_store(&server, &clock))] {
            runtime.block_on(lies_between(&stream, &clock, &store)).map_err(|why| TestCaseError::fail(format!("{name}: {why}")))?;
        }
        Ok(())
    });
}

async fn lies_between(stream: &Stream, clock: &SteppedClock, store: &Store) -> Result<(), String> {
    let rule = Rule::new("a", stream.limit, stream.window).entries(stream.entries);
    let mut recorded: Vec<(u64, u64)> = Vec::new();
    for (number, ask) in stream.asks.iter().enumerate() {
        clock.step(stream.window * ask.per_mille / 1_000 + ask.micros);
        let now = clock.now();
        let in_last = |span: u64| recorded.iter().filter(|(time, _)| time + span > now).map(|(_, hits)| hits).sum::<u64>();
        let (exact, a_tick_more) = (in_last(rule.window), in_last(rule.window + rule.coarse_tick()));
        let hit = Hit { count_denied: ask.charge, ..rule.hits(ask.cost) };
        let admitted = store.decide(&[hit], None).await.map_err(|error| error.to_string())?.admitted;
        if admitted && exact + ask.cost > rule.limit {
            return Err(format!("ask {number}: {exact} in the window, and {} more were admitted", ask.cost));
        }
        if !admitted && a_tick_more + ask.cost <= rule.limit {
            return Err(format!("ask {number}: {a_tick_more} in the window and a tick, and {} more were refused", ask.cost));
        }
        if admitted || ask.charge {
            recorded.push((now, ask.cost));
        }
    }
    Ok(())
}

fn stream() -> impl Strategy<Value = Stream> {
    let limit = prop::sample::select(vec![2, 10, 11, 60, 300]);
    let window = prop::sample::select(vec![1_000, 1_001, SECOND, DAY]);
    (limit, prop::sample::select(vec![2, 3, 10]), window).prop_flat_map(|(limit, entries, window)| {
        let pace = prop_oneof![2 => Just(0), 3 => 0..20_u64, 3 => 0..150_u64, 1 => 800..1_300_u64];
        let cost = prop_oneof![3 => Just(1), 3 => 1..=limit / 2 + 1, 1 => 1..=limit + 1];
        let ask = (pace, 0..3_u64, cost, prop::bool::weighted(0.1));
        let ask = ask.prop_map(|(per_mille, micros, cost, charge)| Ask { per_mille, micros, cost, charge });
        prop::collection::vec(ask, 1..150).prop_map(move |asks| Stream { limit, entries, window, asks })
    })
}
