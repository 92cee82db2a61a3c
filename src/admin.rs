//! The operator's door: what is loaded, why a request gets the answer that it gets, and a way to clear a counter. It listens
//! on loopback unless told otherwise, and should stay there: it asks nobody who they are, and `/reset` changes what is
//! counted. It knows HTTP and how to show what others know; it decides nothing.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use httpdate::fmt_http_date;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Problem;
use crate::config::watch::{LoadStatus, Refused};
use crate::descriptor::{Descriptor, Entry, Request, RequestBounds, RequestError};
use crate::limit::{Algorithm, Window};
use crate::limiter::RateLimiter;
use crate::metrics::Metrics;
use crate::rules::{Effect, LiveRules, Rule, RuleLimit};

/// What the routes need.
pub struct Admin {
    limiter: RateLimiter,
    loads: watch::Receiver<LoadStatus>,
    rules: Arc<LiveRules>,
    metrics: Arc<Metrics>,
    bounds: RequestBounds,
}

/// Why a query names no request.
#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error("the query can't be read: {0}; write ?domain=D&KEY=VALUE, with % and & in names and values as %25 and %26")]
    Form(#[from] QueryRejection),
    #[error("no domain: write ?domain=D&KEY=VALUE, each further KEY=VALUE being the descriptor's next entry")]
    NoDomain,
    #[error("a descriptor without entries: write ?domain=D&KEY=VALUE; a parameter named `,` begins another descriptor")]
    NoEntries,
    #[error(transparent)]
    Request(#[from] RequestError),
}

type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

const PATHS: &str = "\
GET  /rlconfig                      what is loaded, the last error, and a line for each limit (?format=json)
GET  /explain?domain=D&KEY=VALUE    what the rules do to a request, and what its counters hold; a parameter named
                                    `,` begins another descriptor
POST /reset?domain=D&KEY=VALUE      clears the counters of such a request
GET  /stats                         the metrics
";

impl Admin {
    /// The limiter is asked from the runtime that serves the routes.
    pub fn new(
        limiter: RateLimiter,
        loads: watch::Receiver<LoadStatus>,
        rules: Arc<LiveRules>,
        metrics: Arc<Metrics>,
        bounds: RequestBounds,
    ) -> Self {
        Self { limiter, loads, rules, metrics, bounds }
    }

    pub fn routes(self) -> Router {
        Router::new()
            .route("/", get(PATHS))
            .route("/rlconfig", get(rlconfig))
            .route("/explain", get(explain))
            .route("/reset", post(reset))
            .route("/stats", get(stats))
            .with_state(Arc::new(self))
    }
}

async fn rlconfig(State(admin): State<Arc<Admin>>, query: Parameters) -> Response {
    let format = match &query {
        Ok(Query(parameters)) => parameters.iter().find(|(name, _)| name == "format").map_or("text", |(_, format)| format),
        Err(_) => "",
    };
    let (loads, rules) = (admin.loads.borrow().clone(), admin.rules.current());
    match format {
        "text" => (as_text(&loads) + &rules.iter().map(rule_as_text).collect::<String>()).into_response(),
        "json" => axum::Json(as_json(&loads, rules.iter())).into_response(),
        _ => (StatusCode::BAD_REQUEST, "the format is text or json: write ?format=json\n").into_response(),
    }
}

async fn explain(State(admin): State<Arc<Admin>>, query: Parameters) -> Response {
    match request(query, admin.bounds) {
        Ok(request) => admin.limiter.explain(&request).await.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn reset(State(admin): State<Arc<Admin>>, headers: HeaderMap, query: Parameters) -> Response {
    // Loopback is no wall against a page in the operator's own browser, which says where it comes from.
    if headers.contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "a web page may not reset a counter: use curl -X POST\n").into_response();
    }
    let request = match request(query, admin.bounds) {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    match admin.limiter.reset(&request).await {
        Ok(keys) if keys.is_empty() => {
            (StatusCode::NOT_FOUND, "such a request is counted nowhere: GET /explain with the same query says why\n").into_response()
        }
        Ok(keys) => keys.iter().map(|key| format!("{key}\n")).collect::<String>().into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}: try again\n")).into_response(),
    }
}

async fn stats(State(admin): State<Arc<Admin>>) -> Response {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], admin.metrics.render()).into_response()
}

/// The first `domain` is the domain; all else, a later `domain` too, is entries in order.
fn request(query: Parameters, bounds: RequestBounds) -> Result<Request, QueryError> {
    let Query(mut parameters) = query?;
    let domain = parameters.iter().position(|(name, _)| name == "domain").ok_or(QueryError::NoDomain)?;
    let (_, domain) = parameters.remove(domain);
    let entries = |of: &[(String, String)]| of.iter().map(|(key, value)| Entry::new(key, value)).collect::<Vec<_>>();
    let descriptor = |of| Descriptor { entries: entries(of), ..Descriptor::default() };
    let descriptors: Vec<_> = parameters.split(|(name, _)| name == ",").map(descriptor).collect();
    if descriptors.iter().any(|descriptor| descriptor.entries.is_empty()) {
        return Err(QueryError::NoEntries);
    }
    Ok(Request::new(domain, descriptors, 1, bounds)?)
}

fn as_text(loads: &LoadStatus) -> String {
    let now = &loads.in_force;
    let files: Vec<_> = now.files.iter().map(|file| file.display().to_string()).collect();
    let (since, domains, rules) = (fmt_http_date(now.since), now.domains, now.rules);
    let mut text = format!("loaded: {since}\nhash: {}\ndomains: {domains}\nrules: {rules}\n", now.hash);
    text.push_str(&files.iter().map(|file| format!("file: {file}\n")).collect::<String>());
    text.push_str(&now.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect::<String>());
    if let Some(Refused { problems, at }) = &loads.refused {
        text.push_str(&format!("refused: {}, the files are newer than the rules in force\n", fmt_http_date(*at)));
        text.push_str(&problems.as_slice().iter().map(|problem| format!("problem: {problem}\n")).collect::<String>());
    }
    text + "\n"
}

/// A line for each limit: the reference server's, which scripts read, and then what is ours.
fn rule_as_text(rule: &Rule) -> String {
    let level = |(key, value): (&str, Option<&str>)| value.map_or_else(|| key.to_owned(), |value| format!("{key}_{value}"));
    let path = [rule.domain().to_owned()].into_iter().chain(rule.levels().map(level)).collect::<Vec<_>>().join(".");
    match rule.effect() {
        Effect::Limits(limits) => limits.iter().map(|limit| format!("{path}: {}\n", limit_as_text(rule, limit))).collect(),
        Effect::Unlimited { replaces } if !replaces.is_empty() => format!("{path}: unlimited, replaces: {}\n", replaces.join(" ")),
        Effect::Unlimited { .. } => format!("{path}: unlimited\n"),
        Effect::Exempt => format!("{path}: exempt\n"),
    }
}

fn limit_as_text(rule: &Rule, limit: &RuleLimit) -> String {
    let (unit, hits, kind) = (unit(limit.window), limit.limit.get(), rule.kind());
    let mut text = format!("unit={unit} requests_per_unit={hits}, shadow_mode: {}, quota_mode: {}", kind.is_shadow(), kind.is_quota());
    let ours = [
        ("window", Some(limit.window.to_string())),
        ("algorithm", Some(limit.algorithm.as_str().to_owned())),
        ("burst", burst(limit).map(|burst| burst.to_string())),
        ("log_entries", log_entries(limit).map(|entries| entries.to_string())),
        ("lease", limit.lease.map(|lease| lease.get().to_string())),
        ("client", (!rule.client_keys().is_empty()).then(|| rule.client_keys().join(" "))),
        ("action", rule.action().map(ToString::to_string)),
        ("name", limit.name.as_deref().map(str::to_owned)),
        ("replaces", (!limit.replaces.is_empty()).then(|| limit.replaces.join(" "))),
        ("count_denied", rule.count_denied().map(|count| count.to_string())),
        ("on_store_failure", rule.on_store_failure().map(|policy| policy.as_str().to_owned())),
    ];
    for (name, value) in ours.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        text.push_str(&format!(", {name}: {value}"));
    }
    text
}

fn burst(limit: &RuleLimit) -> Option<u64> {
    let is_bucket = matches!(limit.algorithm, Algorithm::TokenBucket { .. });
    is_bucket.then(|| limit.algorithm.capacity(limit.limit, limit.window))
}

fn log_entries(limit: &RuleLimit) -> Option<u32> {
    match limit.algorithm {
        Algorithm::SlidingWindowLog { log_entries } => Some(log_entries.get()),
        Algorithm::TokenBucket { .. } | Algorithm::FixedWindow => None,
    }
}

/// The reference server's unit of a window; UNKNOWN where it has none, and the window stands beside it.
fn unit(window: Window) -> String {
    Window::UNITS.into_iter().find(|(_, of)| *of == window).map_or("UNKNOWN".to_owned(), |(unit, _)| unit.to_uppercase())
}

fn as_json<'a>(loads: &LoadStatus, rules: impl Iterator<Item = &'a Rule>) -> Value {
    let problem = |problem: &Problem| json!({"file": problem.file.display().to_string(), "line": problem.line, "column": problem.column, "message": problem.message});
    let problems = |all: &[Problem]| all.iter().map(problem).collect::<Vec<_>>();
    let now = &loads.in_force;
    json!({
        "loaded": seconds(now.since),
        "hash": now.hash,
        "domains": now.domains,
        "rules": now.rules,
        "files": now.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
        "warnings": problems(&now.warnings),
        "refused": loads.refused.as_ref().map(|refused| json!({"at": seconds(refused.at), "problems": problems(refused.problems.as_slice())})),
        "limits": rules.flat_map(rule_as_json).collect::<Vec<_>>(),
    })
}

fn rule_as_json(rule: &Rule) -> Vec<Value> {
    let of = |effect: Value| json!({"domain": rule.domain(), "rule": &**rule.path(), "effect": effect});
    let limit = |limit: &RuleLimit| {
        let kind = rule.kind();
        json!({
            "domain": rule.domain(),
            "rule": &**rule.path(),
            "effect": "limit",
            "limit": limit.limit.get(),
            "window_seconds": limit.window.micros() as f64 / Window::SECOND.micros() as f64,
            "algorithm": limit.algorithm.as_str(),
            "burst": burst(limit),
            "log_entries": log_entries(limit),
            "lease": limit.lease.map(|lease| lease.get()),
            "client": rule.client_keys(),
            "action": rule.action().map(ToString::to_string),
            "name": limit.name.as_deref(),
            "replaces": limit.replaces,
            "shadow_mode": kind.is_shadow(),
            "quota_mode": kind.is_quota(),
            "count_denied": rule.count_denied(),
            "on_store_failure": rule.on_store_failure().map(|policy| policy.as_str()),
        })
    };
    match rule.effect() {
        Effect::Limits(limits) => limits.iter().map(limit).collect(),
        Effect::Unlimited { replaces } => {
            let mut told = of("unlimited".into());
            told["replaces"] = json!(replaces);
            vec![told]
        }
        Effect::Exempt => vec![of("exempt".into())],
    }
}

/// Since the Unix epoch.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, format!("{self}\n")).into_response()
    }
}
