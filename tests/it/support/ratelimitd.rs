//! A real `ratelimitd` process on free loopback ports, its log, and its end.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http;

/// Killed when dropped.
pub struct Ratelimitd {
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
    ended: AtomicBool,
    /// Whoever holds it keeps the log from being read.
    reading: Mutex<()>,
}

/// Whatever is waited for, it comes within this or the test fails.
const DEADLINE: Duration = Duration::from_secs(20);

impl Ratelimitd {
    /// Starts the server with these arguments, ports 0 and a log in JSON, and waits until it is ready.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same with these environment variables.
    pub fn start_with(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(args);
        command.envs(environment.iter().copied());
        command.args(["--log-format", "json"]).stderr(Stdio::piped());
        if !args.contains(&"--grpc-uds") {
            command.args(["--grpc-host", "127.0.0.1", "--grpc-port", "0"]);
        }
        command.args(["--host", "127.0.0.1", "--port", "0", "--prometheus-addr", "127.0.0.1:0"]);
        command.args(["--debug-host", "127.0.0.1", "--debug-port", "0"]);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Log::default());
        let (stderr, writer) = (child.stderr.take().unwrap(), Arc::clone(&log));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                drop(writer.reading.lock().unwrap());
                // A line that is not JSON (a panic's) is kept as text.
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                writer.lines.lock().unwrap().push(line);
                writer.more.notify_all();
            }
            let _lines = writer.lines.lock().unwrap();
            writer.ended.store(true, Ordering::Relaxed);
            writer.more.notify_all();
        });
        let server = Self { child, log };
        server.wait_for_log("ready to serve");
        server
    }

    /// Runs the program to its end, and gives its exit status and what it wrote to stderr.
    pub fn run(args: &[&str]) -> (ExitStatus, String) {
        Self::run_with(args, &[])
    }

    /// The same with these environment variables.
    pub fn run_with(args: &[&str], environment: &[(&str, &str)]) -> (ExitStatus, String) {
        let output = command(args).envs(environment.iter().copied()).output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    pub fn grpc(&self) -> SocketAddr {
        self.address("listening for gRPC").parse().unwrap()
    }

    pub fn http(&self) -> SocketAddr {
        self.address("listening for HTTP").parse().unwrap()
    }

    pub fn metrics(&self) -> SocketAddr {
        self.address("listening for metrics").parse().unwrap()
    }

    pub fn admin(&self) -> SocketAddr {
        self.address("listening for admin").parse().unwrap()
    }

    /// The value of a series on the metrics page.
    pub fn metric(&self, series: &str) -> u64 {
        let page = http::get(self.metrics(), "/metrics", &[]).body;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
        line.unwrap_or_else(|| panic!("no series {series}: {page}")).parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Nobody reads the log as long as this is held.
    pub fn unread_log(&self) -> MutexGuard<'_, ()> {
        self.log.reading.lock().unwrap()
    }

    /// All log lines so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lines.lock().unwrap().clone()
    }

    /// Waits for a line whose message holds the text.
    pub fn wait_for_log(&self, text: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| says(line, text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.log.ended.load(Ordering::Relaxed);
            assert!(!left.is_zero() && !ended, "no log line says `{text}`: {lines:#?}");
            lines = self.log.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits until so many lines have a message that holds the text, and gives the last of them.
    pub fn wait_for_logs(&self, text: &str, count: usize) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().filter(|line| says(line, text)).nth(count - 1) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "fewer than {count} log lines say `{text}`: {lines:#?}");
            lines = self.log.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// How many lines have a message that holds the text, so far.
    pub fn logs(&self, text: &str) -> usize {
        self.log.lines.lock().unwrap().iter().filter(|line| says(line, text)).count()
    }

    /// Sends a signal: "TERM", "INT", "HUP", "KILL", "STOP".
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "ratelimitd did not end: {:#?}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn address(&self, message: &str) -> String {
        let lines = self.log();
        let mut bound = lines.iter().filter(|line| line["message"] == message);
        let address = bound.next().expect("a bound address is logged")["address"].as_str().unwrap().to_owned();
        assert!(bound.next().is_none(), "an address is logged once: {lines:#?}");
        address
    }
}

impl Drop for Ratelimitd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn says(line: &Value, text: &str) -> bool {
    line["message"].as_str().is_some_and(|message| message.contains(text))
}

/// The library that bends the clocks of a process: to be its LD_PRELOAD.
pub fn faketime() -> String {
    let mut libraries =
        std::fs::read_dir("/usr/lib").unwrap().filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketime.so.1")));
    let library = libraries.find(|path| path.exists());
    let library = library.expect("these tests need libfaketime: `apt-get install libfaketime`, or run them all by `./tests/run`");
    library.to_str().unwrap().to_owned()
}

/// Writes a rules file of that text and gives its path.
pub fn rules_file(text: &str) -> String {
    let path = scratch("rules").join("rules.yaml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The repository's sample rules.
pub fn sample_rules() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/config")
}

/// A new empty folder of this test run's.
pub fn scratch(what: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{what}-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The program to test or to measure: another build of it where `RATELIMITD_PROGRAM=PATH` says so.
pub fn program() -> PathBuf {
    let named = std::env::var_os("RATELIMITD_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_ratelimitd").into());
    std::path::absolute(named).unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    // Nothing of the developer's environment.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).args(args).stdin(Stdio::null());
    command
}
