//! Real parts for tests: servers as processes, and plain clients for them.

pub mod certificates;
pub mod cluster;
pub mod envoy;
pub mod grpc;
pub mod http;
pub mod process;
pub mod proxy;
pub mod ratelimitd;
pub mod redis;
pub mod sentinel;
pub mod services;
