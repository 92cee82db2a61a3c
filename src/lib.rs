//! An Envoy-compatible rate-limit server, and the library that it is made of.
pub mod cli;
pub mod config;
pub mod descriptor;
pub mod grpc;
pub mod hit;
pub mod http;
pub mod limit;
pub mod limiter;
pub mod metrics;
pub mod rules;
pub mod server;
pub mod settings;
pub mod store;
