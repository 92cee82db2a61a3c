//! What a reply tells beside the answer: response headers for the client, and dynamic metadata for Envoy's other filters and
//! its access log. Both are off unless asked for. What stands in a header is checked: Envoy passes it on as it is.

use std::fmt::Write;

use super::pb::HeaderValue;
use super::pb::value::{ListValue, Struct, Value, value::Kind};
use super::{LimitHeaders, ReplyOptions, wire};
use crate::descriptor::{Descriptor, LimitOverride, Request};
use crate::limit::Window;
use crate::limiter::{CurrentLimit, Decision, Status, whole_seconds};
use crate::rules::Metadata;

/// The largest integer of a structured field (RFC 9651, section 3.3.1).
const FIELD_INTEGER_MOST: u64 = 999_999_999_999_999;

pub(super) fn headers(decision: &Decision, options: &ReplyOptions) -> Vec<HeaderValue> {
    let (Some(form), Some(status)) = (&options.headers, decision.deciding()) else { return Vec::new() };
    let Some(current) = &status.current_limit else { return Vec::new() };
    let header = |key: &str, value: String| HeaderValue { key: key.to_owned(), value, ..HeaderValue::default() };
    let (remaining, seconds) = (status.told_remaining(), whole_seconds(status.reset, status.over));
    match form {
        LimitHeaders::Plain { limit, remaining: left, reset } => {
            vec![header(limit, current.limit.get().to_string()), header(left, remaining.to_string()), header(reset, seconds.to_string())]
        }
        LimitHeaders::Draft10 => {
            let policies: Vec<_> = decision.statuses.iter().filter_map(policy).collect();
            let left = format!("{};r={};t={seconds}", policy_name(status, current), remaining.min(FIELD_INTEGER_MOST));
            vec![header("RateLimit-Policy", policies.join(", ")), header("RateLimit", left)]
        }
    }
}

/// What the reference server tells (domain, descriptors, hitsAddend, metadata), and `rule`, the path of the deciding one.
pub(super) fn dynamic_metadata(request: &Request, decision: &Decision) -> Struct {
    let mut fields = vec![("domain", text(request.domain())), ("descriptors", list(request.descriptors().iter().map(descriptor)))];
    if request.hits_addend() > 0 {
        fields.push(("hitsAddend", number(f64::from(request.hits_addend()))));
    }
    let mut merged = Metadata::Map(Default::default());
    decision.statuses.iter().filter_map(|status| status.metadata.as_deref()).for_each(|metadata| merged.merge(metadata));
    if merged != Metadata::Map(Default::default()) {
        fields.push(("metadata", value_of(&merged)));
    }
    if let Some(rule) = decision.deciding().and_then(|status| status.rule.as_deref()) {
        fields.push(("rule", text(rule)));
    }
    structure(fields)
}

/// `"name";q=5;w=60`: hits, and a window of whole seconds.
fn policy(status: &Status) -> Option<String> {
    let current = status.current_limit.as_ref()?;
    let mut policy = format!("{};q={}", policy_name(status, current), current.limit.get().min(FIELD_INTEGER_MOST));
    let micros = current.window.micros();
    if micros.is_multiple_of(Window::SECOND.micros()) {
        let _ = write!(policy, ";w={}", micros / Window::SECOND.micros());
    }
    Some(policy)
}

/// The limit's name, else its rule's path, as a string of a structured field (RFC 9651, section 3.3.3): printable ASCII.
fn policy_name(status: &Status, current: &CurrentLimit) -> String {
    let name = current.name.as_deref().or(status.rule.as_deref()).unwrap_or("limit");
    let mut quoted = String::from("\"");
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => {
                let _ = write!(quoted, "%{byte:02X}");
            }
        }
    }
    quoted + "\""
}

fn descriptor(descriptor: &Descriptor) -> Value {
    let entries = descriptor.entries.iter().map(|entry| text(&format!("{}={}", entry.key, entry.value)));
    let mut fields = vec![("entries", list(entries))];
    if let Some(LimitOverride::Limit { limit, window }) = descriptor.limit {
        fields.push(("limit", text(&wire::override_text(limit, window))));
    }
    if let Some(hits) = descriptor.hits_addend {
        fields.push(("hitsAddend", number(hits as f64)));
    }
    Value { kind: Some(Kind::StructValue(structure(fields))) }
}

fn value_of(metadata: &Metadata) -> Value {
    let kind = match metadata {
        Metadata::Null => Kind::NullValue(0),
        Metadata::Bool(truth) => Kind::BoolValue(*truth),
        Metadata::Number(number) => Kind::NumberValue(*number),
        Metadata::Text(text) => Kind::StringValue(text.clone()),
        Metadata::List(items) => Kind::ListValue(ListValue { values: items.iter().map(value_of).collect() }),
        Metadata::Map(map) => {
            let fields = map.iter().map(|(key, value)| (key.clone(), value_of(value))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn number(number: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(number)) }
}

fn list(values: impl Iterator<Item = Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.collect() })) }
}

fn structure(fields: Vec<(&str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::descriptor::{Entry, RequestBounds};
    use crate::limit::Limit;

    fn status(over: bool, remaining: u64, rule: &str, name: Option<&str>, window: &str) -> Status {
        let limit = CurrentLimit { limit: Limit::from(10), window: window.parse().unwrap(), name: name.map(Arc::from) };
        let (current_limit, reset, rule) = (Some(limit), Duration::from_millis(1_500), Some(Arc::from(rule)));
        Status { over, current_limit, remaining, reset, rule, ..Status::default() }
    }

    fn decision(statuses: &[Status]) -> Decision {
        Decision { admitted: true, statuses: statuses.iter().cloned().collect() }
    }

    fn shown(statuses: &[Status], headers: LimitHeaders) -> Vec<String> {
        let options = ReplyOptions { headers: Some(headers), dynamic_metadata: false };
        super::headers(&decision(statuses), &options).into_iter().map(|header| format!("{}: {}", header.key, header.value)).collect()
    }

    fn plain() -> LimitHeaders {
        LimitHeaders::Plain { limit: "L".into(), remaining: "R".into(), reset: "T".into() }
    }

    #[test]
    fn plain_headers_speak_of_the_least_that_is_left_or_of_the_last_that_is_over() {
        let (many, few) = (status(false, 5, "a", None, "1m"), status(false, 2, "b", None, "1m"));
        assert_eq!(shown(&[many.clone(), few.clone()], plain()), ["L: 10", "R: 2", "T: 2"]);
        let (first, last) = (status(true, 3, "c", None, "1m"), status(true, 4, "d", None, "1m"));
        assert_eq!(decision(&[first.clone(), few.clone(), last.clone()]).deciding(), Some(&last));
        assert_eq!(shown(&[few.clone(), first], plain())[1], "R: 0");
        let quota = Status { quota: true, ..last };
        assert_eq!(decision(&[few.clone(), quota.clone()]).deciding(), Some(&quota), "nothing is left of it");
        assert_eq!(shown(&[Status::default()], plain()), [""; 0]);
        assert_eq!(headers(&decision(&[few]), &ReplyOptions::default()), []);
    }

    #[test]
    fn draft_10_names_all_policies_and_the_deciding_limit() {
        let statuses = [status(false, 5, "path=/a|client", None, "1m"), status(true, 2, "b", Some("say \"hé\"\r\n"), "250ms")];
        let expected = [
            r#"RateLimit-Policy: "path=/a|client";q=10;w=60, "say \"h%C3%A9\"%0D%0A";q=10"#,
            r#"RateLimit: "say \"h%C3%A9\"%0D%0A";r=0;t=2"#,
        ];
        assert_eq!(shown(&statuses, LimitHeaders::Draft10), expected);
    }

    #[test]
    fn dynamic_metadata_has_the_reference_servers_fields_and_the_deciding_rule() {
        let limit = LimitOverride::Limit { limit: Limit::from(7), window: "5m".parse().unwrap() };
        let descriptors = vec![
            Descriptor { entries: vec![Entry::new("k", "v"), Entry::new("l", "")], ..Descriptor::default() },
            Descriptor { limit: Some(limit), hits_addend: Some(0), ..Descriptor::default() },
        ];
        let request = Request::new("d".into(), descriptors, 3, RequestBounds::default()).unwrap();
        let metadata = Metadata::Map([("tier".to_owned(), Metadata::List(vec![Metadata::Null, Metadata::Bool(true)]))].into());
        let status = Status { metadata: Some(Arc::new(metadata)), ..status(false, 1, "k=v|l", None, "1m") };
        let told = dynamic_metadata(&request, &decision(&[status, Status::default()]));
        let expected = structure(vec![
            ("domain", text("d")),
            (
                "descriptors",
                list(
                    [
                        structure(vec![("entries", list([text("k=v"), text("l=")].into_iter()))]),
                        structure(vec![
                            ("entries", list([].into_iter())),
                            ("limit", text("requests_per_unit:7 unit:MINUTE unit_multiplier:{value:5}")),
                            ("hitsAddend", number(0.0)),
                        ]),
                    ]
                    .into_iter()
                    .map(|fields| Value { kind: Some(Kind::StructValue(fields)) }),
                ),
            ),
            ("hitsAddend", number(3.0)),
            (
                "metadata",
                Value {
                    kind: Some(Kind::StructValue(structure(vec![(
                        "tier",
                        list([Value { kind: Some(Kind::NullValue(0)) }, Value { kind: Some(Kind::BoolValue(true)) }].into_iter()),
                    )]))),
                },
            ),
            ("rule", text("k=v|l")),
        ]);
        assert_eq!(told, expected);
    }
}
