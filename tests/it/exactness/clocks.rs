//! Redis's clock goes back at random, as after a failover to a slower one: the store answers all the same, a counter's own
//! time never goes back, and nobody waits for longer than two windows. (The memory store's clock is monotonic.)

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::histories::check;
use super::*;

/// How far a clock goes before a hit of some cost, in thousandths of the window and in microseconds.
#[derive(Clone, Debug)]
struct Jump {
    per_mille: i64,
    micros: i64,
    cost: u64,
}

const LIMIT: u64 = 4;
const WINDOW: u64 = MINUTE;

#[test]
fn clocks_that_go_back_at_random_never_take_a_counter_over_its_limit() {
    let server = RedisServer::start_without_expiry();
    let runtime = runtime();
    check(41, 100, prop::collection::vec(jump(), 1..60), |jumps| {
        server.command(&["FLUSHALL"]);
        let clock = SteppedClock::starting_at(START);
        let store = redis_store(&server, &clock);
        // Of the logs one is exact, and one has two entries, the newer of which stands up to a whole window ahead of now.
        let rule = |action| Rule::new(action, LIMIT, WINDOW);
        for rule in [rule("exact"), rule("coarse").entries(2), rule("bucket").by(BUCKET), rule("fixed").by(Algorithm::FixedWindow)] {
            clock.set(START);
            let outcome = runtime.block_on(holds(&jumps, &clock, &store, rule));
            outcome.map_err(|why| TestCaseError::fail(format!("{}: {why}", rule.action)))?;
        }
        Ok(())
    });
}

async fn holds(jumps: &[Jump], clock: &SteppedClock, store: &Store, rule: Rule) -> Result<(), String> {
    // The counter's own time, and what was admitted by it since the clock last went back by more than a window. A fixed
    // window's own time is the beginning of the window in force.
    let of = |time: u64| if rule.algorithm == Algorithm::FixedWindow { time - time % WINDOW } else { time };
    let (mut time, mut admitted) = (0, Vec::new());
    let mut latest = START;
    let two_windows = Duration::from_micros(2 * WINDOW);
    for (number, jump) in jumps.iter().enumerate() {
        let by = i64::try_from(WINDOW / 1_000).unwrap() * jump.per_mille + jump.micros;
        clock.set(clock.now().saturating_add_signed(by));
        let now = clock.now();
        latest = latest.max(now);
        if time > of(now + WINDOW) {
            (time, admitted) = (of(now + WINDOW), Vec::new());
        }
        let verdict = store.decide(&[rule.hits(jump.cost)], None).await.map_err(|error| error.to_string())?;
        let tally = verdict.tallies[0];
        if tally.reset > two_windows {
            return Err(format!("jump {number}: a wait of {:?}", tally.reset));
        }
        if verdict.admitted {
            time = of(now).max(time);
            admitted.push((time, jump.cost));
            holds_by(rule.algorithm, &admitted).map_err(|why| format!("jump {number}: {why}"))?;
        }
        let peek = store.decide(&[rule.hits(0)], None).await.map_err(|error| error.to_string())?;
        let used = peek.tallies[0].used;
        if used > LIMIT {
            return Err(format!("jump {number}: {used} are counted"));
        }
    }
    // No entry stands in the way for good.
    clock.set(latest + 2 * WINDOW);
    let all = store.decide(&[rule.hits(LIMIT)], None).await.map_err(|error| error.to_string())?;
    if all.admitted { Ok(()) } else { Err(String::from("two windows later the counter is not free")) }
}

/// Whether what was admitted, at its counter's own times, is what the algorithm promises.
fn holds_by(algorithm: Algorithm, admitted: &[(u64, u64)]) -> Result<(), String> {
    let time = admitted.last().map_or(0, |(time, _)| *time);
    for (from, _) in admitted {
        let since: u64 = admitted.iter().filter(|(at, _)| at >= from).map(|(_, cost)| cost).sum();
        let most = match algorithm {
            // From then on the burst, and what has drained meanwhile.
            Algorithm::TokenBucket { .. } => LIMIT + (time - from) * LIMIT / WINDOW,
            // All from then on lies in one window, if the last does.
            _ if from + WINDOW > time => LIMIT,
            _ => continue,
        };
        if since > most {
            return Err(format!("{since} hits from {from} to {time}, of at most {most}"));
        }
    }
    Ok(())
}

fn jump() -> impl Strategy<Value = Jump> {
    let per_mille =
        prop_oneof![4 => Just(0), 6 => 0..700_i64, 1 => 900..2_500_i64, 3 => -700..0_i64, 1 => -5_000..-900_i64, 1 => Just(-1_000)];
    (per_mille, -1..=1_i64, 1..=LIMIT).prop_map(|(per_mille, micros, cost)| Jump { per_mille, micros, cost })
}
