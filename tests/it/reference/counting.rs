//! The facts' section Counting: when a hit is over, what a hit weighs, what a reload keeps, and the numbers by rule with
//! their labels.

use serde_json::{Value, json};

use super::{Server, at, costing, domain, limited, until, with};

// Hits.

#[test]
fn a_hit_is_over_when_the_count_with_it_is_above_the_limit() {
    let server = Server::of("- {key: a, @2}\n- {key: none, @0}\n");
    assert_eq!([0; 4].map(|_| server.admits("a=1")), [true, true, false, false]);
    assert!(server.admits("a=2"), "another value is another counter");
    assert!(!server.admits("none=1"));
}

#[test]
fn the_same_descriptor_twice_in_a_request_counts_twice() {
    let server = Server::of("- {key: a, @5}\n- {key: one, @1}\n");
    assert!(server.ask(&[at("a=1"), at("a=1")]).admitted());
    assert_eq!(server.left("a=1"), 3);
    let twice = server.ask(&[at("one=1"), at("one=1")]);
    assert_eq!((twice.admitted(), twice.over()), (false, vec![false, true]), "each is judged on top of the ones before it");
}

#[test]
fn differs_what_remains_is_told_as_it_is_after_the_whole_request() {
    let server = Server::of("- {key: a, @5}\n");
    assert_eq!(server.ask(&[at("a=1"), at("a=1")]).remaining(), [3, 3]);
    assert_eq!(server.ask(&[costing(at("a=1"), 2), at("a=1")]).remaining(), [0, 0]);
}

#[test]
fn differs_a_denied_request_counts_nothing_of_any_descriptor() {
    let server = Server::of("- {key: some, @5}\n- {key: none, @0}\n");
    for descriptors in [[at("some=1"), at("none=1")], [at("none=1"), at("some=1")]] {
        let answer = server.ask(&descriptors);
        assert!(!answer.admitted() && answer.remaining().contains(&5), "what is left without it: {:?}", answer.remaining());
    }
    assert_eq!(server.left("some=1"), 5);
}

#[test]
fn differs_an_ordinary_hit_that_is_denied_is_not_counted() {
    let server = Server::of("- {key: a, @1}\n");
    assert_eq!([0; 5].map(|_| server.admits("a=1")), [true, false, false, false, false]);
    give_back(&server, "a=1", 1);
    assert_eq!(server.left("a=1"), 1, "the four denied hits left nothing behind");
}

#[test]
fn a_descriptors_hits_addend_is_its_cost_and_else_the_requests_is_whose_0_means_1() {
    let server = Server::of("- {key: a, @100}\n");
    let left = |hits_addend: Value, descriptor: Value| {
        server.ask_whole(&json!({"domain": "d", "descriptors": [descriptor], "hitsAddend": hits_addend})).remaining()[0]
    };
    assert_eq!(left(json!(0), at("a=1")), 99);
    assert_eq!(left(json!(null), at("a=1")), 98);
    assert_eq!(left(json!(8), at("a=1")), 90);
    assert_eq!(left(json!(8), costing(at("a=1"), 5)), 85);
    assert_eq!(left(json!(8), costing(at("a=1"), 0)), 85);
    let both = json!({"domain": "d", "descriptors": [at("a=2"), costing(at("a=3"), 7)], "hitsAddend": 3});
    assert_eq!(server.ask_whole(&both).remaining(), [97, 93]);
}

#[test]
fn a_cost_of_0_only_looks() {
    let server = Server::of("- {key: a, @2}\n");
    assert_eq!(server.ask(&[costing(at("a=1"), 0)]).remaining(), [2]);
    assert!(server.admits("a=1"));
    let look = server.ask(&[costing(at("a=1"), 0)]);
    assert_eq!((look.admitted(), look.remaining()), (true, vec![1]));
    assert_eq!(server.left("a=1"), 1);
}

#[test]
fn differs_a_look_at_a_count_equal_to_the_limit_is_over() {
    let server = Server::of("- {key: a, @2}\n");
    assert!(server.admits("a=1") && server.admits("a=1"));
    assert!(!server.ask(&[costing(at("a=1"), 0)]).admitted(), "one more hit would not pass");
}

#[test]
fn a_look_before_and_a_charge_after_make_a_budget_that_bites() {
    let server = Server::of("- {key: tokens, @100}\n");
    let look = || server.ask(&[costing(at("tokens=u"), 0)]).admitted();
    let charge = |tokens| server.ask(&[costing(at("tokens=u"), tokens)]).admitted();
    assert!(look() && charge(60) && look());
    // More than what was left, and spent already: it is counted although its answer is over.
    assert!(!charge(60) && !look());
    give_back(&server, "tokens=u", 20);
    assert!(!look(), "exactly at the limit");
    give_back(&server, "tokens=u", 1);
    assert!(look());
}

#[test]
fn a_denied_request_whose_cost_is_above_1_is_counted_as_there() {
    let server = Server::of("- {key: a, @3}\n");
    let five = json!({"domain": "d", "descriptors": [at("a=1")], "hitsAddend": 5});
    assert!(!server.ask_whole(&five).admitted());
    assert!(!server.admits("a=1"), "the five are in it");
}

#[test]
fn differs_negative_hits_are_given_back_and_not_added() {
    let server = Server::of("- {key: a, @5}\n");
    assert_eq!(server.ask(&[costing(at("a=1"), 4)]).remaining(), [1]);
    give_back(&server, "a=1", 3);
    assert_eq!(server.left("a=1"), 4);
}

#[test]
fn differs_a_huge_hits_addend_never_fits_and_spoils_nothing() {
    // There, from 2^63 on it makes the counter negative, and 2^64 - 1 gives a hit back.
    let server = Server::of("- {key: a, @5}\n");
    assert!(server.admits("a=1"));
    for hits in [(1 << 63) - 1, 1 << 63, u64::MAX] {
        assert!(!server.ask(&[costing(at("a=1"), hits)]).admitted(), "{hits}");
        assert_eq!(server.left("a=1"), 4, "{hits}");
    }
}

// Reload.

#[test]
fn a_reload_keeps_counters_and_a_changed_limit_judges_what_they_hold() {
    let rules = |limit: u32| domain(&format!("- {{key: a, @{limit}}}\n- {{key: other, @{limit}}}\n"));
    let server = Server::serving(&[("rules.yaml", &rules(5))], &[]);
    assert_eq!([0; 6].map(|_| server.admits("a=1")), [true, true, true, true, true, false]);
    server.rewrite("rules.yaml", &rules(8));
    until("the raised limit", || server.lands_on("other=1") == Some(8));
    // There, with a local cache, the client stays denied until the window ends.
    assert_eq!([0; 4].map(|_| server.admits("a=1")), [true, true, true, false]);
    server.rewrite("rules.yaml", &rules(6));
    until("the lowered limit", || server.lands_on("other=2") == Some(6));
    assert!(!server.admits("a=1"));
}

#[test]
fn another_unit_is_another_counter() {
    let rules = |unit: &str| domain(&format!("- {{key: a, rate_limit: {{unit: {unit}, requests_per_unit: 1}}}}\n"));
    let server = Server::serving(&[("rules.yaml", &rules("day"))], &[]);
    assert!(server.admits("a=1") && !server.admits("a=1"));
    server.rewrite("rules.yaml", &rules("week"));
    until("the new unit", || server.ask(&[costing(at("a=2"), 0)]).statuses()[0]["currentLimit"]["unit"] == "WEEK");
    assert!(server.admits("a=1") && !server.admits("a=1"));
}

// Numbers by rule.

const HITS: [&str; 5] = ["total_hits", "within_limit", "near_limit", "over_limit", "shadow_mode"];

/// Total, within, near, over and shadow of the series of "d" with this key1, and key2 if any.
fn hits(server: &Server, key1: &str, key2: Option<&str>) -> [u64; 5] {
    let labels: Vec<_> = [("domain", "d"), ("key1", key1)].into_iter().chain(key2.map(|key2| ("key2", key2))).collect();
    HITS.map(|name| server.sum(&format!("ratelimit_service_rate_limit_{name}"), &labels))
}

#[test]
fn total_within_and_over_count_costs() {
    let server = Server::of("- {key: a, @10}\n");
    server.ask(&[costing(at("a=1"), 4)]);
    assert_eq!(hits(&server, "a", None)[..2], [4, 4]);
    server.ask(&[costing(at("a=1"), 0)]);
    assert_eq!(hits(&server, "a", None), [4, 4, 0, 0, 0]);
    server.ask(&[costing(at("a=1"), 4)]);
    server.ask(&[costing(at("a=1"), 2)]);
    assert!(!server.admits("a=1") && !server.admits("a=1"));
    let [total, within, _, over, shadow] = hits(&server, "a", None);
    assert_eq!([total, within, over, shadow], [12, 10, 2, 0]);
}

#[test]
fn near_are_the_hits_above_four_fifths_rounded_down_and_not_above_the_limit() {
    let server = Server::of("- {key: a, @10}\n- {key: odd, @6}\n");
    let near: Vec<_> = (0..11).map(|_| (server.admits("a=1"), hits(&server, "a", None)[2]).1).collect();
    assert_eq!(near, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2]);
    let near: Vec<_> = (0..6).map(|_| (server.admits("odd=1"), hits(&server, "odd", None)[2]).1).collect();
    assert_eq!(near, [0, 0, 0, 0, 1, 2], "4.8 is 4");
}

#[test]
fn with_a_limit_of_1_the_first_hit_is_near() {
    let server = Server::of("- {key: a, @1}\n");
    assert!(server.admits("a=1"));
    assert_eq!(hits(&server, "a", None), [1, 1, 1, 0, 0]);
}

#[test]
fn near_limit_ratio_sets_another_threshold() {
    let server = Server::with("- {key: a, @10}\n", &[("NEAR_LIMIT_RATIO", "0.5")]);
    let near: Vec<_> = (0..7).map(|_| (server.admits("a=1"), hits(&server, "a", None)[2]).1).collect();
    assert_eq!(near, [0, 0, 0, 0, 0, 1, 2]);
}

#[test]
fn a_cost_that_straddles_the_near_threshold_and_fits_is_near_only_above_it() {
    let server = Server::of("- {key: a, @10}\n");
    server.ask(&[costing(at("a=1"), 7)]);
    assert_eq!(hits(&server, "a", None), [7, 7, 0, 0, 0]);
    server.ask(&[costing(at("a=1"), 2)]);
    assert_eq!(hits(&server, "a", None), [9, 9, 1, 0, 0]);
}

#[test]
fn a_cost_that_straddles_the_limit_is_near_below_it_and_over_above_it_and_not_within() {
    let server = Server::of("- {key: a, @10}\n- {key: b, @10}\n");
    server.ask(&[costing(at("a=1"), 9)]);
    assert_eq!(hits(&server, "a", None), [9, 9, 1, 0, 0]);
    server.ask(&[costing(at("a=1"), 3)]);
    assert_eq!(hits(&server, "a", None), [12, 9, 2, 2, 0]);
    server.ask(&[costing(at("a=1"), 3)]);
    assert_eq!(hits(&server, "a", None), [15, 9, 2, 5, 0], "all of it is above");
    // From below the near threshold: what fitted below that is neither.
    server.ask(&[costing(at("b=1"), 20)]);
    assert_eq!(hits(&server, "b", None), [20, 0, 2, 10, 0]);
}

#[test]
fn the_hits_of_one_request_are_counted_each_after_its_own_turn() {
    let server = Server::of("- {key: a, @2}\n- {key: b, @2}\n");
    server.ask(&[at("a=1"), at("a=1"), at("a=1")]);
    assert_eq!(hits(&server, "a", None), [3, 2, 1, 1, 0], "denied, and over all the same");
    server.ask(&[at("b=1"), at("b=1")]);
    assert_eq!(hits(&server, "b", None), [2, 2, 1, 0, 0]);
}

#[test]
fn shadow_mode_counts_the_over_part_of_a_rule_in_shadow_mode() {
    let server = Server::of("- {key: a, shadow_mode: true, @10}\n- {key: b, shadow_mode: true, @2}\n");
    server.ask(&[costing(at("a=1"), 9)]);
    server.ask(&[costing(at("a=1"), 4)]);
    assert_eq!(hits(&server, "a", None), [13, 9, 2, 3, 3]);
    assert_eq!([0; 4].map(|_| server.admits("b=1")), [true; 4]);
    assert_eq!(hits(&server, "b", None), [4, 2, 1, 2, 2]);
}

#[test]
fn a_spent_quota_counts_as_over_although_the_request_is_admitted() {
    let quotas = Server::of("- {key: spent, quota_mode: true, @0}\n- {key: left, quota_mode: true, @10}\n");
    assert!(quotas.ask(&[at("spent=1"), at("left=1")]).admitted());
    assert_eq!(hits(&quotas, "spent", None), [1, 0, 0, 1, 0]);
    assert_eq!(hits(&quotas, "left", None), [1, 1, 0, 0, 0]);
}

#[test]
fn under_global_shadow_mode_the_numbers_are_those_of_enforced_rules() {
    let shadowed = Server::with("- {key: a, @1}\n", &[("SHADOW_MODE", "true")]);
    assert!(shadowed.admits("a=1") && shadowed.admits("a=1"));
    assert_eq!(hits(&shadowed, "a", None), [2, 1, 1, 1, 0]);
}

#[test]
fn hits_that_fit_in_a_request_that_is_denied_count_as_total_and_within_as_there() {
    let server = Server::of("- {key: some, @10}\n- {key: none, @0}\n");
    assert!(!server.ask(&[at("some=1"), at("none=1")]).admitted());
    assert_eq!(hits(&server, "some", None), [1, 1, 0, 0, 0]);
    assert_eq!(hits(&server, "none", None), [1, 0, 0, 1, 0]);
}

#[test]
fn what_is_unmatched_unlimited_or_replaced_has_no_series() {
    let server = Server::of(
        "- {key: wide, rate_limit: {unit: day, requests_per_unit: 10, name: wide}}\n- {key: exempt}\n\
         - {key: narrow, rate_limit: {unit: day, requests_per_unit: 10, replaces: [{name: wide}]}}\n- {key: free, rate_limit: {unlimited: true}}\n",
    );
    server.ask(&[at("wide=1"), at("narrow=1"), at("free=1"), at("exempt=1"), at("unknown=1")]);
    for key in ["wide", "free", "exempt", "unknown"] {
        assert_eq!(hits(&server, key, None), [0; 5], "{key}");
    }
    assert_eq!(hits(&server, "narrow", None)[0], 1);
}

#[test]
fn differs_a_limit_of_the_request_makes_no_series_and_is_not_the_rules() {
    let server = Server::of("- {key: a, @10}\n");
    server.ask(&[limited(at("a=1"), 5, "DAY"), limited(at("secret=7"), 5, "DAY")]);
    assert_eq!(hits(&server, "a", None)[0], 0);
    let page = server.metrics();
    assert!(!page.contains("secret"), "{page}");
}

// Labels.

#[test]
fn the_labels_are_the_domain_and_the_first_two_levels_and_rule_tells_deeper_ones_apart() {
    let server = Server::of(
        "- key: tenant\n  @100\n  descriptors:\n  - key: path\n    value: /export\n    @100\n    descriptors: [{key: user, @100}]\n\
         - {key: tenant, value: acme, @100}\n- {key: file, value: 'a*', @100}\n",
    );
    for path in ["tenant=x", "tenant=x,path=/export", "tenant=x,path=/export,user=u", "tenant=acme", "file=abc"] {
        assert!(server.admits(path), "{path}");
    }
    let total = |labels: &[(&str, &str)]| server.series("ratelimit_service_rate_limit_total_hits", labels);
    for (key1, key2, rules) in [
        ("tenant_acme", None, &["tenant=acme"][..]),
        ("file_a*", None, &["file=a*"]),
        ("tenant", Some("path_/export"), &["tenant|path=/export", "tenant|path=/export|user"]),
    ] {
        let labels: Vec<_> = [("domain", "d"), ("key1", key1)].into_iter().chain(key2.map(|key2| ("key2", key2))).collect();
        assert_eq!(total(&labels).len(), rules.len(), "{key1}\n{}", server.metrics());
        for rule in rules {
            let lines = total(&[&labels[..], &[("rule", rule)]].concat());
            assert!(lines.len() == 1 && lines[0].ends_with(" 1"), "{rule}\n{}", server.metrics());
        }
    }
    // Of one level: no second key, or an empty one, which is the same to Prometheus.
    let top = total(&[("rule", "tenant"), ("key1", "tenant")]);
    assert!(top.len() == 1 && (!top[0].contains("key2") || top[0].contains("key2=\"\"")), "{top:?}");
}

#[test]
fn series_are_counters_without_total_at_the_end() {
    let server = Server::of("- {key: a, @10}\n");
    assert!(server.admits("a=1"));
    let page = server.metrics();
    for name in HITS {
        assert!(page.contains(&format!("# TYPE ratelimit_service_rate_limit_{name} counter\n")), "{name}\n{page}");
        assert!(page.contains(&format!("\nratelimit_service_rate_limit_{name}{{")), "{name}\n{page}");
    }
}

#[test]
fn in_labels_colons_bars_and_the_dots_of_ipv4_addresses_become_underscores() {
    let server = Server::of(
        "- {key: remote_address, value: 10.1.2.3, @10}\n- {key: 'a:b', value: 'c|d', @10}\n- {key: masked, value: 10.1.0.0/16, @10}\n",
    );
    for (path, key1) in
        [("remote_address=10.1.2.3", "remote_address_10_1_2_3"), ("a:b=c|d", "a_b_c_d"), ("masked=10.1.0.0/16", "masked_10_1_0_0/16")]
    {
        assert!(server.admits(path), "{path}");
        assert_eq!(hits(&server, key1, None)[0], 1, "{key1}\n{}", server.metrics());
    }
}

#[test]
fn differs_no_other_dot_begins_a_label() {
    let rules = "domain: shop.example\ndescriptors:\n- {key: api.v1, value: a.b, descriptors: [{key: c.d, @10}]}\n";
    let server = Server::serving(&[("rules.yaml", rules)], &[]);
    server.ask_whole(&json!({"domain": "shop.example", "descriptors": [at("api.v1=a.b,c.d=1")]}));
    let labels = [("domain", "shop.example"), ("key1", "api.v1_a.b"), ("key2", "c.d")];
    assert_eq!(server.sum("ratelimit_service_rate_limit_total_hits", &labels), 1, "{}", server.metrics());
}

#[test]
fn detailed_metric_shows_the_values_of_every_level_and_only_on_the_rule_that_counts() {
    let server = Server::of(
        "- key: tenant\n  descriptors: [{key: user, detailed_metric: true, @10}, {key: file, value: 'a*', detailed_metric: true, @10}]\n\
         - key: parent\n  detailed_metric: true\n  descriptors: [{key: user, @10}]\n",
    );
    for (path, key1, key2) in [
        ("tenant=acme,user=bob", "tenant_acme", "user_bob"),
        ("tenant=acme,user=", "tenant_acme", "user_"),
        ("tenant=acme,file=abc", "tenant_acme", "file_abc"),
        ("parent=x,user=bob", "parent", "user"),
    ] {
        assert!(server.admits(path), "{path}");
        assert_eq!(hits(&server, key1, Some(key2))[..2], [1, 1], "{key1} {key2}\n{}", server.metrics());
    }
}

#[test]
fn value_to_metric_shows_its_own_levels_value_and_detailed_metric_beats_it() {
    let server = Server::of(
        "- key: tenant\n  value_to_metric: true\n  descriptors: [{key: user, @10}, {key: who, detailed_metric: true, @10}]\n\
         - key: route\n  descriptors: [{key: file, value: 'a*', value_to_metric: true, @10}]\n",
    );
    for (path, key1, key2) in [
        ("tenant=acme,user=bob", "tenant_acme", "user"),
        ("tenant=acme,who=bob", "tenant_acme", "who_bob"),
        ("route=x,file=abc", "route", "file_abc"),
    ] {
        assert!(server.admits(path), "{path}");
        assert_eq!(hits(&server, key1, Some(key2))[..2], [1, 1], "{key1} {key2}\n{}", server.metrics());
    }
}

#[test]
fn with_share_threshold_the_metrics_show_the_pattern_with_its_star() {
    let server = Server::of(
        "- {key: file, value: 'a*', share_threshold: true, detailed_metric: true, @10}\n\
         - {key: path, value: '/x*', share_threshold: true, value_to_metric: true, @10}\n",
    );
    assert!(server.admits("file=abc") && server.admits("path=/xy"));
    assert_eq!((hits(&server, "file_a*", None)[0], hits(&server, "path_/x*", None)[0]), (1, 1), "{}", server.metrics());
}

#[test]
fn neither_detailed_metric_nor_value_to_metric_changes_matching_or_counting() {
    let server = Server::of("- {key: a, detailed_metric: true, @1}\n- {key: b, value_to_metric: true, @1}\n");
    for key in ["a", "b"] {
        let tries = ["1", "2", "1"].map(|value| server.admits(&format!("{key}={value}")));
        assert_eq!(tries, [true, true, false], "{key}");
    }
}

/// Takes hits back from the rule that the descriptor lands on.
fn give_back(server: &Server, path: &str, hits: u64) {
    let answer = server.ask(&[with(costing(at(path), hits), "isNegativeHits", json!(true))]);
    assert!(answer.admitted());
}
