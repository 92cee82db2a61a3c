//! A second Redis for short windows: each counter is in its own, and where only one of them answers, the policy answers for the
//! hits of the other alone.

use super::*;
use crate::support::redis::RedisServer;

/// One rule under two limits, one for each Redis; and rules with a policy each.
const RULES: &str = "
domain: d
descriptors:
- key: few
  rate_limit: {limit: 20, window: 1h}
- key: both
  rate_limit: [{limit: 5, window: 1s}, {limit: 7, window: 1h}]
- key: denying
  on_store_failure: deny
  rate_limit: {limit: 1000, window: 1s}
- key: allowing
  on_store_failure: allow
  rate_limit: {limit: 1000, window: 1s}
- key: failing
  on_store_failure: error
  rate_limit: {limit: 1000, window: 1s}
- key: local
  rate_limit: {limit: 3, window: 1s}
";

fn start() -> (RedisServer, RedisServer, Ratelimitd) {
    let (all, short) = (RedisServer::start(), RedisServer::start());
    let server = start_by(RULES, &["--redis-url", &all.url(), "--redis-persecond", "--redis-persecond-url", &short.url()]);
    (all, short, server)
}

#[test]
fn health_hangs_on_both_where_it_hangs_on_redis() {
    let (all, short) = (RedisServer::start(), RedisServer::start());
    let urls = ["--redis-url", &all.url(), "--redis-persecond", "--redis-persecond-url", &short.url()];
    let server = start_by(RULES, &[&urls[..], &["--redis-health-check-active-connection"]].concat());
    let wait_for = |status: u16, what: &str| {
        let deadline = Instant::now() + BACK_MAX;
        while http::get(server.http(), "/healthcheck", &[]).status != status {
            assert!(Instant::now() < deadline, "{what}: health does not become {status}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for(200, "at first");
    for (redis, what) in [(&all, "the first"), (&short, "the second")] {
        redis.signal("STOP");
        wait_for(500, what);
        redis.signal("CONT");
        wait_for(200, what);
    }
}

fn keys(redis: &RedisServer) -> Vec<String> {
    let mut keys: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", "*"])).unwrap();
    keys.sort();
    keys
}

#[test]
fn windows_of_a_second_or_less_are_counted_in_the_second_redis_and_all_limits_hold() {
    let (all, short, server) = start();
    let connection = Client::connect(server.grpc());
    let ask = || connection.admits(request("d", vec![descriptor(&[("both", "x")])]));
    let started = Instant::now();
    let at_once = (0..12).filter(|_| ask()).count();
    if started.elapsed() < Duration::from_millis(900) {
        assert_eq!(at_once, 5);
        assert_eq!(keys(&short), ["1{d|x}log|1000000|both"]);
    }
    // What the short window denied is not counted in the long one.
    thread::sleep(Duration::from_millis(1_100));
    assert_eq!(at_once + (0..12).filter(|_| ask()).count(), 7);
    assert_eq!(keys(&all), ["1{d|x}log|3600000000|both"]);
}

#[test]
fn where_one_redis_is_away_the_policy_answers_for_its_hits_alone_and_what_it_denies_is_counted_nowhere() {
    let (_all, mut short, server) = start();
    short.kill();
    let connection = Client::connect(server.grpc());
    let ask = |client: &str, other: &str| {
        let answer = connection.try_ask(request("d", vec![descriptor(&[("few", client)]), descriptor(&[(other, client)])]));
        answer.map(|answer| answer.overall_code == Code::Ok as i32).map_err(|status| status.code())
    };
    for _ in 0..10 {
        assert_eq!(ask("a", "denying"), Ok(false));
        assert_eq!(ask("b", "allowing"), Ok(true));
        assert_eq!(ask("c", "failing"), Err(tonic::Code::Unavailable));
    }
    let local = (0..10).filter(|_| ask("d", "local") == Ok(true)).count();
    assert!((3..10).contains(&local), "3 in each second: {local}");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(admitted(&server, "a", 30), 20, "what was denied has been taken back");
    assert_eq!(admitted(&server, "b", 30), 10, "what passed is counted");
    assert_eq!(admitted(&server, "d", 30), 20 - local);
    assert_eq!(server.metric("ratelimit_policy_answers{policy=\"deny\"}"), 10);
    assert_eq!(server.metric("ratelimit_policy_answers{policy=\"allow\"}"), 10);
    assert!(server.metric("ratelimit_store_hits_taken_back{store=\"redis\"}") >= 10);
    short.restart();
    let deadline = Instant::now() + BACK_MAX;
    while ask("e", "denying") != Ok(true) {
        assert!(Instant::now() < deadline, "the second Redis is back and not asked");
        thread::sleep(Duration::from_millis(20));
    }
}
