//! `ratelimitd test`: runs tests of rules (`config::scenario` says how they are written) on counters in memory and on time that is
//! stepped, never waited for. Each test has counters of its own.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::config::scenario::{self, Expected, Scenario, Step, Suite};
use crate::config::{self, Problems};
use crate::grpc::pb::RateLimitResponse;
use crate::grpc::pb::rate_limit_response::{Code, DescriptorStatus};
use crate::grpc::{self, LimitHeaders, ReplyOptions};
use crate::hit::FailurePolicy;
use crate::limit::{Micros, Window};
use crate::limiter::{Decision, Fallback, RateLimiter, whole_seconds};
use crate::metrics::{Metrics, StoreSeries};
use crate::rules::LiveRules;
use crate::store::{Clock, Memory, SteppedClock, Store};

/// Which tests.
#[derive(Args)]
pub struct TestArgs {
    /// Files of tests
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Where every timeline starts: the beginning of a day, an hour and a minute.
const START: u64 = 20_000 * Window::DAY.micros();

/// What is got where nothing came.
const NONE: &str = "none";

/// Counters of one test.
const COUNTERS_MAX: usize = 1_000_000;

/// Why a file's tests can't be run.
#[derive(Debug, thiserror::Error)]
enum SuiteError {
    #[error("{0}")]
    Problems(#[from] Problems),
    #[error("{0}: no `rules` are named in it: write `rules: [FILE]`")]
    NoRules(String),
    #[error(transparent)]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("a runtime can't be started: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Exits with 0 where all tests pass, and with 1 where one fails or can't be run.
pub fn run(args: &TestArgs) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for file in &args.files {
        match run_file(file) {
            Ok(results) => {
                for result in results {
                    match result {
                        Ok(()) => passed += 1,
                        Err(failure) => {
                            failed += 1;
                            super::print(&failure);
                        }
                    }
                }
            }
            Err(error) => {
                failed += 1;
                super::print(&format!("{error}\n"));
            }
        }
    }
    super::print(&format!("{passed} passed, {failed} failed\n"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_file(file: &Path) -> Result<Vec<Result<(), String>>, SuiteError> {
    let suite = scenario::suite(file)?;
    if suite.rules.is_empty() {
        return Err(SuiteError::NoRules(file.display().to_string()));
    }
    let Suite { rules, options, scenarios } = suite;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let live = Arc::new(LiveRules::new(config::load(&rules, options)?.rules));
    let metrics = Arc::new(Metrics::new()?);
    let run = |scenario: &Scenario| runtime.block_on(run_scenario(scenario, file, Arc::clone(&live), Arc::clone(&metrics)));
    Ok(scenarios.iter().map(run).collect())
}

/// Runs one test to its first step that fails, and says what was expected and what came instead.
///
/// # Errors
/// The text of the failure.
async fn run_scenario(scenario: &Scenario, file: &Path, rules: Arc<LiveRules>, metrics: Arc<Metrics>) -> Result<(), String> {
    if let Some(step) = scenario.steps.iter().find(|step| !rules.current().has_domain(step.request.domain())) {
        let ((line, column), file, name) = (step.place, file.display(), step.request.domain());
        return Err(format!("{file}:{line}:{column}: `{}` fails: the rules have no domain `{name}`\n", scenario.name));
    }
    let clock = SteppedClock::starting_at(START);
    let memory = Arc::new(Memory::new(COUNTERS_MAX, Clock::Stepped(clock.clone()), StoreSeries::detached()));
    let fallback = Fallback { policy: FailurePolicy::Error, share: 1.0, memory: Arc::clone(&memory) };
    let limiter = RateLimiter::new(rules, Store::Memory(memory), fallback, metrics);
    for step in &scenario.steps {
        clock.set(START + micros(step.at));
        for turn in 1..=step.times {
            let decision = limiter.decide(&step.request, None).await.map_err(|error| error.to_string())?;
            let differences = differences(step, &decision, turn == step.times);
            if !differences.is_empty() {
                return Err(failure(scenario, file, step, turn, &differences));
            }
        }
    }
    Ok(())
}

fn failure(scenario: &Scenario, file: &Path, step: &Step, turn: u64, differences: &[Difference]) -> String {
    let (line, column) = step.place;
    let turn = if step.times > 1 { format!(", time {turn} of {}", step.times) } else { String::new() };
    let (file, name, at) = (file.display(), &scenario.name, Micros(micros(step.at)));
    let mut text = format!("{file}:{line}:{column}: `{name}` fails at {at}{turn}\n");
    for Difference { what, expected, got } in differences {
        text.push_str(&format!("  {what}\n    expected {expected}\n    got      {got}\n"));
    }
    text
}

/// One thing that came out otherwise.
struct Difference {
    what: String,
    expected: String,
    got: String,
}

/// What a step expected and did not get. Numbers change with every turn, so they are compared in the last alone.
fn differences(step: &Step, decision: &Decision, last: bool) -> Vec<Difference> {
    let options = ReplyOptions { headers: Some(LimitHeaders::plain()), dynamic_metadata: false };
    // It fails for dynamic metadata alone, which is not asked for.
    let reply = grpc::reply(&step.request, decision, &options).unwrap_or_default();
    let Expected { over, rule, remaining, reset, headers, statuses } = &step.expected;
    let mut found = Differences(Vec::new());
    found.compare("the answer", over.map(code), code(!decision.admitted));
    let deciding = decision.deciding();
    let at = deciding.and_then(|deciding| decision.statuses.iter().position(|status| std::ptr::eq(status, deciding)));
    let sent = at.and_then(|at| reply.statuses.get(at));
    let numbers = |remaining: Option<u64>, reset: Option<Duration>| {
        (remaining.filter(|_| last).map(|hits| hits.to_string()), reset.filter(|_| last).map(|reset| seconds(whole_seconds(reset, false))))
    };
    found.compare("the rule", rule.clone(), deciding.and_then(|status| status.rule.as_deref()).unwrap_or(NONE).to_owned());
    let (remaining, reset) = numbers(*remaining, *reset);
    found.compare("remaining", remaining, sent.map_or_else(|| NONE.to_owned(), remaining_of));
    found.compare("reset", reset, sent.map_or_else(|| NONE.to_owned(), reset_of));
    for (name, value) in headers.iter().filter(|_| last) {
        found.compare(&format!("the header {name}"), Some(value.clone()), header(&reply, name));
    }
    for (number, (expected, sent)) in statuses.iter().zip(&reply.statuses).enumerate() {
        let of = |what: &str| format!("{what} of descriptor {}", number + 1);
        found.compare(&of("the code"), expected.over.map(code), code(sent.code == Code::OverLimit as i32));
        let (remaining, reset) = numbers(expected.remaining, expected.reset);
        found.compare(&of("remaining"), remaining, remaining_of(sent));
        found.compare(&of("reset"), reset, reset_of(sent));
        let name = sent.current_limit.as_ref().map_or("", |limit| &limit.name).to_owned();
        found.compare(&of("the limit's name"), expected.name.clone(), name);
    }
    found.0
}

struct Differences(Vec<Difference>);

impl Differences {
    fn compare<T: PartialEq + Display>(&mut self, what: &str, expected: Option<T>, got: T) {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            self.0.push(Difference { what: what.to_owned(), expected: expected.to_string(), got: got.to_string() });
        }
    }
}

fn micros(at: Duration) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
}

fn code(over: bool) -> &'static str {
    if over { "OVER_LIMIT" } else { "OK" }
}

/// Where nothing limits a descriptor, 0 is sent. It must not pass for "nothing left": a misspelled key would go unseen.
fn remaining_of(status: &DescriptorStatus) -> String {
    let told = status.current_limit.is_some() || status.limit_remaining > 0;
    if told { status.limit_remaining.to_string() } else { NONE.to_owned() }
}

fn reset_of(status: &DescriptorStatus) -> String {
    status.duration_until_reset.as_ref().map_or_else(|| NONE.to_owned(), |duration| seconds(duration.seconds))
}

fn seconds(count: impl Display) -> String {
    format!("{count}s")
}

fn header(reply: &RateLimitResponse, name: &str) -> String {
    let header = reply.response_headers_to_add.iter().find(|header| header.key.eq_ignore_ascii_case(name));
    header.map_or_else(|| NONE.to_owned(), |header| header.value.clone())
}
