//! What clients see of a Redis in trouble, by the default deadline of 10 ms: real processes, 4 requests in flight without a
//! pause. Prints a row for each trouble. The tests of the same (`tests/it/failures`) run beside all others, so with a longer
//! deadline and no figures. `cargo bench --bench outages`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a benchmark a panic is the report")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use distributed_rate_limiter::grpc::RateLimitClient;
use distributed_rate_limiter::grpc::pb::rate_limit_response::Code;
use support::cluster::Cluster;
use support::grpc::{descriptor, request};
use support::proxy::Proxy;
use support::ratelimitd::{Ratelimitd, rules_file};
use support::redis::RedisServer;
use support::sentinel::{REDIS_PASSWORD, SENTINEL_PASSWORD, Sentinels};

/// The tests' processes and clients.
#[path = "../tests/it/support"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support {
    pub mod cluster;
    pub mod grpc;
    pub mod http;
    pub mod proxy;
    pub mod ratelimitd;
    pub mod redis;
    pub mod sentinel;
}

const RULES: &str = "domain: d\ndescriptors:\n- {key: client, rate_limit: {limit: 1000000, window: 1h}}\n";
const IN_FLIGHT: usize = 4;
/// Each asks for one after the other of so many clients.
const CLIENTS: usize = 1_000;
/// Before trouble, and once it is over, traffic goes on for so long.
const CALM: Duration = Duration::from_millis(500);
/// Nobody has answered by policy for so long: that is over.
const QUIET: Duration = Duration::from_millis(500);

/// Calls without a pause until it is told to end.
struct Traffic {
    over: Arc<AtomicBool>,
    asking: JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    failed: usize,
    /// Of each call.
    took: Vec<Duration>,
}

fn main() {
    println!("| trouble | calls | failed | p50 | p99.9 | slowest | by policy | Redis again after |");
    println!("|---|---|---|---|---|---|---|---|");
    let for_a_second = || thread::sleep(Duration::from_secs(1));
    let single = |what: &str, trouble: &dyn Fn(&mut RedisServer), mend: &dyn Fn(&mut RedisServer)| {
        let mut redis = RedisServer::start();
        let server = start(&["--redis-url", &redis.url()]);
        row(what, &server, || {
            trouble(&mut redis);
            mend(&mut redis);
        });
    };
    let command = |redis: &mut RedisServer, words: &[&str]| drop(redis.command(words));
    let killed = |redis: &mut RedisServer| {
        redis.kill();
        for_a_second();
    };
    single("killed, and started after 1 s", &killed, &RedisServer::restart);
    let stopped = |redis: &mut RedisServer| {
        redis.signal("STOP");
        thread::sleep(Duration::from_secs(3));
    };
    single("stopped for 3 s", &stopped, &|redis| redis.signal("CONT"));
    let paused = |kind: &'static str| {
        move |redis: &mut RedisServer| {
            command(redis, &["CLIENT", "PAUSE", "1000", kind]);
            for_a_second();
        }
    };
    single("CLIENT PAUSE ALL for 1 s", &paused("ALL"), &|_| {});
    single("CLIENT PAUSE WRITE for 1 s", &paused("WRITE"), &|_| {});
    single("SCRIPT FLUSH", &|redis| command(redis, &["SCRIPT", "FLUSH"]), &|_| {});
    let demoted = |redis: &mut RedisServer| {
        command(redis, &["REPLICAOF", "127.0.0.1", "1"]);
        for_a_second();
    };
    single("a replica for 1 s", &demoted, &|redis| command(redis, &["REPLICAOF", "NO", "ONE"]));
    let full = |redis: &mut RedisServer| {
        command(redis, &["CONFIG", "SET", "maxmemory", "1"]);
        for_a_second();
    };
    single("full for 1 s", &full, &|redis| command(redis, &["CONFIG", "SET", "maxmemory", "0"]));
    let killed_connections = |redis: &mut RedisServer| {
        for pause in [7, 31, 3, 60, 19, 45, 11, 80, 5, 27] {
            command(redis, &["CLIENT", "KILL", "TYPE", "normal"]);
            thread::sleep(Duration::from_millis(pause));
        }
    };
    single("its connections killed, 10 times in 0.3 s", &killed_connections, &|_| {});
    let between = |what: &str, trouble: &dyn Fn(&Proxy), mend: &dyn Fn(&Proxy)| {
        let redis = RedisServer::start();
        let proxy = Proxy::before(redis.url());
        let server = start(&["--redis-url", &proxy.url()]);
        row(what, &server, || {
            trouble(&proxy);
            for_a_second();
            mend(&proxy);
        });
    };
    let on_time = |proxy: &Proxy| proxy.delay(Duration::ZERO);
    between("10 ms each way for 1 s", &|proxy| proxy.delay(Duration::from_millis(10)), &on_time);
    between("700 ms each way for 1 s", &|proxy| proxy.delay(Duration::from_millis(700)), &on_time);
    between("the way cut", &Proxy::cut, &|_| {});
    between("the way silent for 1 s", &|proxy| proxy.silence(true), &|proxy| proxy.silence(false));
    sentinel();
    cluster();
}

fn sentinel() {
    let mut watched = Sentinels::start();
    let auth = ["--redis-auth", REDIS_PASSWORD, "--redis-sentinel-auth", SENTINEL_PASSWORD];
    let server = start(&[&["--redis-type", "sentinel", "--redis-url", &watched.url()], &auth[..]].concat());
    row("the primary killed, until Sentinels elect", &server, || {
        watched.primary.kill();
        while watched.elected() != Some(watched.replica.port()) {
            thread::sleep(Duration::from_millis(2));
        }
    });
}

fn cluster() {
    let mut cluster = Cluster::start_with(&["--cluster-require-full-coverage", "no"]);
    let server = start(&["--redis-type", "cluster", "--redis-url", &cluster.url()]);
    row("1 of 3 primaries killed, until its replica is elected", &server, || {
        cluster.nodes[0].kill();
        cluster.wait_for_failover(0);
    });
    let slots: Vec<_> =
        (0..20).map(|number| cluster.slot(&format!("1{{d|{number}}}"))).filter(|slot| cluster.primary_of(*slot) == 1).collect();
    row("slots moved, one after the other", &server, || {
        for slot in &slots {
            cluster.begin_to_move(*slot, 1, 2);
            thread::sleep(Duration::from_millis(20));
            cluster.finish_move(*slot, 1, 2);
        }
    });
}

fn start(args: &[&str]) -> Ratelimitd {
    Ratelimitd::start(&[&["--config", &rules_file(RULES), "--serving-threads", "1"], args].concat())
}

/// Traffic through trouble, as a row of the table.
fn row(what: &str, server: &Ratelimitd, trouble: impl FnOnce()) {
    let traffic = Traffic::on(server);
    thread::sleep(CALM);
    let before = by_policy(server);
    trouble();
    let again = until_redis_answers(server);
    thread::sleep(CALM);
    let by_policy = by_policy(server) - before;
    let mut seen = traffic.end();
    seen.took.sort_unstable();
    let millis = |part: f64| 1e3 * seen.took[((seen.took.len() - 1) as f64 * part) as usize].as_secs_f64();
    println!(
        "| {what} | {} | {} | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} % | {:.0} ms |",
        seen.took.len(),
        seen.failed,
        millis(0.5),
        millis(0.999),
        millis(1.0),
        100.0 * by_policy as f64 / seen.took.len() as f64,
        1e3 * again.as_secs_f64(),
    );
}

/// From now until the last answer by policy.
fn until_redis_answers(server: &Ratelimitd) -> Duration {
    let (mended, mut answers) = (Instant::now(), by_policy(server));
    let mut last = mended;
    while last.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(2));
        let now = by_policy(server);
        if now != answers {
            (answers, last) = (now, Instant::now());
        }
        assert!(mended.elapsed() < Duration::from_secs(20), "Redis is not asked again");
    }
    last - mended
}

fn by_policy(server: &Ratelimitd) -> u64 {
    server.metric("ratelimit_policy_answers{policy=\"local\"}")
}

impl Traffic {
    fn on(server: &Ratelimitd) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (ended, target) = (Arc::clone(&over), format!("http://{}", server.grpc()));
        let asking = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let channel = tonic::transport::Endpoint::from_shared(target).unwrap().connect().await.unwrap();
                let tasks: Vec<_> =
                    (0..IN_FLIGHT).map(|task| tokio::spawn(ask(RateLimitClient::new(channel.clone()), task, Arc::clone(&ended)))).collect();
                let mut seen = Seen::default();
                for task in tasks {
                    let of_task = task.await.unwrap();
                    seen.failed += of_task.failed;
                    seen.took.extend(of_task.took);
                }
                seen
            })
        });
        Self { over, asking }
    }

    fn end(self) -> Seen {
        self.over.store(true, Ordering::SeqCst);
        self.asking.join().unwrap()
    }
}

async fn ask(mut service: RateLimitClient, task: usize, over: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::SeqCst) {
        let client = ((task + IN_FLIGHT * seen.took.len()) % CLIENTS).to_string();
        let asked = Instant::now();
        let answer = service.should_rate_limit(request("d", vec![descriptor(&[("client", &client)])])).await;
        seen.took.push(asked.elapsed());
        seen.failed += usize::from(!answer.is_ok_and(|answer| answer.get_ref().overall_code == Code::Ok as i32));
    }
    seen
}
