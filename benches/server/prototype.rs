//! Our script beside the one that the layout in Redis was tried with first, asked in the same way: calls of so many hits, one
//! after the other. That one is not in this repository: `PROTOTYPE` is its path. Its argument is a hit after the other: four
//! bytes (algorithm 0, a log; kind; count_denied; 2, the request ends), the counter's place among the keys in two, then limit,
//! window and tick in microseconds, hits needed and hits wanted, in seven each; all big-endian.

use std::fs;

use crate::redis_benchmark;
use crate::support::ratelimitd::Ratelimitd;
use crate::support::redis::RedisServer;

/// A script that Redis has loaded.
pub struct Script {
    sha: String,
    /// A request of one hit as it takes it, on the first counter, on a log of 100 a minute.
    hit: Vec<u8>,
    is_ours: bool,
}

/// The path of the prototype's script, if there is one to be measured.
pub fn path() -> Option<String> {
    std::env::var("PROTOTYPE").ok()
}

impl Script {
    /// The one that a server is seen to ask for, by the hit that it sends.
    pub fn of(server: &Ratelimitd, redis: &RedisServer) -> Self {
        let (script, _, hit) = redis_benchmark::seen(server, redis);
        Self { sha: redis_benchmark::load(&script, redis), hit, is_ours: true }
    }

    pub fn prototype(path: &str, redis: &RedisServer) -> Self {
        let script = fs::read_to_string(path).unwrap_or_else(|error| panic!("PROTOTYPE={path} can't be read: {error}"));
        // Each microsecond is an entry of its own, as in a log of 100 of 128.
        let numbers = [100_u64, 60_000_000, 1, 1, 1];
        let numbers = numbers.iter().flat_map(|number| number.to_be_bytes().into_iter().skip(1));
        let hit = [0, 0, 0, 2, 0, 1].into_iter().chain(numbers).collect();
        Self { sha: redis_benchmark::load(&script, redis), hit, is_ours: false }
    }

    /// CPU of Redis, in microseconds a hit, for so many calls of so many hits each, on as many clients of a hundred thousand.
    pub fn cpu(&self, redis: &RedisServer, calls: usize, hits: usize) -> f64 {
        redis.command(&["FLUSHALL"]);
        let argument = self.argument(u16::try_from(hits).unwrap());
        let before = redis.cpu();
        let mut chance = 1_u64;
        for _ in 0..calls {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            while keys.len() < hits {
                // Knuth's MMIX generator.
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let key = format!("1{{api|{}}}log|60000000|client", (chance >> 32) % 100_000).into_bytes();
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
            let head = [b"EVALSHA".to_vec(), self.sha.clone().into_bytes(), hits.to_string().into_bytes()];
            redis.command(&head.into_iter().chain(keys).chain([argument.clone()]).collect::<Vec<_>>());
        }
        let cpu = redis.cpu() - before;
        let redis::Value::Int(clients) = redis.command(&["DBSIZE"]) else { panic!("a number") };
        assert!(clients as usize > calls * hits / 2, "each hit was recorded, for a client of many: {clients}");
        1e6 * cpu / (calls * hits) as f64
    }

    /// So many requests of one hit each, each on a counter of its own.
    fn argument(&self, hits: u16) -> Vec<u8> {
        if self.is_ours {
            // They are alike: one stands for all, and says in its second and third byte for how many.
            let mut argument = self.hit.clone();
            argument[1..3].copy_from_slice(&hits.to_be_bytes());
            return argument;
        }
        let on = |place: u16| {
            let mut hit = self.hit.clone();
            hit[4..6].copy_from_slice(&place.to_be_bytes());
            hit
        };
        (1..=hits).flat_map(on).collect()
    }
}
