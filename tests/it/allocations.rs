//! How often a call allocates, counted; docs/performance.md says what for. Counts are the same in any build and on any machine.

use std::time::Duration;

use allocation_counter::measure;
use bytes::Bytes;
use distributed_rate_limiter::grpc::pb::RateLimitDescriptor;
use distributed_rate_limiter::grpc::{Services, connection};
use distributed_rate_limiter::metrics::RedisSeries;
use distributed_rate_limiter::store::{Redis, RedisOptions, Store};
use futures_util::future::join_all;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::support::grpc::{descriptor, request};
use crate::support::redis::RedisServer;
use crate::support::services::{in_memory, services};

const RULES: &str = "domain: d
descriptors:
- {key: client, rate_limit: {limit: 1000000, window: 1h}}
- {key: denied, rate_limit: {limit: 0, window: 1h}}
- {key: path, descriptors: [{key: client, rate_limit: {limit: 1000000, window: 1h}}]}
";

const ROUNDS: usize = 100;

fn asking(descriptors: &[&[(&str, &str)]]) -> Bytes {
    let descriptors: Vec<RateLimitDescriptor> = descriptors.iter().map(|entries| descriptor(entries)).collect();
    request("d", descriptors).encode_to_vec().into()
}

/// How many times `what` allocates in this thread, once what is made once is made.
fn count(mut what: impl FnMut()) -> f64 {
    (0..ROUNDS).for_each(|_| what());
    measure(|| (0..ROUNDS).for_each(|_| what())).count_total as f64 / ROUNDS as f64
}

/// Allocations of a call, from the message to the bytes of the reply's, where so many are asked at once.
fn of_a_call(runtime: &Runtime, services: &Services, message: &Bytes, at_once: usize) -> f64 {
    let ask = || async { services.should_rate_limit(message.clone(), None).await.unwrap() };
    let asking = count(|| drop(runtime.block_on(join_all((0..at_once).map(|_| ask())))));
    let waiting = count(|| drop(runtime.block_on(join_all((0..at_once).map(|_| tokio::task::yield_now())))));
    (asking - waiting) / at_once as f64
}

/// Allocations of a call, from the frames of the request to those of the reply, where so many are asked at once.
fn over_http2(services: &Services, message: &[u8], at_once: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (near, far) = tokio::io::duplex(1 << 20);
    let (go, mut told_to_go) = mpsc::unbounded_channel();
    let (done, mut told_when_done) = mpsc::unbounded_channel();
    let body = Bytes::from([&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat());
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (calls, connection) = h2::client::handshake(far).await.unwrap();
            tokio::spawn(connection);
            while let Some(()) = told_to_go.recv().await {
                let call = || async {
                    let uri = "http://localhost/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
                    let request = http::Request::post(uri).header("te", "trailers").body(()).unwrap();
                    let (response, mut sending) = calls.clone().ready().await.unwrap().send_request(request, false).unwrap();
                    sending.send_data(body.clone(), true).unwrap();
                    let mut body = response.await.unwrap().into_body();
                    while let Some(data) = body.data().await {
                        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
                    }
                    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
                };
                join_all((0..at_once).map(|_| call())).await;
                done.send(()).unwrap();
            }
        });
    });
    let mut serving = Box::pin(connection::serve(near, services, std::future::pending()));
    let counted = count(|| {
        go.send(()).unwrap();
        runtime.block_on(async {
            tokio::select! {
                ended = serving.as_mut() => panic!("the connection ended: {ended:?}"),
                answered = told_when_done.recv() => answered.unwrap(),
            }
        });
    });
    drop((go, serving));
    client.join().unwrap();
    counted / at_once as f64
}

#[test]
fn a_call_allocates_no_more_than_is_written_down() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redis_server = RedisServer::start();
    // Who polls yields, for which each block_on makes room anew; a serving thread has but one.
    let options = RedisOptions { busy_poll: Duration::ZERO, ..RedisOptions::new(redis_server.url(), Duration::from_secs(5)) };
    let redis = Redis::new(&options, RedisSeries::detached()).unwrap();
    let (with_memory, with_redis) = (services(RULES, in_memory), services(RULES, |_| Store::Redis(redis)));
    let (path, client) = (("path", "/v1/export"), ("client", "alice"));
    // In memory; the same over HTTP/2, 16 together; with Redis, alone and 32 together.
    for (what, message, written) in [
        ("one entry", asking(&[&[client]]), [7.0, 13.0, 34.0, 12.0]),
        ("one entry, denied", asking(&[&[("denied", "alice")]]), [7.0, 13.0, 10.0, 10.0]),
        ("two descriptors of two entries", asking(&[&[path, client], &[client, path]]), [14.0, 20.0, 41.0, 19.0]),
        ("no rule", asking(&[&[("nobody", "alice")]]), [7.0, 13.0, 7.0, 7.0]),
    ] {
        let counted = [
            of_a_call(&runtime, &with_memory, &message, 1),
            over_http2(&with_memory, &message, 16),
            of_a_call(&runtime, &with_redis, &message, 1),
            of_a_call(&runtime, &with_redis, &message, 32),
        ];
        // What is made once for many calls, such as room for their times, comes on top.
        let more = counted.iter().zip(written).any(|(counted, written)| *counted > written + 0.3);
        assert!(!more, "{what}: {counted:.2?}, where {written:?} are written down");
    }
}

#[test]
fn a_calls_future_is_no_larger_than_what_mimalloc_is_quickest_with() {
    let call = services(RULES, in_memory).should_rate_limit(asking(&[&[("client", "alice")]]), None);
    // MI_SMALL_SIZE_MAX: 128 words.
    assert!(size_of_val(&*call) <= 1_024, "{}", size_of_val(&*call));
}
