//! Protobuf messages to plain requests, and decisions to protobuf messages: the shapes, units and roundings of Envoy's
//! protocol, and nothing else. What nearly every request is made of is read by hand, and replies are written so.

use prost::Message;

use super::pb::rate_limit_response::{Code, rate_limit::Unit};
use super::pb::{RateLimitRequest, RateLimitResponse, rate_limit_descriptor};
use super::protobuf::{Fields, Writing};
use super::{ReplyOptions, extras};
use crate::descriptor::{Descriptor, Entry, LimitOverride, Request, RequestBounds, RequestError};
use crate::limit::{Limit, Window};
use crate::limiter::{CurrentLimit, Decision, Status, whole_seconds};

/// Why bytes are no request.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// # Errors
/// No RateLimitRequest, or one that may not be asked: see [`RequestError`].
pub(super) fn decode(message: &[u8], bounds: RequestBounds) -> Result<Request, DecodeError> {
    match plain_request(message) {
        Some((domain, descriptors)) => Ok(Request::new(domain, descriptors, 0, bounds)?),
        None => Ok(request(RateLimitRequest::decode(message)?, bounds)?),
    }
}

/// # Errors
/// A request that may not be asked: see [`RequestError`].
pub(super) fn request(message: RateLimitRequest, bounds: RequestBounds) -> Result<Request, RequestError> {
    let descriptors = message.descriptors.into_iter().map(|descriptor| Descriptor {
        entries: descriptor.entries.into_iter().map(|entry| Entry { key: entry.key, value: entry.value }).collect(),
        limit: descriptor.limit.map(carried_limit),
        hits_addend: descriptor.hits_addend,
        is_negative_hits: descriptor.is_negative_hits,
    });
    Request::new(message.domain, descriptors.collect(), message.hits_addend, bounds)
}

/// The domain and the descriptors of a request that has nothing else, nor its descriptors anything but entries. None for any
/// other, and for what is no request: prost reads those.
fn plain_request(message: &[u8]) -> Option<(String, Vec<Descriptor>)> {
    let mut domain = "";
    let mut descriptors = Vec::with_capacity(count(message, 2)?);
    for field in Fields(message) {
        match field? {
            (1, name) => domain = text(name)?,
            (2, descriptor) => descriptors.push(Descriptor { entries: plain_entries(descriptor)?, ..Descriptor::default() }),
            _ => return None,
        }
    }
    Some((domain.to_owned(), descriptors))
}

/// How many fields of that number there are; None where there is one of a larger number or of another kind. Asked first, so that
/// nothing is made of a request that is left to prost.
fn count(message: &[u8], number: u8) -> Option<usize> {
    let mut count = 0;
    for field in Fields(message) {
        match field? {
            (other, _) if other > number => return None,
            (other, _) => count += usize::from(other == number),
        }
    }
    Some(count)
}

fn plain_entries(descriptor: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity(count(descriptor, 1)?);
    for field in Fields(descriptor) {
        let (1, entry) = field? else { return None };
        let (mut key, mut value) = ("", "");
        for field in Fields(entry) {
            match field? {
                (1, bytes) => key = text(bytes)?,
                (2, bytes) => value = text(bytes)?,
                _ => return None,
            }
        }
        entries.push(Entry::new(key, value));
    }
    Some(entries)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A RateLimitResponse, by the same numbers as `pb`'s: the bytes that prost would write of that.
pub(super) fn encode(request: &Request, decision: &Decision, options: &ReplyOptions) -> Writing {
    let mut reply = Writing::default();
    reply.number(1, code(!decision.admitted));
    for status in &decision.statuses {
        reply.message(2, |to| write_status(status, to));
    }
    if *options != ReplyOptions::default() {
        let extras = RateLimitResponse {
            response_headers_to_add: extras::headers(decision, options),
            dynamic_metadata: options.dynamic_metadata.then(|| extras::dynamic_metadata(request, decision)),
            ..RateLimitResponse::default()
        };
        reply.fields(&extras.encode_to_vec());
    }
    reply
}

/// A limit that a request brought, as protobuf's text format has it.
pub(super) fn override_text(limit: Limit, window: Window) -> String {
    let mut text = if limit.get() == 0 { String::new() } else { format!("requests_per_unit:{} ", limit.get()) };
    let (_, name, times) = in_units(window);
    text.push_str(&format!("unit:{name}"));
    if times != 1 {
        text.push_str(&format!(" unit_multiplier:{{value:{times}}}"));
    }
    text
}

/// The protocol's units by size, the largest first, with their names in its text.
const UNITS: [(Unit, Window, &str); 7] = [
    (Unit::Year, Window::YEAR, "YEAR"),
    (Unit::Month, Window::MONTH, "MONTH"),
    (Unit::Week, Window::WEEK, "WEEK"),
    (Unit::Day, Window::DAY, "DAY"),
    (Unit::Hour, Window::HOUR, "HOUR"),
    (Unit::Minute, Window::MINUTE, "MINUTE"),
    (Unit::Second, Window::SECOND, "SECOND"),
];

/// A window as the largest unit that divides it, and how often: 5 minutes are MINUTE, 5 times. UNKNOWN, once, is one of
/// no whole seconds: a unit that is not quite true would make Envoy print a false `w=`.
fn in_units(window: Window) -> (Unit, &'static str, u32) {
    // Most are one of a unit, which takes no division.
    if let Some((unit, _, name)) = UNITS.into_iter().find(|(_, length, _)| *length == window) {
        return (unit, name, 1);
    }
    let whole = |(unit, length, name): (Unit, Window, _)| {
        let times = u32::try_from(window.micros() / length.micros()).ok()?;
        window.micros().is_multiple_of(length.micros()).then_some((unit, name, times))
    };
    UNITS.into_iter().find_map(whole).unwrap_or((Unit::Unknown, "UNKNOWN", 1))
}

fn carried_limit(carried: rate_limit_descriptor::RateLimitOverride) -> LimitOverride {
    let multiplier = carried.unit_multiplier.unwrap_or(1);
    // The request's enum has no WEEK; the reply's has, as 7, and the reference takes that number here too.
    let unit = UNITS.iter().find(|(unit, ..)| *unit as i32 == carried.unit);
    let micros = unit.map_or(0, |(_, length, _)| length.micros().saturating_mul(multiplier.into()));
    match Window::from_micros(micros) {
        Ok(window) => LimitOverride::Limit { limit: Limit::from(carried.requests_per_unit), window },
        Err(_) => LimitOverride::NoWindow { unit: carried.unit, multiplier },
    }
}

/// A RateLimitResponse.DescriptorStatus.
fn write_status(status: &Status, to: &mut Writing) {
    let Some(current) = &status.current_limit else {
        to.number(1, code(false));
        return to.number(3, clamp(status.remaining));
    };
    to.number(1, code(status.over));
    to.message(2, |to| write_limit(current, to));
    to.number(3, clamp(status.told_remaining()));
    // A Duration: field 1 is its seconds.
    to.message(4, |to| to.number(1, whole_seconds(status.reset, status.over).min(i64::MAX as u64)));
}

/// A RateLimitResponse.RateLimit.
fn write_limit(current: &CurrentLimit, to: &mut Writing) {
    let (unit, _, times) = in_units(current.window);
    to.number(1, clamp(current.limit.get()));
    to.number(2, unit as u64);
    to.text(3, current.name.as_deref().unwrap_or_default());
    if times != 1 {
        // A UInt32Value: its field 1.
        to.message(4, |to| to.number(1, times.into()));
    }
}

fn code(over: bool) -> u64 {
    let code = if over { Code::OverLimit } else { Code::Ok };
    code as u64
}

fn clamp(number: u64) -> u64 {
    number.min(u32::MAX.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::grpc::LimitHeaders;
    use crate::grpc::pb::rate_limit_descriptor::RateLimitOverride;
    use crate::grpc::pb::rate_limit_response::{DescriptorStatus, RateLimit};
    use crate::grpc::pb::{self, RateLimitDescriptor};

    fn read_back(status: &Status) -> DescriptorStatus {
        let mut writing = Writing::default();
        write_status(status, &mut writing);
        DescriptorStatus::decode(writing.as_bytes()).unwrap()
    }

    fn within(window: &str, reset: Duration) -> Status {
        let current_limit = CurrentLimit { limit: Limit::new(1 << 40).unwrap(), window: window.parse().unwrap(), name: None };
        Status { current_limit: Some(current_limit), remaining: 1 << 40, reset, ..Status::default() }
    }

    #[test]
    fn numbers_and_times_are_rounded_as_envoy_needs_them() {
        let shown = |status: &Status| {
            let encoded = read_back(status);
            (encoded.limit_remaining, encoded.duration_until_reset.unwrap().seconds)
        };
        assert_eq!(shown(&within("1m", Duration::from_millis(59_001))), (u32::MAX, 60));
        assert_eq!(shown(&within("5m", Duration::ZERO)), (u32::MAX, 0));
        let over = Status { over: true, ..within("250ms", Duration::from_micros(1)) };
        assert_eq!(shown(&over), (0, 1));
        let late = Status { over: true, ..within("1m", Duration::from_millis(60_400)) };
        assert_eq!(shown(&late), (0, 61));
    }

    #[test]
    fn a_window_is_the_largest_unit_that_divides_it_and_how_often() {
        for (window, unit, multiplier) in [
            ("1s", Unit::Second, None),
            ("1m", Unit::Minute, None),
            ("90s", Unit::Second, Some(90)),
            ("5m", Unit::Minute, Some(5)),
            ("36h", Unit::Hour, Some(36)),
            ("48h", Unit::Day, Some(2)),
            ("7d", Unit::Week, None),
            ("14d", Unit::Week, Some(2)),
            ("30d", Unit::Month, None),
            ("360d", Unit::Month, Some(12)),
            ("365d", Unit::Year, None),
            ("3650d", Unit::Year, Some(10)),
            ("3649d23h59m59s", Unit::Second, Some(315_359_999)),
            ("1500ms", Unit::Unknown, None),
            ("1ms", Unit::Unknown, None),
            ("1m1us", Unit::Unknown, None),
        ] {
            let told = read_back(&within(window, Duration::ZERO)).current_limit.unwrap();
            assert_eq!((told.unit(), told.unit_multiplier), (unit, multiplier), "{window}");
        }
    }

    #[test]
    fn an_override_is_told_in_protobufs_text() {
        let text = |limit: u32, window: &str| override_text(Limit::from(limit), window.parse().unwrap());
        assert_eq!(text(3, "1h"), "requests_per_unit:3 unit:HOUR");
        assert_eq!(text(3, "5m"), "requests_per_unit:3 unit:MINUTE unit_multiplier:{value:5}");
        assert_eq!(text(0, "14d"), "unit:WEEK unit_multiplier:{value:2}");
    }

    #[test]
    fn an_overrides_window_is_its_unit_times_its_multiplier() {
        let read = |unit, unit_multiplier| {
            carried_limit(rate_limit_descriptor::RateLimitOverride { requests_per_unit: u32::MAX - 2, unit, unit_multiplier })
        };
        for (unit, window) in [
            (1, Window::SECOND),
            (2, Window::MINUTE),
            (3, Window::HOUR),
            (4, Window::DAY),
            (5, Window::MONTH),
            (6, Window::YEAR),
            (7, Window::WEEK),
        ] {
            let limit = Limit::from(4_294_967_293);
            assert_eq!(read(unit, None), LimitOverride::Limit { limit, window });
            assert_eq!(read(unit, Some(1)), LimitOverride::Limit { limit, window });
            let thrice = Window::from_micros(3 * window.micros()).unwrap();
            assert_eq!(read(unit, Some(3)), LimitOverride::Limit { limit, window: thrice });
        }
    }

    #[test]
    fn an_override_of_no_window_is_known_as_such() {
        let read =
            |unit, unit_multiplier| carried_limit(rate_limit_descriptor::RateLimitOverride { requests_per_unit: 1, unit, unit_multiplier });
        for unit in [-1, 0, 8, i32::MAX] {
            assert_eq!(read(unit, None), LimitOverride::NoWindow { unit, multiplier: 1 });
            assert_eq!(read(unit, Some(5)), LimitOverride::NoWindow { unit, multiplier: 5 });
        }
        let ten_years = read(6, Some(10));
        assert!(matches!(ten_years, LimitOverride::Limit { .. }), "{ten_years:?}");
        for (unit, multiplier) in [(1, 0), (6, 11), (1, 315_360_001), (6, u32::MAX)] {
            assert_eq!(read(unit, Some(multiplier)), LimitOverride::NoWindow { unit, multiplier });
        }
    }

    fn requests() -> impl Strategy<Value = RateLimitRequest> {
        let text = || prop_oneof![8 => "[a-z]{0,12}", 1 => "\\PC{0,40}", 1 => "[a-z]{120,260}"];
        let entry = (text(), text()).prop_map(|(key, value)| rate_limit_descriptor::Entry { key, value });
        let limit = (any::<u32>(), 0..9, any::<Option<u32>>());
        let limit =
            limit.prop_map(|(requests_per_unit, unit, unit_multiplier)| RateLimitOverride { requests_per_unit, unit, unit_multiplier });
        // Most have nothing but entries.
        let more = (prop::option::weighted(0.05, limit), prop::option::weighted(0.05, any::<u64>()), prop::bool::weighted(0.05));
        let descriptor = (prop::collection::vec(entry, 0..4), more).prop_map(|(entries, (limit, hits_addend, is_negative_hits))| {
            RateLimitDescriptor { entries, limit, hits_addend, is_negative_hits }
        });
        (text(), prop::collection::vec(descriptor, 0..4), prop_oneof![9 => Just(0), 1 => any::<u32>()])
            .prop_map(|(domain, descriptors, hits_addend)| RateLimitRequest { domain, descriptors, hits_addend })
    }

    fn is_plain(request: &RateLimitRequest) -> bool {
        let entries_alone = |descriptor: &RateLimitDescriptor| {
            let RateLimitDescriptor { entries: _, limit, hits_addend, is_negative_hits } = descriptor;
            limit.is_none() && hits_addend.is_none() && !is_negative_hits
        };
        request.hits_addend == 0 && request.descriptors.iter().all(entries_alone)
    }

    /// Whether a message is plain; if it is, what was read must be what prost reads.
    fn read_twice(message: &[u8]) -> bool {
        let Some((domain, mut descriptors)) = plain_request(message) else { return false };
        let mut by_prost = RateLimitRequest::decode(message).expect("prost reads it as well");
        // Without a domain, or descriptors, a request is refused, whatever else was read.
        by_prost.domain.insert(0, 'd');
        by_prost.descriptors.push(RateLimitDescriptor::default());
        descriptors.push(Descriptor::default());
        let plain = Request::new(format!("d{domain}"), descriptors, 0, RequestBounds::default());
        assert_eq!(plain.unwrap(), request(by_prost, RequestBounds::default()).unwrap());
        true
    }

    proptest! {
        #[test]
        fn a_plain_request_is_read_as_prost_reads_it_and_any_other_is_left_to_prost(request in requests()) {
            prop_assert_eq!(read_twice(&request.encode_to_vec()), is_plain(&request));
        }

        #[test]
        fn a_request_that_was_cut_or_changed_is_read_as_prost_reads_it_or_left_to_it(
            one in requests(), other in requests(), at in any::<prop::sample::Index>(), byte in any::<u8>(), what in 0..4,
        ) {
            let mut message = one.encode_to_vec();
            match what {
                // Fields come twice.
                0 => message.extend(other.encode_to_vec()),
                1 if !message.is_empty() => message.truncate(at.index(message.len())),
                2 if !message.is_empty() => {
                    let at = at.index(message.len());
                    message[at] = byte;
                }
                _ => message.insert(at.index(message.len() + 1), byte),
            }
            let plain = read_twice(&message);
            if what == 0 {
                prop_assert_eq!(plain, is_plain(&one) && is_plain(&other));
            }
        }
    }

    #[test]
    fn what_is_plain_and_what_is_left_to_prost() {
        let of_entry = |entry: &[u8]| [&[0x0a, 1, b'd', 0x12, entry.len() as u8 + 2, 0x0a, entry.len() as u8], entry].concat();
        for (what, message) in [
            ("nothing", vec![]),
            ("descriptors first", vec![0x12, 0, 0x0a, 1, b'd']),
            ("a key twice", of_entry(b"\x0a\x01k\x0a\x01l\x12\x01v")),
            ("a value before its key", of_entry(b"\x12\x01v\x0a\x01k")),
            ("a length in three bytes", vec![0x0a, 0x81, 0x80, 0, b'd']),
        ] {
            assert!(read_twice(&message), "{what}");
        }
        for (what, message, prost_reads_it) in [
            ("hits_addend", vec![0x12, 0, 0x18, 1], true),
            ("an entry's unknown field", of_entry(b"\x0a\x01k\x1a\x01x"), true),
            ("an unknown number", vec![0x0a, 1, b'd', 0x28, 1], true),
            ("a group", vec![0x2b, 0x08, 1, 0x2c], true),
            ("a length in five bytes", vec![0x0a, 0x81, 0x80, 0x80, 0x80, 0, b'd'], true),
            ("the number 0", vec![0x02, 0], false),
            ("a domain as a number", vec![0x08, 1], false),
            ("no UTF-8, and then some", vec![0x0a, 1, 0xff, 0x0a, 1, b'd'], false),
            ("an entry longer than its descriptor", vec![0x12, 2, 0x0a, 3, 0x0a, 1, b'k'], false),
            ("half a message", vec![0x0a, 2, b'd'], false),
        ] {
            assert_eq!(plain_request(&message), None, "{what}");
            assert_eq!(RateLimitRequest::decode(&*message).is_ok(), prost_reads_it, "{what}");
        }
    }

    #[test]
    fn a_reply_is_the_bytes_of_the_message_that_prost_writes() {
        let over = Status { over: true, ..within("5m", Duration::from_secs(7)) };
        let named = CurrentLimit { limit: Limit::from(3), window: Window::WEEK, name: Some("n".repeat(200).into()) };
        let statuses = vec![over, Status { current_limit: Some(named), ..Status::default() }, Status { remaining: 9, ..Status::default() }];
        let asked = Request::new("d".into(), vec![Descriptor::default()], 0, RequestBounds::default()).unwrap();
        let plain = || Some(LimitHeaders::plain());
        for (admitted, headers, dynamic_metadata) in
            [(true, None, false), (false, plain(), false), (false, None, true), (true, plain(), true)]
        {
            let decision = Decision { admitted, statuses: statuses.clone().into() };
            let told = if headers.is_some() { 3 } else { 0 };
            let options = ReplyOptions { dynamic_metadata, headers };
            let written = encode(&asked, &decision, &options);
            let reply = RateLimitResponse::decode(written.as_bytes()).unwrap();
            assert_eq!(reply.encode_to_vec(), written.as_bytes());
            assert_eq!(reply.overall_code(), if admitted { Code::Ok } else { Code::OverLimit });
            assert_eq!((reply.response_headers_to_add.len(), reply.dynamic_metadata.is_some()), (told, dynamic_metadata));
            let limit = |requests_per_unit, unit: Unit, name: &str, unit_multiplier| {
                Some(RateLimit { name: name.to_owned(), requests_per_unit, unit: unit.into(), unit_multiplier })
            };
            let status = |code: Code, current_limit, limit_remaining, seconds: Option<i64>| DescriptorStatus {
                code: code.into(),
                current_limit,
                limit_remaining,
                duration_until_reset: seconds.map(|seconds| pb::Duration { seconds, nanos: 0 }),
                quota: None,
            };
            assert_eq!(
                reply.statuses,
                [
                    status(Code::OverLimit, limit(u32::MAX, Unit::Minute, "", Some(5)), 0, Some(7)),
                    status(Code::Ok, limit(3, Unit::Week, &"n".repeat(200), None), 0, Some(0)),
                    status(Code::Ok, None, 9, None),
                ]
            );
        }
    }
}
