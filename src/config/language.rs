//! The rules language, read: a file's marked tree becomes the domain that it describes; whatever is wrong is reported with its
//! place, and the reading goes on. Which key stands where is in `config::keys`; here is a function for each kind of map, and
//! for limits a file below. It knows neither files nor how YAML is parsed; what loads and is probably not meant is
//! `config::lints`' affair.

use std::collections::HashMap;

use crate::hit::{FailurePolicy, Kind};
use crate::limit::Algorithm;
use crate::rules::{DomainSpec, Limits, Metadata, RateLimit, RuleSpec};

mod limits;

use super::Report;
use super::keys::Level::{self, File, Replaced, Rule};
use super::keys::{KEYS, Key, OURS, nearest_key};
use super::lints::Lints;
use super::yaml::{self, Node, Place, Value};
pub(super) use limits::unit;

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
    "lease",
];

/// What a file describes, by that algorithm where it says none; `None` where its domain cannot even be named.
pub(super) fn domain(root: &Node, default: Algorithm, report: &mut Report<'_>) -> Option<Described> {
    let (path, lints, replaced) = (Vec::new(), Lints::default(), Vec::new());
    Reader { report, path, lints, replaced, override_algorithm: default, algorithm: Some(default) }.file(root)
}

struct Reader<'r, 'f> {
    report: &'r mut Report<'f>,
    /// The keys and values from the top down to the rule being read, itself included.
    path: Vec<(String, Option<String>)>,
    lints: Lints,
    replaced: Vec<(Place, String)>,
    override_algorithm: Algorithm,
    /// How the domain counts; None where what it says is no algorithm.
    algorithm: Option<Algorithm>,
}

/// A map's known keys. A null value is as good as none, so that `descriptors:` may be left empty.
struct Fields<'n> {
    place: Place,
    known: Vec<(&'static str, &'n Node)>,
    /// The known keys that refused ones were meant to be: they are not missing besides.
    meant: Vec<&'static str>,
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
                    let spec = DomainSpec { name, rules, default, on_store_failure, override_algorithm: self.override_algorithm };
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
        let count_denied = self.flag(&fields, "count_denied");
        let limits = fields.get("rate_limit").map_or(Limits::None, |node| self.limits("rate_limit", node, counting));
        if let Limits::All(limits) = &limits {
            self.unused(&fields, limits.iter().map(|limit| limit.algorithm));
            if let (Some(true), Some(node), true) =
                (count_denied, fields.get("count_denied"), limits.iter().any(|limit| limit.lease.is_some()))
            {
                let what = "a leased limit can't count what it denies, for Redis does not hear of it: remove `lease`, or `count_denied`";
                self.report.problem(node.place, what);
            }
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
            count_denied,
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
                Some(Key { name, .. }) => fields.known.push((name, value)),
            }
        }
        Some(fields)
    }
}

/// A rule's key and value, for a message.
pub(super) fn shown(rule: &RuleSpec) -> String {
    rule.value.as_ref().map_or(rule.key.clone(), |value| format!("{}: {value}", rule.key))
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
    use crate::limit::{Burst, Limit, LogEntries, Window};

    fn rules(descriptors: &str) -> Vec<RuleSpec> {
        let mut report = Report { file: Path::new("f"), problems: Vec::new(), warnings: Vec::new() };
        let root = yaml::read(&format!("domain: d\ndescriptors:\n{descriptors}"), &mut report).unwrap();
        let Described { spec, place, .. } = domain(&root, Algorithm::default(), &mut report).unwrap();
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
        let rate_limit = RateLimit { name, limit: Limit::from(5), window, algorithm, lease: None, replaces: Vec::new() };
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
        let spec = domain(&root, Algorithm::default(), &mut report).unwrap().spec;
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
