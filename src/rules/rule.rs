//! A rule, compiled: what it does to a descriptor that lands on it, on which counter it counts, and under which labels. It
//! knows its own place in the tree and nothing of its neighbours.

use std::sync::Arc;

use super::{Limits, Metadata, RateLimit, RuleSpec};
use crate::descriptor::Descriptor;
use crate::hit::{Action, Counter, FailurePolicy, Kind};
use crate::limit::{Algorithm, Lease, Limit, Window};
use crate::metrics::{HitCounts, Metrics, RuleLabels, RuleSeries, SeriesByValue};

/// A place in the tree that does something to a descriptor; or a domain's `default`.
pub struct Rule {
    domain: Arc<str>,
    /// Its place, as an action reads.
    path: Arc<str>,
    counted: Counted,
    levels: Box<[Level]>,
    effect: Effect,
    kind: Kind,
    count_denied: Option<bool>,
    on_store_failure: Option<FailurePolicy>,
    metadata: Option<Arc<Metadata>>,
    series: Series,
}

/// What a rule does.
pub enum Effect {
    /// All of them must fit. Never empty.
    Limits(Box<[RuleLimit]>),
    /// Its descriptor passes.
    Unlimited { replaces: Box<[String]> },
    /// The whole request passes.
    Exempt,
}

/// One limit of a rule.
pub struct RuleLimit {
    pub name: Option<Arc<str>>,
    pub limit: Limit,
    pub window: Window,
    pub algorithm: Algorithm,
    pub lease: Option<Lease>,
    /// The names of limits that don't count in a request that this one counts in.
    pub replaces: Box<[String]>,
}

/// On which counter a rule counts a descriptor.
enum Counted {
    ByPath {
        action: Action<'static>,
        client: Box<[ClientPart]>,
    },
    /// A domain's default: the action is the descriptor's keys, the client all its values.
    ByEntries,
}

/// One of the strings that make up a rule's client: of the descriptor's entry at this depth.
#[derive(Clone, Copy)]
enum ClientPart {
    Key(usize),
    Value(usize),
}

/// One level of a rule's path, as its series show it.
struct Level {
    key: Box<str>,
    value: Option<Box<str>>,
    /// The request's own key and value stand in the labels.
    by_value: bool,
}

enum Series {
    Fixed(RuleSeries),
    ByValue(Arc<SeriesByValue>),
}

/// The path, and so the rule label, of a domain's default.
const DEFAULT: &str = "default";

impl Rule {
    /// The rule at the end of a path; None where it does nothing. Or the key in `client_id` that is not on the path, or is
    /// there twice.
    pub(super) fn new(domain: &Arc<str>, path: &[&RuleSpec], on_store_failure: Option<FailurePolicy>) -> Result<Option<Self>, String> {
        let Some(spec) = path.last() else { return Ok(None) };
        let client = match &spec.client_id {
            Some(keys) => named_client(path, keys)?,
            None => open_client(path),
        };
        let Some(effect) = Effect::new(&spec.limits) else { return Ok(None) };
        let text = super::action_of(path);
        let detailed = spec.detailed_metric;
        let level = |spec: &&RuleSpec| Level {
            key: spec.key.as_str().into(),
            value: spec.value().map(Into::into),
            by_value: (detailed || spec.value_to_metric) && !spec.share_threshold,
        };
        Ok(Some(Self {
            domain: Arc::clone(domain),
            path: text.as_str().into(),
            counted: Counted::ByPath { action: spec.action.as_deref().map_or(text, |name| Action::named(name).into_owned()), client },
            levels: path.iter().map(level).collect(),
            effect,
            kind: spec.kind,
            count_denied: spec.count_denied,
            on_store_failure: spec.on_store_failure.or(on_store_failure),
            metadata: spec.metadata.clone().map(Arc::new),
            series: Series::Fixed(RuleSeries::detached()),
        }))
    }

    /// What a domain does to descriptors that no rule of it knows.
    pub(super) fn default_of(domain: &Arc<str>, limits: &[RateLimit], on_store_failure: Option<FailurePolicy>) -> Option<Self> {
        Some(Self {
            domain: Arc::clone(domain),
            path: DEFAULT.into(),
            counted: Counted::ByEntries,
            levels: Box::new([Level { key: DEFAULT.into(), value: None, by_value: false }]),
            effect: Effect::new(&Limits::All(limits.to_vec()))?,
            kind: Kind::Enforce,
            count_denied: None,
            on_store_failure,
            metadata: None,
            series: Series::Fixed(RuleSeries::detached()),
        })
    }

    pub(super) fn counted_in(&mut self, metrics: &Metrics) {
        // A rule that limits nothing has no series, as in the reference server.
        if !matches!(self.effect, Effect::Limits(_)) {
            return;
        }
        let labels = self.labels(&mut |level| level.as_written());
        self.series = if self.levels.iter().any(|level| level.by_value) {
            Series::ByValue(metrics.rule_by_value(&labels))
        } else {
            Series::Fixed(metrics.rule(&labels))
        };
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Its place, as an action reads: `path=/export|client`. `default` is a domain's default.
    pub fn path(&self) -> &Arc<str> {
        &self.path
    }

    /// Its keys, and the values that it fixes, from the top down.
    pub fn levels(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.levels.iter().map(Level::as_written)
    }

    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// What its hits are counted under; None for a domain's default, which takes the descriptor's keys.
    pub fn action(&self) -> Option<&Action<'static>> {
        match &self.counted {
            Counted::ByPath { action, .. } => Some(action),
            Counted::ByEntries => None,
        }
    }

    /// The keys whose entries say who is counted, in order; none where all are counted together, or for a domain's default,
    /// which counts by all entries.
    pub fn client_keys(&self) -> Vec<&str> {
        let Counted::ByPath { client, .. } = &self.counted else { return Vec::new() };
        let depth = |part: &ClientPart| match part {
            ClientPart::Key(depth) | ClientPart::Value(depth) => *depth,
        };
        let mut depths: Vec<_> = client.iter().map(depth).collect();
        depths.dedup();
        depths.into_iter().filter_map(|depth| self.levels.get(depth)).map(|level| &*level.key).collect()
    }

    pub fn effect(&self) -> &Effect {
        &self.effect
    }

    /// None where it is unlimited, or exempts.
    pub fn limits(&self) -> &[RuleLimit] {
        match &self.effect {
            Effect::Limits(limits) => limits,
            Effect::Unlimited { .. } | Effect::Exempt => &[],
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn count_denied(&self) -> Option<bool> {
        self.count_denied
    }

    /// Its own policy, or its domain's.
    pub fn on_store_failure(&self) -> Option<FailurePolicy> {
        self.on_store_failure
    }

    pub fn metadata(&self) -> Option<&Arc<Metadata>> {
        self.metadata.as_ref()
    }

    /// The counter of one of its limits for a descriptor that landed on it.
    pub fn counter<'a>(&'a self, descriptor: &'a Descriptor, limit: &RuleLimit) -> Counter<'a> {
        let entry = |depth: usize| descriptor.entries.get(depth);
        let part = |part: &ClientPart| match part {
            ClientPart::Key(depth) => entry(*depth).map(|entry| entry.key.as_str()),
            ClientPart::Value(depth) => entry(*depth).map(|entry| entry.value.as_str()),
        };
        let (action, client) = match &self.counted {
            Counted::ByPath { action, client } => (action.borrowed(), client.iter().filter_map(part).collect()),
            Counted::ByEntries => {
                let keys = descriptor.entries.iter().map(|entry| (entry.key.as_str(), None));
                (Action::of_path(keys), descriptor.entries.iter().map(|entry| entry.value.as_str()).collect())
            }
        };
        Counter { domain: &self.domain, client, action, algorithm: limit.algorithm, window: limit.window }
    }

    /// Counts what became of a descriptor that landed on it.
    pub fn count(&self, descriptor: &Descriptor, counts: &HitCounts) {
        match &self.series {
            Series::Fixed(series) => series.add(counts),
            Series::ByValue(series) => {
                let mut entries = descriptor.entries.iter();
                let labels = self.labels(&mut |level| match entries.next() {
                    Some(entry) if level.by_value => (&entry.key, Some(entry.value.as_str())),
                    _ => level.as_written(),
                });
                series.add(counts, &labels, || self.labels(&mut Level::other));
            }
        }
    }

    /// The labels of its series, with each level shown by `show`.
    fn labels<'a>(&'a self, show: &mut dyn FnMut(&'a Level) -> (&'a str, Option<&'a str>)) -> RuleLabels<'a> {
        let shown: Vec<_> = self.levels.iter().map(show).collect();
        let label = |(key, value): &(&str, Option<&str>)| value.map_or_else(|| (*key).to_owned(), |value| format!("{key}_{value}"));
        RuleLabels {
            domain: &self.domain,
            key1: shown.first().map(label).unwrap_or_default().into(),
            key2: shown.get(1).map(label).map(Into::into),
            rule: Action::of_path(shown).to_string().into(),
        }
    }
}

impl Effect {
    fn new(limits: &Limits) -> Option<Self> {
        match limits {
            Limits::None => None,
            Limits::All(limits) if limits.is_empty() => None,
            Limits::All(limits) => Some(Self::Limits(limits.iter().map(RuleLimit::new).collect())),
            Limits::Unlimited { replaces } => Some(Self::Unlimited { replaces: replaces.clone().into() }),
            Limits::Exempt => Some(Self::Exempt),
        }
    }

    /// The names of the limits that don't count in a request where this does.
    pub(super) fn replaces(&self) -> impl Iterator<Item = &str> {
        let (limits, own) = match self {
            Self::Limits(limits) => (&**limits, &[][..]),
            Self::Unlimited { replaces } => (&[][..], &**replaces),
            Self::Exempt => (&[][..], &[][..]),
        };
        limits.iter().flat_map(|limit| &limit.replaces).chain(own).map(String::as_str)
    }
}

impl RuleLimit {
    fn new(limit: &RateLimit) -> Self {
        Self {
            name: limit.name.as_deref().map(Into::into),
            limit: limit.limit,
            window: limit.window,
            algorithm: limit.algorithm,
            lease: limit.lease,
            replaces: limit.replaces.clone().into(),
        }
    }
}

impl Level {
    fn as_written(&self) -> (&str, Option<&str>) {
        (&self.key, self.value.as_deref())
    }

    fn other(&self) -> (&str, Option<&str>) {
        if self.by_value { (&self.key, Some("other")) } else { self.as_written() }
    }
}

/// All that the path leaves open and does not share: values, and keys where a wildcard stands for them.
fn open_client(path: &[&RuleSpec]) -> Box<[ClientPart]> {
    let mut parts = Vec::new();
    for (depth, spec) in path.iter().enumerate().filter(|(_, spec)| !spec.share_threshold) {
        if spec.key.contains('*') {
            parts.push(ClientPart::Key(depth));
        }
        if spec.value().is_none_or(|value| value.contains('*')) {
            parts.push(ClientPart::Value(depth));
        }
    }
    parts.into()
}

/// The parts that the keys name, in the order of their naming; or the key that is not on the path, or there twice.
fn named_client(path: &[&RuleSpec], keys: &[String]) -> Result<Box<[ClientPart]>, String> {
    let mut parts = Vec::new();
    for wanted in keys {
        let mut depths = path.iter().enumerate().filter(|(_, spec)| spec.key == *wanted).map(|(depth, _)| depth);
        let (Some(depth), None) = (depths.next(), depths.next()) else { return Err(wanted.clone()) };
        if wanted.contains('*') {
            parts.push(ClientPart::Key(depth));
        }
        parts.push(ClientPart::Value(depth));
    }
    Ok(parts.into())
}
