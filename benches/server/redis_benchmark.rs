//! What Redis spends on the same script where redis-benchmark asks for it, each decision by a call of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use redis::Value;

use crate::load::{Load, SERVER_CORE, pin};
use crate::support::ratelimitd::Ratelimitd;
use crate::support::redis::RedisServer;

/// A call of the script as `ratelimitd` sends it, but that the script holds its argument: redis-benchmark's end at a zero byte.
pub struct Call {
    sha: String,
    /// With a client that redis-benchmark replaces by a random one.
    key: String,
}

const CALLS: usize = 100_000;
const CLIENTS: &str = "100000";

impl Call {
    /// One that a server is seen to send.
    pub fn of(server: &Ratelimitd, redis: &RedisServer) -> Self {
        let (script, key, hit) = seen(server, redis);
        let hit: String = hit.iter().map(|byte| format!("\\{byte:03}")).collect();
        let script = format!("local ARGV = {{ '{hit}' }}\n{script}");
        let sha = load(&script, redis);
        let (before, after) = (key.split_once('|').unwrap().0, key.split_once('}').unwrap().1);
        Self { sha, key: format!("{before}|__rand_int__}}{after}") }
    }

    /// The p50 of a call, asked one by one, in microseconds.
    pub fn round_trip(&self, redis: &RedisServer) -> f64 {
        round_trip(redis, &[&self.sha, "1", &self.key])
    }

    /// CPU of Redis, in microseconds a call, by so many connections, each with so many calls at once.
    pub fn cpu(&self, redis: &RedisServer, connections: u32, at_once: u32) -> f64 {
        redis.command(&["FLUSHALL"]);
        let before = redis.cpu();
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args(["-p", &redis.port().to_string(), "-c", &connections.to_string(), "-P", &at_once.to_string()]);
        benchmark.args(["-n", &CALLS.to_string(), "-r", CLIENTS, "-q", "EVALSHA", &self.sha, "1", &self.key]);
        let mut benchmark = benchmark.stdout(Stdio::null()).spawn().unwrap();
        pin(benchmark.id(), SERVER_CORE);
        assert!(benchmark.wait().unwrap().success());
        let Value::Int(clients) = redis.command(&["DBSIZE"]) else { panic!("a number") };
        assert!(clients > 60_000, "each call was for a client of many: {clients}");
        1e6 * (redis.cpu() - before) / CALLS as f64
    }
}

/// The script that a server asks for, and of one call the key and the hit, encoded.
pub fn seen(server: &Ratelimitd, redis: &RedisServer) -> (String, String, Vec<u8>) {
    let mut monitor = Command::new("redis-cli");
    monitor.args(["-p", &redis.port().to_string(), "monitor"]).stdout(Stdio::piped());
    let mut monitor = monitor.spawn().unwrap_or_else(|error| panic!("redis-cli can't be run ({error}): apt-get install redis-tools"));
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("OK"));
    // It doesn't know the script any more, and is sent it whole.
    redis.command(&["SCRIPT", "FLUSH"]);
    Load { seconds: 0.1, ..Load::in_flight(1) }.run(server.grpc(), server.pid());
    let call = lines.find(|line| line.contains(" \"EVAL\" ")).unwrap();
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let [_, script, _, key, hit] = words(&call).try_into().unwrap();
    (String::from_utf8(script).unwrap(), String::from_utf8(key).unwrap(), hit)
}

/// Has Redis load a script; its hash.
pub fn load(script: &str, redis: &RedisServer) -> String {
    redis::from_redis_value(redis.command(&["SCRIPT", "LOAD", script])).unwrap()
}

/// The p50 of a script that does nothing, asked one by one, in microseconds.
pub fn empty_round_trip(redis: &RedisServer) -> f64 {
    round_trip(redis, &[&load("return 0", redis), "0"])
}

fn round_trip(redis: &RedisServer, call: &[&str]) -> f64 {
    let mut benchmark = Command::new("taskset");
    benchmark.args(["-c", SERVER_CORE, "redis-benchmark", "-p", &redis.port().to_string(), "-c", "1", "-n", "20000"]);
    let output = benchmark.args(["-r", CLIENTS, "--csv", "EVALSHA"]).args(call).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let mut lines = table.lines().map(|line| line.split(',').map(|cell| cell.trim_matches('"')).collect::<Vec<_>>());
    let head = lines.next().unwrap_or_default();
    let column = head.iter().position(|name| *name == "p50_latency_ms").unwrap_or_else(|| panic!("no p50 in {table}"));
    1_000.0 * lines.next().unwrap()[column].parse::<f64>().unwrap()
}

/// The quoted words of a line of MONITOR.
fn words(line: &str) -> Vec<Vec<u8>> {
    let (mut words, mut characters) = (Vec::new(), line.chars().skip_while(|character| *character != '"'));
    while characters.next().is_some() {
        let mut word = Vec::new();
        loop {
            match characters.next().unwrap() {
                '"' => break,
                '\\' => word.push(match characters.next().unwrap() {
                    'x' => u8::from_str_radix(&characters.by_ref().take(2).collect::<String>(), 16).unwrap(),
                    'n' => b'\n',
                    'r' => b'\r',
                    't' => b'\t',
                    'a' => 7,
                    'b' => 8,
                    other => other as u8,
                }),
                plain => word.push(plain as u8),
            }
        }
        words.push(word);
        characters.next(); // the space between two
    }
    words
}
