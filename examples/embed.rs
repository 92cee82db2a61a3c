//! The limiter inside a program of one's own: no server, no Redis.
//!
//!     cargo run --example embed
//!
//! First the short question, [`RateLimiter::is_allowed`], where the limit comes with the call. Then a whole request, as
//! Envoy would send it, decided by rules that are written in YAML.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use distributed_rate_limiter::hit::FailurePolicy;
use distributed_rate_limiter::limiter::{Fallback, RateLimiter};
use distributed_rate_limiter::metrics::Metrics;
use distributed_rate_limiter::rules::LiveRules;
use distributed_rate_limiter::store::{Clock, Memory, Store};

/// The same language as in config/api.yaml. In a program, `config::load` reads files and folders.
const RULES: &str = "
domain: shop
descriptors:
- key: client
  rate_limit: {limit: 3, window: 10s}
";

// RateLimiter is Send and Sync: on a runtime of many threads, share it in an Arc.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = Arc::new(Metrics::new()?);

    // Where counters live: here in this process, at most 100,000 of them. With Store::Redis, all programs that share the
    // Redis share the counters.
    let memory = Arc::new(Memory::new(100_000, Clock::System, metrics.store("memory")));
    let store = Store::Memory(Arc::clone(&memory));

    // Who answers when the store does not. A memory store always does.
    let fallback = Fallback { policy: FailurePolicy::Local, share: 1.0, memory };

    // A mistake in the rules is an error that names the text, the line and the column. The text's name is ours to choose.
    let loaded = config::parse(&[(PathBuf::from("embed.yaml"), RULES.to_owned())], LoadOptions::default())?;
    let rules = Arc::new(LiveRules::new(loaded.rules.counted_in(&metrics)));

    let limiter = RateLimiter::new(rules, store, fallback, metrics);

    println!("is_allowed: alice may log in 5 times in any 60 seconds");
    for attempt in 1..=7 {
        let allowed = limiter.is_allowed("alice", "login", 5, 60).await?;
        println!("  attempt {attempt}: {}", if allowed { "allowed" } else { "denied" });
    }

    println!("decide: by the rule, alice may make 3 requests in any 10 seconds");
    let descriptor = Descriptor { entries: vec![Entry::new("client", "alice")], ..Descriptor::default() };
    // The 1 is what the request weighs: one hit.
    let request = Request::new("shop".to_owned(), vec![descriptor], 1, RequestBounds::default())?;
    for number in 1..=4 {
        let decision = limiter.decide(&request, None).await?;
        println!("  request {number}: {}", if decision.admitted { "admitted" } else { "denied" });
        // One status for each descriptor, in order.
        for status in &decision.statuses {
            println!("    {} left, reset in {:.1} s", status.remaining, status.reset.as_secs_f64());
        }
    }
    Ok(())
}
