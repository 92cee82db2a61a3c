//! What clients see while Redis has a bad day, with real processes under steady traffic: no call fails, none waits for long,
//! answers are right for what Redis holds or are counted as given by policy, and Redis is used again soon after it is back.

mod clocks;
mod clusters;
mod outages;
mod paths;
mod two_redis;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use distributed_rate_limiter::grpc::pb::rate_limit_response::Code;

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::process::resident;
use crate::support::ratelimitd::{Ratelimitd, rules_file};

const RULES: &str = "
domain: d
descriptors:
- key: steady
  rate_limit: {limit: 1000000, window: 1h}
- key: few
  rate_limit: {limit: 20, window: 1h}
";

/// REDIS_TIMEOUT here: more than the 10 ms of a real server, so that on a small machine, which runs all other tests beside this
/// one, no call misses it but for the outage.
const DEADLINE: &str = "300ms";

/// All calls but a few take no longer: the deadline and 5 ms.
const MOST_CALLS_MAX: Duration = Duration::from_millis(300 + 5);

/// No call takes longer, whatever happens: the deadline, and for the machine's sake something more.
const CALL_MAX: Duration = Duration::from_millis(300 + 500);

/// Fewer calls are no steady traffic; and so long they may take, on a busy machine.
const CALLS_MIN: usize = 20;
const STEADY_MAX: Duration = Duration::from_secs(20);

/// Redis is used again within so long of being back (the server itself takes no more than 0.7 s; the rest as above).
const BACK_MAX: Duration = Duration::from_secs(4);

/// A server with these settings of its own.
fn start(args: &[&str]) -> Ratelimitd {
    start_by(RULES, args)
}

/// The same by other rules.
fn start_by(rules: &str, args: &[&str]) -> Ratelimitd {
    Ratelimitd::start(&[&["--config", &rules_file(rules), "--redis-timeout", DEADLINE], args].concat())
}

/// Asks without end, some 200 times a second, for clients of its own.
struct Traffic {
    over: Arc<AtomicBool>,
    asking: JoinHandle<Seen>,
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    calls: usize,
    errors: Vec<String>,
    slowest: Duration,
    /// Calls slower than most.
    slow: usize,
}

impl Traffic {
    /// Begins it, and waits until it is steady.
    fn on(server: &Ratelimitd) -> Self {
        let (over, address) = (Arc::new(AtomicBool::new(false)), server.grpc());
        let (ended, (steady, is_steady)) = (Arc::clone(&over), mpsc::sync_channel(1));
        let asking = thread::spawn(move || {
            let (client, mut seen) = (Client::connect(address), Seen::default());
            while !ended.load(Ordering::SeqCst) {
                let asked = Instant::now();
                let number = (seen.calls % 20).to_string();
                let answer = client.try_ask(request("d", vec![descriptor(&[("steady", &number)])]));
                let took = asked.elapsed();
                seen.calls += 1;
                if seen.calls == CALLS_MIN {
                    steady.send(()).unwrap();
                }
                seen.slowest = seen.slowest.max(took);
                seen.slow += usize::from(took > MOST_CALLS_MAX);
                match answer {
                    Ok(answer) if answer.overall_code == Code::Ok as i32 => {}
                    other => seen.errors.push(format!("{other:?}")),
                }
                thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        is_steady.recv_timeout(STEADY_MAX).expect("steady traffic");
        Self { over, asking }
    }

    /// Ends it, after one outage. No call has failed, and none took too long.
    fn end(self, what: &str) -> Seen {
        self.end_after(1, what)
    }

    /// Ends it, after so many outages.
    fn end_after(self, outages: usize, what: &str) -> Seen {
        self.over.store(true, Ordering::SeqCst);
        let seen = self.asking.join().unwrap();
        assert!(seen.errors.is_empty(), "{what}: {} of {} calls failed: {:?}", seen.errors.len(), seen.calls, seen.errors.first());
        assert!(seen.slowest < CALL_MAX, "{what}: a call took {:?}", seen.slowest);
        // In each, three wait for the whole deadline before nobody does, and this machine may be late with each.
        assert!(
            seen.slow <= 3 * outages + seen.calls / 500,
            "{what}: {} of {} calls took longer than {MOST_CALLS_MAX:?}",
            seen.slow,
            seen.calls
        );
        seen
    }
}

/// Holds what Redis has counted of steady traffic against what clients saw: all calls but those that the policy answered, and of
/// those some that had been sent, once.
fn reconcile(server: &Ratelimitd, seen: &Seen, what: &str) {
    let connection = Client::connect(server.grpc());
    let counted = |number: usize| {
        let mut peek = descriptor(&[("steady", &number.to_string())]);
        peek.hits_addend = Some(0);
        1_000_000 - connection.ask(request("d", vec![peek])).statuses[0].limit_remaining as usize
    };
    let counted = (0..20).map(counted).sum::<usize>();
    let asked = seen.calls - by_policy(server) as usize;
    assert!((asked..=seen.calls).contains(&counted), "{what}: {counted} are counted of {asked} that Redis answered, {} in all", seen.calls);
}

/// What a server holds: threads, open files, and kB of memory.
#[derive(Clone, Copy, Debug)]
struct Held {
    threads: usize,
    files: usize,
    memory: u64,
}

impl Held {
    fn by(server: &Ratelimitd) -> Self {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", server.pid())).unwrap().count();
        Self { threads: count("task"), files: count("fd"), memory: resident(server.pid()) / 1_024 }
    }

    /// Asserts that it has not grown since. What the allocator keeps differs from run to run: from 1.1 MB less to 2.5 MB more was seen.
    fn check(self, server: &Ratelimitd) {
        let now = Self::by(server);
        assert!(
            now.threads <= self.threads && now.files <= self.files + 2 && now.memory <= self.memory + 4_096,
            "{self:?} before, {now:?}"
        );
    }
}

fn by_policy(server: &Ratelimitd) -> u64 {
    server.metric("ratelimit_policy_answers{policy=\"local\"}")
}

/// Waits until all that traffic asks for a while is answered by Redis.
fn wait_until_redis_answers(server: &Ratelimitd, what: &str) {
    let deadline = Instant::now() + BACK_MAX;
    loop {
        let before = by_policy(server);
        thread::sleep(Duration::from_millis(200));
        if by_policy(server) == before && server.metric("ratelimit_store_breaker_open{store=\"redis\"}") == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: Redis is back for {BACK_MAX:?} and not asked: {:#?}", server.log());
    }
}

/// Waits until Redis has answered a call of this client's, of the 20 that it has an hour.
fn wait_until_asked(server: &Ratelimitd, client: &str) {
    let deadline = Instant::now() + BACK_MAX;
    loop {
        let before = by_policy(server);
        admitted(server, client, 1);
        if by_policy(server) == before {
            return;
        }
        assert!(Instant::now() < deadline, "{:#?}", server.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// How many of so many calls of one client are admitted, of 20 an hour.
fn admitted(server: &Ratelimitd, client: &str, calls: usize) -> usize {
    let connection = Client::connect(server.grpc());
    (0..calls).filter(|_| connection.admits(request("d", vec![descriptor(&[("few", client)])]))).count()
}
