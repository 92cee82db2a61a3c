//! The gRPC door: Envoy's `RateLimitService` v3, health and reflection. It knows protobuf (the messages in `pb`, their
//! meaning in `wire`, their JSON in `schema`) and nothing of rules or stores: a decoded request goes to the limiter, and
//! its decision is encoded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::codegen::BoxFuture;
use tonic::metadata::MetadataMap;
use tonic::server::UnaryService;
use tonic::service::Routes;
use tonic_health::server::{HealthReporter, HealthService};

mod extras;
pub mod pb;
mod schema;
mod service;
mod wire;

use crate::descriptor::{Request, RequestBounds, RequestError};
use crate::limiter::{Decision, RateLimiter};
use crate::metrics::{MethodSeries, Metrics};
use crate::store::StoreError;
pub use schema::JsonError;
pub use service::RateLimitClient;
use service::RateLimitServer;

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

    /// All services, for one runtime.
    ///
    /// # Errors
    /// Never in practice: the descriptor set is wrong.
    pub fn services(self, health: HealthReporter, bytes_max: usize) -> Result<Routes, tonic_reflection::server::Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_file_descriptor_set(schema::file_descriptor_set())
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let health = tonic_health::pb::health_server::HealthServer::new(HealthService::from_health_reporter(health));
        Ok(Routes::new(RateLimitServer::new(self, bytes_max))
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?))
    }

    /// Answers a RateLimitRequest in proto3 JSON with the RateLimitResponse in proto3 JSON, and whether it is admitted.
    ///
    /// # Errors
    /// What is no such request, or may not be asked, or has no answer under the policy `error`.
    pub async fn answer_json(&self, json: &[u8]) -> Result<(bool, Vec<u8>), AskError> {
        let request = wire::decode(schema::request_from_json(json)?, self.bounds)?;
        let decision = self.limiter.decide(&request, None).await?;
        Ok((decision.admitted, schema::response_to_json(&wire::encode(&request, &decision, &self.reply))?))
    }

    async fn should_rate_limit(&self, call: tonic::Request<pb::RateLimitRequest>) -> Result<pb::RateLimitResponse, tonic::Status> {
        let started = Instant::now();
        let within = time_left(call.metadata());
        let answer = match wire::decode(call.into_inner(), self.bounds) {
            Err(error) => {
                self.metrics.service_errors.increment(1);
                Err(tonic::Status::invalid_argument(error.to_string()))
            }
            Ok(request) => match self.limiter.decide(&request, within).await {
                Ok(decision) => Ok(wire::encode(&request, &decision, &self.reply)),
                Err(error) => {
                    self.metrics.store_errors.increment(1);
                    Err(tonic::Status::unavailable(error.to_string()))
                }
            },
        };
        self.series.answered(started.elapsed());
        answer
    }
}

impl UnaryService<pb::RateLimitRequest> for Door {
    type Response = pb::RateLimitResponse;
    type Future = BoxFuture<tonic::Response<pb::RateLimitResponse>, tonic::Status>;

    fn call(&mut self, call: tonic::Request<pb::RateLimitRequest>) -> Self::Future {
        let door = self.clone();
        Box::pin(async move { door.should_rate_limit(call).await.map(tonic::Response::new) })
    }
}

/// A decision as it is sent.
pub fn encode(request: &Request, decision: &Decision, options: &ReplyOptions) -> pb::RateLimitResponse {
    wire::encode(request, decision, options)
}

/// Three quarters of the call's grpc-timeout, so that an answer by policy still reaches the caller in time.
fn time_left(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The protocol allows eight digits.
    let number = number.parse::<u32>().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3_600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(number) * 3 / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_of_the_grpc_timeout_are_left() {
        let left = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            time_left(&metadata)
        };
        assert_eq!(left("20m"), Some(Duration::from_millis(15)));
        assert_eq!(left("2S"), Some(Duration::from_millis(1500)));
        assert_eq!(left("99999999H"), Some(Duration::from_secs(99_999_999 * 2_700)));
        for odd in ["", "m", "-1m", "20", "20x", "1.5S"] {
            assert_eq!(left(odd), None, "{odd}");
        }
        assert_eq!(time_left(&MetadataMap::new()), None);
    }
}
