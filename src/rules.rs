//! Rules: the limits at their places in the YAML tree, compiled once and then only read. [`Rules::find`] walks a
//! request's descriptors down the tree and gives the hits to count, in the reference server's matching order. It knows
//! neither YAML (`config` hands it [`DomainSpec`]s) nor stores; a reload swaps the whole set behind [`LiveRules`].

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hashbrown::HashMap;
use smallvec::SmallVec;

mod explain;
mod metadata;
mod rule;
mod tree;

use crate::descriptor::{Descriptor, LimitOverride, Request};
use crate::hit::{Action, Client, Counter, FailurePolicy, Hit, Kind};
use crate::limit::{Algorithm, Lease, Limit, Window};
use crate::metrics::Metrics;
pub use explain::{Explained, ExplainedLimit, Explanation, Live, Outcome};
pub use metadata::Metadata;
pub use rule::{Effect, Rule, RuleLimit};
pub use tree::Step;
use tree::Tree;

/// One domain as it was written: what `config`, or an embedding program, hands over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DomainSpec {
    pub name: String,
    pub rules: Vec<RuleSpec>,
    /// What a descriptor gets that no rule knows; nothing where it is empty.
    pub default: Vec<RateLimit>,
    /// Of the rules that don't say otherwise.
    pub on_store_failure: Option<FailurePolicy>,
    /// How limits are counted that requests bring along.
    pub override_algorithm: Algorithm,
}

/// One rule as it was written, with the rules below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleSpec {
    /// Never empty. A `*` stands for any characters, here and in `value`.
    pub key: String,
    /// None leaves the value open. Never empty.
    pub value: Option<String>,
    pub limits: Limits,
    /// Instead of the rule's own path. Rules of one action share a client's counter.
    pub action: Option<String>,
    /// The keys, on the rule's own path, whose values say who is counted; instead of all the values left open.
    pub client_id: Option<Vec<String>>,
    /// None: as the request's cost says. A charge (a descriptor's own hits_addend, or a cost above 1) counts, an ordinary
    /// hit does not.
    pub count_denied: Option<bool>,
    pub kind: Kind,
    /// All that this rule's wildcard takes is counted together, here and in the rules below.
    pub share_threshold: bool,
    /// The request's keys and values, at every level, stand in the labels of the rule's series.
    pub detailed_metric: bool,
    /// The same for this level, in the series of this rule and of those below.
    pub value_to_metric: bool,
    /// Goes to Envoy where the rule's descriptor is not over. A map.
    pub metadata: Option<Metadata>,
    /// None: as the domain says.
    pub on_store_failure: Option<FailurePolicy>,
    pub children: Vec<RuleSpec>,
}

/// What a rule does to a descriptor that lands on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Limits {
    /// Nothing; the place matches all the same.
    #[default]
    None,
    /// All of them must fit.
    All(Vec<RateLimit>),
    /// The descriptor passes. Limits of these names don't count in its request.
    Unlimited { replaces: Vec<String> },
    /// The whole request passes.
    Exempt,
}

/// A limit as a rule has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub name: Option<String>,
    pub limit: Limit,
    pub window: Window,
    pub algorithm: Algorithm,
    pub lease: Option<Lease>,
    /// The names of limits that don't count in a request that this one counts in.
    pub replaces: Vec<String>,
}

/// All rules, compiled. Immutable.
#[derive(Default)]
pub struct Rules {
    domains: HashMap<Box<str>, Domain>,
    rules: Vec<Rule>,
}

/// What a request is to be counted on.
#[derive(Default)]
pub struct Found<'a> {
    /// In the order of the descriptors.
    pub hits: SmallVec<[Hit<'a>; 2]>,
    /// For each hit the rule's limit that it is of; None where the descriptor brought its own.
    pub limits: SmallVec<[Option<&'a RuleLimit>; 2]>,
    /// One for each descriptor, in order.
    pub matches: SmallVec<[Match<'a>; 2]>,
}

/// What the rules say of one descriptor.
#[derive(Clone, Copy)]
pub enum Match<'a> {
    UnknownDomain,
    /// The walk ended before the last entry, and the domain has no default.
    NoRule,
    /// The last entry landed on a rule without a rate_limit.
    NoLimit,
    Rule(&'a Rule),
    /// An unlimited rule.
    Unlimited(&'a Rule),
    /// A rule all of whose limits are replaced by others of the request.
    Replaced(&'a Rule),
    /// This or another descriptor of the request exempts it.
    Exempt,
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
    /// The number of the rule for descriptors that no other one knows.
    default: Option<usize>,
    /// Some rule replaces others: only then is it asked which.
    replaces: bool,
    on_store_failure: Option<FailurePolicy>,
    override_algorithm: Algorithm,
}

impl RateLimit {
    /// Whether hits of one client and action add up under both.
    pub fn shares_a_counter_with(&self, other: &Self) -> bool {
        self.window == other.window && self.algorithm.as_str() == other.algorithm.as_str()
    }
}

impl RuleSpec {
    /// The value where the rule fixes one, or a wildcard. Reads an empty one as left open.
    fn value(&self) -> Option<&str> {
        self.value.as_deref().filter(|value| !value.is_empty())
    }

    /// A wildcard stands in its key or its value.
    pub fn is_wildcard(&self) -> bool {
        self.key.contains('*') || self.value().is_some_and(|value| value.contains('*'))
    }

    /// This wildcard takes all that `other`, on the same level, would take.
    pub fn covers(&self, other: &Self) -> bool {
        self.is_wildcard() && tree::covers((&self.key, self.value()), (&other.key, other.value()))
    }
}

impl Rules {
    /// Compiles the rules of all domains.
    ///
    /// # Errors
    /// The first contradiction: see [`RulesError`].
    pub fn new(specs: Vec<DomainSpec>) -> Result<Self, RulesError> {
        let mut all = Self { domains: HashMap::new(), rules: Vec::new() };
        for spec in specs {
            if spec.name.is_empty() {
                return Err(RulesError::EmptyDomain);
            }
            let domain = all.domain(&spec)?;
            if all.domains.insert(spec.name.as_str().into(), domain).is_some() {
                return Err(RulesError::DuplicateDomain(spec.name));
            }
        }
        Ok(all)
    }

    /// The same rules, counted in `metrics`.
    pub fn counted_in(mut self, metrics: &Metrics) -> Self {
        for rule in &mut self.rules {
            rule.counted_in(metrics);
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
        found.matches.extend(request.descriptors().iter().map(|descriptor| self.matched(domain, descriptor)));
        if found.matches.iter().any(|matched| matches!(matched, Match::Exempt)) {
            found.matches.fill(Match::Exempt);
            return found;
        }
        let replaced = if domain.replaces { found.replaced() } else { SmallVec::new() };
        for (index, descriptor) in request.descriptors().iter().enumerate() {
            let cost = request.cost(descriptor);
            // A charge, for something already spent, counts even when it is denied; an ordinary hit does not.
            let is_charge = descriptor.hits_addend.is_some_and(|hits| hits > 0) || cost.amount() > 1;
            let hit = |kind, counter, limit, count_denied: Option<bool>, on_store_failure, lease: Option<Lease>| {
                // Nor does a leased one, which Redis may not hear of.
                let count_denied = count_denied.unwrap_or(is_charge && lease.is_none());
                Hit { descriptor: index, kind, counter, limit, cost, count_denied, on_store_failure, lease }
            };
            match (found.matches[index], carried_limit(descriptor)) {
                (Match::Override, Some((limit, window))) => {
                    let counter = override_counter(domain, descriptor, window);
                    found.hits.push(hit(Kind::Enforce, counter, limit, None, domain.on_store_failure, None));
                    found.limits.push(None);
                }
                (Match::Rule(rule), _) => {
                    let before = found.hits.len();
                    for limit in rule.limits().iter().filter(|limit| !limit.is_one_of(&replaced)) {
                        let counter = rule.counter(descriptor, limit);
                        let (count_denied, policy) = (rule.count_denied(), rule.on_store_failure());
                        found.hits.push(hit(rule.kind(), counter, limit.limit, count_denied, policy, limit.lease));
                        found.limits.push(Some(limit));
                    }
                    if found.hits.len() == before {
                        found.matches[index] = Match::Replaced(rule);
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The rules that do something, in the order in which they were written; a domain's default before its others.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    pub fn has_domain(&self, name: &str) -> bool {
        self.domains.contains_key(name)
    }

    /// How many domains, and how many rules that do something.
    pub fn counts(&self) -> (usize, usize) {
        (self.domains.len(), self.rules.len())
    }

    fn matched<'a>(&'a self, domain: &'a Domain, descriptor: &Descriptor) -> Match<'a> {
        if carried_limit(descriptor).is_some() {
            return Match::Override;
        }
        let rule = match domain.tree.walk(&descriptor.entries) {
            Some(node) => node.rule,
            // A descriptor without entries is nobody's, not even the default's.
            None if descriptor.entries.is_empty() => return Match::NoRule,
            None if domain.default.is_none() => return Match::NoRule,
            None => domain.default,
        };
        let Some(rule) = rule.and_then(|rule| self.rules.get(rule)) else { return Match::NoLimit };
        match rule.effect() {
            Effect::Limits(_) => Match::Rule(rule),
            Effect::Unlimited { .. } => Match::Unlimited(rule),
            Effect::Exempt => Match::Exempt,
        }
    }

    fn domain(&mut self, spec: &DomainSpec) -> Result<Domain, RulesError> {
        let (name, policy) = (Arc::from(spec.name.as_str()), spec.on_store_failure);
        let mut replaces = false;
        let mut add = |rule: Rule| {
            replaces |= rule.effect().replaces().next().is_some();
            self.rules.push(rule);
            self.rules.len() - 1
        };
        let default = Rule::default_of(&name, &spec.default, policy).map(&mut add);
        let tree = Tree::build(&spec.rules, &mut |path| {
            let unknown = |key| RulesError::UnknownClientKey { path: action_of(path).to_string(), key };
            Ok(Rule::new(&name, path, policy).map_err(unknown)?.map(&mut add))
        })?;
        Ok(Domain { name, tree, default, replaces, on_store_failure: policy, override_algorithm: spec.override_algorithm })
    }
}

impl<'a> Found<'a> {
    /// The names of the limits that the matched rules replace.
    fn replaced(&self) -> SmallVec<[&'a str; 4]> {
        let rules = self.matches.iter().filter_map(|matched| match matched {
            Match::Rule(rule) | Match::Unlimited(rule) => Some(*rule),
            _ => None,
        });
        rules.flat_map(|rule| rule.effect().replaces()).collect()
    }
}

impl RuleLimit {
    fn is_one_of(&self, names: &[&str]) -> bool {
        !names.is_empty() && self.name.as_deref().is_some_and(|name| names.contains(&name))
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

/// A path as an action, from the top down.
fn action_of(path: &[&RuleSpec]) -> Action<'static> {
    Action::of_path(path.iter().map(|spec| (spec.key.as_str(), spec.value())))
}

fn carried_limit(descriptor: &Descriptor) -> Option<(Limit, Window)> {
    match descriptor.limit {
        Some(LimitOverride::Limit { limit, window }) => Some((limit, window)),
        Some(LimitOverride::NoWindow { .. }) | None => None,
    }
}

fn override_counter<'a>(domain: &'a Domain, descriptor: &'a Descriptor, window: Window) -> Counter<'a> {
    Counter {
        domain: &domain.name,
        client: descriptor.entries.iter().map(|entry| entry.value.as_str()).collect::<Client<'_>>(),
        action: Action::of_override(descriptor.entries.iter().map(|entry| entry.key.as_str())),
        algorithm: domain.override_algorithm,
        window,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Entry, RequestBounds};

    fn rule(key: &str, value: &str, children: Vec<RuleSpec>) -> RuleSpec {
        RuleSpec { key: key.into(), value: Some(value.into()), limits: Limits::All(vec![limit("", &[])]), children, ..RuleSpec::default() }
    }

    /// A limit of 5 a minute.
    fn limit(name: &str, replaces: &[&str]) -> RateLimit {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        let replaces = replaces.iter().map(|name| (*name).to_owned()).collect();
        RateLimit { name, limit: Limit::from(5), window: Window::MINUTE, algorithm: Algorithm::default(), lease: None, replaces }
    }

    fn rules(specs: Vec<RuleSpec>) -> Rules {
        Rules::new(vec![DomainSpec { name: "d".into(), rules: specs, ..DomainSpec::default() }]).unwrap()
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
        let unknown = request(Some(LimitOverride::NoWindow { unit: 0, multiplier: 1 }));
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

    /// For each descriptor what it matches, and how many hits it makes.
    fn matches(rules: &Rules, descriptors: &[&[(&str, &str)]]) -> Vec<String> {
        let descriptors = descriptors.iter().map(|entries| ask(entries).descriptors()[0].clone()).collect();
        let request = Request::new("d".into(), descriptors, 1, RequestBounds::default()).unwrap();
        let found = rules.find(&request);
        assert_eq!((found.hits.len(), found.matches.len()), (found.limits.len(), request.descriptors().len()));
        let told = |(index, matched): (usize, &Match<'_>)| {
            let hits = found.hits.iter().filter(|hit| hit.descriptor == index).count();
            let matched = match matched {
                Match::Rule(rule) => format!("rule {}", rule.path()),
                Match::Unlimited(_) => "unlimited".into(),
                Match::Replaced(_) => "replaced".into(),
                Match::Exempt => "exempt".into(),
                Match::NoRule | Match::UnknownDomain => "no rule".into(),
                Match::NoLimit => "no limit".into(),
                Match::Override => "override".into(),
            };
            format!("{matched}, {hits}")
        };
        found.matches.iter().enumerate().map(told).collect()
    }

    fn with(key: &str, limits: Limits) -> RuleSpec {
        RuleSpec { limits, ..rule(key, "", vec![]) }
    }

    #[test]
    fn a_list_of_limits_is_a_hit_each() {
        let rules = rules(vec![with("k", Limits::All(vec![limit("a", &[]), limit("b", &[])])), with("none", Limits::None)]);
        assert_eq!(matches(&rules, &[&[("k", "x")], &[("none", "x")], &[]]), ["rule k, 2", "no limit, 0", "no rule, 0"]);
    }

    #[test]
    fn an_exempt_descriptor_exempts_the_whole_request() {
        let rules = rules(vec![with("k", Limits::All(vec![limit("", &[])])), with("ip", Limits::Exempt)]);
        assert_eq!(matches(&rules, &[&[("k", "x")], &[("ip", "y")]]), ["exempt, 0", "exempt, 0"]);
        assert_eq!(matches(&rules, &[&[("k", "x")], &[("ip", "y"), ("k", "x")]]), ["rule k, 1", "no rule, 0"]);
    }

    #[test]
    fn an_unlimited_descriptor_passes_alone() {
        let rules = rules(vec![with("k", Limits::All(vec![limit("", &[])])), with("free", Limits::Unlimited { replaces: vec![] })]);
        assert_eq!(matches(&rules, &[&[("k", "x")], &[("free", "y")]]), ["rule k, 1", "unlimited, 0"]);
    }

    #[test]
    fn limits_are_replaced_by_name_in_any_order_even_by_those_that_are_replaced_themselves() {
        let rules = rules(vec![
            with("a", Limits::All(vec![limit("a", &["b"])])),
            with("b", Limits::All(vec![limit("b", &["a"]), limit("kept", &[])])),
            with("c", Limits::All(vec![limit("c", &[])])),
            with("free", Limits::Unlimited { replaces: vec!["c".into()] }),
        ]);
        assert_eq!(matches(&rules, &[&[("a", "x")], &[("b", "x")]]), ["replaced, 0", "rule b, 1"]);
        assert_eq!(matches(&rules, &[&[("c", "x")], &[("free", "x")]]), ["replaced, 0", "unlimited, 0"]);
        assert_eq!(matches(&rules, &[&[("c", "x")], &[("a", "x")]]), ["rule c, 1", "rule a, 1"]);
    }

    #[test]
    fn the_default_takes_what_no_rule_does_and_counts_by_all_entries() {
        let spec = DomainSpec {
            name: "d".into(),
            rules: vec![with("none", Limits::None), rule("k", "", vec![])],
            default: vec![limit("", &[])],
            on_store_failure: Some(FailurePolicy::Deny),
            ..DomainSpec::default()
        };
        let rules = Rules::new(vec![spec]).unwrap();
        let asked: &[&[(&str, &str)]] = &[&[("x", "1"), ("y", "2")], &[("none", "1")], &[("k", "1")], &[]];
        assert_eq!(matches(&rules, asked), ["rule default, 1", "no limit, 0", "rule k, 1", "no rule, 0"]);
        assert_eq!(found(&rules, &[("x", "1"), ("y", "2")]), "x|y [\"1\", \"2\"]");
        assert_eq!(rules.find(&ask(&[("k", "1")])).hits[0].on_store_failure, Some(FailurePolicy::Deny));
    }

    #[test]
    fn what_a_wildcard_shares_is_no_part_of_the_client_also_where_the_limit_sits_deeper() {
        let shared = RuleSpec { share_threshold: true, ..rule("path", "/a/*", vec![rule("client", "", vec![])]) };
        let shared_key = RuleSpec { share_threshold: true, ..rule("header-*", "", vec![]) };
        let rules = rules(vec![shared, shared_key]);
        assert_eq!(found(&rules, &[("path", "/a/1")]), "path=/a/* []");
        assert_eq!(found(&rules, &[("path", "/a/*")]), "path=/a/* []");
        assert_eq!(found(&rules, &[("path", "/a/2"), ("client", "x")]), "path=/a/*|client [\"x\"]");
        assert_eq!(found(&rules, &[("header-x", "1")]), "header-* []");
    }

    #[test]
    fn series_carry_the_requests_values_where_a_rule_asks_for_them() {
        let by_value = |detailed_metric, value_to_metric, rule: RuleSpec| RuleSpec { detailed_metric, value_to_metric, ..rule };
        let metrics = Metrics::new().unwrap();
        let rules = rules(vec![
            by_value(false, true, rule("plan", "", vec![rule("client", "", vec![])])),
            rule("path", "/*", vec![by_value(true, false, rule("ip", "", vec![]))]),
        ])
        .counted_in(&metrics);
        for entries in [[("plan", "gold"), ("client", "x")], [("path", "/a"), ("ip", "")], [("path", "/a"), ("ip", "")]] {
            let request = ask(&entries);
            let Match::Rule(rule) = rules.find(&request).matches[0] else { panic!() };
            rule.count(&request.descriptors()[0], &crate::metrics::HitCounts { total: 1, ..Default::default() });
        }
        let page = metrics.render();
        for line in [
            "total_hits{domain=\"d\",key1=\"plan_gold\",key2=\"client\",rule=\"plan=gold|client\"} 1",
            "total_hits{domain=\"d\",key1=\"path_/a\",key2=\"ip_\",rule=\"path=/a|ip=\"} 2",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
        assert!(!page.contains("key1=\"plan\",key2"), "{page}");
    }

    #[test]
    fn contradictions_are_refused() {
        let new = |specs| Rules::new(vec![DomainSpec { name: "d".into(), rules: specs, ..DomainSpec::default() }]).map(|_| ()).unwrap_err();
        assert_eq!(new(vec![rule("k", "v", vec![]), rule("k", "v", vec![])]), RulesError::DuplicateRule { path: "k=v".into() });
        assert_eq!(new(vec![rule("k", "v*", vec![]), rule("k", "v*", vec![])]), RulesError::DuplicateRule { path: "k=v*".into() });
        assert_eq!(new(vec![rule("k", "", vec![rule("", "", vec![])])]), RulesError::EmptyKey { parent: "k".into() });
        let astray = RuleSpec { client_id: Some(vec!["x".into()]), ..rule("k", "", vec![]) };
        assert_eq!(new(vec![astray]), RulesError::UnknownClientKey { path: "k".into(), key: "x".into() });
        let twice = || DomainSpec { name: "d".into(), ..DomainSpec::default() };
        assert!(Rules::new(vec![twice(), twice()]).is_err());
    }
}
