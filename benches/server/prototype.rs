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
    /// A request of one hit as it takes it, on a log of 100 a minute.
    hit: Vec<u8>,
    /// Where in it the counter's place stands, in two bytes.
    place_at: usize,
}

/// The path of the prototype's script, if there is one to be measured.
pub fn path() -> Option<String> {
    std::env::var("PROTOTYPE").ok()
}

impl Script {
    /// The one that a server is seen to ask for, by the hit that it sends.
    pub fn of(server: &Ratelimitd, redis: &RedisServer) -> Self {
        let (script, _, hit) = redis_benchmark::seen(server, redis);
        Self { sha: redis_benchmark::load(&script, redis), hit, place_at: 2 }
    }

    pub fn prototype(path: &str, redis: &RedisServer) -> Self {
        let script = fs::read_to_string(path).unwrap_or_else(|error| panic!("PROTOTYPE={path} can't be read: {error}"));
        // Each microsecond is an entry of its own, as in a log of 100 of 128.
        let numbers = [100_u64, 60_000_000, 1, 1, 1];
        let numbers = numbers.iter().flat_map(|number| number.to_be_bytes().into_iter().skip(1));
        let hit = [0, 0, 0, 2, 0, 1].into_iter().chain(numbers).collect();
        Self { sha: redis_benchmark::load(&script, redis), hit, place_at: 4 }
    }

    /// CPU of Redis, in microseconds a hit, for so many calls of so many hits each on clients of a hundred thousand. (Each of
    /// ours says that it is plain, as nearly all are.)
    pub fn cpu(&self, redis: &RedisServer, calls: usize, hits: usize) -> f64 {
        redis.command(&["FLUSHALL"]);
        let before = redis.cpu();
        let mut chance = 1_u64;
        for _ in 0..calls {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            let mut argument = Vec::new();
            for _ in 0..hits {
                // Knuth's MMIX generator.
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let key = format!("1{{api|{}}}log|60000000|client", (chance >> 32) % 100_000).into_bytes();
                let place = keys.iter().position(|other| *other == key).unwrap_or_else(|| {
                    keys.push(key);
                    keys.len() - 1
                });
                let from = argument.len() + self.place_at;
                argument.extend(&self.hit);
                argument[from..from + 2].copy_from_slice(&u16::try_from(place + 1).unwrap().to_be_bytes());
            }
            let head = [b"EVALSHA".to_vec(), self.sha.clone().into_bytes(), keys.len().to_string().into_bytes()];
            redis.command(&head.into_iter().chain(keys).chain([argument]).collect::<Vec<_>>());
        }
        let cpu = redis.cpu() - before;
        let redis::Value::Int(clients) = redis.command(&["DBSIZE"]) else { panic!("a number") };
        assert!(clients as usize > calls * hits / 2, "each hit was recorded, for a client of many: {clients}");
        1e6 * cpu / (calls * hits) as f64
    }
}
