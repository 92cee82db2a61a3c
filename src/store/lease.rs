//! Leases: hits taken from Redis ahead of use, which this server spends without asking. A lease was recorded at the end of a
//! tick and is spent before that, so every hit counts in Redis from before it is spent until a window later: no window
//! holds more than the limit. What is not spent is struck off here first and then given back, once. This file knows time as
//! an argument and how much is likely to be asked for; how Redis is asked, and where, is `T`'s matter.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::algorithm::Terms;
use super::denial::DENIAL_CACHE_MAX;

/// The leases of one server, shared by all its threads. All times are microseconds of a clock that never jumps and that goes on
/// while the machine is suspended.
pub(super) struct Leases<T> {
    shards: Box<[Shard<T>]>,
    hasher: DefaultHashBuilder,
    closed: AtomicBool,
}

/// Some counters, by key.
type Shard<T> = Mutex<HashTable<Account<T>>>;

/// One counter's.
struct Account<T> {
    key: Box<[u8]>,
    /// How Redis is asked for it.
    way: T,
    /// The terms that its leases were granted by.
    limit: u64,
    tick: u64,
    /// Those that end first come first.
    leases: SmallVec<[Lease; 2]>,
    /// What leases that have ended did not spend: hits, and where they are recorded.
    unspent: Vec<(u64, u64)>,
    /// What Redis had left beside the newest lease, and when some of what it counts leaves.
    free: u64,
    leaves: u64,
    /// Redis has nothing left, and is not asked again before.
    dry_until: u64,
    demand: Demand,
    /// Somebody is asking for the next lease.
    fetching: bool,
    /// Nobody is to ask before: Redis gave no answer, or the limit has changed.
    rests_until: u64,
}

struct Lease {
    left: u64,
    ends: u64,
    recorded_at: u64,
}

/// How much is asked for.
struct Demand {
    /// Hits and requests per microsecond, lately.
    hits: f64,
    requests: f64,
    /// The same, counted since.
    new_hits: u64,
    new_requests: u64,
    since: u64,
}

/// What becomes of hits that want to be taken from a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are. So much is left for this server to tell, for so long.
    Spent { remaining: u64, reset: u64, recorded_at: u64 },
    /// There is nothing for so long.
    Dry { remaining: u64, wait: u64 },
    /// Redis is to be asked, once these have been given back (hits, and where they are recorded): it may have no room beside
    /// what is held here.
    Ask { unspent: Vec<(u64, u64)> },
}

/// What Redis is to be asked for, and what to be told of what was not spent.
pub(super) struct Fetch<T> {
    pub way: T,
    pub hits: u64,
    pub unspent: Vec<(u64, u64)>,
}

/// What Redis has granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub hits: u64,
    pub recorded_at: u64,
    /// From the decision on.
    pub lasts: u64,
    pub free: u64,
    /// Until some of what counts leaves; where less was granted than asked for, until there is more.
    pub wait: u64,
}

/// The most counters that hold leases; beyond, Redis is asked for each hit.
const ACCOUNTS_MAX: usize = 65_536;

const SHARDS: usize = 64;

/// The first lease of a counter that nobody has asked for lately.
const FIRST: f64 = 8.0;

/// Between a fetch that failed and the next one, in microseconds: the failure policy answers meanwhile, and a dead Redis is not
/// asked for leases at each request.
const FAILED_PAUSE: u64 = 100_000;

/// Time that fetching a lease may take, in microseconds: so much is still there when the next one is asked for.
const FETCH_TIME: f64 = 3_000.0;

impl<T: Clone> Leases<T> {
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: DefaultHashBuilder::default(), closed: AtomicBool::new(false) }
    }

    /// Takes hits from a lease of the counter, if there is one that has so many. `most` bounds one lease. Also says what is to
    /// be fetched, which whoever asks then has to do, and tell [`Leases::granted`] or [`Leases::failed`].
    pub fn take(&self, key: &[u8], terms: &Terms, most: u64, now: u64, way: impl FnOnce() -> T) -> (Taken, Option<Fetch<T>>) {
        let (hash, shard) = self.shard(key);
        let mut shard = shard.lock();
        let is_full = shard.len() >= ACCOUNTS_MAX / SHARDS || self.closed.load(Ordering::Acquire);
        let account = match shard.entry(hash, |account| *account.key == *key, |account| self.hasher.hash_one(&*account.key)) {
            Entry::Occupied(account) => account.into_mut(),
            Entry::Vacant(_) if is_full => return (Taken::Ask { unspent: Vec::new() }, None),
            Entry::Vacant(place) => place.insert(Account::new(key, way(), terms, now)).into_mut(),
        };
        account.judge_by(terms, now);
        account.let_go(now);
        account.demand.add(terms.amount, now, terms.pace);
        let taken = account.spend(terms.amount, now);
        let fetch = if self.closed.load(Ordering::Acquire) { None } else { account.next(most, now) };
        (taken, fetch)
    }

    /// Takes what Redis has granted of `asked` when it was asked at `sent`. What can't be spent any more is handed back, to be
    /// given back.
    pub fn granted(&self, key: &[u8], terms: &Terms, sent: u64, asked: u64, granted: Granted, now: u64) -> Option<(u64, u64)> {
        let Granted { hits, recorded_at, lasts, free, wait } = granted;
        let taken = self.with(key, |account| {
            account.fetching = false;
            if account.limit != terms.limit || account.tick != terms.pace || self.closed.load(Ordering::Acquire) {
                return false;
            }
            (account.free, account.leaves) = (free, sent + wait);
            account.dry_until = if hits < asked { sent + wait.min(DENIAL_CACHE_MAX) } else { 0 };
            if hits > 0 {
                // A thousandth less: two clocks do not drift apart by more.
                let ends = sent + lasts - lasts / 1_000;
                let place = account.leases.partition_point(|lease| lease.ends <= ends);
                account.leases.insert(place, Lease { left: hits, ends, recorded_at });
                account.let_go(now);
            }
            true
        });
        (taken != Some(true) && hits > 0).then_some((hits, recorded_at))
    }

    /// Ends the counter's leases, and says what they did not spend.
    pub fn end(&self, key: &[u8]) -> Vec<(u64, u64)> {
        let unspent = self.with(key, |account| {
            account.let_go(u64::MAX);
            std::mem::take(&mut account.unspent)
        });
        unspent.unwrap_or_default()
    }

    /// Redis may have hits again that it had not: some were given back.
    pub fn refilled(&self, key: &[u8]) {
        self.with(key, |account| account.dry_until = 0);
    }

    /// Redis gave no answer.
    pub fn failed(&self, key: &[u8], now: u64) {
        self.with(key, |account| (account.fetching, account.rests_until) = (false, now + FAILED_PAUSE));
    }

    /// Puts hits back that were taken and not spent, if their lease has not ended; else they are lost.
    pub fn put_back(&self, key: &[u8], hits: u64, recorded_at: u64, now: u64) {
        self.with(key, |account| {
            if let Some(lease) = account.leases.iter_mut().find(|lease| lease.recorded_at == recorded_at && lease.ends > now) {
                lease.left += hits;
            }
        });
    }

    /// What leases that have ended did not spend. Forgets counters that nobody asks for.
    pub fn sweep(&self, now: u64) -> Vec<(T, Vec<(u64, u64)>)> {
        let mut unspent = Vec::new();
        for shard in &self.shards {
            shard.lock().retain(|account| {
                account.let_go(now);
                if !account.unspent.is_empty() {
                    account.dry_until = 0;
                    unspent.push((account.way.clone(), std::mem::take(&mut account.unspent)));
                }
                account.fetching || !account.leases.is_empty() || account.demand.since + 4 * account.tick > now
            });
        }
        unspent
    }

    /// Ends all leases, for good, and says what they did not spend.
    pub fn close(&self) -> Vec<(T, Vec<(u64, u64)>)> {
        self.closed.store(true, Ordering::Release);
        self.sweep(u64::MAX)
    }

    /// Does something to a counter's account, if it has one.
    fn with<R>(&self, key: &[u8], act: impl FnOnce(&mut Account<T>) -> R) -> Option<R> {
        let (hash, shard) = self.shard(key);
        shard.lock().find_mut(hash, |account| *account.key == *key).map(act)
    }

    /// The key's hash, and its shard. A shard's table goes by the hash's low bits and its top seven.
    fn shard(&self, key: &[u8]) -> (u64, &Shard<T>) {
        let hash = self.hasher.hash_one(key);
        (hash, &self.shards[(hash >> 32) as usize % SHARDS])
    }
}

impl<T: Clone> Account<T> {
    fn new(key: &[u8], way: T, terms: &Terms, now: u64) -> Self {
        let demand = Demand { hits: 0.0, requests: 0.0, new_hits: 0, new_requests: 0, since: now };
        let (limit, tick) = (terms.limit, terms.pace);
        Self {
            key: key.into(),
            way,
            limit,
            tick,
            leases: SmallVec::new(),
            unspent: Vec::new(),
            free: 0,
            leaves: 0,
            dry_until: 0,
            demand,
            fetching: false,
            rests_until: 0,
        }
    }

    /// Under another limit what was granted by the one before may be too much. For a tick no lease is asked for: two rules
    /// that judge one counter by limits of their own would end each other's.
    fn judge_by(&mut self, terms: &Terms, now: u64) {
        if self.limit != terms.limit || self.tick != terms.pace {
            (self.limit, self.tick, self.dry_until) = (terms.limit, terms.pace, 0);
            self.rests_until = now + self.tick;
            self.let_go(u64::MAX);
        }
    }

    /// Strikes off what leases that have ended did not spend.
    fn let_go(&mut self, now: u64) {
        while let Some(lease) = self.leases.first().filter(|lease| lease.ends <= now) {
            if lease.left > 0 {
                self.unspent.push((lease.left, lease.recorded_at));
            }
            self.leases.remove(0);
        }
    }

    fn spend(&mut self, hits: u64, now: u64) -> Taken {
        let held = self.held();
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.left >= hits) {
            lease.left -= hits;
            let (remaining, reset) = (self.free + held - hits, self.leaves.saturating_sub(now));
            return Taken::Spent { remaining, reset, recorded_at: lease.recorded_at };
        }
        if now < self.dry_until {
            return Taken::Dry { remaining: held, wait: self.leaves.saturating_sub(now) };
        }
        if self.free < hits {
            self.let_go(u64::MAX);
            return Taken::Ask { unspent: std::mem::take(&mut self.unspent) };
        }
        Taken::Ask { unspent: Vec::new() }
    }

    /// What is to be fetched now, if anything.
    fn next(&mut self, most: u64, now: u64) -> Option<Fetch<T>> {
        if self.fetching || now < self.dry_until || now < self.rests_until {
            return None;
        }
        let (tick, held, rate) = (self.tick as f64, self.held() as f64, self.demand.rate(now, self.tick));
        let wanted = match self.leases.last().map(|newest| (newest.ends - now) as f64) {
            // Whoever comes once a tick, or less often, is cheaper without.
            None if self.demand.requests_per_tick(self.tick) < 2.0 => return None,
            // Of a tick there is half left, on average; a lease that begins with its last quarter lasts one longer.
            None => (rate * tick * 0.75).max(FIRST),
            // A little less than the quarter of a tick in which Redis grants for the next one.
            Some(left) if left <= tick * 3.0 / 16.0 => rate * (left + tick) - held,
            Some(left) if held < rate * FETCH_TIME.min(tick / 16.0) || held < 1.0 => (rate * left - held).max(FIRST),
            Some(_) => return None,
        };
        let hits = (wanted.ceil() as u64).min(most);
        if hits == 0 {
            return None;
        }
        self.fetching = true;
        Some(Fetch { way: self.way.clone(), hits, unspent: std::mem::take(&mut self.unspent) })
    }

    fn held(&self) -> u64 {
        self.leases.iter().map(|lease| lease.left).sum()
    }
}

impl Demand {
    fn add(&mut self, hits: u64, now: u64, tick: u64) {
        let passed = now.saturating_sub(self.since);
        if passed > tick / 8 {
            let mean = |before: f64, new: u64| {
                let lately = new as f64 / passed as f64;
                if before == 0.0 { lately } else { (before + lately) / 2.0 }
            };
            (self.hits, self.requests) = (mean(self.hits, self.new_hits), mean(self.requests, self.new_requests));
            (self.new_hits, self.new_requests, self.since) = (0, 0, now);
        }
        self.new_hits += hits;
        self.new_requests += 1;
    }

    /// Hits per microsecond: more than lately where there is a burst.
    fn rate(&self, now: u64, tick: u64) -> f64 {
        let passed = now.saturating_sub(self.since).max(tick / 8).max(1);
        self.hits.max(self.new_hits as f64 / passed as f64)
    }

    fn requests_per_tick(&self, tick: u64) -> f64 {
        (self.requests * tick as f64).max(self.new_requests as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 300_000;
    const ASK: Taken = Taken::Ask { unspent: Vec::new() };

    fn terms(limit: u64) -> Terms {
        Terms { limit, most: u64::MAX, window: 60_000_000, need: 1, amount: 1, pace: TICK, pace_denied: TICK }
    }

    fn grant(hits: u64, at: u64) -> Granted {
        Granted { hits, recorded_at: at, lasts: TICK, free: 10, wait: 5_000_000 }
    }

    /// Takes one hit, of at most 100 in a lease.
    fn take(leases: &Leases<()>, now: u64) -> (Taken, Option<Fetch<()>>) {
        leases.take(b"k", &terms(1_000), 100, now, || ())
    }

    #[test]
    fn hits_are_spent_until_the_lease_ends_and_what_is_left_is_given_back_once() {
        let leases = Leases::new();
        assert_eq!(take(&leases, 0).0, ASK);
        let fetch = take(&leases, 1_000).1.expect("the second one in a tick is worth a lease");
        assert!(fetch.unspent.is_empty() && take(&leases, 1_000).1.is_none(), "one asks for all");
        assert_eq!(leases.granted(b"k", &terms(1_000), 1_000, fetch.hits, grant(fetch.hits, 7), 2_000), None);
        let ends = 1_000 + TICK - TICK / 1_000;
        assert!(matches!(take(&leases, ends - 1).0, Taken::Spent { recorded_at: 7, remaining, .. } if remaining == 10 + fetch.hits - 1));
        let (taken, next) = take(&leases, ends);
        assert_eq!((taken, next.unwrap().unspent), (ASK, vec![(fetch.hits - 1, 7)]), "together with the next ask");
        assert!(leases.sweep(ends).is_empty() && leases.close().is_empty(), "given back once");
    }

    #[test]
    fn a_grant_of_less_than_was_asked_for_denies_here_until_there_is_more() {
        let leases = Leases::new();
        take(&leases, 0);
        let asked = take(&leases, 1_000).1.unwrap().hits;
        leases.granted(b"k", &terms(1_000), 1_000, asked, Granted { free: 0, wait: 50_000, ..grant(1, 7) }, 2_000);
        assert!(matches!(take(&leases, 3_000).0, Taken::Spent { remaining: 0, .. }));
        assert_eq!(take(&leases, 4_000).0, Taken::Dry { remaining: 0, wait: 47_000 });
        assert!(take(&leases, 4_000).1.is_none());
        assert_eq!(take(&leases, 51_000).0, ASK);
    }

    #[test]
    fn what_redis_had_not_may_be_there_again_after_a_while_or_when_some_was_given_back() {
        let leases = Leases::new();
        let dry = |now: u64| {
            let asked = take(&leases, now).1.expect("nothing is held").hits;
            leases.granted(b"k", &terms(1_000), now, asked, Granted { free: 0, wait: 50_000_000, ..grant(0, 0) }, now);
            assert_eq!(take(&leases, now + 1).0, Taken::Dry { remaining: 0, wait: 50_000_000 - 1 });
        };
        take(&leases, 0);
        dry(1_000);
        assert!(matches!(take(&leases, 1_000 + DENIAL_CACHE_MAX - 1).0, Taken::Dry { .. }));
        assert_eq!(take(&leases, 1_000 + DENIAL_CACHE_MAX).0, ASK);
        leases.failed(b"k", 1_000 + DENIAL_CACHE_MAX);
        take(&leases, 6_000_000);
        dry(6_000_000);
        leases.refilled(b"k");
        assert_eq!(take(&leases, 6_000_002).0, ASK);
    }

    #[test]
    fn a_cost_that_may_not_fit_beside_what_is_held_here_has_it_given_back_first() {
        let leases = Leases::new();
        take(&leases, 0);
        let asked = take(&leases, 1_000).1.unwrap().hits;
        leases.granted(b"k", &terms(1_000), 1_000, asked, Granted { free: asked + 2, ..grant(asked, 7) }, 2_000);
        let cost = |amount: u64| leases.take(b"k", &Terms { need: amount, amount, ..terms(1_000) }, 100, 3_000, || ()).0;
        assert_eq!(cost(asked + 2), ASK, "so many were left beside the lease");
        assert_eq!(cost(asked + 3), Taken::Ask { unspent: vec![(asked, 7)] });
        assert!(leases.close().is_empty(), "given back once");
    }

    #[test]
    fn one_request_in_a_tick_is_not_leased_for_whatever_it_costs() {
        let leases = Leases::new();
        let costly = Terms { need: 50, amount: 50, ..terms(1_000) };
        let ask = |now: u64| leases.take(b"k", &costly, 100, now, || ()).1;
        assert!((0..20).all(|round| ask(round * 2 * TICK).is_none()));
        assert!(ask(38 * TICK + 1).is_some(), "the second one in a tick");
    }

    #[test]
    fn what_was_taken_and_not_spent_goes_back_to_a_lease_that_has_not_ended() {
        let leases = Leases::new();
        take(&leases, 0);
        let asked = take(&leases, 1_000).1.unwrap().hits;
        leases.granted(b"k", &terms(1_000), 1_000, asked, grant(asked, 7), 2_000);
        take(&leases, 3_000);
        leases.put_back(b"k", 1, 7, 3_000);
        assert!(matches!(take(&leases, 3_000).0, Taken::Spent { remaining, .. } if remaining == 10 + asked - 1));
        leases.put_back(b"k", 1, 7, 1_000_000);
        assert_eq!(leases.sweep(1_000_000), [((), vec![(asked - 1, 7)])], "too late: it is lost");
    }

    #[test]
    fn another_limit_ends_the_leases_of_the_one_before() {
        let leases = Leases::new();
        take(&leases, 0);
        let asked = take(&leases, 1_000).1.unwrap().hits;
        leases.granted(b"k", &terms(1_000), 1_000, asked, grant(asked, 7), 2_000);
        let (taken, next) = leases.take(b"k", &terms(5), 100, 3_000, || ());
        assert!(taken == ASK && next.is_none(), "the rule with the limit before may ask again at once");
        let (taken, next) = leases.take(b"k", &terms(5), 100, 3_000 + TICK, || ());
        assert_eq!((taken, next.unwrap().unspent), (ASK, vec![(asked, 7)]));
        assert_eq!(leases.granted(b"k", &terms(1_000), 1_000, 5, grant(5, 8), 3_000), Some((5, 8)), "it came too late");
        assert!(leases.close().is_empty());
        assert_eq!(take(&leases, 3_000).0, ASK);
        assert!(take(&leases, 3_001).1.is_none(), "closed, it fetches none");
    }

    #[test]
    fn counters_are_bounded_and_forgotten() {
        let leases = Leases::new();
        for number in 0..100_000_u32 {
            leases.take(&number.to_be_bytes(), &terms(1_000), 100, 0, || ());
        }
        let held = || leases.shards.iter().map(|shard| shard.lock().len()).sum::<usize>();
        assert!((60_000..=ACCOUNTS_MAX).contains(&held()), "{}", held());
        leases.sweep(5 * TICK);
        assert_eq!(held(), 0);
    }

    /// One Redis, as the script keeps a leased log.
    #[derive(Default)]
    struct PlainRedis {
        entries: Vec<(u64, u64)>,
    }

    impl PlainRedis {
        fn used(&mut self, now: u64, window: u64) -> u64 {
            self.entries.retain(|(at, _)| at + window > now);
            self.entries.iter().map(|(_, hits)| hits).sum()
        }

        fn record(&mut self, at: u64, hits: u64) -> u64 {
            let at = at.max(self.entries.last().map_or(0, |(newest, _)| *newest));
            match self.entries.last_mut() {
                Some((newest, held)) if *newest == at => *held += hits,
                _ => self.entries.push((at, hits)),
            }
            at
        }

        fn leaves(&self, now: u64, window: u64) -> u64 {
            self.entries.iter().find(|(at, hits)| at + window > now && *hits > 0).map_or(0, |(at, _)| at + window - now)
        }
    }

    /// What is on its way, and to whom.
    enum Message {
        Hit,
        Hits { from: (usize, u64), sent: u64, hits: u64, back: Vec<(u64, u64)> },
        Back(Vec<(u64, u64)>),
        Reply { to: (usize, u64), sent: u64, asked: u64, granted: Granted },
    }

    struct Server {
        leases: Leases<()>,
        /// Of all servers that ever were in its place.
        number: u64,
        offset: u64,
        /// Its clock's pace, in millionths.
        pace: u64,
        stopped_until: u64,
    }

    impl Server {
        fn clock(&self, now: u64) -> u64 {
            self.offset + (u128::from(now) * u128::from(self.pace) / 1_000_000) as u64
        }
    }

    /// A linear congruential generator (Knuth's MMIX), for histories that a seed tells.
    struct Random(u64);

    impl Random {
        fn below(&mut self, most: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % most.max(1)
        }
    }

    /// Plays a history of servers whose clocks drift, that stop for longer than a window, that die and are replaced, and whose
    /// messages are late or lost. Gives the moments at which hits were admitted, and how many calls it took.
    fn play(seed: u64, limit: u64, window: u64) -> (Vec<u64>, u64) {
        let mut random = Random(seed);
        let terms = Terms { limit, most: u64::MAX, window, need: 1, amount: 1, pace: window.div_ceil(200), pace_denied: 0 };
        let key = b"k".as_slice();
        let start = |random: &mut Random| Server {
            leases: Leases::new(),
            number: random.below(1 << 30),
            offset: random.below(1 << 40),
            pace: 999_500 + random.below(1_001),
            stopped_until: 0,
        };
        let mut servers: Vec<Server> = (0..1 + random.below(4)).map(|_| start(&mut random)).collect();
        let (mut redis, mut admitted, mut calls) = (PlainRedis::default(), Vec::new(), 0);
        let mut now = 1 << 50;
        let mut under_way: Vec<(u64, Message)> = Vec::new();
        let mean = 1 + random.below(2 * window / limit.max(1));
        for _ in 0..6_000 {
            now += 1 + random.below(2 * mean);
            under_way.sort_by_key(|(at, _)| *at);
            let (due, later): (Vec<_>, Vec<_>) = under_way.drain(..).partition(|(at, _)| *at <= now);
            under_way = later;
            for (at, message) in due {
                // Nobody hears a message while he is stopped.
                let at = match &message {
                    Message::Reply { to, .. } if servers[to.0].stopped_until > at => {
                        under_way.push((servers[to.0].stopped_until, message));
                        continue;
                    }
                    _ => at,
                };
                let take_back = |redis: &mut PlainRedis, back: &[(u64, u64)]| {
                    for (hits, recorded_at) in back {
                        redis.entries.iter_mut().filter(|(at, _)| at == recorded_at).for_each(|(_, held)| *held -= hits);
                    }
                };
                match message {
                    Message::Hit => {
                        if redis.used(at, window) < limit {
                            redis.record(at - at % terms.pace + terms.pace - 1, 1);
                            admitted.push(at);
                        }
                    }
                    Message::Back(back) => take_back(&mut redis, &back),
                    Message::Hits { from, sent, hits: asked, back } => {
                        take_back(&mut redis, &back);
                        let free = limit.saturating_sub(redis.used(at, window));
                        let (hits, soon) = (asked.min(free), at + terms.pace / 4);
                        let ends = soon - soon % terms.pace + terms.pace - 1;
                        let recorded_at = if hits > 0 { redis.record(ends, hits) } else { 0 };
                        let (free, wait) = (free - hits, redis.leaves(at, window));
                        let granted = Granted { hits, recorded_at, lasts: ends - at, free, wait };
                        // One in twenty is lost, one in twenty is very late.
                        let delay = if random.below(20) == 0 { random.below(2 * window) } else { random.below(window / 100) };
                        if random.below(20) > 0 {
                            under_way.push((at + delay, Message::Reply { to: from, sent, asked, granted }));
                        }
                    }
                    Message::Reply { to, sent, asked, granted } => {
                        let server = &servers[to.0];
                        if server.number != to.1 {
                            continue; // The one that asked has died.
                        }
                        let late = server.leases.granted(key, &terms, sent, asked, granted, server.clock(at));
                        under_way.extend(late.map(|unspent| (at + random.below(window / 100), Message::Back(vec![unspent]))));
                    }
                }
            }
            let number = random.below(servers.len() as u64) as usize;
            match random.below(400) {
                0 => servers[number] = start(&mut random),
                1 => servers[number].stopped_until = now + random.below(2 * window),
                2..8 => {
                    let server = &servers[number];
                    // A give-back may be lost as well.
                    let unspent = server.leases.sweep(server.clock(now)).into_iter().filter(|_| random.below(20) > 0);
                    let unspent: Vec<_> = unspent.map(|((), unspent)| Message::Back(unspent)).collect();
                    under_way.extend(unspent.into_iter().map(|message| (now + random.below(window / 100), message)));
                }
                _ => {}
            }
            let server = &servers[number];
            if server.stopped_until > now {
                continue;
            }
            let (taken, fetch) = server.leases.take(key, &terms, limit.div_ceil(10), server.clock(now), || ());
            match taken {
                Taken::Spent { .. } => admitted.push(now),
                Taken::Dry { .. } => {}
                Taken::Ask { unspent } => {
                    calls += 1;
                    if !unspent.is_empty() {
                        under_way.push((now + random.below(window / 500), Message::Back(unspent)));
                    }
                    under_way.push((now + random.below(window / 500), Message::Hit));
                }
            }
            if let Some(Fetch { hits, unspent: back, .. }) = fetch {
                calls += 1;
                let sent = server.clock(now);
                if random.below(20) == 0 {
                    server.leases.failed(key, sent);
                } else {
                    under_way.push((now + random.below(window / 500), Message::Hits { from: (number, server.number), sent, hits, back }));
                }
            }
        }
        (admitted, calls)
    }

    #[test]
    fn no_window_holds_more_than_the_limit_whatever_becomes_of_servers_clocks_and_messages() {
        for seed in 0..150 {
            let (limit, window) = ([20, 200, 1_500][seed as usize % 3], [1_000_000, 10_000_000][seed as usize % 2]);
            let (mut admitted, _) = play(seed, limit, window);
            admitted.sort_unstable();
            assert!(admitted.len() > 100, "seed {seed}: {} admitted", admitted.len());
            for (place, last) in admitted.iter().enumerate().skip(limit as usize) {
                let first = admitted[place - limit as usize];
                assert!(first + window <= *last, "seed {seed}: more than {limit} in the window that ends at {last}");
            }
        }
    }
}
