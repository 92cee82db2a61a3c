//! The facts' section YAML: what a rules file may hold, what is refused, what is taken in silence there and with a warning
//! here, how YAML 1.1 reads, and which files of a folder are rules files.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::{Server, accepted, at, domain, expand, fails_to_start, folder, load, refused, write};
use crate::support::ratelimitd::{Ratelimitd, scratch};

/// Each of these texts is refused by the reference server, and here, in words that hold `says`.
fn all_refused(cases: &[(&str, &str)]) {
    for (file, says) in cases {
        let problems = refused(file);
        assert!(problems.contains(says), "{file}\n{problems}");
        assert!(problems.starts_with("f.yaml:"), "{problems}");
    }
}

/// Each of these rules of the domain "d" loads there without a word, and here with one warning that holds `says`.
fn all_warned_about(cases: &[(&str, &str)]) {
    for (descriptors, says) in cases {
        let warnings = accepted(descriptors);
        assert!(warnings.len() == 1 && warnings[0].contains(says), "{descriptors}\n{warnings:#?}");
    }
}

// The keys.

#[test]
fn a_file_holds_one_domain_and_a_list_of_descriptors() {
    assert_eq!(load(&[("f", "domain: d\ndescriptors:\n- {key: a, @1}\n- {key: b, @1}\n")]), Ok(vec![]));
    refused("descriptors:\n- {key: a, @1}\n");
    refused("domain: [a, b]\n");
}

#[test]
fn a_descriptor_has_key_value_rate_limit_descriptors_shadow_mode_and_quota_mode() {
    let descriptor = "- key: a\n  value: b\n  shadow_mode: true\n  quota_mode: true\n  @1\n  descriptors:\n  - {key: c, @2}\n";
    assert_eq!(accepted(descriptor), [""; 0]);
}

#[test]
fn a_descriptor_has_detailed_metric_and_value_to_metric() {
    assert_eq!(accepted("- {key: a, detailed_metric: true, @1}\n- {key: b, value_to_metric: true, @1}\n"), [""; 0]);
}

#[test]
fn a_descriptor_has_share_threshold() {
    assert_eq!(accepted("- {key: a, value: 'x*', share_threshold: true, @1}\n- {key: 'h-*', share_threshold: true, @1}\n"), [""; 0]);
    assert_eq!(accepted("- {key: a, value: b, share_threshold: false, @1}\n"), [""; 0]);
}

#[test]
fn a_descriptor_has_metadata_which_is_a_map_that_holds_any_tree() {
    let tree = "- key: a\n  metadata: {tier: gold, tags: [a, {b: [c]}], owner: {team: {name: x, key: y}}, none: }\n  @1\n";
    assert_eq!(accepted(tree), [""; 0]);
    refused(&domain("- {key: a, metadata: text, @1}"));
    refused(&domain("- {key: a, metadata: [text], @1}"));
}

#[test]
fn a_rate_limit_has_name_and_replaces_which_is_a_list_of_names() {
    let rules = "- key: a\n  rate_limit: {unit: day, requests_per_unit: 1, name: one, replaces: [{name: two}, {name: three}]}\n\
                 - key: b\n  rate_limit: {unit: day, requests_per_unit: 1, name: two}\n\
                 - key: c\n  rate_limit: {unit: day, requests_per_unit: 1, name: three}\n";
    assert_eq!(accepted(rules), [""; 0]);
    refused(&domain("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, replaces: two}}"));
}

#[test]
fn a_rate_limit_may_be_unlimited_and_then_needs_neither_unit_nor_number() {
    assert_eq!(accepted("- {key: a, rate_limit: {unlimited: true}}\n"), [""; 0]);
    assert_eq!(accepted("- {key: a, rate_limit: {unlimited: false, unit: day, requests_per_unit: 1}}\n"), [""; 0]);
}

#[test]
fn the_units_are_second_to_year_in_any_letter_case_and_a_month_is_30_days_and_a_year_365() {
    let units = [
        ("second", "SECOND", 1),
        ("Minute", "MINUTE", 60),
        ("HOUR", "HOUR", 3_600),
        ("dAy", "DAY", 86_400),
        ("week", "WEEK", 7 * 86_400),
        ("Month", "MONTH", 30 * 86_400),
        ("YEAR", "YEAR", 365 * 86_400),
    ];
    let rule = |(unit, _, _): &(&str, &str, u64)| format!("- {{key: {unit}, rate_limit: {{unit: {unit}, requests_per_unit: 5}}}}\n");
    let server = Server::of(&units.iter().map(rule).collect::<String>());
    for (unit, shown, seconds) in units {
        let answer = server.ask(&[at(&format!("{unit}=v"))]);
        let status = &answer.statuses()[0];
        assert_eq!((&status["currentLimit"]["unit"], &status["durationUntilReset"]), (&json!(shown), &json!(format!("{seconds}s"))));
    }
}

#[test]
fn a_unit_has_no_plural_and_there_are_no_others() {
    for unit in ["seconds", "days", "s", "decade", "unknown", "''"] {
        refused(&domain(&format!("- {{key: a, rate_limit: {{unit: {unit}, requests_per_unit: 1}}}}")));
    }
}

#[test]
fn requests_per_unit_is_a_u32() {
    let file = |number: &str| domain(&format!("- {{key: a, rate_limit: {{unit: day, requests_per_unit: {number}}}}}"));
    for number in ["0", "1", "4294967295"] {
        assert_eq!(load(&[("f", &file(number))]), Ok(vec![]), "{number}");
    }
    for number in ["4294967296", "-1", "'5'", "\"5\"", "five", "5.0", "1e3", "[5]", "true"] {
        assert!(refused(&file(number)).contains("requests_per_unit"), "{number}");
    }
}

#[test]
fn differs_a_rate_limit_without_a_number_is_refused_where_the_reference_denies_everything() {
    for rate_limit in ["{unit: day}", "{unit: day, requests_per_unit: }", "{unit: day, requests_per_unit: null, name: x}"] {
        assert!(refused(&domain(&format!("- {{key: a, rate_limit: {rate_limit}}}"))).contains("requests_per_unit"), "{rate_limit}");
    }
    // Who wants to deny everything says so.
    assert_eq!(accepted("- {key: a, @0}"), [""; 0]);
}

// Refused at load.

#[test]
fn unknown_keys_are_refused_at_every_level_and_names_are_lower_case() {
    all_refused(&[
        ("domain: d\ncolour: red\n", "colour"),
        ("Domain: d\n", "Domain"),
        ("domain: d\nDescriptors: []\n", "Descriptors"),
        ("domain: d\ndescriptors:\n- {key: a, Value: b}\n", "Value"),
        ("domain: d\ndescriptors:\n- {key: a, unlimied: true}\n", "unlimied"),
        ("domain: d\ndescriptors:\n- {key: a, rate_limit: {unit: day, requests_per_unit: 1, per: 5}}\n", "per"),
        ("domain: d\ndescriptors:\n- {key: a, descriptors: [{key: b, size: 1}]}\n", "size"),
        ("defaults: &x {key: a}\ndomain: d\ndescriptors: [*x]\n", "defaults"),
    ]);
}

#[test]
fn unknown_keys_under_replaces_are_refused() {
    let file = domain("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, replaces: [{name: b, why: c}]}}\n- {key: b}\n");
    assert!(refused(&file).contains("why"));
}

#[test]
fn a_yaml_key_that_is_no_string_is_refused() {
    all_refused(&[
        ("domain: d\n1: x\n", "1"),
        ("domain: d\ntrue: x\n", "true"),
        ("domain: d\n? [a]\n: x\n", "key"),
        ("domain: d\ndescriptors:\n- {key: a, 2: b}\n", "2"),
    ]);
}

#[test]
fn a_list_of_other_than_maps_is_refused() {
    refused("domain: d\ndescriptors: [a]\n");
    refused("domain: d\ndescriptors:\n- [{key: a}]\n");
    refused("- domain: d\n");
}

#[test]
fn an_empty_domain_and_an_empty_key_are_refused() {
    for file in ["domain: ''\n", "domain:\n", "descriptors: []\n", ""] {
        refused(file);
    }
    for key in ["key: ''", "key: ", "value: b"] {
        assert!(refused(&domain(&format!("- {{{key}}}"))).contains("key"), "{key}");
    }
}

#[test]
fn the_same_key_and_value_twice_on_one_level_are_refused_and_an_empty_value_is_the_bare_key() {
    for (first, second) in [
        ("key: a, value: b", "key: a, value: b"),
        ("key: a", "key: a"),
        ("key: a", "key: a, value: ''"),
        ("key: a, value: ", "key: a, value: null"),
        ("key: a, value: 'x*'", "key: a, value: 'x*'"),
        ("key: a, value: 1", "key: a, value: '1'"),
    ] {
        refused(&domain(&format!("- {{{first}}}\n- {{{second}}}")));
        refused(&domain(&format!("- key: top\n  descriptors:\n  - {{{first}}}\n  - {{{second}}}")));
    }
    assert_eq!(accepted("- {key: a}\n- {key: a, value: b}\n- {key: b, descriptors: [{key: a}]}"), [""; 0]);
}

#[test]
fn a_domain_in_two_files_is_refused() {
    let problems = load(&[("a", "domain: d\n"), ("b", "domain: d\n")]).unwrap_err();
    assert!(problems.contains("a:1") && problems.contains("b:1"), "both places are told: {problems}");
}

#[test]
fn a_missing_or_unknown_unit_is_refused() {
    all_refused(&[
        ("domain: d\ndescriptors:\n- {key: a, rate_limit: {requests_per_unit: 1}}\n", "unit"),
        ("domain: d\ndescriptors:\n- {key: a, rate_limit: {unit: , requests_per_unit: 1}}\n", "unit"),
        ("domain: d\ndescriptors:\n- {key: a, rate_limit: {unit: fortnight, requests_per_unit: 1}}\n", "fortnight"),
        ("domain: d\ndescriptors:\n- {key: a, rate_limit: {}}\n", "rate_limit"),
    ]);
}

#[test]
fn a_real_unit_on_an_unlimited_rule_is_refused() {
    for unit in ["day", "SECOND", "week"] {
        assert!(refused(&domain(&format!("- {{key: a, rate_limit: {{unlimited: true, unit: {unit}}}}}"))).contains("unlimited"), "{unit}");
    }
}

#[test]
fn an_empty_name_under_replaces_and_one_that_is_its_own_are_refused() {
    let file = |name: &str, replaces: &str| {
        domain(&format!("- {{key: a, rate_limit: {{unit: day, requests_per_unit: 1, name: {name}, replaces: [{{name: {replaces}}}]}}}}"))
    };
    for (name, replaces) in [("one", "''"), ("one", ""), ("one", "one")] {
        assert!(refused(&file(name, replaces)).contains("replaces"), "{name} {replaces}");
    }
    refused(&domain("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, replaces: [{}]}}"));
}

#[test]
fn share_threshold_without_a_star_in_key_or_value_is_refused() {
    for rule in ["key: a", "key: a, value: b"] {
        assert!(refused(&domain(&format!("- {{{rule}, share_threshold: true, @1}}"))).contains("share_threshold"), "{rule}");
    }
}

#[test]
fn a_quoted_boolean_is_refused() {
    for flag in ["shadow_mode", "quota_mode"] {
        assert!(refused(&domain(&format!("- {{key: a, {flag}: 'true'}}"))).contains(flag));
    }
    assert!(refused(&domain("- {key: a, shadow_mode: 1}")).contains("shadow_mode"));
}

#[test]
fn a_quoted_boolean_is_refused_on_the_other_flags_too() {
    for flag in ["detailed_metric", "value_to_metric", "share_threshold"] {
        assert!(refused(&domain(&format!("- {{key: 'a*', {flag}: \"yes\"}}"))).contains(flag));
    }
    assert!(refused(&domain("- {key: a, rate_limit: {unlimited: 'true'}}")).contains("unlimited"));
}

#[test]
fn differs_an_unquoted_float_where_text_stands_is_its_text_as_written() {
    let server = Server::of("- {key: version, value: 1.5, @101}\n- {key: 2.50, value: 1e3, @102}\n- {key: version, value: .nan, @103}\n");
    assert_eq!(server.lands_on("version=1.5"), Some(101));
    assert_eq!(server.lands_on("2.50=1e3"), Some(102));
    assert_eq!(server.lands_on("version=.nan"), Some(103));
    assert_eq!(server.lands_on("2.5=1000"), None);
}

#[test]
fn excessive_aliasing_is_refused() {
    let mut bomb = "domain: d\ndescriptors:\n- key: a\n  descriptors: &a0 [{key: x}]\n".to_owned();
    for level in 1..=9 {
        let tens: Vec<_> = (0..10).map(|number| format!("{{key: k{number}, descriptors: *a{}}}", level - 1)).collect();
        bomb.push_str(&format!("- key: b{level}\n  descriptors: &a{level} [{}]\n", tens.join(", ")));
    }
    assert!(refused(&bomb).contains("alias"));
}

#[test]
fn excessive_aliasing_under_metadata_is_refused() {
    let mut bomb = "domain: d\ndescriptors:\n- key: a\n  metadata:\n    a0: &a0 [x]\n".to_owned();
    for level in 1..=9 {
        bomb.push_str(&format!("    a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", ")));
    }
    assert!(refused(&bomb).contains("alias"));
}

#[test]
fn a_file_that_says_to_be_yaml_1_2_is_refused() {
    refused("%YAML 1.2\n---\ndomain: d\n");
    assert_eq!(load(&[("f", "%YAML 1.1\n---\ndomain: d\n")]), Ok(vec![]));
}

#[test]
fn differs_every_problem_of_every_file_is_told_with_its_place() {
    let files = [("a.yaml", "domain: d\ncolour: red\ndescriptors:\n- {kye: a}\n"), ("b.yaml", "domain: e\ndescriptors: 5\n")];
    let problems = load(&files).unwrap_err();
    for place in ["a.yaml:2:1: ", "a.yaml:4:4: ", "b.yaml:2:14: "] {
        assert!(problems.contains(place), "{place}: {problems}");
    }
}

// Taken in silence there; a warning here.

#[test]
fn a_known_key_in_the_wrong_place_is_ignored_with_a_warning() {
    all_warned_about(&[
        ("- {key: a, unit: day, @1}", "unit"),
        ("- {key: a, requests_per_unit: 5, @1}", "requests_per_unit"),
        ("- {key: a, name: x, @1}", "name"),
        ("- {key: a, domain: x, @1}", "domain"),
        ("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, shadow_mode: true}}", "shadow_mode"),
        ("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, descriptors: [{key: b}]}}", "descriptors"),
        ("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, key: b}}", "key"),
        ("- {key: a, @1}\nrate_limit: {unit: day, requests_per_unit: 0}\n", "rate_limit"),
        ("- {key: a, @1}\nkey: b\n", "key"),
    ]);
}

#[test]
fn the_newer_keys_in_the_wrong_place_are_ignored_with_a_warning_too() {
    all_warned_about(&[
        ("- {key: a, unlimited: true, @1}", "unlimited"),
        ("- {key: a, replaces: [{name: b}], @1}", "replaces"),
        ("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, detailed_metric: true}}", "detailed_metric"),
        ("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, metadata: {a: b}}}", "metadata"),
        ("- {key: a, @1}\nshare_threshold: true\n", "share_threshold"),
    ]);
}

#[test]
fn what_stands_in_the_wrong_place_means_nothing() {
    let server = Server::of(
        "- key: a\n  unit: minute\n  name: outside\n  rate_limit: {unit: day, requests_per_unit: 0, shadow_mode: true, quota_mode: true,\n    \
         descriptors: [{key: b, @7}]}\nrate_limit: {unit: second, requests_per_unit: 0}\n",
    );
    let answer = server.ask(&[at("a=1")]);
    let limit = &answer.statuses()[0]["currentLimit"];
    assert_eq!((answer.over(), &limit["unit"], &limit["name"]), (vec![true], &json!("DAY"), &json!(null)));
    assert_eq!(server.lands_on("a=1,b=1"), None);
    assert!(server.admits("x=1"), "a limit at the top limits nothing");
}

#[test]
fn differs_a_yaml_key_twice_in_one_map_is_refused_where_the_last_would_win() {
    all_refused(&[
        ("domain: d\ndomain: e\n", "domain"),
        ("domain: d\ndescriptors:\n- {key: a, key: b}\n", "key"),
        (
            "domain: d\ndescriptors:\n- {key: a, rate_limit: {unit: day, requests_per_unit: 1, requests_per_unit: 100}}\n",
            "requests_per_unit",
        ),
    ]);
}

#[test]
fn a_second_document_is_ignored_with_a_warning_even_a_broken_one() {
    for second in ["domain: d\ndescriptors: 5\n", "domain: [\n", "\t{\n"] {
        let warnings = load(&[("f", &format!("domain: d\n---\n{second}"))]).unwrap();
        assert_eq!(warnings.len(), 1, "{second}: {warnings:#?}");
    }
}

#[test]
fn a_made_up_unit_or_a_number_on_an_unlimited_rule_is_ignored_with_a_warning() {
    all_warned_about(&[
        ("- {key: a, rate_limit: {unlimited: true, unit: fortnight}}", "unlimited"),
        ("- {key: a, rate_limit: {unlimited: true, requests_per_unit: 5}}", "unlimited"),
    ]);
}

#[test]
fn replaces_of_a_name_that_nobody_has_is_taken_with_a_warning() {
    all_warned_about(&[("- {key: a, rate_limit: {unit: day, requests_per_unit: 1, replaces: [{name: nobody}]}}", "nobody")]);
}

#[test]
fn a_null_or_missing_rate_limit_or_list_of_descriptors_is_taken() {
    for rule in ["{key: a}", "{key: a, rate_limit: }", "{key: a, rate_limit: null, descriptors: ~}", "{key: a, descriptors: []}"] {
        assert_eq!(accepted(&format!("- {rule}")), [""; 0], "{rule}");
    }
    assert_eq!(load(&[("f", "domain: d\ndescriptors:\n")]), Ok(vec![]));
}

#[test]
fn a_file_with_a_domain_and_nothing_else_is_taken() {
    assert_eq!(load(&[("f", "domain: d\n")]), Ok(vec![]));
}

// YAML 1.1.

#[test]
fn booleans_are_yaml_1_1s() {
    let yes = ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"];
    let no = ["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"];
    let rule = |form: &&str| format!("- {{key: k, value: 'is-{form}', shadow_mode: {form}, @0}}\n");
    let server = Server::of(&yes.iter().chain(&no).map(rule).collect::<String>());
    for form in yes {
        assert!(server.admits(&format!("k=is-{form}")), "{form}");
    }
    for form in no {
        assert!(!server.admits(&format!("k=is-{form}")), "{form}");
    }
}

#[test]
fn numbers_are_yaml_1_1s() {
    let forms = [("017", 15), ("0o17", 15), ("0x1F", 31), ("0b101", 5), ("1_000", 1_000), ("+5", 5), ("4294967295", 4_294_967_295)];
    let rule =
        |(form, _): &(&str, u64)| format!("- {{key: k, value: 'is {form}', rate_limit: {{unit: day, requests_per_unit: {form}}}}}\n");
    let server = Server::of(&forms.iter().map(rule).collect::<String>());
    for (form, number) in forms {
        assert_eq!(server.lands_on(&format!("k=is {form}")), Some(number), "{form}");
    }
}

#[test]
fn anchors_aliases_merge_keys_json_crlf_a_byte_order_mark_and_document_marks_load() {
    let anchors = "domain: anchors\ndescriptors:\n- key: a\n  rate_limit: &limit {unit: day, requests_per_unit: 101}\n  descriptors: &below\n  \
                   - {key: x, @102}\n- key: b\n  rate_limit: *limit\n  descriptors: *below\n- key: c\n  rate_limit:\n    <<: *limit\n    \
                   requests_per_unit: 103\n- &whole {key: d, @104}\n- {<<: *whole, value: v, @105}\n- {<<: [*whole], value: w}\n";
    let json = r#"{"domain": "json", "descriptors": [{"key": "a", "rate_limit": {"unit": "day", "requests_per_unit": 111}}]}"#;
    let crlf = expand("domain: crlf\ndescriptors:\n- key: a\n  @112\n").replace('\n', "\r\n");
    let server = Server::serving(
        &[
            ("anchors", anchors),
            ("json", json),
            ("crlf", &crlf),
            ("bom", "\u{feff}domain: bom\ndescriptors:\n- {key: a, @113}\n"),
            ("marks", "---\ndomain: marks\ndescriptors:\n- {key: a, @114}\n...\n"),
        ],
        &[],
    );
    for (domain, path, limit) in [
        ("anchors", "a=v", 101),
        ("anchors", "a=v,x=v", 102),
        ("anchors", "b=v", 101),
        ("anchors", "b=v,x=v", 102),
        ("anchors", "c=v", 103),
        ("anchors", "d=u", 104),
        ("anchors", "d=v", 105),
        ("anchors", "d=w", 104),
        ("json", "a=v", 111),
        ("crlf", "a=v", 112),
        ("bom", "a=v", 113),
        ("marks", "a=v", 114),
    ] {
        assert_eq!(server.lands_in(domain, path), Some(limit), "{domain} {path}");
    }
}

#[test]
fn a_bare_number_boolean_or_date_as_domain_key_or_value_is_its_text_as_written() {
    let server = Server::serving(
        &[
            (
                "number",
                "domain: 2024\ndescriptors:\n- {key: 0443, @101}\n- {key: port, value: 0443, @102}\n- {key: port, value: 443, @103}\n",
            ),
            ("boolean", "domain: yes\ndescriptors:\n- {key: on, value: no, @104}\n- {key: k, value: 2024-01-02, @105}\n"),
            ("date", "domain: 2024-01-02\ndescriptors:\n- {key: k, value: 0x1F, @106}\n- {key: k, value: 1_000, @107}\n"),
        ],
        &[],
    );
    for (domain, path, limit) in [
        ("2024", "0443=v", 101),
        ("2024", "port=0443", 102),
        ("2024", "port=443", 103),
        ("yes", "on=no", 104),
        ("yes", "k=2024-01-02", 105),
        ("2024-01-02", "k=0x1F", 106),
        ("2024-01-02", "k=1_000", 107),
    ] {
        assert_eq!(server.lands_in(domain, path), Some(limit), "{domain} {path}");
    }
    assert_eq!(server.lands_in("true", "on=no"), None);
}

#[test]
fn in_metadata_dates_are_text_keys_are_made_text_and_scalars_are_yaml_1_1s() {
    let server = Server::with(
        "- key: a\n  metadata:\n    since: 2024-01-02\n    7: seven\n    sure: yes\n    octal: 017\n    \
         written: '017'\n    half: 0.5\n    list: [1, two, {three: 3}]\n    none: null\n    yes: key\n  @101\n\
         - {key: b, metadata: {y: key}, @102}\n- {key: c, metadata: {odd: .nan}, @103}\n",
        &[("RESPONSE_DYNAMIC_METADATA", "true")],
    );
    let answer = server.ask(&[at("a=1")]);
    let metadata = &answer.metadata()["metadata"];
    for (key, value) in [
        ("since", json!("2024-01-02")),
        ("7", json!("seven")),
        ("sure", json!(true)),
        ("written", json!("017")),
        ("none", json!(null)),
        ("true", json!("key")),
    ] {
        assert!(metadata.get(key) == Some(&value), "{key}: {metadata}");
    }
    for (value, number) in
        [(&metadata["octal"], 15.0), (&metadata["half"], 0.5), (&metadata["list"][0], 1.0), (&metadata["list"][2]["three"], 3.0)]
    {
        assert_eq!(value.as_f64(), Some(number), "{metadata}");
    }
    assert_eq!(metadata["list"][1], "two");
    assert_eq!(server.ask(&[at("b=1")]).metadata()["metadata"], json!({"true": "key"}));
    // A number that is none has no form in JSON, but a rules file with one loads.
    accepted("- {key: c, metadata: {odd: .nan, far: -.inf}, @103}\n");
}

// Files.

#[test]
fn every_file_below_root_subdirectory_and_appdirectory_is_a_rules_file_at_any_depth_and_of_any_name() {
    let root = folder(&[
        ("sub/app/README.md", "domain: readme\ndescriptors:\n- {key: a, @101}\n"),
        ("sub/app/rules.yaml~", "domain: backup\ndescriptors:\n- {key: a, @102}\n"),
        ("sub/app/rules", "domain: bare\ndescriptors:\n- {key: a, @103}\n"),
        ("sub/app/deep/er/rules.txt", "domain: deep\ndescriptors:\n- {key: a, @104}\n"),
        ("sub/other/rules.yaml", "domain: other\ndescriptors:\n- {key: a, @105}\n"),
    ]);
    let environment = [("RUNTIME_ROOT", root.to_str().unwrap()), ("RUNTIME_SUBDIRECTORY", "sub"), ("RUNTIME_APPDIRECTORY", "app")];
    let server = Server { process: Ratelimitd::start_with(&[], &environment), folder: root.clone() };
    for (domain, limit) in [("readme", Some(101)), ("backup", Some(102)), ("bare", Some(103)), ("deep", Some(104)), ("other", None)] {
        assert_eq!(server.lands_in(domain, "a=v"), limit, "{domain}");
    }
}

#[test]
fn a_file_that_is_no_rules_file_refuses_the_whole_load() {
    let folder = folder(&[("rules.yaml", "domain: d\n"), ("README.md", "# How we limit\n\nAsk *us* first.\n")]);
    let (_, said) = fails_to_start(&["--config", folder.to_str().unwrap()], &[]);
    assert!(said.contains("README.md"), "{said}");
}

#[test]
fn differs_dot_files_and_dot_folders_are_skipped_always() {
    for ignore in ["true", "false"] {
        let files = [("rules.yaml", "domain: d\ndescriptors:\n- {key: a, @101}\n"), (".rules.swp", "\0"), (".git/config", "[core]\n")];
        let server = Server::serving(&files, &[("RUNTIME_IGNOREDOTFILES", ignore)]);
        assert_eq!(server.lands_on("a=v"), Some(101), "{ignore}");
    }
}

#[test]
fn links_to_files_are_followed_and_links_to_folders_are_not() {
    let outside = folder(&[("linked.yaml", "domain: file\ndescriptors:\n- {key: a, @101}\n")]);
    let farther = folder(&[("rules.yaml", "domain: folder\ndescriptors:\n- {key: a, @102}\n")]);
    let rules = scratch("links");
    write(&rules.join("own.yaml"), "domain: own\ndescriptors:\n- {key: a, @103}\n");
    symlink(outside.join("linked.yaml"), rules.join("linked.yaml")).unwrap();
    symlink(farther, rules.join("linked")).unwrap();
    let server = Server { process: Ratelimitd::start_with(&["--config", rules.to_str().unwrap()], &[]), folder: rules };
    assert_eq!(["file", "folder", "own"].map(|domain| server.lands_in(domain, "a=v")), [Some(101), None, Some(103)]);
}

#[test]
fn an_empty_folder_is_a_configuration_without_domains() {
    let server = Server::serving(&[], &[]);
    assert!(server.admits("a=v"));
    assert_eq!(server.lands_on("a=v"), None);
}

#[test]
fn with_merge_domain_config_the_whole_descriptors_of_several_files_are_put_together() {
    let server = Server::serving(
        &[
            ("a.yaml", "domain: d\ndescriptors:\n- {key: a, @101}\n- {key: both, value: x, @102}\n"),
            ("b.yaml", "domain: d\ndescriptors:\n- {key: b, @103}\n- {key: both, value: y, @104}\n"),
            ("c/deep.yaml", "domain: d\ndescriptors:\n- {key: both, @105}\n"),
            ("e.yaml", "domain: e\ndescriptors:\n- {key: a, @106}\n"),
        ],
        &[("MERGE_DOMAIN_CONFIG", "true")],
    );
    for (path, limit) in [("a=v", 101), ("both=x", 102), ("b=v", 103), ("both=y", 104), ("both=z", 105)] {
        assert_eq!(server.lands_on(path), Some(limit), "{path}");
    }
    assert_eq!(server.lands_in("e", "a=v"), Some(106));
}

#[test]
fn merging_does_not_reach_below_the_top_so_the_same_descriptor_in_two_files_is_a_duplicate() {
    let folder = folder(&[
        ("a.yaml", "domain: d\ndescriptors:\n- {key: t, descriptors: [{key: a, @1}]}\n"),
        ("b.yaml", "domain: d\ndescriptors:\n- {key: t, descriptors: [{key: b, @1}]}\n"),
    ]);
    let (code, said) = fails_to_start(&["--config", folder.to_str().unwrap()], &[("MERGE_DOMAIN_CONFIG", "true")]);
    assert!(code == 1 && said.contains("a.yaml") && said.contains("b.yaml"), "{said}");
}

#[test]
fn differs_wildcards_of_several_files_come_in_the_sorted_order_of_the_files() {
    let server = Server::serving(
        &[
            ("20.yaml", "domain: d\ndescriptors:\n- {key: k, value: 'a*', @102}\n"),
            ("10.yaml", "domain: d\ndescriptors:\n- {key: k, value: 'ab*', @101}\n"),
            ("30.yaml", "domain: d\ndescriptors:\n- {key: k, value: '*', @103}\n"),
        ],
        &[("MERGE_DOMAIN_CONFIG", "true")],
    );
    assert_eq!(["k=abc", "k=ac", "k=x"].map(|path| server.lands_on(path)), [Some(101), Some(102), Some(103)]);
}

#[test]
fn without_merge_domain_config_a_domain_in_two_files_is_refused_at_start() {
    let folder = folder(&[("a.yaml", "domain: d\n"), ("b.yaml", "domain: d\n")]);
    for environment in [&[][..], &[("MERGE_DOMAIN_CONFIG", "false")]] {
        let (code, said) = fails_to_start(&["--config", folder.to_str().unwrap()], environment);
        assert!(code == 1 && said.contains("b.yaml"), "{said}");
    }
}
