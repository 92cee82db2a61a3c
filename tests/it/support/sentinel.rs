//! A primary with a replica, watched by three Sentinels: real processes on free loopback ports, all behind passwords.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::ratelimitd::scratch;
use super::redis::RedisServer;

/// Killed when dropped.
pub struct Sentinels {
    pub primary: RedisServer,
    pub replica: RedisServer,
    watchers: Vec<Sentinel>,
}

/// One Sentinel, killed when dropped.
pub struct Sentinel {
    child: Child,
    port: u16,
}

pub const REDIS_PASSWORD: &str = "redis-secret";
pub const SENTINEL_PASSWORD: &str = "sentinel-secret";

const DEADLINE: Duration = Duration::from_secs(40);

impl Sentinels {
    /// Starts them all, and waits until each Sentinel knows the others and the replica.
    pub fn start() -> Self {
        let (primary, replica) = (RedisServer::start(), RedisServer::start());
        for server in [&primary, &replica] {
            server.command(&["CONFIG", "SET", "masterauth", REDIS_PASSWORD]);
            server.command(&["CONFIG", "SET", "requirepass", REDIS_PASSWORD]);
        }
        replica.command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
        // Before the Sentinels look: they ask a primary for its replicas once in 10 s.
        primary.command(&["SET", "there", "1"]);
        let deadline = Instant::now() + DEADLINE;
        while primary.command(&["WAIT", "1", "1000"]) != redis::Value::Int(1) {
            assert!(Instant::now() < deadline, "the replica does not follow");
        }
        primary.command(&["DEL", "there"]);
        let watch = |_| {
            Sentinel::start(|port| {
                format!(
                    "port {port}\nrequirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n\
                     sentinel monitor watched 127.0.0.1 {} 2\nsentinel auth-pass watched {REDIS_PASSWORD}\n\
                     sentinel down-after-milliseconds watched 1500\nsentinel failover-timeout watched 2000\n",
                    primary.port()
                )
            })
        };
        let watchers = (0..3).map(watch).collect();
        let started = Self { primary, replica, watchers };
        let deadline = Instant::now() + DEADLINE;
        while !started.watchers.iter().all(|sentinel| knows_all(sentinel.port)) {
            let told: Vec<_> = started.watchers.iter().map(|sentinel| ask::<String>(sentinel.port, &["INFO", "sentinel"])).collect();
            assert!(Instant::now() < deadline, "the Sentinels don't find each other: {told:#?}");
            thread::sleep(Duration::from_millis(50));
        }
        started
    }

    /// What REDIS_URL is to be.
    pub fn url(&self) -> String {
        let sentinels: Vec<_> = self.watchers.iter().map(Sentinel::url).collect();
        format!("watched,{}", sentinels.join(","))
    }

    /// The port of the primary that a Sentinel names.
    pub fn elected(&self) -> Option<u16> {
        let named: (String, u16) = ask(self.watchers[0].port, &["SENTINEL", "get-master-addr-by-name", "watched"]).ok()?;
        Some(named.1)
    }
}

impl Sentinel {
    /// One by these lines of configuration, which are told its port.
    pub fn start(lines: impl FnOnce(u16) -> String) -> Self {
        let (port, folder) = (TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(), scratch("sentinel"));
        let file = folder.join("sentinel.conf");
        fs::write(&file, format!("bind 127.0.0.1\ndir {}\nlogfile sentinel.log\n{}", folder.display(), lines(port))).unwrap();
        let started = Command::new("redis-server").arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self { child: started.expect("redis-server can be run as a Sentinel"), port }
    }

    pub fn url(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn knows_all(port: u16) -> bool {
    ask::<String>(port, &["INFO", "sentinel"]).is_ok_and(|info| info.contains("slaves=1,sentinels=3"))
}

fn ask<T: redis::FromRedisValue>(port: u16, words: &[&str]) -> redis::RedisResult<T> {
    let mut connection = redis::Client::open(format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:{port}/"))?.get_connection()?;
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.query(&mut connection)
}
