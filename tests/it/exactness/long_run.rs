//! One long random run: servers that share a Redis, histories of all algorithms, kinds, costs and refunds on top of each other
//! under rules that change, leases beside them, and a Redis that restarts, forgets its scripts or loses its connections. No
//! answer differs from the plain model's, no leased counter admits too much, and no key is there for ever.
//!
//! In CI it lasts `SHORT` seconds, from one seed. `LONG_RUN_SECONDS=3600` makes it longer and takes another seed each time, which
//! is printed; `LONG_RUN_SEED` replays one: `LONG_RUN_SEED=1 LONG_RUN_SECONDS=600 cargo test --test it -- long_run --nocapture`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use distributed_rate_limiter::limit::Lease;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::histories::{EXTREME_LIMITS, LIMITS, LONGER_WINDOWS, Shape, history, play_in_turn};
use super::*;
use crate::model::Model;
use crate::support::redis::LONG_EXPIRY;

const SHORT: u64 = 6;

const SEED: u64 = 20_261_127;

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
    let mut redis = RedisServer::start_with(&LONG_EXPIRY);
    let (runtime, clock) = (runtime(), SteppedClock::starting_at(START));
    let servers = [(); 3].map(|()| redis_store(&redis, &clock));
    let mut model = Model::default();
    let log = Algorithm::SlidingWindowLog { log_entries: LogEntries::LEASED };
    let mut leased = [("log", log), ("fw", Algorithm::FixedWindow)].map(|(action, algorithm)| {
        let rule = Rule { action, limit: 60, window: 7 * SECOND, algorithm };
        Leased { rule, admitted: Vec::new() }
    });
    let mut histories = 0;
    while Instant::now() < until {
        let told = |what: String| format!("LONG_RUN_SEED={seed}, history {histories}: {what}");
        let limits = if histories % 5 == 4 { EXTREME_LIMITS } else { LIMITS };
        let shape = Shape { steady: false, windows: LONGER_WINDOWS, limits, apart: false, steps: 30, seed };
        let history = history(shape).new_tree(&mut random).unwrap().current();
        runtime.block_on(async {
            play_in_turn(&history, &clock, &mut model, &servers).await.unwrap_or_else(|problem| panic!("{}", told(problem)));
            for leased in &mut leased {
                leased.play(&servers, &clock, &mut random).await.unwrap_or_else(|problem| panic!("{}", told(problem)));
            }
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
                redis.restart();
                // All is forgotten, and leases from before have ended.
                model = Model::default();
                clock.step(7 * SECOND / 100);
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
        let steps = proptest::collection::vec((0..servers.len(), 1..=3_u64, 0..100_000_u64), 60).new_tree(random).unwrap().current();
        for (server, cost, step) in steps {
            clock.step(step);
            let hit = Hit { lease: Some(Lease::new(limit / 6).unwrap()), ..self.rule.hits(cost) };
            let verdict = servers[server].decide(&[hit], None).await.map_err(|error| error.to_string())?;
            let now = clock.now();
            if verdict.admitted {
                self.admitted.push((now, cost));
            }
            self.admitted.retain(|(at, _)| match algorithm {
                Algorithm::FixedWindow => at / window == now / window,
                _ => at + window > now,
            });
            let admitted = self.admitted.iter().map(|(_, hits)| hits).sum::<u64>();
            if admitted > limit {
                return Err(format!("{admitted} admitted of {limit}, leased, by a {}", algorithm.as_str()));
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
