//! What stands behind the gRPC port: the one method of Envoy's rate-limit service, and beside it health and reflection,
//! which tonic serves. Almost every call is for that one method, so it goes straight from HTTP/2 (`connection.rs`) to whoever
//! answers it. A client that makes such calls is here as well.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response};
use tonic::Status;
use tonic::codegen::{BoxFuture, Service};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_prost::ProstCodec;

use super::Door;
use super::pb::{RateLimitRequest, RateLimitResponse};
use super::schema;

pub(super) const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// The services of the gRPC port, for one runtime. Cheap to clone.
#[derive(Clone)]
pub struct Services(Arc<Served>);

struct Served {
    door: Door,
    bytes_max: usize,
    others: Router,
}

/// Asks a server, over a connection that clones share.
#[derive(Clone)]
pub struct RateLimitClient(tonic::client::Grpc<Channel>);

impl Services {
    /// Requests of more than `bytes_max` are refused unread.
    ///
    /// # Errors
    /// Never in practice: the descriptor set is wrong.
    pub fn new(door: Door, health: HealthReporter, bytes_max: usize) -> Result<Self, tonic_reflection::server::Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_file_descriptor_set(schema::file_descriptor_set())
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let health = tonic_health::pb::health_server::HealthServer::new(HealthService::from_health_reporter(health));
        let others = Routes::new(health).add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
        Ok(Self(Arc::new(Served { door, bytes_max, others: others.into_axum_router() })))
    }

    /// Larger requests are to be refused unread.
    pub(super) fn request_bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// Answers the bytes of a RateLimitRequest with those of the reply, its prefix before them. The future is boxed, since it is
    /// large, and moved where it has to wait.
    pub fn should_rate_limit(&self, message: Bytes, within: Option<Duration>) -> BoxFuture<Bytes, Status> {
        let served = Arc::clone(&self.0);
        Box::pin(async move { served.door.should_rate_limit(message, within).await })
    }

    /// Answers a call for any other method.
    pub(super) fn other(&self, request: Request<Body>) -> impl Future<Output = Response<Body>> + 'static {
        let mut others = self.0.others.clone();
        async move { others.call(request).await.unwrap_or_else(|never| match never {}) }
    }
}

impl RateLimitClient {
    pub fn new(channel: Channel) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    /// # Errors
    /// What the server says, or, with a source, that the connection failed.
    pub async fn should_rate_limit(&mut self, request: RateLimitRequest) -> Result<tonic::Response<RateLimitResponse>, Status> {
        self.0.ready().await.map_err(|error| Status::from_error(error.into()))?;
        self.0.unary(tonic::Request::new(request), PathAndQuery::from_static(METHOD), ProstCodec::default()).await
    }
}
