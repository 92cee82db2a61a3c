//! Protobuf messages to plain requests, and decisions to protobuf messages: the shapes, units and roundings of Envoy's
//! protocol, and nothing else. Strings move over, they are not copied.

use super::pb::rate_limit_response::rate_limit::Unit;
use super::pb::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use super::pb::{self, RateLimitResponse, rate_limit_descriptor};
use super::{ReplyOptions, extras};
use crate::descriptor::{Descriptor, Entry, LimitOverride, Request, RequestBounds, RequestError};
use crate::limit::{Limit, Window};
use crate::limiter::{CurrentLimit, Decision, Status, whole_seconds};

/// # Errors
/// A request that may not be asked: see [`RequestError`].
pub(super) fn decode(message: pb::RateLimitRequest, bounds: RequestBounds) -> Result<Request, RequestError> {
    let descriptors = message.descriptors.into_iter().map(|descriptor| Descriptor {
        entries: descriptor.entries.into_iter().map(|entry| Entry { key: entry.key, value: entry.value }).collect(),
        limit: descriptor.limit.map(carried_limit),
        hits_addend: descriptor.hits_addend,
        is_negative_hits: descriptor.is_negative_hits,
    });
    Request::new(message.domain, descriptors.collect(), message.hits_addend, bounds)
}

pub(super) fn encode(request: &Request, decision: &Decision, options: &ReplyOptions) -> RateLimitResponse {
    RateLimitResponse {
        overall_code: code(!decision.admitted).into(),
        statuses: decision.statuses.iter().map(status).collect(),
        response_headers_to_add: extras::headers(decision, options),
        dynamic_metadata: options.dynamic_metadata.then(|| extras::dynamic_metadata(request, decision)),
        ..RateLimitResponse::default()
    }
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

fn status(status: &Status) -> DescriptorStatus {
    let Some(current) = &status.current_limit else {
        return DescriptorStatus { code: code(false).into(), limit_remaining: clamp(status.remaining), ..DescriptorStatus::default() };
    };
    let seconds = whole_seconds(status.reset, status.over);
    DescriptorStatus {
        code: code(status.over).into(),
        current_limit: Some(rate_limit(current)),
        limit_remaining: clamp(status.told_remaining()),
        duration_until_reset: Some(pb::Duration { seconds: seconds.try_into().unwrap_or(i64::MAX), nanos: 0 }),
        ..DescriptorStatus::default()
    }
}

fn code(over: bool) -> Code {
    if over { Code::OverLimit } else { Code::Ok }
}

fn rate_limit(current: &CurrentLimit) -> RateLimit {
    let (unit, _, times) = in_units(current.window);
    RateLimit {
        name: current.name.as_deref().unwrap_or_default().to_owned(),
        requests_per_unit: clamp(current.limit.get()),
        unit: unit.into(),
        unit_multiplier: (times != 1).then_some(times),
    }
}

fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn within(window: &str, reset: Duration) -> Status {
        let current_limit = CurrentLimit { limit: Limit::new(1 << 40).unwrap(), window: window.parse().unwrap(), name: None };
        Status { current_limit: Some(current_limit), remaining: 1 << 40, reset, ..Status::default() }
    }

    #[test]
    fn numbers_and_times_are_rounded_as_envoy_needs_them() {
        let shown = |status: &Status| {
            let encoded = super::status(status);
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
            let told = super::status(&within(window, Duration::ZERO)).current_limit.unwrap();
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
}
