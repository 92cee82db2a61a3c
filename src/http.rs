//! The HTTP door: `/json` and `/healthcheck` as the reference server has them, and `POST /v1/is_allowed`. It knows JSON
//! and status codes; what `/json` carries is protobuf's affair and goes through the gRPC door's one JSON entrance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::{Map, Value, json};

use crate::grpc::Door;
use crate::limiter::{Question, QuestionError, RateLimiter, whole_seconds};
use crate::metrics::{MethodSeries, Metrics};

/// What the routes need. `serving` turns false when the server is about to stop.
pub struct HttpDoor {
    pub limiter: Arc<RateLimiter>,
    pub door: Door,
    pub serving: Arc<AtomicBool>,
    json: MethodSeries,
    is_allowed: MethodSeries,
}

/// A body of `/v1/is_allowed` that is no question: the field, if one can be named, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
struct Mistake {
    field: Option<&'static str>,
    message: String,
}

/// The fields of `/v1/is_allowed`.
const FIELDS: [&str; 6] = ["client_id", "action", "limit", "time_window", "cost", "domain"];

impl HttpDoor {
    pub fn new(limiter: Arc<RateLimiter>, door: Door, serving: Arc<AtomicBool>, metrics: &Metrics) -> Self {
        Self { limiter, door, serving, json: metrics.http_path("/json"), is_allowed: metrics.http_path("/v1/is_allowed") }
    }

    /// The routes; bodies of more than `bytes_max` are refused.
    pub fn routes(self, bytes_max: usize) -> Router {
        Router::new()
            .route("/json", any(json_door))
            .route("/healthcheck", get(healthcheck))
            .route("/v1/is_allowed", post(is_allowed))
            .layer(DefaultBodyLimit::max(bytes_max))
            .with_state(Arc::new(self))
    }
}

async fn json_door(State(door): State<Arc<HttpDoor>>, body: Bytes) -> Response {
    let started = Instant::now();
    let response = match door.door.answer_json(&body).await {
        Ok((admitted, json)) => {
            let status = if admitted { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
            (status, [(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        // The reference answers 400 to everything that has no answer, a failing store included.
        Err(error) => (StatusCode::BAD_REQUEST, format!("Bad Request: {error}\n")).into_response(),
    };
    door.json.answered(started.elapsed());
    response
}

async fn healthcheck(State(door): State<Arc<HttpDoor>>) -> Response {
    if door.serving.load(Ordering::Relaxed) {
        (StatusCode::OK, "OK").into_response()
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "NOT_SERVING").into_response()
    }
}

async fn is_allowed(State(door): State<Arc<HttpDoor>>, body: Bytes) -> Response {
    let started = Instant::now();
    let response = answer(&door.limiter, &body).await;
    door.is_allowed.answered(started.elapsed());
    response
}

async fn answer(limiter: &RateLimiter, body: &[u8]) -> Response {
    let fields = match fields(body) {
        Ok(fields) => fields,
        Err(mistake) => return mistake.into_response(),
    };
    let question = match question(&fields) {
        Ok(question) => question,
        Err(mistake) => return mistake.into_response(),
    };
    match limiter.answer(question).await {
        Ok(answer) => {
            let seconds = whole_seconds(answer.reset_after, !answer.allowed);
            let body = json!({"allowed": answer.allowed, "remaining": answer.remaining, "reset_after_seconds": seconds});
            json_response(StatusCode::OK, &body)
        }
        Err(QuestionError::Store(error)) => json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": error.to_string()})),
        Err(error) => Mistake { field: error.field(), message: error.to_string() }.into_response(),
    }
}

fn fields(body: &[u8]) -> Result<Map<String, Value>, Mistake> {
    let value = serde_json::from_slice(body).map_err(|error| Mistake { field: None, message: format!("the body is not JSON: {error}") })?;
    let Value::Object(fields) = value else {
        return Err(Mistake { field: None, message: format!("the body must be a JSON object with the fields {}", FIELDS.join(", ")) });
    };
    match fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        Some(unknown) => {
            let message = format!("unknown field `{unknown}`: the fields are {}", FIELDS.join(", "));
            Err(Mistake { field: None, message })
        }
        None => Ok(fields),
    }
}

fn question(fields: &Map<String, Value>) -> Result<Question<'_>, Mistake> {
    let text = |name: &'static str| match fields.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(Mistake { field: Some(name), message: format!("{name} must be a string, not {other}") }),
        None => Err(Mistake { field: Some(name), message: format!("{name} is missing") }),
    };
    let number = |name: &'static str, least: &str| match fields.get(name) {
        Some(value) => {
            value.as_u64().ok_or_else(|| Mistake { field: Some(name), message: format!("{name} must be a {least} integer, not {value}") })
        }
        None => Err(Mistake { field: Some(name), message: format!("{name} is missing") }),
    };
    Ok(Question {
        domain: if fields.contains_key("domain") { text("domain")? } else { "" },
        client_id: text("client_id")?,
        action: text("action")?,
        limit: number("limit", "positive")?,
        time_window: number("time_window", "positive")?,
        cost: if fields.contains_key("cost") { number("cost", "non-negative")? } else { 1 },
    })
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

impl IntoResponse for Mistake {
    fn into_response(self) -> Response {
        let body = match self.field {
            Some(field) => json!({"error": self.message, "field": field}),
            None => json!({"error": self.message}),
        };
        json_response(StatusCode::BAD_REQUEST, &body)
    }
}
