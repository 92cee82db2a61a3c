//! The yardstick for CPU time per request: a tonic handler on the runtime of `#[tokio::main]` that does nothing but answer
//! OK, with one status for each descriptor. It is what gRPC alone costs where nobody looked.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The argument with which this program is the yardstick.
pub const ROLE: &str = "yardstick";

/// A yardstick that runs, killed when dropped.
pub struct Yardstick {
    child: Child,
    pub address: SocketAddr,
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

impl Yardstick {
    pub fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg(ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until whoever started it is gone: its end of stdin is closed then.
pub fn serve() {
    // What `#[tokio::main(worker_threads = 1)]` builds.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap().with_nodelay(Some(true));
        println!("{}", incoming.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        let server = Server::builder().add_service(RateLimitServiceServer::new(AlwaysOk)).serve_with_incoming(incoming);
        let orphaned = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        tokio::select! {
            ended = server => ended.unwrap(),
            _ = orphaned => {}
        }
    });
    runtime.shutdown_background();
}
