//! HTTP/2 as no gRPC library would speak it: messages in pieces, calls given up half way, clients that take little at a
//! time, or say nothing at all.

use std::future::pending;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distributed_rate_limiter::grpc::connection;
use distributed_rate_limiter::grpc::pb::rate_limit_response::Code;
use distributed_rate_limiter::grpc::pb::{RateLimitRequest, RateLimitResponse};
use distributed_rate_limiter::metrics::Metrics;
use distributed_rate_limiter::store::{Clock, Memory, SteppedClock, Store};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::support::grpc::{Client, descriptor, request};
use crate::support::ratelimitd::{Ratelimitd, rules_file};
use crate::support::services::services;

const RULES: &str = "domain: d\ndescriptors: [{key: k, rate_limit: {limit: 1000, window: 1h}}]\n";
const METHOD: &str = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// What a client lets the server send ahead by default, of a stream and of all.
const WINDOW: u32 = 65_535;

/// By then what was sent is written: what is reset before is not.
const WRITTEN: Duration = Duration::from_millis(50);

/// A connection, and the runtime that drives it.
struct Connection {
    runtime: Runtime,
    calls: SendRequest<Bytes>,
}

/// What came of a call.
struct Answered {
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

fn start() -> Ratelimitd {
    Ratelimitd::start(&["--config", &rules_file(RULES)])
}

fn asked(value: &str, descriptors: usize) -> RateLimitRequest {
    request("d", vec![descriptor(&[("k", value)]); descriptors])
}

/// A message with gRPC's prefix.
fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], &message].concat().into()
}

impl Connection {
    fn open(server: &Ratelimitd, window: u32) -> Self {
        let address = server.grpc();
        Self::over(tokio::net::TcpStream::connect(address), window)
    }

    fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: impl Future<Output = io::Result<T>>, window: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let calls = runtime.block_on(async {
            let settings = h2::client::Builder::new().initial_window_size(window).handshake(stream.await.unwrap());
            let (calls, connection) = settings.await.unwrap();
            tokio::spawn(connection);
            calls.ready().await.unwrap()
        });
        Self { runtime, calls }
    }

    fn call(&mut self, method: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let uri = format!("http://localhost/{method}");
        let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
        self.runtime.block_on(async {
            self.calls = self.calls.clone().ready().await.unwrap();
            self.calls.send_request(request, false).unwrap()
        })
    }

    fn answer(&self, response: ResponseFuture) -> Answered {
        self.runtime.block_on(async {
            let answer = async {
                let (head, mut received) = response.await.unwrap().into_parts();
                let body = body(&mut received).await;
                Answered { headers: head.headers, body, trailers: received.trailers().await.unwrap().unwrap_or_default() }
            };
            tokio::time::timeout(Duration::from_secs(10), answer).await.expect("an answer within 10 s")
        })
    }

    fn ask(&mut self, message: Bytes) -> RateLimitResponse {
        let (response, mut sending) = self.call(METHOD);
        sending.send_data(message, true).unwrap();
        self.answer(response).decision()
    }
}

/// Makes room for as much as it takes, no sooner.
async fn body(received: &mut RecvStream) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(data) = received.data().await {
        let data = data.unwrap();
        body.extend_from_slice(&data);
        received.flow_control().release_capacity(data.len()).unwrap();
    }
    body
}

impl Answered {
    fn decision(&self) -> RateLimitResponse {
        assert_eq!(self.headers["content-type"], "application/grpc");
        assert_eq!(self.trailers["grpc-status"], "0");
        let length = u32::from_be_bytes(self.body[1..5].try_into().unwrap());
        assert_eq!(self.body.len(), 5 + length as usize);
        RateLimitResponse::decode(&self.body[5..]).unwrap()
    }
}

#[test]
fn a_message_may_come_in_pieces_and_holds_no_other_call_up() {
    let server = start();
    let mut connection = Connection::open(&server, WINDOW);
    let message = framed(&asked("slow", 3));
    let mut pieces: Vec<_> = (0..message.len()).map(|_| connection.call(METHOD)).collect();
    for (cut, (_, sending)) in pieces.iter_mut().enumerate() {
        sending.send_data(message.slice(..cut), false).unwrap();
    }
    let meanwhile = connection.ask(framed(&asked("slow", 1)));
    assert_eq!(meanwhile.statuses[0].limit_remaining, 999, "nothing of the others was counted");
    for (cut, (response, mut sending)) in pieces.into_iter().enumerate() {
        sending.send_data(message.slice(cut..), true).unwrap();
        let decision = connection.answer(response).decision();
        let left = 999 - 3 * (cut as u32 + 1);
        assert_eq!(decision.statuses.iter().map(|status| status.limit_remaining).collect::<Vec<_>>(), [left; 3]);
    }
}

#[test]
fn a_call_that_is_given_up_before_its_message_is_whole_counts_nothing() {
    let server = start();
    let mut connection = Connection::open(&server, WINDOW);
    let message = framed(&asked("x", 1));
    for _ in 0..3 {
        let mut given_up: Vec<_> = (0..150).map(|_| connection.call(METHOD)).collect();
        for (at, (_, sending)) in given_up.iter_mut().enumerate() {
            sending.send_data(message.slice(..at % message.len()), false).unwrap();
        }
        std::thread::sleep(WRITTEN);
        given_up.iter_mut().for_each(|(_, sending)| sending.send_reset(Reason::CANCEL));
    }
    assert_eq!(connection.ask(message).statuses[0].limit_remaining, 999);
}

#[test]
fn who_takes_a_few_bytes_at_a_time_gets_all_of_them() {
    let server = start();
    let (mut wide, mut narrow) = (Connection::open(&server, WINDOW), Connection::open(&server, 7));
    let long = narrow.ask(framed(&asked("x", 100)));
    assert_eq!((long.overall_code(), long.statuses.len()), (Code::Ok, 100));

    let symbol = MessageRequest::FileContainingSymbol("envoy.service.ratelimit.v3.RateLimitService".to_owned());
    let question = framed(&ServerReflectionRequest { host: String::new(), message_request: Some(symbol) });
    let describe = |connection: &mut Connection| {
        let (response, mut sending) = connection.call(REFLECTION);
        // Three answers, one after the other, on one stream.
        sending.send_data([&question[..]; 3].concat().into(), true).unwrap();
        let answered = connection.answer(response);
        assert_eq!(answered.trailers["grpc-status"], "0");
        answered.body
    };
    let described = describe(&mut wide);
    assert!(described.len() > 3_000, "{}", described.len());
    assert_eq!(describe(&mut narrow), described);
}

#[test]
fn calls_given_up_while_the_server_stands_still_cost_no_connection() {
    let server = start();
    let mut connection = Connection::open(&server, WINDOW);
    let message = framed(&asked("x", 1));
    assert_eq!(connection.ask(message.clone()).statuses[0].limit_remaining, 999);
    server.signal("STOP");
    for _ in 0..5 {
        let mut given_up: Vec<_> = (0..100).map(|_| connection.call(METHOD)).collect();
        given_up.iter_mut().for_each(|(_, sending)| sending.send_data(message.clone(), true).unwrap());
        std::thread::sleep(WRITTEN);
        given_up.iter_mut().for_each(|(_, sending)| sending.send_reset(Reason::CANCEL));
    }
    server.signal("CONT");
    let left = connection.ask(message).statuses[0].limit_remaining;
    assert!((498..998).contains(&left), "{left}: each of them once at most, and some were seen");
}

#[test]
fn what_is_no_http2_is_closed_and_who_says_nothing_does_not_hold_the_end_up() {
    let mut server = start();
    let mut other = TcpStream::connect(server.grpc()).unwrap();
    other.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // It may be told so in a frame; then it is the end, or a reset.
    let end = other.read_to_end(&mut Vec::new());
    assert!(end.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::ConnectionReset), "{end:?}");

    let silent = TcpStream::connect(server.grpc()).unwrap();
    let client = Client::connect(server.grpc());
    assert!(client.admits(asked("x", 1)));
    server.signal("TERM");
    assert!(server.wait_for_exit().success());
    assert!(!server.log().iter().any(|line| line["message"].as_str().is_some_and(|message| message.contains("still under way"))));
    drop(silent);
}

#[test]
fn a_panic_ends_its_own_call_and_no_other_one_of_the_connection() {
    // At the end of all time a hit can't be recorded: a sum overflows, which is a panic as tests are built.
    let clock = SteppedClock::starting_at(u64::MAX);
    let memory = |metrics: &Metrics| Store::Memory(Arc::new(Memory::new(10, Clock::Stepped(clock.clone()), metrics.store("memory"))));
    let services = services(RULES, memory);
    let (near, far) = tokio::io::duplex(1 << 20);
    let mut connection = Connection::over(async { Ok(far) }, WINDOW);
    connection.runtime.spawn(async move { connection::serve(near, &services, pending()).await });
    let (counted, not_counted) = (framed(&asked("x", 1)), framed(&request("d", vec![descriptor(&[("nobody", "x")])])));
    let mut asked = [&counted, &not_counted, &counted].map(|message| (connection.call(METHOD), message));
    asked.iter_mut().for_each(|((_, sending), message)| sending.send_data((*message).clone(), true).unwrap());
    let answers = asked.map(|((response, _), _)| connection.answer(response));
    // 13 is INTERNAL. (In a release build no sum panics, and this fails.)
    assert!([&answers[0], &answers[2]].iter().all(|answer| answer.headers.get("grpc-status").is_some_and(|status| status == "13")));
    assert_eq!(answers[1].decision().overall_code(), Code::Ok);
    clock.set(1_000_000_000);
    assert_eq!(connection.ask(counted).statuses[0].limit_remaining, 999, "the store is whole");
}
