//! Denials that a Redis store remembers: they change no answer but by the frees that it can't know of, and spare it the
//! calls.

use super::*;

/// A store that remembers denials, on a Redis and a clock of its own.
fn bench() -> Bench {
    let mut bench = Bench::redis();
    bench.store = remembering(bench.server(), &bench.clock);
    bench
}

fn remembering(server: &RedisServer, clock: &SteppedClock) -> Store {
    let options = RedisOptions { clock: Clock::Stepped(clock.clone()), ..RedisOptions::new(server.url(), TIMEOUT) };
    Store::Redis(Redis::new(&options, RedisSeries::detached()).expect("the address can be read"))
}

impl Bench {
    /// How many batches Redis has decided.
    fn calls(&self) -> u64 {
        self.server().script_calls().0
    }
}

#[test]
fn a_flood_of_denied_hits_asks_redis_once() {
    let bench = bench();
    for rule in [Rule::new("log", 5, MINUTE), Rule::new("tb", 5, MINUTE).by(BUCKET), Rule::new("fw", 5, MINUTE).by(Algorithm::FixedWindow)]
    {
        for _ in 0..5 {
            assert!(bench.ask(&rule.hit()).0);
        }
        let (admitted, first) = bench.ask(&rule.hit());
        let calls = bench.calls();
        for _ in 0..1_000 {
            assert_eq!(bench.ask(&rule.hit()), (admitted, first));
        }
        assert_eq!((admitted, bench.calls()), (false, calls), "{}", rule.action);
    }
}

#[test]
fn a_denied_client_passes_at_the_moment_at_which_the_store_would_let_it() {
    let bench = bench();
    for rule in [
        Rule::new("log", 3, 4 * SECOND),
        Rule::new("tb", 3, 4 * SECOND).by(BUCKET),
        Rule::new("fw", 3, 4 * SECOND).by(Algorithm::FixedWindow),
    ] {
        while bench.ask(&rule.hit()).0 {}
        let wait = bench.ask(&rule.hit()).1.reset.as_micros() as u64;
        bench.clock.step(wait - 1);
        assert!(!bench.ask(&rule.hit()).0, "{}", rule.action);
        bench.clock.step(1);
        assert!(bench.ask(&rule.hit()).0, "{}", rule.action);
    }
}

#[test]
fn a_smaller_cost_a_changed_limit_and_a_refund_ask_again() {
    let bench = bench();
    let rule = Rule::new("a", 5, MINUTE);
    assert!(bench.ask(&rule.hits(3)).0);
    assert!(!bench.ask(&rule.hits(3)).0 && !bench.ask(&rule.hits(4)).0);
    assert!(bench.ask(&rule.hits(2)).0, "a smaller cost fits");
    assert!(!bench.ask(&rule.hit()).0);
    assert!(bench.ask(&Rule { limit: 6, ..rule }.hit()).0, "a raised limit");
    assert!(!bench.ask(&rule.hit()).0);
    bench.ask(&rule.refund(2));
    assert!(bench.ask(&rule.hit()).0, "a refund made room");
    assert!(!bench.ask(&rule.hit()).0);
    assert!(!bench.ask(&rule.charge(1)).0);
    assert_eq!(
        Bench { store: redis_store(bench.server(), &bench.clock), server: None, runtime: runtime(), clock: bench.clock.clone() }.used(rule),
        6,
        "a hit that counts when denied is recorded"
    );
}

#[test]
fn what_another_server_frees_is_seen_five_seconds_late_at_most() {
    let bench = bench();
    let rule = Rule::new("a", 1, DAY);
    assert!(bench.ask(&rule.hit()).0 && !bench.ask(&rule.hit()).0);
    let other = redis_store(bench.server(), &bench.clock);
    bench.runtime.block_on(other.decide(&[rule.refund(1)], None)).unwrap();
    bench.clock.step(5 * SECOND - 1);
    let (admitted, tally) = bench.ask(&rule.hit());
    assert!(!admitted);
    assert!(tally.reset > Duration::from_secs(80_000), "the wait told is the whole one: {tally:?}");
    bench.clock.step(1);
    assert!(bench.ask(&rule.hit()).0);
}

#[test]
fn a_connection_made_anew_has_denials_forgotten() {
    let mut bench = bench();
    let rule = Rule::new("a", 1, DAY);
    assert!(bench.ask(&rule.hit()).0 && !bench.ask(&rule.hit()).0);
    // It comes back empty while the connection is idle, which somebody else finds out.
    let server = bench.server.as_mut().expect("this bench has a Redis");
    server.kill();
    server.restart();
    std::thread::sleep(Duration::from_millis(700));
    assert!(bench.ask(&Rule::new("b", 1, DAY).hit()).0);
    assert!(bench.ask(&rule.hit()).0);
}

#[test]
fn a_denial_answers_for_the_whole_request_only_where_it_denies_the_request() {
    let bench = bench();
    let (full, free) = (Rule::new("full", 1, MINUTE), Rule::new("free", 5, MINUTE));
    let of = |descriptor, kind, rule: Rule| Hit { descriptor, kind, ..rule.hit() };
    assert!(bench.ask(&full.hit()).0 && !bench.ask(&full.hit()).0);
    let calls = bench.calls();
    let verdict = bench.decide(&[of(0, Kind::Enforce, free), of(1, Kind::Enforce, full)]);
    assert!(!verdict.admitted && verdict.by_denial && bench.calls() == calls);
    assert_eq!(verdict.tallies[0], Tally { over: false, used: 0, remaining: 5, reset: Duration::ZERO });
    assert!(verdict.tallies[1].over);
    for (kinds, admitted) in
        [([Kind::Enforce, Kind::Shadow], true), ([Kind::Quota, Kind::Quota], true), ([Kind::Quota, Kind::QuotaShadow], true)]
    {
        let verdict = bench.decide(&[of(0, kinds[0], free), of(1, kinds[1], full)]);
        assert_eq!((verdict.admitted, verdict.by_denial), (admitted, false), "{kinds:?}");
    }
    assert_eq!(bench.used(free), 3, "each of them was recorded");
}

/// One server asks alone, so nothing is freed but by itself: with and without denials all answers must be the same.
#[test]
fn a_random_history_has_the_same_answers_with_and_without_denials() {
    let bench = bench();
    let memory = memory_store(&bench.clock);
    let rules = [
        Rule::new("log", 5, 10 * SECOND),
        Rule::new("coarse", 200, 10 * SECOND).entries(10),
        Rule::new("tb", 4, 10 * SECOND).burst(7),
        Rule::new("fw", 5, 10 * SECOND).by(Algorithm::FixedWindow),
    ];
    let (mut state, mut by_denial) = (5_u64, 0);
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..6_000 {
        bench.clock.step(random(300_000));
        let mut hits = Vec::new();
        for descriptor in 0..=random(2) as usize {
            let rule = rules[random(4) as usize];
            let cost = if rule.limit == 200 { 1 + random(60) } else { random(4) };
            let kind = [Kind::Enforce, Kind::Enforce, Kind::Shadow, Kind::Quota][random(4) as usize];
            let hit = match random(12) {
                0 => rule.refund(cost),
                1 => rule.charge(cost),
                _ => rule.hits(cost),
            };
            hits.push(Hit { descriptor, kind, ..hit });
        }
        let expected = bench.runtime.block_on(memory.decide(&hits, None)).unwrap();
        let answer = bench.decide(&hits);
        assert_eq!(answer.admitted, expected.admitted, "step {step}: {hits:?}\n{answer:?}\n{expected:?}");
        if answer.by_denial {
            by_denial += 1;
            for (told, known) in answer.tallies.iter().zip(&expected.tallies).filter(|(told, _)| told.over) {
                assert!(known.over, "step {step}: {told:?} {known:?}");
            }
        } else {
            assert_eq!(answer.tallies, expected.tallies, "step {step}");
        }
    }
    assert!(by_denial > 500, "only {by_denial} were answered by a denial");
}
