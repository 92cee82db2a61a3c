//! `is_allowed` through the library: its errors, and that one counter is shared by whoever asks the same.

use std::sync::Arc;

use distributed_rate_limiter::hit::FailurePolicy;
use distributed_rate_limiter::limiter::{Answer, Fallback, Question, QuestionError, RateLimiter};
use distributed_rate_limiter::metrics::{Metrics, RedisSeries, StoreSeries};
use distributed_rate_limiter::rules::{LiveRules, Rules};
use distributed_rate_limiter::store::{Clock, Memory, Redis, RedisOptions, SteppedClock, Store};
use serde_json::json;

use crate::support::http;
use crate::support::ratelimitd::Ratelimitd;
use crate::support::redis::RedisServer;

fn limiter(store: Store) -> RateLimiter {
    let memory = Arc::new(Memory::new(1_000, Clock::System, StoreSeries::detached()));
    let rules = Arc::new(LiveRules::new(Rules::new(vec![]).unwrap()));
    RateLimiter::new(rules, store, Fallback { policy: FailurePolicy::Error, share: 1.0, memory }, Arc::new(Metrics::new().unwrap()))
}

#[tokio::test]
async fn true_while_the_client_has_done_the_action_fewer_than_limit_times_in_the_window() {
    let clock = SteppedClock::starting_at(1_800_000_000_000_000);
    let limiter = limiter(Store::Memory(Arc::new(Memory::new(1_000, Clock::Stepped(clock.clone()), StoreSeries::detached()))));
    for expected in [true, true, true, false, false] {
        assert_eq!(limiter.is_allowed("alice", "login", 3, 60).await, Ok(expected));
        clock.step(1);
    }
    assert_eq!(limiter.is_allowed("bob", "login", 3, 60).await, Ok(true));
    assert_eq!(limiter.is_allowed("alice", "logout", 3, 60).await, Ok(true));
    // The first hit was at 0, and it is 5 us now: it leaves after 60 s, not a microsecond before.
    clock.step(60_000_000 - 6);
    assert_eq!(limiter.is_allowed("alice", "login", 3, 60).await, Ok(false));
    clock.step(1);
    assert_eq!(limiter.is_allowed("alice", "login", 3, 60).await, Ok(true));
    assert_eq!(limiter.is_allowed("alice", "login", 3, 60).await, Ok(false));
}

#[tokio::test]
async fn a_60_second_limit_says_60_after_its_first_hit_also_where_hits_share_ticks() {
    // At the first microsecond of a tick, so that the hit is recorded almost a whole tick ahead.
    let clock = SteppedClock::starting_at(60_000_000_u64.div_ceil(127) * 3_000_000_000);
    let limiter = limiter(Store::Memory(Arc::new(Memory::new(1_000, Clock::Stepped(clock), StoreSeries::detached()))));
    let question = Question { domain: "", client_id: "alice", action: "a", limit: 1_000, time_window: 60, cost: 1 };
    assert_eq!(limiter.answer(question).await.unwrap().reset_after, std::time::Duration::from_secs(60));
}

#[tokio::test]
async fn bad_input_is_a_typed_error() {
    let limiter = limiter(Store::Memory(Arc::new(Memory::new(1_000, Clock::System, StoreSeries::detached()))));
    assert_eq!(limiter.is_allowed("", "a", 1, 1).await, Err(QuestionError::EmptyClientId));
    assert_eq!(limiter.is_allowed("c", "", 1, 1).await, Err(QuestionError::EmptyAction));
    assert_eq!(limiter.is_allowed("c", "a", 0, 1).await, Err(QuestionError::ZeroLimit));
    assert_eq!(limiter.is_allowed("c", "a", 1, 0).await, Err(QuestionError::ZeroTimeWindow));
    assert_eq!(limiter.is_allowed("c", "a", u64::MAX, 1).await, Err(QuestionError::LargeLimit(u64::MAX)));
    assert_eq!(limiter.is_allowed("c", "a", 1, u64::MAX).await, Err(QuestionError::LongTimeWindow(u64::MAX)));
    assert_eq!(limiter.is_allowed("c", "a", 1_000_000_000_000_000, 315_360_000).await, Ok(true));
}

#[tokio::test]
async fn no_answer_from_redis_is_a_store_error_under_the_policy_error() {
    let options = RedisOptions::new("127.0.0.1:1", std::time::Duration::from_secs(5));
    let limiter = limiter(Store::Redis(Redis::new(&options, RedisSeries::detached()).unwrap()));
    let error = limiter.is_allowed("c", "a", 1, 1).await.unwrap_err();
    assert!(matches!(&error, QuestionError::Store(_)) && error.to_string().contains("refused"), "{error}");
}

#[test]
fn the_library_http_and_two_processes_on_one_redis_share_one_counter() {
    let redis = RedisServer::start();
    let server = || Ratelimitd::start(&["--redis-url", &redis.url(), "--redis-timeout", "5s"]);
    let (one, other) = (server(), server());
    let by_http = |server: &Ratelimitd| {
        let question = json!({"client_id": "al|ce {}%", "action": "log=in", "limit": 4, "time_window": 3600});
        http::post(server.http(), "/v1/is_allowed", question.to_string().as_bytes()).json()["remaining"].as_u64()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = RedisOptions::new(redis.url(), std::time::Duration::from_secs(5));
    let limiter = limiter(Store::Redis(Redis::new(&options, RedisSeries::detached()).unwrap()));
    let by_library = || {
        let question = Question { domain: "", client_id: "al|ce {}%", action: "log=in", limit: 4, time_window: 3600, cost: 1 };
        runtime.block_on(limiter.answer(question)).unwrap()
    };
    assert_eq!(by_http(&one), Some(3));
    assert_eq!(by_library().remaining, 2);
    assert_eq!(by_http(&other), Some(1));
    assert!(runtime.block_on(limiter.is_allowed("al|ce {}%", "log=in", 4, 3600)).unwrap());
    assert!(matches!(by_library(), Answer { allowed: false, remaining: 0, .. }));
    assert_eq!((by_http(&one), by_http(&other)), (Some(0), Some(0)));
}
