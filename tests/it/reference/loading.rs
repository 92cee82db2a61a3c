//! The facts' section Loading and health: how the program starts, what keeps it from starting, what a signal does, and what
//! health says. What `process.rs` holds is not repeated here.

use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Server, at, domain, fails_to_start, folder, until};
use crate::support::grpc::Client;
use crate::support::http;
use crate::support::ratelimitd::rules_file;

const SUCCESSES: &str = "ratelimit_service_config_load_success";
const ERRORS: &str = "ratelimit_service_config_load_error";

fn health(server: &Server, service: &str) -> Result<ServingStatus, tonic::Code> {
    let client = Client::connect(server.process.grpc());
    let check = HealthCheckRequest { service: service.to_owned() };
    let answer = client.runtime.block_on(HealthClient::new(client.channel.clone()).check(check));
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

fn healthcheck(server: &Server) -> u16 {
    http::get(server.process.http(), "/healthcheck", &[]).status
}

// Starting.

#[test]
fn differs_broken_rules_end_the_start_with_all_problems_and_exit_code_1() {
    let folder = folder(&[("a.yaml", "domain: d\ncolour: red\n"), ("b.yaml", "domain: [\n"), ("c.yaml", "domain: c\n")]);
    let (code, said) = fails_to_start(&["--config", folder.to_str().unwrap()], &[]);
    assert!(code == 1 && said.contains("a.yaml:2:1") && said.contains("b.yaml:2:1"), "{said}");
}

#[test]
fn differs_a_missing_rules_folder_ends_the_start_with_exit_code_1_and_names_it() {
    let root = folder(&[]);
    for (args, environment) in [
        (&["--config", "/nowhere/rules"][..], &[][..]),
        (&[], &[("RUNTIME_ROOT", root.to_str().unwrap()), ("RUNTIME_SUBDIRECTORY", "nowhere")]),
    ] {
        let (code, said) = fails_to_start(args, environment);
        assert!(code == 1 && said.contains("nowhere"), "{said}");
    }
}

#[test]
fn a_setting_of_the_wrong_form_ends_the_start_with_exit_code_2_and_names_it() {
    let rules = rules_file("domain: d\n");
    for (name, value) in [("PORT", "http"), ("REDIS_TIMEOUT", "soon")] {
        let (code, said) = fails_to_start(&["--config", &rules], &[(name, value)]);
        assert!(code == 2 && said.contains(value), "{name}: {said}");
    }
}

#[test]
fn a_wrong_boolean_or_ratio_in_a_setting_ends_the_start_too() {
    let rules = rules_file("domain: d\n");
    for name in [
        "SHADOW_MODE",
        "QUOTA_MODE",
        "MERGE_DOMAIN_CONFIG",
        "LIMIT_RESPONSE_HEADERS_ENABLED",
        "RESPONSE_DYNAMIC_METADATA",
        "NEAR_LIMIT_RATIO",
    ] {
        let (code, said) = fails_to_start(&["--config", &rules], &[(name, "perhaps")]);
        assert!(code == 2 && said.contains("perhaps"), "{name}: {said}");
    }
}

#[test]
fn booleans_in_settings_are_read_as_go_reads_them() {
    for (value, shadowed) in
        [("1", true), ("t", true), ("T", true), ("True", true), ("TRUE", true), ("0", false), ("f", false), ("FALSE", false)]
    {
        let server = Server::with("- {key: none, @0}\n", &[("SHADOW_MODE", value)]);
        assert_eq!(server.admits("none=1"), shadowed, "{value}");
    }
}

#[test]
fn an_unknown_backend_type_or_config_type_ends_the_start_with_exit_code_1() {
    let rules = rules_file("domain: d\n");
    for (name, value) in [("BACKEND_TYPE", "etcd"), ("CONFIG_TYPE", "ETCD")] {
        let (code, said) = fails_to_start(&["--config", &rules], &[(name, value)]);
        assert!(code == 1 && said.contains(name), "{said}");
    }
}

#[test]
fn differs_an_unknown_log_level_ends_the_start_with_exit_code_2_as_any_setting_of_the_wrong_form() {
    let rules = rules_file("domain: d\n");
    let (code, said) = fails_to_start(&["--config", &rules], &[("LOG_LEVEL", "chatty")]);
    assert!(code == 2 && said.contains("chatty"), "{said}");
}

#[test]
fn differs_statsd_settings_are_named_in_a_warning_and_end_nothing() {
    let server = Server::with("- {key: a, @100}\n", &[("USE_STATSD", "true"), ("USE_PROMETHEUS", "true")]);
    assert_eq!(server.lands_on("a=1"), Some(100));
    let log = server.process.log();
    assert!(log.iter().any(|line| line["level"] == "WARN" && line.to_string().contains("USE_STATSD")), "{log:#?}");
}

#[test]
fn differs_redis_may_be_away_at_start() {
    let away = [("BACKEND_TYPE", "redis"), ("REDIS_URL", "127.0.0.1:1")];
    let server = Server::with("- {key: a, @1}\n", &away);
    // Each server by itself, which is the failure policy unless another is set.
    assert!(server.admits("a=1") && !server.admits("a=1"));
}

// Reloading.

#[test]
fn one_bad_file_drops_the_whole_new_configuration_and_the_old_one_goes_on() {
    let server = Server::serving(
        &[("a.yaml", "domain: a\ndescriptors:\n- {key: k, @101}\n"), ("b.yaml", "domain: b\ndescriptors:\n- {key: k, @102}\n")],
        &[],
    );
    server.rewrite("a.yaml", "domain: a\ndescriptors:\n- {key: k, @201}\n");
    until("the new limit", || server.lands_in("a", "k=v") == Some(201));
    server.rewrite("b.yaml", "domain: b\ndescriptors: [\n");
    until("the error", || server.sum(ERRORS, &[]) > 0);
    // A good change beside the bad file.
    let before = server.sum(ERRORS, &[]);
    server.rewrite("a.yaml", "domain: a\ndescriptors:\n- {key: k, @301}\n");
    until("the error again", || server.sum(ERRORS, &[]) > before);
    assert_eq!((server.lands_in("a", "k=v"), server.lands_in("b", "k=v")), (Some(201), Some(102)));
    server.rewrite("b.yaml", "domain: b\ndescriptors:\n- {key: k, @302}\n");
    until("both new limits", || (server.lands_in("a", "k=v"), server.lands_in("b", "k=v")) == (Some(301), Some(302)));
}

#[test]
fn loads_that_succeed_and_loads_that_fail_are_counted() {
    let server = Server::of("- {key: a, @101}\n");
    assert_eq!((server.sum(SUCCESSES, &[]), server.sum(ERRORS, &[])), (1, 0));
    server.rewrite("rules.yaml", &domain("- {key: a, @102}\n"));
    until("the second load", || server.sum(SUCCESSES, &[]) > 1);
    assert_eq!((server.lands_on("a=1"), server.sum(ERRORS, &[])), (Some(102), 0));
    server.rewrite("rules.yaml", "domain: d\ndescriptors: 5\n");
    until("the failed load", || server.sum(ERRORS, &[]) > 0);
    assert_eq!(server.lands_on("a=1"), Some(102));
}

#[test]
fn differs_sighup_reloads_and_sigterm_and_sigint_end_it_with_exit_code_0() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::of("- {key: a, @101}\n");
        server.process.signal("HUP");
        until("the same rules loaded again", || server.sum(SUCCESSES, &[]) == 2);
        assert_eq!(server.lands_on("a=1"), Some(101));
        server.process.signal(signal);
        assert_eq!(server.process.wait_for_exit().code(), Some(0));
    }
}

// Health.

#[test]
fn health_is_known_for_ratelimit_and_for_the_server_and_not_found_for_others() {
    let server = Server::of("- {key: a, @1}\n");
    assert_eq!(health(&server, "ratelimit"), Ok(ServingStatus::Serving));
    assert_eq!(health(&server, ""), Ok(ServingStatus::Serving));
    assert_eq!(health(&server, "envoy.service.ratelimit.v3.RateLimitService"), Err(tonic::Code::NotFound));
    assert_eq!(healthcheck(&server), 200);
}

#[test]
fn without_a_word_about_it_a_server_without_domains_is_healthy() {
    let server = Server::serving(&[], &[]);
    assert_eq!((health(&server, "ratelimit"), healthcheck(&server)), (Ok(ServingStatus::Serving), 200));
}

#[test]
fn with_healthy_with_at_least_one_config_loaded_it_is_not_healthy_until_a_domain_is_loaded() {
    let server = Server::serving(&[], &[("HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", "true")]);
    assert_eq!((health(&server, "ratelimit"), healthcheck(&server)), (Ok(ServingStatus::NotServing), 500));
    // There, this one is always SERVING.
    assert_eq!(health(&server, ""), Ok(ServingStatus::NotServing));
    assert!(server.ask_whole(&json!({"domain": "d", "descriptors": [at("a=1")]})).admitted(), "it answers all the same");
    server.rewrite("rules.yaml", &domain("- {key: a, @101}\n"));
    until("the first rules", || server.lands_on("a=1") == Some(101));
    until("health", || healthcheck(&server) == 200 && health(&server, "ratelimit") == Ok(ServingStatus::Serving));
}
