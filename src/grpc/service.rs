//! The one method of Envoy's rate-limit service over HTTP/2: how a call reaches whoever answers it, and a client that
//! makes such calls. It knows the method's path and which messages go in and out, and nothing of what they say. What
//! tonic offers to generated services is used by hand: that is less code than what is generated.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::body::Body;
// Hidden in tonic's documentation, but what every service that tonic-build generates stands on.
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse, uri::PathAndQuery};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::pb::{RateLimitRequest, RateLimitResponse};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Serves the method by whoever answers it.
#[derive(Clone)]
pub(super) struct RateLimitServer<S> {
    answerer: S,
    bytes_max: usize,
}

/// Asks a server, over a connection that clones share.
#[derive(Clone)]
pub struct RateLimitClient(tonic::client::Grpc<Channel>);

impl<S> RateLimitServer<S> {
    /// Larger requests than `bytes_max` are refused unread.
    pub(super) fn new(answerer: S, bytes_max: usize) -> Self {
        Self { answerer, bytes_max }
    }
}

impl<S> NamedService for RateLimitServer<S> {
    const NAME: &'static str = "envoy.service.ratelimit.v3.RateLimitService";
}

impl<S> Service<HttpRequest<Body>> for RateLimitServer<S>
where
    S: UnaryService<RateLimitRequest, Response = RateLimitResponse, Future: Send> + Clone + Send + 'static,
{
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let Self { answerer, bytes_max } = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("the service has one method: ShouldRateLimit").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default()).max_decoding_message_size(bytes_max);
            Ok(grpc.unary(answerer, request).await)
        })
    }
}

impl RateLimitClient {
    pub fn new(channel: Channel) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    /// # Errors
    /// What the server says, or, with a source, that the connection failed.
    pub async fn should_rate_limit(&mut self, request: RateLimitRequest) -> Result<Response<RateLimitResponse>, Status> {
        self.0.ready().await.map_err(|error| Status::from_error(error.into()))?;
        self.0.unary(Request::new(request), PathAndQuery::from_static(METHOD), ProstCodec::default()).await
    }
}
