//! The log in Redis as the design lays it out, read past the store: the entries, the newest of them as the header, how many
//! there are, and an expiry that reaches until the newest has left.

use super::*;
use crate::model::Model;

/// A member: five integers of seven bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    time: u64,
    before: u64,
    after: u64,
    base: u64,
    first: u64,
}

/// Totals start anew at it.
const TOTALS: u64 = 1 << 53;

impl Bench {
    /// The entries of a rule's log, the newest first.
    fn log(&self, rule: Rule) -> Vec<Entry> {
        let Value::Array(found) = self.server().command(&["ZRANGE", &rule.key(), "0", "-1", "WITHSCORES"]) else {
            panic!("ZRANGE answers with a list")
        };
        found.chunks(2).map(Entry::read).collect()
    }
}

impl Entry {
    fn read(member_and_score: &[Value]) -> Self {
        let [Value::BulkString(member), Value::BulkString(score)] = member_and_score else {
            panic!("a member and its score, not {member_and_score:?}")
        };
        assert_eq!(member.len(), 35);
        let number = |at: usize| member[at * 7..at * 7 + 7].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let entry = Self { time: number(0), before: number(1), after: number(2), base: number(3), first: number(4) };
        let score: f64 = std::str::from_utf8(score).unwrap().parse().unwrap();
        assert_eq!(score, -(entry.time as f64), "the score is the time, so that the newest comes first");
        entry
    }

    fn used(self) -> u64 {
        (self.after + TOTALS - self.base) % TOTALS
    }
}

/// A small generator (Knuth's MMIX constants), the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn hit(&mut self, rule: Rule) -> Hit<'static> {
        match self.below(10) {
            0 | 1 => rule.refund(1 + self.below(3)),
            2 => rule.refund(1 << 52),
            3 | 4 => rule.charge(1 + self.below(rule.limit)),
            _ => rule.hits(1 + self.below(2)),
        }
    }
}

#[test]
fn the_newest_entry_says_what_is_used_and_when_the_oldest_counted_hit_was() {
    for (action, limit, entries) in [("exact", 8, 8), ("coarse", 40, 5)] {
        let (bench, mut model, mut dice) = (Bench::redis(), Model::default(), Dice(5));
        let rule = Rule::new(action, limit, MINUTE).entries(entries);
        for step in 0..1_000 {
            bench.clock.step(dice.below(15 * SECOND));
            let hit = dice.hit(rule);
            bench.ask(&hit);
            model.decide(bench.clock.now(), std::slice::from_ref(&hit));
            let (log, used) = (bench.log(rule), bench.used(rule));
            let leaving = model.leaving(&hit.counter);
            // What has left need not be written off before the next hit is recorded.
            if let (Some(header), Some(oldest)) = (log.first(), leaving.first())
                && header.first + MINUTE > bench.clock.now()
            {
                assert_eq!((header.used(), header.first + MINUTE), (used, *oldest), "step {step}: {header:?}");
            }
            for pair in log.windows(2) {
                assert!(pair[0].time > pair[1].time, "step {step}: one entry a tick, {pair:?}");
                assert_eq!(pair[0].before, pair[1].after, "step {step}: totals run on, {pair:?}");
            }
        }
    }
}

#[test]
fn refunds_and_charges_leave_no_more_than_twice_the_entries() {
    for (action, limit, entries) in [("two", 2, 2), ("three", 9, 3), ("exact", 10, 10), ("coarse", 1_000, 10)] {
        let (bench, mut dice, mut most) = (Bench::redis(), Dice(17), 0);
        let rule = Rule::new(action, limit, MINUTE).entries(entries);
        for _ in 0..1_500 {
            bench.clock.step(dice.below(2 * SECOND));
            bench.ask(&dice.hit(rule));
            most = most.max(bench.log(rule).len());
        }
        assert!((1..=2 * entries as usize).contains(&most), "{action}: {most} entries");
    }
}

#[test]
fn the_expiry_reaches_until_the_newest_entry_has_left() {
    let bench = Bench::redis();
    for (action, limit, entries) in [("exact", 5, 128), ("coarse", 300, 10)] {
        let rule = Rule::new(action, limit, DAY).entries(entries);
        let mut dice = Dice(29);
        for step in 0..400 {
            bench.clock.step(dice.below(DAY / 12));
            bench.ask(&dice.hit(rule));
            let Some(newest) = bench.log(rule).first().copied() else { continue };
            let (gone_at, left_at) = (bench.expires_at(rule), newest.time + DAY);
            assert!(gone_at >= left_at, "step {step}: gone {} us too early", left_at - gone_at);
            assert!(gone_at <= left_at + DAY / 4 + 1_000, "step {step}: gone {} us too late", gone_at - left_at);
        }
    }
}
