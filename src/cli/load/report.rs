//! What a load run saw, and its table: answers, errors by gRPC code, latencies, CPU time. It sends nothing and reads no
//! clock; `load` notes each answer here and prints the report at the end.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};
use tonic::{Code, Response, Status};

use super::DRAIN;
use crate::grpc::pb::RateLimitResponse;
use crate::grpc::pb::rate_limit_response::Code as Answer;

/// Longer latencies are counted as this long, in microseconds.
const LONGEST_LATENCY: u64 = 60_000_000;
/// Characters of a first error message that are kept.
const MESSAGE_MAX: usize = 160;

/// What came back.
pub(super) struct Seen {
    ok: u64,
    over_limit: u64,
    /// Answers whose overall_code is neither.
    unknown: u64,
    /// One for each gRPC code, so 17 at most.
    failures: Vec<Failure>,
    /// Microseconds from sending to answer, of answers only: an error that comes fast says nothing about speed.
    latency: Histogram<u64>,
}

struct Failure {
    code: Code,
    count: u64,
    first: String,
}

impl Seen {
    pub(super) fn new() -> Result<Self, CreationError> {
        // Three digits: at most 0.1 % off.
        let latency = Histogram::new_with_bounds(1, LONGEST_LATENCY, 3)?;
        Ok(Self { ok: 0, over_limit: 0, unknown: 0, failures: Vec::new(), latency })
    }

    pub(super) fn note(&mut self, answer: Result<Response<RateLimitResponse>, Status>, took: Duration) {
        match answer {
            Ok(response) => {
                match response.get_ref().overall_code() {
                    Answer::Ok => self.ok += 1,
                    Answer::OverLimit => self.over_limit += 1,
                    Answer::Unknown => self.unknown += 1,
                }
                self.latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            Err(status) => match self.failures.iter_mut().find(|failure| failure.code == status.code()) {
                Some(failure) => failure.count += 1,
                None => {
                    self.failures.push(Failure { code: status.code(), count: 1, first: one_line(&with_causes(status.message(), &status)) })
                }
            },
        }
    }

    pub(super) fn answered(&self) -> u64 {
        self.ok + self.over_limit
    }

    /// Requests that are no longer in flight, whatever became of them.
    pub(super) fn returned(&self) -> u64 {
        self.answered() + self.unknown + self.errors()
    }

    pub(super) fn errors(&self) -> u64 {
        self.failures.iter().map(|failure| failure.count).sum()
    }
}

/// What a run has to show: `Display` is the table.
pub(super) struct Report {
    pub(super) title: String,
    pub(super) interrupted: bool,
    pub(super) elapsed: Duration,
    pub(super) sent: u64,
    pub(super) seen: Seen,
    pub(super) own_cpu: Duration,
    pub(super) server_cpu: Option<Result<Duration, String>>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &self.seen;
        let note = if self.interrupted { ", ended early by Ctrl-C" } else { "" };
        row(f, "target", &self.title)?;
        row(f, "time", format_args!("{:.2} s{note}", self.elapsed.as_secs_f64()))?;
        row(f, "requests", self.sent)?;
        row(f, "per second", format_args!("{:.0}", per_second(self.sent, self.elapsed)))?;
        row(f, "OK", seen.ok)?;
        row(f, "OVER_LIMIT", seen.over_limit)?;
        if seen.unknown > 0 {
            row(f, "UNKNOWN", format_args!("{} (answers with neither code)", seen.unknown))?;
        }
        row(f, "errors", seen.errors())?;
        for Failure { code, count, first } in &seen.failures {
            row(f, &format!("  {code:?}"), format_args!("{count}, the first: {first}"))?;
        }
        let unanswered = self.sent - seen.returned();
        if unanswered > 0 {
            row(f, "unanswered", format_args!("{unanswered}, {} s after the end", DRAIN.as_secs()))?;
        }
        if !seen.latency.is_empty() {
            for (name, quantile) in [("latency p50", 0.5), ("latency p90", 0.9), ("latency p99", 0.99), ("latency p99.9", 0.999)] {
                row(f, name, format_args!("{} us", seen.latency.value_at_quantile(quantile)))?;
            }
            row(f, "latency max", format_args!("{} us", seen.latency.max()))?;
        }
        match &self.server_cpu {
            Some(Ok(cpu)) if seen.returned() > 0 => {
                let each = cpu.as_micros() as f64 / seen.returned() as f64;
                row(f, "server CPU", format_args!("{each:.1} us/request, {:.0} % of a core", share(*cpu, self.elapsed)))?;
            }
            Some(Err(error)) => row(f, "server CPU", error)?,
            Some(Ok(_)) | None => {}
        }
        row(f, "load's own CPU", format_args!("{:.0} % of a core", share(self.own_cpu, self.elapsed)))
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<20} {value}")
}

pub(super) fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn share(cpu: Duration, elapsed: Duration) -> f64 {
    100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// A message and the causes below it, without those that it repeats.
pub(super) fn with_causes(message: &str, error: &dyn StdError) -> String {
    let mut text = message.to_owned();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = cause.source();
    }
    text
}

/// The server chose this text: no line breaks or terminal codes, and not too long.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let elapsed = Duration::from_secs(2);
        Report {
            title: "here".to_owned(),
            interrupted: false,
            elapsed,
            sent: 0,
            seen: Seen::new().unwrap(),
            own_cpu: Duration::from_secs(1),
            server_cpu: None,
        }
    }

    fn answer(code: Answer) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(RateLimitResponse { overall_code: code.into(), ..Default::default() }))
    }

    #[test]
    fn a_report_counts_answers_errors_and_what_never_came() {
        let mut report = report();
        for _ in 0..3 {
            report.seen.note(answer(Answer::Ok), Duration::from_micros(100));
        }
        report.seen.note(answer(Answer::OverLimit), Duration::from_micros(200));
        report.seen.note(Err(Status::unavailable("no\n\u{1b}store")), Duration::from_secs(50));
        report.seen.note(Err(Status::unavailable("later")), Duration::ZERO);
        report.sent = 8;
        report.server_cpu = Some(Ok(Duration::from_micros(60)));
        assert_eq!(
            report.to_string(),
            "target               here\n\
             time                 2.00 s\n\
             requests             8\n\
             per second           4\n\
             OK                   3\n\
             OVER_LIMIT           1\n\
             errors               2\n  \
               Unavailable        2, the first: no  store\n\
             unanswered           2, 2 s after the end\n\
             latency p50          100 us\n\
             latency p90          200 us\n\
             latency p99          200 us\n\
             latency p99.9        200 us\n\
             latency max          200 us\n\
             server CPU           10.0 us/request, 0 % of a core\n\
             load's own CPU       50 % of a core\n"
        );
    }

    #[test]
    fn a_report_without_answers_shows_no_latency() {
        let report = Report { interrupted: true, ..report() };
        let text = report.to_string();
        assert!(text.contains("2.00 s, ended early by Ctrl-C\n") && !text.contains("latency"), "{text}");
    }
}
