//! A real Envoy in front: what clients see; and, in the modules, what Envoy itself is told, and what it charges and gives
//! back when a stream ends.

mod charges;
mod told;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::envoy::{Envoy, upstream};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, rules_file};
use crate::support::redis::RedisServer;

/// On a slow machine Envoy would give up after its 20 ms, and the request would pass; here that is an error to be seen.
fn patient(config: String) -> String {
    assert_eq!(config.matches("failure_mode_deny: false").count(), 1);
    config.replace("failure_mode_deny: false", "failure_mode_deny: true\n              timeout: 10s")
}

fn rule(limit: u32, window: &str) -> String {
    rules_file(&format!("domain: api\ndescriptors:\n- key: client\n  rate_limit: {{limit: {limit}, window: {window}}}\n"))
}

fn get(envoy: &Envoy, client: &str) -> http::Response {
    http::get(envoy.listener, "/", &[("x-client", client)])
}

#[test]
fn five_of_twenty_requests_pass_and_the_client_passes_again_after_the_window() {
    let window = Duration::from_secs(3);
    let ratelimitd = Ratelimitd::start(&["--config", &rule(5, "3s")]);
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), patient);
    let started = Instant::now();
    let answers: Vec<_> = (0..20).map(|_| get(&envoy, "alice")).collect();
    assert!(started.elapsed() < window, "the machine is too slow for this test to say anything");
    assert!(answers[..5].iter().all(|answer| answer.status == 200 && answer.header("x-envoy-ratelimited").is_none()));
    assert!(answers[5..].iter().all(|answer| answer.status == 429 && answer.header("x-envoy-ratelimited") == Some("true")));
    let others: Vec<_> = (0..6).map(|_| get(&envoy, "bob").status).collect();
    assert_eq!(others, [200, 200, 200, 200, 200, 429], "another client has its own five");
    while get(&envoy, "alice").status != 200 {
        assert!(started.elapsed() < window + Duration::from_secs(10), "the client never passes again");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(started.elapsed() >= window, "no hit is forgotten before its window is over");
    assert_eq!(envoy.stat("cluster.upstream.ratelimit.error"), 0);
}

#[test]
fn two_servers_on_one_redis_admit_exactly_the_limit_under_64_concurrent_requests() {
    let redis = RedisServer::start();
    let config = rule(5, "60s");
    let server = || Ratelimitd::start(&["--config", &config, "--redis-url", &redis.url(), "--redis-timeout", "5s"]);
    let (one, other) = (server(), server());
    let envoy = Envoy::start(&[one.grpc(), other.grpc()], upstream(), patient);
    for round in 0..5 {
        let client = format!("client-{round}");
        let statuses: Vec<u16> = thread::scope(|scope| {
            let asking: Vec<_> = (0..64).map(|_| scope.spawn(|| [get(&envoy, &client).status, get(&envoy, &client).status])).collect();
            asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 5, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 123, "{statuses:?}");
    }
    assert_eq!(envoy.stat("cluster.upstream.ratelimit.error"), 0);
    for server in [&one, &other] {
        assert!(calls(server.metrics()) > 100, "both servers decided");
    }
}

#[test]
fn envoys_own_headers_say_the_limit_what_is_left_and_when() {
    let config =
        rules_file("domain: api\ndescriptors:\n- key: client\n  rate_limit: {unit: minute, requests_per_unit: 2, name: per-client}\n");
    let ratelimitd = Ratelimitd::start(&["--config", &config]);
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), patient);
    let first = get(&envoy, "alice");
    assert_eq!(first.header("x-ratelimit-limit"), Some("2, 2;w=60;name=\"per-client\""));
    assert_eq!((first.header("x-ratelimit-remaining"), first.header("x-ratelimit-reset")), (Some("1"), Some("60")));
    get(&envoy, "alice");
    let denied = get(&envoy, "alice");
    assert_eq!((denied.status, denied.header("x-ratelimit-remaining")), (429, Some("0")));
    let wait: u64 = denied.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
}

#[test]
fn all_three_sample_rules_are_reached_through_the_example_configuration() {
    let ratelimitd = Ratelimitd::start(&[]);
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), patient);
    let statuses = |path: &str, client: &str, times: usize| -> Vec<u16> {
        (0..times).map(|_| http::get(envoy.listener, path, &[("x-client", client)]).status).collect()
    };
    assert_eq!(statuses("/", "a", 6), [200, 200, 200, 200, 200, 429]);
    assert_eq!(statuses("/export?page=1", "b", 3), [200, 200, 429]);
    assert_eq!(statuses("/login", "c", 1), [200]);
    let page = http::get(ratelimitd.metrics(), "/metrics", &[]).body;
    for rule in ["client", "path=/login", "path=/export|client"] {
        let hits = page
            .lines()
            .find(|line| line.starts_with("ratelimit_service_rate_limit_total_hits") && line.contains(&format!("rule=\"{rule}\"")));
        assert!(hits.is_some_and(|line| !line.ends_with(" 0")), "{rule}: {hits:?}");
    }
}

fn calls(metrics: SocketAddr) -> u64 {
    let page = http::get(metrics, "/metrics", &[]).body;
    let line = page.lines().find(|line| line.starts_with("ratelimit_service_total_requests{grpc_method=\"ShouldRateLimit\"}"));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |number| number.parse().unwrap())
}
