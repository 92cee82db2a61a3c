//! Real parts for tests: servers as processes, and plain clients for them.

pub mod envoy;
pub mod grpc;
pub mod http;
pub mod ratelimitd;
pub mod redis;
