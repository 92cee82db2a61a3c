//! The gRPC door: Envoy's `RateLimitService` v3, health and reflection. It knows HTTP/2 (`connection`) and protobuf (its
//! bytes in `protobuf`, the messages in `pb`, their meaning in `wire`, their JSON in `schema`) and nothing of rules or stores:
//! a decoded request goes to the limiter, and its decision is encoded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tonic::Status;

mod call;
pub mod connection;
mod extras;
pub mod pb;
mod protobuf;
mod schema;
mod service;
mod wire;

use crate::descriptor::{Request, RequestBounds, RequestError};
use crate::limiter::{Decision, RateLimiter};
use crate::metrics::{MethodSeries, Metrics};
use crate::store::StoreError;
pub use schema::JsonError;
pub use service::{RateLimitClient, Services};
use wire::DecodeError;

/// The name, beside "", under which Envoy asks for the server's health.
pub const HEALTH_SERVICE: &str = "ratelimit";

/// What a reply tells beside the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyOptions {
    /// Response headers that tell the limit; None for none.
    pub headers: Option<LimitHeaders>,
    /// The request's descriptors, the deciding rule, and the rules' metadata, as dynamic metadata.
    pub dynamic_metadata: bool,
}

/// The form of the response headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitHeaders {
    /// Of the deciding limit, a header of this name each: hits in a window, hits left, and seconds until there is more.
    Plain { limit: String, remaining: String, reset: String },
    /// `RateLimit-Policy` with all limits and `RateLimit` with the deciding one: draft-ietf-httpapi-ratelimit-headers-10.
    Draft10,
}

impl LimitHeaders {
    /// The plain form under the reference server's names.
    pub fn plain() -> Self {
        let [limit, remaining, reset] = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"].map(str::to_owned);
        Self::Plain { limit, remaining, reset }
    }
}

/// What a door needs to answer rate-limit requests.
#[derive(Clone)]
pub struct Door {
    limiter: Arc<RateLimiter>,
    bounds: RequestBounds,
    reply: Arc<ReplyOptions>,
    series: MethodSeries,
    metrics: Arc<Metrics>,
}

/// Why a request in JSON has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Door {
    pub fn new(limiter: Arc<RateLimiter>, bounds: RequestBounds, reply: ReplyOptions, metrics: Arc<Metrics>) -> Self {
        Self { limiter, bounds, reply: Arc::new(reply), series: metrics.grpc_method("ShouldRateLimit"), metrics }
    }

    /// Answers a RateLimitRequest in proto3 JSON with the RateLimitResponse in proto3 JSON, and whether it is admitted.
    ///
    /// # Errors
    /// What is no such request, or may not be asked, or has no answer under the policy `error`, or metadata that JSON can't carry.
    pub async fn answer_json(&self, json: &[u8]) -> Result<(bool, Vec<u8>), AskError> {
        let request = wire::request(schema::request_from_json(json)?, self.bounds)?;
        let decision = self.limiter.decide(&request, None).await?;
        Ok((decision.admitted, schema::response_to_json(&reply(&request, &decision, &self.reply).map_err(JsonError::from)?)?))
    }

    /// Answers the bytes of a RateLimitRequest with those of the reply, its prefix before them.
    async fn should_rate_limit(&self, message: Bytes, within: Option<Duration>) -> Result<Bytes, Status> {
        let started = Instant::now();
        let decoded = wire::decode(&message, self.bounds);
        // h2 reads into its memory again once nobody holds it.
        drop(message);
        let answer = match decoded {
            // Not counted, as a call without one whole message isn't.
            Err(DecodeError::Protobuf(error)) => return Err(Status::internal(error.to_string())),
            Err(DecodeError::Request(error)) => {
                self.metrics.service_errors.increment(1);
                Err(Status::invalid_argument(error.to_string()))
            }
            Ok(request) => match self.limiter.decide(&request, within).await {
                Ok(decision) => Ok(call::framed(wire::encode(&request, &decision, &self.reply).as_bytes())),
                Err(error) => {
                    self.metrics.store_errors.increment(1);
                    Err(Status::unavailable(error.to_string()))
                }
            },
        };
        self.series.answered(started.elapsed());
        answer
    }
}

/// The reply to a request, as whoever gets it reads it.
///
/// # Errors
/// Dynamic metadata that is nested deeper than prost reads.
pub fn reply(request: &Request, decision: &Decision, options: &ReplyOptions) -> Result<pb::RateLimitResponse, prost::DecodeError> {
    pb::RateLimitResponse::decode(wire::encode(request, decision, options).as_bytes())
}
