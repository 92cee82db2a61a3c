//! Rules: the limits at their places in the YAML tree, compiled once and then only read. [`Rules::find`] walks a
//! request's descriptors down the tree and gives the hits to count, in the reference server's matching order. It knows
//! neither YAML (`config` hands it [`DomainSpec`]s) nor stores; a reload swaps the whole set behind [`LiveRules`].

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hashbrown::HashMap;
use smallvec::SmallVec;

mod tree;

use crate::descriptor::{Descriptor, LimitOverride, Request};
use crate::hit::{Action, Client, Counter, Hit, Kind};
use crate::limit::{Algorithm, Limit, Window};
use crate::metrics::{Metrics, RuleSeries};
use tree::{Path, Tree};

/// One domain as it was written: what `config`, or an embedding program, hands over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainSpec {
    pub name: String,
    pub rules: Vec<RuleSpec>,
}

/// One rule as it was written, with the rules below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSpec {
    /// Never empty. A `*` stands for any characters, here and in `value`.
    pub key: String,
    /// None leaves the value open. Never empty.
    pub value: Option<String>,
    /// None limits nothing; the place matches all the same.
    pub rate_limit: Option<RateLimit>,
    /// Instead of the rule's own path. Rules of one action share a client's counter.
    pub action: Option<String>,
    /// The keys, on the rule's own path, whose values say who is counted; instead of all the values left open.
    pub client_id: Option<Vec<String>>,
    /// None: as the request's cost says. A charge (a descriptor's own hits_addend, or a cost above 1) counts, an ordinary
    /// hit does not.
    pub count_denied: Option<bool>,
    pub kind: Kind,
    pub children: Vec<RuleSpec>,
}

/// A limit as a rule has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub name: Option<String>,
    pub limit: Limit,
    pub window: Window,
    pub algorithm: Algorithm,
}

/// All rules, compiled. Immutable.
pub struct Rules {
    domains: HashMap<Box<str>, Domain>,
    rules: Vec<Rule>,
}

/// A place in the tree that has a limit.
pub struct Rule {
    domain: Arc<str>,
    path: Action<'static>,
    action: Action<'static>,
    client: Box<[ClientPart]>,
    limit: RateLimit,
    name: Option<Arc<str>>,
    kind: Kind,
    count_denied: Option<bool>,
    pub series: RuleSeries,
}

/// What a request is to be counted on.
#[derive(Default)]
pub struct Found<'a> {
    /// In the order of the descriptors.
    pub hits: SmallVec<[Hit<'a>; 2]>,
    /// One for each descriptor, in order.
    pub matches: SmallVec<[Match<'a>; 2]>,
}

/// What the rules say of one descriptor.
#[derive(Clone, Copy)]
pub enum Match<'a> {
    UnknownDomain,
    /// The walk ended before the last entry.
    NoRule,
    /// The last entry landed on a rule without a rate_limit.
    NoLimit,
    Rule(&'a Rule),
    /// The descriptor brought its own limit.
    Override,
}

/// The handle that a reload swaps. A request holds on to the set it began with.
pub struct LiveRules(ArcSwap<Rules>);

/// Why specs make no rules. `config` finds each of these itself, with its place in a file, before it gets here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error("a domain without a name")]
    EmptyDomain,
    #[error("domain `{0}` is there twice")]
    DuplicateDomain(String),
    #[error("a rule without a key below `{parent}`")]
    EmptyKey { parent: String },
    #[error("the rule `{path}` is there twice")]
    DuplicateRule { path: String },
    #[error("client_id of the rule `{path}` names `{key}`, which is no key on its path, or more than one")]
    UnknownClientKey { path: String, key: String },
}

struct Domain {
    name: Arc<str>,
    tree: Tree,
}

/// One of the strings that make up a rule's client: of the descriptor's entry at this depth.
#[derive(Clone, Copy)]
enum ClientPart {
    Key(usize),
    Value(usize),
}

impl RuleSpec {
    /// The value where the rule fixes one, or a wildcard. Reads an empty one as left open.
    fn value(&self) -> Option<&str> {
        self.value.as_deref().filter(|value| !value.is_empty())
    }
}

impl Rules {
    /// Compiles the rules of all domains.
    ///
    /// # Errors
    /// The first contradiction: see [`RulesError`].
    pub fn new(specs: Vec<DomainSpec>) -> Result<Self, RulesError> {
        let mut all = Self { domains: HashMap::new(), rules: Vec::new() };
        for DomainSpec { name, rules } in specs {
            if name.is_empty() {
                return Err(RulesError::EmptyDomain);
            }
            let domain: Arc<str> = name.as_str().into();
            let tree = Tree::build(&rules, &mut |path, spec| all.add(&domain, path, spec))?;
            if all.domains.insert(name.as_str().into(), Domain { name: domain, tree }).is_some() {
                return Err(RulesError::DuplicateDomain(name));
            }
        }
        Ok(all)
    }

    /// The same rules, counted in `metrics`.
    pub fn counted_in(mut self, metrics: &Metrics) -> Self {
        for rule in &mut self.rules {
            rule.series = metrics.rule(&rule.domain, rule.path.as_str());
        }
        self
    }

    /// What a request is to be counted on.
    pub fn find<'a>(&'a self, request: &'a Request) -> Found<'a> {
        let mut found = Found::default();
        let Some(domain) = self.domains.get(request.domain()) else {
            found.matches.resize(request.descriptors().len(), Match::UnknownDomain);
            return found;
        };
        for (index, descriptor) in request.descriptors().iter().enumerate() {
            let cost = request.cost(descriptor);
            let carried = carried_limit(descriptor);
            let matched = match carried {
                Some(_) => Match::Override,
                None => self.walk(domain, descriptor),
            };
            let (kind, limit, counter, rule_says) = match (matched, carried) {
                (Match::Rule(rule), _) => (rule.kind, rule.limit.limit, rule.counter(descriptor), rule.count_denied),
                (_, Some((limit, window))) => (Kind::Enforce, limit, override_counter(&domain.name, descriptor, window), None),
                _ => {
                    found.matches.push(matched);
                    continue;
                }
            };
            // A charge, for something already spent, counts even when it is denied; an ordinary hit does not.
            let count_denied = rule_says.unwrap_or(descriptor.hits_addend.is_some_and(|hits| hits > 0) || cost.amount() > 1);
            found.hits.push(Hit { descriptor: index, kind, counter, limit, cost, count_denied });
            found.matches.push(matched);
        }
        found
    }

    /// How many domains, and how many rules with a limit.
    pub fn counts(&self) -> (usize, usize) {
        (self.domains.len(), self.rules.len())
    }

    fn walk<'a>(&'a self, domain: &'a Domain, descriptor: &Descriptor) -> Match<'a> {
        let Some(node) = domain.tree.walk(&descriptor.entries) else { return Match::NoRule };
        node.rule.and_then(|rule| self.rules.get(rule)).map_or(Match::NoLimit, Match::Rule)
    }

    /// Adds the rule that `spec` makes at the end of `path`; None where it has no limit.
    fn add(&mut self, domain: &Arc<str>, path: &Path<'_>, spec: &RuleSpec) -> Result<Option<usize>, RulesError> {
        let text = Action::of_path(path.iter().copied());
        let client = match &spec.client_id {
            Some(keys) => named_client(path, keys).map_err(|key| RulesError::UnknownClientKey { path: text.to_string(), key })?,
            None => open_client(path),
        };
        let Some(limit) = spec.rate_limit.clone() else { return Ok(None) };
        self.rules.push(Rule {
            domain: Arc::clone(domain),
            action: spec.action.as_deref().map_or_else(|| text.clone(), |name| Action::named(name).into_owned()),
            path: text,
            client,
            name: limit.name.as_deref().map(Into::into),
            limit,
            kind: spec.kind,
            count_denied: spec.count_denied,
            series: RuleSeries::detached(),
        });
        Ok(Some(self.rules.len() - 1))
    }
}

impl Rule {
    /// Its place, as an action reads: `path=/export|client`.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// The name that its rate_limit gives, if any.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn counter<'a>(&'a self, descriptor: &'a Descriptor) -> Counter<'a> {
        let entry_text = |part: &ClientPart| match part {
            ClientPart::Key(depth) => descriptor.entries.get(*depth).map(|entry| entry.key.as_str()),
            ClientPart::Value(depth) => descriptor.entries.get(*depth).map(|entry| entry.value.as_str()),
        };
        Counter {
            domain: &self.domain,
            client: self.client.iter().filter_map(entry_text).collect(),
            action: self.action.borrowed(),
            algorithm: self.limit.algorithm,
            window: self.limit.window,
        }
    }
}

impl LiveRules {
    pub fn new(rules: Rules) -> Self {
        Self(ArcSwap::from_pointee(rules))
    }

    /// The set in force now. No count is shared between threads for it, unless a request holds it for very long.
    pub fn current(&self) -> Guard<Arc<Rules>> {
        self.0.load()
    }

    /// Puts another set in force, for requests that begin from now on.
    pub fn replace(&self, rules: Rules) {
        self.0.store(Arc::new(rules));
    }
}

fn carried_limit(descriptor: &Descriptor) -> Option<(Limit, Window)> {
    match descriptor.limit {
        Some(LimitOverride::Limit { limit, window }) => Some((limit, window)),
        Some(LimitOverride::UnknownUnit(_)) | None => None,
    }
}

fn override_counter<'a>(domain: &'a str, descriptor: &'a Descriptor, window: Window) -> Counter<'a> {
    Counter {
        domain,
        client: descriptor.entries.iter().map(|entry| entry.value.as_str()).collect::<Client<'_>>(),
        action: Action::of_override(descriptor.entries.iter().map(|entry| entry.key.as_str())),
        algorithm: Algorithm::default(),
        window,
    }
}

/// All that the path leaves open: values, and keys where a wildcard stands for them.
fn open_client(path: &Path<'_>) -> Box<[ClientPart]> {
    let mut parts = Vec::new();
    for (depth, (key, value)) in path.iter().enumerate() {
        if key.contains('*') {
            parts.push(ClientPart::Key(depth));
        }
        if value.is_none_or(|value| value.contains('*')) {
            parts.push(ClientPart::Value(depth));
        }
    }
    parts.into()
}

/// The parts that the keys name, in the order of their naming; or the key that is not on the path, or there twice.
fn named_client(path: &Path<'_>, keys: &[String]) -> Result<Box<[ClientPart]>, String> {
    let mut parts = Vec::new();
    for wanted in keys {
        let mut depths = path.iter().enumerate().filter(|(_, (key, _))| key == wanted).map(|(depth, _)| depth);
        let (Some(depth), None) = (depths.next(), depths.next()) else { return Err(wanted.clone()) };
        if wanted.contains('*') {
            parts.push(ClientPart::Key(depth));
        }
        parts.push(ClientPart::Value(depth));
    }
    Ok(parts.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Entry, RequestBounds};

    fn rule(key: &str, value: &str, children: Vec<RuleSpec>) -> RuleSpec {
        let rate_limit = RateLimit { name: None, limit: Limit::from(5), window: Window::MINUTE, algorithm: Algorithm::default() };
        RuleSpec { key: key.into(), value: Some(value.into()), rate_limit: Some(rate_limit), children, ..RuleSpec::default() }
    }

    fn rules(specs: Vec<RuleSpec>) -> Rules {
        Rules::new(vec![DomainSpec { name: "d".into(), rules: specs }]).unwrap()
    }

    fn ask(entries: &[(&str, &str)]) -> Request {
        let entries = entries.iter().map(|(key, value)| Entry::new(*key, *value)).collect();
        let descriptor = Descriptor { entries, ..Descriptor::default() };
        Request::new("d".into(), vec![descriptor], 1, RequestBounds::default()).unwrap()
    }

    /// The action and client that the entries are counted on, as text.
    fn found(rules: &Rules, entries: &[(&str, &str)]) -> String {
        let request = ask(entries);
        let found = rules.find(&request);
        found.hits.first().map_or("nothing".into(), |hit| format!("{} {:?}", hit.counter.action, hit.counter.client))
    }

    #[test]
    fn exact_values_win_over_wildcards_and_wildcards_over_the_bare_key() {
        let rules = rules(vec![rule("k", "", vec![]), rule("k", "ab*", vec![]), rule("k", "a*", vec![]), rule("k", "abc", vec![])]);
        assert_eq!(found(&rules, &[("k", "abc")]), "k=abc []");
        assert_eq!(found(&rules, &[("k", "abd")]), "k=ab* [\"abd\"]");
        assert_eq!(found(&rules, &[("k", "ax")]), "k=a* [\"ax\"]");
        assert_eq!(found(&rules, &[("k", "x")]), "k [\"x\"]");
        assert_eq!(found(&rules, &[("k", "")]), "k [\"\"]");
        assert_eq!(found(&rules, &[("other", "x")]), "nothing");
        assert_eq!(found(&rules, &[]), "nothing");
    }

    #[test]
    fn there_is_no_way_back_and_a_limit_counts_at_the_last_entry_only() {
        let rules = rules(vec![rule("a", "1", vec![rule("b", "", vec![])]), rule("a", "", vec![rule("c", "", vec![])])]);
        assert_eq!(found(&rules, &[("a", "1"), ("b", "x")]), "a=1|b [\"x\"]");
        assert_eq!(found(&rules, &[("a", "1"), ("c", "x")]), "nothing");
        assert_eq!(found(&rules, &[("a", "2"), ("c", "x")]), "a|c [\"2\", \"x\"]");
        assert_eq!(found(&rules, &[("a", "1")]), "a=1 []");
        assert_eq!(found(&rules, &[("a", "1"), ("b", "x"), ("c", "y")]), "nothing");
    }

    #[test]
    fn a_wildcard_key_counts_each_key_apart() {
        let rules = rules(vec![rule("header-*", "", vec![]), rule("*", "x*", vec![])]);
        assert_eq!(found(&rules, &[("header-a", "1")]), "header-* [\"header-a\", \"1\"]");
        assert_eq!(found(&rules, &[("other", "xy")]), "*=x* [\"other\", \"xy\"]");
        assert_eq!(found(&rules, &[("other", "y")]), "nothing");
    }

    #[test]
    fn client_id_picks_the_entries_that_say_who_is_counted() {
        let picked = RuleSpec { client_id: Some(vec!["b".into(), "a".into()]), action: Some("act".into()), ..rule("b", "", vec![]) };
        let rules = rules(vec![rule("a", "1", vec![picked])]);
        assert_eq!(found(&rules, &[("a", "1"), ("b", "x")]), "act [\"x\", \"1\"]");
    }

    #[test]
    fn a_carried_limit_wins_over_the_rules_and_counts_apart() {
        let rules = rules(vec![rule("a", "", vec![])]);
        let mut descriptor = ask(&[("a", "x")]).descriptors()[0].clone();
        descriptor.limit = Some(LimitOverride::Limit { limit: Limit::from(0), window: Window::DAY });
        let request =
            |limit| Request::new("d".into(), vec![Descriptor { limit, ..descriptor.clone() }], 1, RequestBounds::default()).unwrap();
        let carried = request(descriptor.limit);
        let hit = rules.find(&carried).hits.remove(0);
        assert_eq!((hit.counter.action.as_str(), hit.limit, hit.counter.window), ("%limit|a", Limit::from(0), Window::DAY));
        let unknown = request(Some(LimitOverride::UnknownUnit(0)));
        assert_eq!(rules.find(&unknown).hits.remove(0).counter.action.as_str(), "a");
    }

    #[test]
    fn charges_count_when_denied_and_ordinary_hits_do_not() {
        let mut specs = vec![rule("unset", "", vec![]), rule("never", "", vec![])];
        specs[1].count_denied = Some(false);
        let rules = rules(specs);
        let counts = |key: &str, hits_addend: u32, own: Option<u64>| {
            let descriptor = Descriptor { hits_addend: own, ..ask(&[(key, "x")]).descriptors()[0].clone() };
            let request = Request::new("d".into(), vec![descriptor], hits_addend, RequestBounds::default()).unwrap();
            rules.find(&request).hits[0].count_denied
        };
        assert!(!counts("unset", 0, None) && !counts("unset", 1, None) && !counts("unset", 9, Some(0)));
        assert!(counts("unset", 2, None) && counts("unset", 0, Some(1)));
        assert!(!counts("never", 0, Some(250)));
    }

    #[test]
    fn contradictions_are_refused() {
        let new = |specs| Rules::new(vec![DomainSpec { name: "d".into(), rules: specs }]).map(|_| ()).unwrap_err();
        assert_eq!(new(vec![rule("k", "v", vec![]), rule("k", "v", vec![])]), RulesError::DuplicateRule { path: "k=v".into() });
        assert_eq!(new(vec![rule("k", "v*", vec![]), rule("k", "v*", vec![])]), RulesError::DuplicateRule { path: "k=v*".into() });
        assert_eq!(new(vec![rule("k", "", vec![rule("", "", vec![])])]), RulesError::EmptyKey { parent: "k".into() });
        let astray = RuleSpec { client_id: Some(vec!["x".into()]), ..rule("k", "", vec![]) };
        assert_eq!(new(vec![astray]), RulesError::UnknownClientKey { path: "k".into(), key: "x".into() });
        let twice = || DomainSpec { name: "d".into(), rules: vec![] };
        assert!(Rules::new(vec![twice(), twice()]).is_err());
    }
}
