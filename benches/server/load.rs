//! Runs of `ratelimitd load` against a server on another core, and what they tell.

use std::net::SocketAddr;
use std::process::Command;

/// The core of the server that is measured, and that of the load and of Redis.
pub const SERVER_CORE: &str = "0";
pub const LOAD_CORE: &str = "1";

/// Seconds of load before each measurement.
const WARM_UP: f64 = 0.3;

/// What to ask, and how much at once.
#[derive(Clone)]
pub struct Load {
    pub connections: u32,
    pub streams: u32,
    pub clients: u32,
    pub descriptors: &'static [&'static str],
    pub seconds: f64,
}

/// What came of it: CPU of the server in microseconds a request, latencies in microseconds.
pub struct Seen {
    pub requests: f64,
    /// The same and those of the warm-up, taken to be as many a second.
    pub with_warm_up: f64,
    pub per_second: f64,
    pub over_limit: f64,
    pub cpu: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

impl Load {
    /// So many requests in flight, of one descriptor with one entry, for 100,000 clients.
    pub fn in_flight(requests: u32) -> Self {
        let connections = requests.min(4);
        Self { connections, streams: requests / connections, clients: 100_000, descriptors: &["client={client}"], seconds: 1.0 }
    }

    /// Panics where a request has no answer: figures of a server that fails say nothing.
    pub fn run(&self, server: SocketAddr, pid: u32) -> Seen {
        let mut command = Command::new("taskset");
        command.args(["-c", LOAD_CORE, env!("CARGO_BIN_EXE_ratelimitd"), "load", "--warmup", &format!("{}ms", WARM_UP * 1000.0)]);
        command.args(["--target", &format!("http://{server}"), "--pid", &pid.to_string(), "--clients", &self.clients.to_string()]);
        command.args(["--connections", &self.connections.to_string(), "--streams", &self.streams.to_string()]);
        command.args(["--duration", &format!("{}ms", self.seconds * 1000.0)]);
        for descriptor in self.descriptors {
            command.args(["--descriptor", descriptor]);
        }
        let output = command.output().unwrap_or_else(|error| panic!("taskset can't be run ({error}): apt-get install util-linux"));
        let report = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
        let number = |name: &str| {
            let line = report.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {report}"));
            line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        assert_eq!(number("errors"), 0.0, "{report}");
        Seen {
            requests: number("requests"),
            with_warm_up: number("requests") * (1.0 + WARM_UP / self.seconds),
            per_second: number("per second"),
            over_limit: number("OVER_LIMIT"),
            cpu: number("server CPU"),
            p50: number("latency p50"),
            p99: number("latency p99 "),
            p999: number("latency p99.9"),
        }
    }
}

/// Keeps all threads of a process on a core.
pub fn pin(pid: u32, core: &str) {
    let pinned = Command::new("taskset").args(["-acp", core, &pid.to_string()]).output();
    let pinned = pinned.unwrap_or_else(|error| panic!("taskset can't be run ({error}): apt-get install util-linux"));
    assert!(pinned.status.success(), "{}", String::from_utf8_lossy(&pinned.stderr));
}
