//! Every Prometheus series that the process has: its name, help text and labels stand here and nowhere else. Handles
//! are made once and then only bumped; labels come from loaded rules and fixed words, and from a request only where a rule
//! asks for it, within a bound (`metrics/by_rule.rs`). It knows no rules and no store; `server` serves what
//! [`Metrics::render`] writes.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

mod by_rule;

pub use by_rule::{HitCounts, RuleLabels, RuleSeries, SeriesByValue};

/// One process's, or one server's, series. Nothing is global: two servers in one process count apart.
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    by_rule: by_rule::Register,
    /// Requests for a domain that no rules file names.
    pub unmatched_domains: Counter,
    /// Descriptors, in a known domain, that no rule matched.
    pub unmatched_descriptors: Counter,
    /// Requests that an `exempt` rule let through unasked.
    pub exempted_requests: Counter,
    /// Limit overrides dropped because they name no window.
    pub dropped_overrides: Counter,
    /// Denied requests that passed because of the global shadow mode.
    pub global_shadow_mode: Counter,
    /// Calls that ended in an error because the store gave no answer.
    pub store_errors: Counter,
    /// Calls that ended in an error because they could not be asked.
    pub service_errors: Counter,
    /// Loads of the rules files that went well, the first one included.
    pub load_successes: Counter,
    /// Loads of the rules files that were refused.
    pub load_errors: Counter,
    pub rules_loaded: Gauge,
    pub domains_loaded: Gauge,
    /// 1 while the newest files were refused.
    pub rules_stale: Gauge,
    /// When the rules in force were loaded, in seconds since the Unix epoch.
    pub rules_loaded_at: Gauge,
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

/// The handles of the Redis store, all its runtimes together.
#[derive(Clone)]
pub struct RedisSeries {
    pub store: StoreSeries,
    /// Requests denied by a remembered denial, without a call.
    pub denial_answers: Counter,
    /// Hits in one call of the script.
    pub batch_hits: Histogram,
    /// Requests that wait for the next call.
    pub queue_depth: Gauge,
    /// How many nodes are not asked because they do not answer.
    pub breakers_open: Gauge,
    pub breaker_openings: Counter,
    /// Hits recorded in one part of a request and taken back because another part denied it.
    pub taken_back: Counter,
    /// Requests decided by leases alone.
    pub lease_answers: Counter,
    /// Calls for the next lease.
    pub lease_fetches: Counter,
    pub lease_hits_granted: Counter,
    /// Granted, and given back unspent.
    pub lease_hits_returned: Counter,
    deadline_misses: [Counter; Stage::ALL.len()],
}

/// What a request waited for when its deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For the next batch.
    Queue,
    /// For a connection.
    Connect,
    /// For its batch's reply.
    Call,
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
    /// The store was not asked, because it lately gave no answers.
    BreakerOpen,
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

const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

const METADATA: Metadata<'static> = Metadata::new("ratelimit", Level::INFO, None);

impl Metrics {
    /// # Errors
    /// Never in practice: the exporter refuses only an empty list of buckets.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = Arc::new(
            PrometheusBuilder::new()
                .set_buckets(&RESPONSE_TIME_BUCKETS)?
                .set_buckets_for_metric(Matcher::Full(BATCH_HITS.to_owned()), &BATCH_BUCKETS)?
                .build_recorder(),
        );
        describe(&recorder);
        let counter = |name| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        let gauge = |name| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let error = |kind| recorder.register_counter(&key(SHOULD_RATE_LIMIT_ERROR, [("err_type", kind)]), &METADATA);
        Ok(Self {
            handle: recorder.handle(),
            by_rule: by_rule::Register::new(Arc::clone(&recorder)),
            global_shadow_mode: counter(GLOBAL_SHADOW_MODE),
            store_errors: error("redis_error"),
            service_errors: error("service_error"),
            unmatched_domains: counter(UNMATCHED_DOMAINS),
            unmatched_descriptors: counter(UNMATCHED_DESCRIPTORS),
            exempted_requests: counter(EXEMPTED_REQUESTS),
            dropped_overrides: counter(DROPPED_OVERRIDES),
            load_successes: counter(LOAD_SUCCESSES),
            load_errors: counter(LOAD_ERRORS),
            rules_loaded: gauge(RULES_LOADED),
            domains_loaded: gauge(DOMAINS_LOADED),
            rules_stale: gauge(RULES_STALE),
            rules_loaded_at: gauge(RULES_LOADED_AT),
            recorder,
        })
    }

    /// The handles of the rule with these labels. The same labels give the same series, however often a rule is loaded.
    pub fn rule(&self, labels: &RuleLabels<'_>) -> RuleSeries {
        self.by_rule.rule(labels)
    }

    /// The handles of a rule whose series are told apart by values of the requests, a bounded number of them.
    pub fn rule_by_value(&self, rule: &RuleLabels<'_>) -> Arc<SeriesByValue> {
        self.by_rule.rule_by_value(rule)
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

    /// The handles of the Redis store.
    pub fn redis(&self) -> RedisSeries {
        let labels = || [("store", "redis")];
        let gauge = |name| self.recorder.register_gauge(&key(name, labels()), &METADATA);
        RedisSeries {
            store: self.store("redis"),
            denial_answers: self.counter(DENIAL_ANSWERS, labels()),
            batch_hits: self.recorder.register_histogram(&key(BATCH_HITS, labels()), &METADATA),
            queue_depth: gauge(QUEUE_DEPTH),
            breakers_open: gauge(BREAKERS_OPEN),
            breaker_openings: self.counter(BREAKER_OPENINGS, labels()),
            taken_back: self.counter(TAKEN_BACK, labels()),
            lease_answers: self.counter(LEASE_ANSWERS, labels()),
            lease_fetches: self.counter(LEASE_FETCHES, labels()),
            lease_hits_granted: self.counter(LEASE_HITS_GRANTED, labels()),
            lease_hits_returned: self.counter(LEASE_HITS_RETURNED, labels()),
            deadline_misses: Stage::ALL.map(|stage| self.counter(DEADLINE_MISSES, [("store", "redis"), ("stage", stage.label())])),
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

    /// The content type of what [`Metrics::render`] writes.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

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

impl StoreSeries {
    pub fn detached() -> Self {
        let failures = StoreFailure::ALL.map(|_| Counter::noop());
        Self { calls: Counter::noop(), evictions: Counter::noop(), counters: Gauge::noop(), failures }
    }

    pub fn failed(&self, why: StoreFailure) {
        self.failures[why as usize].increment(1);
    }
}

impl RedisSeries {
    pub fn detached() -> Self {
        Self {
            store: StoreSeries::detached(),
            denial_answers: Counter::noop(),
            batch_hits: Histogram::noop(),
            queue_depth: Gauge::noop(),
            breakers_open: Gauge::noop(),
            breaker_openings: Counter::noop(),
            taken_back: Counter::noop(),
            lease_answers: Counter::noop(),
            lease_fetches: Counter::noop(),
            lease_hits_granted: Counter::noop(),
            lease_hits_returned: Counter::noop(),
            deadline_misses: Stage::ALL.map(|_| Counter::noop()),
        }
    }

    pub fn missed(&self, stage: Stage) {
        self.deadline_misses[stage as usize].increment(1);
    }
}

impl Stage {
    const ALL: [Self; 3] = [Self::Queue, Self::Connect, Self::Call];

    fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Connect => "connect",
            Self::Call => "call",
        }
    }
}

impl MethodSeries {
    pub fn answered(&self, took: Duration) {
        self.requests.increment(1);
        self.response_time.record(took.as_secs_f64());
    }
}

impl StoreFailure {
    const ALL: [Self; 5] = [Self::Deadline, Self::Connection, Self::QueueFull, Self::Reply, Self::BreakerOpen];

    fn label(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Connection => "connection",
            Self::QueueFull => "queue_full",
            Self::Reply => "reply",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

// The reference server's names where it has the series.
const TOTAL_REQUESTS: &str = "ratelimit_service_total_requests";
const RESPONSE_TIME: &str = "ratelimit_service_response_time_seconds";
const SHOULD_RATE_LIMIT_ERROR: &str = "ratelimit_service_should_rate_limit_error";
const GLOBAL_SHADOW_MODE: &str = "ratelimit_service_global_shadow_mode";
const HTTP_REQUESTS: &str = "ratelimit_http_requests";
const HTTP_RESPONSE_TIME: &str = "ratelimit_http_response_time_seconds";
const UNMATCHED_DOMAINS: &str = "ratelimit_unmatched_domains";
const UNMATCHED_DESCRIPTORS: &str = "ratelimit_unmatched_descriptors";
const EXEMPTED_REQUESTS: &str = "ratelimit_exempted_requests";
const DROPPED_OVERRIDES: &str = "ratelimit_dropped_overrides";
const LOAD_SUCCESSES: &str = "ratelimit_service_config_load_success";
const LOAD_ERRORS: &str = "ratelimit_service_config_load_error";
const RULES_STALE: &str = "ratelimit_rules_stale";
const RULES_LOADED_AT: &str = "ratelimit_rules_loaded_timestamp_seconds";
const RULES_LOADED: &str = "ratelimit_rules_loaded";
const DOMAINS_LOADED: &str = "ratelimit_domains_loaded";
const STORE_CALLS: &str = "ratelimit_store_calls";
const STORE_FAILURES: &str = "ratelimit_store_failures";
const STORE_EVICTIONS: &str = "ratelimit_store_evictions";
const STORE_COUNTERS: &str = "ratelimit_store_counters";
const POLICY_ANSWERS: &str = "ratelimit_policy_answers";
const DENIAL_ANSWERS: &str = "ratelimit_store_denial_answers";
const BATCH_HITS: &str = "ratelimit_store_batch_hits";
const QUEUE_DEPTH: &str = "ratelimit_store_queue_depth";
const BREAKERS_OPEN: &str = "ratelimit_store_breaker_open";
const BREAKER_OPENINGS: &str = "ratelimit_store_breaker_openings";
const TAKEN_BACK: &str = "ratelimit_store_hits_taken_back";
const LEASE_ANSWERS: &str = "ratelimit_store_lease_answers";
const LEASE_FETCHES: &str = "ratelimit_store_lease_fetches";
const LEASE_HITS_GRANTED: &str = "ratelimit_store_lease_hits_granted";
const LEASE_HITS_RETURNED: &str = "ratelimit_store_lease_hits_returned";
const DEADLINE_MISSES: &str = "ratelimit_store_deadline_misses";

fn key<const N: usize>(name: &'static str, labels: [(&'static str, &str); N]) -> Key {
    Key::from_parts(name, labels.map(|(label, value)| Label::new(label, value.to_owned())).to_vec())
}

fn describe(recorder: &PrometheusRecorder) {
    for (name, help) in [
        (TOTAL_REQUESTS, "gRPC calls answered, by method"),
        (SHOULD_RATE_LIMIT_ERROR, "gRPC calls that ended in an error: redis_error for the store's, service_error for the request's"),
        (GLOBAL_SHADOW_MODE, "Denied requests that passed because of SHADOW_MODE"),
        (HTTP_REQUESTS, "HTTP calls answered, by path"),
        (UNMATCHED_DOMAINS, "Requests for a domain that no rules file names; they are let through"),
        (UNMATCHED_DESCRIPTORS, "Descriptors in a known domain that no rule matched; they limit nothing"),
        (EXEMPTED_REQUESTS, "Requests that an exempt rule let through unasked"),
        (
            DROPPED_OVERRIDES,
            "Limit overrides dropped because they name no window (an unknown unit, a multiplier of 0, above 10 years); the rules applied instead",
        ),
        (LOAD_SUCCESSES, "Loads of the rules files that went well"),
        (LOAD_ERRORS, "Loads of the rules files that were refused; the old rules stay"),
        (STORE_CALLS, "Requests asked of a store"),
        (STORE_FAILURES, "Requests that a store did not answer, by reason"),
        (STORE_EVICTIONS, "Counters dropped before their time because the memory store was full"),
        (POLICY_ANSWERS, "Requests answered by the failure policy because the store gave no answer"),
        (DENIAL_ANSWERS, "Requests denied by a remembered denial or a lease that is used up, without asking the store"),
        (TAKEN_BACK, "Hits recorded in one slot or store and taken back because another one denied their request"),
        (LEASE_ANSWERS, "Requests decided by hits taken from the store ahead of use, without asking it"),
        (LEASE_FETCHES, "Calls for hits ahead of use"),
        (LEASE_HITS_GRANTED, "Hits taken from the store ahead of use"),
        (LEASE_HITS_RETURNED, "Of those, hits that were not spent and given back"),
        (BREAKER_OPENINGS, "How often the store was given up until it answers a probe"),
        (DEADLINE_MISSES, "Requests that the store did not answer in time, by what they waited for: queue, connect or call"),
    ] {
        recorder.describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(help));
    }
    by_rule::describe(recorder);
    for (name, help) in [
        (RULES_LOADED, "Rules with a limit that are in force"),
        (DOMAINS_LOADED, "Domains that the rules in force name"),
        (RULES_STALE, "1 while the rules in force are not the newest, because the newest files were refused"),
        (RULES_LOADED_AT, "When the rules in force were loaded, in seconds since the Unix epoch"),
        (STORE_COUNTERS, "Counters that the memory store holds"),
        (QUEUE_DEPTH, "Requests that wait for the next call to the store"),
        (BREAKERS_OPEN, "Nodes of the store that are not asked because they gave no answers: 0, or 1 where it is no Cluster"),
    ] {
        recorder.describe_gauge(KeyName::from_const_str(name), None, SharedString::const_str(help));
    }
    for (name, help) in [
        (RESPONSE_TIME, "Time from a gRPC call's decoding to its answer"),
        (HTTP_RESPONSE_TIME, "Time from an HTTP call's arrival to its answer"),
    ] {
        recorder.describe_histogram(KeyName::from_const_str(name), Some(Unit::Seconds), SharedString::const_str(help));
    }
    recorder.describe_histogram(
        KeyName::from_const_str(BATCH_HITS),
        None,
        SharedString::const_str("Hits decided by one call to the store"),
    );
}
