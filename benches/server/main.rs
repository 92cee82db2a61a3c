//! What a request costs whole servers, side by side: `ratelimitd` in memory and with Redis beside the yardstick, a bare tonic
//! handler on the runtime of `#[tokio::main]`, under the same load in the same round; the server on one core, load and Redis
//! on another. Medians of rounds, with the least and the most, since the machines are noisy. Then what the store weighs, the
//! slowest calls while rules are read and metrics scraped, one core beside two, and what a million clients that come once
//! leave behind. docs/performance.md has the figures.
//!
//! `cargo bench --bench server [-- PART...]`, of `memory redis flood footprint tail cores passing peer prototype`; all of them
//! take some minutes. `peer` needs another server, `prototype` another script: see peer.rs and prototype.rs.
//! `ROUNDS` (10) and `TAIL_SECONDS` (20) make it longer; `RATELIMITD_PROGRAM=PATH` measures another build, such as deploy/build's.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a benchmark a panic is the report")]

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use load::{LOAD_CORE, Load, SERVER_CORE, Seen, pin};
use peer::Peer;
use prototype::Script;
use redis::Value;
use redis_benchmark::Call;
use support::process::resident;
use support::ratelimitd::{Ratelimitd, rules_file};
use support::redis::RedisServer;
use yardstick::Yardstick;

mod footprint;
mod load;
mod peer;
mod prototype;
mod redis_benchmark;
mod yardstick;

/// The tests' servers.
#[path = "../../tests/it/support"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support {
    pub mod http;
    pub mod process;
    pub mod ratelimitd;
    pub mod redis;
}

/// As the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RULES: &str = "domain: api\ndescriptors:\n- {key: client, rate_limit: {limit: 100, window: 1m}}\n\
    - {key: path, descriptors: [{key: client, rate_limit: {limit: 100, window: 1m}}]}\n";
/// For clients that come once in a while.
const PASSING_RULES: &str = "domain: api\ndescriptors:\n- {key: client, rate_limit: {limit: 100, window: 5s}}\n";
const TWO_OF_TWO: [&str; 2] = ["path=/v1/export,client={client}", "path=/v1/import,client={client}"];

/// Requests that nobody is to deny by policy, on however busy a machine.
const PATIENT: [&str; 2] = ["--redis-timeout", "1s"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [yardstick::ROLE] => return yardstick::serve(),
        [footprint::ROLE, algorithm, hits] => return footprint::fill(algorithm, hits.parse().unwrap()),
        _ => {}
    }
    let parts: [(&str, fn()); 9] = [
        ("memory", memory),
        ("redis", with_redis),
        ("flood", flood),
        ("footprint", weigh),
        ("tail", tail),
        ("cores", cores),
        ("passing", passing),
        ("peer", beside_a_peer),
        ("prototype", beside_the_prototype),
    ];
    let unknown = args.iter().find(|asked| !parts.iter().any(|(name, _)| name == *asked));
    assert!(unknown.is_none(), "{unknown:?} is no part");
    assert!(thread::available_parallelism().unwrap().get() >= 2, "the server and the load need a core each");
    let missing = |part: &str| match part {
        "peer" if peer::command().is_none() => Some("PEER, the command of another server: benches/server/peer.rs"),
        "prototype" if prototype::path().is_none() => Some("PROTOTYPE, the path of another script: benches/server/prototype.rs"),
        _ => None,
    };
    for (name, part) in parts {
        match missing(name) {
            Some(what) if args.is_empty() => println!("\nnot measured: {name}, which needs {what}"),
            _ if args.is_empty() || args.contains(&name) => part(),
            _ => {}
        }
    }
}

/// Figures of several rounds.
struct Figures(Vec<f64>);

impl Figures {
    fn of(rounds: &[(Seen, Seen)], figure: impl Fn(&Seen, &Seen) -> f64) -> Self {
        Self(rounds.iter().map(|(bare, ours)| figure(bare, ours)).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        f64::midpoint(sorted[middle], sorted[(sorted.len() - 1) / 2])
    }

    fn spread(&self) -> String {
        let sorted = self.sorted();
        format!("{:.2} ({:.2} to {:.2})", self.median(), sorted[0], sorted[sorted.len() - 1])
    }
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// `ratelimitd` with one thread, on its core.
fn server(rules: &str, more: &[&str]) -> Ratelimitd {
    let args = [&["serve", "--config", rules, "--serving-threads", "1"], more].concat();
    let server = Ratelimitd::start(&args);
    pin(server.pid(), SERVER_CORE);
    server
}

/// Rounds of the yardstick and a server of ours, one after the other and the next time the other way round, each with the
/// same load. `between` is called before each of ours.
fn rounds(load: &Load, rules: &str, more: &[&str], between: impl Fn()) -> Vec<(Seen, Seen)> {
    let (yardstick, ours) = (Yardstick::start(), server(rules, more));
    pin(yardstick.pid(), SERVER_CORE);
    let bare = || load.run(yardstick.address, yardstick.pid());
    let its = || {
        between();
        load.run(ours.grpc(), ours.pid())
    };
    let round = |number| in_turn(number, bare, its);
    (0..number("ROUNDS", 10)).map(round).collect()
}

/// Both of a round, now the one first and the next time the other.
fn in_turn<A, B>(number: u32, one: impl Fn() -> A, other: impl Fn() -> B) -> (A, B) {
    if number.is_multiple_of(2) {
        return (one(), other());
    }
    let other = other();
    (one(), other)
}

fn cpu_row(what: &str, rounds: &[(Seen, Seen)], aim: impl std::fmt::Display) {
    let (bare, ours) = (Figures::of(rounds, |bare, _| bare.cpu), Figures::of(rounds, |_, ours| ours.cpu));
    let ratio = Figures::of(rounds, |bare, ours| ours.cpu / bare.cpu);
    println!("| {what} | {:.1} | {:.1} | {} | {aim} |", bare.median(), ours.median(), ratio.spread());
}

fn cpu_head(of: &str) {
    println!("\n| {of}: CPU, us a request | yardstick | ratelimitd | ratio | at most |\n|---|---|---|---|---|");
}

fn memory() {
    let rules = rules_file(RULES);
    cpu_head("in memory");
    cpu_row("64 in flight", &rounds(&Load::in_flight(64), &rules, &[], || {}), 0.6);
    cpu_row("512 in flight", &rounds(&Load::in_flight(512), &rules, &[], || {}), 0.75);
    let two = Load { descriptors: &TWO_OF_TWO, ..Load::in_flight(64) };
    cpu_row("2 descriptors of 2 entries, 64 in flight", &rounds(&two, &rules, &[], || {}), 0.8);
    let alone = rounds(&Load::in_flight(1), &rules, &[], || {});
    println!("\n| in memory, 1 in flight: latency, us | yardstick | ratelimitd | ratio | at most |\n|---|---|---|---|---|");
    let row = |name: &str, of: fn(&Seen) -> f64, aim: f64| {
        let (bare, ours) = (Figures::of(&alone, |bare, _| of(bare)), Figures::of(&alone, |_, ours| of(ours)));
        let ratio = Figures::of(&alone, |bare, ours| of(ours) / of(bare));
        println!("| {name} | {:.0} | {:.0} | {} | {aim} |", bare.median(), ours.median(), ratio.spread());
    };
    row("p50", |seen| seen.p50, 1.05);
    row("p99", |seen| seen.p99, 1.25);
}

fn redis_on_its_core() -> RedisServer {
    let redis = RedisServer::start();
    pin(redis.pid(), LOAD_CORE);
    redis
}

fn with_redis() {
    let rules = rules_file(RULES);
    let redis = redis_on_its_core();
    let url = redis.url();
    let more = [&["--redis-url", url.as_str()][..], &PATIENT].concat();
    cpu_head("Redis");
    let (mut its_own, mut alone) = (Vec::new(), None);
    let call = Call::of(&server(&rules, &more), &redis);
    // What it costs Redis to forget is no part of a decision.
    let forgetting = Cell::new(0.0);
    let forget = || {
        let before = redis.cpu();
        redis.command(&["FLUSHALL"]);
        forgetting.set(forgetting.get() + redis.cpu() - before);
    };
    for (in_flight, aim, aim_of_redis) in [(1, "-", "-"), (16, "-", "-"), (64, "0.9", "10"), (512, "1", "8")] {
        let before = (redis.script_calls().0, redis.cpu() - forgetting.get());
        let rounds = rounds(&Load::in_flight(in_flight), &rules, &more, forget);
        let (calls, cpu) = (redis.script_calls().0 - before.0, redis.cpu() - forgetting.get() - before.1);
        cpu_row(&format!("{in_flight} in flight"), &rounds, aim);
        let decisions: f64 = rounds.iter().map(|(_, ours)| ours.with_warm_up).sum();
        its_own.push((in_flight, 1e6 * cpu / decisions, aim_of_redis, decisions / calls as f64));
        // At once, for a machine changes: the round trips that the aim is made of.
        if in_flight == 1 {
            let trips = [(); 5].map(|()| (redis_benchmark::empty_round_trip(&redis), call.round_trip(&redis)));
            let median = |of: fn(&(f64, f64)) -> f64| Figures(trips.iter().map(of).collect()).median();
            alone = Some((rounds, median(|trip| trip.0), median(|trip| trip.1)));
        }
    }
    println!(
        "\n| Redis itself: CPU, us a decision | asked by ratelimitd | aim | decisions in a call | by redis-benchmark, pipelined on one connection | at its best |"
    );
    println!("|---|---|---|---|---|---|");
    for (in_flight, cpu, aim, batch) in its_own {
        let pipelined = call.cpu(&redis, 1, in_flight);
        let others = [in_flight, in_flight.div_ceil(8)].map(|connections| call.cpu(&redis, connections, in_flight / connections));
        let best = others.into_iter().fold(pipelined, f64::min);
        println!("| {in_flight} in flight | {cpu:.1} | {aim} | {batch:.0} | {pipelined:.1} | {best:.1} |");
    }
    let (alone, empty, same) = alone.expect("1 in flight was measured");
    let (bare, ours) = (Figures::of(&alone, |bare, _| bare.p50), Figures::of(&alone, |_, ours| ours.p50));
    println!(
        "\n| Redis, 1 in flight: p50, us | yardstick | redis-benchmark's EVALSHA, an empty script | this script | ratelimitd | at most, yardstick + 1.3 EVALSHA |"
    );
    println!("|---|---|---|---|---|---|");
    let bare = bare.median();
    println!("| | {bare:.0} | {empty:.0} | {same:.0} | {:.0} | {:.0} or {:.0} |", ours.median(), bare + 1.3 * empty, bare + 1.3 * same);
}

/// Another server, and `ratelimitd` by a log and by fixed windows, in turn: on one Redis, or in memory where the other one's
/// command names no Redis.
fn beside_a_peer() {
    let Some(command) = peer::command() else { panic!("PEER is the command that runs the other server: see benches/server/peer.rs") };
    let redis = redis_on_its_core();
    let url = redis.url();
    let (counted_in, more, aims) = if peer::asks_redis(&command) {
        ("Redis", [&["--redis-url", url.as_str()][..], &PATIENT].concat(), &[("the server", "0.125"), ("Redis", "0.4")][..])
    } else {
        ("in memory", Vec::new(), &[("the server", "-")][..])
    };
    let (log, fixed) = (rules_file(RULES), rules_file(&RULES.replacen("domain: api", "domain: api\nalgorithm: fixed_window", 1)));
    for in_flight in [64, 512] {
        let load = Load::in_flight(in_flight);
        // Of the server and of Redis.
        let measured = |server: SocketAddr, pid| {
            redis.command(&["FLUSHALL"]);
            let before = redis.cpu();
            let seen = load.run(server, pid);
            [seen.cpu, 1e6 * (redis.cpu() - before) / seen.with_warm_up]
        };
        let theirs = || {
            let server = Peer::start(&command, &redis);
            measured(server.address, server.pid())
        };
        let ours = |rules| {
            let server = server(rules, &more);
            measured(server.grpc(), server.pid())
        };
        let round = |number| {
            let (theirs, [by_log, by_windows]) = in_turn(number, theirs, || [&*log, &*fixed].map(ours));
            [theirs, by_log, by_windows]
        };
        let rounds: Vec<_> = (0..number("ROUNDS", 10)).map(round).collect();
        println!(
            "\n| {counted_in}, {in_flight} in flight: CPU, us a request | the peer | ratelimitd by a log | beside it | by fixed windows | beside it | at most, of envoyproxy/ratelimit's |"
        );
        println!("|---|---|---|---|---|---|---|");
        for (what, (name, aim)) in aims.iter().enumerate() {
            let figures = |of: &dyn Fn(&[[f64; 2]; 3]) -> f64| Figures(rounds.iter().map(of).collect());
            let cpu = |whose: usize| figures(&|round| round[whose][what]).median();
            let beside = |whose: usize| figures(&|round| round[whose][what] / round[0][what]).spread();
            println!("| {name} | {:.1} | {:.1} | {} | {:.1} | {} | {aim} |", cpu(0), cpu(1), beside(1), cpu(2), beside(2));
        }
    }
}

/// What a decision costs Redis by the prototype's script and by ours, in calls of as many hits, in turn.
fn beside_the_prototype() {
    let Some(path) = prototype::path() else { panic!("PROTOTYPE is the path of the script: see benches/server/prototype.rs") };
    let redis = redis_on_its_core();
    let url = redis.url();
    let ours = Script::of(&server(&rules_file(RULES), &[&["--redis-url", url.as_str()][..], &PATIENT].concat()), &redis);
    let prototype = Script::prototype(&path, &redis);
    println!("\n| Redis: CPU, us a decision | the prototype's script | ours | ratio | at most |\n|---|---|---|---|---|");
    for hits in [32, 176] {
        let cpu = |script: &Script| script.cpu(&redis, 50_000 / hits, hits);
        let rounds: Vec<(f64, f64)> = (0..number("ROUNDS", 10)).map(|number| in_turn(number, || cpu(&prototype), || cpu(&ours))).collect();
        let figures = |of: fn(&(f64, f64)) -> f64| Figures(rounds.iter().map(of).collect());
        let (theirs, ours) = (figures(|round| round.0).median(), figures(|round| round.1).median());
        println!("| {hits} hits a call | {theirs:.1} | {ours:.1} | {} | 1.15 |", figures(|round| round.1 / round.0).spread());
    }
}

/// Clients that are all over their limit, and clients whose limit is leased.
fn flood() {
    let redis = redis_on_its_core();
    let url = redis.url();
    let more = [&["--redis-url", url.as_str()][..], &PATIENT].concat();
    cpu_head("Redis, 64 in flight");
    let mut calls = Vec::new();
    let denied = rules_file("domain: api\ndescriptors:\n- {key: client, rate_limit: {limit: 5, window: 1m}}\n");
    let leased = rules_file("domain: api\ndescriptors:\n- {key: client, rate_limit: {limit: 100000, window: 1m, lease: 2%}}\n");
    for (what, rules, clients, aim, calls_at_most) in [
        ("1,000 clients, all denied", &denied, 1_000, 0.6, "1"),
        ("100 clients with leases, 2 % of 100,000 a minute", &leased, 100, 0.7, "-"),
    ] {
        let before = redis.script_calls().0;
        let load = Load { clients, ..Load::in_flight(64) };
        let rounds = rounds(&load, rules, &more, || {
            redis.command(&["FLUSHALL"]);
        });
        cpu_row(what, &rounds, aim);
        let sum = |figure: fn(&Seen) -> f64| rounds.iter().map(|(_, ours)| figure(ours)).sum::<f64>();
        let over = sum(|seen| seen.over_limit) / sum(|seen| seen.requests);
        let of_each = sum(|seen| seen.per_second) * over / rounds.len() as f64 / f64::from(clients);
        let calls_of_100 = 100.0 * (redis.script_calls().0 - before) as f64 / sum(|seen| seen.with_warm_up);
        calls.push((what, 100.0 * over, of_each, calls_of_100, calls_at_most));
    }
    println!("\n| | of them denied | denials of a client a second | calls of Redis for 100 decisions, warm-up and all | at most |");
    println!("|---|---|---|---|---|");
    for (what, over, of_each, calls, aim) in calls {
        println!("| {what} | {over:.1} % | {of_each:.0} | {calls:.2} | {aim} |");
    }
}

fn weigh() {
    let idle = server(&rules_file(RULES), &[]);
    println!("\nidle: {:.1} MB", resident(idle.pid()) as f64 / 1e6);
    drop(idle);
    println!("\n| {} clients in memory | hits each | bytes a client, key and all |\n|---|---|---|", footprint::CLIENTS);
    for (algorithm, hits) in
        [("sliding_window_log", 1), ("sliding_window_log", 10), ("sliding_window_log", 100), ("token_bucket", 1), ("fixed_window", 1)]
    {
        println!("| {algorithm} | {hits} | {:.0} |", footprint::bytes_per_client(algorithm, hits));
    }
}

/// The slowest calls: quiet; with a reload and a scrape of the metrics each second; the same with so many clients that each has
/// left before it comes again, all of whom the sweeps remove; and with a store that is full, so that most calls let a counter go.
fn tail() {
    let seconds = number("TAIL_SECONDS", 20);
    let load = Load { seconds: seconds.into(), ..Load::in_flight(64) };
    let path = rules_file(RULES);
    let stays = server(&path, &[]);
    let quiet = load.run(stays.grpc(), stays.pid());
    let busy = while_busy(&stays, &path, RULES, &load);
    drop(stays);
    let load = Load { clients: 2_000_000, ..load };
    let path = rules_file(PASSING_RULES);
    let passing = server(&path, &[]);
    let passed = while_busy(&passing, &path, PASSING_RULES, &load);
    drop(passing);
    let small = server(&rules_file(RULES), &["--max-counters", "200000"]);
    let full = load.run(small.grpc(), small.pid());
    let evictions = small.metric("ratelimit_store_evictions{store=\"memory\"}") as f64;
    println!(
        "\n| in memory, 64 in flight: latency, us | quiet | a reload and a scrape each second | ratio | and clients that pass | ratio | a full store | ratio | at most |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let row = |name: &str, of: fn(&Seen) -> f64, aim: &str| {
        let cells = [&busy, &passed, &full].map(|seen| format!("{:.0} | {:.2}", of(seen), of(seen) / of(&quiet)));
        println!("| {name} | {:.0} | {} | {aim} |", of(&quiet), cells.join(" | "));
    };
    row("p50", |seen| seen.p50, "");
    row("p99", |seen| seen.p99, "");
    row("p99.9", |seen| seen.p999, "2");
    println!("of the calls to the full store {:.0} % let a counter go; {seconds} s each", 100.0 * evictions / full.with_warm_up);
}

/// A load while the rules of a file are read anew, and all metrics scraped, each second.
fn while_busy(server: &Ratelimitd, path: &str, rules: &str, load: &Load) -> Seen {
    let over = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                thread::sleep(Duration::from_secs(1));
                if over.load(Ordering::Relaxed) {
                    break;
                }
                fs::write(path, format!("{rules}- {{key: round-{number}, rate_limit: {{limit: 1, window: 1m}}}}\n")).unwrap();
                assert_eq!(support::http::get(server.metrics(), "/metrics", &[]).status, 200);
            }
        });
        let seen = load.run(server.grpc(), server.pid());
        over.store(true, Ordering::Relaxed);
        seen
    });
    let loads = server.logs("rules loaded");
    assert!(loads as f64 > load.seconds * 0.8, "the rules were read {loads} times, not each second");
    seen
}

/// What is left of a million clients that come once, in Redis and in the server.
fn passing() {
    let redis = redis_on_its_core();
    let rules = rules_file(PASSING_RULES);
    let url = redis.url();
    let server = server(&rules, &[&["--redis-url", url.as_str()][..], &PATIENT].concat());
    let load = |seconds| Load { clients: 1_000_000_000, seconds, ..Load::in_flight(64) }.run(server.grpc(), server.pid()).with_warm_up;
    load(1.0);
    thread::sleep(Duration::from_secs(12));
    println!("\n| clients that come once, windows of 5 s | keys | Redis, MB | the server, MB |\n|---|---|---|---|");
    let row = |when: &str| {
        let Value::Int(keys) = redis.command(&["DBSIZE"]) else { panic!("a number") };
        let memory = redis.info("memory");
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().parse::<f64>().unwrap();
        println!("| {when} | {keys} | {:.1} | {:.1} |", used / 1e6, resident(server.pid()) as f64 / 1e6);
    };
    row("before");
    let mut come = 0.0;
    while come < 1e6 {
        come += load(4.0);
    }
    row(&format!("{come:.0} later"));
    thread::sleep(Duration::from_secs(12));
    row("12 s after the last one");
}

/// One serving thread and two, on all cores, with the load among them.
fn cores() {
    let rules = rules_file(RULES);
    println!(
        "\n| in memory, 8 connections of 32 in flight, load on the same cores | requests a second | CPU, us a request | of it each thread |"
    );
    println!("|---|---|---|---|");
    for threads in ["1", "2"] {
        let server = Ratelimitd::start(&["serve", "--config", &rules, "--serving-threads", threads]);
        let load = Load { connections: 8, streams: 32, ..Load::in_flight(64) };
        let seen = load.run(server.grpc(), server.pid());
        let shares: Vec<String> = serving(server.pid()).iter().map(|share| format!("{:.0} %", 100.0 * share)).collect();
        println!("| {threads} | {:.0} | {:.1} | {} |", seen.per_second, seen.cpu, shares.join(", "));
    }
}

/// The share of each serving thread in the CPU time of all of them.
fn serving(pid: u32) -> Vec<f64> {
    let mut ticks = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        let (name, rest) = stat.rsplit_once(") ").unwrap();
        if name.contains("(serving-") {
            // utime and stime are the 14th and 15th fields of all, the state being the third.
            let fields: Vec<f64> = rest.split(' ').skip(11).take(2).map(|field| field.parse().unwrap()).collect();
            ticks.push(fields[0] + fields[1]);
        }
    }
    let all: f64 = ticks.iter().sum();
    ticks.into_iter().map(|ticks| ticks / all).collect()
}
