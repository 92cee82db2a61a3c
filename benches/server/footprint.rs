//! What the memory store's counters weigh: a process of its own fills a store and says what it has grown by.

use std::process::Command;
use std::sync::Arc;

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind};
use distributed_rate_limiter::limit::{Algorithm, Cost, Limit, Window};
use distributed_rate_limiter::metrics::Metrics;
use distributed_rate_limiter::store::{Clock, Memory, SteppedClock};

use crate::support::process::resident;

/// The argument with which this program fills a store.
pub const ROLE: &str = "footprint";

pub const CLIENTS: u64 = 1_000_000;

/// Bytes that a counter weighs, key and all, after so many hits of different times.
pub fn bytes_per_client(algorithm: &str, hits: u64) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([ROLE, algorithm, &hits.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Fills a store, and prints what each client took.
pub fn fill(algorithm: &str, hits: u64) {
    let algorithm = Algorithm::ALL.into_iter().find(|other| other.as_str() == algorithm).unwrap();
    let metrics = Metrics::new().unwrap();
    let clock = SteppedClock::starting_at(1_800_000_000_000_000);
    let memory = Arc::new(Memory::new(2 * CLIENTS as usize, Clock::Stepped(clock.clone()), metrics.store("memory")));
    let before = resident(std::process::id());
    for _ in 0..hits {
        for client in 0..CLIENTS {
            // As long as a UUID.
            let client = format!("{client:036}");
            let counter = Counter {
                domain: "api",
                client: [client.as_str()].into_iter().collect(),
                action: Action::named("client"),
                algorithm,
                window: Window::DAY,
            };
            // An entry for each hit: the most that a log of 128 entries keeps.
            let (limit, cost) = (Limit::from(128), Cost::take(1));
            let hit =
                Hit { descriptor: 0, kind: Kind::Enforce, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None };
            assert!(memory.decide(&[hit]).admitted);
        }
        clock.step(100_000_000);
    }
    assert_eq!(memory.len() as u64, CLIENTS);
    println!("{}", (resident(std::process::id()) - before) as f64 / CLIENTS as f64);
}
