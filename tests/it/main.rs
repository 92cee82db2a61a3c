//! All integration tests in one binary, an area a file. `./tests/run` installs what they need.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

mod admin;
mod allocations;
mod bad_input;
mod concurrency;
mod demo;
mod docs;
mod envoy;
mod exactness;
mod failures;
mod grpc;
mod http2;
mod http_door;
mod is_allowed;
mod istio;
mod layers;
mod leases;
mod model;
mod policies;
mod process;
mod random;
mod reference;
mod reload;
mod support;
mod tools;
