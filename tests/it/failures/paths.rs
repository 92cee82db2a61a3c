//! Trouble on the way to Redis: slow, cut and silent networks, passwords and certificates.

use std::net::TcpListener;

use super::*;
use crate::support::certificates::Certificates;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;
use crate::support::sentinel::Sentinel;

/// Traffic through a proxy that is in trouble for a while.
fn survive(what: &str, outage: impl FnOnce(&Proxy), mend: impl FnOnce(&Proxy)) {
    let redis = RedisServer::start();
    let proxy = Proxy::before(redis.url());
    let server = start(&["--redis-url", &proxy.url()]);
    assert_eq!(admitted(&server, "before", 10), 10, "{what}");
    let traffic = Traffic::on(&server);
    outage(&proxy);
    thread::sleep(Duration::from_secs(1));
    mend(&proxy);
    wait_until_redis_answers(&server, what);
    reconcile(&server, &traffic.end(what), what);
    assert!(by_policy(&server) > 0, "{what}: the outage was none");
    assert_eq!(admitted(&server, "before", 30), 10, "{what}");
}

#[test]
fn slower_than_the_deadline() {
    survive("delay", |proxy| proxy.delay(Duration::from_millis(700)), |proxy| proxy.delay(Duration::ZERO));
}

#[test]
fn a_path_that_always_takes_longer_than_the_deadline_is_given_up_once() {
    let redis = RedisServer::start();
    let proxy = Proxy::before(redis.url());
    let server = Ratelimitd::start(&["--config", &rules_file(RULES), "--redis-timeout", "100ms", "--redis-url", &proxy.url()]);
    assert_eq!(admitted(&server, "before", 10), 10);
    let traffic = Traffic::on(&server);
    // There and back in more than a call may take, though in less than it takes to connect.
    proxy.delay(Duration::from_millis(60));
    thread::sleep(Duration::from_secs(5));
    let openings = server.metric("ratelimit_store_breaker_openings{store=\"redis\"}");
    let waited = server.metric("ratelimit_store_failures{store=\"redis\",reason=\"deadline\"}");
    proxy.delay(Duration::ZERO);
    wait_until_redis_answers(&server, "a long way");
    traffic.end("a long way");
    // One by accident, on a busy machine.
    assert!((1..=2).contains(&openings), "the breaker opened {openings} times");
    assert!(waited <= 10, "{waited} calls waited");
    assert_eq!(admitted(&server, "before", 30), 10);
}

#[test]
fn half_open() {
    // What was swallowed never comes: the connections are of no use any more.
    survive("silence", |proxy| proxy.silence(true), |proxy| proxy.silence(false));
}

#[test]
fn cut() {
    survive("cut", Proxy::cut, |_| {});
}

#[test]
fn a_port_that_accepts_and_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = start(&["--redis-url", &listener.local_addr().unwrap().to_string()]);
    let traffic = Traffic::on(&server);
    thread::sleep(Duration::from_secs(2));
    let seen = traffic.end("no answer");
    assert!(by_policy(&server) + 1 >= seen.calls as u64, "all by policy");
    // Only while the first connection is tried does anybody wait; one that takes longer than a call may, nobody waits for.
    let waited = server.metric("ratelimit_store_failures{store=\"redis\",reason=\"deadline\"}");
    assert!(waited <= 10, "{waited} calls waited");
}

#[test]
fn a_wrong_password_is_told_and_the_policy_answers() {
    let redis = RedisServer::start();
    redis.command(&["CONFIG", "SET", "requirepass", "right-secret"]);
    let server = start(&["--redis-url", &redis.url(), "--redis-auth", "wrong-secret"]);
    let traffic = Traffic::on(&server);
    let told = server.wait_for_log("Redis gives no answer");
    let rules = http::get(server.admin(), "/rlconfig", &[]).body;
    assert!(rules.contains("steady") && !rules.contains("-secret"), "{rules}");
    traffic.end("wrong password");
    assert!(by_policy(&server) > 0);
    assert!(told["message"].as_str().unwrap().to_lowercase().contains("password"), "{told}");
    assert!(!format!("{:?}", server.log()).contains("-secret"), "no password in the log");
    let server = start(&["--redis-url", &redis.url(), "--redis-auth", "right-secret"]);
    assert_eq!((admitted(&server, "x", 25), by_policy(&server)), (20, 0));
    redis.command(&["ACL", "SETUSER", "limiter", "on", ">its-secret", "~*", "+@all"]);
    let server = start(&["--redis-url", &redis.url(), "--redis-auth", "limiter:its-secret"]);
    assert_eq!((admitted(&server, "y", 25), by_policy(&server)), (20, 0));
    // The default user's password, whoever the address names.
    let address = format!("redis://limiter:its-secret@{}/3", redis.url());
    let server = start(&["--redis-url", &address, "--redis-auth", ":right-secret"]);
    assert_eq!((admitted(&server, "z", 25), by_policy(&server)), (20, 0));
    let keys: String = redis::from_redis_value(redis.command(&["INFO", "keyspace"])).unwrap();
    assert!(keys.contains("db0:keys=2,") && keys.contains("db3:keys=1,"), "{keys}");
}

#[test]
fn over_tls_the_certificates_of_both_sides_are_checked() {
    let certificates = Certificates::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (ca, other) = (certificates.path("ca.pem"), certificates.path("other-ca.pem"));
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let _redis = RedisServer::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "yes",
    ]);
    let (client, client_key) = (certificates.path("client.pem"), certificates.path("client.key"));
    let mine = ["--redis-tls-client-cert", &client, "--redis-tls-client-key", &client_key];
    let answered = |host: &str, args: &[&str]| {
        let server = start(&[&["--redis-url", &format!("{host}:{port}"), "--redis-tls"], args].concat());
        let admitted = admitted(&server, host, 3);
        (admitted, by_policy(&server))
    };
    assert_eq!(answered("localhost", &[&["--redis-tls-cacert", &ca], &mine[..]].concat()), (3, 0));
    assert_eq!(answered("localhost", &[&["--redis-tls-cacert", &other], &mine[..]].concat()), (3, 3), "signed by somebody else");
    let server = start(&[&["--redis-url", &format!("localhost:{port}"), "--redis-tls", "--redis-tls-cacert", &other], &mine[..]].concat());
    let traffic = Traffic::on(&server);
    let told = server.wait_for_log("Redis gives no answer");
    let seen = traffic.end("wrong CA");
    assert_eq!(by_policy(&server), seen.calls as u64);
    assert!(told["message"].as_str().unwrap().contains("certificate"), "{told}");
    assert_eq!(answered("localhost", &["--redis-tls-cacert", &ca]), (3, 3), "we show no certificate");
    assert_eq!(answered("127.0.0.1", &[&["--redis-tls-cacert", &ca], &mine[..]].concat()), (3, 3), "it is for another name");
    let skip = ["--redis-tls-skip-hostname-verification"];
    assert_eq!(answered("127.0.0.1", &[&["--redis-tls-cacert", &ca], &mine[..], &skip].concat()), (3, 0), "any name will do");
    // A Sentinel over TLS, and by it the primary.
    let sentinel = Sentinel::start(|own| {
        format!(
            "port 0\ntls-port {own}\ntls-replication yes\ntls-ca-cert-file {ca}\ntls-cert-file {certificate}\ntls-key-file {key}\n\
             sentinel monitor watched 127.0.0.1 {port} 1\n"
        )
    });
    let url = format!("watched,rediss://{}", sentinel.url());
    let by_sentinel = ["--redis-type", "sentinel", "--redis-url", &url];
    let start_with = |ca: &str| start(&[&by_sentinel, &["--redis-tls-cacert", ca][..], &mine, &skip].concat());
    let server = start_with(&ca);
    wait_until_asked(&server, "asked");
    assert_eq!(admitted(&server, "by Sentinel", 25), 20);
    let server = start_with(&other);
    assert_eq!((admitted(&server, "x", 3), by_policy(&server)), (3, 3), "signed by somebody else");
}
