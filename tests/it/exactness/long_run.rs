//! One long random run: servers that share a Redis, and beside them one in memory; histories of all algorithms, kinds, costs
//! and refunds on top of each other under rules that change; leases beside them; and a Redis that restarts, forgets its
//! scripts or loses its connections. No answer differs from the plain model's, no leased counter admits too much, and no key is there for ever.
//!
//! In CI it lasts `SHORT` seconds, from one seed. `LONG_RUN_SECONDS=3600` makes it longer and takes another seed each time, which
//! is printed; `LONG_RUN_SEED` replays one: `LONG_RUN_SEED=1 LONG_RUN_SECONDS=600 cargo test --test it -- long_run --nocapture`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use distributed_rate_limiter::limit::Lease;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::histories::{EXTREME_LIMITS, LIMITS, Shape, WINDOWS, history, play_in_turn};
use super::*;
use crate::model::Model;

const SHORT: u64 = 6;

const SEED: u64 = 20_261_127;

/// Hits on a leased limit after each history.
const LEASED_STEPS: usize = 200;

/// A leased limit, and what of it was admitted when.
struct Leased {
    rule: Rule,
    admitted: Vec<(u64, u64)>,
}

/// What befalls Redis between two histories.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    None,
    Restart,
    ScriptsForgotten,
    ConnectionsLost,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_long_random_run_ends_as_in_the_plain_model_and_leaves_no_key_for_ever() {
    let of_now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let seconds = setting("LONG_RUN_SECONDS");
    let seed = setting("LONG_RUN_SEED").unwrap_or_else(|| if seconds.is_some() { of_now() } else { SEED });
    let seconds = seconds.unwrap_or(SHORT);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut random = TestRunner::new(Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() });
    let mut redis = RedisServer::start_without_expiry();
    let (runtime, clock) = (runtime(), SteppedClock::starting_at(START));
    let servers = [(); 3].map(|()| redis_store(&redis, &clock));
    let mut model = Model::default();
    // A second store, with a time of its own, to which nothing ever happens.
    let clock_in_memory = SteppedClock::starting_at(START);
    let (in_memory, mut model_in_memory) = ([memory_store(&clock_in_memory)], Model::default());
    let log = Algorithm::SlidingWindowLog { log_entries: LogEntries::LEASED };
    let mut leased = [("log", log), ("fw", Algorithm::FixedWindow)].map(|(action, algorithm)| {
        let rule = Rule { action, limit: 600, window: 7 * SECOND, algorithm };
        Leased { rule, admitted: Vec::new() }
    });
    let (mut histories, mut leased_hits, mut leased_calls) = (0, 0, 0);
    while Instant::now() < until {
        let told = |what: String| format!("LONG_RUN_SEED={seed}, history {histories}: {what}");
        let limits = if histories % 5 == 4 { EXTREME_LIMITS } else { LIMITS };
        let shape = Shape { steady: false, windows: WINDOWS, limits, apart: false, steps: 30, seed };
        let history = history(shape).new_tree(&mut random).unwrap().current();
        runtime.block_on(async {
            play_in_turn(&history, &clock, &mut model, &servers).await.unwrap_or_else(|problem| panic!("{}", told(problem)));
            let played = play_in_turn(&history, &clock_in_memory, &mut model_in_memory, &in_memory).await;
            played.unwrap_or_else(|problem| panic!("{}", told(format!("in memory: {problem}"))));
            let before = redis.script_calls().0;
            for leased in &mut leased {
                leased.play(&servers, &clock, &mut random).await.unwrap_or_else(|problem| panic!("{}", told(problem)));
                leased_hits += LEASED_STEPS as u64;
            }
            leased_calls += redis.script_calls().0 - before;
        });
        for key in keys(&redis) {
            let left = integer(&redis.command(&["TTL", &key]));
            assert!(left >= 0 || left == -2, "{}", told(format!("{key} is there for ever")));
        }
        let mishap = prop_mishap().new_tree(&mut random).unwrap().current();
        match mishap {
            Mishap::None => {}
            Mishap::ScriptsForgotten => drop(redis.command(&["SCRIPT", "FLUSH"])),
            Mishap::ConnectionsLost => drop(redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
            Mishap::Restart => {
                redis.kill();
                // All is forgotten, and leases from before have ended. What they did not spend is given back now, and lost: given
                // back to the new Redis, which never counted it, it would make room for as much as was forgotten.
                model = Model::default();
                clock.step(7 * SECOND / 100);
                runtime.block_on(async {
                    servers.iter().for_each(Store::sweep_leases);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                });
                redis.restart();
                leased.iter_mut().for_each(|leased| leased.admitted.clear());
            }
        }
        if matches!(mishap, Mishap::Restart | Mishap::ConnectionsLost) {
            servers.iter().for_each(|server| runtime.block_on(until_it_answers(server)));
        }
        histories += 1;
    }
    eprintln!("{histories} histories of LONG_RUN_SEED={seed}");
    assert!(histories > 3, "{histories} histories in {seconds} s");
    assert!(leased_calls < leased_hits, "leases are spent: {leased_calls} calls for {leased_hits} hits, the leases' own among them");
}

fn prop_mishap() -> impl Strategy<Value = Mishap> {
    proptest::sample::select(vec![
        Mishap::None,
        Mishap::None,
        Mishap::None,
        Mishap::None,
        Mishap::Restart,
        Mishap::ScriptsForgotten,
        Mishap::ConnectionsLost,
    ])
}

impl Leased {
    /// Asks in turn for a while, and checks after each hit that what was surely decided in the last window is within the limit.
    async fn play(&mut self, servers: &[Store], clock: &SteppedClock, random: &mut TestRunner) -> Result<(), String> {
        let Rule { limit, window, algorithm, .. } = self.rule;
        let step = (0..servers.len(), 1..=3_u64, 0..6_000_u64, 0..20_u8);
        let steps = proptest::collection::vec(step, LEASED_STEPS).new_tree(random).unwrap().current();
        // A reload changes the limit for a while.
        let lowered = (0..5_u8).new_tree(random).unwrap().current() == 0;
        for (number, (server, cost, step, kind)) in steps.into_iter().enumerate() {
            clock.step(step);
            let now = clock.now();
            self.admitted.retain(|(at, _)| match algorithm {
                Algorithm::FixedWindow => at / window == now / window,
                _ => at + window > now,
            });
            let admitted = |of: &Self| of.admitted.iter().map(|(_, hits)| hits).sum::<u64>();
            let limit = if lowered && number > LEASED_STEPS / 2 { limit / 2 } else { limit };
            let hit = Hit { lease: Some(Lease::new(limit / 6).unwrap()), ..Rule { limit, ..self.rule }.hits(cost) };
            if kind == 0 {
                // Of what was taken: the oldest.
                let mut left = cost.min(admitted(self));
                servers[server].decide(&[Hit { cost: Cost::refund(left), ..hit }], None).await.map_err(|error| error.to_string())?;
                for (_, hits) in &mut self.admitted {
                    let taken = left.min(*hits);
                    (*hits, left) = (*hits - taken, left - taken);
                }
            } else if servers[server].decide(&[hit], None).await.map_err(|error| error.to_string())?.admitted {
                self.admitted.push((now, cost));
                if admitted(self) > limit {
                    return Err(format!("{} admitted of {limit}, leased, by a {}", admitted(self), algorithm.as_str()));
                }
            }
        }
        servers.iter().for_each(Store::sweep_leases);
        Ok(())
    }
}

async fn until_it_answers(server: &Store) {
    let deadline = Instant::now() + TIMEOUT;
    while !server.is_ready().await {
        assert!(Instant::now() < deadline, "Redis is back and not used");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn keys(redis: &RedisServer) -> Vec<String> {
    redis::from_redis_value(redis.command(&["KEYS", "*"])).unwrap()
}
