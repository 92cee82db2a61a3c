//! An Envoy-compatible rate-limit server, and the library that it is made of.
//!
//! # The path of a request
//!
//! 1. [`server`] deals a connection to a serving thread; there [`grpc`] or [`http`] decodes a [`descriptor::Request`].
//! 2. [`limiter::RateLimiter`] has [`rules::Rules::find`] turn it into [`hit::Hit`]s, each on a counter.
//! 3. [`store::Store::decide`] judges and records all of them in one atomic step, in memory or in Redis.
//! 4. The limiter makes a [`limiter::Decision`] of the tallies; where the store gave no answer, the failure policy does.
//! 5. The door encodes it.
//!
//! # Layers
//!
//! A module names only modules of lower layers; `tests/it/layers.rs` holds that. What each knows, and what it does not,
//! is in `docs/architecture.md`; what is promised, in `docs/algorithm.md`.
//!
//! | layer | modules |
//! |---|---|
//! | 8 | `main`: the program |
//! | 7 | [`cli`]: the command line |
//! | 6 | [`server`]: everything put together, run and drained |
//! | 5 | [`settings`]: flags and environment |
//! | 4 | [`grpc`], [`http`]: the doors; `http` may name `grpc`; [`admin`]: the operator's |
//! | 3 | [`limiter`]: a request to a decision; [`config`]: YAML to rules, again whenever the files change |
//! | 2 | [`rules`]: a request to hits; [`store`]: hits to a verdict |
//! | 1 | [`descriptor`], [`hit`], [`metrics`] |
//! | 0 | [`limit`]; `seldom`: how often the log is told |
//!
//! # Without rules
//!
//! [`RateLimiter::is_allowed`](limiter::RateLimiter::is_allowed) takes the limit with the question. Here the counters are
//! in memory; a [`store::Redis`] shares them with every program on the same Redis.
//!
//! ```
//! use std::sync::Arc;
//!
//! use distributed_rate_limiter::hit::FailurePolicy;
//! use distributed_rate_limiter::limiter::{Fallback, RateLimiter};
//! use distributed_rate_limiter::metrics::{Metrics, StoreSeries};
//! use distributed_rate_limiter::rules::{LiveRules, Rules};
//! use distributed_rate_limiter::store::{Clock, Memory, Store};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // At most 100,000 counters; beyond, the one that expires first goes.
//! let memory = Arc::new(Memory::new(100_000, Clock::System, StoreSeries::detached()));
//! let rules = Arc::new(LiveRules::new(Rules::new(Vec::new())?));
//! let fallback = Fallback { policy: FailurePolicy::Local, share: 1.0, memory: Arc::clone(&memory) };
//! let limiter = RateLimiter::new(rules, Store::Memory(memory), fallback, Arc::new(Metrics::new()?));
//!
//! // At most 3 logins of alice in any 60 seconds.
//! for expected in [true, true, true, false] {
//!     assert_eq!(limiter.is_allowed("alice", "login", 3, 60).await?, expected);
//! }
//! assert!(limiter.is_allowed("bob", "login", 3, 60).await?);
//! # Ok(())
//! # }
//! ```

pub mod admin;
pub mod cli;
pub mod config;
pub mod descriptor;
pub mod grpc;
pub mod hit;
pub mod http;
pub mod limit;
pub mod limiter;
pub mod metrics;
pub mod rules;
mod seldom;
pub mod server;
pub mod settings;
pub mod store;
