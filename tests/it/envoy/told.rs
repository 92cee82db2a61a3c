//! What the server tells Envoy beside yes and no: windows for its own headers, overrides that it sent, headers of ours, and
//! metadata for its access log.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{get, patient, rule};
use crate::support::envoy::{Envoy, upstream, with_access_log, with_rate_limits};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, rules_file, scratch};

const CLIENT: &str = "{request_headers: {header_name: x-client, descriptor_key: client}}";

#[test]
fn envoys_header_shows_a_window_of_any_whole_seconds() {
    let windows = [("5m", "300"), ("90s", "90"), ("1s", "1"), ("14d", "1209600"), ("360d", "31104000"), ("365d", "31536000")];
    let mut rules = "domain: api\ndescriptors:\n".to_owned();
    for window in windows.map(|(window, _)| window).iter().chain(&["1500ms"]) {
        rules.push_str(&format!("- {{key: client, value: {window}, rate_limit: {{limit: 10, window: {window}}}}}\n"));
    }
    let ratelimitd = Ratelimitd::start(&["--config", &rules_file(&rules)]);
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), patient);
    for (window, seconds) in windows {
        let answer = get(&envoy, window);
        assert_eq!(answer.header("x-ratelimit-limit"), Some(format!("10, 10;w={seconds}").as_str()), "{window}");
        assert_eq!(answer.header("x-ratelimit-remaining"), Some("9"));
    }
    // No unit says it, and a false one would be worse than none.
    assert_eq!(get(&envoy, "1500ms").header("x-ratelimit-limit"), Some("10"));
}

#[test]
fn envoys_header_lists_the_limits_of_two_descriptors_with_name_and_window() {
    let rules = "
domain: api
descriptors:
- {key: client, rate_limit: {limit: 10, window: 5m, name: per-client}}
- {key: path, rate_limit: {limit: 20, window: 14d, name: per-path}}
";
    let ratelimitd = Ratelimitd::start(&["--config", &rules_file(rules)]);
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), patient);
    let listed = r#"10, 10;w=300;name="per-client", 20;w=1209600;name="per-path""#;
    assert_eq!(get(&envoy, "alice").header("x-ratelimit-limit"), Some(listed));
}

#[test]
fn an_override_that_envoy_sends_is_counted_and_denied_in_place_of_the_rule() {
    let ratelimitd = Ratelimitd::start(&["--config", &rule(100, "1d")]);
    let limited = format!("{{actions: [{CLIENT}], limit: {{rate_limit: {{requests_per_unit: 2, unit: HOUR}}}}}}");
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), |config| with_rate_limits(&patient(config), &[&limited]));
    let answers: Vec<_> = (0..3).map(|_| get(&envoy, "alice")).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 429]);
    for (answer, left) in answers.iter().zip(["1", "0", "0"]) {
        assert_eq!(answer.header("x-ratelimit-limit"), Some("2, 2;w=3600"));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(left));
    }
    assert_eq!(get(&envoy, "bob").status, 200);
}

#[test]
fn an_override_of_an_unknown_unit_leaves_the_rule_in_force() {
    let ratelimitd = Ratelimitd::start(&["--config", &rule(1, "1d")]);
    let limited = format!("{{actions: [{CLIENT}], limit: {{rate_limit: {{requests_per_unit: 50, unit: UNKNOWN}}}}}}");
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), |config| with_rate_limits(&patient(config), &[&limited]));
    let answers = [0; 2].map(|_| get(&envoy, "alice"));
    assert_eq!(answers.each_ref().map(|answer| answer.status), [200, 429]);
    assert_eq!(answers[1].header("x-ratelimit-limit"), Some("1, 1;w=86400"));
    let line = ratelimitd.wait_for_log("override that names no window");
    assert_eq!((&line["unit"], &line["domain"]), (&json!(0), &json!("api")));
}

#[test]
fn envoys_access_log_tells_the_rule_that_denied_and_the_metadata_of_one_that_admitted() {
    let rules = "
domain: api
descriptors:
- key: client
  rate_limit: {limit: 1, window: 1d}
  metadata: {plan: paid, features: [export]}
";
    let ratelimitd = Ratelimitd::start_with(&["--config", &rules_file(rules)], &[("RESPONSE_DYNAMIC_METADATA", "true")]);
    let log = scratch("access-log").join("log");
    let edit = |config| with_access_log(&patient(config), &log, "%RESPONSE_CODE% %DYNAMIC_METADATA(envoy.filters.http.ratelimit)%");
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), edit);
    assert_eq!([0; 2].map(|_| get(&envoy, "alice").status), [200, 429]);
    let lines = lines_of(&log, 2);
    let told = |code: &str| -> Value {
        let metadata = lines.iter().find_map(|line| line.strip_prefix(code)).unwrap_or_else(|| panic!("{code} is logged: {lines:?}"));
        serde_json::from_str(metadata).unwrap()
    };
    let (admitted, denied) = (told("200 "), told("429 "));
    assert_eq!(admitted["metadata"], json!({"plan": "paid", "features": ["export"]}));
    assert_eq!(denied["rule"], json!("client"));
    assert_eq!(denied["metadata"], Value::Null, "of a rule that is over, as the reference does it");
    for told in [&admitted, &denied] {
        assert_eq!(told["domain"], json!("api"));
        assert_eq!(told["descriptors"][0], json!({"entries": ["client=alice"]}));
    }
}

#[test]
fn the_client_gets_our_own_headers_in_the_form_that_was_asked_for() {
    let headers = |environment: &[(&str, &str)]| {
        let ratelimitd = Ratelimitd::start_with(&["--config", &rule(2, "90s")], environment);
        let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), patient);
        [0; 3].map(|_| get(&envoy, "alice"))
    };
    let shown = |answer: &http::Response, names: &[&str]| -> Vec<String> {
        names.iter().map(|name| answer.header(name).unwrap_or("none").to_owned()).collect()
    };
    let plain = headers(&[("LIMIT_RESPONSE_HEADERS_ENABLED", "true")]);
    let names = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"];
    assert_eq!(shown(&plain[0], &names), ["2", "1", "90"]);
    assert_eq!((plain[2].status, &shown(&plain[2], &names)[..2]), (429, &["2".to_owned(), "0".to_owned()][..]));
    assert_eq!(shown(&plain[0], &["ratelimit", "ratelimit-policy"]), ["none", "none"]);

    let draft = headers(&[("LIMIT_RESPONSE_HEADERS_ENABLED", "true"), ("LIMIT_RESPONSE_HEADERS_FORMAT", "draft-10")]);
    assert_eq!(shown(&draft[0], &["ratelimit-policy", "ratelimit"]), [r#""client";q=2;w=90"#, r#""client";r=1;t=90"#]);
    assert_eq!(draft[2].status, 429);
    assert!(shown(&draft[2], &["ratelimit"])[0].starts_with(r#""client";r=0;t="#), "{:?}", draft[2].headers);
    assert_eq!(shown(&draft[0], &names), ["none", "none", "none"]);
}

/// The file's lines once there are so many.
fn lines_of(file: &Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let whole: Vec<String> =
            text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| line.trim_end().to_owned()).collect();
        if whole.len() >= count {
            return whole;
        }
        assert!(Instant::now() < deadline, "{count} lines are written: {text}");
        thread::sleep(Duration::from_millis(20));
    }
}
