//! A real Envoy process by `examples/envoy/envoy.yaml`, and the upstream behind it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::http;
use super::ratelimitd::scratch;

/// Killed when dropped.
pub struct Envoy {
    pub listener: SocketAddr,
    pub admin: SocketAddr,
    stop: Option<mpsc::Sender<()>>,
    ended: Option<thread::JoinHandle<()>>,
}

const DEADLINE: Duration = Duration::from_secs(20);

impl Envoy {
    /// Starts Envoy by the example configuration, ports replaced and then changed by `edit`, in front of these servers, and
    /// waits until it is ready and knows them to be healthy.
    pub fn start(ratelimitds: &[SocketAddr], upstream: SocketAddr, edit: impl Fn(String) -> String) -> Self {
        let (listener, admin) = (free_port(), free_port());
        let endpoint = "        - endpoint: {address: {socket_address: {address: ratelimitd, port_value: 8081}}}\n";
        let endpoints: Vec<_> =
            ratelimitds.iter().map(|address| endpoint.replace("ratelimitd, port_value: 8081", &place(*address))).collect();
        let config = [
            ("address: 127.0.0.1, port_value: 9901".to_owned(), format!("address: {}", place(admin))),
            ("address: 0.0.0.0, port_value: 10000".to_owned(), format!("address: {}", place(listener))),
            ("address: upstream, port_value: 8080".to_owned(), format!("address: {}", place(upstream))),
            (endpoint.to_owned(), endpoints.concat()),
        ]
        .into_iter()
        .fold(std::fs::read_to_string(example()).unwrap(), |config, (from, to)| {
            assert_eq!(config.matches(&from).count(), 1, "examples/envoy/envoy.yaml has one `{from}`");
            config.replace(&from, &to)
        });
        let folder = scratch("envoy");
        let path = folder.join("envoy.yaml");
        std::fs::write(&path, edit(config)).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new(binary());
        // Else a line of the access log is in its file ten seconds late.
        command.args(["--file-flush-interval-msec", "20"]);
        command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning", "-c"]).arg(path);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // Envoy dies with the thread that spawned it, so that thread lives as long as Envoy should.
        let (stop, stopped) = mpsc::channel::<()>();
        let ended = thread::spawn(move || {
            let mut child = command.spawn().unwrap();
            let _ = stopped.recv();
            let _ = child.kill();
            let _ = child.wait();
        });
        let envoy = Self { listener, admin, stop: Some(stop), ended: Some(ended) };
        envoy.wait_until_ready(&folder);
        envoy
    }

    /// The value of one of Envoy's counters.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = http::get(self.admin, &format!("/stats?filter=^{}$", name.replace('.', "\\.")), &[]).body;
        let line = stats.lines().find_map(|line| line.split_once(": ").filter(|(found, _)| *found == name));
        line.map_or(0, |(_, value)| value.trim().parse().unwrap())
    }

    fn wait_until_ready(&self, folder: &Path) {
        let deadline = Instant::now() + DEADLINE;
        let healthy = |body: &str| {
            body.lines().filter(|line| line.contains("ratelimitd") && line.contains("::health_flags::")).collect::<Vec<_>>().join("\n")
        };
        loop {
            let up = http::try_request(self.admin, "GET", "/ready", &[], b"").is_ok_and(|answer| answer.status == 200);
            if up {
                let flags = healthy(&http::get(self.admin, "/clusters", &[]).body);
                if !flags.is_empty() && flags.lines().all(|line| line.ends_with("::healthy")) {
                    return;
                }
            }
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "Envoy is not ready: {}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.take().map(thread::JoinHandle::join);
    }
}

/// The Envoy that `tests/run` installs.
pub fn binary() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let envoy = target.parent().unwrap().join("envoy/bin/envoy");
    assert!(envoy.exists(), "there is no Envoy at {}: run ./tests/run, which installs it", envoy.display());
    envoy
}

/// Replaces the example's descriptors by these: each a RateLimit of Envoy's route configuration, on one line. They stand
/// in a RateLimitPerRoute, the one place for `hits_addend` and for charges on stream done.
pub fn with_rate_limits(config: &str, rate_limits: &[&str]) -> String {
    let (before, rest) = config.split_once("              rate_limits:\n").expect("the example's descriptors");
    let (_, after) = rest.split_once("\n  clusters:\n").expect("what comes after the listener");
    let per_route = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute";
    let config = format!("{{\"@type\": {per_route}, rate_limits: [{}]}}", rate_limits.join(", "));
    format!("{before}              typed_per_filter_config: {{envoy.filters.http.ratelimit: {config}}}\n\n  clusters:\n{after}")
}

/// Has Envoy write a line of this format for each request.
pub fn with_access_log(config: &str, path: &Path, format: &str) -> String {
    let before = "          http_filters:\n";
    assert_eq!(config.matches(before).count(), 1);
    let file_log = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
    let text = format!("{{text_format_source: {{inline_string: \"{format}\\n\"}}}}");
    let config_of_log = format!("{{\"@type\": {file_log}, path: {}, log_format: {text}}}", path.display());
    let log = format!("          access_log: [{{name: envoy.access_loggers.file, typed_config: {config_of_log}}}]\n");
    config.replace(before, &format!("{log}{before}"))
}

/// An upstream that answers 200 to everything, for as long as the test process lives. A request's header
/// `x-reply: name=value` asks for that header in the answer.
pub fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: std::net::TcpStream) {
    let (mut received, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length) = stream.read(&mut piece) {
        if length == 0 {
            return;
        }
        received.extend_from_slice(&piece[..length]);
        // Requests without a body, one after the other.
        while let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = received.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head);
            let replies = head.lines().filter_map(|line| line.strip_prefix("x-reply: ")?.split_once('='));
            let headers: String = replies.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            if stream.write_all(format!("HTTP/1.1 200 OK\r\n{headers}content-length: 3\r\n\r\nok\n").as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn example() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/examples/envoy/envoy.yaml")
}

fn place(address: SocketAddr) -> String {
    format!("{}, port_value: {}", address.ip(), address.port())
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
