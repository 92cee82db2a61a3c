//! A primary with a replica, watched by three Sentinels: real processes on free loopback ports, all behind passwords.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::ratelimitd::scratch;
use super::redis::RedisServer;

/// Killed when dropped.
pub struct Sentinels {
    pub primary: RedisServer,
    pub replica: RedisServer,
    watchers: Vec<(Child, u16)>,
    _folder: PathBuf,
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
        let folder = scratch("sentinels");
        let watchers = (0..3).map(|number| watcher(&folder, number, primary.port())).collect();
        let started = Self { primary, replica, watchers, _folder: folder };
        let deadline = Instant::now() + DEADLINE;
        while !started.watchers.iter().all(|(_, port)| knows_all(*port)) {
            let told: Vec<_> = started.watchers.iter().map(|(_, port)| ask::<String>(*port, &["INFO", "sentinel"])).collect();
            assert!(Instant::now() < deadline, "the Sentinels don't find each other: {told:#?}");
            thread::sleep(Duration::from_millis(50));
        }
        started
    }

    /// What REDIS_URL is to be.
    pub fn url(&self) -> String {
        let sentinels: Vec<_> = self.watchers.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        format!("watched,{}", sentinels.join(","))
    }

    /// The port of the primary that a Sentinel names.
    pub fn elected(&self) -> Option<u16> {
        let named: (String, u16) = ask(self.watchers[0].1, &["SENTINEL", "get-master-addr-by-name", "watched"]).ok()?;
        Some(named.1)
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (child, _) in &mut self.watchers {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

fn watcher(folder: &std::path::Path, number: usize, primary: u16) -> (Child, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = folder.join(format!("sentinel-{number}.conf"));
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nlogfile sentinel-{number}.log\nrequirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n\
         sentinel monitor watched 127.0.0.1 {primary} 2\nsentinel auth-pass watched {REDIS_PASSWORD}\n\
         sentinel down-after-milliseconds watched 1500\nsentinel failover-timeout watched 2000\n",
        folder.display()
    );
    fs::write(&file, text).unwrap();
    let started = Command::new("redis-server").arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    (started.expect("redis-server can be run as a Sentinel"), port)
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
