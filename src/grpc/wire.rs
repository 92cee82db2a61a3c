//! Protobuf messages to plain requests, and decisions to protobuf messages: the shapes, units and roundings of Envoy's
//! protocol, and nothing else. Strings move over, they are not copied.

use super::pb::rate_limit_response::rate_limit::Unit;
use super::pb::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use super::pb::{self, RateLimitResponse, RateLimitUnit, rate_limit_descriptor};
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
        hits_addend: descriptor.hits_addend.map(|hits| hits.value),
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
    let unit = unit(window).as_str_name();
    if limit.get() == 0 { format!("unit:{unit}") } else { format!("requests_per_unit:{} unit:{unit}", limit.get()) }
}

fn carried_limit(limit: rate_limit_descriptor::RateLimitOverride) -> LimitOverride {
    let window = match RateLimitUnit::try_from(limit.unit) {
        Ok(RateLimitUnit::Second) => Window::SECOND,
        Ok(RateLimitUnit::Minute) => Window::MINUTE,
        Ok(RateLimitUnit::Hour) => Window::HOUR,
        Ok(RateLimitUnit::Day) => Window::DAY,
        Ok(RateLimitUnit::Month) => Window::MONTH,
        Ok(RateLimitUnit::Year) => Window::YEAR,
        // The request's enum has no WEEK; the reply's has, as 7, and the reference takes that number here too.
        Err(_) if limit.unit == Unit::Week as i32 => Window::WEEK,
        Ok(RateLimitUnit::Unknown) | Err(_) => return LimitOverride::UnknownUnit(limit.unit),
    };
    LimitOverride::Limit { limit: Limit::from(limit.requests_per_unit), window }
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

fn unit(window: Window) -> Unit {
    match window {
        Window::SECOND => Unit::Second,
        Window::MINUTE => Unit::Minute,
        Window::HOUR => Unit::Hour,
        Window::DAY => Unit::Day,
        Window::WEEK => Unit::Week,
        Window::MONTH => Unit::Month,
        Window::YEAR => Unit::Year,
        // No unit says this window; a false one would make Envoy print a false `w=`.
        _ => Unit::Unknown,
    }
}

fn rate_limit(current: &CurrentLimit) -> RateLimit {
    let name = current.name.as_deref().unwrap_or_default().to_owned();
    RateLimit { name, requests_per_unit: clamp(current.limit.get()), unit: unit(current.window).into() }
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
            (encoded.limit_remaining, encoded.duration_until_reset.unwrap().seconds, encoded.current_limit.unwrap().unit)
        };
        assert_eq!(shown(&within("1m", Duration::from_millis(59_001))), (u32::MAX, 60, Unit::Minute as i32));
        assert_eq!(shown(&within("5m", Duration::ZERO)), (u32::MAX, 0, Unit::Unknown as i32));
        let over = Status { over: true, ..within("250ms", Duration::from_micros(1)) };
        assert_eq!(shown(&over), (0, 1, Unit::Unknown as i32));
        let late = Status { over: true, ..within("1m", Duration::from_millis(60_400)) };
        assert_eq!(shown(&late), (0, 61, Unit::Minute as i32));
    }

    #[test]
    fn every_unit_of_an_override_reads_and_others_are_unknown() {
        let read = |unit| carried_limit(rate_limit_descriptor::RateLimitOverride { requests_per_unit: u32::MAX - 2, unit });
        for (unit, window) in [
            (1, Window::SECOND),
            (2, Window::MINUTE),
            (3, Window::HOUR),
            (4, Window::DAY),
            (5, Window::MONTH),
            (6, Window::YEAR),
            (7, Window::WEEK),
        ] {
            assert_eq!(read(unit), LimitOverride::Limit { limit: Limit::from(4_294_967_293), window });
        }
        for unit in [-1, 0, 8, i32::MAX] {
            assert_eq!(read(unit), LimitOverride::UnknownUnit(unit));
        }
    }
}
