//! `on_store_failure` by rule, by domain and by process, with a Redis that is not there.

use serde_json::{Value, json};

use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, scratch};

const RULES: &str = "
domain: d
on_store_failure: allow
default: {limit: 1, window: 1m}
descriptors:
  - key: allowed
    rate_limit: {limit: 1, window: 1m}
  - key: denied
    on_store_failure: deny
    rate_limit: {name: closed, limit: 5, window: 1m}
  - key: local
    on_store_failure: local
    rate_limit: {limit: 1, window: 1m}
  - key: error
    on_store_failure: error
    rate_limit: {limit: 5, window: 1m}
";

fn start(args: &[&str]) -> Ratelimitd {
    let folder = scratch("policies");
    let (rules, other) = (folder.join("d.yaml"), folder.join("e.yaml"));
    std::fs::write(&rules, RULES).unwrap();
    std::fs::write(&other, "domain: e\ndescriptors: [{key: k, rate_limit: {limit: 1, window: 1m}}]").unwrap();
    // Nothing listens on port 1.
    let store = ["--redis-url", "127.0.0.1:1", "--config", folder.to_str().unwrap()];
    Ratelimitd::start(&[&store, args].concat())
}

/// The HTTP status and the body for a request with a descriptor of each key.
fn ask(server: &Ratelimitd, domain: &str, keys: &[&str]) -> (u16, Value) {
    let descriptors: Vec<_> = keys.iter().map(|key| json!({"entries": [{"key": key, "value": "x"}]})).collect();
    let answer = http::post(server.http(), "/json", json!({"domain": domain, "descriptors": descriptors}).to_string().as_bytes());
    (answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::String(answer.body)))
}

#[test]
fn a_rules_own_policy_wins_over_its_domains_and_that_over_the_processs() {
    let server = start(&["--on-store-failure", "deny"]);
    for _ in 0..3 {
        assert_eq!(ask(&server, "d", &["allowed"]).0, 200, "by the domain");
        assert_eq!(ask(&server, "d", &["nobody"]).0, 200, "the default, by the domain");
        assert_eq!(ask(&server, "e", &["k"]).0, 429, "by the process");
        let (status, told) = ask(&server, "d", &["denied"]);
        assert_eq!((status, &told["statuses"][0]["currentLimit"]["name"]), (429, &json!("closed")));
        assert_eq!(told["statuses"][0]["durationUntilReset"], json!("1s"));
        let (status, told) = ask(&server, "d", &["error"]);
        assert!(status == 400 && told.as_str().unwrap().contains("the store"), "{told}");
    }
    let page = http::get(server.metrics(), "/metrics", &[]).body;
    for (name, hits) in [("total_hits", 3), ("within_limit", 0), ("near_limit", 0), ("over_limit", 3)] {
        let line = format!("ratelimit_service_rate_limit_{name}{{domain=\"d\",key1=\"denied\",rule=\"denied\"}} {hits}");
        assert!(page.lines().any(|found| found == line), "{line}: {page}");
    }
    let statuses: Vec<u16> = (0..3).map(|_| ask(&server, "d", &["local"]).0).collect();
    assert_eq!(statuses, [200, 429, 429], "this server enforces it by itself");
}

#[test]
fn of_several_policies_in_one_request_error_wins_then_deny_then_what_is_left_is_decided_together() {
    let server = start(&[]);
    assert_eq!(ask(&server, "d", &["denied", "error"]).0, 400);
    assert_eq!(ask(&server, "d", &["local", "denied"]).0, 429);
    assert_eq!(ask(&server, "d", &["local", "allowed"]).0, 200, "the denied request used up nothing");
    assert_eq!(ask(&server, "d", &["local", "allowed"]).0, 429);
    let page = http::get(server.metrics(), "/metrics", &[]).body;
    for (policy, answers) in [("error", 1), ("deny", 2), ("local", 3), ("allow", 2)] {
        let line = format!("ratelimit_policy_answers{{policy=\"{policy}\"}} {answers}");
        assert!(page.lines().any(|found| found == line), "{line}: {page}");
    }
}
