//! Input that is wrong, odd or hostile: a clear error or a right answer each time, and the server goes on.

use bytes::{Buf, BufMut};
use distributed_rate_limiter::grpc::pb::{RateLimitDescriptor, RateLimitRequest};
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, rules_file};

fn start(args: &[&str]) -> (Ratelimitd, Client) {
    let rules = rules_file(
        "domain: d\ndescriptors:\n- key: k\n  rate_limit: {limit: 1, window: 1h}\n- key: k\n  value: fixed\n  rate_limit: {limit: 1, window: 1h}\n- key: \"*\"\n  rate_limit: {limit: 1, window: 1h}\n",
    );
    let server = Ratelimitd::start(&[&["--config", rules.as_str()], args].concat());
    let client = Client::connect(server.grpc());
    (server, client)
}

/// Bytes as they are, in place of a message.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

fn send_raw(client: &Client, bytes: Vec<u8>) -> Result<Vec<u8>, Status> {
    let path = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit".parse().unwrap();
    client.runtime.block_on(async {
        let mut grpc = tonic::client::Grpc::new(client.channel.clone());
        grpc.ready().await.unwrap();
        grpc.unary(tonic::Request::new(bytes), path, Raw).await.map(tonic::Response::into_inner)
    })
}

/// Xorshift: random enough, and the same each time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn an_empty_descriptor_matches_nothing_and_empty_values_are_values() {
    let (_server, client) = start(&[]);
    assert!(client.ask(request("d", vec![descriptor(&[])])).statuses[0].current_limit.is_none());
    let empty = || request("d", vec![descriptor(&[("k", "")])]);
    assert!(client.admits(empty()) && !client.admits(empty()));
    assert!(client.admits(request("d", vec![descriptor(&[("k", "x")])])));
    assert!(client.admits(request("d", vec![descriptor(&[("", "")])])), "the wildcard key takes an empty key");
    assert!(!client.admits(request("d", vec![descriptor(&[("", "")])])));
}

#[test]
fn a_thousand_descriptors_are_answered_and_more_than_the_bound_are_refused() {
    let (_server, client) = start(&["--max-entries", "2"]);
    let many = |count: usize| -> Vec<_> { (0..count).map(|number| descriptor(&[("k", &format!("many-{number}"))])).collect() };
    let answer = client.ask(request("d", many(1_000)));
    assert!(answer.overall_code == 1 && answer.statuses.iter().all(|status| status.code == 1));
    let again = client.ask(request("d", many(1_000)));
    assert!(again.overall_code == 2 && again.statuses.iter().all(|status| status.code == 2));
    let refused = client.try_ask(request("d", many(1_025))).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("1025 descriptors") && refused.message().contains("MAX_DESCRIPTORS"), "{refused}");
    let wide = client.try_ask(request("d", vec![descriptor(&[("k", "a"), ("k", "b"), ("k", "c")])])).unwrap_err();
    assert_eq!(wide.code(), Code::InvalidArgument);
    assert!(wide.message().contains("descriptor 0 has 3 entries") && wide.message().contains("MAX_ENTRIES"), "{wide}");
}

#[test]
fn values_of_a_megabyte_are_counted_like_any_other() {
    let (_server, client) = start(&[]);
    let long = |last: &str| request("d", vec![descriptor(&[("k", &("v".repeat(1 << 20) + last))])]);
    assert!(client.admits(long("a")));
    assert!(!client.admits(long("a")));
    assert!(client.admits(long("b")), "they differ in their last byte");
}

#[test]
fn a_message_above_the_bound_is_refused_over_grpc_and_http() {
    let (server, client) = start(&["--max-request-bytes", "10000"]);
    let error = client.try_ask(request("d", vec![descriptor(&[("k", &"v".repeat(20_000))])])).unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    assert_eq!(http::post(server.http(), "/json", &vec![b' '; 20_000]).status, 413);
    assert!(client.admits(request("d", vec![descriptor(&[("k", "v")])])));
}

#[test]
fn bytes_that_are_no_utf8_are_an_error_and_no_more() {
    let (_server, client) = start(&[]);
    let mut bytes = request("d", vec![descriptor(&[("k", "value")])]).encode_to_vec();
    let at = bytes.windows(5).position(|five| five == b"value").unwrap();
    bytes[at] = 0xff;
    let error = send_raw(&client, bytes).unwrap_err();
    assert!(error.message().contains("UTF-8"), "{error}");
    assert!(client.admits(request("d", vec![descriptor(&[("k", "value")])])));
}

#[test]
fn bytes_that_are_no_message_count_neither_as_a_call_nor_as_an_error() {
    let (server, client) = start(&[]);
    let code = |bytes: &[u8]| send_raw(&client, bytes.to_vec()).unwrap_err().code();
    // A length beyond the end, no UTF-8, a field of the number 0.
    for no_message in [&[0x0a, 9, b'd'][..], &[0x0a, 1, 0xff], &[0x02, 0]] {
        assert_eq!(code(no_message), Code::Internal, "{no_message:?}");
    }
    // A request without a domain is one, and counts as both.
    assert_eq!(code(&[]), Code::InvalidArgument);
    assert_eq!(server.metric(r#"ratelimit_service_should_rate_limit_error{err_type="service_error"}"#), 1);
    assert_eq!(server.metric(r#"ratelimit_service_total_requests{grpc_method="ShouldRateLimit"}"#), 1);
}

#[test]
fn truncated_and_random_messages_get_an_answer_or_an_error_and_the_server_goes_on() {
    let (mut server, client) = start(&[]);
    let whole = request("d", vec![descriptor(&[("k", "value"), ("other", "")]), RateLimitDescriptor::default()]).encode_to_vec();
    for length in 0..whole.len() {
        let _ = send_raw(&client, whole[..length].to_vec());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for round in 0..500 {
        let mut bytes = whole.clone();
        for _ in 0..=random(&mut state) % 4 {
            let at = random(&mut state) as usize % bytes.len();
            bytes[at] = random(&mut state) as u8;
        }
        if round % 5 == 0 {
            bytes = (0..random(&mut state) % 200).map(|_| random(&mut state) as u8).collect();
        }
        if let Ok(answer) = send_raw(&client, bytes.clone()) {
            let asked = RateLimitRequest::decode(bytes.as_slice()).unwrap();
            let answer = distributed_rate_limiter::grpc::pb::RateLimitResponse::decode(answer.as_slice()).unwrap();
            assert_eq!(answer.statuses.len(), asked.descriptors.len());
        }
    }
    assert!(client.admits(request("d", vec![descriptor(&[("k", "after")])])));
    assert!(!server.log().iter().any(|line| line.to_string().contains("panicked")), "{:#?}", server.log());
    server.signal("TERM");
    assert!(server.wait_for_exit().success());
}

#[test]
fn keys_and_values_with_every_separator_of_the_store_key_count_apart() {
    let (_server, client) = start(&[]);
    let texts = ["a", "a|b", "a|", "|a", "a%7Cb", "a=b", "{a}", "}", "{", "%", "%#", "a\r\nb", "\0", "}log|3600000000|k", "ä"];
    for key in texts {
        for value in texts {
            assert!(client.admits(request("d", vec![descriptor(&[(key, value)])])), "{key:?} {value:?}");
        }
    }
    for key in texts {
        for value in texts {
            assert!(!client.admits(request("d", vec![descriptor(&[(key, value)])])), "{key:?} {value:?}");
        }
    }
}

#[test]
fn hostile_rules_files_are_refused_with_their_place() {
    for (what, text, says) in [
        ("an alias bomb", alias_bomb(), ":"),
        ("an empty file", String::new(), ":"),
        ("only a comment", "# nothing\n".to_owned(), ":"),
        ("deep nesting", "[".repeat(100_000), ":"),
        ("a tab", "domain: d\n\tdescriptors: []\n".to_owned(), ":2:"),
    ] {
        let path = rules_file(&text);
        let (status, said) = Ratelimitd::run(&["--config", &path, "--log-level", "error"]);
        assert_eq!(status.code(), Some(1), "{what}: {said}");
        assert!(said.starts_with(&format!("ratelimitd: {path}{says}")) && said.len() < 2_000, "{what}: {said}");
    }
}

fn alias_bomb() -> String {
    let mut text = String::from("domain: d\nmetadata:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("  a{level}: &a{level} [{below}]\n"));
    }
    text
}
