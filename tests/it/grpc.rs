//! The gRPC door of a real server: replies, costs, overrides, reflection, and callers that go away.

use std::time::{Duration, Instant};

use distributed_rate_limiter::grpc::pb::rate_limit_descriptor::RateLimitOverride;
use distributed_rate_limiter::grpc::pb::rate_limit_response::{Code, rate_limit::Unit};
use distributed_rate_limiter::grpc::pb::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse, RateLimitUnit};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as envoys_descriptor;
use envoy_types::pb::envoy::service::ratelimit::v3 as envoys;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use tokio_stream::StreamExt;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, rules_file};
use crate::support::redis::RedisServer;

const RULES: &str = "
domain: d
descriptors:
- key: five
  rate_limit: {limit: 5, window: 1h}
- key: one
  rate_limit: {unit: hour, requests_per_unit: 1, name: single}
- key: tokens
  rate_limit: {unit: day, requests_per_unit: 100}
- key: none
  rate_limit: {unit: day, requests_per_unit: 0}
- key: watched
  shadow_mode: true
  rate_limit: {unit: day, requests_per_unit: 1}
";

fn start() -> (Ratelimitd, Client) {
    let server = Ratelimitd::start(&["--config", &rules_file(RULES)]);
    let client = Client::connect(server.grpc());
    (server, client)
}

fn costing(entries: &[(&str, &str)], hits: u64) -> RateLimitDescriptor {
    RateLimitDescriptor { hits_addend: Some(hits), ..descriptor(entries) }
}

fn refund(entries: &[(&str, &str)], hits: u64) -> RateLimitDescriptor {
    RateLimitDescriptor { is_negative_hits: true, ..costing(entries, hits) }
}

fn ask(descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    request("d", descriptors)
}

#[test]
fn an_empty_domain_or_no_descriptors_is_an_invalid_argument_that_says_which() {
    let (_server, client) = start();
    let refused = |asked| client.try_ask(asked).unwrap_err();
    let status = refused(request("", vec![descriptor(&[("five", "a")])]));
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("domain must not be empty"), "{status}");
    let status = refused(request("d", vec![]));
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("descriptor list must not be empty"), "{status}");
}

#[test]
fn a_client_that_was_generated_from_envoys_files_is_served() {
    let (_server, client) = start();
    let entries = vec![envoys_descriptor::rate_limit_descriptor::Entry { key: "one".into(), value: "a".into() }];
    let descriptors = vec![envoys_descriptor::RateLimitDescriptor { entries, ..Default::default() }];
    let asked = envoys::RateLimitRequest { domain: "d".into(), descriptors, hits_addend: 0 };
    let mut generated = RateLimitServiceClient::new(client.channel.clone());
    for expected in [Code::Ok, Code::OverLimit] {
        let answer = client.runtime.block_on(generated.should_rate_limit(asked.clone())).unwrap().into_inner();
        assert_eq!((answer.overall_code, answer.statuses[0].code), (expected as i32, expected as i32));
        assert_eq!(answer.statuses[0].current_limit.as_ref().unwrap().name, "single");
    }
}

#[test]
fn a_method_that_the_service_does_not_have_is_unimplemented() {
    let (_server, client) = start();
    let path = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimits".parse().unwrap();
    let asked = tonic::Request::new(ask(vec![descriptor(&[("one", "a")])]));
    let status = client.runtime.block_on(async {
        let mut grpc = tonic::client::Grpc::new(client.channel.clone());
        grpc.ready().await.unwrap();
        grpc.unary::<_, RateLimitResponse, _>(asked, path, ProstCodec::default()).await.unwrap_err()
    });
    assert_eq!(status.code(), tonic::Code::Unimplemented, "{status}");
}

#[test]
fn there_is_one_status_for_each_descriptor_in_order() {
    let (_server, client) = start();
    let descriptors = || vec![descriptor(&[("one", "a")]), descriptor(&[("unknown", "x")]), descriptor(&[]), descriptor(&[("five", "a")])];
    let answer = client.ask(ask(descriptors()));
    assert_eq!(answer.overall_code, Code::Ok as i32);
    let limits: Vec<_> = answer.statuses.iter().map(|status| status.current_limit.as_ref().map(|limit| limit.requests_per_unit)).collect();
    assert_eq!(limits, [Some(1), None, None, Some(5)]);
    assert_eq!(answer.statuses[0].current_limit.as_ref().unwrap().name, "single");
    assert_eq!((answer.statuses[0].limit_remaining, answer.statuses[3].limit_remaining), (0, 4));
    let denied = client.ask(ask(descriptors()));
    assert_eq!(denied.overall_code, Code::OverLimit as i32);
    assert_eq!(denied.statuses.iter().map(|status| status.code).collect::<Vec<_>>(), [2, 1, 1, 1]);
    assert_eq!(denied.statuses[3].limit_remaining, 4, "nothing of a denied request is counted");
    assert_eq!(denied.statuses[0].duration_until_reset.as_ref().unwrap().seconds, 3600);
}

#[test]
fn what_no_rule_knows_passes_and_is_measured() {
    let (server, client) = start();
    assert!(client.admits(request("other", vec![descriptor(&[("five", "a")])])));
    assert!(client.admits(ask(vec![descriptor(&[("five", "a"), ("deeper", "b")])])));
    let page = http::get(server.metrics(), "/metrics", &[]).body;
    assert!(page.contains("ratelimit_unmatched_domains 1\n") && page.contains("ratelimit_unmatched_descriptors 1\n"), "{page}");
}

#[test]
fn a_request_limit_override_wins_over_the_rule_and_one_that_names_no_window_is_dropped() {
    let (server, client) = start();
    let carrying = |requests_per_unit, unit, unit_multiplier| {
        let limit = RateLimitOverride { requests_per_unit, unit, unit_multiplier };
        client.ask(ask(vec![RateLimitDescriptor { limit: Some(limit), ..descriptor(&[("five", "o")]) }]))
    };
    assert_eq!(carrying(0, 1, None).overall_code, Code::OverLimit as i32, "0 per second denies");
    let large = carrying(4_294_967_293, 3, None);
    assert_eq!((large.overall_code, large.statuses[0].limit_remaining), (1, 4_294_967_292));
    let dropped = [(0, None), (1, Some(0)), (6, Some(11))].map(|(unit, multiplier)| carrying(1, unit, multiplier));
    for (ruled, left) in dropped.iter().zip([4, 3, 2]) {
        assert_eq!(ruled.statuses[0].current_limit.as_ref().unwrap().requests_per_unit, 5);
        assert_eq!(ruled.statuses[0].limit_remaining, left);
    }
    server.wait_for_log("override that names no window");
    assert!(http::get(server.metrics(), "/metrics", &[]).body.contains("ratelimit_dropped_overrides 3\n"));
}

#[test]
fn an_overrides_window_is_its_unit_times_its_multiplier_and_is_told_as_such() {
    let (_server, client) = start();
    let told = |unit: RateLimitUnit, multiplier| {
        let limit = RateLimitOverride { requests_per_unit: 1, unit: unit.into(), unit_multiplier: Some(multiplier) };
        let answer = client.ask(ask(vec![RateLimitDescriptor { limit: Some(limit), ..descriptor(&[("five", "m")]) }]));
        let status = answer.statuses[0].clone();
        let current = status.current_limit.unwrap();
        (answer.overall_code(), current.unit(), current.unit_multiplier, status.duration_until_reset.unwrap().seconds)
    };
    assert_eq!(told(RateLimitUnit::Minute, 5), (Code::Ok, Unit::Minute, Some(5), 300));
    assert_eq!(told(RateLimitUnit::Day, 14), (Code::Ok, Unit::Week, Some(2), 14 * 86_400), "another window, another counter");
    // As long as five minutes, so the same counter.
    assert_eq!(told(RateLimitUnit::Second, 300), (Code::OverLimit, Unit::Minute, Some(5), 300));
}

#[test]
fn peeks_charges_and_refunds_count_as_envoy_means_them() {
    let (_server, client) = start();
    let left = |asked: RateLimitDescriptor| {
        let answer = client.ask(ask(vec![asked]));
        (answer.overall_code, answer.statuses[0].limit_remaining)
    };
    let user = [("tokens", "u")];
    assert_eq!(left(costing(&user, 0)), (1, 100), "a peek takes nothing");
    assert_eq!(left(costing(&user, 90)), (1, 10));
    assert_eq!(left(costing(&user, 0)), (1, 10));
    // Spent already, so counted although it no longer fits; the next peek is denied.
    assert_eq!(left(costing(&user, 250)), (2, 0));
    assert_eq!(left(costing(&user, 0)), (2, 0));
    assert_eq!(left(refund(&user, 241)), (1, 1));
    assert_eq!(left(costing(&user, 0)), (1, 1));
    assert_eq!(left(refund(&user, 1_000_000)), (1, 100), "never below zero used");
    assert_eq!(left(costing(&user, 1 << 63)), (2, 0), "`nan` in Envoy: it never fits");
    assert_eq!(left(costing(&user, 0)), (1, 100), "and records nothing");
    let by_request = RateLimitRequest { hits_addend: u32::MAX, ..ask(vec![descriptor(&user)]) };
    assert!(!client.admits(by_request));
}

#[test]
fn limit_0_denies_and_shadow_mode_never_does() {
    let (_server, client) = start();
    assert!(!client.admits(ask(vec![descriptor(&[("none", "a")])])));
    for _ in 0..3 {
        let answer = client.ask(ask(vec![descriptor(&[("watched", "a")])]));
        assert_eq!((answer.overall_code, answer.statuses[0].code, answer.statuses[0].limit_remaining), (1, 1, 0));
    }
}

#[test]
fn reflection_lists_the_services_and_describes_the_messages() {
    let (_server, client) = start();
    let ask = |message| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        client.runtime.block_on(async {
            let mut reflection = ServerReflectionClient::new(client.channel.clone());
            let mut answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
            answers.next().await.unwrap().unwrap().message_response.unwrap()
        })
    };
    let MessageResponse::ListServicesResponse(services) = ask(MessageRequest::ListServices(String::new())) else { panic!("no list") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"envoy.service.ratelimit.v3.RateLimitService") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let symbol = MessageRequest::FileContainingSymbol("envoy.service.ratelimit.v3.RateLimitRequest".into());
    let MessageResponse::FileDescriptorResponse(files) = ask(symbol) else { panic!("no descriptor") };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[test]
fn a_hit_whose_caller_goes_away_is_counted_once_and_whole() {
    let redis = RedisServer::start();
    let config = rules_file(RULES);
    let server = Ratelimitd::start(&["--config", &config, "--redis-url", &redis.url(), "--redis-timeout", "10s"]);
    let client = Client::connect(server.grpc());
    assert!(client.admits(ask(vec![descriptor(&[("one", "warm")])])));
    redis.command(&["CLIENT", "PAUSE", "1500", "ALL"]);
    // As Envoy does it after 20 ms: the stream is reset, and the handler with it dropped, while its batch is under way.
    client.runtime.block_on(async {
        let mut service = client.service();
        let call = service.should_rate_limit(ask(vec![descriptor(&[("five", "x")]), descriptor(&[("tokens", "x")])]));
        assert!(tokio::time::timeout(Duration::from_millis(500), call).await.is_err());
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    let peek = || client.ask(ask(vec![costing(&[("five", "x")], 0), costing(&[("tokens", "x")], 0)]));
    while peek().statuses[0].limit_remaining == 5 {
        assert!(Instant::now() < deadline, "the hit was lost");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    let left: Vec<_> = peek().statuses.iter().map(|status| status.limit_remaining).collect();
    assert_eq!(left, [4, 99]);
}

#[test]
fn while_redis_is_away_the_failure_policy_answers_and_redis_is_used_again_when_it_is_back() {
    let redis = RedisServer::start();
    let config = rules_file(RULES);
    let start = |policy: &str| {
        Ratelimitd::start(&["--config", &config, "--redis-url", &redis.url(), "--on-store-failure", policy, "--redis-timeout", "100ms"])
    };
    let servers = ["local", "allow", "deny", "error"].map(|policy| (policy, start(policy)));
    redis.command(&["CLIENT", "PAUSE", "3000", "ALL"]);
    let paused = Instant::now();
    for (policy, server) in &servers {
        let client = Client::connect(server.grpc());
        let twice = [0, 1].map(|_| {
            let answer = client.try_ask(ask(vec![descriptor(&[("one", policy)])]));
            // On a busy machine the first one's deadline may be noticed a little before that of connecting.
            std::thread::sleep(Duration::from_millis(50));
            answer.map(|answer| answer.overall_code).map_err(|status| status.code())
        });
        let expected = match *policy {
            "local" => [Ok(1), Ok(2)],
            "allow" => [Ok(1), Ok(1)],
            "deny" => [Ok(2), Ok(2)],
            _ => [Err(tonic::Code::Unavailable), Err(tonic::Code::Unavailable)],
        };
        assert_eq!(twice, expected, "{policy}");
        let page = http::get(server.metrics(), "/metrics", &[]).body;
        assert!(page.contains(&format!("ratelimit_policy_answers{{policy=\"{policy}\"}} 2\n")), "{page}");
        // The second finds that connecting takes too long already, and does not wait.
        for reason in ["deadline", "connection"] {
            assert!(page.contains(&format!("ratelimit_store_failures{{store=\"redis\",reason=\"{reason}\"}} 1\n")), "{page}");
        }
    }
    assert!(paused.elapsed() < Duration::from_millis(2900), "the machine is too slow for this test to say anything");
    for (policy, server) in &servers {
        let client = Client::connect(server.grpc());
        let deadline = Instant::now() + Duration::from_secs(10);
        // A hit that Redis, asked past every server, has recorded.
        let key = format!("1{{d|back-{policy}}}log|3600000000|five");
        while redis.command(&["EXISTS", &key]) != redis::Value::Int(1) {
            let _ = client.try_ask(ask(vec![descriptor(&[("five", &format!("back-{policy}"))])]));
            assert!(Instant::now() < deadline, "{policy}: Redis is not used again");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_client_over_its_limit_is_denied_without_asking_redis_and_is_counted_so() {
    let redis = RedisServer::start();
    let config = rules_file(RULES);
    for (size, by_denial) in [(None, 8), (Some("0"), 0)] {
        redis.command(&["FLUSHALL"]);
        let args = ["--config", &config, "--redis-url", &redis.url(), "--redis-timeout", "2s"];
        let environment: Vec<_> = size.map(|size| ("LOCAL_CACHE_SIZE_IN_BYTES", size)).into_iter().collect();
        let server = Ratelimitd::start_with(&args, &environment);
        let client = Client::connect(server.grpc());
        let answers: Vec<_> = (0..10).map(|_| client.ask(ask(vec![descriptor(&[("one", "x")])]))).collect();
        assert!(
            answers[0].overall_code == Code::Ok as i32 && answers[1..].iter().all(|answer| answer.overall_code == Code::OverLimit as i32)
        );
        let wait = |answer: &RateLimitResponse| answer.statuses[0].duration_until_reset.unwrap().seconds;
        assert!((3_590..=3_600).contains(&wait(&answers[9])), "the whole wait is told: {}", wait(&answers[9]));
        let page = http::get(server.metrics(), "/metrics", &[]).body;
        for (series, value) in [
            ("ratelimit_service_rate_limit_over_limit{domain=\"d\",key1=\"one\",rule=\"one\"}", 9),
            ("ratelimit_service_rate_limit_over_limit_with_local_cache{domain=\"d\",key1=\"one\",rule=\"one\"}", by_denial),
            ("ratelimit_store_denial_answers{store=\"redis\"}", by_denial),
            ("ratelimit_store_calls{store=\"redis\"}", 10 - by_denial),
        ] {
            assert!(page.contains(&format!("{series} {value}\n")), "{series} is not {value}: {page}");
        }
        // The admin port's reset reaches the denials of the threads that serve.
        http::post(server.admin(), "/reset?domain=d&one=x", b"");
        assert!(client.admits(ask(vec![descriptor(&[("one", "x")])])));
    }
}
