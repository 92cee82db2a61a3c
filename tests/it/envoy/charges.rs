//! What Envoy sends when a stream ends: the real cost of what it let pass after a look (token budgets), and what a
//! reservation did not use. Nobody waits for the answer to such a call, so these tests wait until it was counted.

use std::thread;
use std::time::{Duration, Instant};

use super::{calls, patient};
use crate::support::envoy::{Envoy, upstream, with_rate_limits};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, rules_file};

const USER: &str = "actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]";

/// Envoy looks (0 hits) at a user's budget on the request, and charges the tokens that the answer tells when it ends.
fn with_budget(config: String) -> String {
    let look = format!("{{{USER}, hits_addend: {{number: 0}}}}");
    let charge = format!("{{{USER}, apply_on_stream_done: true, hits_addend: {{format: \"%RESP(x-tokens)%\"}}}}");
    with_rate_limits(&patient(config), &[&look, &charge])
}

/// A server with the reference server's YAML, and an Envoy in front.
struct Budget {
    ratelimitd: Ratelimitd,
    envoy: Envoy,
}

const DEADLINE: Duration = Duration::from_secs(20);

impl Budget {
    fn of(unit: &str) -> Self {
        let rules = format!("domain: api\ndescriptors:\n- key: user\n  rate_limit:\n    unit: {unit}\n    requests_per_unit: 100\n");
        let ratelimitd = Ratelimitd::start(&["--config", &rules_file(&rules)]);
        let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), with_budget);
        Self { ratelimitd, envoy }
    }

    /// Asks for an answer of so many tokens, and waits until they are charged where it passed.
    fn spend(&self, user: &str, tokens: u64) -> http::Response {
        let before = calls(self.ratelimitd.metrics());
        let answer = http::get(self.envoy.listener, "/", &[("x-user", user), ("x-reply", &format!("x-tokens={tokens}"))]);
        if answer.status == 200 {
            wait_for_calls(&self.ratelimitd, before + 2);
        }
        answer
    }
}

/// Calls are counted when they are answered.
fn wait_for_calls(ratelimitd: &Ratelimitd, count: u64) {
    let deadline = Instant::now() + DEADLINE;
    while calls(ratelimitd.metrics()) < count {
        assert!(Instant::now() < deadline, "there is no call when the stream is done");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_overdraws_its_token_budget_once_and_is_then_denied() {
    let budget = Budget::of("minute");
    let first = budget.spend("ann", 60);
    assert_eq!((first.status, first.header("x-ratelimit-limit")), (200, Some("100, 100;w=60")));
    assert_eq!(first.header("x-ratelimit-remaining"), Some("100"), "a look takes nothing");
    let second = budget.spend("ann", 250);
    assert_eq!((second.status, second.header("x-ratelimit-remaining")), (200, Some("40")), "60 of 100 were charged");
    for _ in 0..3 {
        let denied = budget.spend("ann", 1);
        assert_eq!((denied.status, denied.header("x-ratelimit-remaining")), (429, Some("0")));
        let wait: u64 = denied.header("retry-after").unwrap().parse().unwrap();
        // A charge above the limit leaves at most a tick of the log, here half a second, after its window.
        assert!((1..=61).contains(&wait), "{wait}");
    }
    assert_eq!(budget.spend("bob", 1).status, 200, "another user has a budget of its own");
}

#[test]
fn a_client_that_overdrew_passes_again_when_its_budget_has_room() {
    let budget = Budget::of("second");
    let deadline = Instant::now() + DEADLINE;
    // On a slow machine the second may be over before the next request is here; then the client overdraws once more.
    let mut asked = Instant::now();
    let mut overdrawn = asked;
    while budget.spend("ann", 250).status == 200 {
        assert!(Instant::now() < deadline, "the client is never denied");
        overdrawn = asked;
        asked = Instant::now();
    }
    // No tokens in the answer, no charge.
    while http::get(budget.envoy.listener, "/", &[("x-user", "ann")]).status != 200 {
        assert!(Instant::now() < deadline, "the client never passes again");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(overdrawn.elapsed() >= Duration::from_secs(1), "no charge is forgotten before its window is over");
}

#[test]
fn what_a_reservation_did_not_use_is_given_back_when_the_stream_is_done() {
    let rules = "domain: api\ndescriptors:\n- key: user\n  count_denied: false\n  rate_limit: {unit: day, requests_per_unit: 10}\n";
    let ratelimitd = Ratelimitd::start(&["--config", &rules_file(rules)]);
    let reserve = format!("{{{USER}, hits_addend: {{format: \"%REQ(x-reserve)%\"}}}}");
    let refund = format!("{{{USER}, apply_on_stream_done: true, hits_addend: {{format: \"%RESP(x-unused)%\", is_negative_hits: true}}}}");
    let edit = |config| with_rate_limits(&patient(config), &[&reserve, &refund]);
    let envoy = Envoy::start(&[ratelimitd.grpc()], upstream(), edit);
    let reserve = |hits: &str, reply: &str| {
        let answer = http::get(envoy.listener, "/", &[("x-user", "ann"), ("x-reserve", hits), ("x-reply", reply)]);
        (answer.status, answer.header("x-ratelimit-remaining").unwrap().to_owned())
    };
    assert_eq!(reserve("10", "x-unused=7"), (200, "0".to_owned()));
    wait_for_calls(&ratelimitd, 2);
    assert_eq!(reserve("8", "x-other=1").0, 429, "7 were given back, no more");
    assert_eq!(reserve("7", "x-other=1"), (200, "0".to_owned()));
    assert_eq!(reserve("1", "x-other=1").0, 429);
    assert_eq!(calls(ratelimitd.metrics()), 5, "an answer that tells nothing unused gives nothing back");
}
