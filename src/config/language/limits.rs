//! What stands under `rate_limit` and `default`: a limit or a list of them, in either form, and how it counts. It knows nothing
//! of the rule that it stands in, but how that would count where the limit does not say.

use super::{Fields, Reader};
use crate::config::keys::Level::{Limit as InLimit, Replaced};
use crate::config::yaml::{Node, Place, Value};
use crate::limit::{Algorithm, Burst, Lease, Limit, LogEntries, Window};
use crate::rules::{Limits, RateLimit};

/// How a limit counts where it does not say: as its rule or its domain does.
#[derive(Clone, Copy)]
pub(super) struct Counting {
    /// None where what was said is no algorithm.
    algorithm: Option<Algorithm>,
    /// None where it was not said.
    log_entries: Option<LogEntries>,
    /// And where that was said.
    burst: Option<(Burst, Place)>,
    lease: Option<(LeaseSize, Place)>,
}

/// What `lease` says.
#[derive(Clone, Copy)]
enum LeaseSize {
    Hits(Lease),
    /// Of the limit.
    Percent(f64),
}

/// What one map under `rate_limit` says.
enum Limited {
    Unlimited { replaces: Vec<String> },
    To(RateLimit),
}

/// A lease that ends sooner, in microseconds, is hardly there before it ends.
const LEASE_TICK_SENSIBLE: u64 = 10_000;

/// The keys that a rate_limit's number is made of; without any of them it has none.
const NUMBERS: &[&str] = &["requests_per_unit", "unit", "limit", "window", "unlimited"];

impl Reader<'_, '_> {
    /// A map under `rate_limit` or `default`, or a list of them, all of which must fit.
    pub(super) fn limits(&mut self, name: &str, node: &Node, counting: Counting) -> Limits {
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        if items.is_empty() {
            self.report.problem(node.place, format!("`{name}` is an empty list: write a limit, or remove it"));
        }
        let mut limits: Vec<RateLimit> = Vec::with_capacity(items.len());
        let mut places = Vec::with_capacity(items.len());
        for item in items {
            match self.limit_map(name, item, counting) {
                Some(Limited::Unlimited { replaces }) if items.len() == 1 => return Limits::Unlimited { replaces },
                Some(Limited::Unlimited { .. }) => {
                    self.report.problem(item.place, "an unlimited one among other limits changes nothing: remove it");
                }
                Some(Limited::To(limit)) if limits.iter().any(|other| other.shares_a_counter_with(&limit)) => {
                    let what = match limit.algorithm {
                        Algorithm::TokenBucket { .. } => "both would fill one bucket; keep one, or write the other for another window",
                        _ => "keep the smaller one, the larger could never deny",
                    };
                    self.report.problem(item.place, format!("a second {} for the same window: {what}", limit.algorithm.as_str()));
                }
                Some(Limited::To(limit)) => {
                    limits.push(limit);
                    places.push(item.place);
                }
                None => {}
            }
        }
        self.beside_each_other(&limits, &places);
        Limits::All(limits)
    }

    /// Limits of one list that could never count, or never deny.
    fn beside_each_other(&mut self, limits: &[RateLimit], places: &[Place]) {
        for (limit, place) in limits.iter().zip(places) {
            if let Some(name) = limits.iter().filter_map(|other| other.name.as_ref()).find(|name| limit.replaces.contains(name)) {
                let what = format!("`{name}` stands beside it in this list and would never count: remove the limit, or its name here");
                self.report.problem(*place, what);
            }
            let is_log = |limit: &RateLimit| matches!(limit.algorithm, Algorithm::SlidingWindowLog { .. });
            let denies_first =
                |other: &&RateLimit| is_log(other) && is_log(limit) && other.window > limit.window && other.limit <= limit.limit;
            // One with a name may be replaced, and then this one decides.
            let denies_first = |other: &&RateLimit| other.name.is_none() && denies_first(other);
            if let Some(other) = limits.iter().find(denies_first) {
                let (hits, window) = (other.limit.get(), other.window);
                let what = format!("never denies: the list has {hits} per {window} too, which is tighter; make it smaller, or remove it");
                self.report.warning(*place, what);
            }
        }
    }

    fn limit_map(&mut self, name: &str, node: &Node, counting: Counting) -> Option<Limited> {
        let fields = self.fields(node, &format!("`{name}`"), InLimit)?;
        let counting = self.counting_beside(&fields, counting);
        let name = fields.get("name").and_then(|node| self.report.text("name", node)).filter(|text| !text.is_empty());
        let replaces = self.replaces(&fields, name.as_deref());
        if self.flag(&fields, "unlimited") == Some(true) {
            self.unlimited(&fields);
            return Some(Limited::Unlimited { replaces });
        }
        let (limit, window) = match ["requests_per_unit", "unit", "limit", "window"].map(|name| fields.get(name)) {
            [Some(requests), Some(unit), None, None] => (self.requests(requests), self.unit(unit)),
            [None, None, Some(limit), Some(window)] => (self.limit(limit), self.window(window)),
            forms => {
                self.explain_forms(&fields, forms.map(|form| form.is_some()));
                return None;
            }
        };
        let (limit, window) = (limit?, window?);
        let unsaid = if counting.lease.is_some() { LogEntries::LEASED } else { LogEntries::DEFAULT };
        let log_entries = counting.log_entries.unwrap_or(unsaid);
        let algorithm = match counting.algorithm? {
            Algorithm::SlidingWindowLog { .. } => Algorithm::SlidingWindowLog { log_entries },
            Algorithm::TokenBucket { .. } => Algorithm::TokenBucket { burst: self.refilled(counting.burst, limit, window) },
            Algorithm::FixedWindow => Algorithm::FixedWindow,
        };
        self.unused(&fields, [algorithm].into_iter());
        let lease = counting.lease.and_then(|(size, place)| self.leased(size, place, limit, window, algorithm));
        Some(Limited::To(RateLimit { name, limit, window, algorithm, lease, replaces }))
    }

    /// The lease of a limit that can be leased.
    fn leased(&mut self, size: LeaseSize, place: Place, limit: Limit, window: Window, algorithm: Algorithm) -> Option<Lease> {
        let Some(tick) = algorithm.lease_tick(window) else {
            let what = "a token_bucket can't be leased: what is taken and not spent could not be given back exactly; \
                        remove `lease`, or write another `algorithm`";
            self.report.problem(place, what);
            return None;
        };
        if let Algorithm::SlidingWindowLog { log_entries } = algorithm
            && log_entries.get() < LogEntries::LEAST_LEASED
        {
            let what =
                format!("a leased log has at least {} log_entries, for a lease may be recorded one tick ahead", LogEntries::LEAST_LEASED);
            self.report.problem(place, what);
        }
        if tick < LEASE_TICK_SENSIBLE {
            let what = format!("a lease of this limit ends after {tick} us, about as soon as it is fetched: it saves few calls, if any");
            self.report.warning(place, what);
        }
        let lease = match size {
            LeaseSize::Hits(lease) => lease,
            LeaseSize::Percent(percent) => Lease::percent_of(limit, percent),
        };
        if lease.get() > limit.get() {
            self.report.warning(place, format!("a lease of {} hits is more than the limit of {}", lease.get(), limit.get()));
        }
        Some(lease)
    }

    fn refilled(&mut self, burst: Option<(Burst, Place)>, limit: Limit, window: Window) -> Option<Burst> {
        let (burst, place) = burst?;
        burst.refilled_at(limit, window).map_err(|error| self.report.problem(place, error.to_string())).ok()
    }

    /// What shapes another algorithm than those that are counted by would be obeyed by nobody.
    pub(super) fn unused(&mut self, fields: &Fields<'_>, algorithms: impl Iterator<Item = Algorithm>) {
        let counted: Vec<_> = algorithms.map(Algorithm::as_str).collect();
        for (name, shaped) in [("log_entries", "sliding_window_log"), ("burst", "token_bucket")] {
            if let (Some(node), Some(other)) = (fields.get(name), counted.first())
                && !counted.contains(&shaped)
            {
                let what = format!("`{name}` shapes a {shaped}, and this is a {other}: remove it, or write `algorithm: {shaped}`");
                self.report.problem(node.place, what);
            }
        }
    }

    /// What stands beside `unlimited`. The reference server refuses a real unit and takes all else of its own in silence.
    fn unlimited(&mut self, fields: &Fields<'_>) {
        if let Some(node) = fields.get("unit") {
            let text = self.report.text("unit", node).unwrap_or_default();
            if unit(&text).is_some() {
                self.report.problem(node.place, "an unlimited rule has no unit: remove `unit`, or `unlimited`");
            } else {
                self.report.warning(node.place, format!("`{text}` is no unit, and an unlimited rule has none: remove it"));
            }
        }
        if let Some(node) = fields.get("requests_per_unit") {
            self.report.warning(node.place, "`requests_per_unit` is ignored beside `unlimited`: remove one of the two");
        }
        for name in ["limit", "window"] {
            if let Some(node) = fields.get(name) {
                self.report.problem(node.place, format!("an unlimited rule has no `{name}`: remove it, or `unlimited`"));
            }
        }
    }

    /// The names that a limit replaces.
    fn replaces(&mut self, fields: &Fields<'_>, own: Option<&str>) -> Vec<String> {
        let Some(node) = fields.get("replaces") else { return Vec::new() };
        let items = self.report.list("replaces", node, "write `replaces: [{name: NAME}]`");
        let mut names = Vec::new();
        for item in items.unwrap_or_default() {
            let Some(fields) = self.fields(item, "what `replaces` lists", Replaced) else { continue };
            let Some(node) = fields.get("name") else {
                if !fields.meant.contains(&"name") {
                    self.report.problem(item.place, "`name` is missing: write `replaces: [{name: NAME}]`");
                }
                continue;
            };
            let Some(name) = self.report.text("name", node) else { continue };
            if name.is_empty() {
                self.report.problem(node.place, "an empty `name` under `replaces`: fill it in, or remove it");
                continue;
            }
            if Some(name.as_str()) == own {
                self.report.problem(node.place, format!("`{name}` replaces itself: name another limit"));
                continue;
            }
            self.replaced.push((node.place, name.clone()));
            names.push(name);
        }
        names
    }

    /// Why these keys (requests_per_unit, unit, limit, window) make no limit.
    fn explain_forms(&mut self, fields: &Fields<'_>, forms: [bool; 4]) {
        let what = match forms {
            _ if fields.meant.iter().any(|name| NUMBERS.contains(name)) => return,
            [false, false, false, false] => {
                "this `rate_limit` has no number: write `limit` and `window`, or `unit` and `requests_per_unit`"
            }
            [false, true, false, false] => "`requests_per_unit` is missing beside `unit`: 0 would deny everything",
            [true, false, false, false] => "`unit` is missing beside `requests_per_unit`: second, minute, hour or so",
            [false, false, true, false] => "`window` is missing beside `limit`: write how long, such as `window: 10s`",
            [false, false, false, true] => "`limit` is missing beside `window`: write how many hits it may hold",
            _ => "two forms in one `rate_limit`: keep `limit` and `window`, or `unit` and `requests_per_unit`",
        };
        self.report.problem(fields.place, what);
    }

    fn requests(&mut self, node: &Node) -> Option<Limit> {
        let requests = self.report.number("requests_per_unit", node, u32::MAX.into())?;
        self.report.judged(node, Limit::new(requests))
    }

    fn limit(&mut self, node: &Node) -> Option<Limit> {
        let hits = self.report.number("limit", node, Limit::MOST)?;
        self.report.judged(node, Limit::new(hits))
    }

    fn unit(&mut self, node: &Node) -> Option<Window> {
        let text = self.report.text("unit", node)?;
        let found = unit(&text);
        if found.is_none() {
            let what =
                format!("`{text}` is no unit: write one of {}, or `limit` and `window`", Window::UNITS.map(|(name, _)| name).join(", "));
            self.report.problem(node.place, what);
        }
        found
    }

    fn window(&mut self, node: &Node) -> Option<Window> {
        let text = self.report.text("window", node)?;
        self.report.judged(node, text.parse())
    }

    fn log_entries(&mut self, fields: &Fields<'_>) -> Option<LogEntries> {
        let node = fields.get("log_entries")?;
        let number = self.report.number("log_entries", node, u32::MAX.into())?;
        let entries = self.report.judged(node, LogEntries::new(u32::try_from(number).unwrap_or(u32::MAX)))?;
        if entries > LogEntries::DEFAULT {
            let what = format!(
                "more than {} log_entries leave Redis's compact form, and a client may cost {} KB there: \
                 keep to {0} unless that is meant",
                LogEntries::DEFAULT.get(),
                // 135 bytes an entry, measured: docs/algorithm.md.
                u64::from(entries.get()) * 135 / 1_000
            );
            self.report.warning(node.place, what);
        }
        Some(entries)
    }

    /// How the domain's limits count.
    pub(super) fn counting(&self) -> Counting {
        Counting { algorithm: self.algorithm, log_entries: None, burst: None, lease: None }
    }

    /// The same as these keys have it, which win.
    pub(super) fn counting_beside(&mut self, fields: &Fields<'_>, outer: Counting) -> Counting {
        Counting {
            algorithm: self.algorithm(fields, outer.algorithm),
            log_entries: self.log_entries(fields).or(outer.log_entries),
            burst: self.burst(fields).or(outer.burst),
            lease: self.lease(fields).or(outer.lease),
        }
    }

    /// A number of hits, or a percentage of the limit.
    fn lease(&mut self, fields: &Fields<'_>) -> Option<(LeaseSize, Place)> {
        let node = fields.get("lease")?;
        let text = self.report.text("lease", node)?;
        let size = match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim_end().parse().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
                percent.map(LeaseSize::Percent)
            }
            None => text.parse().ok().and_then(|hits| Lease::new(hits).ok()).map(LeaseSize::Hits),
        };
        if size.is_none() {
            let what = format!("`{text}` is no lease: write how many hits, such as 500, or a share of the limit, such as 2%");
            self.report.problem(node.place, what);
        }
        Some((size?, node.place))
    }

    fn burst(&mut self, fields: &Fields<'_>) -> Option<(Burst, Place)> {
        let node = fields.get("burst")?;
        let hits = self.report.number("burst", node, Limit::MOST)?;
        Some((self.report.judged(node, Burst::new(hits))?, node.place))
    }

    pub(super) fn algorithm(&mut self, fields: &Fields<'_>, outer: Option<Algorithm>) -> Option<Algorithm> {
        let Some(node) = fields.get("algorithm") else { return outer };
        let name = self.report.text("algorithm", node)?;
        self.report.judged(node, name.parse())
    }
}

/// The window that a unit's name means, in any case.
pub(in crate::config) fn unit(text: &str) -> Option<Window> {
    Window::UNITS.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, window)| window)
}
