//! What a decision costs in instructions and in allocations, which no other load on the machine changes: the whole way of a
//! call but for HTTP/2 itself, and what matching takes of it. Counted by valgrind, which this program runs on itself. It
//! fails where a call costs 5 % more than it did when its figures were last written down here, or allocates more often.
//! `cargo bench --bench cost`.
#![allow(clippy::unwrap_used, reason = "in a benchmark a panic is the report")]

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use distributed_rate_limiter::grpc::pb::{RateLimitDescriptor, RateLimitRequest, rate_limit_descriptor};
use distributed_rate_limiter::grpc::{Door, ReplyOptions, Services};
use distributed_rate_limiter::hit::FailurePolicy;
use distributed_rate_limiter::limiter::{Fallback, RateLimiter};
use distributed_rate_limiter::metrics::Metrics;
use distributed_rate_limiter::rules::{LiveRules, Rules};
use distributed_rate_limiter::store::{Clock, Memory, Store};
use prost::Message;

/// A call, and what it cost when this was last written: instructions (Rust 1.95, x86-64) and allocations, both with what
/// makes the request here, which is some 1,500 and 3.
const CALLS: [(&str, f64, f64); 4] = [
    ("one entry", 13_553.0, 16.0),
    ("one entry, denied", 14_131.0, 16.0),
    ("two descriptors of two entries", 24_437.0, 23.0),
    ("no rule", 10_363.0, 16.0),
];

/// Of the instructions of a call.
const TOLERANCE: f64 = 1.05;

/// Rounds of the shorter of two runs; the longer one makes twice as many, and the difference is theirs alone.
const ROUNDS: usize = 10_000;

/// They take turns, and each is known after the first of them.
const CLIENTS: usize = 1_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.as_slice() {
        [call, rounds] => calls(call, rounds.parse().unwrap()),
        [kind, count, rounds] => matching(kind, count.parse().unwrap(), rounds.parse().unwrap()),
        _ => {
            compare_calls();
            compare_matching();
        }
    }
}

fn compare_calls() {
    println!("a call, but for HTTP/2 itself        instructions  (written down)  allocations  (written down)");
    let mut dearer = Vec::new();
    for (call, instructions_then, allocations_then) in CALLS {
        let (instructions, allocations) = (instructions(&[call]), allocations(&[call]));
        println!("  {call:<34} {instructions:>12.0} {instructions_then:>15.0} {allocations:>12.1} {allocations_then:>15.1}");
        if instructions > TOLERANCE * instructions_then || allocations > allocations_then + 0.1 {
            dearer.push(call);
        }
    }
    assert!(dearer.is_empty(), "dearer than they were: {dearer:?}");
}

fn compare_matching() {
    println!("matching a request of two entries    instructions");
    let report = |kind: &str, count: usize| {
        let instructions = instructions(&[kind, &count.to_string()]);
        println!("  {:<34} {instructions:>12.0}", format!("against {count} {kind}"));
        instructions
    };
    let fixed = [10, 10_000].map(|count| report("fixed values", count));
    let ratio = fixed[1] / fixed[0];
    println!("  10,000 rules cost {ratio:.2} times what 10 cost");
    assert!(ratio <= 1.2, "a lookup's cost grows with the rules");
    for count in [1, 10, 100] {
        report("wildcards", count);
    }
}

/// Instructions for one round of this program with these arguments.
fn instructions(args: &[&str]) -> f64 {
    each(&["--tool=callgrind", "--callgrind-out-file=/dev/null"], args, "Collected : ")
}

/// Allocations for one round.
fn allocations(args: &[&str]) -> f64 {
    each(&["--tool=memcheck", "--leak-check=no"], args, "total heap usage: ")
}

/// What valgrind counts in a round: the number that it says after `name`.
fn each(tool: &[&str], args: &[&str], name: &str) -> f64 {
    let count = |rounds: usize| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(tool).arg(std::env::current_exe().unwrap()).args(args).arg(rounds.to_string());
        let output = valgrind.output().unwrap_or_else(|error| panic!("valgrind can't be run ({error}): apt-get install valgrind"));
        let said = String::from_utf8(output.stderr).unwrap();
        let after = said.lines().find_map(|line| line.split(name).nth(1)).unwrap_or_else(|| panic!("{said}"));
        after.split(' ').next().unwrap().replace(',', "").parse::<f64>().unwrap()
    };
    (count(2 * ROUNDS) - count(ROUNDS)) / ROUNDS as f64
}

/// Makes calls on a memory store, from the bytes of the request's message to those of the reply's.
fn calls(call: &str, rounds: usize) {
    let entries = |pairs: &[(&str, &str)]| RateLimitDescriptor {
        entries: pairs.iter().map(|(key, value)| rate_limit_descriptor::Entry { key: (*key).into(), value: (*value).into() }).collect(),
        ..Default::default()
    };
    let request = |client: usize| {
        let client = format!("client-{client}");
        let descriptors = match call {
            "one entry" => vec![entries(&[("client", &client)])],
            "one entry, denied" => vec![entries(&[("denied", &client)])],
            "two descriptors of two entries" => {
                vec![entries(&[("path", "/v1/export"), ("client", &client)]), entries(&[("path", "/v1/import"), ("client", &client)])]
            }
            "no rule" => vec![entries(&[("nobody", &client)])],
            _ => panic!("no call is named `{call}`"),
        };
        RateLimitRequest { domain: "bench".to_owned(), descriptors, hits_addend: 0 }.encode_to_vec()
    };
    let requests: Vec<Vec<u8>> = (0..CLIENTS).map(request).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let services = services();
        // The same ahead of every run: all clients known, and what is made once is made.
        for round in 0..CLIENTS + rounds {
            let message = RateLimitRequest::decode(&*requests[round % CLIENTS]).unwrap();
            black_box(services.should_rate_limit(message, None).await.unwrap());
        }
    });
}

fn services() -> Services {
    let rules = "domain: bench\ndescriptors:\n\
        - {key: client, rate_limit: {limit: 1000000, window: 1h}}\n\
        - {key: denied, rate_limit: {limit: 1, window: 1h}}\n\
        - {key: path, value: /v1/export, descriptors: [{key: client, rate_limit: {limit: 1000000, window: 1h}}]}\n\
        - {key: path, descriptors: [{key: client, rate_limit: {limit: 1000000, window: 1h}}]}\n";
    let metrics = Arc::new(Metrics::new().unwrap());
    let rules = Arc::new(LiveRules::new(loaded(rules.to_owned()).counted_in(&metrics)));
    let memory = Arc::new(Memory::new(1_000_000, Clock::System, metrics.store("memory")));
    let fallback = Fallback { policy: FailurePolicy::Local, share: 1.0, memory: Arc::clone(&memory) };
    let limiter = Arc::new(RateLimiter::new(rules, Store::Memory(memory), fallback, Arc::clone(&metrics)));
    let door = Door::new(limiter, RequestBounds::default(), ReplyOptions::default(), metrics);
    let (health, _) = tonic_health::server::health_reporter();
    Services::new(door, health, 4 << 20).unwrap()
}

fn matching(kind: &str, count: usize, rounds: usize) {
    let rules = rules(kind, count);
    // The same few requests each time, so that both runs make them alike; spread over all rules.
    let requests: Vec<Request> = (0..10).map(|number| request(number * count / 10)).collect();
    for round in 0..rounds {
        black_box(rules.find(black_box(&requests[round % requests.len()])).hits.len());
    }
}

fn rules(kind: &str, count: usize) -> Rules {
    let mut text = String::from("domain: bench\ndescriptors:\n");
    for number in 0..count {
        let value = if kind == "wildcards" { format!("\"/v1/*/{number:05}\"") } else { format!("/v1/resource/{number:05}") };
        text.push_str(&format!("- key: path\n  value: {value}\n  descriptors:\n"));
        text.push_str("  - key: client\n    rate_limit: {unit: minute, requests_per_unit: 100}\n");
    }
    loaded(text)
}

fn loaded(text: String) -> Rules {
    let loaded = config::parse(&[(PathBuf::from("bench.yaml"), text)], LoadOptions::default());
    loaded.map_err(|problems| problems.to_string()).unwrap().rules
}

fn request(path: usize) -> Request {
    let entries = vec![Entry::new("path", format!("/v1/resource/{path:05}")), Entry::new("client", "alice")];
    let descriptor = Descriptor { entries, ..Descriptor::default() };
    Request::new("bench".to_owned(), vec![descriptor], 1, RequestBounds::default()).unwrap()
}
