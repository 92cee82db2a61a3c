//! The admin port of a real process: what it shows, explains and clears, and what it answers to mistakes.

use std::path::Path;
use std::process::Command;

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, program, rules_file, scratch};
use crate::support::redis::RedisServer;

const RULES: &str = "\
domain: d
descriptors:
- key: path
  value: /login
  shadow_mode: true
  rate_limit: {unit: day, requests_per_unit: 5}
  descriptors:
  - key: client
    action: login
    rate_limit:
    - {name: burst, limit: 2, window: 10s}
    - {limit: 100, window: 1h}
- {key: ip, value: 127.0.0.1, exempt: true}
- {key: client, rate_limit: {limit: 2, window: 1h}}
";

fn rules() -> String {
    rules_file(RULES)
}

fn client_of(server: &Ratelimitd) -> impl Fn(&str) -> bool {
    let client = Client::connect(server.grpc());
    move |name| client.admits(request("d", vec![descriptor(&[("client", name)])]))
}

fn get(server: &Ratelimitd, path: &str) -> (u16, String) {
    let response = http::get(server.admin(), path, &[]);
    (response.status, response.body)
}

fn post(server: &Ratelimitd, path: &str) -> (u16, String) {
    let response = http::post(server.admin(), path, b"");
    (response.status, response.body)
}

#[test]
fn rlconfig_shows_what_is_loaded_and_a_line_for_each_limit_that_begins_as_the_reference_servers() {
    let file = rules();
    let server = Ratelimitd::start(&["--config", &file]);
    let (status, text) = get(&server, "/rlconfig");
    assert_eq!(status, 200);
    let (head, limits) = text.split_once("\n\n").unwrap();
    let hash = server.wait_for_log("rules loaded")["hash"].as_str().unwrap().to_owned();
    let head: Vec<_> = head.lines().collect();
    assert!(head[0].starts_with("loaded: ") && head[0].ends_with(" GMT"), "{text}");
    assert_eq!(head[1..4], [format!("hash: {hash}"), "domains: 1".to_owned(), "rules: 4".to_owned()]);
    assert!(head.contains(&format!("file: {file}").as_str()), "{text}");
    let limits: Vec<_> = limits.lines().collect();
    let ours = "algorithm: sliding_window_log, log_entries: 128";
    assert_eq!(
        limits,
        [
            format!(
                "d.path_/login: unit=DAY requests_per_unit=5, shadow_mode: true, quota_mode: false, window: 1d, {ours}, action: path=/login"
            ),
            format!(
                "d.path_/login.client: unit=UNKNOWN requests_per_unit=2, shadow_mode: false, quota_mode: false, window: 10s, {ours}, client: client, action: login, name: burst"
            ),
            format!(
                "d.path_/login.client: unit=HOUR requests_per_unit=100, shadow_mode: false, quota_mode: false, window: 1h, {ours}, client: client, action: login"
            ),
            "d.ip_127.0.0.1: exempt".to_owned(),
            format!(
                "d.client: unit=HOUR requests_per_unit=2, shadow_mode: false, quota_mode: false, window: 1h, {ours}, client: client, action: client"
            ),
        ]
    );
    let json = http::get(server.admin(), "/rlconfig?format=json", &[]);
    assert_eq!(json.header("content-type"), Some("application/json"));
    let json = json.json();
    assert_eq!((&json["hash"], &json["files"][0]), (&hash.into(), &file.into()));
    assert!(json["refused"].is_null() && json["loaded"].as_f64().unwrap() > 1.7e9);
    assert_eq!((&json["limits"][1]["name"], &json["limits"][1]["window_seconds"]), (&"burst".into(), &10.0.into()));
    assert_eq!((json["limits"].as_array().unwrap().len(), &json["limits"][3]["effect"]), (5, &"exempt".into()));
    assert_eq!(get(&server, "/rlconfig?format=xml").0, 400);
}

#[test]
fn rlconfig_shows_warnings_and_in_json_a_refused_load_with_each_problem() {
    let file = rules_file("domain: d\ndescriptors:\n- key: k\n  rate_limit: {limit: 1, window: 1s, replaces: [{name: nobody}]}\n");
    let server = Ratelimitd::start(&["--config", &file]);
    assert!(get(&server, "/rlconfig").1.contains(&format!("\nwarning: {file}:4:")));
    std::fs::write(&file, "domain: d\ncolour: red\n").unwrap();
    server.wait_for_log("were refused");
    let json = http::get(server.admin(), "/rlconfig?format=json", &[]).json();
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(1));
    let problem = &json["refused"]["problems"][0];
    assert_eq!((&problem["file"], &problem["line"], &problem["column"]), (&file.into(), &2.into(), &1.into()));
}

#[test]
fn stats_is_the_metrics_page_and_the_root_lists_the_paths() {
    let server = Ratelimitd::start(&[]);
    let stats = http::get(server.admin(), "/stats", &[]);
    assert!(stats.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(stats.body.contains("ratelimit_rules_loaded "), "{}", stats.body);
    let (status, paths) = get(&server, "/");
    assert_eq!(status, 200);
    assert!(["/rlconfig", "/explain", "/reset", "/stats"].iter().all(|path| paths.contains(path)), "{paths}");
    assert_eq!(get(&server, "/nowhere").0, 404);
}

#[test]
fn explain_tells_the_live_use_and_consumes_nothing_and_a_reset_unblocks_in_memory_and_in_redis() {
    let (redis, file) = (RedisServer::start(), rules());
    for store in [vec![], vec!["--redis-url".to_owned(), redis.url(), "--redis-timeout".to_owned(), "5s".to_owned()]] {
        let args: Vec<&str> = ["--config", &file].into_iter().chain(store.iter().map(String::as_str)).collect();
        let server = Ratelimitd::start(&args);
        let admits = client_of(&server);
        let query = "domain=d&client=a%20b";
        for (used, left) in [(0, 2), (1, 1), (2, 0)] {
            for _ in 0..2 {
                let (status, told) = get(&server, &format!("/explain?{query}"));
                assert!(status == 200 && told.contains("rule client") && told.contains("client    [\"a b\"]"), "{told}");
                assert!(told.contains(&format!("{used} used, {left} left")), "{told}");
            }
            assert_eq!(admits("a b"), left > 0);
        }
        let page = get(&server, "/stats").1;
        let hits =
            page.lines().find(|line| line.starts_with("ratelimit_service_rate_limit_total_hits{") && line.contains("rule=\"client\""));
        let hits = hits.unwrap();
        assert!(hits.ends_with(" 3"), "only what was asked is counted: {hits}");

        assert!(admits("other") && admits("other") && !admits("other"));
        assert_eq!(post(&server, &format!("/reset?{query}")), (200, "1{d|a b}log|3600000000|client\n".to_owned()));
        assert!(admits("a b") && admits("a b") && !admits("a b"));
        assert!(!admits("other"), "another client's counter is as it was");
    }
}

#[test]
fn several_descriptors_are_told_apart_by_a_comma_and_a_later_domain_is_an_entry() {
    let server = Ratelimitd::start(&["--config", &rules()]);
    let told = get(&server, "/explain?client=x&domain=d&,=&path=/login&client=y").1;
    assert!(told.contains("descriptor client=x\n") && told.contains("descriptor path=/login, client=y\n"), "{told}");
    let told = get(&server, "/explain?domain=d&domain=e").1;
    assert!(told.starts_with("domain d\n") && told.contains("descriptor domain=e\n"), "{told}");
    // Both limits of the second descriptor, and the one of the first.
    let (status, keys) = post(&server, "/reset?domain=d&client=x&%2C=&path=/login&client=y");
    assert_eq!((status, keys.lines().count()), (200, 3), "{keys}");
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let server = Ratelimitd::start(&["--config", &rules()]);
    for path in ["/explain", "/explain?client=x", "/explain?domain=d", "/explain?domain=&client=x", "/explain?domain=d&client=x&,="] {
        let (status, said) = get(&server, path);
        assert!(status == 400 && said.lines().count() == 1 && said.ends_with('\n'), "{path}: {said}");
        assert_eq!(post(&server, &path.replace("/explain", "/reset")).0, 400);
    }
    assert!(get(&server, "/explain?client=x").1.starts_with("no domain: write ?domain=D&KEY=VALUE"));
    assert_eq!((get(&server, "/reset?domain=d&client=x").0, post(&server, "/explain?domain=d&client=x").0), (405, 405));
    let (status, said) = post(&server, "/reset?domain=d&nobody=x");
    assert!(status == 404 && said.contains("counted nowhere"), "{said}");
}

#[test]
fn explain_says_in_which_modes_the_server_is() {
    let server = Ratelimitd::start(&["--config", &rules(), "--shadow-mode", "--quota-mode"]);
    let (_, told) = get(&server, "/explain?domain=d&client=x");
    assert!(told.contains("QUOTA_MODE is on") && told.contains("SHADOW_MODE is on"), "{told}");
    let (_, told) = get(&Ratelimitd::start(&["--config", &rules()]), "/explain?domain=d&client=x");
    assert!(told.contains("rule client") && !told.contains("is on"), "{told}");
}

#[test]
fn a_web_page_in_the_operators_browser_may_not_reset() {
    let server = Ratelimitd::start(&["--config", &rules()]);
    let query = "/reset?domain=d&client=x";
    let response = http::request(server.admin(), "POST", query, &[("origin", "https://elsewhere.example")], b"");
    assert!(response.status == 403 && response.body.contains("curl"), "{}", response.body);
    assert_eq!(post(&server, query).0, 200);
}

#[test]
fn while_the_store_fails_explain_says_so_and_a_reset_is_503() {
    let server = Ratelimitd::start(&["--config", &rules(), "--redis-url", "127.0.0.1:1"]);
    let (status, told) = get(&server, "/explain?domain=d&client=x");
    assert!(status == 200 && told.contains("rule client") && told.contains("The counters can't be read now: no connection"), "{told}");
    let (status, said) = post(&server, "/reset?domain=d&client=x");
    assert!(status == 503 && said.contains("no connection"), "{said}");
}

#[test]
fn what_nothing_limits_is_logged_once_for_each_domain_with_a_command_that_explains_it() {
    let folder = scratch("unmatched");
    std::fs::create_dir(folder.join("config")).unwrap();
    std::fs::write(folder.join("config/d.yaml"), RULES).unwrap();
    let server = Ratelimitd::start(&["--config", folder.join("config").to_str().unwrap()]);
    let client = Client::connect(server.grpc());
    for _ in 0..5 {
        assert!(client.admits(request("d", vec![descriptor(&[("path", "/it's")])])));
        assert!(client.admits(request("no such", vec![descriptor(&[("client", "x")])])));
    }
    let known = server.wait_for_log("that no rule knows limits nothing");
    let unknown = server.wait_for_log("that no rules file names passes");
    assert_eq!(server.logs("once a minute"), 2);
    assert!(explained(&folder, &known["explain"]).contains("passes: no rule takes it; nearest: path=/login"));
    assert!(explained(&folder, &unknown["explain"]).contains("passes: no rules file names this domain; nearest: d"));
}

/// What the command prints, run by a shell in the folder.
fn explained(folder: &Path, command: &serde_json::Value) -> String {
    let bin = scratch("bin");
    std::os::unix::fs::symlink(program(), bin.join("ratelimitd")).unwrap();
    let command = command.as_str().unwrap();
    let output = Command::new("/bin/sh").args(["-c", command]).current_dir(folder).env("PATH", bin).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
