//! Another server of Envoy's protocol, which is none of this repository's: `PEER` is the command that runs it, one program with
//! its arguments. In it `{grpc}` stands for the port to serve on, and `{redis}` for Redis's; where it names no Redis, ours
//! counts in memory as well. It has to count the domain `api` by `client`, 100 a minute, and its ways of counting are its own
//! affair. envoyproxy/ratelimit, whose rules file is DIR/ratelimit/config/rules.yaml:
//!
//! ```text
//! PEER='env RUNTIME_ROOT=DIR RUNTIME_SUBDIRECTORY=ratelimit RUNTIME_WATCH_ROOT=false GRPC_PORT={grpc} PORT=0 DEBUG_PORT=0
//!     REDIS_SOCKET_TYPE=tcp REDIS_URL=127.0.0.1:{redis} USE_STATSD=false USE_PROMETHEUS=true PROMETHEUS_ADDR=127.0.0.1:0
//!     LOG_LEVEL=error GOMAXPROCS=1 PATH_OF/ratelimit'
//! ```
//!
//! limitador, whose limits file has the namespace `api` and the variable `descriptors[0]['client']`:
//!
//! ```text
//! PEER='PATH_OF/limitador-server --rls-ip 127.0.0.1 --rls-port {grpc} --http-ip 127.0.0.1 --http-port 0 LIMITS.yaml memory'
//! PEER='[...] LIMITS.yaml redis redis://127.0.0.1:{redis}'
//! ```

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::load::{SERVER_CORE, pin};
use crate::support::redis::RedisServer;

/// A peer that runs, killed when dropped.
pub struct Peer {
    child: Child,
    pub address: SocketAddr,
}

/// How long it may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// The command that runs it, if there is one to be measured.
pub fn command() -> Option<String> {
    std::env::var("PEER").ok()
}

/// Whether it counts in Redis.
pub fn asks_redis(command: &str) -> bool {
    command.contains("{redis}")
}

impl Peer {
    pub fn start(command: &str, redis: &RedisServer) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        let command = command.replace("{grpc}", &address.port().to_string()).replace("{redis}", &redis.port().to_string());
        // exec: the shell's process is the server's.
        let child = Command::new("sh").args(["-c", &format!("exec {command}")]).spawn().unwrap();
        let peer = Self { child, address };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < START_MAX, "`{command}` does not listen on {address}");
            thread::sleep(Duration::from_millis(50));
        }
        pin(peer.pid(), SERVER_CORE);
        peer
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
