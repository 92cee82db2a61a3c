//! The program `ratelimitd`: the command line of the library, and nothing else.

use std::process::ExitCode;

/// A decision makes some dozens of short-lived allocations: docs/architecture.md says what this one saves.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    distributed_rate_limiter::cli::run(std::env::args_os())
}
