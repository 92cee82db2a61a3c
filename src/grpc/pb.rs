//! The messages of Envoy's rate-limit service v3, by hand, as prost encodes them: the part of its `.proto` files that the
//! service reaches, field by field. Crates that generate them all (envoy-types 0.7.7) lack both `unit_multiplier`s, and
//! prost drops a field that it does not know without a word. `wire` reads most requests, and writes each reply's code and
//! statuses, by these fields' numbers, past the messages; its tests hold it to them. Nothing here knows what a message means; `wire` does. The
//! tests hold each message to envoy-types, and those of `schema` to the table that JSON and reflection use.

pub use prost_types::{Duration, Timestamp};

/// What dynamic metadata is made of.
pub mod value {
    pub use prost_types::{ListValue, Struct, Value, value};
}

/// envoy.service.ratelimit.v3.RateLimitRequest
#[derive(Clone, PartialEq, prost::Message)]
pub struct RateLimitRequest {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(message, repeated, tag = "2")]
    pub descriptors: Vec<RateLimitDescriptor>,
    #[prost(uint32, tag = "3")]
    pub hits_addend: u32,
}

impl prost::Name for RateLimitRequest {
    const NAME: &'static str = "RateLimitRequest";
    const PACKAGE: &'static str = "envoy.service.ratelimit.v3";
}

/// envoy.extensions.common.ratelimit.v3.RateLimitDescriptor
#[derive(Clone, PartialEq, prost::Message)]
pub struct RateLimitDescriptor {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<rate_limit_descriptor::Entry>,
    #[prost(message, optional, tag = "2")]
    pub limit: Option<rate_limit_descriptor::RateLimitOverride>,
    /// A google.protobuf.UInt64Value, which prost reads as the number: 0 and absent are two things.
    #[prost(message, optional, tag = "3")]
    pub hits_addend: Option<u64>,
    #[prost(bool, tag = "4")]
    pub is_negative_hits: bool,
}

pub mod rate_limit_descriptor {
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct Entry {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }

    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct RateLimitOverride {
        #[prost(uint32, tag = "1")]
        pub requests_per_unit: u32,
        #[prost(enumeration = "super::RateLimitUnit", tag = "2")]
        pub unit: i32,
        /// A google.protobuf.UInt32Value; absent means 1.
        #[prost(message, optional, tag = "3")]
        pub unit_multiplier: Option<u32>,
    }
}

/// envoy.type.v3.RateLimitUnit, which has no week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum RateLimitUnit {
    Unknown = 0,
    Second = 1,
    Minute = 2,
    Hour = 3,
    Day = 4,
    Month = 5,
    Year = 6,
}

/// envoy.service.ratelimit.v3.RateLimitResponse
#[derive(Clone, PartialEq, prost::Message)]
pub struct RateLimitResponse {
    #[prost(enumeration = "rate_limit_response::Code", tag = "1")]
    pub overall_code: i32,
    /// One for each descriptor of the request, in order.
    #[prost(message, repeated, tag = "2")]
    pub statuses: Vec<rate_limit_response::DescriptorStatus>,
    #[prost(message, repeated, tag = "3")]
    pub response_headers_to_add: Vec<HeaderValue>,
    #[prost(message, repeated, tag = "4")]
    pub request_headers_to_add: Vec<HeaderValue>,
    #[prost(bytes = "vec", tag = "5")]
    pub raw_body: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    pub dynamic_metadata: Option<value::Struct>,
    #[prost(message, optional, tag = "7")]
    pub quota: Option<rate_limit_response::Quota>,
}

impl prost::Name for RateLimitResponse {
    const NAME: &'static str = "RateLimitResponse";
    const PACKAGE: &'static str = "envoy.service.ratelimit.v3";
}

pub mod rate_limit_response {
    use super::{Duration, Timestamp};

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct RateLimit {
        #[prost(string, tag = "3")]
        pub name: String,
        #[prost(uint32, tag = "1")]
        pub requests_per_unit: u32,
        #[prost(enumeration = "rate_limit::Unit", tag = "2")]
        pub unit: i32,
        /// A google.protobuf.UInt32Value; absent means 1.
        #[prost(message, optional, tag = "4")]
        pub unit_multiplier: Option<u32>,
    }

    pub mod rate_limit {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
        #[repr(i32)]
        pub enum Unit {
            Unknown = 0,
            Second = 1,
            Minute = 2,
            Hour = 3,
            Day = 4,
            Month = 5,
            Year = 6,
            Week = 7,
        }
    }

    /// Envoy reads no quota yet, and this server sends none. `valid_until` is the only member of a oneof there, which is the
    /// same bytes.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct Quota {
        #[prost(uint32, tag = "1")]
        pub requests: u32,
        #[prost(message, optional, tag = "2")]
        pub valid_until: Option<Timestamp>,
        #[prost(string, tag = "3")]
        pub id: String,
    }

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct DescriptorStatus {
        #[prost(enumeration = "Code", tag = "1")]
        pub code: i32,
        #[prost(message, optional, tag = "2")]
        pub current_limit: Option<RateLimit>,
        #[prost(uint32, tag = "3")]
        pub limit_remaining: u32,
        #[prost(message, optional, tag = "4")]
        pub duration_until_reset: Option<Duration>,
        #[prost(message, optional, tag = "5")]
        pub quota: Option<Quota>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
    #[repr(i32)]
    pub enum Code {
        Unknown = 0,
        Ok = 1,
        OverLimit = 2,
    }
}

/// envoy.config.core.v3.HeaderValue. Envoy writes `value`; it ignores `raw_value`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeaderValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
    #[prost(bytes = "vec", tag = "3")]
    pub raw_value: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3 as envoy_core;
    use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as envoy_descriptor;
    use envoy_types::pb::envoy::service::ratelimit::v3 as envoy;
    use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response as envoy_response;
    use envoy_types::pb::envoy::r#type::v3::RateLimitUnit as EnvoyUnit;
    use envoy_types::pb::google::protobuf as google;
    use prost::Message;

    use super::rate_limit_descriptor::{Entry, RateLimitOverride};
    use super::rate_limit_response::{Code, DescriptorStatus, Quota, RateLimit, rate_limit::Unit};
    use super::*;

    // All of these set every field, each to a value of its own, and leave none to `..Default::default()`: whatever either
    // side gains or loses does not compile.

    fn request(unit_multiplier: Option<u32>) -> RateLimitRequest {
        RateLimitRequest {
            domain: "d".into(),
            descriptors: vec![RateLimitDescriptor {
                entries: vec![Entry { key: "k".into(), value: "v".into() }],
                limit: Some(RateLimitOverride { requests_per_unit: 2, unit: RateLimitUnit::Month.into(), unit_multiplier }),
                hits_addend: Some(u64::MAX),
                is_negative_hits: true,
            }],
            hits_addend: 3,
        }
    }

    fn envoys_request() -> envoy::RateLimitRequest {
        let limit = envoy_descriptor::rate_limit_descriptor::RateLimitOverride { requests_per_unit: 2, unit: EnvoyUnit::Month.into() };
        envoy::RateLimitRequest {
            domain: "d".into(),
            descriptors: vec![envoy_descriptor::RateLimitDescriptor {
                entries: vec![envoy_descriptor::rate_limit_descriptor::Entry { key: "k".into(), value: "v".into() }],
                limit: Some(limit),
                hits_addend: Some(google::UInt64Value { value: u64::MAX }),
                is_negative_hits: true,
            }],
            hits_addend: 3,
        }
    }

    fn response(unit_multiplier: Option<u32>) -> RateLimitResponse {
        let header = |key: &str| HeaderValue { key: key.into(), value: "1".into(), raw_value: vec![255] };
        let quota = |requests| Quota { requests, valid_until: Some(Timestamp { seconds: 4, nanos: 5 }), id: "q".into() };
        RateLimitResponse {
            overall_code: Code::OverLimit.into(),
            statuses: vec![DescriptorStatus {
                code: Code::Ok.into(),
                current_limit: Some(RateLimit { name: "n".into(), requests_per_unit: 6, unit: Unit::Week.into(), unit_multiplier }),
                limit_remaining: 7,
                duration_until_reset: Some(Duration { seconds: 8, nanos: 9 }),
                quota: Some(quota(10)),
            }],
            response_headers_to_add: vec![header("response")],
            request_headers_to_add: vec![header("request")],
            raw_body: vec![1, 2],
            dynamic_metadata: Some(value::Struct {
                fields: [("field".to_owned(), value::Value { kind: Some(value::value::Kind::NumberValue(1.5)) })].into(),
            }),
            quota: Some(quota(11)),
        }
    }

    fn envoys_response() -> envoy::RateLimitResponse {
        let header = |key: &str| envoy_core::HeaderValue { key: key.into(), value: "1".into(), raw_value: vec![255] };
        let quota = |requests| envoy_response::Quota {
            requests,
            expiration_specifier: Some(envoy_response::quota::ExpirationSpecifier::ValidUntil(google::Timestamp { seconds: 4, nanos: 5 })),
            id: "q".into(),
        };
        let unit = envoy_response::rate_limit::Unit::Week.into();
        envoy::RateLimitResponse {
            overall_code: envoy_response::Code::OverLimit.into(),
            statuses: vec![envoy_response::DescriptorStatus {
                code: envoy_response::Code::Ok.into(),
                current_limit: Some(envoy_response::RateLimit { name: "n".into(), requests_per_unit: 6, unit }),
                limit_remaining: 7,
                duration_until_reset: Some(google::Duration { seconds: 8, nanos: 9 }),
                quota: Some(quota(10)),
            }],
            response_headers_to_add: vec![header("response")],
            request_headers_to_add: vec![header("request")],
            raw_body: vec![1, 2],
            dynamic_metadata: Some(google::Struct {
                fields: [("field".to_owned(), google::Value { kind: Some(google::value::Kind::NumberValue(1.5)) })].into(),
            }),
            quota: Some(quota(11)),
        }
    }

    /// Written by one and read by the other.
    fn over<B: Message + Default>(message: &impl Message) -> B {
        B::decode(message.encode_to_vec().as_slice()).unwrap()
    }

    #[test]
    fn what_envoy_types_writes_is_read_whole_and_the_other_way_round() {
        assert_eq!(over::<RateLimitRequest>(&envoys_request()), request(None));
        assert_eq!(over::<envoy::RateLimitRequest>(&request(None)), envoys_request());
        assert_eq!(over::<RateLimitResponse>(&envoys_response()), response(None));
        assert_eq!(over::<envoy::RateLimitResponse>(&response(None)), envoys_response());
    }

    #[test]
    fn the_unit_multipliers_are_what_envoy_types_lacks_and_all_it_lacks() {
        assert_eq!(over::<envoy::RateLimitRequest>(&request(Some(5))), envoys_request());
        assert_eq!(over::<envoy::RateLimitResponse>(&response(Some(5))), envoys_response());
    }

    #[test]
    fn a_unit_multiplier_is_a_wrapped_number_in_field_3_of_the_override_and_field_4_of_the_limit() {
        let carried = RateLimitOverride { unit_multiplier: Some(5), ..RateLimitOverride::default() };
        // Field 3, a message of two bytes: its field 1 is 5.
        assert_eq!(carried.encode_to_vec(), [0x1a, 2, 0x08, 5]);
        let told = RateLimit { unit_multiplier: Some(0), ..RateLimit::default() };
        assert_eq!(told.encode_to_vec(), [0x22, 0], "a wrapped 0 is there, and empty");
        assert_eq!(over::<RateLimitOverride>(&carried), carried);
        assert_eq!(over::<RateLimit>(&told), told);
    }

    #[test]
    fn the_enums_have_envoy_types_numbers() {
        fn variants<E: TryFrom<i32> + std::fmt::Debug>() -> Vec<(i32, String)> {
            (-10..100).filter_map(|number| Some((number, format!("{:?}", E::try_from(number).ok()?)))).collect()
        }
        assert_eq!(variants::<Code>(), variants::<envoy_response::Code>());
        assert_eq!(variants::<Unit>(), variants::<envoy_response::rate_limit::Unit>());
        assert_eq!(variants::<RateLimitUnit>(), variants::<EnvoyUnit>());
    }
}
