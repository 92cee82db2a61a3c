//! What only Redis has: keys, their layout, size and expiry, batches, scripts that are lost, callers that go away, and time
//! that goes back.

use super::*;
use crate::support::redis::WITHOUT_EXPIRY;

fn at(descriptor: usize, hit: Hit<'static>) -> Hit<'static> {
    Hit { descriptor, ..hit }
}

impl Bench {
    fn entries(&self, rule: Rule) -> i64 {
        integer(&self.server().command(&["ZCARD", &rule.key()]))
    }
}

#[test]
fn the_key_is_the_documented_one_and_the_only_one() {
    let bench = Bench::redis();
    let rule = Rule::new("login", 5, MINUTE);
    bench.ask(&rule.hit());
    assert_eq!(bench.keys(), [rule.key()]);
    let Value::SimpleString(kind) = bench.server().command(&["TYPE", &rule.key()]) else { panic!("TYPE answers with a word") };
    assert_eq!(kind, "zset");
}

#[test]
fn a_log_of_128_entries_keeps_redis_compact_form() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 128, MINUTE);
    for _ in 0..128 {
        bench.clock.step(1_000);
        assert!(bench.ask(&rule.hit()).0);
    }
    assert_eq!(bench.entries(rule), 128);
    let encoding: String = redis::from_redis_value(bench.server().command(&["OBJECT", "ENCODING", &rule.key()])).unwrap();
    assert_eq!(encoding, "listpack");
}

#[test]
fn a_full_queue_is_refused_at_once_and_those_in_it_once_their_turn_comes() {
    let bench = Bench::redis();
    let rule = Rule::new("a", Limit::MOST, MINUTE);
    bench.ask(&rule.hit());
    bench.server().command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    bench.runtime.block_on(async {
        let ask = || {
            let store = bench.store.clone();
            tokio::spawn(async move { store.decide(&[rule.hit()], None).await })
        };
        let under_way = ask();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let queued: Vec<_> = (0..8_192).map(|_| ask()).collect();
        assert_eq!(ask().await.unwrap(), Err(StoreError::QueueFull));
        assert_eq!(ask().await.unwrap(), Err(StoreError::BreakerOpen));
        assert!(!under_way.is_finished(), "nobody had to wait for Redis to know that");
        bench.server().command(&["CLIENT", "UNPAUSE"]);
        assert!(under_way.await.unwrap().is_ok());
        for asked in queued {
            assert_eq!(asked.await.unwrap(), Err(StoreError::BreakerOpen));
        }
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while ask().await.unwrap().is_err() {
            assert!(tokio::time::Instant::now() < deadline, "Redis is not asked again");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(bench.used(rule), 3, "who was refused is counted nowhere");
}

#[test]
fn a_cost_of_any_size_is_one_entry() {
    let bench = Bench::redis();
    let rule = Rule::new("a", Limit::MOST, MINUTE);
    assert!(bench.ask(&rule.hits(Limit::MOST)).0);
    assert_eq!(bench.entries(rule), 1);
}

#[test]
fn a_log_never_holds_more_than_twice_its_entries_whatever_comes() {
    let bench = Bench::redis();
    for rule in [Rule::new("exact", 10, MINUTE).entries(10), Rule::new("coarse", 1_000, MINUTE).entries(10)] {
        let mut state = 3_u64;
        let mut most = 0;
        for _ in 0..1_500 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bench.clock.step(state >> 44); // up to 1 s
            let hit = match state >> 30 & 3 {
                0 => rule.charge(1),
                1 => rule.charge(20),
                _ => rule.hit(),
            };
            bench.ask(&hit);
            most = most.max(bench.entries(rule));
        }
        assert!((6..=20).contains(&most), "{most} entries");
    }
}

/// Every key expires by itself: after its newest hit has left (an entry may stand a tick ahead, a bucket's debt take a
/// window and its burst to drain), and at most a quarter of the window later, in milliseconds rounded up.
#[test]
fn every_key_expires_within_its_window_and_a_named_slack() {
    let clock_is_the_servers = |server: &RedisServer| {
        let options = RedisOptions::new(server.url(), TIMEOUT);
        Store::Redis(Redis::new(&options, RedisSeries::detached()).unwrap())
    };
    let server = RedisServer::start();
    let (runtime, store) = (runtime(), clock_is_the_servers(&server));
    let short = Rule::new("short", 5, 200_000);
    for (rule, ahead) in [
        (Rule::new("exact", 5, MINUTE), MINUTE.div_ceil(127)),
        (Rule::new("coarse", 1_000, MINUTE), MINUTE.div_ceil(127)),
        (Rule::new("bucket", 5, MINUTE).by(BUCKET), MINUTE),
        (Rule::new("fixed", 5, MINUTE).by(Algorithm::FixedWindow), 0),
        (short, 200_000_u64.div_ceil(127)),
        (short.by(BUCKET), 200_000),
        (short.by(Algorithm::FixedWindow), 0),
    ] {
        for hit in [rule.hit(), rule.hit(), rule.refund(1), rule.charge(20)] {
            runtime.block_on(store.decide(&[hit], None)).unwrap();
        }
        let most = (rule.window + rule.window / 4 + ahead) / 1_000 + 1;
        let left = integer(&server.command(&["PTTL", &rule.key()]));
        assert!(left > 0 && left as u64 <= most, "{}: {left} of at most {most}", rule.action);
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let keys = [short, short.by(BUCKET), short.by(Algorithm::FixedWindow)].map(Rule::key);
    while keys.iter().any(|key| integer(&server.command(&["EXISTS", key])) == 1) {
        assert!(std::time::Instant::now() < deadline, "a key does not expire");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_expiry_reaches_to_the_newest_hit_through_every_kind_of_write() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 5, DAY);
    let mut state = 11_u64;
    for _ in 0..500 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bench.clock.step(state >> 31); // up to 2.4 hours
        let hit = match state >> 20 & 7 {
            0 => rule.refund(1),
            1 => rule.charge(3),
            _ => rule.hit(),
        };
        let recorded = bench.ask(&hit).0 && !hit.cost.is_refund();
        if bench.used(rule) > 0 {
            let (now, gone_at) = (bench.clock.now(), bench.expires_at(rule));
            assert!(gone_at >= if recorded { now + DAY } else { now + 1 }, "{gone_at}");
            assert!(gone_at <= now + DAY + DAY / 4 + rule.coarse_tick() + 1_000, "{gone_at}");
        }
    }
}

#[test]
fn a_key_of_another_type_fails_its_own_request_and_no_other_of_the_batch() {
    for algorithm in Algorithm::ALL {
        let bench = Bench::redis();
        let (broken, fine) = (Rule::new("broken", 5, MINUTE).by(algorithm), Rule::new("fine", 5, MINUTE).by(algorithm));
        bench.server().command(&["RPUSH", &broken.key(), "something else"]);
        let answers = bench.together(&[
            vec![fine.hit()],
            vec![broken.hit()],
            vec![at(0, fine.hit()), at(1, broken.hit())],
            vec![at(0, broken.hit()), at(1, fine.hit())],
            vec![fine.hit()],
        ]);
        let failed: Vec<bool> =
            answers.iter().map(|answer| matches!(answer, Err(StoreError::Reply(why)) if why.contains("WRONGTYPE"))).collect();
        assert_eq!(failed, [false, true, true, true, false], "{answers:?}");
        assert_eq!(bench.used(fine), 2, "nothing of a failed request is recorded");
        bench.server().command(&["DEL", &broken.key()]);
        let (key, of_a_buckets_size) = (broken.key(), "x".repeat(28));
        let planted = match algorithm {
            Algorithm::SlidingWindowLog { .. } => vec![vec!["ZADD", &key, "1", "no entry of ours"]],
            Algorithm::TokenBucket { .. } => vec![vec!["SET", &key, "no bucket of ours"], vec!["SET", &key, &of_a_buckets_size]],
            Algorithm::FixedWindow => vec![vec!["SET", &key, "no window of ours"]],
        };
        for command in planted {
            bench.server().command(&command);
            let answer = bench.runtime.block_on(bench.store.decide(&[broken.hit()], None));
            assert!(matches!(&answer, Err(StoreError::Reply(why)) if why.contains("the key holds no")), "{answer:?}");
        }
    }
}

/// On one set of terms and counters of their own, so that the script is told of them as of one.
#[test]
fn of_requests_alike_each_is_decided_by_its_own_counter() {
    const ACTIONS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    for algorithm in Algorithm::ALL {
        let bench = Bench::redis();
        let rules = ACTIONS.map(|action| Rule::new(action, 2, MINUTE).by(algorithm));
        for (rule, hits) in rules.iter().zip([0, 2, 1, 2, 0, 0]) {
            (0..hits).for_each(|_| assert!(bench.ask(&rule.hit()).0));
        }
        bench.server().command(&["RPUSH", &rules[4].key(), "something else"]);
        let before = bench.server().script_calls().0;
        let answers = bench.together(&rules.map(|rule| vec![rule.hit()]));
        assert_eq!(bench.server().script_calls().0, before + 1);
        let told: Vec<_> = answers.iter().map(|answer| answer.as_ref().ok().map(|told| (told.admitted, told.tallies[0].used))).collect();
        let admitted = |used| Some((true, used));
        assert_eq!(told, [admitted(1), Some((false, 2)), admitted(2), Some((false, 2)), None, admitted(1)], "{algorithm:?}: {answers:?}");
        bench.server().command(&["DEL", &rules[4].key()]);
        assert_eq!(rules.map(|rule| bench.used(rule)), [1, 2, 2, 2, 0, 1]);
    }
}

/// The script is told of those alike together, whatever came between.
#[test]
fn of_requests_under_several_rules_each_is_decided_and_told_by_its_own() {
    const ACTIONS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let bench = Bench::redis();
    // By turns of three limits, and each with hits of its own.
    let rules: Vec<Rule> = (0..8).map(|number| Rule::new(ACTIONS[number], 10 * (number as u64 % 3 + 1), MINUTE)).collect();
    for (number, rule) in rules.iter().enumerate() {
        (0..number).for_each(|_| assert!(bench.ask(&rule.hit()).0));
    }
    let twice = Rule::new("twice", 1, MINUTE);
    let mut requests: Vec<_> = rules.iter().map(|rule| vec![rule.hit()]).collect();
    requests.insert(2, vec![twice.hit()]);
    requests.insert(5, vec![twice.hit()]);
    let before = bench.server().script_calls().0;
    let answers = bench.together(&requests);
    assert_eq!(bench.server().script_calls().0, before + 1);
    let told: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().map(|told| (told.admitted, told.tallies[0].used, told.tallies[0].remaining)).unwrap())
        .collect();
    let mut expected: Vec<_> = (0..8).map(|number| (true, number + 1, 10 * (number % 3 + 1) - number - 1)).collect();
    expected.insert(2, (true, 1, 0));
    expected.insert(5, (false, 1, 0));
    assert_eq!(told, expected, "of the two on one counter the first one is admitted");
}

/// The script makes keys that are alike as copies of the first of them, where Redis has a command for it.
#[test]
fn counters_that_are_new_in_one_batch_are_as_if_each_had_come_alone() {
    const ACTIONS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let without_copy = [&WITHOUT_EXPIRY[..], &["--rename-command", "COPY", ""]].concat();
    for algorithm in Algorithm::ALL {
        for (cost, window, options, can_copy) in [(1, MINUTE, &WITHOUT_EXPIRY[..], true), (3, 7 * SECOND, &without_copy, false)] {
            let (together, alone) = (Bench::on(RedisServer::start_with(options)), Bench::redis());
            let rules = ACTIONS.map(|action| Rule::new(action, 7, window).by(algorithm));
            for bench in [&together, &alone] {
                // One is there already, and of one all hits have left, though its key may be there.
                bench.ask(&rules[1].hits(2));
                bench.ask(&rules[3].hits(2));
                bench.clock.step(window + window / 8);
                bench.ask(&rules[3].hit());
                bench.clock.step(window / 16);
            }
            let told_together = together.together(&rules.map(|rule| vec![rule.hits(cost)]));
            let told_alone = rules.map(|rule| alone.decide(&[rule.hits(cost)]));
            for ((rule, together_told), alone_told) in rules.iter().zip(told_together).zip(told_alone) {
                let together_told = together_told.unwrap();
                assert!(together_told.admitted);
                assert_eq!(format!("{together_told:?}"), format!("{alone_told:?}"), "{algorithm:?} {}", rule.action);
                assert_eq!(together.expires_at(*rule), alone.expires_at(*rule), "{algorithm:?} {}", rule.action);
            }
            assert_eq!(together.contents(), alone.contents(), "{algorithm:?}");
            let stats = together.server().info("commandstats");
            let tries = stats.lines().find_map(|line| line.strip_prefix("cmdstat_copy:calls=")?.split(',').next());
            assert_eq!(tries, can_copy.then_some("5"), "of c, e, f, which were new, and of b and d, which were taken to be");
        }
    }
}

/// Where the clock is far behind, what is made has expired at once: there is nothing to copy.
#[test]
fn a_counter_that_has_expired_at_once_is_copied_no_more() {
    for algorithm in Algorithm::ALL {
        let bench = Bench::on(RedisServer::start());
        let rules = ["a", "b", "c", "d", "e", "f"].map(|action| Rule::new(action, 7, MINUTE).by(algorithm));
        let told = bench.together(&rules.map(|rule| vec![rule.hit()]));
        assert!(told.iter().all(|told| told.as_ref().is_ok_and(|told| told.admitted && told.tallies[0].used == 1)), "{told:?}");
        assert!(bench.keys().is_empty());
        assert!(bench.server().info("commandstats").contains("cmdstat_copy:calls=2,"), "of b, taken to be new, and of c, which was");
    }
}

/// Each time of three hits, on counters of their own, by three algorithms, whichever of them is full or broken.
#[test]
fn of_a_request_of_several_hits_all_are_recorded_or_none_wherever_the_one_is_that_is_over() {
    const ACTIONS: [&str; 3] = ["a", "b", "c"];
    for turn in 0..3 {
        let bench = Bench::redis();
        let number = |hit: usize| (hit + turn) % 3;
        let rules = [0, 1, 2].map(|hit| Rule::new(ACTIONS[hit], 3, MINUTE).by(Algorithm::ALL[number(hit)]));
        let request = || [0, 1, 2].map(|hit| at(hit, rules[hit].hit())).to_vec();
        let told = bench.decide(&request());
        assert!(told.admitted && told.tallies.iter().all(|tally| (tally.over, tally.used, tally.remaining) == (false, 1, 2)), "{told:?}");
        for (over, full) in rules.iter().enumerate() {
            assert!(bench.ask(&full.hits(2)).0);
            let before = bench.contents();
            let told = bench.decide(&request());
            assert!(!told.admitted);
            assert_eq!([0, 1, 2].map(|hit| told.tallies[hit].over), [0, 1, 2].map(|hit| hit == over), "{told:?}");
            assert_eq!([0, 1, 2].map(|hit| told.tallies[hit].used), [0, 1, 2].map(|hit| if hit == over { 3 } else { 1 }));
            assert_eq!(bench.contents(), before);
            bench.ask(&full.refund(2));
        }
        for broken in rules {
            bench.server().command(&["RENAME", &broken.key(), "kept"]);
            bench.server().command(&["RPUSH", &broken.key(), "something else"]);
            let before = bench.contents();
            // Between two that are alone on theirs, and fit.
            let fine = [Rule::new("d", 1, MINUTE), Rule::new("e", 1, MINUTE)];
            let answers = bench.together(&[vec![fine[0].hit()], request(), vec![fine[1].hit()]]);
            assert!(matches!(&answers[1], Err(StoreError::Reply(why)) if why.contains("WRONGTYPE")), "{answers:?}");
            assert!([0, 2].iter().all(|around| answers[*around].as_ref().is_ok_and(|told| told.admitted)), "{answers:?}");
            fine.iter().for_each(|rule| drop(bench.server().command(&["DEL", &rule.key()])));
            assert_eq!(bench.contents(), before);
            bench.server().command(&["RENAME", "kept", &broken.key()]);
        }
        assert!(bench.decide(&request()).admitted);
        assert_eq!(rules.map(|rule| bench.used(rule)), [2, 2, 2]);
    }
}

#[test]
fn requests_in_flight_together_are_one_call_of_the_script() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 40, MINUTE);
    bench.ask(&rule.hit());
    let before = bench.server().script_calls().0;
    let requests: Vec<_> = (0..64).map(|_| vec![rule.hit()]).collect();
    let admitted = bench.together(&requests).into_iter().filter(|answer| answer.as_ref().is_ok_and(|verdict| verdict.admitted)).count();
    assert_eq!(admitted, 39);
    assert_eq!(bench.server().script_calls().0, before + 1);
}

#[test]
fn a_script_that_redis_has_forgotten_is_sent_again_and_counts_once() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 9, MINUTE);
    for round in 1..4 {
        bench.server().command(&["SCRIPT", "FLUSH"]);
        assert!(bench.ask(&rule.hit()).0);
        assert_eq!(bench.used(rule), round);
    }
}

#[test]
fn a_connection_that_redis_has_closed_is_opened_anew() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 100, MINUTE);
    bench.ask(&rule.hit());
    bench.server().command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    // Idle for longer than a connection is trusted to live; the next call finds out and connects, and nobody notices.
    std::thread::sleep(Duration::from_millis(600));
    assert!(bench.ask(&rule.hit()).0);
    assert_eq!(bench.used(rule), 2);
}

#[test]
fn a_store_whose_runtime_is_gone_in_the_middle_of_a_batch_serves_another() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 100, MINUTE);
    bench.server().command(&["CLIENT", "PAUSE", "300", "ALL"]);
    let gone = runtime();
    let cut = gone.block_on(bench.store.decide(&[rule.hit()], Some(Duration::from_millis(50))));
    assert!(matches!(cut, Err(StoreError::Deadline(_))), "{cut:?}");
    drop(gone);
    assert!(bench.ask(&rule.hit()).0);
}

#[test]
fn a_caller_that_goes_away_leaves_its_hits_counted_once_and_whole_or_not_at_all() {
    let bench = Bench::redis();
    let (mut whole, mut none) = (0, 0);
    for polls in 0..12 {
        bench.server().command(&["FLUSHALL"]);
        let rules = [Rule::new("first", 5, MINUTE), Rule::new("second", 5, MINUTE), Rule::new("third", 5, MINUTE)];
        let hits: Vec<_> = rules.iter().enumerate().map(|(descriptor, rule)| at(descriptor, rule.hit())).collect();
        bench.runtime.block_on(async { poll_and_drop(Box::pin(bench.store.decide(&hits, None)), polls).await });
        bench.runtime.block_on(bench.store.drain());
        let used = rules.map(|rule| bench.used(rule));
        match used {
            [1, 1, 1] => whole += 1,
            [0, 0, 0] => none += 1,
            half => panic!("after {polls} polls: {half:?}"),
        }
    }
    assert!(whole > 0 && none > 0, "both were seen: {whole} {none}");
}

#[test]
fn when_time_goes_back_by_less_than_a_window_hits_keep_their_times() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 2, MINUTE);
    bench.ask(&rule.hit());
    bench.clock.set(START - 20 * SECOND);
    // Recorded at the newest entry's time, since a counter's time never goes back.
    assert!(bench.ask(&rule.hit()).0);
    let (admitted, tally) = bench.ask(&rule.hit());
    assert_eq!((admitted, tally.reset), (false, Duration::from_secs(80)));
    bench.clock.set(START + MINUTE - 1);
    assert!(!bench.ask(&rule.hit()).0);
    bench.clock.set(START + MINUTE);
    assert!(bench.ask(&rule.hits(2)).0);
}

#[test]
fn when_time_goes_back_by_more_than_a_window_hits_move_to_one_window_from_now() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 2, MINUTE);
    for _ in 0..2 {
        bench.ask(&rule.hit());
        bench.clock.step(SECOND);
    }
    let back = START - DAY;
    bench.clock.set(back);
    let (admitted, tally) = bench.ask(&rule.hit());
    assert_eq!((admitted, tally.reset), (false, Duration::from_secs(120)), "at most two windows");
    bench.clock.set(back + 2 * MINUTE - 1);
    assert!(!bench.ask(&rule.hit()).0);
    bench.clock.set(back + 2 * MINUTE);
    assert!(bench.ask(&rule.hits(2)).0);
    assert_eq!(bench.used(rule), 2);
}

#[test]
fn totals_run_over_2_to_the_53_without_a_trace() {
    let bench = Bench::redis();
    let rule = Rule::new("a", Limit::MOST, MINUTE).entries(4);
    for round in 0..40 {
        assert!(bench.ask(&rule.hits(Limit::MOST)).0, "round {round}");
        assert!(!bench.ask(&rule.hit()).0);
        if round % 3 == 0 {
            // Freed by a refund within the same entry, so that the running total goes on.
            assert!(bench.ask(&rule.refund(Limit::MOST - 1)).0);
            assert!(bench.ask(&rule.hits(Limit::MOST - 1)).0);
            assert!(!bench.ask(&rule.hit()).0);
        }
        assert_eq!(bench.used(rule), Limit::MOST);
        bench.ask(&rule.refund(Limit::MOST - 1));
        bench.clock.step(1_000);
        assert!(bench.ask(&rule.hit()).0, "a new entry, on top of the running total");
        bench.ask(&rule.refund(2));
        assert_eq!(bench.used(rule), 0);
    }
}
