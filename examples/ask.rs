//! Asks a running `ratelimitd` over gRPC, as Envoy does.
//!
//!     cargo run                                    # in another terminal: the server, with the rules in config/
//!     cargo run --example ask -- api client=alice
//!     cargo run --example ask -- api path=/login path=/export,client=alice
//!
//! The first word is the domain. Each further word is one descriptor: entries KEY=VALUE, with commas between them. The
//! server is at http://127.0.0.1:8081, unless the variable RATELIMITD says another address.

use std::env;
use std::error::Error;

use distributed_rate_limiter::grpc::RateLimitClient;
use distributed_rate_limiter::grpc::pb::rate_limit_descriptor::Entry;
use distributed_rate_limiter::grpc::pb::rate_limit_response::{Code, DescriptorStatus};
use distributed_rate_limiter::grpc::pb::{RateLimitDescriptor, RateLimitRequest};
use tonic::transport::Endpoint;

const USAGE: &str = "usage: ask DOMAIN KEY=VALUE[,KEY=VALUE...] ...";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = env::args().skip(1);
    let domain = words.next().ok_or(USAGE)?;
    let descriptors = words.map(|word| descriptor(&word)).collect::<Result<Vec<_>, _>>()?;

    let server = env::var("RATELIMITD").unwrap_or_else(|_| "http://127.0.0.1:8081".to_owned());
    let connected = Endpoint::from_shared(server.clone())?.connect().await;
    let mut client = RateLimitClient::new(connected.map_err(|error| format!("{server}: {error}; is ratelimitd running there?"))?);

    // hits_addend is what the request weighs; the protocol reads 0 as 1.
    let request = RateLimitRequest { domain, descriptors, hits_addend: 0 };
    // What the server refuses to answer (no domain, no descriptor) is an error with its reason.
    let refused = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
    let answer = client.should_rate_limit(request.clone()).await.map_err(refused)?.into_inner();

    // Envoy goes by the overall code alone: OVER_LIMIT is a 429.
    println!("{}", code(answer.overall_code()));
    for (descriptor, status) in request.descriptors.iter().zip(&answer.statuses) {
        println!("  {}: {}", written(descriptor), told(status));
    }
    Ok(())
}

fn descriptor(word: &str) -> Result<RateLimitDescriptor, String> {
    let entry = |pair: &str| {
        // A value may hold a `=`, a key can't here.
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` is no KEY=VALUE; {USAGE}"))?;
        Ok(Entry { key: key.to_owned(), value: value.to_owned() })
    };
    let entries = word.split(',').map(entry).collect::<Result<Vec<_>, String>>()?;
    Ok(RateLimitDescriptor { entries, ..RateLimitDescriptor::default() })
}

fn written(descriptor: &RateLimitDescriptor) -> String {
    descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect::<Vec<_>>().join(",")
}

fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::OverLimit => "OVER_LIMIT",
        Code::Unknown => "UNKNOWN",
    }
}

fn told(status: &DescriptorStatus) -> String {
    let code = code(status.code());
    // A descriptor that no rule knows limits nothing, and has no limit to tell of.
    let Some(limit) = &status.current_limit else { return format!("{code}, no limit") };
    let reset = status.duration_until_reset.as_ref().map_or(0, |duration| duration.seconds);
    format!("{code}, {} of {} left, reset in {reset} s", status.limit_remaining, limit.requests_per_unit)
}
