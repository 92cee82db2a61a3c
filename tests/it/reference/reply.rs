//! The facts' section Reply: what a status says, response headers, dynamic metadata, and the answer to what can't be asked.

use serde_json::{Value, json};

use super::{Answer, Server, at, costing, limited};
use crate::support::grpc::{Client, descriptor, request};

// Statuses.

#[test]
fn a_status_has_a_code_the_current_limit_with_its_name_what_remains_and_whole_seconds_until_reset() {
    let server = Server::of("- {key: a, rate_limit: {unit: minute, requests_per_unit: 5, name: five}}\n- {key: b, @1}\n");
    let Answer(answer) = server.ask(&[at("a=1"), at("b=1"), at("c=1")]);
    let five = json!({"name": "five", "requestsPerUnit": 5, "unit": "MINUTE"});
    let one = json!({"requestsPerUnit": 1, "unit": "DAY"});
    assert_eq!(
        answer,
        json!({"overallCode": "OK", "statuses": [
            {"code": "OK", "currentLimit": five, "limitRemaining": 4, "durationUntilReset": "60s"},
            {"code": "OK", "currentLimit": one, "durationUntilReset": "86400s"},
            {"code": "OK"},
        ]})
    );
}

#[test]
fn past_the_limit_nothing_remains_and_the_wait_is_1_second_to_the_unit() {
    for (unit, most) in [("second", 1), ("minute", 60), ("day", 86_400)] {
        let server = Server::of(&format!(
            "- {{key: a, rate_limit: {{unit: {unit}, requests_per_unit: 0}}}}\n- {{key: b, rate_limit: {{unit: {unit}, requests_per_unit: 1}}}}\n"
        ));
        let none = server.ask(&[at("a=1")]);
        assert_eq!((none.over()[0], none.remaining()[0], seconds(&none)), (true, 0, most), "a limit of 0 in a {unit}");
        // Within the second, or else there has been room again.
        let over = (0..20).find_map(|_| (!server.admits("b=1")).then(|| server.ask(&[at("b=1")]))).unwrap();
        assert!(over.remaining()[0] == 0 && (1..=most).contains(&seconds(&over)), "{unit}: {}", over.0);
    }
}

#[test]
fn differs_numbers_above_2_to_the_32_less_1_which_only_windows_of_ours_have_are_shown_as_that() {
    let server = Server::of("- {key: a, rate_limit: {limit: 1_000_000_000_000, window: 1d}}\n");
    let answer = server.ask(&[at("a=1")]);
    assert_eq!((answer.limits(), answer.remaining()), (vec![Some(4_294_967_295)], vec![4_294_967_295]));
}

fn seconds(answer: &Answer) -> u64 {
    answer.statuses()[0]["durationUntilReset"].as_str().and_then(|text| text.strip_suffix('s')).unwrap().parse().unwrap()
}

// Response headers.

const HEADERS: (&str, &str) = ("LIMIT_RESPONSE_HEADERS_ENABLED", "true");

const MANY: &str = "
- {key: five, @5}
- {key: six, rate_limit: {unit: hour, requests_per_unit: 6}}
- {key: also_five, rate_limit: {unit: hour, requests_per_unit: 5}}
- {key: none, @0}
- {key: nil, rate_limit: {unit: hour, requests_per_unit: 0}}
- {key: spent, quota_mode: true, rate_limit: {unit: week, requests_per_unit: 0}}
- {key: left, quota_mode: true, rate_limit: {unit: week, requests_per_unit: 100}}
- {key: watched, shadow_mode: true, rate_limit: {unit: week, requests_per_unit: 0}}
";

const HOUR: u32 = 3_600;
const DAY: u32 = 24 * HOUR;

/// The three headers: the limit, what remains, and the seconds until reset.
fn three(limit: u32, remaining: u32, reset: u32) -> Vec<(String, String)> {
    named(["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"], [limit, remaining, reset])
}

fn named(names: [&str; 3], values: [u32; 3]) -> Vec<(String, String)> {
    names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
}

#[test]
fn response_headers_are_off_unless_they_are_asked_for() {
    for environment in [&[][..], &[("LIMIT_RESPONSE_HEADERS_ENABLED", "false"), ("LIMIT_LIMIT_HEADER", "X-Limit")]] {
        let server = Server::with(MANY, environment);
        assert_eq!(server.ask(&[at("five=1")]).headers(), []);
    }
}

#[test]
fn response_headers_are_of_the_status_with_the_least_remaining_and_of_the_first_of_equals() {
    let server = Server::with(MANY, &[HEADERS]);
    assert_eq!(server.ask(&[at("five=1")]).headers(), three(5, 4, DAY));
    assert_eq!(server.ask(&[at("six=2"), at("five=2")]).headers(), three(5, 4, DAY));
    assert_eq!(server.ask(&[at("five=3"), at("also_five=3")]).headers(), three(5, 4, DAY));
    assert_eq!(server.ask(&[at("also_five=4"), at("five=4")]).headers(), three(5, 4, HOUR));
    assert_eq!(server.ask(&[at("unknown=5"), at("six=5")]).headers(), three(6, 5, HOUR));
}

#[test]
fn where_ordinary_descriptors_are_over_response_headers_are_of_the_last_of_them() {
    let server = Server::with(MANY, &[HEADERS]);
    assert_eq!(server.ask(&[at("none=1"), at("five=1")]).headers(), three(0, 0, DAY));
    assert_eq!(server.ask(&[at("none=1"), at("nil=1"), at("five=1")]).headers(), three(0, 0, HOUR));
    assert_eq!(server.ask(&[at("nil=1"), at("none=1")]).headers(), three(0, 0, DAY));
    assert_eq!(server.ask(&[at("spent=1"), at("none=1"), at("left=1")]).headers(), three(0, 0, DAY), "a quota is none of them");
}

#[test]
fn a_spent_quota_and_a_shadowed_rule_past_its_limit_have_the_least_remaining() {
    let server = Server::with(MANY, &[HEADERS]);
    for path in ["spent=1", "watched=1"] {
        let answer = server.ask(&[at("left=1"), at("five=1"), at(path)]);
        assert!(answer.admitted());
        assert_eq!(answer.headers()[..2], three(0, 0, 0)[..2], "{path}");
    }
}

#[test]
fn response_headers_may_have_other_names() {
    let names = [("LIMIT_LIMIT_HEADER", "X-Limit"), ("LIMIT_REMAINING_HEADER", "X-Left"), ("LIMIT_RESET_HEADER", "X-Again")];
    let server = Server::with(MANY, &[&[HEADERS][..], &names].concat());
    assert_eq!(server.ask(&[at("five=1")]).headers(), named(["x-limit", "x-left", "x-again"], [5, 4, DAY]));
}

#[test]
fn there_are_no_response_headers_where_nothing_in_the_request_has_a_limit() {
    let server = Server::with(MANY, &[HEADERS]);
    assert_eq!(server.ask(&[at("unknown=1"), at("")]).headers(), []);
}

#[test]
fn there_are_no_response_headers_for_an_unlimited_or_replaced_descriptor() {
    let rules = "- {key: wide, rate_limit: {unit: day, requests_per_unit: 5, name: wide}}\n\
                 - {key: free, rate_limit: {unlimited: true, replaces: [{name: wide}]}}\n";
    let server = Server::with(rules, &[HEADERS]);
    assert_eq!(server.ask(&[at("free=1")]).headers(), []);
    assert_eq!(server.ask(&[at("wide=1"), at("free=1")]).headers(), []);
    assert_eq!(server.ask(&[at("wide=1")]).headers(), three(5, 4, DAY));
}

// Dynamic metadata.

const METADATA: (&str, &str) = ("RESPONSE_DYNAMIC_METADATA", "true");

#[test]
fn dynamic_metadata_is_off_unless_it_is_asked_for() {
    for environment in [&[][..], &[("RESPONSE_DYNAMIC_METADATA", "false")]] {
        let server = Server::with("- {key: a, @5}\n", environment);
        assert_eq!(server.ask(&[at("a=1")]).metadata(), &Value::Null);
    }
}

#[test]
fn dynamic_metadata_names_the_domain_and_every_descriptor_matched_or_not() {
    let server = Server::with("- key: a\n  @5\n  descriptors: [{key: b, @5}]\n", &[METADATA]);
    let answer = server.ask(&[at("a=1,b=x=y"), at("unknown=1"), at("")]);
    assert_eq!(answer.metadata()["domain"], "d");
    let entries: Vec<_> = answer.metadata()["descriptors"].as_array().unwrap().iter().map(|descriptor| &descriptor["entries"]).collect();
    assert_eq!(entries, [&json!(["a=1", "b=x=y"]), &json!(["unknown=1"]), &json!([])]);
    let unknown = server.ask_whole(&json!({"domain": "nobody", "descriptors": [at("a=1")]}));
    assert_eq!((&unknown.metadata()["domain"], &unknown.metadata()["descriptors"][0]["entries"]), (&json!("nobody"), &json!(["a=1"])));
}

#[test]
fn dynamic_metadata_writes_the_requests_own_limit_as_protobuf_text_without_zeros() {
    let server = Server::with("- {key: a, @100}\n", &[METADATA]);
    let answer = server.ask(&[limited(at("a=1"), 5, "DAY"), limited(at("a=1"), 0, "HOUR"), at("a=1")]);
    let text =
        |index: usize| answer.metadata()["descriptors"][index]["limit"].as_str().map(|text| text.split_whitespace().collect::<Vec<_>>());
    assert_eq!(text(0), Some(vec!["requests_per_unit:5", "unit:DAY"]));
    assert_eq!(text(1), Some(vec!["unit:HOUR"]));
    assert_eq!(text(2), None, "the rule's limit is in the status");
}

#[test]
fn dynamic_metadata_has_the_costs_as_they_were_asked() {
    let server = Server::with("- {key: a, @100}\n", &[METADATA]);
    let asked = |hits_addend: u32| {
        server.ask_whole(&json!({"domain": "d", "descriptors": [costing(at("a=1"), 7), at("a=1")], "hitsAddend": hits_addend}))
    };
    let answer = asked(3);
    assert_eq!(answer.metadata()["hitsAddend"].as_f64(), Some(3.0));
    let own = |index: usize| answer.metadata()["descriptors"][index]["hitsAddend"].as_f64();
    assert_eq!([own(0), own(1)], [Some(7.0), None]);
    assert_eq!(asked(0).metadata().get("hitsAddend"), None, "a 0 is left out");
}

const TAGGED: &str = "
- {key: a, metadata: {tier: gold, owner: {team: red, desk: 1}, only: a}, @100}
- {key: b, metadata: {tier: silver, owner: {team: blue, floor: 2}, extra: [x]}, @100}
- {key: none, metadata: {denied: true}, @0}
- {key: watched, shadow_mode: true, metadata: {watched: true}, @0}
- {key: spent, quota_mode: true, metadata: {spent: true}, @0}
- {key: left, quota_mode: true, metadata: {left: true}, @100}
- {key: plain, @100}
- key: parent
  metadata: {parent: true}
  @100
  descriptors: [{key: child, @100}]
";

fn metadata(server: &Server, paths: &[&str]) -> Value {
    let answer = server.ask(&paths.iter().map(|path| at(path)).collect::<Vec<_>>());
    let metadata = &answer.metadata()["metadata"];
    // None, or an empty map: the same to whoever reads it.
    if metadata.as_object().is_some_and(serde_json::Map::is_empty) { Value::Null } else { metadata.clone() }
}

#[test]
fn dynamic_metadata_holds_the_metadata_of_the_rules_whose_status_is_ok() {
    let server = Server::with(TAGGED, &[METADATA]);
    assert_eq!(metadata(&server, &["plain=1"]), json!(null));
    assert_eq!(metadata(&server, &["none=1"]), json!(null));
    assert_eq!(metadata(&server, &["none=1", "watched=1"]), json!({"watched": true}), "shadow too");
    assert_eq!(metadata(&server, &["spent=1", "left=1"]), json!({"left": true}));
    assert_eq!(metadata(&server, &["parent=1,child=1"]), json!(null), "a parent's is not inherited");
    assert_eq!(metadata(&server, &["unknown=1", "parent=1"]), json!({"parent": true}));
}

#[test]
fn the_metadata_of_several_rules_is_merged_map_by_map_and_the_first_descriptors_value_stays() {
    let server = Server::with(TAGGED, &[METADATA]);
    let merged = metadata(&server, &["a=1", "b=1"]);
    assert_eq!(
        [&merged["tier"], &merged["only"], &merged["extra"], &merged["owner"]["team"]],
        [&json!("gold"), &json!("a"), &json!(["x"]), &json!("red")]
    );
    assert_eq!((merged["owner"]["desk"].as_f64(), merged["owner"]["floor"].as_f64()), (Some(1.0), Some(2.0)));
    let other_way = metadata(&server, &["b=1", "a=1"]);
    assert_eq!((&other_way["tier"], &other_way["owner"]["team"]), (&json!("silver"), &json!("blue")));
}

#[test]
fn differs_a_merge_leaves_the_rules_as_they_were() {
    let server = Server::with(TAGGED, &[METADATA]);
    let alone = metadata(&server, &["a=1"]);
    metadata(&server, &["a=1", "b=1"]);
    assert_eq!(metadata(&server, &["a=1"]), alone);
    assert_eq!(alone["owner"].as_object().unwrap().len(), 2);
}

#[test]
fn an_unlimited_or_replaced_rule_and_a_limit_of_the_request_have_no_metadata() {
    let server = Server::with(
        "- {key: free, metadata: {free: true}, rate_limit: {unlimited: true}}\n\
         - {key: wide, metadata: {wide: true}, rate_limit: {unit: day, requests_per_unit: 100, name: wide}}\n\
         - {key: narrow, rate_limit: {unit: day, requests_per_unit: 100, replaces: [{name: wide}]}}\n",
        &[METADATA],
    );
    assert_eq!(metadata(&server, &["free=1"]), json!(null));
    assert_eq!(metadata(&server, &["wide=1", "narrow=1"]), json!(null));
    assert_eq!(metadata(&server, &["wide=1"]), json!({"wide": true}));
    let carried = server.ask(&[limited(at("wide=1"), 5, "DAY")]);
    assert!(carried.metadata()["metadata"].as_object().is_none_or(serde_json::Map::is_empty), "{}", carried.metadata());
}

#[test]
fn differs_detailed_metric_and_value_to_metric_keep_their_rules_metadata() {
    let server = Server::with(
        "- {key: a, detailed_metric: true, metadata: {a: true}, @100}\n- {key: b, value_to_metric: true, metadata: {b: true}, @100}\n",
        &[METADATA],
    );
    assert_eq!(metadata(&server, &["a=1", "b=1"]), json!({"a": true, "b": true}));
}

#[test]
fn differs_dynamic_metadata_of_a_denied_request_names_the_rule_that_denied() {
    let server = Server::with("- key: path\n  value: /export\n  descriptors: [{key: client, @0}]\n- {key: a, @100}\n", &[METADATA]);
    let denied = server.ask(&[at("a=1"), at("path=/export,client=alice")]);
    assert!(!denied.admitted());
    assert_eq!(denied.metadata()["rule"], "path=/export|client");
}

// What can't be asked.

#[test]
fn differs_an_empty_domain_and_no_descriptors_are_an_invalid_argument_and_over_http_a_bad_request() {
    let server = Server::of("- {key: a, @5}\n");
    let client = Client::connect(server.process.grpc());
    for (asked, says) in [
        (request("", vec![descriptor(&[("a", "1")])]), "domain must not be empty"),
        (request("d", vec![]), "descriptor list must not be empty"),
    ] {
        let status = client.try_ask(asked).unwrap_err();
        assert!(status.code() == tonic::Code::InvalidArgument && status.message().contains(says), "{status}");
    }
    for request in [json!({"descriptors": [at("a=1")]}), json!({"domain": "d"})] {
        assert_eq!(server.post(&request).status, 400);
    }
}
