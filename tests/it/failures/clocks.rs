//! Servers whose wall clocks are wrong, or jump while they run: Redis's time is the only one that counts. The clocks are bent
//! by libfaketime, which leaves the monotonic one alone.

use super::*;
use crate::support::ratelimitd::{faketime, scratch};
use crate::support::redis::RedisServer;

/// A server whose wall clock goes by that file.
fn start_at(redis: &RedisServer, clock: &str) -> Ratelimitd {
    let library = faketime();
    let environment =
        [("LD_PRELOAD", library.as_str()), ("FAKETIME_TIMESTAMP_FILE", clock), ("FAKETIME_NO_CACHE", "1"), ("DONT_FAKE_MONOTONIC", "1")];
    Ratelimitd::start_with(&["--config", &rules_file(RULES), "--redis-url", &redis.url(), "--redis-timeout", DEADLINE], &environment)
}

/// The year, month, day and hour of a server's first log line.
fn hour(server: &Ratelimitd) -> String {
    server.log()[0]["timestamp"].as_str().unwrap()[..13].to_owned()
}

#[test]
fn two_servers_an_hour_apart_share_exact_limits_and_a_jump_changes_nothing() {
    let (redis, folder) = (RedisServer::start(), scratch("clocks"));
    let file = |name: &str, offset: &str| {
        let path = folder.join(name);
        std::fs::write(&path, offset).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (slow, fast) = (file("slow", "-1h"), file("fast", "+0"));
    let (one, other) = (start_at(&redis, &slow), start_at(&redis, &fast));
    assert_ne!(hour(&one), hour(&other), "the clocks are not bent");
    assert_eq!((admitted(&one, "x", 15), admitted(&other, "x", 15)), (15, 5));
    assert_eq!((admitted(&one, "x", 5), admitted(&other, "x", 5)), (0, 0));
    // Two days on, and back again: nothing leaves its window of an hour, nothing stays longer.
    assert_eq!(admitted(&one, "y", 10), 10);
    for jump in ["+2d", "-2d", "+0"] {
        std::fs::write(&slow, jump).unwrap();
        assert_eq!(admitted(&one, "x", 5), 0, "{jump}");
    }
    assert_eq!((admitted(&one, "y", 15), admitted(&other, "y", 5)), (10, 0));
    assert_eq!((by_policy(&one), by_policy(&other)), (0, 0));
}
