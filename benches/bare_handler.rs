//! The yardstick for CPU time per request: a tonic handler that does nothing but answer OK, with one status per
//! descriptor. `ratelimitd load --pid` against this and against `ratelimitd serve`, on the same machine in the same
//! minute, says what the decision itself costs. It measures nothing by itself, and ends by itself.
//!
//! `cargo bench --bench bare_handler -- --listen 127.0.0.1:18081 --seconds 30 [--workers 1 | --current-thread]`

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A bare tonic handler that always answers OK.
#[derive(Parser)]
struct Args {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long)]
    listen: SocketAddr,

    /// Seconds until it ends, 1 to 3600
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,

    /// Worker threads of the multi-threaded runtime, 1 to 64
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,

    /// Run on one current-thread runtime instead
    #[arg(long, conflicts_with = "workers")]
    current_thread: bool,

    /// What `cargo bench` passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

struct AlwaysOk;

#[tonic::async_trait]
impl RateLimitService for AlwaysOk {
    async fn should_rate_limit(&self, request: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        let ok = i32::from(Code::Ok);
        let statuses = request.get_ref().descriptors.iter().map(|_| DescriptorStatus { code: ok, ..Default::default() }).collect();
        Ok(Response::new(RateLimitResponse { overall_code: ok, statuses, ..Default::default() }))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` and `cargo test --benches` start every bench, with flags of their own.
    if !std::env::args().any(|arg| arg == "--listen" || arg.starts_with("--listen=")) {
        println!("bare_handler: the yardstick server for `ratelimitd load`; it runs only with --listen ADDRESS (see its first lines)");
        return Ok(());
    }
    let args = Args::parse();
    runtime(&args)?.block_on(serve(&args))
}

fn runtime(args: &Args) -> std::io::Result<Runtime> {
    if args.current_thread {
        Builder::new_current_thread().enable_all().build()
    } else {
        // What `#[tokio::main(worker_threads = N)]` builds.
        Builder::new_multi_thread().worker_threads(usize::from(args.workers)).enable_all().build()
    }
}

async fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind(args.listen)?.with_nodelay(Some(true));
    let kind = if args.current_thread { "current-thread runtime".to_owned() } else { format!("{} worker(s)", args.workers) };
    println!("pid {} listens on {} for {} s, {kind}", std::process::id(), incoming.local_addr()?, args.seconds);
    let server = Server::builder().add_service(RateLimitServiceServer::new(AlwaysOk)).serve_with_incoming(incoming);
    // Dropping the server, instead of draining it, ends the process on time whatever its clients do.
    match tokio::time::timeout(Duration::from_secs(args.seconds), server).await {
        Ok(ended) => Ok(ended?),
        Err(_time_is_up) => Ok(()),
    }
}
