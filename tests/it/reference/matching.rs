//! The facts' section Matching: which rule a descriptor lands on, what share_threshold, replaces, unlimited, shadow_mode and
//! quota_mode do to a request, and the limits that requests bring along.

use serde_json::json;

use super::{Answer, Server, UNLIMITED, at, costing, limited};

// The walk.

#[test]
fn on_a_level_the_exact_value_comes_first_then_wildcards_in_file_order_then_the_bare_key() {
    let server = Server::of(
        "- {key: path, @105}\n- {key: path, value: '/api/*', @102}\n- {key: path, value: '/a*', @103}\n- {key: path, value: '/ab*', @104}\n\
         - {key: path, value: /api/exact, @101}\n",
    );
    for (path, limit) in
        [("path=/api/exact", 101), ("path=/api/other", 102), ("path=/apx", 103), ("path=/abc", 103), ("path=/x", 105), ("path=", 105)]
    {
        assert_eq!(server.lands_on(path), Some(limit), "{path}");
    }
}

#[test]
fn a_star_anywhere_and_several_stand_for_zero_or_more_characters_in_the_letter_case_given() {
    let server = Server::of(
        "- {key: path, value: '/*/b*d', @101}\n- {key: path, value: '*.png', @102}\n- {key: path, value: 'a*b*a', @103}\n\
         - {key: path, value: 'Up*', @104}\n",
    );
    for (path, limit) in [
        ("path=/x/bcd", Some(101)),
        ("path=//bd", Some(101)),
        ("path=/x/y/b/c/d", Some(101)),
        ("path=/x/bc", None),
        ("path=.png", Some(102)),
        ("path=a/b.png", Some(102)),
        ("path=a.png.gz", None),
        ("path=aba", Some(103)),
        ("path=a-b-a", Some(103)),
        ("path=aa", None),
        ("path=ab", None),
        ("path=Upper", Some(104)),
        ("path=upper", None),
    ] {
        assert_eq!(server.lands_on(path), limit, "{path}");
    }
}

#[test]
fn only_the_star_is_special() {
    let server = Server::of("- {key: k, value: 'a.c*', @101}\n- {key: k, value: '[ab]*', @102}\n- {key: k, value: '?x*', @103}\n");
    for (path, limit) in
        [("k=a.c1", Some(101)), ("k=abc1", None), ("k=[ab]1", Some(102)), ("k=a", None), ("k=?x", Some(103)), ("k=ax", None)]
    {
        assert_eq!(server.lands_on(path), limit, "{path}");
    }
}

#[test]
fn an_empty_value_takes_a_wildcard_that_fits_and_else_the_bare_key() {
    let server = Server::of(
        "- {key: any, value: '*', @101}\n- {key: any, @102}\n- {key: some, value: 'a*', @103}\n- {key: some, @104}\n- {key: fixed, value: x, @105}\n",
    );
    for (path, limit) in [("any=", Some(101)), ("any=x", Some(101)), ("some=", Some(104)), ("some=a", Some(103)), ("fixed=", None)] {
        assert_eq!(server.lands_on(path), limit, "{path}");
    }
}

#[test]
fn a_star_in_a_key_works_and_a_key_of_one_star_takes_every_entry() {
    let server = Server::of(
        "- {key: 'header-*', @101}\n- {key: 'x-*-id', value: 'a*', @102}\n- {key: exact, value: v, @103}\n- {key: exact, @104}\n- {key: '*', @105}\n",
    );
    for (path, limit) in [
        ("header-a=anything", 101),
        ("header-=", 101),
        ("x-request-id=abc", 102),
        ("x-request-id=xyz", 105),
        ("exact=v", 103),
        // Wildcards come before the key alone, those in keys too.
        ("exact=w", 105),
        ("whatever=", 105),
    ] {
        assert_eq!(server.lands_on(path), Some(limit), "{path}");
    }
}

#[test]
fn entries_of_different_keys_that_one_key_with_a_star_takes_are_counted_apart() {
    let server = Server::of("- {key: 'header-*', @1}\n");
    assert!(server.admits("header-a=x") && server.admits("header-b=x") && server.admits("header-a=y"));
    assert!(!server.admits("header-a=x"));
}

#[test]
fn there_is_no_way_back_up_the_tree() {
    let server = Server::of(
        "- key: a\n  value: x\n  descriptors: [{key: b, @101}]\n- key: a\n  value: 'y*'\n  descriptors: [{key: c, @102}]\n\
         - key: a\n  descriptors: [{key: c, @103}, {key: b, value: z, @104}]\n",
    );
    for (path, limit) in [
        ("a=x,b=1", Some(101)),
        ("a=x,c=1", None),
        ("a=y1,c=1", Some(102)),
        ("a=y1,b=z", None),
        ("a=other,c=1", Some(103)),
        ("a=other,b=z", Some(104)),
        ("a=other,b=y", None),
    ] {
        assert_eq!(server.lands_on(path), limit, "{path}");
    }
}

#[test]
fn a_limit_counts_only_at_the_last_entry() {
    let server = Server::of("- key: a\n  @101\n  descriptors: [{key: b, @102}]\n- key: p\n  descriptors: [{key: q, @103}]\n");
    for (path, limit) in [
        ("a=1", Some(101)),
        ("a=1,b=1", Some(102)),
        // More entries than rules; deeper rules without the entries; the order of entries.
        ("a=1,b=1,c=1", None),
        ("a=1,c=1", None),
        ("p=1", None),
        ("p=1,q=1", Some(103)),
        ("q=1", None),
        ("q=1,p=1", None),
    ] {
        assert_eq!(server.lands_on(path), limit, "{path}");
    }
}

#[test]
fn a_parents_flags_are_not_inherited() {
    let server = Server::of(
        "- key: shadow\n  shadow_mode: true\n  @5\n  descriptors: [{key: child, @0}]\n\
         - key: quota\n  quota_mode: true\n  @5\n  descriptors: [{key: child, @0}]\n",
    );
    assert!(!server.admits("shadow=1,child=1"));
    let answer = server.ask(&[at("quota=1,child=1"), at("quota=1")]);
    assert_eq!((answer.admitted(), answer.over()), (false, vec![true, false]));
}

#[test]
fn a_value_without_a_rate_limit_is_exempt_from_the_bare_keys_rule() {
    let server = Server::of("- {key: client, @0}\n- {key: client, value: friend}\n- {key: client, value: 'staff-*', descriptors: []}\n");
    assert!(!server.admits("client=stranger"));
    assert!(server.admits("client=friend") && server.admits("client=staff-7"));
}

#[test]
fn an_empty_descriptor_matches_nothing() {
    let server = Server::of("- {key: '*', @0}\n");
    assert!(server.ask(&[at("")]).admitted());
    assert!(!server.ask(&[at(""), at("a=1")]).admitted());
}

#[test]
fn where_nothing_matches_and_in_an_unknown_domain_the_status_is_ok_without_limit_remaining_or_duration() {
    let server = Server::of("- {key: a, @0}\n");
    let answers: [Answer; 3] =
        [server.ask(&[at("b=1")]), server.ask(&[at("")]), server.ask_whole(&json!({"domain": "unknown", "descriptors": [at("a=1")]}))];
    for Answer(answer) in answers {
        assert_eq!(answer, json!({"overallCode": "OK", "statuses": [{"code": "OK"}]}));
    }
}

#[test]
fn differs_keys_and_values_are_two_texts_and_never_joined() {
    // There, the first two are one rule twice.
    let server = Server::of("- {key: a, value: b_c, @101}\n- {key: a_b, value: c, @102}\n- {key: 'x*', value: y, @103}\n");
    for (path, limit) in [("a=b_c", Some(101)), ("a_b=c", Some(102)), ("a=b", None), ("x=1_y", None), ("x_1=y", Some(103))] {
        assert_eq!(server.lands_on(path), limit, "{path}");
    }
}

#[test]
fn differs_what_would_read_alike_when_joined_is_counted_apart() {
    let server = Server::serving(
        &[
            ("d", "domain: d\ndescriptors:\n- {key: k, @1}\n- key: k\n  value: a\n  descriptors: [{key: l, @1}]\n"),
            ("d_k", "domain: d_k\ndescriptors:\n- {key: a, @1}\n"),
        ],
        &[],
    );
    assert!(server.admits("k=a_l_b") && server.admits("k=a,l=b"));
    assert!(server.ask_whole(&json!({"domain": "d_k", "descriptors": [at("a=l_b")]})).admitted());
    assert!(!server.admits("k=a_l_b") && !server.admits("k=a,l=b"));
}

// share_threshold.

#[test]
fn with_share_threshold_all_values_that_the_wildcard_takes_share_one_counter() {
    let server = Server::of("- {key: path, value: '/shared/*', share_threshold: true, @2}\n- {key: path, value: '/own/*', @2}\n");
    assert!(server.admits("path=/shared/a") && server.admits("path=/shared/b"));
    assert!(!server.admits("path=/shared/c") && !server.admits("path=/shared/a"));
    assert_eq!(["path=/own/a", "path=/own/b", "path=/own/a", "path=/own/b"].map(|path| server.admits(path)), [true; 4]);
    assert!(!server.admits("path=/own/a"));
}

#[test]
fn share_threshold_works_for_a_star_in_the_key() {
    let server = Server::of("- {key: 'header-*', share_threshold: true, @2}\n- {key: 'x-*', value: v, share_threshold: true, @1}\n");
    assert!(server.admits("header-a=1") && server.admits("header-b=2"));
    assert!(!server.admits("header-c=3"));
    assert!(server.admits("x-a=v") && !server.admits("x-b=v"));
}

#[test]
fn share_threshold_holds_on_its_own_level_also_where_the_limit_sits_deeper() {
    let server = Server::of("- key: path\n  value: '/shared/*'\n  share_threshold: true\n  descriptors: [{key: user, @1}]\n");
    assert!(server.admits("path=/shared/a,user=alice") && server.admits("path=/shared/a,user=bob"));
    assert!(!server.admits("path=/shared/b,user=alice"));
}

#[test]
fn share_threshold_of_a_deeper_level_does_not_reach_up() {
    let server = Server::of("- key: user\n  descriptors: [{key: path, value: '/s*', share_threshold: true, @1}]\n");
    assert!(server.admits("user=alice,path=/s1") && server.admits("user=bob,path=/s1"));
    assert!(!server.admits("user=alice,path=/s2"));
}

#[test]
fn a_value_spelled_like_the_pattern_is_one_of_those_that_share() {
    let server = Server::of("- {key: path, value: '/shared/*', share_threshold: true, @2}\n");
    assert!(server.admits("path=/shared/*") && server.admits("path=/shared/a"));
    assert!(!server.admits("path=/shared/*") && !server.admits("path=/shared/b"));
}

// replaces.

/// `wide` is a rule named so; the others replace it, each in its own way.
const REPLACING: &str = "
- {key: wide, rate_limit: {unit: day, requests_per_unit: 10, name: wide}}
- {key: other, rate_limit: {unit: day, requests_per_unit: 20, name: other}}
- {key: narrow, rate_limit: {unit: day, requests_per_unit: 30, replaces: [{name: wide}]}}
- {key: spent, rate_limit: {unit: day, requests_per_unit: 0, replaces: [{name: wide}]}}
- {key: free, rate_limit: {unlimited: true, replaces: [{name: wide}, {name: nobody}]}}
- {key: chain, rate_limit: {unit: day, requests_per_unit: 40, name: chain, replaces: [{name: other}]}}
- {key: last, rate_limit: {unit: day, requests_per_unit: 50, replaces: [{name: chain}]}}
- {key: one, rate_limit: {unit: day, requests_per_unit: 1, name: one, replaces: [{name: two}]}}
- {key: two, rate_limit: {unit: day, requests_per_unit: 2, name: two, replaces: [{name: one}]}}
- {key: same, value: a, rate_limit: {unit: day, requests_per_unit: 3, name: same}}
- {key: same, value: b, rate_limit: {unit: day, requests_per_unit: 4, name: same}}
- {key: both, rate_limit: {unit: day, requests_per_unit: 5, replaces: [{name: same}, {name: wide}]}}
";

#[test]
fn a_rule_that_matches_drops_the_rules_that_it_replaces_from_the_request_in_any_order() {
    let server = Server::of(REPLACING);
    assert_eq!(server.ask(&[at("wide=1"), at("narrow=1")]).limits(), [None, Some(30)]);
    assert_eq!(server.ask(&[at("narrow=1"), at("wide=1")]).limits(), [Some(30), None]);
    assert_eq!(server.ask(&[at("wide=1"), at("other=1")]).limits(), [Some(10), Some(20)]);
    assert_eq!(
        server.ask(&[at("both=1"), at("same=a"), at("wide=1"), at("same=b"), at("other=1")]).limits(),
        [Some(5), None, None, None, Some(20)]
    );
    // One hit on `wide` by itself, none of those that were dropped; it is in force where its replacer is not matched.
    assert_eq!(server.left("wide=1"), 9);
    assert_eq!(server.ask(&[at("wide=1"), at("narrow=1,deeper=1")]).limits(), [Some(10), None]);
}

#[test]
fn a_dropped_descriptors_status_is_as_for_no_match() {
    let server = Server::of(REPLACING);
    let answer = server.ask(&[at("wide=1"), at("narrow=1")]);
    assert_eq!(answer.statuses()[0], json!({"code": "OK"}));
}

#[test]
fn a_rule_replaces_also_when_it_is_over_unlimited_or_itself_replaced() {
    let server = Server::of(REPLACING);
    let over = server.ask(&[at("wide=1"), at("spent=1")]);
    assert_eq!((over.limits(), over.over()), (vec![None, Some(0)], vec![false, true]));
    assert_eq!(server.ask(&[at("wide=1"), at("free=1")]).limits(), [None, None]);
    assert_eq!(server.ask(&[at("other=1"), at("chain=1"), at("last=1")]).limits(), [None, None, Some(50)]);
    assert_eq!(server.ask(&[at("one=1"), at("two=1")]).limits(), [None, None], "two that name each other: both go");
    assert_eq!([server.left("one=1"), server.left("two=1"), server.left("other=1")], [1, 2, 20]);
}

#[test]
fn an_unlimited_rule_is_never_replaced() {
    let server = Server::of(
        "- {key: free, rate_limit: {unlimited: true, name: free}}\n\
         - {key: narrow, rate_limit: {unit: day, requests_per_unit: 30, replaces: [{name: free}]}}\n",
    );
    assert_eq!(server.ask(&[at("free=1"), at("narrow=1")]).remaining(), [UNLIMITED, 29]);
}

#[test]
fn a_limit_of_the_request_is_never_replaced_and_replaces_nothing() {
    let server = Server::of(REPLACING);
    let kept = server.ask(&[limited(at("wide=1"), 7, "DAY"), at("narrow=1")]);
    assert_eq!(kept.limits(), [Some(7), Some(30)]);
    let replaces_nothing = server.ask(&[at("wide=1"), limited(at("narrow=1"), 7, "DAY")]);
    assert_eq!(replaces_nothing.limits(), [Some(10), Some(7)]);
}

// unlimited.

#[test]
fn an_unlimited_rule_answers_ok_with_2_to_the_32_less_1_left_and_no_limit_and_asks_no_store() {
    let server = Server::of("- {key: free, rate_limit: {unlimited: true}}\n- {key: a, @5}\n");
    for hits in [1, 1_000_000] {
        let Answer(answer) = server.ask(&[costing(at("free=1"), hits)]);
        assert_eq!(answer, json!({"overallCode": "OK", "statuses": [{"code": "OK", "limitRemaining": UNLIMITED}]}));
    }
    assert_eq!(server.sum("ratelimit_store_calls", &[("store", "memory")]), 0);
    assert!(server.admits("a=1"));
    assert_eq!(server.sum("ratelimit_store_calls", &[("store", "memory")]), 1);
}

#[test]
fn an_unlimited_rule_exempts_its_own_descriptor_alone() {
    let server = Server::of("- {key: free, rate_limit: {unlimited: true}}\n- {key: none, @0}\n");
    let answer = server.ask(&[at("free=1"), at("none=1")]);
    assert_eq!((answer.admitted(), answer.over()), (false, vec![false, true]));
}

// shadow_mode.

#[test]
fn a_rule_in_shadow_mode_is_counted_and_past_its_limit_its_status_is_ok_with_0_left() {
    let server = Server::of("- {key: watched, shadow_mode: true, @2}\n- {key: strict, @5}\n");
    let left: Vec<_> =
        (0..4).map(|_| server.ask(&[at("watched=1")])).map(|answer| (answer.admitted(), answer.over()[0], answer.remaining()[0])).collect();
    assert_eq!(left, [(true, false, 1), (true, false, 0), (true, false, 0), (true, false, 0)]);
    // It neither blocks nor hides a rule that does.
    let answer = server.ask(&[at("watched=1"), at("strict=1")]);
    assert_eq!((answer.admitted(), answer.limits(), answer.remaining()), (true, vec![Some(2), Some(5)], vec![0, 4]));
}

#[test]
fn in_global_shadow_mode_everything_is_admitted_and_statuses_stay_over_limit() {
    let server = Server::with("- {key: a, @1}\n- {key: none, @0}\n", &[("SHADOW_MODE", "true")]);
    let answers: Vec<_> = (0..3).map(|_| server.ask(&[at("a=1")])).map(|answer| (answer.admitted(), answer.over()[0])).collect();
    assert_eq!(answers, [(true, false), (true, true), (true, true)]);
    let both = server.ask(&[at("none=1"), at("a=2")]);
    assert_eq!((both.admitted(), both.over()), (true, vec![true, false]));
}

#[test]
fn in_global_shadow_mode_the_requests_own_limits_are_shadowed_too() {
    let server = Server::with("- {key: a, @1}\n", &[("SHADOW_MODE", "true")]);
    let answer = server.ask(&[limited(at("b=1"), 0, "DAY")]);
    assert_eq!((answer.admitted(), answer.over()), (true, vec![true]));
}

#[test]
fn differs_in_global_shadow_mode_it_is_recorded_as_if_enforced_so_that_the_numbers_are_those_of_the_real_thing() {
    let server = Server::with("- {key: a, @5}\n- {key: none, @0}\n", &[("SHADOW_MODE", "true")]);
    assert!(server.ask(&[at("a=1"), at("none=1")]).admitted());
    assert_eq!(server.left("a=1"), 5, "enforced, the request would have been denied, and counted nothing");
}

// quota_mode.

#[test]
fn quota_rules_deny_the_request_only_where_all_of_them_are_over_and_their_statuses_stay_over_limit() {
    let server =
        Server::of("- {key: spent, quota_mode: true, @0}\n- {key: empty, quota_mode: true, @0}\n- {key: left, quota_mode: true, @5}\n");
    for (descriptors, admitted, over) in [
        (vec!["spent=1"], false, vec![true]),
        (vec!["left=1"], true, vec![false]),
        (vec!["spent=1", "left=1"], true, vec![true, false]),
        (vec!["left=1", "spent=1", "empty=1"], true, vec![false, true, true]),
        (vec!["spent=1", "empty=1"], false, vec![true, true]),
    ] {
        let answer = server.ask(&descriptors.iter().map(|path| at(path)).collect::<Vec<_>>());
        assert_eq!((answer.admitted(), answer.over()), (admitted, over), "{descriptors:?}");
    }
}

#[test]
fn beside_quota_rules_an_ordinary_rule_that_is_over_denies() {
    let server =
        Server::of("- {key: left, quota_mode: true, @5}\n- {key: spent, quota_mode: true, @0}\n- {key: none, @0}\n- {key: some, @5}\n");
    assert!(!server.ask(&[at("left=1"), at("none=1")]).admitted());
    assert!(!server.ask(&[at("spent=1"), at("some=1")]).admitted());
    assert!(server.ask(&[at("left=1"), at("spent=1"), at("some=1")]).admitted());
}

#[test]
fn unmatched_descriptors_are_no_quota_descriptors() {
    let server = Server::of("- {key: spent, quota_mode: true, @0}\n- {key: exempt}\n");
    assert!(!server.ask(&[at("spent=1"), at("unknown=1")]).admitted());
    assert!(!server.ask(&[at("spent=1"), at("exempt=1"), at("")]).admitted());
}

#[test]
fn unlimited_descriptors_are_no_quota_descriptors() {
    let server = Server::of("- {key: spent, quota_mode: true, @0}\n- {key: free, quota_mode: true, rate_limit: {unlimited: true}}\n");
    assert!(!server.ask(&[at("spent=1"), at("free=1")]).admitted());
}

#[test]
fn a_quota_rule_in_shadow_mode_is_never_spent() {
    let server = Server::of("- {key: spent, quota_mode: true, @0}\n- {key: watched, quota_mode: true, shadow_mode: true, @0}\n");
    let answer = server.ask(&[at("spent=1"), at("watched=1")]);
    assert_eq!((answer.admitted(), answer.over()), (true, vec![true, false]));
    assert!(server.admits("watched=1"));
}

#[test]
fn a_spent_quota_does_not_keep_the_others_from_being_counted() {
    // With STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT it does there, so that a second quota is never spent.
    let server = Server::of("- {key: first, quota_mode: true, @1}\n- {key: second, quota_mode: true, @2}\n");
    let admitted: Vec<_> = (0..4).map(|_| server.ask(&[at("first=1"), at("second=1")]).admitted()).collect();
    assert_eq!(admitted, [true, true, false, false]);
}

#[test]
fn in_global_quota_mode_every_descriptor_is_a_quota_descriptor() {
    let server = Server::with("- {key: none, @0}\n- {key: nil, @0}\n- {key: some, @5}\n", &[("QUOTA_MODE", "true")]);
    let answer = server.ask(&[at("none=1"), at("some=1")]);
    assert_eq!((answer.admitted(), answer.over()), (true, vec![true, false]));
    assert!(!server.ask(&[at("none=1"), at("nil=1")]).admitted());
    assert!(!server.admits("none=1"));
}

#[test]
fn in_global_quota_mode_an_unmatched_descriptor_is_a_quota_that_is_not_spent() {
    let server = Server::with("- {key: none, @0}\n", &[("QUOTA_MODE", "true")]);
    assert!(server.ask(&[at("none=1"), at("unknown=1")]).admitted());
    assert!(server.ask(&[at("none=1"), at("")]).admitted());
}

#[test]
fn in_global_quota_mode_an_unlimited_descriptor_is_none() {
    let server = Server::with("- {key: none, @0}\n- {key: free, rate_limit: {unlimited: true}}\n", &[("QUOTA_MODE", "true")]);
    assert!(!server.ask(&[at("none=1"), at("free=1")]).admitted());
}

// Limits in the request.

#[test]
fn a_limit_of_the_request_applies_in_a_known_domain_with_or_without_a_rule() {
    let server = Server::of("- {key: a, @100}\n");
    for path in ["a=1", "unknown=1", "a=1,deeper=1", ""] {
        let asked = || limited(at(path), 1, "HOUR");
        let answer = server.ask(&[asked()]);
        assert_eq!((answer.admitted(), answer.limits()), (true, vec![Some(1)]), "{path}");
        assert!(!server.ask(&[asked()]).admitted(), "{path}");
    }
    let elsewhere = json!({"domain": "unknown", "descriptors": [limited(at("a=1"), 0, "HOUR")]});
    assert_eq!(server.ask_whole(&elsewhere).statuses(), [json!({"code": "OK"})]);
}

#[test]
fn a_limit_of_the_request_has_one_of_seven_units_and_7_is_a_week() {
    let server = Server::of("- {key: a, @100}\n");
    let units =
        [("SECOND", 1), ("MINUTE", 60), ("HOUR", 3_600), ("DAY", 86_400), ("MONTH", 2_592_000), ("YEAR", 31_536_000), ("WEEK", 604_800)];
    for (number, (unit, seconds)) in (1..).zip(units) {
        let answer = server.ask(&[limited(at(&format!("unit={unit}")), 5, number)]);
        let status = &answer.statuses()[0];
        assert_eq!(status["currentLimit"], json!({"requestsPerUnit": 5, "unit": unit}));
        assert_eq!(status["durationUntilReset"], format!("{seconds}s"));
    }
}

#[test]
fn a_limit_of_0_in_the_request_denies() {
    let server = Server::of("- {key: a, @100}\n");
    let answer = server.ask(&[limited(at("a=1"), 0, "SECOND")]);
    assert_eq!((answer.admitted(), answer.limits()), (false, vec![Some(0)]));
}

#[test]
fn a_limit_of_the_request_drops_the_rules_name_shadow_mode_and_quota_mode() {
    let server = Server::of(
        "- {key: named, rate_limit: {unit: day, requests_per_unit: 100, name: named}}\n- {key: watched, shadow_mode: true, @100}\n\
         - {key: spent, quota_mode: true, @100}\n- {key: left, quota_mode: true, @100}\n",
    );
    let named = server.ask(&[limited(at("named=1"), 5, "DAY")]);
    assert_eq!(named.statuses()[0]["currentLimit"], json!({"requestsPerUnit": 5, "unit": "DAY"}));
    let watched = server.ask(&[limited(at("watched=1"), 0, "DAY")]);
    assert_eq!((watched.admitted(), watched.over()), (false, vec![true]));
    assert!(!server.ask(&[at("left=1"), limited(at("spent=1"), 0, "DAY")]).admitted());
}

#[test]
fn a_limit_of_the_request_drops_unlimited() {
    let server = Server::of("- {key: free, rate_limit: {unlimited: true}}\n");
    assert!(!server.ask(&[limited(at("free=1"), 0, "DAY")]).admitted());
    assert_eq!(server.ask(&[limited(at("free=1"), 5, "DAY")]).remaining(), [4]);
}

#[test]
fn differs_a_limit_of_the_request_counts_apart_from_the_rule_and_by_its_window() {
    let server = Server::of("- {key: a, @2}\n");
    assert!(server.admits("a=1") && server.admits("a=1") && !server.admits("a=1"));
    assert_eq!(server.ask(&[limited(at("a=1"), 2, "DAY")]).remaining(), [1], "the rule's hits are not in it");
    assert_eq!(server.ask(&[limited(at("a=1"), 2, "HOUR")]).remaining(), [1], "nor those under another window");
    assert_eq!(server.ask(&[limited(at("a=1"), 10, "DAY")]).remaining(), [8], "another limit judges the same hits");
    assert_eq!(server.left("a=2"), 2);
}

#[test]
fn differs_a_limit_of_the_request_whose_unit_is_unknown_is_dropped_and_the_rules_apply() {
    // There it ends the process.
    let server = Server::of("- {key: a, @100}\n");
    for unit in [0, 8, 99] {
        assert_eq!(server.ask(&[limited(at("a=1"), 0, unit), limited(at("b=1"), 0, unit)]).limits(), [Some(100), None], "{unit}");
    }
}
