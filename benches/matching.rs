//! What matching a request costs in instructions, which no other load on the machine changes: with 10 rules and with
//! 10,000, and with wildcards beside each other. Counted by valgrind, which this program runs on itself.
//! `cargo bench --bench matching`.
#![allow(clippy::unwrap_used, reason = "in a benchmark a panic is the report")]

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;

use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use distributed_rate_limiter::rules::Rules;

/// Matches in the shorter of two runs; the longer one makes twice as many, and the difference is theirs alone.
const ROUNDS: usize = 20_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.as_slice() {
        [kind, count, rounds] => matching(kind, count.parse().unwrap(), rounds.parse().unwrap()),
        _ => compare(),
    }
}

fn compare() {
    println!("instructions for a request of two entries:");
    let fixed = [10, 10_000].map(|count| report("fixed values", count));
    let ratio = fixed[1] / fixed[0];
    println!("  10,000 rules cost {ratio:.2} times what 10 cost");
    assert!(ratio <= 1.2, "a lookup's cost grows with the rules");
    for count in [1, 10, 100] {
        report("wildcards", count);
    }
}

fn report(kind: &str, count: usize) -> f64 {
    let instructions = |rounds: usize| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().unwrap());
        let output = valgrind.args([kind, &count.to_string(), &rounds.to_string()]).output();
        let output = output.unwrap_or_else(|error| panic!("valgrind can't be run ({error}): apt-get install valgrind"));
        let said = String::from_utf8(output.stderr).unwrap();
        let total = said.lines().find_map(|line| line.split("Collected : ").nth(1)).unwrap_or_else(|| panic!("{said}"));
        total.trim().parse::<f64>().unwrap()
    };
    let each = (instructions(2 * ROUNDS) - instructions(ROUNDS)) / ROUNDS as f64;
    println!("  {count:>6} {kind:<12} {each:>8.0}");
    each
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
    let loaded = config::parse(&[(PathBuf::from("bench.yaml"), text)], LoadOptions::default());
    loaded.map_err(|problems| problems.to_string()).unwrap().rules
}

fn request(path: usize) -> Request {
    let entries = vec![Entry::new("path", format!("/v1/resource/{path:05}")), Entry::new("client", "alice")];
    let descriptor = Descriptor { entries, ..Descriptor::default() };
    Request::new("bench".to_owned(), vec![descriptor], 1, RequestBounds::default()).unwrap()
}
