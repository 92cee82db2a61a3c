//! `ratelimitd check` and `ratelimitd test`, as processes: what they print, and their exit codes.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::ratelimitd::{program, scratch};

/// Runs the program in the project's folder, and gives its exit code and what it printed.
fn run(args: &[&str]) -> (i32, String) {
    let mut command = Command::new(program());
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new("tests/data/rules-tests").join(kind);
    let found = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder)).unwrap();
    let mut files: Vec<_> = found.map(|entry| folder.join(entry.unwrap().file_name())).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "yaml"));
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn the_tests_of_the_sample_rules_pass() {
    let (code, said) = run(&["test", "config/api.test.yaml"]);
    assert_eq!((code, said.as_str()), (0, "7 passed, 0 failed\n"));
}

#[test]
fn a_step_that_fails_says_where_what_was_expected_and_what_came() {
    for (kind, ends_with) in [("passing", 0), ("failing", 1), ("invalid", 1)] {
        for file in fixtures(kind) {
            let (code, said) = run(&["test", file.to_str().unwrap()]);
            let expected = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file.with_extension("expected"))).unwrap();
            assert_eq!((code, said), (ends_with, expected), "{}", file.display());
        }
    }
}

#[test]
fn several_files_are_one_run_and_one_that_is_missing_fails_it() {
    let (code, said) = run(&["test", "config/api.test.yaml", "tests/data/rules-tests/failing/wrong-code.yaml", "no-such-file"]);
    assert_eq!(code, 1);
    assert!(said.ends_with("\n8 passed, 2 failed\n") && said.contains("no-such-file: No such file"), "{said}");
    let (code, said) = run(&["test", "config"]);
    assert_eq!((code, said.as_str()), (1, "config: this is a folder: name the files of tests in it\n0 passed, 1 failed\n"));
}

#[test]
fn check_ends_with_0_where_the_rules_load_and_with_1_where_they_do_not() {
    let (code, said) = run(&["check", "config"]);
    assert!(code == 0 && said.starts_with("ok: files 1, domains 1, rules 3, warnings 0, hash "), "{said}");
    let (code, said) = run(&["check", "tests/data/rules/invalid/misspelled-key.yaml"]);
    assert!(code == 1 && said.ends_with("\nfailed: errors 7, warnings 0\n"), "{said}");
    assert!(said.starts_with("tests/data/rules/invalid/misspelled-key.yaml:1:1: error: "), "{said}");
    assert_eq!(run(&["check", "no-such-folder"]).0, 1);
}

#[test]
fn what_is_no_rules_file_is_passed_over_in_a_folder_and_told_when_named() {
    for (file, place, what) in [
        ("config/api.test.yaml", "3:1", "this is a test of rules: run `ratelimitd test FILE`"),
        ("config/rules.schema.json", "1:1", "this is a JSON Schema and no rules file: name the rules alone"),
    ] {
        let (code, said) = run(&["check", file]);
        assert_eq!((code, said), (1, format!("{file}:{place}: error: {what}\nfailed: errors 1, warnings 0\n")));
    }
}

#[test]
fn rules_are_merged_where_the_flag_or_the_servers_setting_says_so() {
    let folder = scratch("check-merged");
    for name in ["a.yaml", "b.yaml"] {
        std::fs::write(folder.join(name), "domain: d\n").unwrap();
    }
    let check = |flags: &[&str], setting: Option<&str>| {
        let mut command = Command::new(program());
        command.env_remove("MERGE_DOMAIN_CONFIG").envs(setting.map(|value| ("MERGE_DOMAIN_CONFIG", value)));
        command.arg("check").args(flags).arg(&folder).output().unwrap().status.code()
    };
    assert_eq!(check(&[], None), Some(1));
    assert_eq!(check(&["--merge-domain-config"], None), Some(0));
    assert_eq!([check(&[], Some("t")), check(&[], Some("0")), check(&[], Some("maybe"))], [Some(0), Some(1), Some(2)]);
}

#[test]
fn a_wrong_command_line_is_one_line_that_says_what_is_wrong() {
    for (args, what) in [
        (&["check"][..], "the following required arguments were not provided: <PATH>..."),
        (&["test"], "the following required arguments were not provided: <FILE>..."),
        (&["check", "--format", "xml", "config"], "invalid value 'xml' for '--format <FORMAT>' [possible values: text, json]"),
    ] {
        assert_eq!(run(args), (2, format!("ratelimitd: {what} (see ratelimitd --help)\n")));
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    for (args, ends_with) in [(["check", "config"], 0), (["check", "no-such-folder"], 1), (["test", "config/api.test.yaml"], 0)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(program());
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(ends_with), &b""[..]));
    }
}

#[test]
fn strict_takes_warnings_for_errors() {
    let file = "tests/data/rules/valid/hidden-rules.yaml";
    let (code, said) = run(&["check", file]);
    assert!(code == 0 && said.contains(":6:5: warning: ") && said.contains("warnings 3"), "{said}");
    let (code, said) = run(&["check", "--strict", file]);
    assert!(code == 1 && said.contains(":6:5: error: ") && said.ends_with("failed: errors 3, warnings 0\n"), "{said}");
}

#[test]
fn warnings_are_told_beside_errors_too() {
    let folder = scratch("check-both");
    std::fs::write(folder.join("a.yaml"), "domain: a\ndescriptors: [{key: k, unit: day, colour: red}]\n").unwrap();
    let (code, said) = run(&["check", folder.to_str().unwrap()]);
    assert!(code == 1 && said.ends_with("failed: errors 1, warnings 1\n"), "{said}");
}

#[test]
fn json_is_one_object_for_programs() {
    let json = |args: &[&str]| {
        let (code, said) = run(args);
        (code, serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}")))
    };
    let (code, told) = json(&["check", "--format", "json", "config"]);
    assert_eq!((code, &told["ok"], &told["rules"]), (0, &Value::Bool(true), &Value::from(3)));
    let (code, told) = json(&["check", "--format", "json", "tests/data/rules/valid/hidden-rules.yaml", "no-such-file"]);
    assert_eq!((code, &told["ok"]), (1, &Value::Bool(false)));
    let problems = told["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 4, "{told}");
    let missing = problems.iter().find(|problem| problem["file"] == "no-such-file").unwrap();
    assert_eq!((&missing["severity"], missing.get("line")), (&Value::from("error"), None));
    let hidden = problems.iter().find(|problem| problem["line"] == 6).unwrap();
    assert_eq!((&hidden["severity"], &hidden["column"]), (&Value::from("warning"), &Value::from(5)));
}

#[test]
fn the_schema_is_printed_for_editors() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/rules.schema.json")).unwrap();
    assert_eq!(run(&["check", "--schema"]), (0, committed));
}

#[test]
fn explain_tells_the_way_the_counter_and_where_the_walk_stops() {
    let (code, said) = run(&["explain", "--domain", "api", "path=/export", "client=alice", ",", "colour=red"]);
    assert_eq!(code, 0, "{said}");
    for line in ["  rule path=/export|client", "     key       1{api|alice}log|90000000|path=/export|client", "     the walk stops here"] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    let (code, said) = run(&["explain", "--domain", "api", "client"]);
    assert_eq!((code, said.as_str()), (1, "ratelimitd: `client` is no entry: write KEY=VALUE\n"));
    let (code, said) = run(&["explain", "--config", "tests/data/rules/invalid/default.yaml", "--domain", "api", "client=a"]);
    assert!(code == 1 && said.contains("default.yaml:2:10: "), "{said}");
}
