//! The series that a rule's hits are counted in, under the reference server's names and labels (domain, key1, key2) plus
//! `rule`, the whole path. A rule may ask for values of the requests in its labels: so many of them get series of their
//! own, the others share one. What is registered stays for the life of the process, whatever is reloaded, and is bounded.

use std::borrow::Cow;
use std::sync::Arc;

use hashbrown::HashMap;
use metrics::{Counter, Key, KeyName, Label, Recorder, SharedString};
use metrics_exporter_prometheus::PrometheusRecorder;
use parking_lot::{Mutex, RwLock};
use tracing::warn;

use super::METADATA;

/// What names a rule's series: the domain, the first two levels of the rule's path as the reference server writes them, and
/// the whole path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleLabels<'a> {
    pub domain: &'a str,
    pub key1: Cow<'a, str>,
    /// None where the path has one level.
    pub key2: Option<Cow<'a, str>>,
    pub rule: Cow<'a, str>,
}

/// What one descriptor adds to its rule's series, in hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HitCounts {
    pub total: u64,
    /// The whole cost where it fitted.
    pub within: u64,
    /// Above the near-limit threshold and not above the limit.
    pub near: u64,
    /// Above the limit.
    pub over: u64,
    /// Above the limit, and denied without asking the store.
    pub over_by_denial: u64,
    /// Above the limit of a rule in shadow mode.
    pub shadow: u64,
}

/// One set of labels' handles.
#[derive(Clone)]
pub struct RuleSeries {
    total_hits: Counter,
    within_limit: Counter,
    near_limit: Counter,
    over_limit: Counter,
    over_limit_with_local_cache: Counter,
    shadow_mode: Counter,
}

/// One rule's handles by values of the requests.
pub struct SeriesByValue {
    recorder: Arc<PrometheusRecorder>,
    rule: String,
    known: RwLock<HashMap<Box<[String]>, RuleSeries>>,
}

/// All that was ever registered for rules.
pub(super) struct Register {
    recorder: Arc<PrometheusRecorder>,
    rules_max: usize,
    rules: Mutex<HashMap<Box<[String]>, RuleSeries>>,
    by_value: Mutex<HashMap<Box<[String]>, Arc<SeriesByValue>>>,
}

/// Rules that get series of their own in the life of a process. The hits of further ones are counted under `other`.
const RULES_MAX: usize = 100_000;

/// Rules with `detailed_metric` or `value_to_metric` in the life of a process. Further ones share what is left of one's values.
const RULES_BY_VALUE_MAX: usize = 1_000;

/// Sets of values that a rule with `detailed_metric` or `value_to_metric` gets series for. Further ones are counted under
/// `other`.
const VALUES_PER_RULE_MAX: usize = 1_000;

/// A label is cut after so many bytes: a request may send values of any length.
const LABEL_BYTES_MAX: usize = 256;

/// What stands in place of values, or of rules, that got no series of their own.
const OTHER: &str = "other";

impl RuleLabels<'_> {
    /// The labels of what has no series of its own.
    fn other() -> Self {
        Self { domain: OTHER, key1: OTHER.into(), key2: None, rule: OTHER.into() }
    }

    /// The values of the labels, in the order of [`label_names`]. As in the reference server, a colon, a bar and the dots of an IPv4 address are
    /// underscores in the first three; no other dot is touched, so that none shifts a label.
    fn values(&self) -> Box<[String]> {
        let mut values = vec![cut(&plain(self.domain)), cut(&plain(&self.key1))];
        values.extend(self.key2.as_deref().map(|key2| cut(&plain(key2))));
        values.push(cut(&self.rule));
        values.into()
    }
}

impl RuleSeries {
    /// Handles that count nothing, for rules that serve no requests.
    pub fn detached() -> Self {
        Self {
            total_hits: Counter::noop(),
            within_limit: Counter::noop(),
            near_limit: Counter::noop(),
            over_limit: Counter::noop(),
            over_limit_with_local_cache: Counter::noop(),
            shadow_mode: Counter::noop(),
        }
    }

    pub fn add(&self, counts: &HitCounts) {
        let bump = |counter: &Counter, hits: u64| {
            if hits > 0 {
                counter.increment(hits);
            }
        };
        bump(&self.total_hits, counts.total);
        bump(&self.within_limit, counts.within);
        bump(&self.near_limit, counts.near);
        bump(&self.over_limit, counts.over);
        bump(&self.over_limit_with_local_cache, counts.over_by_denial);
        bump(&self.shadow_mode, counts.shadow);
    }

    fn register(recorder: &PrometheusRecorder, values: &[String]) -> Self {
        let labels: Vec<_> = label_names(values.len()).iter().zip(values).map(|(label, value)| Label::new(*label, value.clone())).collect();
        let counter = |name: &'static str| recorder.register_counter(&Key::from_parts(name, labels.clone()), &METADATA);
        Self {
            total_hits: counter(TOTAL_HITS),
            within_limit: counter(WITHIN_LIMIT),
            near_limit: counter(NEAR_LIMIT),
            over_limit: counter(OVER_LIMIT),
            over_limit_with_local_cache: counter(OVER_LIMIT_WITH_LOCAL_CACHE),
            shadow_mode: counter(SHADOW_MODE),
        }
    }
}

impl SeriesByValue {
    /// Counts under `labels` or, where the rule has series for as many others as it may, under `other`.
    pub fn add<'o>(&self, counts: &HitCounts, labels: &RuleLabels<'_>, other: impl Fn() -> RuleLabels<'o>) {
        let mut values = labels.values();
        let known = self.known.read();
        if let Some(series) = known.get(&values) {
            return series.add(counts);
        }
        if known.len() >= VALUES_PER_RULE_MAX {
            values = other().values();
            if let Some(series) = known.get(&values) {
                return series.add(counts);
            }
        }
        drop(known);
        let mut known = self.known.write();
        if !known.contains_key(&values) && known.len() >= VALUES_PER_RULE_MAX {
            values = other().values();
            if !known.contains_key(&values) {
                warn!(
                    rule = self.rule,
                    most = VALUES_PER_RULE_MAX,
                    "a rule has series for as many values as it may; further ones are counted under `other`"
                );
            }
        }
        known.entry(values).or_insert_with_key(|values| RuleSeries::register(&self.recorder, values)).add(counts);
    }
}

impl Register {
    pub fn new(recorder: Arc<PrometheusRecorder>) -> Self {
        Self { recorder, rules_max: RULES_MAX, rules: Mutex::default(), by_value: Mutex::default() }
    }

    pub fn rule(&self, labels: &RuleLabels<'_>) -> RuleSeries {
        let (mut rules, mut values) = (self.rules.lock(), labels.values());
        if !rules.contains_key(&values) && rules.len() >= self.rules_max {
            values = RuleLabels::other().values();
            if !rules.contains_key(&values) {
                warn!(most = self.rules_max, "this process has had as many rules as get series; further ones are counted under `other`");
            }
        }
        rules.entry(values).or_insert_with_key(|values| RuleSeries::register(&self.recorder, values)).clone()
    }

    pub fn rule_by_value(&self, rule: &RuleLabels<'_>) -> Arc<SeriesByValue> {
        let (mut rules, mut values) = (self.by_value.lock(), rule.values());
        if !rules.contains_key(&values) && rules.len() >= RULES_BY_VALUE_MAX {
            values = RuleLabels::other().values();
            if !rules.contains_key(&values) {
                warn!(most = RULES_BY_VALUE_MAX, "this process has had as many rules with values in their labels as get series for them");
            }
        }
        let new = || {
            let rule = format!("{}: {}", rule.domain, rule.rule);
            Arc::new(SeriesByValue { recorder: Arc::clone(&self.recorder), rule, known: RwLock::default() })
        };
        Arc::clone(rules.entry(values).or_insert_with(new))
    }
}

/// As the reference server writes a text into a series' name.
fn plain(text: &str) -> String {
    let mut plain = text.replace([':', '|'], "_");
    let is_address = |run: &str| {
        let groups: Vec<_> = run.split('.').collect();
        groups.len() == 4 && groups.iter().all(|group| (1..=3).contains(&group.len()))
    };
    let addresses: Vec<String> =
        plain.split(|c: char| !c.is_ascii_digit() && c != '.').filter(|run| is_address(run)).map(str::to_owned).collect();
    for address in addresses {
        plain = plain.replace(&address, &address.replace('.', "_"));
    }
    plain
}

fn cut(text: &str) -> String {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    text[..ends.take_while(|end| *end <= LABEL_BYTES_MAX).last().unwrap_or(0)].to_owned()
}

/// The names of so many labels.
fn label_names(count: usize) -> &'static [&'static str] {
    if count == 3 { &["domain", "key1", "rule"] } else { &["domain", "key1", "key2", "rule"] }
}

// The reference server's names.
const TOTAL_HITS: &str = "ratelimit_service_rate_limit_total_hits";
const WITHIN_LIMIT: &str = "ratelimit_service_rate_limit_within_limit";
const NEAR_LIMIT: &str = "ratelimit_service_rate_limit_near_limit";
const OVER_LIMIT: &str = "ratelimit_service_rate_limit_over_limit";
const OVER_LIMIT_WITH_LOCAL_CACHE: &str = "ratelimit_service_rate_limit_over_limit_with_local_cache";
const SHADOW_MODE: &str = "ratelimit_service_rate_limit_shadow_mode";

pub(super) fn describe(recorder: &PrometheusRecorder) {
    for (name, help) in [
        (TOTAL_HITS, "Hits asked of a rule, by their cost"),
        (WITHIN_LIMIT, "Hits that fitted their rule's limit"),
        (NEAR_LIMIT, "Hits above NEAR_LIMIT_RATIO of their rule's limit and not above the limit"),
        (OVER_LIMIT, "Hits above their rule's limit"),
        (OVER_LIMIT_WITH_LOCAL_CACHE, "Hits above their rule's limit that were denied without asking the store"),
        (SHADOW_MODE, "Hits above the limit of a rule in shadow mode"),
    ] {
        recorder.describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn labels<'a>(domain: &'a str, key1: &'a str, rule: &'a str) -> RuleLabels<'a> {
        RuleLabels { domain, key1: key1.into(), key2: None, rule: rule.into() }
    }

    fn hits(total: u64) -> HitCounts {
        HitCounts { total, ..HitCounts::default() }
    }

    #[test]
    fn colons_bars_and_the_dots_of_addresses_are_underscores_and_other_dots_stay() {
        for (text, expected) in [
            ("client_10.0.0.1", "client_10_0_0_1"),
            ("a:b|c", "a_b_c"),
            ("shop.example", "shop.example"),
            ("v1.2.3", "v1.2.3"),
            ("1.2.3.4.5", "1.2.3.4.5"),
            ("from 1.2.3.4 to 10.20.30.40", "from 1_2_3_4 to 10_20_30_40"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn a_rule_by_value_has_so_many_series_and_one_for_the_others() {
        let metrics = Metrics::new().unwrap();
        let rule = labels("d", "client", "client");
        for value in 0..VALUES_PER_RULE_MAX + 50 {
            let text = format!("client_{value}");
            // The rule is looked up again, as after a reload: what it has had counts.
            let series = metrics.rule_by_value(&rule);
            series.add(&hits(1), &labels("d", &text, &text), || labels("d", "client_other", "client=other"));
        }
        let page = metrics.render();
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with(TOTAL_HITS)).collect();
        assert_eq!(lines.len(), VALUES_PER_RULE_MAX + 1);
        assert!(lines.iter().any(|line| line.contains("client_other") && line.ends_with(" 50")), "{lines:?}");
    }

    #[test]
    fn rules_beyond_the_bound_share_one_series_for_the_life_of_the_process() {
        let recorder = Arc::new(metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder());
        let register = Register { rules_max: 3, ..Register::new(Arc::clone(&recorder)) };
        for load in 0..5 {
            // Each load brings rules that were never there, and one that always was.
            register.rule(&labels("d", "kept", "kept")).add(&hits(1));
            let text = format!("new_{load}");
            register.rule(&labels("d", &text, &text)).add(&hits(1));
        }
        let page = recorder.handle().render();
        let mut lines: Vec<_> = page.lines().filter(|line| line.starts_with(TOTAL_HITS)).collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("key1=\"kept\"") && line.ends_with(" 5")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("domain=\"other\"") && line.ends_with(" 3")), "{lines:?}");
    }

    #[test]
    fn a_value_of_any_length_makes_a_short_label() {
        let long = "é".repeat(1 << 16);
        assert!(labels("d", &long, &long).values().iter().all(|value| value.len() <= LABEL_BYTES_MAX));
    }
}
