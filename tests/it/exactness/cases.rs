//! One behaviour suite, run over every store and, where it says what all algorithms have in common, over each of them:
//! small cases with a name each. What is an algorithm's own is in `buckets.rs` and `windows.rs`, and of the log here.

use super::*;

/// Runs a case on every store by every algorithm.
fn by_every_algorithm(case: impl Fn(&Bench, Algorithm)) {
    for algorithm in Algorithm::ALL {
        eprintln!("by {algorithm:?}"); // shown where the case fails
        on_every_store(|bench| case(bench, algorithm));
    }
}

fn at(descriptor: usize, hit: Hit<'static>) -> Hit<'static> {
    Hit { descriptor, ..hit }
}

#[test]
fn a_60_second_rule_says_60_after_its_first_hit_and_admits_again_exactly_one_window_later() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 1, MINUTE);
        let (admitted, tally) = bench.ask(&rule.hit());
        assert_eq!((admitted, tally), (true, Tally { over: false, used: 1, remaining: 0, reset: Duration::from_secs(60) }));
        bench.clock.step(MINUTE - 1);
        let (admitted, tally) = bench.ask(&rule.hit());
        assert_eq!((admitted, tally), (false, Tally { over: true, used: 1, remaining: 0, reset: Duration::from_micros(1) }));
        bench.clock.step(1);
        assert!(bench.ask(&rule.hit()).0);
        assert!(!bench.ask(&rule.hit()).0);
    });
}

#[test]
fn any_number_of_hits_in_one_microsecond_are_counted_one_by_one() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", 100, SECOND).by(algorithm);
        let admitted = (0..300).filter(|_| bench.ask(&rule.hit()).0).count();
        assert_eq!(admitted, 100);
        bench.clock.step(SECOND);
        let tally = bench.ask(&rule.hits(100)).1;
        assert_eq!((tally.over, tally.used, tally.remaining), (false, 100, 0));
    });
}

#[test]
fn limit_0_denies_everything_even_a_peek() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", 0, MINUTE).by(algorithm);
        for cost in [0, 1, 2, 1 << 63] {
            assert_eq!(bench.ask(&rule.hits(cost)), (false, Tally { over: true, used: 0, remaining: 0, reset: Duration::from_secs(60) }));
        }
    });
}

#[test]
fn a_cost_equal_to_the_limit_fits_once_and_one_above_it_never() {
    by_every_algorithm(|bench, algorithm| {
        for (action, limit) in [("small", 5), ("coarse", 1_000), ("largest", Limit::MOST)] {
            let rule = Rule::new(action, limit, MINUTE).by(algorithm);
            assert_eq!(bench.ask(&rule.hits(limit + 1)).1, Tally { over: true, used: 0, remaining: limit, reset: Duration::from_secs(60) });
            let (admitted, tally) = bench.ask(&rule.hits(limit));
            assert!(admitted && tally.remaining == 0, "{tally:?}");
            assert!(!bench.ask(&rule.hit()).0);
        }
    });
}

#[test]
fn a_cost_of_2_to_the_63_never_fits_and_records_nothing_even_as_a_charge() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", Limit::MOST, MINUTE).by(algorithm);
        for cost in [(1 << 52) + 1, 1 << 63, u64::MAX] {
            assert!(!bench.ask(&rule.hits(cost)).0);
            assert!(!bench.ask(&rule.charge(cost)).0);
        }
        assert_eq!(bench.used(rule), 0);
    });
}

#[test]
fn of_a_denied_request_nothing_is_recorded_in_any_counter() {
    by_every_algorithm(|bench, algorithm| {
        let (wide, narrow) = (Rule::new("wide", 10, MINUTE).by(algorithm), Rule::new("narrow", 1, MINUTE).by(algorithm));
        assert!(bench.decide(&[at(0, wide.hit()), at(1, narrow.hit())]).admitted);
        let verdict = bench.decide(&[at(0, wide.hits(3)), at(1, narrow.hit())]);
        assert!(!verdict.admitted && !verdict.tallies[0].over && verdict.tallies[1].over);
        assert_eq!(verdict.tallies[0].remaining, 9, "what is left without the request");
        assert_eq!((bench.used(wide), bench.used(narrow)), (1, 1));
    });
}

#[test]
fn the_same_counter_twice_in_a_request_is_two_hits() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", 3, MINUTE).by(algorithm);
        assert!(bench.decide(&[at(0, rule.hit()), at(1, rule.hit())]).admitted);
        let verdict = bench.decide(&[at(0, rule.hit()), at(1, rule.hit())]);
        assert!(!verdict.admitted);
        assert_eq!(verdict.tallies.iter().map(|tally| tally.over).collect::<Vec<_>>(), [false, true]);
        assert_eq!(bench.used(rule), 2);
    });
}

#[test]
fn shadow_never_blocks_and_is_recorded_only_where_it_fits() {
    by_every_algorithm(|bench, algorithm| {
        let (watched, enforced) = (Rule::new("watched", 1, MINUTE).by(algorithm), Rule::new("enforced", 9, MINUTE).by(algorithm));
        for round in 1..4 {
            let shadow = Hit { kind: Kind::Shadow, ..watched.hit() };
            let verdict = bench.decide(&[at(0, shadow), at(1, enforced.hit())]);
            assert!(verdict.admitted && verdict.tallies[0].over == (round > 1));
            assert_eq!((bench.used(watched), bench.used(enforced)), (1, round));
        }
    });
}

#[test]
fn a_charge_that_does_not_fit_is_recorded_and_the_next_peek_is_denied_until_it_has_left() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("tokens", 100, MINUTE).by(algorithm);
        assert!(bench.ask(&rule.charge(90)).0);
        let (admitted, tally) = bench.ask(&rule.charge(50));
        assert!(!admitted && tally.over);
        assert_eq!(bench.used(rule), 140);
        let (admitted, tally) = bench.ask(&rule.hits(0));
        assert!(!admitted);
        bench.clock.step(tally.reset.as_micros() as u64 - 1);
        assert!(!bench.ask(&rule.hits(0)).0);
        bench.clock.step(1);
        assert!(bench.ask(&rule.hits(0)).0);
    });
}

#[test]
fn refunds_take_the_oldest_hits_and_never_go_below_zero() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 5, MINUTE);
        bench.ask(&rule.hits(2));
        bench.clock.step(10 * SECOND);
        bench.ask(&rule.hits(3));
        let (admitted, tally) = bench.ask(&rule.refund(2));
        assert_eq!((admitted, tally), (true, Tally { over: false, used: 3, remaining: 2, reset: Duration::from_secs(60) }));
        assert!(bench.ask(&rule.refund(1 << 52)).0);
        assert_eq!(bench.used(rule), 0);
        assert!(bench.ask(&rule.hits(5)).0 && !bench.ask(&rule.hit()).0);
    });
}

#[test]
fn a_peek_and_a_denied_hit_write_nothing() {
    by_every_algorithm(|bench, algorithm| {
        let (rule, nothing) = (Rule::new("a", 2, MINUTE).by(algorithm), Rule::new("nothing", 0, MINUTE).by(algorithm));
        bench.ask(&rule.hits(0));
        bench.ask(&nothing.hit());
        bench.ask(&nothing.refund(1));
        assert!(bench.contents().is_empty() || bench.contents() == "0", "no counter was made: {}", bench.contents());
        bench.ask(&rule.hit());
        bench.clock.step(SECOND);
        bench.ask(&rule.hit());
        let before = bench.contents();
        for cost in [0, 1, 2, 3] {
            bench.clock.step(1);
            assert!(!bench.ask(&rule.hits(cost)).0);
        }
        assert_eq!(bench.contents(), before);
    });
}

#[test]
fn a_denied_hit_leaves_even_what_has_left_a_log_as_it_is() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 2, MINUTE);
        bench.ask(&rule.hit());
        bench.clock.step(SECOND);
        bench.ask(&rule.hit());
        let before = bench.contents();
        bench.clock.step(MINUTE - SECOND);
        assert!(!bench.ask(&rule.hits(2)).0);
        assert_eq!(bench.contents(), before);
    });
}

#[test]
fn whoever_waits_exactly_as_long_as_told_passes_and_a_microsecond_less_is_too_early() {
    by_every_algorithm(|bench, algorithm| {
        for (cost, action) in [(1, "one"), (5, "half"), (10, "all")] {
            let rule = Rule::new(action, 10, 7 * SECOND).by(algorithm);
            for _ in 0..10 {
                bench.ask(&rule.hit());
                bench.clock.step(1_003);
            }
            let (admitted, tally) = bench.ask(&rule.hits(cost));
            assert!(!admitted, "{action}: nothing is left");
            bench.clock.step(tally.reset.as_micros() as u64 - 1);
            assert!(!bench.ask(&rule.hits(cost)).0, "{action}");
            bench.clock.step(1);
            assert!(bench.ask(&rule.hits(cost)).0, "{action}");
        }
    });
}

#[test]
fn refunds_of_any_algorithm_make_room_and_never_go_below_zero() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", 5, MINUTE).by(algorithm);
        bench.ask(&rule.hits(5));
        let (admitted, tally) = bench.ask(&rule.refund(2));
        assert_eq!((admitted, tally.over, tally.used, tally.remaining), (true, false, 3, 2));
        assert!(bench.ask(&rule.refund(1 << 52)).0);
        assert_eq!(bench.used(rule), 0);
        assert!(bench.ask(&rule.hits(5)).0 && !bench.ask(&rule.hit()).0);
    });
}

#[test]
fn a_refund_in_the_request_itself_makes_room_for_what_comes_after_it() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", 5, MINUTE).by(algorithm);
        bench.ask(&rule.hits(5));
        let verdict = bench.decide(&[at(0, rule.hit()), at(1, rule.refund(2)), at(2, rule.hits(2))]);
        assert!(!verdict.admitted && verdict.tallies[0].over && !verdict.tallies[2].over);
        assert_eq!(verdict.tallies[0].reset, Duration::ZERO, "by now it would fit");
        assert_eq!(bench.used(rule), 3);
    });
}

#[test]
fn another_algorithm_is_another_counter_and_one_request_may_mix_them() {
    on_every_store(|bench| {
        let [log, bucket, fixed] = Algorithm::ALL.map(|algorithm| Rule::new("a", 3, MINUTE).by(algorithm));
        assert!(bench.ask(&log.hits(2)).0);
        assert_eq!([log, bucket, fixed].map(|rule| bench.used(rule)), [2, 0, 0]);
        let all = |cost| [at(0, log.hits(cost)), at(1, bucket.hits(cost)), at(2, fixed.hits(cost))];
        let verdict = bench.decide(&all(2));
        assert!(!verdict.admitted);
        assert_eq!(verdict.tallies.iter().map(|tally| tally.over).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!([log, bucket, fixed].map(|rule| bench.used(rule)), [2, 0, 0], "a denial by one records nothing in the others");
        assert!(bench.decide(&all(1)).admitted);
        assert_eq!([log, bucket, fixed].map(|rule| bench.used(rule)), [3, 1, 1]);
    });
}

#[test]
fn a_changed_limit_judges_the_hits_already_recorded() {
    by_every_algorithm(|bench, algorithm| {
        let rule = Rule::new("a", 5, MINUTE).by(algorithm);
        assert!(bench.ask(&rule.hits(5)).0);
        assert!(!bench.ask(&Rule { limit: 3, ..rule }.hit()).0);
        let (admitted, tally) = bench.ask(&Rule { limit: 7, ..rule }.hit());
        assert!(admitted && tally.remaining == 1);
    });
}

#[test]
fn the_wait_for_a_large_cost_is_the_time_until_enough_hits_have_left() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 10, MINUTE);
        for _ in 0..10 {
            bench.ask(&rule.hit());
            bench.clock.step(SECOND);
        }
        for cost in 1..=10 {
            let wait = bench.ask(&rule.hits(cost)).1.reset;
            assert_eq!(wait, Duration::from_secs(60 - 10 + cost - 1), "of cost {cost}");
        }
    });
}
