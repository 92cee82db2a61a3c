//! The rules language: which key stands where, and what its value may be. A file's marked tree becomes the domain that it
//! describes; whatever is wrong is reported with its place, and the reading goes on. A new key gets its line in `KEYS` and
//! its reading in the function of its level. It knows neither files nor how YAML is parsed; what loads and is probably not
//! meant is `config::lints`' affair.

use std::collections::HashMap;

use crate::hit::{FailurePolicy, Kind};
use crate::limit::{Algorithm, Burst, Limit, LogEntries, Window};
use crate::rules::{DomainSpec, Limits, Metadata, RateLimit, RuleSpec};

use super::Report;
use super::lints::Lints;
use super::scalars::nearest;
use super::yaml::{self, Node, Place, Value};

/// The kinds of map that a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    File,
    Rule,
    Limit,
    Replaced,
}

/// A domain as one file describes it.
pub(super) struct Described {
    pub spec: DomainSpec,
    /// Of the domain's name.
    pub place: Place,
    /// Of each rule at the top.
    pub rules: Vec<Place>,
    /// Where which name is replaced.
    pub replaced: Vec<(Place, String)>,
}

/// A key of the language.
pub(super) struct Key {
    pub name: &'static str,
    pub levels: &'static [Level],
    pub shape: Shape,
    /// What it says, for the schema.
    pub about: &'static str,
}

/// What a key's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Texts,
    Flag,
    /// A whole number of at most so much.
    Number(u64),
    Duration,
    Word(&'static [&'static str]),
    /// One of the reference server's units, in any case.
    Unit,
    Maps(Level),
    /// One map, or a list of them.
    MapOrMaps(Level),
    /// A map of anything.
    Anything,
    /// A key of the language that this version cannot obey. Refused, since ignoring it would change an answer.
    Later,
}

use Level::{File, Limit as InLimit, Replaced, Rule};
use Shape::{Anything, Duration, Flag, Later, MapOrMaps, Maps, Number, Text, Texts, Unit, Word};

const ALGORITHMS: &[&str] = &["sliding_window_log", "token_bucket", "fixed_window"];
const POLICIES: &[&str] = &["local", "allow", "deny", "error"];
pub(super) const UNIT_NAMES: &[&str] = &["second", "minute", "hour", "day", "week", "month", "year"];

/// Which key stands where, and what it says.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("domain", &[File], Text, "The domain of Envoy's rate-limit filter. A file describes one."),
    key("default", &[File], MapOrMaps(InLimit), "What a descriptor gets that no rule takes; nothing without it."),
    key("descriptors", &[File, Rule], Maps(Rule), "The rules; inside a rule, those for the descriptor's next entry."),
    key("key", &[Rule], Text, "The key of an entry. A * stands for any characters."),
    key("value", &[Rule], Text, "The value of an entry. A * stands for any characters; without a value, each one is counted apart."),
    key("rate_limit", &[Rule], MapOrMaps(InLimit), "The limit, or a list of limits, all of which must fit."),
    key("action", &[Rule], Text, "What is counted, by name. Rules with one action share a client's counter."),
    key("client_id", &[Rule], Texts, "The keys whose values say who is counted, instead of all that the rule leaves open."),
    key("count_denied", &[Rule], Flag, "Whether denied hits count. Without it, charges do (a cost above 1, or a descriptor's own hits_addend)."),
    key("shadow_mode", &[Rule], Flag, "Count and measure, but never deny."),
    key("quota_mode", &[Rule], Flag, "Deny only where all quotas of the request are used up."),
    key("exempt", &[Rule], Flag, "Let the whole request pass, and count nothing."),
    key("share_threshold", &[Rule], Flag, "Count all that this wildcard takes together."),
    key("detailed_metric", &[Rule], Flag, "Label the rule's series with the request's own values, at every level."),
    key("value_to_metric", &[Rule], Flag, "Label the series of this rule, and of those below, with the request's own value at this level."),
    key("metadata", &[Rule], Anything, "Sent to Envoy as dynamic metadata where the descriptor is not over."),
    key("on_store_failure", &[File, Rule], Word(POLICIES), "Who answers while the store does not."),
    key("algorithm", &[File, Rule, InLimit], Word(ALGORITHMS), "How hits are counted."),
    key("log_entries", &[Rule, InLimit], Number(100_000), "The most entries of a sliding_window_log; a limit up to this is exact to the microsecond."),
    key("burst", &[Rule, InLimit], Number(Limit::MOST), "How many hits a token bucket takes at once; as many as its limit without it."),
    key("lease", &[Rule, InLimit], Later, ""),
    key("unit", &[InLimit], Unit, "The window, as the reference server names it."),
    key("requests_per_unit", &[InLimit], Number(u32::MAX as u64), "How many hits the unit may hold."),
    key("limit", &[InLimit], Number(Limit::MOST), "How many hits the window may hold."),
    key("window", &[InLimit], Duration, "How long a hit counts: 10s, 5m, 1h30m, 250ms."),
    key("name", &[InLimit, Replaced], Text, "Sent back to Envoy; what `replaces` names."),
    key("unlimited", &[InLimit], Flag, "The descriptor passes; the request's others are still judged."),
    key("replaces", &[InLimit], Maps(Replaced), "The limits, by name, that don't count in a request where this one does."),
];

const fn key(name: &'static str, levels: &'static [Level], shape: Shape, about: &'static str) -> Key {
    Key { name, levels, shape, about }
}

/// The keys that the reference server does not have. It ignores its own in a wrong place, so we may only warn of those; it
/// never loaded a file with one of these.
const OURS: &[&str] = &[
    "default",
    "action",
    "client_id",
    "count_denied",
    "exempt",
    "on_store_failure",
    "algorithm",
    "log_entries",
    "burst",
    "lease",
    "limit",
    "window",
];

/// The reference server's units, with its lengths of month and year.
const UNITS: &[(&str, Window)] = &[
    ("second", Window::SECOND),
    ("minute", Window::MINUTE),
    ("hour", Window::HOUR),
    ("day", Window::DAY),
    ("week", Window::WEEK),
    ("month", Window::MONTH),
    ("year", Window::YEAR),
];

/// The keys that a rate_limit's number is made of; without any of them it has none.
const NUMBERS: &[&str] = &["requests_per_unit", "unit", "limit", "window", "unlimited"];

/// A test of rules, or a JSON Schema: they may lie beside rules. No file of rules has such a key at its top, nor lacks a
/// `domain`, so none is taken for one.
pub(super) fn is_for_another_reader(root: &Node) -> bool {
    !has(root, "domain") && (has(root, "tests") || has(root, "$schema"))
}

fn has(root: &Node, name: &str) -> bool {
    let Value::Map(pairs) = &root.value else { return false };
    pairs.iter().any(|(key, _)| matches!(&key.value, Value::Scalar { text, .. } if text == name))
}

/// The keys of a rule that speak of its own limits alone.
const OF_A_LIMIT: &[&str] = &[
    "action",
    "client_id",
    "count_denied",
    "shadow_mode",
    "quota_mode",
    "detailed_metric",
    "metadata",
    "on_store_failure",
    "algorithm",
    "log_entries",
    "burst",
];

/// What a file describes; `None` where its domain cannot even be named.
pub(super) fn domain(root: &Node, report: &mut Report<'_>) -> Option<Described> {
    let algorithm = Some(Algorithm::default());
    Reader { report, path: Vec::new(), lints: Lints::default(), replaced: Vec::new(), algorithm }.file(root)
}

struct Reader<'r, 'f> {
    report: &'r mut Report<'f>,
    /// The keys and values from the top down to the rule being read, itself included.
    path: Vec<(String, Option<String>)>,
    lints: Lints,
    replaced: Vec<(Place, String)>,
    /// How the domain counts; None where what it says is no algorithm.
    algorithm: Option<Algorithm>,
}

/// How a limit counts where it does not say: as its rule or its domain does.
#[derive(Clone, Copy)]
struct Counting {
    /// None where what was said is no algorithm.
    algorithm: Option<Algorithm>,
    log_entries: LogEntries,
    /// And where that was said.
    burst: Option<(Burst, Place)>,
}

/// A map's known keys. A null value is as good as none, so that `descriptors:` may be left empty.
struct Fields<'n> {
    place: Place,
    known: Vec<(&'static str, &'n Node)>,
    /// The known keys that refused ones were meant to be: they are not missing besides.
    meant: Vec<&'static str>,
}

/// What one map under `rate_limit` says.
enum Limited {
    Unlimited { replaces: Vec<String> },
    To(RateLimit),
}

impl<'n> Fields<'n> {
    fn get(&self, name: &str) -> Option<&'n Node> {
        self.known.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

impl Reader<'_, '_> {
    fn file(mut self, root: &Node) -> Option<Described> {
        if is_for_another_reader(root) {
            let test = "this is a test of rules: run `ratelimitd test FILE`";
            let schema = "this is a JSON Schema and no rules file: name the rules alone";
            self.report.problem(root.place, if has(root, "tests") { test } else { schema });
            return None;
        }
        let fields = self.fields(root, "a rules file", File)?;
        self.algorithm = self.algorithm(&fields, self.algorithm);
        let (rules, places) = self.rules(&fields);
        let default = self.default(&fields);
        let on_store_failure = self.on_store_failure(&fields);
        let name = fields.get("domain");
        let place = name.map_or(fields.place, |node| node.place);
        match name {
            Some(node) => {
                let name = self.report.text("domain", node)?;
                if !name.is_empty() {
                    let spec = DomainSpec { name, rules, default, on_store_failure };
                    return Some(Described { spec, place, rules: places, replaced: self.replaced });
                }
                self.report.problem(place, "`domain` is empty: give it the name that Envoy sends");
            }
            None if fields.meant.contains(&"domain") => {}
            None => self.report.problem(place, "`domain` is missing: begin the file with `domain: NAME`"),
        }
        None
    }

    fn default(&mut self, fields: &Fields<'_>) -> Vec<RateLimit> {
        let Some(node) = fields.get("default") else { return Vec::new() };
        match self.limits("default", node, self.counting()) {
            Limits::All(limits) => limits,
            Limits::Unlimited { .. } => {
                self.report.problem(node.place, "`default` is unlimited, as what no rule knows is anyway: remove it");
                Vec::new()
            }
            Limits::None | Limits::Exempt => Vec::new(),
        }
    }

    /// The rules under `descriptors`, problems or not, and their places: those that could not be read have said why.
    fn rules(&mut self, fields: &Fields<'_>) -> (Vec<RuleSpec>, Vec<Place>) {
        let node = fields.get("descriptors");
        let items = node.and_then(|node| self.report.list("descriptors", node, "begin each of its rules with `- key:`"));
        let mut lines: HashMap<(String, Option<String>), usize> = HashMap::new();
        let (mut rules, mut places) = (Vec::new(), Vec::new());
        for item in items.unwrap_or_default() {
            let Some(rule) = self.rule(item) else { continue };
            if let Some(first) = lines.get(&(rule.key.clone(), rule.value.clone())) {
                let rule = shown(&rule);
                let what = format!("`{rule}` stands twice on this level, first in line {first}: put both into one");
                self.report.problem(item.place, what);
                continue;
            }
            lines.insert((rule.key.clone(), rule.value.clone()), item.place.line);
            rules.push(rule);
            places.push(item.place);
        }
        self.lints.level(&rules, &places, self.report);
        (rules, places)
    }

    fn rule(&mut self, node: &Node) -> Option<RuleSpec> {
        let fields = self.fields(node, "a rule", Rule)?;
        let key = self.filled(&fields, "key");
        if fields.get("key").is_none() && !fields.meant.contains(&"key") {
            self.report.problem(fields.place, "`key` is missing: every rule names the key of an entry");
        }
        let key_is_known = key.is_some();
        let key = key.unwrap_or_default();
        let value = fields.get("value").and_then(|node| self.report.text("value", node)).filter(|text| !text.is_empty());
        self.path.push((key.clone(), value.clone()));

        let counting = self.counting_beside(&fields, self.counting());
        let limits = fields.get("rate_limit").map_or(Limits::None, |node| self.limits("rate_limit", node, counting));
        if let Limits::All(limits) = &limits {
            self.unused(&fields, limits.iter().map(|limit| limit.algorithm));
        }
        let kind = match (self.flag(&fields, "shadow_mode"), self.flag(&fields, "quota_mode")) {
            (Some(true), Some(true)) => Kind::QuotaShadow,
            (Some(true), _) => Kind::Shadow,
            (_, Some(true)) => Kind::Quota,
            _ => Kind::Enforce,
        };
        let mut rule = RuleSpec {
            limits: self.exempt(&fields, limits),
            action: self.filled(&fields, "action"),
            client_id: fields.get("client_id").and_then(|node| self.client_id(node)),
            count_denied: self.flag(&fields, "count_denied"),
            kind,
            share_threshold: self.flag(&fields, "share_threshold").unwrap_or_default(),
            detailed_metric: self.flag(&fields, "detailed_metric").unwrap_or_default(),
            value_to_metric: self.flag(&fields, "value_to_metric").unwrap_or_default(),
            metadata: fields.get("metadata").and_then(|node| self.metadata(node)),
            on_store_failure: self.on_store_failure(&fields),
            key,
            value,
            children: Vec::new(),
        };
        if let (true, false, Some(node)) = (rule.share_threshold, rule.is_wildcard(), fields.get("share_threshold")) {
            let what = "`share_threshold` shares what a wildcard takes, and there is no `*` in this key or value: remove it";
            self.report.problem(node.place, what);
        }
        self.lints.counters(fields.place, &self.path, &rule, self.report);
        if !matches!(rule.limits, Limits::All(_)) {
            self.idle(&fields);
        }
        rule.children = self.rules(&fields).0;
        self.path.pop();
        key_is_known.then_some(rule)
    }

    /// Warns of keys that say nothing of a rule without a limit of its own. Rules below inherit none of them.
    fn idle(&mut self, fields: &Fields<'_>) {
        for name in OF_A_LIMIT {
            let Some(node) = fields.get(name) else { continue };
            let is_false = matches!(&node.value, Value::Scalar { text, plain: true } if yaml::boolean(text) == Some(false));
            if !is_false {
                self.report.warning(node.place, format!("`{name}` says nothing of a rule that has no limit: move or remove it"));
            }
        }
    }

    fn exempt(&mut self, fields: &Fields<'_>, limits: Limits) -> Limits {
        match (self.flag(fields, "exempt"), fields.get("rate_limit")) {
            (Some(true), None) => Limits::Exempt,
            (Some(true), Some(node)) => {
                self.report.problem(node.place, "an `exempt` rule lets the whole request pass and has no limit: remove one of the two");
                limits
            }
            _ => limits,
        }
    }

    /// A map under `rate_limit` or `default`, or a list of them, all of which must fit.
    fn limits(&mut self, name: &str, node: &Node, counting: Counting) -> Limits {
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
        let algorithm = match counting.algorithm? {
            Algorithm::SlidingWindowLog { .. } => Algorithm::SlidingWindowLog { log_entries: counting.log_entries },
            Algorithm::TokenBucket { .. } => Algorithm::TokenBucket { burst: self.refilled(counting.burst, limit, window) },
            Algorithm::FixedWindow => Algorithm::FixedWindow,
        };
        self.unused(&fields, [algorithm].into_iter());
        Some(Limited::To(RateLimit { name, limit, window, algorithm, replaces }))
    }

    fn refilled(&mut self, burst: Option<(Burst, Place)>, limit: Limit, window: Window) -> Option<Burst> {
        let (burst, place) = burst?;
        burst.refilled_at(limit, window).map_err(|error| self.report.problem(place, error.to_string())).ok()
    }

    /// What shapes another algorithm than those that are counted by would be obeyed by nobody.
    fn unused(&mut self, fields: &Fields<'_>, algorithms: impl Iterator<Item = Algorithm>) {
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
            let what = format!("`{text}` is no unit: write one of {}, or `limit` and `window`", UNIT_NAMES.join(", "));
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
    fn counting(&self) -> Counting {
        Counting { algorithm: self.algorithm, log_entries: LogEntries::DEFAULT, burst: None }
    }

    /// The same as these keys have it, which win.
    fn counting_beside(&mut self, fields: &Fields<'_>, outer: Counting) -> Counting {
        Counting {
            algorithm: self.algorithm(fields, outer.algorithm),
            log_entries: self.log_entries(fields).unwrap_or(outer.log_entries),
            burst: self.burst(fields).or(outer.burst),
        }
    }

    fn burst(&mut self, fields: &Fields<'_>) -> Option<(Burst, Place)> {
        let node = fields.get("burst")?;
        let hits = self.report.number("burst", node, Limit::MOST)?;
        Some((self.report.judged(node, Burst::new(hits))?, node.place))
    }

    fn algorithm(&mut self, fields: &Fields<'_>, outer: Option<Algorithm>) -> Option<Algorithm> {
        let Some(node) = fields.get("algorithm") else { return outer };
        let name = self.report.text("algorithm", node)?;
        self.report.judged(node, name.parse())
    }

    fn on_store_failure(&mut self, fields: &Fields<'_>) -> Option<FailurePolicy> {
        let node = fields.get("on_store_failure")?;
        let text = self.report.text("on_store_failure", node)?;
        self.report.judged(node, text.parse().map_err(|error| format!("`on_store_failure`: {error}")))
    }

    /// The keys that make the client. Each is a key on the way to this rule, else the rule could never name anybody by it.
    fn client_id(&mut self, node: &Node) -> Option<Vec<String>> {
        let Value::List(items) = &node.value else {
            let what = format!("`client_id` is a list of keys, not {}: write `client_id: [KEY]`", node.kind());
            self.report.problem(node.place, what);
            return None;
        };
        let mut keys: Vec<String> = Vec::with_capacity(items.len());
        for item in items {
            let Some(key) = self.report.text("client_id", item) else { continue };
            let times = self.path.iter().filter(|(known, _)| *known == key).count();
            if times > 1 {
                let what =
                    format!("`{key}` stands {times} times on the way to this rule and does not say which is meant: leave `client_id` out");
                self.report.problem(item.place, what);
            } else if times == 0 {
                let path: Vec<_> = self.path.iter().map(|(key, _)| format!("`{key}`")).collect();
                let what = format!("`{key}` is no key on the way to this rule: choose from {}", path.join(", "));
                self.report.problem(item.place, what);
            } else if keys.contains(&key) {
                self.report.problem(item.place, format!("`{key}` stands twice in `client_id`: remove one of them"));
            }
            keys.push(key);
        }
        Some(keys)
    }

    fn metadata(&mut self, node: &Node) -> Option<Metadata> {
        if let Value::Map(_) = &node.value {
            return Some(metadata(node));
        }
        self.report.problem(node.place, format!("`metadata` is a map, not {}: write `NAME: VALUE` lines", node.kind()));
        None
    }

    fn flag(&mut self, fields: &Fields<'_>, name: &str) -> Option<bool> {
        self.report.flag(name, fields.get(name)?)
    }

    fn filled(&mut self, fields: &Fields<'_>, name: &str) -> Option<String> {
        self.report.filled(name, fields.get(name)?)
    }

    /// The known keys of a map that stand where they belong; what is to say of the others is said.
    fn fields<'n>(&mut self, node: &'n Node, what: &str, level: Level) -> Option<Fields<'n>> {
        let Value::Map(pairs) = &node.value else {
            self.report.problem(node.place, format!("{what} is a map, not {}: write `NAME: VALUE` lines", node.kind()));
            return None;
        };
        let mut fields = Fields { place: node.place, known: Vec::with_capacity(pairs.len()), meant: Vec::new() };
        for (key, value) in pairs {
            let Value::Scalar { text, .. } = &key.value else {
                self.report.problem(key.place, format!("a key is text, not {}: write `NAME: VALUE`", key.kind()));
                continue;
            };
            match KEYS.iter().find(|key| key.name == text) {
                None => {
                    let near = nearest_key(text, level);
                    fields.meant.extend(near);
                    let advice = near.map_or("remove it".to_owned(), |name| format!("did you mean `{name}`?"));
                    self.report.problem(key.place, format!("unknown key `{text}`: {advice}"));
                }
                Some(Key { levels, .. }) if !levels.contains(&level) => {
                    let homes: Vec<_> = levels.iter().filter(|level| **level != Replaced).map(|level| level.place()).collect();
                    let homes = homes.join(" or ");
                    if OURS.contains(&text.as_str()) {
                        self.report.problem(key.place, format!("`{text}` belongs {homes}: move it there"));
                    } else {
                        self.report.warning(key.place, format!("`{text}` belongs {homes} and is ignored here: move or remove it"));
                    }
                }
                Some(_) if value.is_null() => {}
                Some(Key { name, shape: Later, .. }) => {
                    fields.meant.push(name);
                    let what = format!("`{text}` is not supported yet by this version: remove it");
                    self.report.problem(key.place, what);
                }
                Some(Key { name, .. }) => fields.known.push((name, value)),
            }
        }
        Some(fields)
    }
}

impl Level {
    fn place(self) -> &'static str {
        match self {
            File => "beside `domain`",
            Rule => "beside `key`",
            InLimit => "inside `rate_limit`",
            Replaced => "inside `replaces`",
        }
    }
}

/// A rule's key and value, for a message.
pub(super) fn shown(rule: &RuleSpec) -> String {
    rule.value.as_ref().map_or(rule.key.clone(), |value| format!("{}: {value}", rule.key))
}

/// The window that a unit's name means, in any case.
pub(super) fn unit(text: &str) -> Option<Window> {
    UNITS.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, window)| *window)
}

/// The known key that `text` is probably meant to be. Of two equally near ones, the one that may stand here.
fn nearest_key(text: &str, level: Level) -> Option<&'static str> {
    let standing = |here: bool| KEYS.iter().filter(move |key| key.levels.contains(&level) == here).map(|key| key.name);
    nearest(text, standing(true).chain(standing(false)))
}

/// Any tree, plain scalars read as YAML 1.1 reads them; a date is text. A key is text, as the reference server writes it.
fn metadata(node: &Node) -> Metadata {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => Metadata::Null,
        Value::Scalar { text, plain: false } => Metadata::Text(text.clone()),
        Value::Scalar { text, plain: true } => {
            let boolean = yaml::boolean(text).map(Metadata::Bool);
            // JSON and protobuf have one kind of number.
            let number = || yaml::integer(text).map(|number| number as f64).or_else(|| yaml::float(text)).map(Metadata::Number);
            boolean.or_else(number).unwrap_or_else(|| Metadata::Text(text.clone()))
        }
        Value::List(items) => Metadata::List(items.iter().map(metadata).collect()),
        Value::Map(pairs) => Metadata::Map(pairs.iter().map(|(key, value)| (metadata_key(key), metadata(value))).collect()),
    }
}

fn metadata_key(node: &Node) -> String {
    match &node.value {
        Value::Scalar { text, plain: true } => match (yaml::boolean(text), yaml::integer(text)) {
            (Some(boolean), _) => boolean.to_string(),
            (None, Some(number)) => number.to_string(),
            _ => text.clone(),
        },
        Value::Scalar { text, .. } => text.clone(),
        Value::List(_) | Value::Map(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn rules(descriptors: &str) -> Vec<RuleSpec> {
        let mut report = Report { file: Path::new("f"), problems: Vec::new(), warnings: Vec::new() };
        let root = yaml::read(&format!("domain: d\ndescriptors:\n{descriptors}"), &mut report).unwrap();
        let Described { spec, place, .. } = domain(&root, &mut report).unwrap();
        assert_eq!((spec.name.as_str(), place, &report.problems), ("d", Place { line: 1, column: 9 }, &Vec::new()));
        spec.rules
    }

    /// The limits of a rule that has some.
    fn limits(rule: &RuleSpec) -> &[RateLimit] {
        let Limits::All(limits) = &rule.limits else { panic!("{rule:?}") };
        limits
    }

    fn limit(rate_limit: &str) -> (u64, Window) {
        let rule = rules(&format!("  - {{ key: a, rate_limit: {{ {rate_limit} }} }}")).remove(0);
        let limit = &limits(&rule)[0];
        (limit.limit.get(), limit.window)
    }

    #[test]
    fn a_rule_reads_as_it_is_written() {
        let rule = rules(
            "  - key: tenant\n    log_entries: 64\n    descriptors:\n      - key: user\n        value: 0443\n        action: x\n        \
             client_id: [tenant]\n        count_denied: no\n        quota_mode: yes\n        \
             rate_limit: { name: n, limit: 5, window: 10s, log_entries: 32 }\n",
        );
        let algorithm = Algorithm::SlidingWindowLog { log_entries: LogEntries::new(32).unwrap() };
        let (name, window) = (Some("n".into()), "10s".parse().unwrap());
        let rate_limit = RateLimit { name, limit: Limit::from(5), window, algorithm, replaces: Vec::new() };
        let child = RuleSpec {
            key: "user".into(),
            value: Some("0443".into()),
            limits: Limits::All(vec![rate_limit]),
            action: Some("x".into()),
            client_id: Some(vec!["tenant".into()]),
            count_denied: Some(false),
            kind: Kind::Quota,
            ..RuleSpec::default()
        };
        assert_eq!(rule, [RuleSpec { key: "tenant".into(), children: vec![child], ..RuleSpec::default() }]);
    }

    #[test]
    fn both_forms_make_a_limit_and_units_are_the_reference_servers() {
        assert_eq!(limit("limit: 1_000, window: 1h30m"), (1000, "90m".parse().unwrap()));
        assert_eq!(limit("unit: SECOND, requests_per_unit: 017"), (15, Window::SECOND));
        assert_eq!(limit("unit: Month, requests_per_unit: 0x1F"), (31, "30d".parse().unwrap()));
        assert_eq!(limit("unit: year, requests_per_unit: 0"), (0, "365d".parse().unwrap()));
    }

    #[test]
    fn a_rules_log_entries_are_the_default_of_its_limit() {
        let entries = |rule: &RuleSpec| limits(rule)[0].algorithm;
        let of = |entries: u32| Algorithm::SlidingWindowLog { log_entries: LogEntries::new(entries).unwrap() };
        let limit = "rate_limit: { limit: 5, window: 10s }";
        let rules = rules(&format!("  - {{ key: a, log_entries: 64, {limit} }}\n  - {{ key: b, {limit} }}"));
        assert_eq!((entries(&rules[0]), entries(&rules[1])), (of(64), of(128)));
    }

    #[test]
    fn a_limits_own_algorithm_wins_over_its_rules_and_that_over_the_domains() {
        let text = "domain: d\nalgorithm: fixed_window\ndefault: {limit: 5, window: 10s}\ndescriptors:\n  \
                    - {key: a, rate_limit: {limit: 5, window: 10s}}\n  \
                    - {key: b, algorithm: token_bucket, burst: 7, rate_limit: [{limit: 5, window: 10s}, {limit: 5, window: 20s, burst: 9},\n    \
                       {limit: 5, window: 10s, algorithm: sliding_window_log}]}";
        let mut report = Report { file: Path::new("f"), problems: Vec::new(), warnings: Vec::new() };
        let root = yaml::read(text, &mut report).unwrap();
        let spec = domain(&root, &mut report).unwrap().spec;
        assert_eq!(report.problems, []);
        let algorithms = |limits: &[RateLimit]| limits.iter().map(|limit| limit.algorithm).collect::<Vec<_>>();
        let bucket = |burst| Algorithm::TokenBucket { burst: Burst::new(burst).ok() };
        assert_eq!(algorithms(&spec.default), [Algorithm::FixedWindow]);
        assert_eq!(algorithms(limits(&spec.rules[0])), [Algorithm::FixedWindow]);
        assert_eq!(algorithms(limits(&spec.rules[1])), [bucket(7), bucket(9), Algorithm::default()]);
    }

    #[test]
    fn metadata_is_any_tree_with_plain_scalars_as_yaml_1_1_reads_them() {
        let text = "  - key: a\n    metadata: {7: a, yes: ~, '8': .inf, d: 2026-11-25, l: [0x10, 1.5, no, 'no', 1e3], m: {}}";
        let Some(Metadata::Map(map)) = rules(text).remove(0).metadata else { panic!() };
        let (text, list) = (|text: &str| Metadata::Text(text.into()), |list| Metadata::List(list));
        let numbers = vec![Metadata::Number(16.0), Metadata::Number(1.5), Metadata::Bool(false), text("no"), Metadata::Number(1000.0)];
        let expected = [
            ("7", text("a")),
            ("true", Metadata::Null),
            ("8", Metadata::Number(f64::INFINITY)),
            ("d", text("2026-11-25")),
            ("l", list(numbers)),
            ("m", Metadata::Map(Default::default())),
        ];
        assert_eq!(map, expected.map(|(key, value)| (key.to_owned(), value)).into());
    }

    #[test]
    fn a_limit_may_be_a_list_unlimited_or_exempt() {
        let rules = rules(
            "  - {key: a, rate_limit: [{limit: 10, window: 1s}, {limit: 250, window: 1d}]}\n  \
             - {key: b, rate_limit: {unlimited: true, replaces: [{name: x}]}}\n  - {key: c, exempt: true}",
        );
        assert_eq!(limits(&rules[0]).iter().map(|limit| limit.limit.get()).collect::<Vec<_>>(), [10, 250]);
        assert_eq!(rules[1].limits, Limits::Unlimited { replaces: vec!["x".into()] });
        assert_eq!(rules[2].limits, Limits::Exempt);
    }

    #[test]
    fn shadow_and_quota_make_the_four_kinds() {
        let rules = rules("  - {key: a}\n  - {key: b, shadow_mode: on}\n  - {key: c, shadow_mode: y, quota_mode: y, value: }");
        let kinds: Vec<_> = rules.iter().map(|rule| rule.kind).collect();
        assert_eq!(kinds, [Kind::Enforce, Kind::Shadow, Kind::QuotaShadow]);
        assert_eq!(rules[2].value, None);
    }
}
