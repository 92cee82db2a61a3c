//! Leases with real servers on a real Redis: what the clients saw never exceeds the limit, whatever becomes of the servers, and
//! most decisions ask nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, faketime, rules_file};
use crate::support::redis::RedisServer;

const LIMIT: usize = 600;
const WINDOW: Duration = Duration::from_secs(4);

/// A tick is 20 ms.
const RULES: &str = "
domain: d
descriptors:
- key: log
  rate_limit: {limit: 600, window: 4s, lease: 10%}
- key: window
  rate_limit: {limit: 600, window: 4s, algorithm: fixed_window, lease: 10%}
- key: slow
  rate_limit: {limit: 600, window: 1h, lease: 10%}
- key: minute
  rate_limit: {limit: 600, window: 1m, lease: 10%}
- key: pair
  rate_limit: [{limit: 600, window: 4s, lease: 10%}, {limit: 5, window: 1h}]
";

/// When a hit that passed was asked for and answered; it was decided in between.
#[derive(Clone, Copy)]
struct Passed {
    asked: Instant,
    answered: Instant,
}

fn start(redis: &RedisServer, environment: &[(&str, &str)]) -> Ratelimitd {
    start_with(redis, &rules_file(RULES), environment)
}

fn start_with(redis: &RedisServer, rules: &str, environment: &[(&str, &str)]) -> Ratelimitd {
    // Long, so that on a busy machine no answer is a policy's.
    Ratelimitd::start_with(
        &["--config", rules, "--redis-url", &redis.url(), "--redis-timeout", "5s", "--serving-threads", "1"],
        environment,
    )
}

fn metric(server: &Ratelimitd, series: &str) -> u64 {
    server.metric(&format!("{series}{{store=\"redis\"}}"))
}

/// Asks a server without end, for one client, and remembers what passed. A server that dies or is stopped is asked on.
fn ask_on(server: &Ratelimitd, key: &'static str, over: &Arc<AtomicBool>) -> thread::JoinHandle<Vec<Passed>> {
    let (address, over) = (server.grpc(), Arc::clone(over));
    thread::spawn(move || {
        let (client, mut passed) = (Client::connect(address), Vec::new());
        while !over.load(Ordering::SeqCst) {
            let asked = Instant::now();
            let Ok(answer) = client.try_ask(request("d", vec![descriptor(&[(key, "one")])])) else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            if answer.overall_code == 1 {
                passed.push(Passed { asked, answered: Instant::now() });
            }
            thread::sleep(Duration::from_micros(500));
        }
        passed
    })
}

/// What Redis counts of the client `x`.
fn used(server: &Ratelimitd, key: &str) -> usize {
    let told = http::get(server.admin(), &format!("/explain?domain=d&{key}=x"), &[]).body;
    let line = told.lines().find_map(|line| line.trim_start().strip_prefix("now")).unwrap_or_else(|| panic!("{told}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// The most hits that were surely decided within one window.
fn most_in_a_window(passed: &[Passed]) -> usize {
    let mut sorted = passed.to_vec();
    sorted.sort_by_key(|hit| hit.asked);
    let in_window = |first: &Passed, rest: &[Passed]| {
        let until = first.asked + WINDOW;
        rest.iter().take_while(|hit| hit.asked < until).filter(|hit| hit.answered < until).count()
    };
    sorted.iter().enumerate().map(|(at, first)| in_window(first, &sorted[at..])).max().unwrap_or(0)
}

#[test]
fn two_servers_with_leases_never_exceed_the_limit() {
    let redis = RedisServer::start();
    let servers = [start(&redis, &[]), start(&redis, &[])];
    let over = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4).map(|number| ask_on(&servers[number % 2], "log", &over)).collect();
    thread::sleep(WINDOW * 2 + WINDOW / 4);
    over.store(true, Ordering::SeqCst);
    let passed: Vec<_> = asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect();
    let most = most_in_a_window(&passed);
    assert!(most <= LIMIT, "{most} in a window");
    assert!(passed.len() > LIMIT * 3 / 2, "{} passed in two windows", passed.len());
    assert!(servers.iter().all(|server| metric(server, "ratelimit_store_lease_answers") > 0));
}

/// In a window whose ticks are longer than the test, so that no lease ends before it is spent, however busy the machine.
#[test]
fn a_server_with_a_lease_seldom_asks() {
    let redis = RedisServer::start();
    let server = start(&redis, &[]);
    let client = Client::connect(server.grpc());
    assert!((0..LIMIT / 2).all(|_| client.admits(request("d", vec![descriptor(&[("slow", "x")])]))));
    let asked = metric(&server, "ratelimit_store_calls") + metric(&server, "ratelimit_store_lease_fetches");
    assert!(asked * 5 < LIMIT as u64 / 2, "{asked} calls of Redis for {} decisions", LIMIT / 2);
}

#[test]
fn servers_that_stop_die_and_drift_never_let_too_much_through() {
    let redis = RedisServer::start();
    let library = faketime();
    // Clocks, the monotonic one too, that go a two-thousandth too fast and too slow.
    let drifting = |pace| [("LD_PRELOAD", library.as_str()), ("FAKETIME", pace), ("FAKETIME_NO_CACHE", "1")];
    let mut servers = [start(&redis, &drifting("+0 x1.0005")), start(&redis, &drifting("+0 x0.9995")), start(&redis, &[])];
    let over = Arc::new(AtomicBool::new(false));
    for key in ["log", "window"] {
        over.store(false, Ordering::SeqCst);
        let mut asking: Vec<_> = servers.iter().map(|server| ask_on(server, key, &over)).collect();
        thread::sleep(Duration::from_millis(1_500));
        // It wakes up with a lease that has ended long ago, and requests that have waited.
        servers[0].signal("STOP");
        thread::sleep(Duration::from_millis(500));
        servers[2].signal("KILL");
        servers[2] = start(&redis, &[]);
        asking.push(ask_on(&servers[2], key, &over));
        thread::sleep(WINDOW + Duration::from_millis(500));
        servers[0].signal("CONT");
        thread::sleep(WINDOW / 2);
        over.store(true, Ordering::SeqCst);
        let passed: Vec<_> = asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect();
        assert!(passed.len() > LIMIT, "{key}: {} passed", passed.len());
        if key == "log" {
            let most = most_in_a_window(&passed);
            assert!(most <= LIMIT, "{most} in a window");
        } else {
            // A fixed window may let its limit pass at the end of one and at the beginning of the next.
            assert!(most_in_a_window(&passed) <= 2 * LIMIT);
        }
    }
}

#[test]
fn what_is_not_spent_comes_back_when_a_server_stops() {
    let redis = RedisServer::start();
    let mut server = start(&redis, &[]);
    let other = start(&redis, &[]);
    let client = Client::connect(server.grpc());
    let used = || used(&other, "slow");
    let admitted = (0..40).filter(|_| client.admits(request("d", vec![descriptor(&[("slow", "x")])]))).count();
    assert_eq!(admitted, 40);
    assert!(used() > 40, "a lease is held");
    server.signal("TERM");
    assert!(server.wait_for_exit().success());
    assert_eq!(used(), 40);
}

#[test]
fn a_request_that_another_limit_denies_puts_back_what_it_took_from_a_lease() {
    let redis = RedisServer::start();
    let server = start(&redis, &[]);
    let client = Client::connect(server.grpc());
    // The second limit of the rule is 5: beyond, nothing of the first one is used up.
    let pair = || request("d", vec![descriptor(&[("pair", "x")])]);
    let admitted = (0..100).filter(|_| client.admits(pair())).count();
    assert_eq!(admitted, 5);
    let keys: Vec<String> = redis::from_redis_value(redis.command(&["KEYS", "*4000000*"])).unwrap();
    assert!(keys.len() <= 1, "{keys:?}");
    let told = http::get(server.admin(), "/explain?domain=d&pair=x", &[]).body;
    assert!(told.contains("lease     60 hits at most"), "{told}");
}

#[test]
fn a_lease_whose_rule_is_gone_ends_with_its_tick() {
    let (redis, rules) = (RedisServer::start(), rules_file(RULES));
    let (server, other) = (start_with(&redis, &rules, &[]), start(&redis, &[]));
    let client = Client::connect(server.grpc());
    assert!((0..40).all(|_| client.admits(request("d", vec![descriptor(&[("minute", "x")])]))));
    std::fs::write(&rules, RULES.replace("minute", "other")).unwrap();
    server.wait_for_logs("rules loaded", 2);
    let deadline = Instant::now() + Duration::from_secs(20);
    while used(&other, "minute") != 40 {
        assert!(Instant::now() < deadline, "{} are counted still", used(&other, "minute"));
        thread::sleep(Duration::from_millis(20));
    }
    let [granted, returned] = ["granted", "returned"].map(|what| metric(&server, &format!("ratelimit_store_lease_hits_{what}")));
    let asked = metric(&server, "ratelimit_store_calls");
    assert!(returned > 0 && granted - returned + asked >= 40, "{granted} granted, {returned} returned, {asked} asked");
}
