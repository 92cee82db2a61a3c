//! What stands behind the gRPC port: the one method of Envoy's rate-limit service, and beside it health and reflection,
//! which tonic serves. Almost every call is for that one method, so it goes straight from HTTP/2 to whoever answers it;
//! `call.rs` reads its message and writes the reply. A client that makes such calls is here as well.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tonic::Status;
use tonic::codegen::{BoxFuture, Service};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_prost::ProstCodec;

use super::Door;
use super::call::{self, Reply, time_left};
use super::pb::{RateLimitRequest, RateLimitResponse};
use super::schema;

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// The services of the gRPC port, for one runtime. Cheap to clone.
#[derive(Clone)]
pub struct Services(Arc<Served>);

struct Served {
    door: Door,
    /// Larger requests are refused unread.
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

    /// The future is boxed: hyper and tokio move it several times before it is first polled.
    pub fn call<B>(&self, request: Request<B>) -> BoxFuture<Response<Reply>, Infallible>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError> + fmt::Display> + Send + Unpin + 'static,
    {
        if request.uri().path() != METHOD {
            let mut others = self.0.others.clone();
            return Box::pin(async move { Ok(others.call(request.map(Body::new)).await?.map(Reply::Other)) });
        }
        let within = time_left(request.headers());
        let (served, body) = (Arc::clone(&self.0), request.into_body());
        Box::pin(async move {
            let answer = match call::message::<RateLimitRequest, _>(body, served.bytes_max).await {
                Ok(message) => served.door.should_rate_limit(message, within).await,
                Err(status) => Err(status),
            };
            Ok(answer.map_or_else(Status::into_http, |answer| call::reply(&answer)))
        })
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
