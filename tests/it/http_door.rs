//! The HTTP door of a real server: /json, /healthcheck, /v1/is_allowed and the metrics page.

use serde_json::json;

use crate::support::http::{self, Response};
use crate::support::ratelimitd::{Ratelimitd, rules_file};

fn start() -> Ratelimitd {
    let rules = "domain: d\ndescriptors:\n- key: k\n  value: v\n  rate_limit: {unit: day, requests_per_unit: 2, name: two}\n- key: k\n  rate_limit: {limit: 1, window: 1h}\n";
    Ratelimitd::start(&["--config", &rules_file(rules)])
}

fn is_allowed(server: &Ratelimitd, question: &serde_json::Value) -> Response {
    http::post(server.http(), "/v1/is_allowed", question.to_string().as_bytes())
}

#[test]
fn json_answers_as_the_reference_server_does() {
    let server = start();
    let asked = json!({"domain": "d", "descriptors": [{"entries": [{"key": "k", "value": "v"}]}], "hitsAddend": 2});
    let first = http::post(server.http(), "/json", asked.to_string().as_bytes());
    assert_eq!(first.status, 200);
    assert_eq!(first.header("content-type"), Some("application/json"));
    let limit = json!({"name": "two", "requestsPerUnit": 2, "unit": "DAY"});
    let expected = json!({"overallCode": "OK", "statuses": [{"code": "OK", "currentLimit": limit, "durationUntilReset": "86400s"}]});
    assert_eq!(first.json(), expected);
    // Any method, snake_case too.
    let snake = json!({"domain": "d", "descriptors": [{"entries": [{"key": "k", "value": "v"}]}], "hits_addend": 1});
    let second = http::request(server.http(), "PUT", "/json", &[], snake.to_string().as_bytes());
    assert_eq!((second.status, second.json()["overallCode"].as_str()), (429, Some("OVER_LIMIT")));
}

#[test]
fn json_of_the_wrong_shape_is_a_bad_request_that_says_where() {
    let server = start();
    for (body, says) in [
        ("", "EOF"),
        ("[]", "Bad Request"),
        ("{\"domain\": 1}", "line 1"),
        ("{\"domain\": \"d\", \"colour\": 1}", "colour"),
        ("{\"domain\": \"d\"}", "descriptor list must not be empty"),
        ("{\"descriptors\": [{}]}", "domain must not be empty"),
        ("{\"domain\": \"d\", \"descriptors\": [{}]} x", "trailing"),
    ] {
        let answer = http::post(server.http(), "/json", body.as_bytes());
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.body.starts_with("Bad Request: ") && answer.body.contains(says), "{body}: {}", answer.body);
    }
}

#[test]
fn healthcheck_says_ok() {
    let server = start();
    let answer = http::get(server.http(), "/healthcheck", &[]);
    assert_eq!((answer.status, answer.body.as_str()), (200, "OK"));
}

#[test]
fn is_allowed_counts_looks_and_says_what_is_left() {
    let server = start();
    let ask = |cost: Option<u64>| {
        let mut question = json!({"client_id": "alice", "action": "login", "limit": 3, "time_window": 60});
        if let Some(cost) = cost {
            question["cost"] = cost.into();
        }
        let answer = is_allowed(&server, &question);
        assert_eq!(answer.status, 200);
        answer.json()
    };
    assert_eq!(ask(Some(0)), json!({"allowed": true, "remaining": 3, "reset_after_seconds": 0}));
    assert_eq!(ask(None), json!({"allowed": true, "remaining": 2, "reset_after_seconds": 60}));
    assert_eq!(ask(Some(3)), json!({"allowed": false, "remaining": 2, "reset_after_seconds": 60}));
    assert_eq!(ask(Some(2)), json!({"allowed": true, "remaining": 0, "reset_after_seconds": 60}));
    assert_eq!(ask(None), json!({"allowed": false, "remaining": 0, "reset_after_seconds": 60}));
    assert_eq!(ask(Some(4))["reset_after_seconds"], 60, "a cost that never fits waits for the window");
}

#[test]
fn a_domain_shares_a_rules_counter_on_purpose() {
    let server = start();
    let question = json!({"domain": "d", "client_id": "alice", "action": "k", "limit": 1, "time_window": 3600});
    assert_eq!(is_allowed(&server, &question).json()["allowed"], true);
    let asked = json!({"domain": "d", "descriptors": [{"entries": [{"key": "k", "value": "alice"}]}]});
    assert_eq!(http::post(server.http(), "/json", asked.to_string().as_bytes()).status, 429);
}

#[test]
fn mistakes_of_is_allowed_get_400_and_name_the_field() {
    let server = start();
    let good = json!({"client_id": "a", "action": "b", "limit": 1, "time_window": 1});
    for (field, value, says) in [
        ("client_id", json!(""), "client_id must not be empty"),
        ("client_id", json!(7), "client_id must be a string, not 7"),
        ("action", json!(""), "action must not be empty"),
        ("action", json!(null), "action must be a string, not null"),
        ("limit", json!(0), "limit must be a positive integer, not 0"),
        ("limit", json!(-1), "limit must be a positive integer, not -1"),
        ("limit", json!(1.5), "limit must be a positive integer, not 1.5"),
        ("limit", json!("5"), "limit must be a positive integer, not \"5\""),
        ("limit", json!(1_000_000_000_000_001u64), "limit must be at most 1000000000000000, not 1000000000000001"),
        ("time_window", json!(0), "time_window must be a positive integer of seconds, not 0"),
        ("time_window", json!(true), "time_window must be a positive integer, not true"),
        ("time_window", json!(315_360_001), "time_window must be at most 315360000 seconds (10 years), not 315360001"),
        ("cost", json!(-2), "cost must be a non-negative integer, not -2"),
        ("domain", json!(3), "domain must be a string, not 3"),
    ] {
        let mut question = good.clone();
        question[field] = value;
        let answer = is_allowed(&server, &question);
        assert_eq!((answer.status, answer.json()), (400, json!({"error": says, "field": field})));
    }
    for field in ["client_id", "action", "limit", "time_window"] {
        let mut question = good.clone();
        question.as_object_mut().unwrap().remove(field);
        assert_eq!(is_allowed(&server, &question).json(), json!({"error": format!("{field} is missing"), "field": field}));
    }
    for (body, says) in [("{", "the body is not JSON"), ("[1]", "must be a JSON object"), ("{\"client\": \"a\"}", "unknown field `client`")]
    {
        let answer = http::post(server.http(), "/v1/is_allowed", body.as_bytes());
        assert!(answer.status == 400 && answer.json()["error"].as_str().unwrap().contains(says), "{body}: {}", answer.body);
    }
    assert_eq!(http::get(server.http(), "/v1/is_allowed", &[]).status, 405);
}

#[test]
fn metrics_tell_requests_hits_and_the_store_with_labels_of_loaded_rules_alone() {
    let server = start();
    for value in ["v", "v", "v", "secret"] {
        let asked = json!({"domain": "d", "descriptors": [{"entries": [{"key": "k", "value": value}]}]});
        http::post(server.http(), "/json", asked.to_string().as_bytes());
    }
    let answer = http::get(server.metrics(), "/metrics", &[]);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in [
        "ratelimit_service_rate_limit_total_hits{domain=\"d\",key1=\"k_v\",rule=\"k=v\"} 3",
        "ratelimit_service_rate_limit_within_limit{domain=\"d\",key1=\"k_v\",rule=\"k=v\"} 2",
        "ratelimit_service_rate_limit_over_limit{domain=\"d\",key1=\"k_v\",rule=\"k=v\"} 1",
        "ratelimit_service_rate_limit_total_hits{domain=\"d\",key1=\"k\",rule=\"k\"} 1",
        "ratelimit_http_requests{path=\"/json\"} 4",
        "ratelimit_store_calls{store=\"memory\"} 4",
        "ratelimit_rules_loaded 2",
        "ratelimit_domains_loaded 1",
        "# TYPE ratelimit_service_response_time_seconds histogram",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line}:\n{}", answer.body);
    }
    assert!(!answer.body.contains("secret"));
}
