//! The pages about rules: each example is loaded, and run by the test that follows it.

use std::process::Command;

use crate::support::ratelimitd::scratch;

fn page(name: &str) -> String {
    std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The YAML blocks of pages, in order.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn run(args: &[&std::ffi::OsStr]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ratelimitd")).args(args).output().unwrap();
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
