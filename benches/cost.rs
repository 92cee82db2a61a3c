//! What a decision costs in instructions, which no other load on the machine changes: the whole way of a call but for HTTP/2
//! itself, and what matching takes of it. Counted by valgrind, which this program runs on itself. It fails where a call costs
//! 5 % more than it did when its figures were last written down here. `cargo bench --bench cost`; CI compares the calls as they
//! are built for tests, which takes no second build: `--profile dev`. (Allocations are counted in tests/it/allocations.rs.)
#![allow(clippy::unwrap_used, reason = "in a benchmark a panic is the report")]

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use distributed_rate_limiter::grpc::pb::{RateLimitDescriptor, RateLimitRequest, rate_limit_descriptor};
use distributed_rate_limiter::rules::Rules;
use prost::Message;
use services::{in_memory, services};

/// The tests'.
#[path = "../tests/it/support/services.rs"]
mod services;

/// A call, and the instructions that it took when this was last written: as released, and built as tests are, which CI compares.
const CALLS: [(&str, f64, f64); 4] = [
    ("one entry", 7_837.0, 86_498.0),
    ("one entry, denied", 7_751.0, 87_444.0),
    ("two descriptors of two entries", 15_128.0, 175_423.0),
    ("no rule", 4_211.0, 41_473.0),
];

/// What they are decided by.
const CALLS_RULES: &str = "domain: bench\ndescriptors:\n\
    - {key: client, rate_limit: {limit: 1000000, window: 1h}}\n\
    - {key: denied, rate_limit: {limit: 1, window: 1h}}\n\
    - {key: path, value: /v1/export, descriptors: [{key: client, rate_limit: {limit: 1000000, window: 1h}}]}\n\
    - {key: path, descriptors: [{key: client, rate_limit: {limit: 1000000, window: 1h}}]}\n";

/// The compiler that they are of, on x86-64. Others' figures are told, not compared.
const COMPILER: &str = "rustc 1.95.";

/// Of the instructions of a call.
const TOLERANCE: f64 = 1.05;

/// Rounds that are counted.
const ROUNDS: usize = if RELEASED { 10_000 } else { 1_000 };

const RELEASED: bool = !cfg!(debug_assertions);

/// They take turns, and each is known after the first of them.
const CLIENTS: usize = 1_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.as_slice() {
        [call, rounds] => calls(call, rounds.parse().unwrap()),
        [kind, count, rounds] => matching(kind, count.parse().unwrap(), rounds.parse().unwrap()),
        _ => {
            compare_calls();
            if RELEASED {
                compare_matching();
            }
        }
    }
}

fn compare_calls() {
    println!("a call, but for HTTP/2 itself        instructions  (written down)");
    let mut dearer = Vec::new();
    for (call, released, tested) in CALLS {
        let then = if RELEASED { released } else { tested };
        let now = instructions(&[call]);
        println!("  {call:<34} {now:>12.0} {then:>15.0}");
        if now > TOLERANCE * then {
            dearer.push(call);
        }
    }
    let compiler = Command::new("rustc").arg("--version").output().unwrap().stdout;
    let comparable = cfg!(target_arch = "x86_64") && compiler.starts_with(COMPILER.as_bytes());
    if !comparable {
        return println!("not compared: what is written down is of {COMPILER}x on x86-64");
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
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*cost::counted*"]);
    valgrind.arg(std::env::current_exe().unwrap()).args(args).arg(ROUNDS.to_string());
    let output = valgrind.output().unwrap_or_else(|error| panic!("valgrind can't be run ({error}): apt-get install valgrind"));
    let said = String::from_utf8(output.stderr).unwrap();
    let number = said.lines().find_map(|line| line.split("Collected : ").nth(1)).unwrap_or_else(|| panic!("{said}"));
    let instructions = number.trim().parse::<f64>().unwrap();
    assert!(instructions > 0.0, "valgrind did not find what is counted");
    instructions / ROUNDS as f64
}

/// What valgrind counts: nothing else of this program.
#[inline(never)]
fn counted(rounds: impl FnOnce()) {
    rounds();
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
    let requests: Vec<Bytes> = (0..CLIENTS).map(|client| request(client).into()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let services = services(CALLS_RULES, in_memory);
    let ask = |rounds| {
        runtime.block_on(async {
            for round in 0..rounds {
                black_box(services.should_rate_limit(requests[round % CLIENTS].clone(), None).await.unwrap());
            }
        });
    };
    // All clients are known then, and what is made once is made.
    ask(CLIENTS);
    counted(|| ask(rounds));
}

fn matching(kind: &str, count: usize, rounds: usize) {
    let rules = rules(kind, count);
    // Spread over all rules.
    let requests: Vec<Request> = (0..10).map(|number| request(number * count / 10)).collect();
    counted(|| {
        for round in 0..rounds {
            black_box(rules.find(black_box(&requests[round % requests.len()])).hits.len());
        }
    });
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
