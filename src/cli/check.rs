//! `ratelimitd check`: what a server would say of rules files, without serving. For editors and CI.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::config::{self, LoadOptions, Problem};
use crate::limit::Algorithm;
use crate::settings::{algorithm, boolean};

/// What to check, and how to tell.
#[derive(Args)]
pub struct CheckArgs {
    /// Rules files, or folders of them; they are loaded together, as a server loads them
    #[arg(value_name = "PATH", required_unless_present = "schema")]
    paths: Vec<PathBuf>,

    /// Take warnings for errors
    #[arg(long)]
    strict: bool,

    /// text: a line each, and a summary; json: one object
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,

    /// Put the rules of several files with the same domain together
    #[arg(long, env = "MERGE_DOMAIN_CONFIG", value_parser = boolean)]
    merge_domain_config: bool,

    /// How limits are counted that don't say: sliding_window_log, token_bucket or fixed_window
    #[arg(long, env = "DEFAULT_ALGORITHM", value_name = "ALGORITHM", default_value = "sliding_window_log", value_parser = algorithm)]
    default_algorithm: Algorithm,

    /// Print the JSON Schema of rules files instead
    #[arg(long)]
    schema: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What came of it.
struct Outcome {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    /// None where the rules don't load.
    loaded: Option<Summary>,
    ok: bool,
}

struct Summary {
    files: usize,
    domains: usize,
    rules: usize,
    hash: String,
}

/// Exits with 0 where the rules load, and with 1 where they don't.
pub fn run(args: &CheckArgs) -> ExitCode {
    if args.schema {
        super::print(&config::schema());
        return ExitCode::SUCCESS;
    }
    let outcome = check(args);
    super::print(&match args.format {
        Format::Text => outcome.text(args.strict),
        Format::Json => format!("{:#}\n", outcome.json(args.strict)),
    });
    if outcome.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(args: &CheckArgs) -> Outcome {
    let options = LoadOptions { merge_domains: args.merge_domain_config, default_algorithm: args.default_algorithm };
    match config::load(&args.paths, options) {
        Ok(loaded) => {
            let (domains, rules) = loaded.rules.counts();
            let summary = Summary { files: loaded.files.len(), domains, rules, hash: loaded.hash };
            let ok = !args.strict || loaded.warnings.is_empty();
            Outcome { errors: Vec::new(), warnings: loaded.warnings, loaded: Some(summary), ok }
        }
        Err(problems) => {
            let (errors, warnings) = (problems.as_slice().to_vec(), problems.warnings().to_vec());
            Outcome { errors, warnings, loaded: None, ok: false }
        }
    }
}

impl Outcome {
    /// All that was said, in the order of the places, each with its weight.
    fn said(&self, strict: bool) -> Vec<(&Problem, &'static str)> {
        let weight = if strict { "error" } else { "warning" };
        let errors = self.errors.iter().map(|problem| (problem, "error"));
        let mut said: Vec<_> = errors.chain(self.warnings.iter().map(|problem| (problem, weight))).collect();
        said.sort();
        said
    }

    fn text(&self, strict: bool) -> String {
        let said = self.said(strict);
        let mut text: String =
            said.iter().map(|(problem, weight)| format!("{} {weight}: {}\n", problem.place(), problem.message)).collect();
        let errors = said.iter().filter(|(_, weight)| *weight == "error").count();
        match &self.loaded {
            Some(Summary { files, domains, rules, hash }) if self.ok => {
                let warnings = said.len();
                text.push_str(&format!("ok: files {files}, domains {domains}, rules {rules}, warnings {warnings}, hash {hash}\n"));
            }
            _ => text.push_str(&format!("failed: errors {errors}, warnings {}\n", said.len() - errors)),
        }
        text
    }

    fn json(&self, strict: bool) -> Value {
        let problem = |(problem, weight): &(&Problem, &str)| {
            let mut told = json!({ "file": problem.file.display().to_string(), "severity": weight, "message": problem.message });
            // Where the problem is the file itself, there is no place in it.
            if problem.line > 0 {
                told["line"] = json!(problem.line);
                told["column"] = json!(problem.column);
            }
            told
        };
        let mut told = json!({ "ok": self.ok, "problems": self.said(strict).iter().map(problem).collect::<Vec<_>>() });
        if let Some(Summary { files, domains, rules, hash }) = &self.loaded {
            for (name, value) in [("files", json!(files)), ("domains", json!(domains)), ("rules", json!(rules)), ("hash", json!(hash))] {
                told[name] = value;
            }
        }
        told
    }
}
