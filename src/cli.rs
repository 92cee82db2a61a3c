//! The command line: `ratelimitd` serves; its subcommands are a file each. What each flag means is said beside the struct
//! that holds it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

mod check;
mod explain;
mod load;
mod serve;
mod test;

use crate::settings::ServeArgs;

/// The rate-limit server that Envoy asks: exact sliding windows, in memory or in Redis.
///
/// Without a subcommand it serves: gRPC (envoy.service.ratelimit.v3.RateLimitService) on port 8081, HTTP on 8080,
/// Prometheus metrics on 9090, by the rules in config/. Each flag has an environment variable, named beside it.
#[derive(Parser)]
#[command(name = "ratelimitd", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the default)
    Serve(Box<ServeArgs>),
    /// Say what is wrong with rules files
    Check(check::CheckArgs),
    /// Tell what the rules do to a request, and why
    Explain(explain::ExplainArgs),
    /// Run tests of rules, on stepped time
    Test(test::TestArgs),
    /// Put load on a running server, and print what it did
    Load(load::LoadArgs),
}

/// The exit code of a command line that can't be read, as the shell has it.
const USAGE: u8 = 2;

/// Runs the command line, and says with which code the process should end.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = match cli.command {
        None => serve::run(cli.serve).map_err(|error| error.to_string()),
        Some(Command::Serve(args)) => serve::run(*args).map_err(|error| error.to_string()),
        Some(Command::Check(args)) => return check::run(&args),
        Some(Command::Explain(args)) => explain::run(args).map_err(|error| error.to_string()),
        Some(Command::Test(args)) => return test::run(&args),
        Some(Command::Load(args)) => load::run(args).map_err(|error| error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ratelimitd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; whoever reads it may have gone.
fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// One line for a mistake, what is missing or possible included; the whole text for `--help` and `--version`.
fn refuse(error: &clap::Error) -> ExitCode {
    if let ErrorKind::DisplayHelp | ErrorKind::DisplayVersion = error.kind() {
        // Nobody reads the help on a closed pipe.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let what: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let what = what.join(" ");
    let what = what.trim_start_matches("error: ");
    eprintln!("ratelimitd: {what} (see ratelimitd --help)");
    ExitCode::from(USAGE)
}
