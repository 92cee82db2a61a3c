//! What is a token bucket's own: its burst, what it tells, that it never drifts, what a changed limit makes of it, and its
//! form in Redis.

use super::*;

const YEAR: u64 = 365 * DAY;

/// A small generator (Knuth's MMIX constants), the same each time.
fn dice(state: &mut u64, bound: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 20) % bound
}

fn tally(over: bool, used: u64, remaining: u64, micros: u64) -> Tally {
    Tally { over, used, remaining, reset: Duration::from_micros(micros) }
}

impl Bench {
    /// A bucket's value in Redis: time, tat, part, limit.
    fn value(&self, rule: Rule) -> [u64; 4] {
        let Value::BulkString(value) = self.server().command(&["GET", &rule.key()]) else { panic!("the bucket is a string") };
        assert_eq!(value.len(), 28);
        [0, 7, 14, 21].map(|at| value[at..at + 7].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

#[test]
fn it_tells_what_is_left_and_when_there_is_room_for_one_hit_more() {
    on_every_store(|bench| {
        // A hit drains in 10 s.
        let rule = Rule::new("a", 6, MINUTE).burst(3);
        assert_eq!(bench.ask(&rule.hits(0)).1, tally(false, 0, 3, 0));
        assert_eq!(bench.ask(&rule.hit()).1, tally(false, 1, 2, 10 * SECOND));
        bench.clock.step(4 * SECOND);
        assert_eq!(bench.ask(&rule.hits(0)).1, tally(false, 1, 2, 6 * SECOND));
        assert_eq!(bench.ask(&rule.hits(2)).1, tally(false, 3, 0, 6 * SECOND));
        assert_eq!(bench.ask(&rule.hit()).1, tally(true, 3, 0, 6 * SECOND));
        assert_eq!(bench.ask(&rule.hits(3)).1, tally(true, 3, 0, 26 * SECOND));
        assert_eq!(bench.ask(&rule.hits(4)).1, tally(true, 3, 0, MINUTE), "never: it says the window");
        bench.clock.step(26 * SECOND);
        assert_eq!(bench.ask(&rule.hits(0)).1, tally(false, 0, 3, 0));
    });
}

#[test]
fn it_takes_its_burst_at_once_and_then_one_hit_for_each_that_drains() {
    on_every_store(|bench| {
        for (action, burst) in [("smaller", 2), ("equal", 10), ("larger", 25)] {
            let rule = Rule::new(action, 10, SECOND).burst(burst);
            let admitted = |times: u64| (0..times).filter(|_| bench.ask(&rule.hit()).0).count() as u64;
            assert_eq!(admitted(burst + 5), burst, "{action}");
            for _ in 0..20 {
                bench.clock.step(SECOND / 10);
                assert_eq!(admitted(2), 1, "{action}");
            }
        }
    });
}

#[test]
fn a_debt_of_denied_charges_is_the_burst_and_what_drains_in_a_window_at_most() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 10, MINUTE).burst(30);
        for _ in 0..5 {
            bench.ask(&rule.charge(35));
        }
        assert_eq!(bench.used(rule), 40);
        assert_eq!(bench.ask(&rule.hit()).1, tally(true, 40, 0, 66 * SECOND));
        assert_eq!(bench.ask(&rule.refund(15)).1, tally(false, 25, 5, 6 * SECOND));
    });
}

/// The bucket is never empty, so all that drains is used: by any time the burst and what has drained until then was
/// admitted, to the hit, however often it was asked.
#[test]
fn three_per_seven_seconds_admit_exactly_their_share_of_ten_years() {
    on_every_store(|bench| {
        // Each is asked in steps shorter than what its burst takes to drain.
        for (action, limit, window, burst, step, span) in [
            ("odd", 3, 7 * SECOND, 1_000_000, 10 * DAY, 10 * YEAR),
            ("long", Limit::MOST, 10 * YEAR, Limit::MOST / 100, 20 * DAY, 10 * YEAR),
            ("fast", 4_294_967_295, SECOND, 20_000_000_000_000, 4_000 * SECOND, 20 * DAY),
        ] {
            let rule = Rule::new(action, limit, window).burst(burst);
            let (started, mut admitted, mut state) = (bench.clock.now(), 0, 7);
            while bench.clock.now() < started + span {
                let left = bench.ask(&rule.hits(0)).1.remaining;
                assert!(left == 0 || bench.ask(&rule.hits(left)).0);
                assert!(!bench.ask(&rule.hit()).0, "that was all");
                admitted += u128::from(left);
                let elapsed = u128::from(bench.clock.now() - started);
                let share = u128::from(burst) + elapsed * u128::from(limit) / u128::from(window);
                assert_eq!(admitted, share, "{action} after {elapsed} us");
                bench.clock.step(1 + dice(&mut state, step));
            }
        }
    });
}

#[test]
fn hit_by_hit_each_is_admitted_at_the_microsecond_when_its_share_has_drained_and_not_before() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 3, 7 * SECOND).by(BUCKET);
        assert!(bench.ask(&rule.hits(3)).0);
        for hit in 1..=3_000_u64 {
            let due = START + (hit * 7 * SECOND).div_ceil(3);
            bench.clock.set(due - 1);
            assert_eq!(bench.ask(&rule.hit()).1.reset, Duration::from_micros(1), "hit {hit} is too early");
            bench.clock.set(due);
            assert!(bench.ask(&rule.hit()).0, "hit {hit} is due");
        }
    });
}

#[test]
fn a_changed_limit_finds_the_same_hits_and_drains_them_as_before_until_one_is_recorded_under_it() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 60, MINUTE).by(BUCKET);
        bench.ask(&rule.hits(40));
        bench.clock.step(SECOND / 2);
        // 39.5 hits, of which one drains a second.
        let (lower, higher) = (Rule { limit: 6, ..rule }, Rule { limit: 600, ..rule });
        assert_eq!(bench.ask(&lower.hit()).1, tally(true, 40, 0, 34 * SECOND + SECOND / 2));
        assert_eq!(bench.ask(&higher.hits(0)).1, tally(false, 40, 560, SECOND / 2));
        bench.clock.step(34 * SECOND + SECOND / 2 - 1);
        assert!(!bench.ask(&lower.hit()).0);
        bench.clock.step(1);
        // 5 hits, and a sixth: from now on one drains in 10 s.
        assert_eq!(bench.ask(&lower.hit()).1, tally(false, 6, 0, 10 * SECOND));
        bench.clock.step(5 * SECOND);
        // 5.5 hits, and ten: from now on ten drain in a second.
        assert_eq!(bench.ask(&higher.hits(10)).1, tally(false, 16, 584, SECOND / 20));
        bench.clock.step(SECOND / 20);
        assert_eq!(bench.ask(&rule.hits(0)).1, tally(false, 15, 45, SECOND / 10));
        // A limit of 0 denies all, and a refund under it gives back all the same.
        let nothing = Rule { limit: 0, ..rule };
        assert_eq!(bench.ask(&nothing.hit()).1, tally(true, 15, 0, MINUTE));
        assert_eq!(bench.ask(&nothing.refund(5)).1, tally(false, 10, 0, MINUTE));
        assert_eq!(bench.ask(&rule.hits(0)).1, tally(false, 10, 50, SECOND / 10));
    });
}

#[test]
fn no_change_of_limits_loses_or_makes_a_part_of_a_hit() {
    on_every_store(|bench| {
        let limits = [3, 7, 1_000_003, 4_294_967_295, Limit::MOST];
        let of = |limit| Rule::new("a", limit, 7 * SECOND).burst(1_000);
        bench.ask(&of(3).hits(900));
        for round in 0..200 {
            bench.ask(&of(limits[round % limits.len()]).hit());
            bench.ask(&of(limits[(round + 2) % limits.len()]).refund(1));
        }
        // A hit of 1 is there to say that three drain in seven seconds.
        bench.ask(&of(3).hit());
        assert_eq!(bench.ask(&of(3).hits(0)).1, tally(false, 901, 99, (7 * SECOND).div_ceil(3)));
        bench.clock.step(300 * 7 * SECOND);
        assert_eq!(bench.ask(&of(3).hits(0)).1.used, 1);
        bench.clock.step((7 * SECOND).div_ceil(3) - 1);
        assert_eq!(bench.ask(&of(3).hits(0)).1.used, 1);
        bench.clock.step(1);
        assert_eq!(bench.ask(&of(3).hits(0)).1.used, 0);
    });
}

#[test]
fn in_redis_it_is_four_integers_and_an_empty_one_is_no_key() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 3, 7 * SECOND).by(BUCKET);
    bench.ask(&rule.hit());
    // 7 s for 3 hits: one drains in 2,333,333 us and a third.
    assert_eq!(bench.value(rule), [START, START + 2_333_333, 1, 3]);
    bench.clock.step(1_000);
    bench.ask(&rule.hits(2));
    assert_eq!(bench.value(rule), [START + 1_000, START + 7 * SECOND, 0, 3]);
    bench.ask(&rule.refund(1));
    assert_eq!(bench.value(rule), [START + 1_000, START + 4_666_666, 2, 3]);
    bench.ask(&rule.refund(2));
    assert_eq!(bench.keys(), Vec::<String>::new());
}

#[test]
fn its_key_lives_until_it_is_empty_and_half_a_window_longer_at_most() {
    let bench = Bench::redis();
    for rule in [Rule::new("equal", 5, DAY).by(BUCKET), Rule::new("larger", 3, DAY).burst(10), Rule::new("smaller", 300, DAY).burst(10)] {
        let mut state = 29;
        for step in 0..300 {
            bench.clock.step(dice(&mut state, DAY / 12));
            let hit = match dice(&mut state, 10) {
                0 | 1 => rule.refund(1 + dice(&mut state, 3)),
                2 => rule.refund(1 << 52),
                3 | 4 => rule.charge(1 + dice(&mut state, rule.limit)),
                _ => rule.hits(1 + dice(&mut state, 2)),
            };
            bench.ask(&hit);
            if bench.keys().iter().all(|key| *key != rule.key()) {
                assert_eq!(bench.used(rule), 0, "step {step}");
                continue;
            }
            let (gone_at, [_, tat, ..]) = (bench.expires_at(rule), bench.value(rule));
            assert!(gone_at > tat, "step {step}: gone {} us too early", tat - gone_at);
            // A refund brings tat back, and leaves the expiry where it is where that is within the same step.
            assert!(gone_at <= tat + 2 * (DAY / 4) + 1_000, "step {step}: {} us too late", gone_at - tat);
        }
    }
}

#[test]
fn when_time_goes_back_by_less_than_a_window_it_stands_still_until_time_has_caught_up() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 2, MINUTE).by(BUCKET);
    bench.ask(&rule.hit());
    bench.clock.set(START - 20 * SECOND);
    assert_eq!(bench.ask(&rule.hit()).1, tally(false, 2, 0, 50 * SECOND));
    assert_eq!(bench.ask(&rule.hit()).1, tally(true, 2, 0, 50 * SECOND));
    bench.clock.set(START + 30 * SECOND - 1);
    assert!(!bench.ask(&rule.hit()).0);
    bench.clock.set(START + 30 * SECOND);
    assert!(bench.ask(&rule.hit()).0);
}

#[test]
fn when_time_goes_back_by_more_than_a_window_it_stands_still_for_one_window() {
    let bench = Bench::redis();
    let rule = Rule::new("a", 2, MINUTE).by(BUCKET);
    bench.ask(&rule.hits(2));
    let back = START - DAY;
    bench.clock.set(back);
    // It drains from back + 60 s on.
    assert_eq!(bench.ask(&rule.hit()).1, tally(true, 2, 0, 90 * SECOND));
    bench.clock.set(back + 90 * SECOND - 1);
    assert!(!bench.ask(&rule.hit()).0);
    bench.clock.set(back + 90 * SECOND);
    assert!(bench.ask(&rule.hit()).0);
    assert_eq!(bench.used(rule), 2);
}
