//! A gRPC client for `ratelimitd`, blocking, and short ways to write requests.

use std::net::SocketAddr;

use distributed_rate_limiter::grpc::RateLimitClient;
use distributed_rate_limiter::grpc::pb::rate_limit_descriptor::Entry;
use distributed_rate_limiter::grpc::pb::rate_limit_response::Code;
use distributed_rate_limiter::grpc::pb::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

pub struct Client {
    pub runtime: Runtime,
    pub channel: Channel,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_to(format!("http://{address}"))
    }

    /// `http://...` or `unix:/path`.
    pub fn connect_to(target: String) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = tonic::transport::Endpoint::from_shared(target).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self { runtime, channel }
    }

    pub fn service(&self) -> RateLimitClient {
        RateLimitClient::new(self.channel.clone())
    }

    pub fn try_ask(&self, request: RateLimitRequest) -> Result<RateLimitResponse, Status> {
        self.runtime.block_on(self.service().should_rate_limit(request)).map(tonic::Response::into_inner)
    }

    pub fn ask(&self, request: RateLimitRequest) -> RateLimitResponse {
        let descriptors = request.descriptors.len();
        let response = self.try_ask(request).unwrap();
        // What every answer keeps to.
        assert!(response.overall_code == Code::Ok as i32 || response.overall_code == Code::OverLimit as i32);
        assert_eq!(response.statuses.len(), descriptors);
        response
    }

    /// Asks and says whether it was admitted.
    pub fn admits(&self, request: RateLimitRequest) -> bool {
        self.ask(request).overall_code == Code::Ok as i32
    }
}

pub fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, &str)| Entry { key: (*key).to_owned(), value: (*value).to_owned() };
    RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..RateLimitDescriptor::default() }
}

pub fn request(domain: &str, descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: domain.to_owned(), descriptors, hits_addend: 0 }
}
