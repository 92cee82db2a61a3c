//! What is a fixed window's own: where it begins and ends, what it tells, and its form in Redis.

use super::*;

fn fixed(action: &'static str, limit: u64, window: u64) -> Rule {
    Rule::new(action, limit, window).by(Algorithm::FixedWindow)
}

/// How long the window that START lies in goes on.
fn to_the_end(window: u64) -> u64 {
    window - START % window
}

fn tally(over: bool, used: u64, remaining: u64, micros: u64) -> Tally {
    Tally { over, used, remaining, reset: Duration::from_micros(micros) }
}

impl Bench {
    /// A fixed window's value in Redis: its number, and the hits in it.
    fn counted(&self, rule: Rule) -> [u64; 2] {
        let Value::BulkString(value) = self.server().command(&["GET", &rule.key()]) else { panic!("the window is a string") };
        assert_eq!(value.len(), 14);
        [0, 7].map(|at| value[at..at + 7].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

#[test]
fn windows_begin_at_whole_multiples_of_their_length_since_the_epoch() {
    on_every_store(|bench| {
        for (action, window) in [("second", SECOND), ("odd", 7 * SECOND), ("day", DAY), ("month", 30 * DAY), ("decade", 3_650 * DAY)] {
            bench.clock.set(START);
            let rule = fixed(action, 2, window);
            assert!(bench.ask(&rule.hits(2)).0);
            bench.clock.step(to_the_end(window) - 1);
            assert_eq!(bench.ask(&rule.hit()), (false, tally(true, 2, 0, 1)), "{action}");
            bench.clock.step(1);
            assert_eq!(bench.clock.now() % window, 0);
            assert_eq!(bench.ask(&rule.hits(2)), (true, tally(false, 2, 0, window)), "{action}");
        }
    });
}

#[test]
fn it_tells_what_is_left_and_when_the_window_ends() {
    on_every_store(|bench| {
        let (rule, left) = (fixed("a", 5, MINUTE), to_the_end(MINUTE));
        assert_eq!(bench.ask(&rule.hits(0)).1, tally(false, 0, 5, left), "even when nothing is counted");
        assert_eq!(bench.ask(&rule.hits(3)).1, tally(false, 3, 2, left));
        assert_eq!(bench.ask(&rule.hits(3)).1, tally(true, 3, 2, left));
        assert_eq!(bench.ask(&rule.hits(6)).1, tally(true, 3, 2, MINUTE), "never: it says the window");
        assert_eq!(bench.ask(&rule.refund(1)).1, tally(false, 2, 3, left));
        assert_eq!(bench.ask(&rule.charge(4)).1, tally(true, 6, 0, left));
        bench.clock.step(left);
        assert_eq!(bench.ask(&rule.hits(5)).1, tally(false, 5, 0, MINUTE), "a debt ends with its window");
    });
}

#[test]
fn across_an_edge_it_admits_twice_the_limit() {
    on_every_store(|bench| {
        let rule = fixed("a", 10, MINUTE);
        bench.clock.step(to_the_end(MINUTE) - 1);
        let admitted = (0..40)
            .filter(|number| {
                bench.clock.step(u64::from(*number == 20));
                bench.ask(&rule.hit()).0
            })
            .count();
        assert_eq!(admitted, 20);
    });
}

#[test]
fn in_redis_it_is_two_integers_and_an_empty_one_is_no_key() {
    let bench = Bench::redis();
    let rule = fixed("a", 5, MINUTE);
    bench.ask(&rule.hits(3));
    assert_eq!(bench.counted(rule), [START / MINUTE, 3]);
    bench.clock.step(MINUTE);
    bench.ask(&rule.hit());
    assert_eq!(bench.counted(rule), [START / MINUTE + 1, 1]);
    bench.ask(&rule.refund(7));
    assert_eq!(bench.keys(), Vec::<String>::new());
}

#[test]
fn its_key_expires_when_the_window_ends() {
    let bench = Bench::redis();
    let rule = fixed("a", 5, MINUTE);
    for _ in 0..3 {
        let end = bench.clock.now() / MINUTE * MINUTE + MINUTE;
        for hit in [rule.hit(), rule.charge(9), rule.refund(1), rule.refund(1 << 52), rule.hit()] {
            bench.ask(&hit);
            bench.clock.step(3);
            if bench.used(rule) > 0 {
                assert_eq!(bench.expires_at(rule), end);
            }
        }
        bench.clock.step(MINUTE);
    }
}

#[test]
fn when_time_goes_back_across_an_edge_the_later_window_stays_in_force() {
    let bench = Bench::redis();
    let rule = fixed("a", 2, MINUTE);
    let edge = START + to_the_end(MINUTE);
    bench.clock.set(edge);
    assert!(bench.ask(&rule.hit()).0);
    bench.clock.set(edge - SECOND);
    assert_eq!(bench.ask(&rule.hit()), (true, tally(false, 2, 0, 61 * SECOND)));
    assert_eq!(bench.ask(&rule.hit()), (false, tally(true, 2, 0, 61 * SECOND)));
    bench.clock.set(edge + MINUTE);
    assert!(bench.ask(&rule.hits(2)).0);
}

#[test]
fn when_time_goes_back_by_more_than_a_window_its_hits_move_to_the_next_window_from_then() {
    let bench = Bench::redis();
    let rule = fixed("a", 2, MINUTE);
    bench.ask(&rule.hits(2));
    let back = START - DAY;
    bench.clock.set(back);
    let wait = to_the_end(MINUTE) + MINUTE; // a day is a whole number of minutes
    assert_eq!(bench.ask(&rule.hit()), (false, tally(true, 2, 0, wait)), "at most two windows");
    assert_eq!(bench.counted(rule), [back / MINUTE + 1, 2]);
    bench.clock.set(back + wait - 1);
    assert!(!bench.ask(&rule.hit()).0);
    bench.clock.set(back + wait);
    assert!(bench.ask(&rule.hits(2)).0);
}
