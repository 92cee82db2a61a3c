//! One behaviour suite, run over every store: small cases with a name each.

use super::*;

/// Runs a case on both stores.
fn on_every_store(case: impl Fn(&Bench)) {
    for (name, bench) in [("memory", Bench::memory()), ("redis", Bench::redis())] {
        eprintln!("on {name}"); // shown where the case fails
        case(&bench);
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
    on_every_store(|bench| {
        let rule = Rule::new("a", 100, SECOND);
        let admitted = (0..300).filter(|_| bench.ask(&rule.hit()).0).count();
        assert_eq!(admitted, 100);
        bench.clock.step(SECOND);
        assert_eq!(bench.ask(&rule.hits(100)).1, Tally { over: false, used: 100, remaining: 0, reset: Duration::from_secs(1) });
    });
}

#[test]
fn limit_0_denies_everything_even_a_peek() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 0, MINUTE);
        for cost in [0, 1, 2, 1 << 63] {
            assert_eq!(bench.ask(&rule.hits(cost)), (false, Tally { over: true, used: 0, remaining: 0, reset: Duration::from_secs(60) }));
        }
    });
}

#[test]
fn a_cost_equal_to_the_limit_fits_once_and_one_above_it_never() {
    on_every_store(|bench| {
        for (action, limit) in [("small", 5), ("coarse", 1_000), ("largest", Limit::MOST)] {
            let rule = Rule::new(action, limit, MINUTE);
            assert_eq!(bench.ask(&rule.hits(limit + 1)).1, Tally { over: true, used: 0, remaining: limit, reset: Duration::from_secs(60) });
            let (admitted, tally) = bench.ask(&rule.hits(limit));
            assert!(admitted && tally.remaining == 0, "{tally:?}");
            assert!(!bench.ask(&rule.hit()).0);
        }
    });
}

#[test]
fn a_cost_of_2_to_the_63_never_fits_and_records_nothing_even_as_a_charge() {
    on_every_store(|bench| {
        let rule = Rule::new("a", Limit::MOST, MINUTE);
        for cost in [(1 << 52) + 1, 1 << 63, u64::MAX] {
            assert!(!bench.ask(&rule.hits(cost)).0);
            assert!(!bench.ask(&rule.charge(cost)).0);
        }
        assert_eq!(bench.used(rule), 0);
    });
}

#[test]
fn of_a_denied_request_nothing_is_recorded_in_any_counter() {
    on_every_store(|bench| {
        let (wide, narrow) = (Rule::new("wide", 10, MINUTE), Rule::new("narrow", 1, MINUTE));
        assert!(bench.decide(&[at(0, wide.hit()), at(1, narrow.hit())]).admitted);
        let verdict = bench.decide(&[at(0, wide.hits(3)), at(1, narrow.hit())]);
        assert!(!verdict.admitted && !verdict.tallies[0].over && verdict.tallies[1].over);
        assert_eq!(verdict.tallies[0].remaining, 9, "what is left without the request");
        assert_eq!((bench.used(wide), bench.used(narrow)), (1, 1));
    });
}

#[test]
fn the_same_counter_twice_in_a_request_is_two_hits() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 3, MINUTE);
        assert!(bench.decide(&[at(0, rule.hit()), at(1, rule.hit())]).admitted);
        let verdict = bench.decide(&[at(0, rule.hit()), at(1, rule.hit())]);
        assert!(!verdict.admitted);
        assert_eq!(verdict.tallies.iter().map(|tally| tally.over).collect::<Vec<_>>(), [false, true]);
        assert_eq!(bench.used(rule), 2);
    });
}

#[test]
fn shadow_never_blocks_and_is_recorded_only_where_it_fits() {
    on_every_store(|bench| {
        let (watched, enforced) = (Rule::new("watched", 1, MINUTE), Rule::new("enforced", 9, MINUTE));
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
    on_every_store(|bench| {
        let rule = Rule::new("tokens", 100, MINUTE);
        assert!(bench.ask(&rule.charge(90)).0);
        let (admitted, tally) = bench.ask(&rule.charge(50));
        assert!(!admitted && tally.over);
        assert_eq!(bench.used(rule), 140);
        let (admitted, tally) = bench.ask(&rule.hits(0));
        assert!(!admitted);
        // The 90 leave one window after they were made: then 50 are left, and one more fits.
        assert_eq!(tally.reset, Duration::from_secs(60));
        bench.clock.step(MINUTE);
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
    on_every_store(|bench| {
        let (rule, nothing) = (Rule::new("a", 2, MINUTE), Rule::new("nothing", 0, MINUTE));
        bench.ask(&rule.hits(0));
        bench.ask(&nothing.hit());
        assert!(bench.contents().is_empty() || bench.contents() == "0", "no counter was made: {}", bench.contents());
        bench.ask(&rule.hit());
        bench.clock.step(SECOND);
        bench.ask(&rule.hit());
        let before = bench.contents();
        for cost in [0, 1, 2, 3] {
            bench.clock.step(1);
            assert!(!bench.ask(&rule.hits(cost)).0);
        }
        // The first hit has left: a denied hit leaves even that as it is.
        bench.clock.step(MINUTE - SECOND);
        assert!(!bench.ask(&rule.hits(2)).0);
        assert_eq!(bench.contents(), before);
    });
}

#[test]
fn a_changed_limit_judges_the_hits_already_recorded() {
    on_every_store(|bench| {
        let rule = Rule::new("a", 5, MINUTE);
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
