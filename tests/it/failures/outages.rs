//! Outages of a single Redis: it dies, stops, forgets, fills up, turns into a replica.

use std::net::TcpListener;

use super::*;
use crate::support::proxy::Proxy;
use crate::support::ratelimitd::scratch;
use crate::support::redis::RedisServer;
use crate::support::sentinel::{REDIS_PASSWORD, SENTINEL_PASSWORD, Sentinels};

/// Redis is broken for a while, under steady traffic, and mended. Redis remembers its counters where `remembers`.
fn survive(what: &str, lasting: Duration, remembers: bool, outage: impl FnOnce(&mut RedisServer), mend: impl FnOnce(&mut RedisServer)) {
    let mut redis = RedisServer::start();
    let server = start(&["--redis-url", &redis.url()]);
    assert_eq!(admitted(&server, "before", 10), 10, "{what}");
    let traffic = Traffic::on(&server);
    outage(&mut redis);
    thread::sleep(lasting);
    mend(&mut redis);
    wait_until_redis_answers(&server, what);
    let seen = traffic.end(what);
    if remembers {
        reconcile(&server, &seen, what);
    }
    // Whoever was counted is counted still, unless Redis has lost it; and nobody gets more than the limit.
    let rest = if remembers { 10 } else { 20 };
    assert_eq!(admitted(&server, "before", 30), rest, "{what}");
    assert_eq!(admitted(&server, "after", 30), 20, "{what}");
    if !lasting.is_zero() {
        let answers = by_policy(&server);
        assert!(answers > 0, "{what}: the outage was none");
        let openings = server.metric("ratelimit_store_breaker_openings{store=\"redis\"}");
        assert!((1..=3).contains(&openings), "{what}: the breaker opened {openings} times");
    }
}

#[test]
fn killed_and_started_again() {
    survive("kill -9", Duration::from_secs(1), false, RedisServer::kill, RedisServer::restart);
}

#[test]
fn stopped_for_three_seconds() {
    survive("SIGSTOP", Duration::from_secs(3), true, |redis| redis.signal("STOP"), |redis| redis.signal("CONT"));
}

#[test]
fn paused() {
    survive("CLIENT PAUSE", Duration::from_secs(1), true, |redis| drop(redis.command(&["CLIENT", "PAUSE", "1000", "ALL"])), |_| {});
}

#[test]
fn that_it_answers_a_ping_is_no_sign_that_it_answers_scripts() {
    let redis = RedisServer::start();
    let server = Ratelimitd::start(&["--config", &rules_file(RULES), "--redis-timeout", "100ms", "--redis-url", &redis.url()]);
    assert_eq!(admitted(&server, "before", 10), 10);
    let traffic = Traffic::on(&server);
    redis.command(&["CLIENT", "PAUSE", "3000", "WRITE"]);
    thread::sleep(Duration::from_secs(3));
    wait_until_redis_answers(&server, "writes held back");
    traffic.end("writes held back");
    let openings = server.metric("ratelimit_store_breaker_openings{store=\"redis\"}");
    // One by accident, on a busy machine.
    assert!((1..=2).contains(&openings), "the breaker opened {openings} times");
    assert_eq!(admitted(&server, "before", 30), 10);
}

#[test]
fn its_scripts_forgotten() {
    survive("SCRIPT FLUSH", Duration::ZERO, true, |redis| drop(redis.command(&["SCRIPT", "FLUSH"])), |_| {});
}

#[test]
fn demoted_to_a_replica_and_promoted_again() {
    let demote = |redis: &mut RedisServer| drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"]));
    survive("demotion", Duration::from_secs(1), true, demote, |redis| drop(redis.command(&["REPLICAOF", "NO", "ONE"])));
}

#[test]
fn full() {
    let redis = RedisServer::start();
    let server = start(&["--redis-url", &redis.url()]);
    assert_eq!(admitted(&server, "before", 10), 10);
    let traffic = Traffic::on(&server);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    thread::sleep(Duration::from_secs(1));
    assert!(server.metric("ratelimit_store_failures{store=\"redis\",reason=\"reply\"}") > 20, "each write is refused");
    assert_eq!(server.metric("ratelimit_store_breaker_openings{store=\"redis\"}"), 0, "Redis is there, and answers");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_until_redis_answers(&server, "OOM");
    traffic.end("OOM");
    assert_eq!(admitted(&server, "before", 30), 10);
}

#[test]
fn its_connections_killed_at_random() {
    let redis = RedisServer::start();
    let server = start(&["--redis-url", &redis.url()]);
    let traffic = Traffic::on(&server);
    for pause in [7, 31, 3, 60, 19, 45, 11, 80, 5, 27] {
        redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        thread::sleep(Duration::from_millis(pause));
    }
    wait_until_redis_answers(&server, "CLIENT KILL");
    let seen = traffic.end("CLIENT KILL");
    assert!(by_policy(&server) <= seen.calls as u64 / 2, "one call, or few, for each connection killed");
    assert_eq!(admitted(&server, "after", 30), 20);
}

#[test]
fn ten_rounds_of_every_trouble_leave_no_threads_no_files_and_no_memory_behind() {
    let mut redis = RedisServer::start();
    let proxy = Proxy::before(redis.url());
    // A short one, so that ten rounds are.
    let server = Ratelimitd::start(&["--config", &rules_file(RULES), "--redis-timeout", "20ms", "--redis-url", &proxy.url()]);
    let openings = || server.metric("ratelimit_store_breaker_openings{store=\"redis\"}");
    type Deed = fn(&mut RedisServer, &Proxy);
    let troubles: [(&str, Deed, Deed); 6] = [
        ("killed", |redis, _| redis.kill(), |redis, _| redis.restart()),
        ("stopped", |redis, _| redis.signal("STOP"), |redis, _| redis.signal("CONT")),
        (
            "paused",
            |redis, _| drop(redis.command(&["CLIENT", "PAUSE", "60000", "WRITE"])),
            |redis, _| drop(redis.command(&["CLIENT", "UNPAUSE"])),
        ),
        (
            "demoted",
            |redis, _| drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"])),
            |redis, _| drop(redis.command(&["REPLICAOF", "NO", "ONE"])),
        ),
        ("slow", |_, proxy| proxy.delay(Duration::from_millis(30)), |_, proxy| proxy.delay(Duration::ZERO)),
        ("silent", |_, proxy| proxy.silence(true), |_, proxy| proxy.silence(false)),
    ];
    let mut be_in_trouble = || {
        for (what, begin, end) in troubles {
            let (before, deadline) = (openings(), Instant::now() + BACK_MAX);
            begin(&mut redis, &proxy);
            while openings() == before {
                assert!(Instant::now() < deadline, "{what}: the breaker does not open");
                thread::sleep(Duration::from_millis(5));
            }
            end(&mut redis, &proxy);
            wait_until_redis_answers(&server, what);
        }
        // Such that Redis is there, and asked again at once.
        redis.command(&["SCRIPT", "FLUSH"]);
        redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        thread::sleep(Duration::from_millis(100));
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
        proxy.cut();
        wait_until_redis_answers(&server, "full");
    };
    let traffic = Traffic::on(&server);
    // The first one has the memory for it all taken.
    be_in_trouble();
    let held = Held::by(&server);
    for _ in 0..10 {
        be_in_trouble();
    }
    traffic.end("ten rounds");
    held.check(&server);
}

#[test]
fn away_when_the_server_starts() {
    let mut redis = RedisServer::start();
    redis.kill();
    let server = start(&["--redis-url", &redis.url()]);
    let traffic = Traffic::on(&server);
    assert!(by_policy(&server) > 0);
    redis.restart();
    wait_until_redis_answers(&server, "a late Redis");
    traffic.end("a late Redis");
    assert_eq!(admitted(&server, "after", 30), 20);
}

#[test]
fn under_the_policy_error_only_calls_during_the_outage_fail_and_at_once() {
    let redis = RedisServer::start();
    let server = start(&["--redis-url", &redis.url(), "--on-store-failure", "error"]);
    let client = Client::connect(server.grpc());
    let ask = || client.try_ask(request("d", vec![descriptor(&[("steady", "x")])])).map_err(|status| status.code());
    assert!(ask().is_ok());
    redis.signal("STOP");
    let started = Instant::now();
    let codes: Vec<_> = (0..50).map(|_| ask().unwrap_err()).collect();
    assert!(codes.iter().all(|code| *code == tonic::Code::Unavailable), "{codes:?}");
    assert!(started.elapsed() < Duration::from_secs(2), "three deadlines at most, and then none: {:?}", started.elapsed());
    redis.signal("CONT");
    let deadline = Instant::now() + BACK_MAX;
    while ask().is_err() {
        assert!(Instant::now() < deadline, "Redis is not used again");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_sentinel_failover_moves_the_server_to_the_new_primary() {
    let mut watched = Sentinels::start();
    let auth = ["--redis-auth", REDIS_PASSWORD, "--redis-sentinel-auth", SENTINEL_PASSWORD];
    // Those that are asked first accept, and never answer.
    let silent: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let silent: String = silent.iter().map(|silent| format!(",{}", silent.local_addr().unwrap())).collect();
    let url = watched.url().replacen(',', &(silent + ","), 1) + "/2";
    let server = start(&[&["--redis-type", "sentinel", "--redis-url", &url], &auth[..]].concat());
    wait_until_asked(&server, "asked");
    assert_eq!(admitted(&server, "before", 10), 10);
    // As far as the replica has it, it is remembered.
    assert_eq!(watched.primary.command(&["WAIT", "1", "5000"]), redis::Value::Int(1));
    let keys: String = redis::from_redis_value(watched.primary.command(&["INFO", "keyspace"])).unwrap();
    assert!(keys.contains("db2:") && !keys.contains("db0:"), "in the database that was named: {keys}");
    let traffic = Traffic::on(&server);
    let before = by_policy(&server);
    watched.primary.kill();
    let deadline = Instant::now() + Duration::from_secs(20);
    while watched.elected() != Some(watched.replica.port()) {
        assert!(Instant::now() < deadline, "the Sentinels promote nobody");
        thread::sleep(Duration::from_millis(20));
    }
    wait_until_redis_answers(&server, "failover");
    traffic.end("failover");
    assert!(by_policy(&server) > before);
    assert_eq!(admitted(&server, "before", 30), 10, "the new primary knows what the old one counted");
    let log = format!("{:?}", server.log());
    assert!(!log.contains(REDIS_PASSWORD) && !log.contains(SENTINEL_PASSWORD), "{log}");
}

#[test]
fn health_hangs_on_redis_only_where_that_is_asked_for() {
    let redis = RedisServer::start();
    let (without, with) =
        (start(&["--redis-url", &redis.url()]), start(&["--redis-url", &redis.url(), "--redis-health-check-active-connection"]));
    let wait_for = |status: u16| {
        let deadline = Instant::now() + BACK_MAX;
        while http::get(with.http(), "/healthcheck", &[]).status != status {
            assert!(Instant::now() < deadline, "health does not become {status}");
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(http::get(without.http(), "/healthcheck", &[]).status, 200);
    };
    wait_for(200);
    redis.signal("STOP");
    wait_for(500);
    redis.signal("CONT");
    wait_for(200);
    assert_eq!(redis.command(&["DBSIZE"]), redis::Value::Int(0), "to look leaves nothing behind");
}

#[test]
fn a_key_prefix_stands_before_each_key_and_a_unix_socket_will_do() {
    let socket = scratch("socket").join("redis.sock");
    let redis = RedisServer::start_with(&["--unixsocket", socket.to_str().unwrap()]);
    let server = start(&["--redis-url", socket.to_str().unwrap(), "--cache-key-prefix", "mine:"]);
    assert_eq!(admitted(&server, "x", 25), 20);
    let keys: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", "*"])).unwrap();
    assert_eq!(keys, ["mine:1{d|x}log|3600000000|few"]);
    let told = http::get(server.admin(), "/explain?domain=d&few=x", &[]).body;
    assert!(told.contains("mine:1{d|x}log|3600000000|few"), "{told}");
}
