//! The rate-limit protocol as descriptors: the part of Envoy's `.proto` files that a
//! RateLimitService speaks, written as a table beside the messages of `pb`.
//! Two doors read it: gRPC reflection serves it, and `/json` translates requests and responses
//! with it. The table knows no rule and no limit, and leaves out comments, validation and options,
//! which change no byte on the wire. The tests hold it to those messages, field by field.

use std::sync::LazyLock;

use prost::Name;
use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage, MessageDescriptor};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, OneofDescriptorProto, ServiceDescriptorProto,
};

use super::pb::{RateLimitRequest, RateLimitResponse};

/// Why a message was not read from JSON or not written to it.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The text is no JSON, or not the JSON of this message. The text names line and column.
    /// On reading it is the sender's fault; on writing it means a value that JSON has no form for.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The message nests deeper than protobuf reads, or our table and the types disagree.
    #[error("the message doesn't fit its protobuf type: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Our own table is broken. The tests exclude it.
    #[error("broken protobuf schema: {0}")]
    Schema(String),
}

/// The files of RateLimitService, each after those that it imports, as reflection wants them.
///
/// Envoy's files are cut down to what the service reaches; the `google/protobuf` ones are whole.
pub(crate) fn file_descriptor_set() -> FileDescriptorSet {
    let well_known = DescriptorPool::global();
    let well_known = well_known.file_descriptor_protos().filter(|file| [DURATION, STRUCT, TIMESTAMP, WRAPPERS].contains(&file.name()));
    FileDescriptorSet { file: well_known.cloned().chain(envoy_files()).collect() }
}

/// Reads a request from proto3 JSON: field names in camelCase or as in the `.proto` file, enums by
/// name or number, 64-bit integers as text or number, null for "not set". Of a field given twice
/// the last counts (Go's protojson refuses it). A number without a name in an enum is kept, as on
/// the wire.
///
/// # Errors
///
/// [`JsonError::Json`] on anything else: an unknown field or enum name, a value of the wrong type
/// or out of range, text after the value, nesting deeper than 128.
pub(crate) fn request_from_json(json: &[u8]) -> Result<RateLimitRequest, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let descriptor = descriptor_of::<RateLimitRequest>()?;
    let message = DynamicMessage::deserialize(descriptor, &mut deserializer)?;
    deserializer.end()?;
    Ok(message.transcode_to()?)
}

/// Writes a response as proto3 JSON: camelCase, enums by name, bytes in base64; fields that are
/// zero or empty are left out, so an empty response is `{}`.
///
/// # Errors
///
/// Only for what JSON or protobuf can't carry: `dynamic_metadata` with a NaN or an infinity, or
/// nested beyond the 100 messages that prost decodes (a map in a map takes several of them); a
/// duration or a time out of protobuf's range.
pub(crate) fn response_to_json(response: &RateLimitResponse) -> Result<Vec<u8>, JsonError> {
    let mut message = DynamicMessage::new(descriptor_of::<RateLimitResponse>()?);
    message.transcode_from(response)?;
    Ok(serde_json::to_vec(&message)?)
}

fn descriptor_of<M: Name>() -> Result<MessageDescriptor, JsonError> {
    static POOL: LazyLock<Result<DescriptorPool, DescriptorError>> =
        LazyLock::new(|| DescriptorPool::from_file_descriptor_set(file_descriptor_set()));
    let pool = POOL.as_ref().map_err(|e| JsonError::Schema(e.to_string()))?;
    pool.get_message_by_name(&M::full_name()).ok_or_else(|| JsonError::Schema(format!("no message {}", M::full_name())))
}

const BASE: &str = "envoy/config/core/v3/base.proto";
const RATELIMIT: &str = "envoy/extensions/common/ratelimit/v3/ratelimit.proto";
const RATELIMIT_UNIT: &str = "envoy/type/v3/ratelimit_unit.proto";
const RLS: &str = "envoy/service/ratelimit/v3/rls.proto";
const DURATION: &str = "google/protobuf/duration.proto";
const STRUCT: &str = "google/protobuf/struct.proto";
const TIMESTAMP: &str = "google/protobuf/timestamp.proto";
const WRAPPERS: &str = "google/protobuf/wrappers.proto";

/// The table. Fields and enum values stand in the order of the `.proto` files, not by number, so
/// that the two can be compared side by side.
fn envoy_files() -> [FileDescriptorProto; 4] {
    [
        FileDescriptorProto {
            enum_type: vec![enumeration(
                "RateLimitUnit",
                &[("UNKNOWN", 0), ("SECOND", 1), ("MINUTE", 2), ("HOUR", 3), ("DAY", 4), ("MONTH", 5), ("YEAR", 6)],
            )],
            ..file(RATELIMIT_UNIT, "envoy.type.v3", &[])
        },
        FileDescriptorProto {
            message_type: vec![message(
                "HeaderValue",
                vec![scalar("key", 1, Type::String), scalar("value", 2, Type::String), scalar("raw_value", 3, Type::Bytes)],
            )],
            ..file(BASE, "envoy.config.core.v3", &[])
        },
        FileDescriptorProto {
            message_type: vec![rate_limit_descriptor()],
            ..file(RATELIMIT, "envoy.extensions.common.ratelimit.v3", &[RATELIMIT_UNIT, WRAPPERS])
        },
        FileDescriptorProto {
            service: vec![rate_limit_service()],
            message_type: vec![rate_limit_request(), rate_limit_response()],
            ..file(RLS, "envoy.service.ratelimit.v3", &[BASE, RATELIMIT, DURATION, STRUCT, TIMESTAMP, WRAPPERS])
        },
    ]
}

fn rate_limit_descriptor() -> DescriptorProto {
    const THIS: &str = ".envoy.extensions.common.ratelimit.v3.RateLimitDescriptor";
    DescriptorProto {
        nested_type: vec![
            message("Entry", vec![scalar("key", 1, Type::String), scalar("value", 2, Type::String)]),
            message(
                "RateLimitOverride",
                vec![
                    scalar("requests_per_unit", 1, Type::Uint32),
                    of_enum("unit", 2, ".envoy.type.v3.RateLimitUnit"),
                    of_message("unit_multiplier", 3, ".google.protobuf.UInt32Value"),
                ],
            ),
        ],
        ..message(
            "RateLimitDescriptor",
            vec![
                repeated(of_message("entries", 1, &format!("{THIS}.Entry"))),
                of_message("limit", 2, &format!("{THIS}.RateLimitOverride")),
                of_message("hits_addend", 3, ".google.protobuf.UInt64Value"),
                scalar("is_negative_hits", 4, Type::Bool),
            ],
        )
    }
}

fn rate_limit_service() -> ServiceDescriptorProto {
    ServiceDescriptorProto {
        name: text("RateLimitService"),
        method: vec![MethodDescriptorProto {
            name: text("ShouldRateLimit"),
            input_type: text(".envoy.service.ratelimit.v3.RateLimitRequest"),
            output_type: text(".envoy.service.ratelimit.v3.RateLimitResponse"),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn rate_limit_request() -> DescriptorProto {
    message(
        "RateLimitRequest",
        vec![
            scalar("domain", 1, Type::String),
            repeated(of_message("descriptors", 2, ".envoy.extensions.common.ratelimit.v3.RateLimitDescriptor")),
            scalar("hits_addend", 3, Type::Uint32),
        ],
    )
}

fn rate_limit_response() -> DescriptorProto {
    const THIS: &str = ".envoy.service.ratelimit.v3.RateLimitResponse";
    const HEADER: &str = ".envoy.config.core.v3.HeaderValue";
    DescriptorProto {
        enum_type: vec![enumeration("Code", &[("UNKNOWN", 0), ("OK", 1), ("OVER_LIMIT", 2)])],
        nested_type: vec![
            DescriptorProto {
                enum_type: vec![enumeration(
                    "Unit",
                    &[("UNKNOWN", 0), ("SECOND", 1), ("MINUTE", 2), ("HOUR", 3), ("DAY", 4), ("WEEK", 7), ("MONTH", 5), ("YEAR", 6)],
                )],
                ..message(
                    "RateLimit",
                    vec![
                        scalar("name", 3, Type::String),
                        scalar("requests_per_unit", 1, Type::Uint32),
                        of_enum("unit", 2, &format!("{THIS}.RateLimit.Unit")),
                        of_message("unit_multiplier", 4, ".google.protobuf.UInt32Value"),
                    ],
                )
            },
            DescriptorProto {
                oneof_decl: vec![OneofDescriptorProto { name: text("expiration_specifier"), ..Default::default() }],
                ..message(
                    "Quota",
                    vec![
                        scalar("requests", 1, Type::Uint32),
                        FieldDescriptorProto { oneof_index: Some(0), ..of_message("valid_until", 2, ".google.protobuf.Timestamp") },
                        scalar("id", 3, Type::String),
                    ],
                )
            },
            message(
                "DescriptorStatus",
                vec![
                    of_enum("code", 1, &format!("{THIS}.Code")),
                    of_message("current_limit", 2, &format!("{THIS}.RateLimit")),
                    scalar("limit_remaining", 3, Type::Uint32),
                    of_message("duration_until_reset", 4, ".google.protobuf.Duration"),
                    of_message("quota", 5, &format!("{THIS}.Quota")),
                ],
            ),
        ],
        ..message(
            "RateLimitResponse",
            vec![
                of_enum("overall_code", 1, &format!("{THIS}.Code")),
                repeated(of_message("statuses", 2, &format!("{THIS}.DescriptorStatus"))),
                repeated(of_message("response_headers_to_add", 3, HEADER)),
                repeated(of_message("request_headers_to_add", 4, HEADER)),
                scalar("raw_body", 5, Type::Bytes),
                of_message("dynamic_metadata", 6, ".google.protobuf.Struct"),
                of_message("quota", 7, &format!("{THIS}.Quota")),
            ],
        )
    }
}

fn file(name: &str, package: &str, imports: &[&str]) -> FileDescriptorProto {
    FileDescriptorProto {
        name: text(name),
        package: text(package),
        dependency: imports.iter().map(|import| (*import).to_owned()).collect(),
        syntax: text("proto3"),
        ..Default::default()
    }
}

fn message(name: &str, field: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto { name: text(name), field, ..Default::default() }
}

fn enumeration(name: &str, values: &[(&str, i32)]) -> EnumDescriptorProto {
    let value = |&(name, number): &(&str, i32)| EnumValueDescriptorProto { name: text(name), number: Some(number), ..Default::default() };
    EnumDescriptorProto { name: text(name), value: values.iter().map(value).collect(), ..Default::default() }
}

fn scalar(name: &str, number: i32, kind: Type) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: text(name),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        ..Default::default()
    }
}

/// A field that holds a message; type names start with a dot, so they need no scope to resolve.
fn of_message(name: &str, number: i32, type_name: &str) -> FieldDescriptorProto {
    FieldDescriptorProto { type_name: text(type_name), ..scalar(name, number, Type::Message) }
}

fn of_enum(name: &str, number: i32, type_name: &str) -> FieldDescriptorProto {
    FieldDescriptorProto { type_name: text(type_name), ..scalar(name, number, Type::Enum) }
}

fn repeated(field: FieldDescriptorProto) -> FieldDescriptorProto {
    FieldDescriptorProto { label: Some(Label::Repeated.into()), ..field }
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_reflect::{ReflectMessage, Value as Dynamic};
    use serde_json::json;

    use super::super::pb::rate_limit_descriptor::{Entry, RateLimitOverride};
    use super::super::pb::rate_limit_response::{Code, DescriptorStatus, Quota, RateLimit, rate_limit::Unit};
    use super::super::pb::value::{ListValue, Struct, Value, value::Kind};
    use super::super::pb::{Duration, HeaderValue, RateLimitDescriptor, RateLimitUnit, Timestamp};
    use super::*;

    // Both messages below set every field to something other than zero and leave none to
    // `..Default::default()`: a field that is new in `pb` doesn't compile until it is added here,
    // and then fails as unknown until it is added to the table.

    fn full_request() -> RateLimitRequest {
        RateLimitRequest {
            domain: "shop".to_owned(),
            descriptors: vec![RateLimitDescriptor {
                entries: vec![Entry { key: "user".to_owned(), value: "ann".to_owned() }],
                limit: Some(RateLimitOverride { requests_per_unit: u32::MAX, unit: RateLimitUnit::Month.into(), unit_multiplier: Some(5) }),
                hits_addend: Some(u64::MAX),
                is_negative_hits: true,
            }],
            hits_addend: u32::MAX,
        }
    }

    fn full_request_json() -> serde_json::Value {
        json!({
            "domain": "shop",
            "descriptors": [{
                "entries": [{ "key": "user", "value": "ann" }],
                "limit": { "requestsPerUnit": u32::MAX, "unit": "MONTH", "unitMultiplier": 5 },
                "hitsAddend": u64::MAX.to_string(),
                "isNegativeHits": true,
            }],
            "hitsAddend": u32::MAX,
        })
    }

    fn full_response() -> RateLimitResponse {
        let quota = |id: &str| Quota {
            requests: u32::MAX,
            id: id.to_owned(),
            valid_until: Some(Timestamp { seconds: 1_700_000_000, nanos: 500_000_000 }),
        };
        let header = |key: &str| HeaderValue { key: key.to_owned(), value: "1".to_owned(), raw_value: vec![0xff, 0xfe] };
        let value = |kind: Kind| Value { kind: Some(kind) };
        let list = ListValue { values: vec![value(Kind::NullValue(0)), value(Kind::BoolValue(true)), value(Kind::NumberValue(1.5))] };
        let inner = Struct { fields: [("tier".to_owned(), value(Kind::StringValue("gold".to_owned())))].into() };
        RateLimitResponse {
            overall_code: Code::OverLimit.into(),
            statuses: vec![DescriptorStatus {
                code: Code::Ok.into(),
                current_limit: Some(RateLimit {
                    name: "per user".to_owned(),
                    requests_per_unit: u32::MAX,
                    unit: Unit::Week.into(),
                    unit_multiplier: Some(2),
                }),
                limit_remaining: u32::MAX,
                duration_until_reset: Some(Duration { seconds: 3, nanos: 250_000_000 }),
                quota: Some(quota("one")),
            }],
            response_headers_to_add: vec![header("x-left")],
            request_headers_to_add: vec![header("x-seen")],
            raw_body: vec![0xfb, 0xff],
            dynamic_metadata: Some(Struct {
                fields: [("list".to_owned(), value(Kind::ListValue(list))), ("map".to_owned(), value(Kind::StructValue(inner)))].into(),
            }),
            quota: Some(quota("all")),
        }
    }

    fn full_response_json() -> serde_json::Value {
        let valid_until = "2023-11-14T22:13:20.500Z";
        let quota = |id: &str| json!({ "requests": u32::MAX, "validUntil": valid_until, "id": id });
        json!({
            "overallCode": "OVER_LIMIT",
            "statuses": [{
                "code": "OK",
                "currentLimit": { "name": "per user", "requestsPerUnit": u32::MAX, "unit": "WEEK", "unitMultiplier": 2 },
                "limitRemaining": u32::MAX,
                "durationUntilReset": "3.250s",
                "quota": quota("one"),
            }],
            "responseHeadersToAdd": [{ "key": "x-left", "value": "1", "rawValue": "//4=" }],
            "requestHeadersToAdd": [{ "key": "x-seen", "value": "1", "rawValue": "//4=" }],
            "rawBody": "+/8=",
            "dynamicMetadata": { "list": [null, true, 1.5], "map": { "tier": "gold" } },
            "quota": quota("all"),
        })
    }

    fn pool() -> DescriptorPool {
        DescriptorPool::from_file_descriptor_set(file_descriptor_set()).unwrap()
    }

    fn as_dynamic<M: Message + Name>(message: &M) -> DynamicMessage {
        let descriptor = descriptor_of::<M>().unwrap();
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap()
    }

    /// Adds the full name of every populated field at any depth; panics on an unknown field.
    fn collect_populated(message: &DynamicMessage, populated: &mut BTreeSet<String>) {
        let name = message.descriptor().full_name().to_owned();
        let unknown: Vec<_> = message.unknown_fields().collect();
        assert!(unknown.is_empty(), "{name} has unknown fields {unknown:?}");
        for (field, value) in message.fields() {
            populated.insert(field.full_name().to_owned());
            let values: Vec<&Dynamic> = match value {
                Dynamic::List(list) => list.iter().collect(),
                Dynamic::Map(map) => map.values().collect(),
                single => vec![single],
            };
            for inner in values.into_iter().filter_map(Dynamic::as_message) {
                collect_populated(inner, populated);
            }
        }
    }

    fn message_of(error: &JsonError) -> String {
        assert!(matches!(error, JsonError::Json(_)), "{error:?}");
        error.to_string()
    }

    fn refused(json: &str) -> String {
        message_of(&request_from_json(json.as_bytes()).unwrap_err())
    }

    #[test]
    fn every_field_of_the_messages_is_in_the_table_and_the_other_way_round() {
        let mut populated = BTreeSet::new();
        collect_populated(&as_dynamic(&full_request()), &mut populated);
        collect_populated(&as_dynamic(&full_response()), &mut populated);

        let pool = pool();
        let ours = pool.all_messages().filter(|message| message.full_name().starts_with("envoy."));
        let in_table: BTreeSet<String> =
            ours.flat_map(|message| message.fields().collect::<Vec<_>>()).map(|field| field.full_name().to_owned()).collect();
        populated.retain(|field| field.starts_with("envoy."));
        assert_eq!(in_table, populated);
    }

    #[test]
    fn full_messages_survive_the_way_through_the_table() {
        let request: RateLimitRequest = as_dynamic(&full_request()).transcode_to().unwrap();
        assert_eq!(request, full_request());
        let response: RateLimitResponse = as_dynamic(&full_response()).transcode_to().unwrap();
        assert_eq!(response, full_response());
    }

    #[test]
    fn enums_have_the_names_and_numbers_of_the_messages() {
        // `OverLimit` is OVER_LIMIT.
        fn screaming(variant: &str) -> String {
            let word = |letter: char| if letter.is_uppercase() { format!("_{letter}") } else { letter.to_uppercase().to_string() };
            variant.chars().map(word).collect::<String>().trim_start_matches('_').to_owned()
        }
        fn from_messages<E: TryFrom<i32> + std::fmt::Debug>() -> BTreeSet<(i32, String)> {
            (-10..100).filter_map(|number| Some((number, screaming(&format!("{:?}", E::try_from(number).ok()?))))).collect()
        }
        let pool = pool();
        let from_table = |name: &str| -> BTreeSet<(i32, String)> {
            let descriptor = pool.get_enum_by_name(name).unwrap();
            let values = descriptor.values();
            values.map(|value| (value.number(), value.name().to_owned())).collect()
        };

        let code = from_table("envoy.service.ratelimit.v3.RateLimitResponse.Code");
        assert_eq!(code, from_messages::<Code>());
        assert!(code.contains(&(2, "OVER_LIMIT".to_owned())));
        let unit = from_table("envoy.service.ratelimit.v3.RateLimitResponse.RateLimit.Unit");
        assert_eq!(unit, from_messages::<Unit>());
        assert!(unit.contains(&(7, "WEEK".to_owned())));
        let override_unit = from_table("envoy.type.v3.RateLimitUnit");
        assert_eq!(override_unit, from_messages::<RateLimitUnit>());
        assert_eq!(override_unit.len(), 7);
    }

    #[test]
    fn the_service_has_one_method_and_the_files_come_after_their_imports() {
        let pool = pool();
        let services: Vec<_> = pool.services().collect();
        assert_eq!(services.len(), 1);
        assert_eq!(services[0].full_name(), "envoy.service.ratelimit.v3.RateLimitService");
        let methods: Vec<_> = services[0].methods().collect();
        assert_eq!(methods.len(), 1);
        assert_eq!(methods[0].name(), "ShouldRateLimit");
        assert_eq!(methods[0].input().full_name(), RateLimitRequest::full_name());
        assert_eq!(methods[0].output().full_name(), RateLimitResponse::full_name());

        let mut seen: Vec<String> = Vec::new();
        for file in file_descriptor_set().file {
            for import in &file.dependency {
                assert!(seen.contains(import), "{} before {import}", file.name());
            }
            seen.push(file.name().to_owned());
        }
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn a_request_is_read_from_camel_case_and_from_snake_case() {
        let camel = full_request_json().to_string();
        assert_eq!(request_from_json(camel.as_bytes()).unwrap(), full_request());
        let snake = camel
            .replace("hitsAddend", "hits_addend")
            .replace("requestsPerUnit", "requests_per_unit")
            .replace("unitMultiplier", "unit_multiplier")
            .replace("isNegativeHits", "is_negative_hits");
        assert_ne!(camel, snake);
        assert_eq!(request_from_json(snake.as_bytes()).unwrap(), full_request());
    }

    #[test]
    fn a_request_may_give_numbers_as_text_enums_as_numbers_and_null_for_nothing() {
        let json = r#"{"domain": null, "hitsAddend": "2", "descriptors": [
            {"hitsAddend": 0, "limit": {"unit": 3}}, {"hitsAddend": null}]}"#;
        let request = request_from_json(json.as_bytes()).unwrap();
        assert_eq!(request.domain, "");
        assert_eq!(request.hits_addend, 2);
        // An explicit 0 is a peek and must not become "not set".
        assert_eq!(request.descriptors[0].hits_addend, Some(0));
        let limit = request.descriptors[0].limit.unwrap();
        assert_eq!(limit.unit, i32::from(RateLimitUnit::Hour));
        assert_eq!(request.descriptors[1].hits_addend, None);
    }

    #[test]
    fn of_a_field_given_twice_the_last_counts_and_an_enum_number_without_a_name_is_kept() {
        let json = r#"{"domain": "a", "descriptors": [{"limit": {"unit": 7}}], "domain": "b"}"#;
        let request = request_from_json(json.as_bytes()).unwrap();
        assert_eq!(request.domain, "b");
        assert_eq!(request.descriptors[0].limit.unwrap().unit, 7);
    }

    #[test]
    fn an_empty_object_is_an_empty_request() {
        assert_eq!(request_from_json(b" {} \n").unwrap(), RateLimitRequest::default());
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_place() {
        assert_eq!(refused("{\"domain\": \"shop\",\n \"colour\": 1}"), "unrecognized field name 'colour' at line 2 column 9");
        let nested = refused(r#"{"descriptors": [{"entries": [{"name": "user"}]}]}"#);
        assert!(nested.starts_with("unrecognized field name 'name' at line 1"), "{nested}");
    }

    #[test]
    fn an_unknown_enum_name_and_a_wrong_type_are_refused_with_their_place() {
        for json in [
            r#"{"descriptors": [{"limit": {"unit": "WEEK"}}]}"#,
            r#"{"descriptors": {}}"#,
            r#"{"domain": 7}"#,
            r#"{"hitsAddend": -1}"#,
            r#"{"hitsAddend": 4294967296}"#,
            r#"{"descriptors": [{"hitsAddend": "18446744073709551616"}]}"#,
            "[]",
            r#""shop""#,
        ] {
            let text = refused(json);
            assert!(text.contains(" at line 1 column "), "{json}: {text}");
        }
    }

    #[test]
    fn broken_json_is_refused_with_its_place() {
        for json in ["", "{", "{\"domain\": \"a\"", "{'domain': 1}", "{\"domain\": \"\\ud800\"}"] {
            let text = refused(json);
            assert!(text.contains(" at line 1 column "), "{json}: {text}");
        }
        let not_utf8 = request_from_json(b"{\"domain\": \"\xff\"}").unwrap_err();
        assert!(message_of(&not_utf8).contains(" at line 1 column "));
    }

    #[test]
    fn text_after_the_request_is_refused() {
        assert_eq!(refused("{}\n{}"), "trailing characters at line 2 column 1");
        assert_eq!(refused("{} x"), "trailing characters at line 1 column 4");
    }

    #[test]
    fn deep_nesting_is_refused_without_deep_recursion() {
        let depth = 1_000_000;
        for (before, open) in [
            ("", "["),
            ("", "{\"descriptors\":"),
            ("{\"domain\":", "["),
            ("{\"descriptors\":", "["),
            ("{\"descriptors\":[{\"limit\":", "{\"limit\":"),
            ("{\"x\":", "["),
        ] {
            refused(&format!("{before}{}", open.repeat(depth)));
        }
    }

    #[test]
    fn nesting_inside_a_struct_stops_at_the_limit_of_serde_json() {
        // No request holds a Struct today; the one that takes any nesting guards the day it does.
        let json = format!(r#"{{"dynamicMetadata":{}"#, r#"{"a":"#.repeat(1_000_000));
        let mut deserializer = serde_json::Deserializer::from_str(&json);
        let descriptor = descriptor_of::<RateLimitResponse>().unwrap();
        let error = DynamicMessage::deserialize(descriptor, &mut deserializer).unwrap_err();
        assert!(error.to_string().starts_with("recursion limit exceeded"), "{error}");
    }

    #[test]
    fn a_response_is_written_in_camel_case_with_names_for_enums() {
        let json: serde_json::Value = serde_json::from_slice(&response_to_json(&full_response()).unwrap()).unwrap();
        assert_eq!(json, full_response_json());
    }

    #[test]
    fn the_json_of_a_request_and_of_a_response_reads_back_as_the_same() {
        let request = as_dynamic(&full_request());
        assert_eq!(serde_json::to_value(&request).unwrap(), full_request_json());
        let json = serde_json::to_vec(&request).unwrap();
        assert_eq!(request_from_json(&json).unwrap(), full_request());

        let json = response_to_json(&full_response()).unwrap();
        let descriptor = descriptor_of::<RateLimitResponse>().unwrap();
        let mut deserializer = serde_json::Deserializer::from_slice(&json);
        let response = DynamicMessage::deserialize(descriptor, &mut deserializer).unwrap();
        assert_eq!(response.transcode_to::<RateLimitResponse>().unwrap(), full_response());
    }

    #[test]
    fn zeros_are_left_out_of_a_response() {
        let empty = response_to_json(&RateLimitResponse::default()).unwrap();
        assert_eq!(empty, b"{}");
        let response = RateLimitResponse {
            overall_code: Code::Ok.into(),
            statuses: vec![DescriptorStatus {
                code: Code::Ok.into(),
                current_limit: Some(RateLimit::default()),
                duration_until_reset: Some(Duration::default()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let json = String::from_utf8(response_to_json(&response).unwrap()).unwrap();
        let status = r#"{"code":"OK","currentLimit":{},"durationUntilReset":"0s"}"#;
        assert_eq!(json, format!(r#"{{"overallCode":"OK","statuses":[{status}]}}"#));
    }

    #[test]
    fn an_enum_number_without_a_name_is_written_as_a_number() {
        let response = RateLimitResponse { overall_code: 9, ..Default::default() };
        assert_eq!(response_to_json(&response).unwrap(), br#"{"overallCode":9}"#);
    }

    #[test]
    fn metadata_that_json_or_protobuf_cannot_carry_is_an_error() {
        let response = |kind: Kind| RateLimitResponse {
            dynamic_metadata: Some(Struct { fields: [("a".to_owned(), Value { kind: Some(kind) })].into() }),
            ..Default::default()
        };
        let nan = response_to_json(&response(Kind::NumberValue(f64::NAN)));
        assert!(matches!(nan, Err(JsonError::Json(_))), "{nan:?}");

        let deep = (0..200).fold(Kind::BoolValue(true), |kind, _| {
            let values = vec![Value { kind: Some(kind) }];
            Kind::ListValue(ListValue { values })
        });
        let deep = response_to_json(&response(deep));
        assert!(matches!(deep, Err(JsonError::Protobuf(_))), "{deep:?}");
    }

    #[test]
    fn tonic_reflection_takes_the_set() {
        let builder = || tonic_reflection::server::Builder::configure().register_file_descriptor_set(file_descriptor_set());
        assert!(builder().build_v1().is_ok());
        assert!(builder().build_v1alpha().is_ok());
    }
}
