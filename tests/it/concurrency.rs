//! Many askers at once on few counters of one Redis, in real time: the hits that it recorded show, by its own timestamps,
//! that no window anywhere held more than the limit. And that is what the askers were told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind};
use distributed_rate_limiter::limit::{Algorithm, Cost, Limit, Window};
use distributed_rate_limiter::metrics::RedisSeries;
use distributed_rate_limiter::store::redis::RedisOptions;
use distributed_rate_limiter::store::{Redis, Store};
use redis::Value;

use crate::support::redis::RedisServer;

const LIMIT: u64 = 50;
const WINDOW: u64 = 1_000_000;
const CLIENTS: [&str; 3] = ["alice", "bob", "carol"];

/// Servers' worth of askers: threads with a runtime and a store of their own each.
const SERVERS: usize = 4;
const TASKS: usize = 50;
const FOR: Duration = Duration::from_secs(5);

/// Far more often than a window ends, so that no entry is gone before it was seen, unless the machine stands still for a second.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// An entry of the log: time, total before, total after.
type Seen = (u64, u64, u64);

fn hit(client: &'static str) -> Hit<'static> {
    let window = Window::from_micros(WINDOW).unwrap();
    let client = [client].into_iter().collect();
    let counter = Counter { domain: "d", client, action: Action::named("a"), algorithm: Algorithm::default(), window };
    Hit {
        descriptor: 0,
        kind: Kind::Enforce,
        counter,
        limit: Limit::new(LIMIT).unwrap(),
        cost: Cost::take(1),
        count_denied: false,
        on_store_failure: None,
        lease: None,
    }
}

/// Asks as fast as it can from many tasks, and counts what each client was admitted.
fn hammer(store: &Store, stop: &AtomicBool, admitted: &[AtomicU64; 3]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks = (0..TASKS).map(|task| async move {
            let mut turn = task;
            while !stop.load(Ordering::Relaxed) {
                let client = turn % CLIENTS.len();
                turn += 1;
                let verdict = store.decide(&[hit(CLIENTS[client])], None).await.expect("the store answers");
                admitted[client].fetch_add(u64::from(verdict.admitted), Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let tasks: Vec<_> = tasks.map(Box::pin).collect();
        let mut pending = tasks;
        std::future::poll_fn(|context| {
            pending.retain_mut(|task| task.as_mut().poll(context).is_pending());
            if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        store.drain().await;
    });
}

#[test]
fn no_window_holds_more_than_the_limit_by_redis_own_timestamps() {
    let server = RedisServer::start();
    let options = RedisOptions::new(server.url(), Duration::from_secs(20));
    let stop = AtomicBool::new(false);
    let admitted = [const { AtomicU64::new(0) }; 3];
    let mut seen: [BTreeSet<Seen>; 3] = Default::default();
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| {
                let store = Store::Redis(Redis::new(&options, RedisSeries::detached()).unwrap());
                hammer(&store, &stop, &admitted);
            });
        }
        let until = Instant::now() + FOR;
        while Instant::now() < until {
            look(&server, &mut seen);
            thread::sleep(LOOK_EVERY);
        }
        stop.store(true, Ordering::Relaxed);
    });
    look(&server, &mut seen);
    for (seen, admitted) in seen.iter().zip(&admitted) {
        // An entry that was still being filled is seen several times; its last form is the whole one.
        let mut entries: Vec<Seen> = seen.iter().copied().collect();
        entries.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.2 = kept.2.max(next.2);
            }
            same
        });
        let hits: Vec<(u64, u64)> = entries.iter().map(|(time, before, after)| (*time, after - before)).collect();
        let total: u64 = hits.iter().map(|(_, hits)| hits).sum();
        assert_eq!(total, admitted.load(Ordering::Relaxed), "each admitted hit was recorded, and no other");
        for (at, _) in &hits {
            let held: u64 = hits.iter().filter(|(time, _)| *time <= *at && time + WINDOW > *at).map(|(_, hits)| hits).sum();
            assert!(held <= LIMIT, "{held} hits in the window that ends at {at}");
        }
        let windows = u64::try_from(FOR.as_micros()).unwrap() / WINDOW;
        assert!(total >= (windows - 2) * LIMIT, "the limit was used: {total}");
    }
}

/// Takes note of all entries that stand now.
fn look(server: &RedisServer, seen: &mut [BTreeSet<Seen>; 3]) {
    for (client, seen) in CLIENTS.iter().zip(seen) {
        let Value::Array(members) = server.command(&["ZRANGE", &format!("1{{d|{client}}}log|{WINDOW}|a"), "0", "-1"]) else {
            panic!("ZRANGE answers with a list")
        };
        for member in members {
            let Value::BulkString(member) = member else { panic!("a member is bytes") };
            let number = |at: usize| member[at * 7..at * 7 + 7].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            seen.insert((number(0), number(1), number(2)));
        }
    }
}
