//! What the reference server (envoyproxy/ratelimit) says and does, sentence by sentence, held against this one: a file for each
//! part, a test for each statement. Where we differ on purpose, the test says so, and the reason stands in the docs
//! under "Where we differ". Rules go in as files and settings as environment variables; requests and answers are `/json`'s,
//! so that nothing here depends on how the program is built.

mod counting;
mod loading;
mod matching;
mod reply;
mod yaml;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use distributed_rate_limiter::config;
use serde_json::{Value, json};

use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, scratch};

/// A server that serves the rules of a folder of its own, "d" being the domain of most tests.
struct Server {
    process: Ratelimitd,
    folder: PathBuf,
}

/// A RateLimitResponse in proto3 JSON.
struct Answer(Value);

/// How long a reload may take before its test fails.
const RELOAD_MAX: Duration = Duration::from_secs(10);

/// What is sent and shown for "no limit to speak of": 2^32 - 1.
const UNLIMITED: u64 = 4_294_967_295;

impl Server {
    /// With these rules below `descriptors` of the domain "d".
    fn of(descriptors: &str) -> Self {
        Self::with(descriptors, &[])
    }

    fn with(descriptors: &str, environment: &[(&str, &str)]) -> Self {
        Self::serving(&[("rules.yaml", &domain(descriptors))], environment)
    }

    /// With these files, each a name and a text.
    fn serving(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Self {
        let folder = folder(files);
        let process = Ratelimitd::start_with(&["--config", folder.to_str().unwrap()], environment);
        Self { process, folder }
    }

    /// Writes a file of the folder anew, whole or not at all.
    fn rewrite(&self, name: &str, text: &str) {
        let whole = scratch("rewritten").join(name);
        fs::write(&whole, expand(text)).unwrap();
        fs::rename(whole, self.folder.join(name)).unwrap();
    }

    fn post(&self, request: &Value) -> http::Response {
        http::post(self.process.http(), "/json", request.to_string().as_bytes())
    }

    /// Asks for descriptors of the domain "d".
    fn ask(&self, descriptors: &[Value]) -> Answer {
        self.ask_whole(&json!({"domain": "d", "descriptors": descriptors}))
    }

    fn ask_whole(&self, request: &Value) -> Answer {
        let response = self.post(request);
        let answer = Answer(response.json());
        assert_eq!(response.status, if answer.admitted() { 200 } else { 429 }, "{request}: {}", response.body);
        assert_eq!(answer.statuses().len(), request["descriptors"].as_array().unwrap().len(), "{}", response.body);
        answer
    }

    /// Whether the domain "d" admits one hit on one descriptor.
    fn admits(&self, path: &str) -> bool {
        self.ask(&[at(path)]).admitted()
    }

    /// The limit of the rule that a descriptor of the domain "d" lands on. Tests give each rule a number of its own.
    fn lands_on(&self, path: &str) -> Option<u64> {
        self.lands_in("d", path)
    }

    fn lands_in(&self, domain: &str, path: &str) -> Option<u64> {
        self.ask_whole(&json!({"domain": domain, "descriptors": [at(path)]})).limits()[0]
    }

    /// What is left of the rule, without a hit on it.
    fn left(&self, path: &str) -> u64 {
        self.ask(&[costing(at(path), 0)]).remaining()[0]
    }

    fn metrics(&self) -> String {
        http::get(self.process.metrics(), "/metrics", &[]).body
    }

    /// The lines of the series of that name which have all of these labels.
    fn series(&self, name: &str, labels: &[(&str, &str)]) -> Vec<String> {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", value.replace('"', "\\\""))).collect();
        let start = format!("{name}{{");
        let page = self.metrics();
        let lines = page.lines().filter(|line| line.starts_with(&start) || line.starts_with(&format!("{name} ")));
        lines.filter(|line| labels.iter().all(|label| line.contains(label.as_str()))).map(str::to_owned).collect()
    }

    /// Their sum; 0 where there are none.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let lines = self.series(name, labels);
        lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Answer {
    fn admitted(&self) -> bool {
        match self.0["overallCode"].as_str() {
            Some("OK") => true,
            Some("OVER_LIMIT") => false,
            _ => panic!("no overall code: {}", self.0),
        }
    }

    fn statuses(&self) -> &[Value] {
        self.0["statuses"].as_array().unwrap()
    }

    /// Whether each status is over.
    fn over(&self) -> Vec<bool> {
        let over = |status: &Value| match status["code"].as_str() {
            Some("OK") => false,
            Some("OVER_LIMIT") => true,
            _ => panic!("no code: {status}"),
        };
        self.statuses().iter().map(over).collect()
    }

    fn limits(&self) -> Vec<Option<u64>> {
        let limit = |status: &Value| status["currentLimit"].is_object().then(|| number(&status["currentLimit"]["requestsPerUnit"]));
        self.statuses().iter().map(limit).collect()
    }

    fn remaining(&self) -> Vec<u64> {
        self.statuses().iter().map(|status| number(&status["limitRemaining"])).collect()
    }

    /// The response headers, with lower-case names.
    fn headers(&self) -> Vec<(String, String)> {
        let header = |header: &Value| (header["key"].as_str().unwrap().to_lowercase(), header["value"].as_str().unwrap().to_owned());
        self.0["responseHeadersToAdd"].as_array().map(|all| all.iter().map(header).collect()).unwrap_or_default()
    }

    fn metadata(&self) -> &Value {
        &self.0["dynamicMetadata"]
    }
}

/// A number of an answer; proto3 JSON leaves zeros out.
fn number(value: &Value) -> u64 {
    if value.is_null() { 0 } else { value.as_u64().unwrap_or_else(|| panic!("no number: {value}")) }
}

/// A descriptor of `key=value,key=value`; of no entries where the text is empty.
fn at(path: &str) -> Value {
    let entry = |entry: &str| {
        let (key, value) = entry.split_once('=').unwrap();
        json!({"key": key, "value": value})
    };
    json!({"entries": path.split(',').filter(|entry| !entry.is_empty()).map(entry).collect::<Vec<_>>()})
}

/// The descriptor with its own hits_addend.
fn costing(descriptor: Value, hits: u64) -> Value {
    with(descriptor, "hitsAddend", hits.to_string().into())
}

/// The descriptor with a limit of its own. A unit is named, or numbered.
fn limited(descriptor: Value, requests: u32, unit: impl Into<Value>) -> Value {
    with(descriptor, "limit", json!({"requestsPerUnit": requests, "unit": unit.into()}))
}

fn with(mut descriptor: Value, field: &str, value: Value) -> Value {
    descriptor[field] = value;
    descriptor
}

/// A rules file of the domain "d".
fn domain(descriptors: &str) -> String {
    format!("domain: d\ndescriptors:\n{descriptors}")
}

/// In these tests' rules, `@5` is short for a rate_limit of 5 a day.
fn expand(text: &str) -> String {
    let mut parts = text.split('@');
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (limit, rest) = part.split_at(part.bytes().take_while(u8::is_ascii_digit).count());
        expanded.push_str(&format!("rate_limit: {{unit: day, requests_per_unit: {limit}}}{rest}"));
    }
    expanded
}

/// A new folder with these files, each a name and a text.
fn folder(files: &[(&str, &str)]) -> PathBuf {
    let folder = scratch("reference");
    for (name, text) in files {
        write(&folder.join(name), text);
    }
    folder
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, expand(text)).unwrap();
}

/// Loads files, each a name and a text, without a server; gives the warnings, or else the problems.
fn load(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let files: Vec<_> = files.iter().map(|(name, text)| (PathBuf::from(name), expand(text))).collect();
    match config::parse(&files, config::LoadOptions::default()) {
        Ok(loaded) => Ok(loaded.warnings.iter().map(ToString::to_string).collect()),
        Err(problems) => Err(problems.to_string()),
    }
}

/// Loads rules of the domain "d", which must be accepted, and gives the warnings.
fn accepted(descriptors: &str) -> Vec<String> {
    load(&[("f.yaml", &domain(descriptors))]).unwrap_or_else(|problems| panic!("{descriptors}\n{problems}"))
}

/// Loads a rules file that must be refused, and gives the problems.
fn refused(file: &str) -> String {
    let problems = load(&[("f.yaml", file)]).err().unwrap_or_else(|| panic!("loaded:\n{file}"));
    assert!(!problems.contains("not supported yet"), "{problems}");
    problems
}

/// Runs the program to its end, which must come before it opens a port, and gives its exit code and what it said.
fn fails_to_start(args: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Were it to start after all, it would stop at this port.
    let fixed = ["--grpc-host", "127.0.0.1", "--grpc-port", &port, "--host", "127.0.0.1"];
    let (status, said) = Ratelimitd::run_with(&[&fixed[..], args].concat(), environment);
    assert!(!said.contains("can't listen"), "it started: {said}");
    (status.code().unwrap(), said)
}

/// Waits until it is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + RELOAD_MAX;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
