//! The program `ratelimitd`: the command line of the library, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    distributed_rate_limiter::cli::run(std::env::args_os())
}
