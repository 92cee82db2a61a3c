//! Every Prometheus series that the process has: its name, help text and labels stand here and nowhere else. Handles
//! are made once and then only bumped; labels come from loaded rules and fixed words, never from a request's bytes.
//! It knows no rules and no store; `server` serves what [`Metrics::render`] writes.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// One process's, or one server's, series. Nothing is global: two servers in one process count apart.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Requests for a domain that no rules file names.
    pub unmatched_domains: Counter,
    /// Descriptors, in a known domain, that no rule matched.
    pub unmatched_descriptors: Counter,
    /// Limit overrides dropped because of their unit.
    pub dropped_overrides: Counter,
    pub rules_loaded: Gauge,
    pub domains_loaded: Gauge,
}

/// A rule's own handles, made once per rule.
#[derive(Clone)]
pub struct RuleSeries {
    /// All costs asked.
    pub total_hits: Counter,
    /// Costs that fitted.
    pub within_limit: Counter,
    /// Costs that did not.
    pub over_limit: Counter,
    /// Costs that did not fit and did no harm, since the rule is in shadow mode.
    pub shadow_mode: Counter,
}

/// One kind of store's handles.
#[derive(Clone)]
pub struct StoreSeries {
    /// Requests asked of the store.
    pub calls: Counter,
    /// Counters dropped before their time, because the store was full. Memory only.
    pub evictions: Counter,
    /// Counters held. Memory only.
    pub counters: Gauge,
    failures: [Counter; StoreFailure::ALL.len()],
}

/// Why a store gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFailure {
    /// No answer before the deadline.
    Deadline,
    /// No connection, or it broke.
    Connection,
    /// The queue toward the store is full.
    QueueFull,
    /// The store answered with an error.
    Reply,
}

/// How often a method was called, and how long it took.
#[derive(Clone)]
pub struct MethodSeries {
    pub requests: Counter,
    pub response_time: Histogram,
}

/// One answer to a store failure: how often it was given.
#[derive(Clone)]
pub struct PolicySeries {
    pub answers: Counter,
}

/// Upper bounds, in seconds: fine where a decision should be (Envoy gives up after 20 ms), coarse beyond.
const RESPONSE_TIME_BUCKETS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0];

const METADATA: Metadata<'static> = Metadata::new("ratelimit", Level::INFO, None);

impl Metrics {
    /// # Errors
    /// Never in practice: the exporter refuses only an empty list of buckets.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new().set_buckets(&RESPONSE_TIME_BUCKETS)?.build_recorder();
        describe(&recorder);
        Ok(Self {
            handle: recorder.handle(),
            unmatched_domains: recorder.register_counter(&Key::from_static_name(UNMATCHED_DOMAINS), &METADATA),
            unmatched_descriptors: recorder.register_counter(&Key::from_static_name(UNMATCHED_DESCRIPTORS), &METADATA),
            dropped_overrides: recorder.register_counter(&Key::from_static_name(DROPPED_OVERRIDES), &METADATA),
            rules_loaded: recorder.register_gauge(&Key::from_static_name(RULES_LOADED), &METADATA),
            domains_loaded: recorder.register_gauge(&Key::from_static_name(DOMAINS_LOADED), &METADATA),
            recorder,
        })
    }

    /// The handles of the rule at `path` in `domain`. The same rule gets the same series, however often it is loaded.
    pub fn rule(&self, domain: &str, path: &str) -> RuleSeries {
        let labels = [("domain", domain), ("rule", path)];
        RuleSeries {
            total_hits: self.counter(TOTAL_HITS, labels),
            within_limit: self.counter(WITHIN_LIMIT, labels),
            over_limit: self.counter(OVER_LIMIT, labels),
            shadow_mode: self.counter(SHADOW_MODE, labels),
        }
    }

    /// The handles of a store of this kind: `memory`, `redis` or `fallback`.
    pub fn store(&self, kind: &'static str) -> StoreSeries {
        StoreSeries {
            calls: self.counter(STORE_CALLS, [("store", kind)]),
            evictions: self.counter(STORE_EVICTIONS, [("store", kind)]),
            counters: self.recorder.register_gauge(&key(STORE_COUNTERS, [("store", kind)]), &METADATA),
            failures: StoreFailure::ALL.map(|why| self.counter(STORE_FAILURES, [("store", kind), ("reason", why.label())])),
        }
    }

    pub fn grpc_method(&self, method: &'static str) -> MethodSeries {
        self.method(TOTAL_REQUESTS, RESPONSE_TIME, "grpc_method", method)
    }

    pub fn http_path(&self, path: &'static str) -> MethodSeries {
        self.method(HTTP_REQUESTS, HTTP_RESPONSE_TIME, "path", path)
    }

    pub fn policy(&self, policy: &'static str) -> PolicySeries {
        PolicySeries { answers: self.counter(POLICY_ANSWERS, [("policy", policy)]) }
    }

    /// All series in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded times into their histograms; to be called every few seconds, or memory grows until a scrape.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn counter<const N: usize>(&self, name: &'static str, labels: [(&'static str, &str); N]) -> Counter {
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    fn method(&self, requests: &'static str, time: &'static str, label: &'static str, value: &'static str) -> MethodSeries {
        MethodSeries {
            requests: self.counter(requests, [(label, value)]),
            response_time: self.recorder.register_histogram(&key(time, [(label, value)]), &METADATA),
        }
    }
}

impl RuleSeries {
    /// Handles that count nothing, for rules that serve no requests.
    pub fn detached() -> Self {
        Self { total_hits: Counter::noop(), within_limit: Counter::noop(), over_limit: Counter::noop(), shadow_mode: Counter::noop() }
    }
}

impl StoreSeries {
    pub fn detached() -> Self {
        let failures = StoreFailure::ALL.map(|_| Counter::noop());
        Self { calls: Counter::noop(), evictions: Counter::noop(), counters: Gauge::noop(), failures }
    }

    pub fn failed(&self, why: StoreFailure) {
        self.failures[why as usize].increment(1);
    }
}

impl MethodSeries {
    pub fn answered(&self, took: Duration) {
        self.requests.increment(1);
        self.response_time.record(took.as_secs_f64());
    }
}

impl StoreFailure {
    const ALL: [Self; 4] = [Self::Deadline, Self::Connection, Self::QueueFull, Self::Reply];

    fn label(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Connection => "connection",
            Self::QueueFull => "queue_full",
            Self::Reply => "reply",
        }
    }
}

// The reference server's names where it has the series.
const TOTAL_REQUESTS: &str = "ratelimit_service_total_requests";
const RESPONSE_TIME: &str = "ratelimit_service_response_time_seconds";
const TOTAL_HITS: &str = "ratelimit_service_rate_limit_total_hits";
const WITHIN_LIMIT: &str = "ratelimit_service_rate_limit_within_limit";
const OVER_LIMIT: &str = "ratelimit_service_rate_limit_over_limit";
const SHADOW_MODE: &str = "ratelimit_service_rate_limit_shadow_mode";
const HTTP_REQUESTS: &str = "ratelimit_http_requests";
const HTTP_RESPONSE_TIME: &str = "ratelimit_http_response_time_seconds";
const UNMATCHED_DOMAINS: &str = "ratelimit_unmatched_domains";
const UNMATCHED_DESCRIPTORS: &str = "ratelimit_unmatched_descriptors";
const DROPPED_OVERRIDES: &str = "ratelimit_dropped_overrides";
const RULES_LOADED: &str = "ratelimit_rules_loaded";
const DOMAINS_LOADED: &str = "ratelimit_domains_loaded";
const STORE_CALLS: &str = "ratelimit_store_calls";
const STORE_FAILURES: &str = "ratelimit_store_failures";
const STORE_EVICTIONS: &str = "ratelimit_store_evictions";
const STORE_COUNTERS: &str = "ratelimit_store_counters";
const POLICY_ANSWERS: &str = "ratelimit_policy_answers";

fn key<const N: usize>(name: &'static str, labels: [(&'static str, &str); N]) -> Key {
    Key::from_parts(name, labels.map(|(label, value)| Label::new(label, value.to_owned())).to_vec())
}

fn describe(recorder: &PrometheusRecorder) {
    for (name, help) in [
        (TOTAL_REQUESTS, "gRPC calls answered, by method"),
        (TOTAL_HITS, "Hits asked of a rule, by their cost"),
        (WITHIN_LIMIT, "Hits that fitted their rule's limit"),
        (OVER_LIMIT, "Hits that did not fit their rule's limit"),
        (SHADOW_MODE, "Hits that did not fit the limit of a rule in shadow mode"),
        (HTTP_REQUESTS, "HTTP calls answered, by path"),
        (UNMATCHED_DOMAINS, "Requests for a domain that no rules file names; they are let through"),
        (UNMATCHED_DESCRIPTORS, "Descriptors in a known domain that no rule matched; they limit nothing"),
        (DROPPED_OVERRIDES, "Limit overrides dropped because their unit is unknown; the rules applied instead"),
        (STORE_CALLS, "Requests asked of a store"),
        (STORE_FAILURES, "Requests that a store did not answer, by reason"),
        (STORE_EVICTIONS, "Counters dropped before their time because the memory store was full"),
        (POLICY_ANSWERS, "Requests answered by the failure policy because the store gave no answer"),
    ] {
        recorder.describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(help));
    }
    for (name, help) in [
        (RULES_LOADED, "Rules with a limit that are in force"),
        (DOMAINS_LOADED, "Domains that the rules in force name"),
        (STORE_COUNTERS, "Counters that the memory store holds"),
    ] {
        recorder.describe_gauge(KeyName::from_const_str(name), None, SharedString::const_str(help));
    }
    for (name, help) in [
        (RESPONSE_TIME, "Time from a gRPC call's decoding to its answer"),
        (HTTP_RESPONSE_TIME, "Time from an HTTP call's arrival to its answer"),
    ] {
        recorder.describe_histogram(KeyName::from_const_str(name), Some(Unit::Seconds), SharedString::const_str(help));
    }
}
