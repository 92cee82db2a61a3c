//! The rules language: which key stands where, and what its value may be. A file's marked tree becomes the domain that it
//! describes; whatever is wrong is reported with its place, and the reading goes on. A new key gets its line in `KEYS` and
//! its reading in the function of its level. It knows neither files nor how YAML is parsed.

use std::collections::HashMap;

use crate::hit::{Action, Kind};
use crate::limit::{Algorithm, Limit, LimitError, LogEntries, Window};
use crate::rules::{DomainSpec, RateLimit, RuleSpec};

use super::Report;
use super::yaml::{self, Node, Place, Value};

/// The three kinds of map that a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    File,
    Rule,
    Limit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    Now,
    /// A key of the language that this version cannot obey. Refused, since ignoring it would change an answer.
    Later,
}

use Level::{File, Limit as InLimit, Rule};
use Support::{Later, Now};

/// Which key stands where.
#[rustfmt::skip]
const KEYS: &[(&str, &[Level], Support)] = &[
    ("domain",            &[File],                Now),
    ("default",           &[File],                Later),
    ("descriptors",       &[File, Rule],          Now),
    ("key",               &[Rule],                Now),
    ("value",             &[Rule],                Now),
    ("rate_limit",        &[Rule],                Now),
    ("action",            &[Rule],                Now),
    ("client_id",         &[Rule],                Now),
    ("count_denied",      &[Rule],                Now),
    ("shadow_mode",       &[Rule],                Now),
    ("quota_mode",        &[Rule],                Now),
    ("exempt",            &[Rule],                Later),
    ("share_threshold",   &[Rule],                Later),
    ("detailed_metric",   &[Rule],                Later),
    ("value_to_metric",   &[Rule],                Later),
    ("metadata",          &[Rule],                Later),
    ("on_store_failure",  &[File, Rule],          Later),
    ("algorithm",         &[File, Rule, InLimit], Now),
    ("log_entries",       &[Rule, InLimit],       Now),
    ("burst",             &[Rule, InLimit],       Later),
    ("lease",             &[Rule, InLimit],       Later),
    ("unit",              &[InLimit],             Now),
    ("requests_per_unit", &[InLimit],             Now),
    ("limit",             &[InLimit],             Now),
    ("window",            &[InLimit],             Now),
    ("name",              &[InLimit],             Now),
    ("unlimited",         &[InLimit],             Later),
    ("replaces",          &[InLimit],             Later),
];

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

/// How many changed letters still make one key a misspelling of another.
const MISSPELLED: usize = 2;

/// The domain that a file describes and the place of its name; `None` where it cannot even be named.
pub(super) fn domain(root: &Node, report: &mut Report<'_>) -> Option<(DomainSpec, Place)> {
    Reader { report, path: Vec::new(), counters: HashMap::new() }.file(root)
}

struct Reader<'r, 'f> {
    report: &'r mut Report<'f>,
    /// The keys and values from the top down to the rule being read, itself included.
    path: Vec<(String, Option<String>)>,
    /// The window in which the domain's rules count each action, and where the first of them stands.
    counters: HashMap<String, (Window, usize)>,
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
    fn file(mut self, root: &Node) -> Option<(DomainSpec, Place)> {
        let fields = self.fields(root, "a rules file", File)?;
        self.algorithm(&fields);
        let rules = self.rules(&fields);
        let name = fields.get("domain");
        let place = name.map_or(fields.place, |node| node.place);
        match name {
            Some(node) => {
                let text = self.text("domain", node)?;
                if !text.is_empty() {
                    return Some((DomainSpec { name: text, rules }, place));
                }
                self.report.problem(place, "`domain` is empty: give it the name that Envoy sends");
            }
            None if fields.meant.contains(&"domain") => {}
            None => self.report.problem(place, "`domain` is missing: begin the file with `domain: NAME`"),
        }
        None
    }

    /// The rules under `descriptors`, problems or not: those that could not be read have said why.
    fn rules(&mut self, fields: &Fields<'_>) -> Vec<RuleSpec> {
        let Some(node) = fields.get("descriptors") else { return Vec::new() };
        let Value::List(items) = &node.value else {
            let what = format!("`descriptors` is a list, not {}: begin each of its rules with `- key:`", node.kind());
            self.report.problem(node.place, what);
            return Vec::new();
        };
        let mut lines: HashMap<(String, Option<String>), usize> = HashMap::new();
        let mut rules = Vec::with_capacity(items.len());
        for item in items {
            let Some(rule) = self.rule(item) else { continue };
            if let Some(first) = lines.get(&(rule.key.clone(), rule.value.clone())) {
                let rule = rule.value.as_ref().map_or(rule.key.clone(), |value| format!("{}: {value}", rule.key));
                let what = format!("`{rule}` stands twice on this level, first in line {first}: put both into one");
                self.report.problem(item.place, what);
                continue;
            }
            lines.insert((rule.key.clone(), rule.value.clone()), item.place.line);
            rules.push(rule);
        }
        rules
    }

    fn rule(&mut self, node: &Node) -> Option<RuleSpec> {
        let fields = self.fields(node, "a rule", Rule)?;
        let key = self.filled(&fields, "key");
        if fields.get("key").is_none() && !fields.meant.contains(&"key") {
            self.report.problem(fields.place, "`key` is missing: every rule names the key of an entry");
        }
        let key_is_known = key.is_some();
        let key = key.unwrap_or_default();
        let value = fields.get("value").and_then(|node| self.text("value", node)).filter(|text| !text.is_empty());
        self.path.push((key.clone(), value.clone()));

        self.algorithm(&fields);
        let log_entries = self.log_entries(&fields).unwrap_or(LogEntries::DEFAULT);
        let rate_limit = fields.get("rate_limit").and_then(|node| self.rate_limit(node, log_entries));
        let action = self.filled(&fields, "action");
        let client_id = fields.get("client_id").and_then(|node| self.client_id(node));
        let kind = match (self.flag(&fields, "shadow_mode"), self.flag(&fields, "quota_mode")) {
            (Some(true), Some(true)) => Kind::QuotaShadow,
            (Some(true), _) => Kind::Shadow,
            (_, Some(true)) => Kind::Quota,
            _ => Kind::Enforce,
        };
        let count_denied = self.flag(&fields, "count_denied");
        if let Some(rate_limit) = &rate_limit {
            self.compare_counters(fields.place, action.as_deref(), rate_limit);
        }
        let children = self.rules(&fields);
        self.path.pop();
        key_is_known.then_some(RuleSpec { key, value, rate_limit, action, client_id, count_denied, kind, children })
    }

    fn rate_limit(&mut self, node: &Node, log_entries: LogEntries) -> Option<RateLimit> {
        if matches!(node.value, Value::List(_)) {
            let what = "a list under `rate_limit` is not supported yet by this version: write one map";
            self.report.problem(node.place, what);
            return None;
        }
        let fields = self.fields(node, "`rate_limit`", InLimit)?;
        self.algorithm(&fields);
        let log_entries = self.log_entries(&fields).unwrap_or(log_entries);
        let name = fields.get("name").and_then(|node| self.text("name", node)).filter(|text| !text.is_empty());
        let (limit, window) = match ["requests_per_unit", "unit", "limit", "window"].map(|name| fields.get(name)) {
            [Some(requests), Some(unit), None, None] => (self.requests(requests), self.unit(unit)),
            [None, None, Some(limit), Some(window)] => (self.limit(limit), self.window(window)),
            forms => {
                self.explain_forms(&fields, forms.map(|form| form.is_some()));
                return None;
            }
        };
        let algorithm = Algorithm::SlidingWindowLog { log_entries };
        Some(RateLimit { name, limit: limit?, window: window?, algorithm })
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
        let requests = self.number("requests_per_unit", node, u32::MAX.into())?;
        self.bounded(node, Limit::new(requests))
    }

    fn limit(&mut self, node: &Node) -> Option<Limit> {
        let hits = self.number("limit", node, Limit::MOST)?;
        self.bounded(node, Limit::new(hits))
    }

    fn unit(&mut self, node: &Node) -> Option<Window> {
        let text = self.text("unit", node)?;
        let found = UNITS.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
        if found.is_none() {
            let names: Vec<_> = UNITS.iter().map(|(name, _)| *name).collect();
            let what = format!("`{text}` is no unit: write one of {}, or `limit` and `window`", names.join(", "));
            self.report.problem(node.place, what);
        }
        found.map(|(_, window)| *window)
    }

    fn window(&mut self, node: &Node) -> Option<Window> {
        let text = self.text("window", node)?;
        self.bounded(node, text.parse())
    }

    fn log_entries(&mut self, fields: &Fields<'_>) -> Option<LogEntries> {
        let node = fields.get("log_entries")?;
        let number = self.number("log_entries", node, u32::MAX.into())?;
        self.bounded(node, LogEntries::new(u32::try_from(number).unwrap_or(u32::MAX)))
    }

    /// There is one algorithm yet, so a name that is right changes nothing.
    fn algorithm(&mut self, fields: &Fields<'_>) {
        let Some(node) = fields.get("algorithm") else { return };
        let Some(text) = self.text("algorithm", node) else { return };
        let what = match text.as_str() {
            "sliding_window_log" => return,
            "token_bucket" | "fixed_window" => "is not supported yet by this version",
            _ => "is no algorithm",
        };
        self.report.problem(node.place, format!("`{text}` {what}: write `sliding_window_log`, or leave it out"));
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
            let Some(key) = self.text("client_id", item) else { continue };
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

    /// Warns where rules of one action count it apart, since what one of them counts is then hidden from the other.
    fn compare_counters(&mut self, place: Place, action: Option<&str>, rate_limit: &RateLimit) {
        let path = self.path.iter().map(|(key, value)| (key.as_str(), value.as_deref()));
        let action = action.map_or_else(|| Action::of_path(path), Action::named).to_string();
        let window = rate_limit.window;
        match self.counters.get(&action) {
            None => {
                self.counters.insert(action, (window, place.line));
            }
            Some((first, line)) if *first != window => {
                let what = format!(
                    "the action `{action}` has another window in line {line}, so each is counted apart: \
                     make them the same, or name two actions"
                );
                self.report.warning(place, what);
            }
            Some(_) => {}
        }
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
            match KEYS.iter().find(|(name, _, _)| name == text) {
                None => {
                    let near = nearest_key(text, level);
                    fields.meant.extend(near);
                    let advice = near.map_or("remove it".to_owned(), |name| format!("did you mean `{name}`?"));
                    self.report.problem(key.place, format!("unknown key `{text}`: {advice}"));
                }
                Some((_, levels, _)) if !levels.contains(&level) => {
                    let homes: Vec<_> = levels.iter().map(|level| level.place()).collect();
                    let homes = homes.join(" or ");
                    if OURS.contains(&text.as_str()) {
                        self.report.problem(key.place, format!("`{text}` belongs {homes}: move it there"));
                    } else {
                        self.report.warning(key.place, format!("`{text}` belongs {homes} and is ignored here: move or remove it"));
                    }
                }
                Some(_) if value.is_null() => {}
                Some((name, _, Later)) => {
                    fields.meant.push(name);
                    let what = format!("`{text}` is not supported yet by this version: remove it");
                    self.report.problem(key.place, what);
                }
                Some((name, _, Now)) => fields.known.push((name, value)),
            }
        }
        Some(fields)
    }

    /// A scalar's text as it is written: `0443`, `yes` and `1.5` stay what they are.
    fn text(&mut self, name: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { .. } if node.is_null() => Some(String::new()),
            Value::Scalar { text, .. } => Some(text.clone()),
            _ => {
                self.report.problem(node.place, format!("`{name}` is text, not {}: write one value", node.kind()));
                None
            }
        }
    }

    /// A text that means nothing when empty.
    fn filled(&mut self, fields: &Fields<'_>, name: &str) -> Option<String> {
        let node = fields.get(name)?;
        let text = self.text(name, node)?;
        if text.is_empty() {
            self.report.problem(node.place, format!("`{name}` is empty: fill it in, or remove the line"));
            return None;
        }
        Some(text)
    }

    fn flag(&mut self, fields: &Fields<'_>, name: &str) -> Option<bool> {
        self.plain(name, fields.get(name)?, "true or false", yaml::boolean)
    }

    fn number(&mut self, name: &str, node: &Node, most: u64) -> Option<u64> {
        let what = format!("a whole number from 0 to {most}");
        let read = |text: &str| yaml::integer(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n <= most);
        self.plain(name, node, &what, read)
    }

    /// A value that quotes would turn into text.
    fn plain<T>(&mut self, name: &str, node: &Node, what: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let said = match &node.value {
            Value::Scalar { text, plain } => match read(text) {
                Some(value) if *plain => return Some(value),
                Some(_) => format!("`{name}` is {what}, not text: remove the quotes around {text}"),
                None => format!("`{name}` is {what}, not `{text}`: correct it"),
            },
            _ => format!("`{name}` is {what}, not {}: write one value", node.kind()),
        };
        self.report.problem(node.place, said);
        None
    }

    fn bounded<T>(&mut self, node: &Node, value: Result<T, LimitError>) -> Option<T> {
        value.map_err(|error| self.report.problem(node.place, error.to_string())).ok()
    }
}

impl Level {
    fn place(self) -> &'static str {
        match self {
            File => "beside `domain`",
            Rule => "beside `key`",
            InLimit => "inside `rate_limit`",
        }
    }
}

/// The known key that `text` is probably meant to be. Of two equally near ones, the one that may stand here.
fn nearest_key(text: &str, level: Level) -> Option<&'static str> {
    let written = letters(text);
    KEYS.iter()
        .map(|(name, levels, _)| (distance(&written, &letters(name)), !levels.contains(&level), *name))
        .filter(|(distance, _, name)| *distance <= MISSPELLED && *distance * 2 < name.len())
        .min()
        .map(|(_, _, name)| name)
}

/// Lower case, without what joins words: `requestsPerUnit` and `requests-per-unit` are the same word written otherwise.
fn letters(text: &str) -> Vec<char> {
    text.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect()
}

/// The least number of inserted, deleted and replaced letters that turn `a` into `b` (Levenshtein).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn rules(descriptors: &str) -> Vec<RuleSpec> {
        let mut report = Report { file: Path::new("f"), problems: Vec::new(), warnings: Vec::new() };
        let root = yaml::read(&format!("domain: d\ndescriptors:\n{descriptors}"), &mut report).unwrap();
        let (spec, place) = domain(&root, &mut report).unwrap();
        assert_eq!((spec.name.as_str(), place, &report.problems), ("d", Place { line: 1, column: 9 }, &Vec::new()));
        spec.rules
    }

    fn limit(rate_limit: &str) -> (u64, Window) {
        let rule = rules(&format!("  - {{ key: a, rate_limit: {{ {rate_limit} }} }}")).remove(0);
        rule.rate_limit.map(|rate_limit| (rate_limit.limit.get(), rate_limit.window)).unwrap()
    }

    #[test]
    fn a_rule_reads_as_it_is_written() {
        let rule = rules(
            "  - key: tenant\n    log_entries: 64\n    descriptors:\n      - key: user\n        value: 0443\n        action: x\n        \
             client_id: [tenant]\n        count_denied: no\n        quota_mode: yes\n        \
             rate_limit: { name: n, limit: 5, window: 10s, log_entries: 32 }\n",
        );
        let algorithm = Algorithm::SlidingWindowLog { log_entries: LogEntries::new(32).unwrap() };
        let rate_limit = RateLimit { name: Some("n".into()), limit: Limit::from(5), window: "10s".parse().unwrap(), algorithm };
        let child = RuleSpec {
            key: "user".into(),
            value: Some("0443".into()),
            rate_limit: Some(rate_limit),
            action: Some("x".into()),
            client_id: Some(vec!["tenant".into()]),
            count_denied: Some(false),
            kind: Kind::Quota,
            children: Vec::new(),
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
        let entries = |rule: &RuleSpec| rule.rate_limit.as_ref().map(|limit| limit.algorithm);
        let of = |entries: u32| Some(Algorithm::SlidingWindowLog { log_entries: LogEntries::new(entries).unwrap() });
        let limit = "rate_limit: { limit: 5, window: 10s }";
        let rules = rules(&format!("  - {{ key: a, log_entries: 64, {limit} }}\n  - {{ key: b, {limit} }}"));
        assert_eq!((entries(&rules[0]), entries(&rules[1])), (of(64), of(128)));
    }

    #[test]
    fn shadow_and_quota_make_the_four_kinds() {
        let rules = rules("  - {key: a}\n  - {key: b, shadow_mode: on}\n  - {key: c, shadow_mode: y, quota_mode: y, value: }");
        let kinds: Vec<_> = rules.iter().map(|rule| rule.kind).collect();
        assert_eq!(kinds, [Kind::Enforce, Kind::Shadow, Kind::QuotaShadow]);
        assert_eq!(rules[2].value, None);
    }

    #[test]
    fn near_misspellings_are_known_and_far_ones_are_not() {
        assert_eq!(nearest_key("requests-per-Unit", Level::Limit), Some("requests_per_unit"));
        assert_eq!(nearest_key("wndow", Level::Limit), Some("window"));
        assert_eq!(nearest_key("keys", Level::Rule), Some("key"));
        assert_eq!(nearest_key("kind", Level::Rule), None);
        assert_eq!(nearest_key("", Level::Rule), None);
    }
}
