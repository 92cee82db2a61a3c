//! The validated values that a limit is made of: how many hits ([`Limit`]), in how long ([`Window`]), counted how
//! ([`Algorithm`]), and what one hit weighs ([`Cost`]). Nothing here knows a rule, a request or a store; whoever
//! holds one of these values need not check it again.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

/// How many hits a window may hold: 0 (which denies everything) to 10^15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(u64);

/// How long a hit counts: 1 ms to 10 years, in whole microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window(u64);

/// How hits on a counter are kept and judged. Chosen per limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Every hit, or every tick of hits, is remembered for one window: at most `limit` in every window `(t - window, t]`.
    SlidingWindowLog { log_entries: LogEntries },
    /// Hits fill a bucket, which drains by `limit` per window: `limit` on average, `burst` at once (None: as much as the
    /// limit). The generic cell rate algorithm (GCRA).
    TokenBucket { burst: Option<Burst> },
    /// Hits are counted from each whole multiple of the window since the Unix epoch on: at most `limit` in each of these.
    FixedWindow,
}

/// The bound on a log's entries: 2 to 100,000. A limit up to this number is exact to the microsecond; above it, hits
/// share an entry per tick and leave at most one tick late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogEntries(NonZeroU32);

/// How many hits a token bucket holds: 1 to 10^15, and no more than 10 years refill at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Burst(NonZeroU64);

/// The most hits that a server takes from Redis at once, to decide by without asking: 1 to 10^15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease(NonZeroU64);

/// What one hit weighs: so many hits taken (0 is a peek: nothing is recorded), or so many given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// At most [`Cost::MOST`] + 1; that one number stands for everything larger, which never fits.
    Take(u64),
    /// At most [`Cost::MOST`].
    Refund(u64),
}

/// A value out of its bounds, or a duration that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("a limit is at most {most}, not {0}", most = Limit::MOST)]
    Limit(u64),
    #[error("a window is 1ms to 10 years (3650d), not {window}", window = Micros(*.0))]
    Window(u64),
    #[error("log_entries is {least} to {most}, not {0}", least = LogEntries::LEAST, most = LogEntries::MOST)]
    LogEntries(u32),
    #[error("a burst is 1 to {most}, not {0}: a smaller one could never admit anything", most = Limit::MOST)]
    Burst(u64),
    #[error("a lease is 1 to {most} hits, not {0}", most = Limit::MOST)]
    Lease(u64),
    #[error("a burst of {burst} takes more than 10 years to refill at {limit} per {window}: at most {most} fits")]
    Refill { burst: u64, limit: u64, window: Window, most: u64 },
    #[error("`{0}` is no algorithm: write one of {names}", names = Algorithm::ALL.map(Algorithm::as_str).join(", "))]
    Algorithm(String),
    #[error("`{0}` is no duration: write whole numbers with units, such as 10s, 5m, 1h30m or 250ms (us, ms, s, m, h, d, w)")]
    Duration(String),
}

impl Limit {
    /// Keeps `used + cost` far below 2^53, the last whole number that a script in Redis can count to.
    pub const MOST: u64 = 1_000_000_000_000_000;

    /// # Errors
    /// Above [`Limit::MOST`].
    pub fn new(hits: u64) -> Result<Self, LimitError> {
        if hits > Self::MOST { Err(LimitError::Limit(hits)) } else { Ok(Self(hits)) }
    }

    /// Hits, 0 to 10^15.
    pub fn get(self) -> u64 {
        self.0
    }

    /// This share of it, rounded down; of a limit above 0 at least 1.
    pub fn share(self, share: f64) -> Self {
        Self(share_of(self.0, share))
    }
}

impl From<u32> for Limit {
    fn from(hits: u32) -> Self {
        Self(u64::from(hits))
    }
}

impl Window {
    pub const SECOND: Self = Self(1_000_000);
    pub const MINUTE: Self = Self(60 * Self::SECOND.0);
    pub const HOUR: Self = Self(60 * Self::MINUTE.0);
    pub const DAY: Self = Self(24 * Self::HOUR.0);
    pub const WEEK: Self = Self(7 * Self::DAY.0);
    /// 30 days, as the reference server counts.
    pub const MONTH: Self = Self(30 * Self::DAY.0);
    /// 365 days, as the reference server counts.
    pub const YEAR: Self = Self(365 * Self::DAY.0);

    /// The reference server's units, by name.
    pub const UNITS: [(&'static str, Self); 7] = [
        ("second", Self::SECOND),
        ("minute", Self::MINUTE),
        ("hour", Self::HOUR),
        ("day", Self::DAY),
        ("week", Self::WEEK),
        ("month", Self::MONTH),
        ("year", Self::YEAR),
    ];

    const SHORTEST: u64 = 1_000;
    const LONGEST: u64 = 10 * Self::YEAR.0;

    /// # Errors
    /// Below 1 ms or above 10 years.
    pub fn from_micros(micros: u64) -> Result<Self, LimitError> {
        if (Self::SHORTEST..=Self::LONGEST).contains(&micros) { Ok(Self(micros)) } else { Err(LimitError::Window(micros)) }
    }

    /// # Errors
    /// 0, or above 10 years.
    pub fn from_secs(secs: u64) -> Result<Self, LimitError> {
        Self::from_micros(secs.saturating_mul(Self::SECOND.0))
    }

    /// Microseconds, 1,000 to 10 years' worth.
    pub const fn micros(self) -> u64 {
        self.0
    }
}

impl FromStr for Window {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        Self::from_micros(u64::try_from(parse_duration(text)?.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Micros(self.0), f)
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Micros(self.0), f)
    }
}

impl LogEntries {
    /// What Redis still keeps as a compact listpack, of about 6 KB.
    pub const DEFAULT: Self = Self(NonZeroU32::MIN.saturating_add(127));
    /// Of a log whose hits are leased: ticks short enough that little is lost to what is taken and not spent.
    pub const LEASED: Self = Self(NonZeroU32::MIN.saturating_add(201));
    pub const LEAST: u32 = 2;
    /// Of a log whose hits are leased: a lease may be recorded one tick ahead.
    pub const LEAST_LEASED: u32 = 3;
    pub const MOST: u32 = 100_000;

    /// # Errors
    /// Below 2 or above 100,000.
    pub fn new(entries: u32) -> Result<Self, LimitError> {
        match NonZeroU32::new(entries) {
            Some(n) if (Self::LEAST..=Self::MOST).contains(&entries) => Ok(Self(n)),
            _ => Err(LimitError::LogEntries(entries)),
        }
    }

    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The time, in microseconds, that admitted hits share an entry for: 1 where `limit` fits the entries one by one.
    pub fn tick(self, limit: Limit, window: Window) -> u64 {
        if limit.get() <= u64::from(self.get()) { 1 } else { self.coarse_tick(window) }
    }

    /// The tick, in microseconds, of a log that holds any number of hits: a window spans at most `log_entries` of them.
    pub fn coarse_tick(self, window: Window) -> u64 {
        window.micros().div_ceil(u64::from(self.get()) - 1)
    }
}

impl Lease {
    /// # Errors
    /// 0, or above [`Limit::MOST`].
    pub fn new(hits: u64) -> Result<Self, LimitError> {
        match NonZeroU64::new(hits) {
            Some(n) if hits <= Limit::MOST => Ok(Self(n)),
            _ => Err(LimitError::Lease(hits)),
        }
    }

    /// So many hundredths of a limit, rounded down, at least 1.
    pub fn percent_of(limit: Limit, percent: f64) -> Self {
        Self(NonZeroU64::new(share_of(limit.get(), percent / 100.0)).unwrap_or(NonZeroU64::MIN))
    }

    /// Hits, 1 to 10^15.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl Burst {
    /// # Errors
    /// 0, or above [`Limit::MOST`].
    pub fn new(hits: u64) -> Result<Self, LimitError> {
        match NonZeroU64::new(hits) {
            Some(n) if hits <= Limit::MOST => Ok(Self(n)),
            _ => Err(LimitError::Burst(hits)),
        }
    }

    /// Hits, 1 to 10^15.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// This share of it, rounded down, at least 1.
    pub fn share(self, share: f64) -> Self {
        Self(NonZeroU64::new(share_of(self.0.get(), share)).unwrap_or(NonZeroU64::MIN))
    }

    /// The same, if 10 years refill it. A limit of 0 denies everything, whatever its burst.
    ///
    /// # Errors
    /// A burst that takes longer.
    pub fn refilled_at(self, limit: Limit, window: Window) -> Result<Self, LimitError> {
        let most = most_refilled(limit, window);
        if limit.get() == 0 || self.get() <= most {
            return Ok(self);
        }
        Err(LimitError::Refill { burst: self.get(), limit: limit.get(), window, most })
    }
}

impl Algorithm {
    /// Each of them, with nothing said beside its name.
    pub const ALL: [Self; 3] =
        [Self::SlidingWindowLog { log_entries: LogEntries::DEFAULT }, Self::TokenBucket { burst: None }, Self::FixedWindow];

    /// Its name in rules files and settings. Equal names are the same algorithm, so the same counter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SlidingWindowLog { .. } => "sliding_window_log",
            Self::TokenBucket { .. } => "token_bucket",
            Self::FixedWindow => "fixed_window",
        }
    }

    /// The time, in microseconds, at whose end a lease ends, and for which leased hits share an entry: of a log so that a window
    /// spans one tick less than it has entries, since a lease may be recorded one tick ahead. None for a token bucket, which
    /// can't be leased: what is not spent could not be given back exactly.
    pub fn lease_tick(self, window: Window) -> Option<u64> {
        let entries = match self {
            Self::SlidingWindowLog { log_entries } => log_entries.get(),
            Self::FixedWindow => LogEntries::LEASED.get(),
            Self::TokenBucket { .. } => return None,
        };
        Some(window.micros().div_ceil(u64::from(entries.max(LogEntries::LEAST_LEASED)) - 2))
    }

    /// The hits that a counter may hold with the one that is admitted: the limit, or of a token bucket its burst, but no
    /// more than 10 years refill, and nothing under a limit of 0.
    pub fn capacity(self, limit: Limit, window: Window) -> u64 {
        match self {
            Self::TokenBucket { burst: Some(burst) } => burst.get().min(most_refilled(limit, window)),
            _ => limit.get(),
        }
    }
}

impl Default for Algorithm {
    fn default() -> Self {
        Self::SlidingWindowLog { log_entries: LogEntries::DEFAULT }
    }
}

impl FromStr for Algorithm {
    type Err = LimitError;

    fn from_str(name: &str) -> Result<Self, LimitError> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name).ok_or_else(|| LimitError::Algorithm(name.to_owned()))
    }
}

impl Cost {
    /// 2^52: the largest cost that is counted.
    pub const MOST: u64 = 1 << 52;

    /// A cost of so many hits. Anything above [`Cost::MOST`] never fits and records nothing.
    pub fn take(hits: u64) -> Self {
        Self::Take(hits.min(Self::MOST + 1))
    }

    /// So many hits given back, [`Cost::MOST`] at most.
    pub fn refund(hits: u64) -> Self {
        Self::Refund(hits.min(Self::MOST))
    }

    /// What must fit: a peek asks whether one more hit would pass. 0 for a refund, which always fits.
    pub fn need(self) -> u64 {
        match self {
            Self::Take(hits) => hits.max(1),
            Self::Refund(_) => 0,
        }
    }

    /// What is recorded, or given back.
    pub fn amount(self) -> u64 {
        match self {
            Self::Take(hits) if hits > Self::MOST => 0,
            Self::Take(hits) | Self::Refund(hits) => hits,
        }
    }

    pub fn is_refund(self) -> bool {
        matches!(self, Self::Refund(_))
    }
}

/// The most hits that flow out of a bucket in 10 years.
fn most_refilled(limit: Limit, window: Window) -> u64 {
    let most = u128::from(Window::LONGEST) * u128::from(limit.get()) / u128::from(window.micros());
    u64::try_from(most).unwrap_or(u64::MAX)
}

/// Reads a duration of whole numbers with units, largest first or not: `10s`, `5m`, `1h30m`, `250ms`; `0` needs no
/// unit. Units: us (or µs), ms, s, m (minutes), h, d, w. (The `humantime` crate reads a month as 30.44 days and a year
/// as 365.25, which the reference server's units contradict; neither is a unit here.)
///
/// # Errors
/// Anything else, and what does not fit 2^64 microseconds.
pub fn parse_duration(text: &str) -> Result<Duration, LimitError> {
    let refuse = || LimitError::Duration(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(refuse());
    }
    let mut micros: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
        let tail = &rest[digits..];
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let unit = match &tail[..unit_end] {
            "us" | "µs" => 1,
            "ms" => 1_000,
            "s" => Window::SECOND.0,
            "m" => Window::MINUTE.0,
            "h" => Window::HOUR.0,
            "d" => Window::DAY.0,
            "w" => Window::WEEK.0,
            _ => return Err(refuse()),
        };
        micros = number.checked_mul(unit).and_then(|part| micros.checked_add(part)).ok_or_else(refuse)?;
        rest = &tail[unit_end..];
    }
    Ok(Duration::from_micros(micros))
}

/// Microseconds as [`parse_duration`] reads them: `1h30m`.
pub(crate) struct Micros(pub u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut left = self.0;
        for (unit, name) in
            [(Window::DAY.0, "d"), (Window::HOUR.0, "h"), (Window::MINUTE.0, "m"), (Window::SECOND.0, "s"), (1_000, "ms"), (1, "us")]
        {
            if left >= unit {
                write!(f, "{}{name}", left / unit)?;
                left %= unit;
            }
        }
        Ok(())
    }
}

/// Hits are below 2^53, so that a float holds them whole.
fn share_of(hits: u64, share: f64) -> u64 {
    ((hits as f64 * share) as u64).clamp(hits.min(1), Limit::MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_written_and_print_as_read() {
        for (text, micros) in
            [("10s", 10_000_000), ("5m", 300_000_000), ("1h30m", 5_400_000_000), ("250ms", 250_000), ("1d", 86_400_000_000)]
        {
            let window: Window = text.parse().unwrap();
            assert_eq!((window.micros(), window.to_string().as_str()), (micros, text));
        }
        assert_eq!("2w".parse::<Window>().unwrap().to_string(), "14d");
        assert_eq!(parse_duration("0").unwrap(), Duration::ZERO);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "10", "s", "10x", "1.5s", "-1s", "10s ago", "1M", "18446744073709551615s", "99999999999999999999s", "1 h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_hold_at_both_ends() {
        assert!(Limit::new(0).is_ok() && Limit::new(Limit::MOST).is_ok() && Limit::new(Limit::MOST + 1).is_err());
        assert!("1ms".parse::<Window>().is_ok() && "999us".parse::<Window>().is_err());
        assert!("3650d".parse::<Window>().is_ok() && "3650d1us".parse::<Window>().is_err());
        assert!(Window::from_secs(0).is_err() && Window::from_secs(u64::MAX).is_err());
        assert!(LogEntries::new(1).is_err() && LogEntries::new(2).is_ok() && LogEntries::new(100_001).is_err());
    }

    #[test]
    fn a_window_never_spans_more_ticks_than_there_are_entries() {
        for window in [1_000, 1_001, 60_000_000, 86_400_000_000 - 1] {
            for entries in [2, 3, 100, 128, 100_000] {
                let (window, entries) = (Window::from_micros(window).unwrap(), LogEntries::new(entries).unwrap());
                let ticks = window.micros() / entries.coarse_tick(window) + 1;
                assert!(ticks <= u64::from(entries.get()), "{window} {entries:?}");
            }
        }
    }

    #[test]
    fn a_burst_is_what_ten_years_refill_at_most() {
        let (limit, day) = (Limit::from(2), Window::DAY);
        let burst = |hits| Burst::new(hits).unwrap();
        assert!(Burst::new(0).is_err() && Burst::new(Limit::MOST).is_ok() && Burst::new(Limit::MOST + 1).is_err());
        assert!(burst(7_300).refilled_at(limit, day).is_ok());
        let error = burst(7_301).refilled_at(limit, day).unwrap_err();
        assert_eq!(error.to_string(), "a burst of 7301 takes more than 10 years to refill at 2 per 1d: at most 7300 fits");
        assert!(burst(5).refilled_at(Limit::from(0), day).is_ok());
        let capacity = |algorithm: Algorithm, limit| algorithm.capacity(limit, day);
        let bucket = |burst| Algorithm::TokenBucket { burst };
        assert_eq!(capacity(bucket(None), limit), 2);
        assert_eq!(capacity(bucket(Some(burst(9))), limit), 9);
        assert_eq!(capacity(bucket(Some(burst(9_000))), limit), 7_300);
        assert_eq!(capacity(bucket(Some(burst(9))), Limit::from(0)), 0);
        assert_eq!(capacity(Algorithm::FixedWindow, limit), 2);
    }

    #[test]
    fn algorithms_read_as_they_are_named() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.as_str().parse::<Algorithm>().unwrap(), algorithm);
        }
        let error = "leaky_bucket".parse::<Algorithm>().unwrap_err();
        assert_eq!(error.to_string(), "`leaky_bucket` is no algorithm: write one of sliding_window_log, token_bucket, fixed_window");
    }

    #[test]
    fn costs_clamp_to_what_a_counter_can_hold() {
        assert_eq!((Cost::take(0).need(), Cost::take(0).amount()), (1, 0));
        assert_eq!((Cost::take(7).need(), Cost::take(7).amount()), (7, 7));
        assert_eq!(Cost::take(1 << 52).amount(), 1 << 52);
        assert_eq!((Cost::take(1 << 63).need(), Cost::take(1 << 63).amount()), ((1 << 52) + 1, 0));
        assert_eq!((Cost::refund(u64::MAX).need(), Cost::refund(u64::MAX).amount()), (0, 1 << 52));
    }

    #[test]
    fn a_share_is_rounded_down_and_leaves_at_least_one() {
        for (limit, share, expected) in
            [(10, 0.5, 5), (10, 0.25, 2), (3, 0.1, 1), (0, 0.5, 0), (10, 1.0, 10), (Limit::MOST, 2.0, Limit::MOST)]
        {
            assert_eq!(Limit::new(limit).unwrap().share(share).get(), expected, "{limit} x {share}");
        }
        assert_eq!(Burst::new(3).unwrap().share(0.1).get(), 1);
    }
}
