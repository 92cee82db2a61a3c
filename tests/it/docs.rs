//! The pages about rules: each example is loaded, and run by the test that follows it. The page about running the server: its
//! settings are the program's, and its alerts ask for series that there are.

use std::process::Command;

use clap::Args;
use distributed_rate_limiter::metrics::Metrics;
use distributed_rate_limiter::settings::ServeArgs;

use crate::support::ratelimitd::{program, scratch};

fn page(name: &str) -> String {
    std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The YAML blocks of pages, in order.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn run(args: &[&std::ffi::OsStr]) -> (bool, String) {
    let output = Command::new(program()).args(args).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_example_loads_without_a_word_and_does_what_its_test_says() {
    let pages = page("rules.md") + &page("from-limitador.md");
    let blocks = blocks(&pages);
    assert!(blocks.len() > 20 && blocks.len().is_multiple_of(2), "{} blocks", blocks.len());
    let folder = scratch("rules-page");
    let (rules, tests) = (folder.join("rules.yaml"), folder.join("tests.yaml"));
    for pair in blocks.chunks(2) {
        std::fs::write(&rules, pair[0]).unwrap();
        std::fs::write(&tests, format!("rules: [rules.yaml]\n{}", pair[1])).unwrap();
        let (ok, said) = run(&["check".as_ref(), "--strict".as_ref(), rules.as_os_str()]);
        assert!(ok, "{said}\n{}", pair[0]);
        let (ok, said) = run(&["test".as_ref(), tests.as_os_str()]);
        assert!(ok, "{said}\n{}{}", pair[0], pair[1]);
    }
}

#[test]
fn every_key_of_the_language_stands_in_an_example() {
    let page = page("rules.md");
    let examples = blocks(&page).into_iter().step_by(2).collect::<String>();
    let schema: serde_json::Value = serde_json::from_str(&distributed_rate_limiter::config::schema()).unwrap();
    for map in [&schema, &schema["definitions"]["rule"], &schema["definitions"]["limit"], &schema["definitions"]["replaced"]] {
        for key in map["properties"].as_object().unwrap().keys() {
            assert!(examples.contains(&format!("{key}:")), "`{key}` has no example");
        }
    }
}

/// The settings as a table, from the program's own definition of them.
fn settings_table() -> String {
    let mut table = String::from("| variable | flag | default | |\n|---|---|---|---|\n");
    for argument in ServeArgs::augment_args(clap::Command::new("serve")).get_arguments() {
        let Some(flag) = argument.get_long() else { continue };
        let variable = argument.get_env().map_or(String::new(), |name| format!("`{}`", name.to_str().unwrap()));
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_str().unwrap()).filter(|text| !text.is_empty()).collect();
        let default = if defaults.is_empty() { String::new() } else { format!("`{}`", defaults.join(" ")) };
        let help = argument.get_help().expect("each setting says what it does").to_string().replace('|', "\\|");
        table.push_str(&format!("| {variable} | `--{flag}` | {default} | {help} |\n"));
    }
    table
}

#[test]
fn the_settings_of_the_page_are_those_of_the_program() {
    let page = page("operations.md");
    let (before, rest) = page.split_once("<!-- settings:").unwrap();
    let (marker, rest) = rest.split_once("-->\n").unwrap();
    let (table, after) = rest.split_once("<!-- end of settings -->").unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let text = format!("{before}<!-- settings:{marker}-->\n{}<!-- end of settings -->{after}", settings_table());
        std::fs::write(format!("{}/docs/operations.md", env!("CARGO_MANIFEST_DIR")), text).unwrap();
    } else {
        assert!(table == settings_table(), "docs/operations.md is not current: UPDATE_DOCS=1 cargo test --test it -- docs");
    }
}

#[test]
fn the_page_and_the_alerts_ask_for_series_that_there_are() {
    let metrics = Metrics::new().unwrap();
    let labels = distributed_rate_limiter::metrics::RuleLabels { domain: "d", key1: "k".into(), key2: None, rule: "k".into() };
    let _handles = (metrics.redis(), metrics.store("memory"), metrics.policy("local"), metrics.rule(&labels));
    let known = metrics.render();
    let alerts = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/alerts.yaml")).unwrap();
    let mut names = 0;
    for (at, _) in (page("operations.md") + &alerts).match_indices("ratelimit_") {
        let text = &(page("operations.md") + &alerts)[at..];
        let name: String = text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        assert!(known.contains(&format!("# TYPE {name} ")), "there is no series {name}");
        names += 1;
    }
    assert!(names > 15, "{names} names were found");
}
