//! The program `ratelimitd`: the command line of the library, and nothing else.

use std::process::ExitCode;

/// A call makes a dozen short-lived allocations, and HTTP/2 more: docs/architecture.md says what this one saves.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    distributed_rate_limiter::cli::run(std::env::args_os())
}
