//! A real `redis-server` of a test's own: on a free loopback port, in a folder of its own, gone when dropped. It is
//! required: a test that needs Redis fails where there is none. Nothing here knows what is stored in it.

use std::fmt::Debug;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, ToRedisArgs, Value};

/// A running server, killed by its handle on drop.
pub struct RedisServer {
    child: Child,
    port: u16,
    dir: PathBuf,
    options: Vec<String>,
    connection: Mutex<Connection>,
}

/// How long a server may take until it answers.
const START_MAX: Duration = Duration::from_secs(10);

/// Somebody else may take the free port between our look and the server's own bind.
const STARTS_MAX: usize = 5;

/// On such a server keys live for tens of thousands of years: PEXPIREAT does what EXPIREAT does, and takes milliseconds for
/// seconds. Stepped time needs it, for Redis expires keys by real time. What was set shows in PEXPIRETIME, a thousand times
/// later: in milliseconds it is what the store set in microseconds.
pub const WITHOUT_EXPIRY: [&str; 6] = ["--rename-command", "PEXPIREAT", "PEXPIREAT-PROPER", "--rename-command", "EXPIREAT", "PEXPIREAT"];

impl RedisServer {
    /// A server with nothing in it. Panics where `redis-server` is not installed or does not come up.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, but keys never expire.
    pub fn start_without_expiry() -> Self {
        Self::start_with(&WITHOUT_EXPIRY)
    }

    /// The same with these options of redis-server besides.
    pub fn start_with(options: &[&str]) -> Self {
        let mut problem = String::new();
        for _ in 0..STARTS_MAX {
            match Self::try_start(options) {
                Ok(server) => return server,
                Err(why) => problem = why,
            }
        }
        panic!("redis-server did not come up in {STARTS_MAX} tries: {problem}");
    }

    fn try_start(options: &[&str]) -> Result<Self, String> {
        let free = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = free.local_addr().expect("a bound socket has an address").port();
        drop(free);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("redis-{}-{port}", std::process::id()));
        fs::create_dir_all(&dir).expect("the folder for tests' files can be written");
        let mut child = spawn(port, &dir, options);
        match connect(&mut child, port) {
            Ok(connection) => {
                let options = options.iter().map(|option| (*option).to_owned()).collect();
                Ok(Self { child, port, dir, options, connection: Mutex::new(connection) })
            }
            Err(why) => {
                let log = fs::read_to_string(dir.join("redis.log")).unwrap_or_default();
                end(&mut child, &dir);
                Err(format!("{why}\n{log}"))
            }
        }
    }

    /// `127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        address(self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A section of what it tells of itself.
    pub fn info(&self, section: &str) -> String {
        redis::from_redis_value(self.command(&["INFO", section])).expect("INFO is text")
    }

    /// CPU seconds that it has spent.
    #[allow(dead_code, reason = "benches measure it")]
    pub fn cpu(&self) -> f64 {
        let info = self.info("cpu");
        let number = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).expect("INFO tells it").parse::<f64>();
        ["used_cpu_user:", "used_cpu_sys:"].map(|name| number(name).expect("a number")).iter().sum()
    }

    /// Calls of scripts that it has carried out, and seconds in them.
    pub fn script_calls(&self) -> (u64, f64) {
        let stats = self.info("commandstats");
        let called = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:")));
            let field = |at: usize| line.and_then(|line| line.split(',').nth(at)?.split_once('=')?.1.parse::<f64>().ok());
            (field(0).unwrap_or_default(), field(1).unwrap_or_default() / 1e6)
        };
        let (eval, evalsha) = (called("eval"), called("evalsha"));
        ((eval.0 + evalsha.0) as u64, eval.1 + evalsha.1)
    }

    /// Sends a signal: "STOP", "CONT".
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().expect("kill can be run");
        assert!(sent.success());
    }

    /// Ends the process at once, and all that it holds with it.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }

    /// Starts it again after [`RedisServer::kill`], on its port, with nothing in it.
    pub fn restart(&mut self) {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.child = spawn(self.port, &self.dir, &options);
        let connection = connect(&mut self.child, self.port).expect("it comes up again on its port");
        self.connection = Mutex::new(connection);
    }

    /// Asks the server, past every store. Panics where it answers with an error.
    pub fn command<W: ToRedisArgs + Debug>(&self, words: &[W]) -> Value {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query(&mut connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        end(&mut self.child, &self.dir);
    }
}

fn spawn(port: u16, dir: &Path, options: &[&str]) -> Child {
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--logfile", "redis.log"])
        .args(options)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("these tests need redis-server: `apt-get install redis-server`, or run them all by `./tests/run`")
        }
        Err(error) => panic!("redis-server can't be started: {error}"),
    }
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// A connection to a server that answers and is `child`: with its port taken by another test's server, that one answers.
fn connect(child: &mut Child, port: u16) -> Result<Connection, String> {
    let client = redis::Client::open(format!("redis://{}/", address(port))).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + START_MAX;
    let mut problem = String::from("no try was made");
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("it ended: {status}"));
        }
        match client.get_connection().and_then(|connection| answer(connection, child.id())) {
            Ok(connection) => return Ok(connection),
            Err(error) => problem = error.to_string(),
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(format!("no answer within {START_MAX:?}: {problem}"))
}

fn answer(mut connection: Connection, process: u32) -> redis::RedisResult<Connection> {
    redis::cmd("PING").query::<()>(&mut connection)?;
    let info: String = redis::cmd("INFO").arg("server").query(&mut connection)?;
    if info.lines().any(|line| line == format!("process_id:{process}")) {
        Ok(connection)
    } else {
        Err(redis::RedisError::from((redis::ErrorKind::Client, "another server has this port")))
    }
}

fn end(child: &mut Child, dir: &Path) {
    // Both fail only where it is gone already, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
    let _ = fs::remove_dir_all(dir);
}
