//! The gRPC services without a server around them.

use std::sync::Arc;

use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::RequestBounds;
use distributed_rate_limiter::grpc::{Door, ReplyOptions, Services};
use distributed_rate_limiter::hit::FailurePolicy;
use distributed_rate_limiter::limiter::{Fallback, RateLimiter};
use distributed_rate_limiter::metrics::{Metrics, StoreSeries};
use distributed_rate_limiter::rules::LiveRules;
use distributed_rate_limiter::store::{Clock, Memory, Store};

/// Those that count by these rules, in this store.
pub fn services(rules: &str, store: impl FnOnce(&Metrics) -> Store) -> Services {
    let metrics = Arc::new(Metrics::new().unwrap());
    let loaded = config::parse(&[("rules.yaml".into(), rules.to_owned())], LoadOptions::default());
    let rules = Arc::new(LiveRules::new(loaded.map_err(|problems| problems.to_string()).unwrap().rules.counted_in(&metrics)));
    let memory = Arc::new(Memory::new(1, Clock::System, StoreSeries::detached()));
    let fallback = Fallback { policy: FailurePolicy::Error, share: 1.0, memory };
    let limiter = Arc::new(RateLimiter::new(rules, store(&metrics), fallback, Arc::clone(&metrics)));
    let door = Door::new(limiter, RequestBounds::default(), ReplyOptions::default(), metrics);
    let (health, _) = tonic_health::server::health_reporter();
    Services::new(door, health, 4 << 20).unwrap()
}

/// A store in memory, for as many counters as anybody needs here.
pub fn in_memory(metrics: &Metrics) -> Store {
    Store::Memory(Arc::new(Memory::new(1_000_000, Clock::System, metrics.store("memory"))))
}
