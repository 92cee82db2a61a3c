//! What a full log costs a client, and how late its hits leave at worst, for several bounds on its entries and several limits:
//! bytes in Redis, Redis's time for a decision on it, lateness. Real redis-server, stepped time, a window of a day. Prints a
//! table; compare times of one run only. `cargo bench --bench log`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a benchmark a panic is the report")]

use std::process::Command;
use std::time::Duration;

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind};
use distributed_rate_limiter::limit::{Algorithm, Cost, Limit, LogEntries, Window};
use distributed_rate_limiter::metrics::{Metrics, RedisSeries};
use distributed_rate_limiter::store::redis::RedisOptions;
use distributed_rate_limiter::store::{Clock, Memory, Redis, SteppedClock, Store};
use support::process::resident;
use support::redis::RedisServer;
use tokio::runtime::Runtime;

/// The tests' Redis.
#[path = "../tests/it/support"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support {
    pub mod process;
    pub mod redis;
}

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: [u32; 4] = [100, 128, 1_000, 10_000];
const LIMITS: [u32; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];

/// Decisions that are timed on each log.
const DECISIONS: u64 = 500;

/// A log on a Redis in stepped time.
struct Bench {
    runtime: Runtime,
    store: Store,
    clock: SteppedClock,
    server: RedisServer,
}

/// Entries of all logs together that are filled to weigh them.
const RECORDS_FILLED: u64 = 2_000_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, entries, limit] = args.as_slice()
        && role == "fill"
    {
        return fill(entries.parse().unwrap(), limit.parse().unwrap());
    }
    let server = RedisServer::start_without_expiry();
    let clock = SteppedClock::starting_at(1_800_000_000_000_000);
    let options =
        RedisOptions { denials_max: 0, clock: Clock::Stepped(clock.clone()), ..RedisOptions::new(server.url(), Duration::from_secs(20)) };
    let store = Store::Redis(Redis::new(&options, RedisSeries::detached()).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = Bench { runtime, store, clock, server };
    println!("| log_entries | limit | entries when full | bytes in Redis | bytes in memory | Redis's time for a decision | late at most |");
    println!("|---|---|---|---|---|---|---|");
    for entries in ENTRIES {
        for limit in LIMITS {
            bench.measure(entries, limit);
        }
    }
}

impl Bench {
    fn measure(&self, entries: u32, limit: u32) {
        let (bound, client) = (LogEntries::new(entries).unwrap(), format!("{entries}-{limit}"));
        let window = Window::DAY.micros();
        let tick = bound.tick(Limit::from(limit), Window::DAY);
        // As many records as fit, at the beginning of ticks, so that they leave as late as can be. The last entry but one is
        // filled a window after the first one began.
        let records = u64::from(entries.min(limit));
        let step = if tick == 1 { window / records } else { tick };
        self.clock.set((self.clock.now() / step + 2) * step);
        let first = self.clock.now();
        let each = u64::from(limit) / records;
        for number in 0..records - 1 {
            let hits = if number == records - 2 { u64::from(limit) - each * (records - 2) } else { each };
            assert!(self.ask(&client, bound, limit, hits).0, "{client}: record {number}");
            if number < records - 2 {
                self.clock.step(step);
            }
        }
        let (admitted, wait) = self.ask(&client, bound, limit, each);
        assert!(!admitted, "{client} is full");
        let late = self.clock.now() + wait - (first + window);
        let key = format!("1{{bench|{client}}}log|{window}|hit");
        let bytes: u64 = redis::from_redis_value(self.server.command(&["MEMORY", "USAGE", &key, "SAMPLES", "0"])).unwrap();
        let held: u64 = redis::from_redis_value(self.server.command(&["ZCARD", &key])).unwrap();
        self.server.command(&["CONFIG", "RESETSTAT"]);
        for _ in 0..DECISIONS {
            self.clock.step(step);
            self.ask(&client, bound, limit, 1);
        }
        let (calls, seconds) = self.server.script_calls();
        let per_call = 1e6 * seconds / calls as f64;
        let in_memory = in_memory(entries, limit);
        let late = if late == 0 { "not at all".to_owned() } else { format!("{:.1} s", late as f64 / 1e6) };
        println!("| {entries} | {limit} | {held} | {bytes} | {in_memory:.0} | {per_call:.1} us | {late} |");
    }

    /// Whether so many hits pass, and how long to wait.
    fn ask(&self, client: &str, log_entries: LogEntries, limit: u32, hits: u64) -> (bool, u64) {
        let verdict = self.runtime.block_on(self.store.decide(&[hit(client, log_entries, limit, hits)], None)).unwrap();
        (verdict.admitted, verdict.tallies[0].reset.as_micros() as u64)
    }
}

fn hit(client: &str, log_entries: LogEntries, limit: u32, hits: u64) -> Hit<'_> {
    let counter = Counter {
        domain: "bench",
        client: [client].into_iter().collect(),
        action: Action::named("hit"),
        algorithm: Algorithm::SlidingWindowLog { log_entries },
        window: Window::DAY,
    };
    let (limit, cost) = (Limit::from(limit), Cost::take(hits));
    Hit { descriptor: 0, kind: Kind::Enforce, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None }
}

/// Bytes that a full log takes in memory, key and all: what a process of its own grows by with many of them.
fn in_memory(entries: u32, limit: u32) -> f64 {
    let mut filling = Command::new(std::env::current_exe().unwrap());
    let output = filling.args(["fill", &entries.to_string(), &limit.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// Fills logs in memory, and prints what each took.
fn fill(entries: u32, limit: u32) {
    let log_entries = LogEntries::new(entries).unwrap();
    let (records, tick) = (u64::from(entries.min(limit)), log_entries.tick(Limit::from(limit), Window::DAY));
    let step = if tick == 1 { Window::DAY.micros() / records } else { tick };
    let clients: Vec<String> = (0..RECORDS_FILLED / records).map(|number| format!("{number:036}")).collect();
    let clock = SteppedClock::starting_at(1_800_000_000_000_000 / step * step);
    let memory = Memory::new(2 * RECORDS_FILLED as usize, Clock::Stepped(clock.clone()), Metrics::new().unwrap().store("memory"));
    let before = resident(std::process::id());
    for _ in 0..records - 1 {
        for client in &clients {
            assert!(memory.decide(&[hit(client, log_entries, limit, u64::from(limit) / records)]).admitted);
        }
        clock.step(step);
    }
    println!("{}", (resident(std::process::id()) - before) as f64 / clients.len() as f64);
}
