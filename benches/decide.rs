//! What the parts of a decision cost, without any network: matching a request against 10 and 10,000 rules, and deciding
//! it on the memory store with one thread and with two, and by each algorithm. Compare figures of one run only. `cargo bench --bench decide`.
#![allow(clippy::unwrap_used, reason = "in a benchmark a panic is the report")]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use distributed_rate_limiter::hit::FailurePolicy;
use distributed_rate_limiter::limit::Algorithm;
use distributed_rate_limiter::limiter::{Fallback, RateLimiter};
use distributed_rate_limiter::metrics::Metrics;
use distributed_rate_limiter::rules::{LiveRules, Rules};
use distributed_rate_limiter::store::{Clock, Memory, Store};

/// Clients that take turns, so that no counter is hot.
const CLIENTS: usize = 100_000;

fn rules(count: usize, algorithm: Algorithm) -> Rules {
    let mut text = format!("domain: bench\nalgorithm: {}\ndescriptors:\n", algorithm.as_str());
    for number in 0..count {
        text.push_str(&format!("- key: path\n  value: /v1/resource/{number}\n  descriptors:\n"));
        text.push_str("  - key: client\n    rate_limit: {unit: minute, requests_per_unit: 100}\n");
    }
    config::parse(&[(PathBuf::from("bench.yaml"), text)], LoadOptions::default()).map_err(|problems| problems.to_string()).unwrap().rules
}

fn request(path: usize, client: usize) -> Request {
    let entries = vec![Entry::new("path", format!("/v1/resource/{path}")), Entry::new("client", format!("client-{client}"))];
    let descriptor = Descriptor { entries, ..Descriptor::default() };
    Request::new("bench".to_owned(), vec![descriptor], 1, RequestBounds::default()).unwrap()
}

fn matching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match");
    group.throughput(Throughput::Elements(1));
    for count in [10, 10_000] {
        let rules = rules(count, Algorithm::default());
        let requests: Vec<_> = (0..count.min(1_000)).map(|number| request(number * (count / count.min(1_000)), number)).collect();
        let mut turn = 0;
        group.bench_function(format!("{count} rules"), |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % requests.len();
                black_box(rules.find(&requests[turn]).hits.len())
            });
        });
    }
    group.finish();
}

fn deciding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide in memory");
    group.throughput(Throughput::Elements(1));
    let requests: Arc<Vec<_>> = Arc::new((0..CLIENTS).map(|client| request(0, client)).collect());
    let [log, bucket, fixed] = Algorithm::ALL;
    for (threads, algorithm) in [(1, log), (2, log), (1, bucket), (1, fixed)] {
        group.bench_function(format!("{}, {threads} threads", algorithm.as_str()), |bencher| {
            let metrics = Arc::new(Metrics::new().unwrap());
            let rules = Arc::new(LiveRules::new(rules(10, algorithm).counted_in(&metrics)));
            let memory = Arc::new(Memory::new(1_000_000, Clock::System, metrics.store("memory")));
            bencher.iter_custom(|rounds| {
                // Each thread makes a half of the rounds: with two that share nothing, the time is half.
                let each = rounds.div_ceil(threads);
                let started = Instant::now();
                let running: Vec<_> = (0..threads)
                    .map(|number| {
                        let fallback = Fallback { policy: FailurePolicy::Local, share: 1.0, memory: Arc::clone(&memory) };
                        let limiter =
                            RateLimiter::new(Arc::clone(&rules), Store::Memory(Arc::clone(&memory)), fallback, Arc::clone(&metrics));
                        let requests = Arc::clone(&requests);
                        thread::spawn(move || decide(&limiter, &requests, number as usize * CLIENTS / 2, each))
                    })
                    .collect();
                running.into_iter().for_each(|thread| thread.join().unwrap());
                started.elapsed()
            });
        });
    }
    group.finish();
}

fn decide(limiter: &RateLimiter, requests: &[Request], from: usize, rounds: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for round in 0..rounds as usize {
            let decision = limiter.decide(&requests[(from + round) % requests.len()], None).await;
            black_box(decision.unwrap().admitted);
        }
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = matching, deciding
}
criterion_main!(benches);
