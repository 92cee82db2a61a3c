//! What a decision costs the nodes of a Redis Cluster, and how evenly clients spread over them, for 1 to 6 primaries beside
//! one Redis that is no Cluster, what a replica adds, and what it costs where many servers ask for little each: real
//! redis-server processes, 64 requests in flight for each primary, a client each of 100,000. Then how many requests over two slots are denied because of hits that are about to be taken back. Prints tables; compare
//! figures of one run only. `cargo bench --bench cluster`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a benchmark a panic is the report")]

use std::time::Duration;

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind};
use distributed_rate_limiter::limit::{Algorithm, Cost, Limit, Window};
use distributed_rate_limiter::metrics::RedisSeries;
use distributed_rate_limiter::store::redis::{RedisDeployment, RedisOptions};
use distributed_rate_limiter::store::{Redis, Store};
use support::cluster::Cluster;
use support::redis::RedisServer;

/// The tests' Redis and Cluster.
#[path = "../tests/it/support"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support {
    pub mod cluster;
    pub mod redis;
}

const CLIENTS: usize = 100_000;
const DECISIONS: usize = 120_000;
/// For each primary: with more of them there are more servers that ask.
const IN_FLIGHT: usize = 64;
/// As many connections to each primary, where many servers share many nodes: each has few of the requests.
const MANY_SERVERS: usize = 32;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Requests that could all pass, and the limit that they share.
const SHARED: u64 = 1_000;

/// What a node has spent: CPU seconds of the process, calls of the script, and seconds in them.
struct Spent {
    cpu: f64,
    calls: f64,
    in_calls: f64,
}

fn main() {
    println!(
        "| primaries | decisions on the busiest, of its even share | calls per decision | node CPU per decision | of it in the script |"
    );
    println!("|---|---|---|---|---|");
    let alone = RedisServer::start();
    measure("1, no Cluster", std::slice::from_ref(&alone), &RedisOptions::new(alone.url(), TIMEOUT), 1);
    drop(alone);
    for (primaries, replicated) in [(1, false), (2, false), (3, false), (6, false), (1, true), (3, true)] {
        let cluster = Cluster::of(primaries, replicated, &[]);
        let mut options = RedisOptions::new(cluster.url(), TIMEOUT);
        options.site.deployment = RedisDeployment::Cluster;
        let what = if replicated { ", each with a replica" } else { "" };
        measure(&format!("{primaries}{what}"), cluster.primaries(), &options, 1);
        if replicated {
            measure(&format!("{primaries}{what}, asked by {MANY_SERVERS}"), cluster.primaries(), &options, MANY_SERVERS);
        }
    }
    let cluster = Cluster::of(3, false, &[]);
    println!("\n| requests in flight | denied though there was room, of {SHARED} |");
    println!("|---|---|");
    for in_flight in [2, 16, 64, 256] {
        let denied: Vec<_> = (0..9).map(|round| denied_for_nothing(&cluster, in_flight, round)).collect();
        let (least, most) = (denied.iter().min().unwrap(), denied.iter().max().unwrap());
        println!("| {in_flight} | {least} to {most} in {} rounds |", denied.len());
    }
}

/// As many requests as a shared limit lets pass, each also on a client of its own, and between them as many that another
/// limit denies: how many of the first are denied.
fn denied_for_nothing(cluster: &Cluster, in_flight: u64, round: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut options = RedisOptions { denials_max: 0, ..RedisOptions::new(cluster.url(), TIMEOUT) };
    options.site.deployment = RedisDeployment::Cluster;
    let store = Store::Redis(Redis::new(&options, RedisSeries::detached()).unwrap());
    runtime.block_on(async {
        let asking: Vec<_> = (0..in_flight)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    let (mut denied, shared) = (0, format!("shared-{in_flight}-{round}"));
                    for number in (task..2 * SHARED).step_by(usize::try_from(in_flight).unwrap()) {
                        let own = format!("own-{in_flight}-{round}-{number}");
                        let may_pass = number % 2 == 0;
                        let limit = if may_pass { 1 } else { 0 };
                        let hits = [hit(0, &shared, SHARED), hit(1, &own, limit)];
                        denied += u64::from(!store.decide(&hits, None).await.unwrap().admitted && may_pass);
                    }
                    denied
                })
            })
            .collect();
        let mut denied = 0;
        for task in asking {
            denied += task.await.unwrap();
        }
        denied
    })
}

fn measure(what: &str, nodes: &[RedisServer], options: &RedisOptions, servers: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = || Store::Redis(Redis::new(options, RedisSeries::detached()).unwrap());
    let stores: Vec<_> = (0..servers).map(|_| store()).collect();
    let (in_flight, each) = (IN_FLIGHT * nodes.len(), DECISIONS / (IN_FLIGHT * nodes.len()));
    // Connections, and the script on each node.
    for store in &stores {
        runtime.block_on(ask(store, 0, 2_000));
    }
    let before: Vec<_> = nodes.iter().map(spent).collect();
    runtime.block_on(async {
        let asking: Vec<_> = (0..in_flight)
            .map(|number| {
                let store = stores[number % servers].clone();
                tokio::spawn(async move { ask(&store, number * each, each).await })
            })
            .collect();
        for task in asking {
            task.await.unwrap();
        }
    });
    let after = nodes.iter().map(spent);
    let spent: Vec<_> = before
        .iter()
        .zip(after)
        .map(|(before, after)| (after.cpu - before.cpu, after.calls - before.calls, after.in_calls - before.in_calls))
        .collect();
    let decisions = (each * in_flight) as f64;
    let sum = |part: fn(&(f64, f64, f64)) -> f64| spent.iter().map(part).sum::<f64>();
    // By their keys, for a call of a single Redis decides many.
    let keys: Vec<_> = nodes.iter().map(|node| redis::from_redis_value::<f64>(node.command(&["DBSIZE"])).unwrap()).collect();
    let busiest = keys.iter().fold(0.0, |most: f64, keys| most.max(*keys)) * nodes.len() as f64 / keys.iter().sum::<f64>();
    println!(
        "| {what} | {busiest:.3} | {:.2} | {:.1} us | {:.1} us |",
        sum(|node| node.1) / decisions,
        sum(|node| node.0) / decisions * 1e6,
        sum(|node| node.2) / decisions * 1e6,
    );
}

async fn ask(store: &Store, from: usize, count: usize) {
    for number in from..from + count {
        // In no order, so that no two tasks go through the same clients side by side.
        let client = format!("client-{}", (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) % CLIENTS);
        assert!(store.decide(&[hit(0, &client, 100)], None).await.unwrap().admitted);
    }
}

fn hit(descriptor: usize, client: &str, limit: u64) -> Hit<'_> {
    let counter = Counter {
        domain: "api",
        client: [client].into_iter().collect(),
        action: Action::named("request"),
        algorithm: Algorithm::default(),
        window: Window::MINUTE,
    };
    let (limit, cost) = (Limit::new(limit).unwrap(), Cost::take(1));
    Hit { descriptor, kind: Kind::Enforce, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None }
}

fn spent(node: &RedisServer) -> Spent {
    let (calls, in_calls) = node.script_calls();
    Spent { cpu: node.cpu(), calls: calls as f64, in_calls }
}
