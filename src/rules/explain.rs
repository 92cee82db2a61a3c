//! The walk as a value: for each descriptor of a request the way it took down the tree, what it landed on, and on which
//! counters it counts; where nothing matched, the rules that come nearest. Display is what `ratelimitd explain` and the
//! admin port print. It knows no store: whoever has one fills in keys and live use.

use std::fmt;
use std::time::Duration;

use strsim::levenshtein;

use super::tree::Step;
use super::{Effect, Match, Rule, RuleLimit, Rules};
use crate::descriptor::{Descriptor, Entry, Request};
use crate::hit::{Counter, FailurePolicy, Hit, Kind};
use crate::limit::{Algorithm, Lease, Limit};

/// What the rules do to a request, and why.
pub struct Explanation<'a> {
    pub domain: &'a str,
    pub descriptors: Vec<Explained<'a>>,
}

/// What the rules do to one descriptor, and why.
pub struct Explained<'a> {
    pub entries: &'a [Entry],
    /// One for each entry, up to the one that the walk stops at.
    pub steps: Vec<Step>,
    pub outcome: Outcome<'a>,
    /// On what it counts.
    pub limits: Vec<ExplainedLimit<'a>>,
}

pub enum Outcome<'a> {
    /// No rules file names the domain; those that are named, the nearest first.
    UnknownDomain {
        nearest: Vec<&'a str>,
    },
    /// No rule takes its last entry; those that come nearest, the nearest first.
    NoRule {
        nearest: Vec<&'a str>,
    },
    /// It lands on a rule without a rate_limit.
    NoLimit,
    Rule(&'a Rule),
    Unlimited(&'a Rule),
    /// Another descriptor's rule replaces all its limits.
    Replaced(&'a Rule),
    /// Its rule exempts the whole request.
    Exempt,
    /// Another descriptor's rule exempts the whole request.
    ExemptByAnother,
    /// It brought its own limit.
    Override,
}

/// One counter that a descriptor counts on.
pub struct ExplainedLimit<'a> {
    pub limit: Limit,
    pub name: Option<&'a str>,
    pub kind: Kind,
    pub counter: Counter<'a>,
    pub lease: Option<Lease>,
    /// Its name in the store, where it was filled in.
    pub key: Option<String>,
    /// What it holds, where it was filled in.
    pub live: Option<Live>,
}

/// What a counter holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub used: u64,
    pub remaining: u64,
    /// Until one more hit fits, where none does; else as a tally has it.
    pub reset: Duration,
}

/// Rules, or domains, that are named where nothing matched.
const NEAREST_MAX: usize = 3;

/// Of what a step asked, so many in vain are shown.
const ASKED_MAX: usize = 20;

/// What a level that one path has and the other lacks counts, in letters, when paths are compared.
const MISSING_LEVEL: usize = 8;

impl Rules {
    /// What they do to a request, and why. Nothing is counted.
    pub fn explain<'a>(&'a self, request: &'a Request) -> Explanation<'a> {
        let found = self.find(request);
        let mut hits = found.hits.into_iter().zip(found.limits).peekable();
        let descriptors = request.descriptors().iter().zip(&found.matches).enumerate().map(|(index, (descriptor, matched))| {
            let mut limits = Vec::new();
            while let Some((hit, limit)) = hits.next_if(|(hit, _)| hit.descriptor == index) {
                limits.push(ExplainedLimit::new(hit, limit));
            }
            let (steps, outcome) = self.outcome(request.domain(), descriptor, *matched);
            Explained { entries: &descriptor.entries, steps, outcome, limits }
        });
        Explanation { domain: request.domain(), descriptors: descriptors.collect() }
    }

    fn outcome<'a>(&'a self, domain: &str, descriptor: &Descriptor, matched: Match<'a>) -> (Vec<Step>, Outcome<'a>) {
        let Some(domain) = self.domains.get(domain) else {
            let names = self.domains.keys().map(|name| (levenshtein(domain, name), &**name));
            return (Vec::new(), Outcome::UnknownDomain { nearest: nearest(names) });
        };
        let steps = domain.tree.trace(&descriptor.entries);
        let landed = domain.tree.walk(&descriptor.entries).and_then(|node| self.rules.get(node.rule?));
        let outcome = match matched {
            Match::UnknownDomain | Match::NoRule => {
                let mine = self.rules.iter().filter(|rule| rule.domain() == &*domain.name && rule.action().is_some());
                let paths = mine.map(|rule| (distance(rule, &descriptor.entries), &**rule.path()));
                Outcome::NoRule { nearest: nearest(paths) }
            }
            Match::NoLimit => Outcome::NoLimit,
            Match::Rule(rule) => Outcome::Rule(rule),
            Match::Unlimited(rule) => Outcome::Unlimited(rule),
            Match::Replaced(rule) => Outcome::Replaced(rule),
            Match::Exempt if landed.is_some_and(|rule| matches!(rule.effect(), Effect::Exempt)) => Outcome::Exempt,
            Match::Exempt => Outcome::ExemptByAnother,
            Match::Override => Outcome::Override,
        };
        (steps, outcome)
    }
}

impl<'a> Explanation<'a> {
    /// All counters, to fill in what a store knows of them.
    pub fn limits_mut(&mut self) -> impl Iterator<Item = &mut ExplainedLimit<'a>> {
        self.descriptors.iter_mut().flat_map(|descriptor| &mut descriptor.limits)
    }
}

impl<'a> ExplainedLimit<'a> {
    fn new(hit: Hit<'a>, limit: Option<&'a RuleLimit>) -> Self {
        let name = limit.and_then(|limit| limit.name.as_deref());
        Self { limit: hit.limit, name, kind: hit.kind, counter: hit.counter, lease: hit.lease, key: None, live: None }
    }
}

impl Outcome<'_> {
    /// The rule that the descriptor landed on, where it does something to the descriptor alone.
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Rule(rule) | Self::Unlimited(rule) | Self::Replaced(rule) => Some(rule),
            _ => None,
        }
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "domain {}", self.domain)?;
        self.descriptors.iter().try_for_each(|descriptor| write!(f, "\n{descriptor}"))
    }
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.entries.iter().map(shown).collect();
        writeln!(f, "descriptor {}", if entries.is_empty() { "without entries".to_owned() } else { entries.join(", ") })?;
        for ((number, entry), step) in self.entries.iter().enumerate().zip(&self.steps) {
            writeln!(f, "  {}. {}", number + 1, shown(entry))?;
            write_step(f, step)?;
        }
        writeln!(f, "  {}", self.outcome)?;
        let all = self.outcome.rule().map_or(0, |rule| rule.limits().len());
        if !self.limits.is_empty() && self.limits.len() < all {
            writeln!(f, "  {} of its {all} limits replaced by another descriptor's rule", all - self.limits.len())?;
        }
        self.limits.iter().try_for_each(|limit| limit.fmt(f))
    }
}

fn write_step(f: &mut fmt::Formatter<'_>, step: &Step) -> fmt::Result {
    let in_vain = step.asked.len() - usize::from(step.taken);
    for (number, (way, text)) in step.asked.iter().enumerate() {
        let says = if number < in_vain { "no" } else { "yes" };
        if says == "yes" || number < ASKED_MAX {
            writeln!(f, "     {way:<9} {text}: {says}")?;
        } else if number == ASKED_MAX {
            writeln!(f, "     ... and {} more: no", in_vain - ASKED_MAX)?;
        }
    }
    if step.taken { Ok(()) } else { writeln!(f, "     the walk stops here") }
}

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        match self {
            Self::UnknownDomain { nearest } => write!(f, "passes: no rules file names this domain; nearest: {}", list(nearest)),
            Self::NoRule { nearest } => write!(f, "passes: no rule takes it; nearest: {}", list(nearest)),
            Self::NoLimit => f.write_str("passes: it lands on a rule without a rate_limit"),
            Self::Rule(rule) => write!(f, "rule {}{}", rule.path(), policy(rule.on_store_failure())),
            Self::Unlimited(rule) => write!(f, "passes: rule {} is unlimited", rule.path()),
            Self::Replaced(rule) => write!(f, "passes: another descriptor's rule replaces rule {}", rule.path()),
            Self::Exempt => f.write_str("exempt: the whole request passes, and nothing is counted"),
            Self::ExemptByAnother => f.write_str("passes: another descriptor of the request is exempt"),
            Self::Override => f.write_str("brings its own limit"),
        }
    }
}

impl fmt::Display for ExplainedLimit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = self.counter.algorithm;
        let shape = match algorithm {
            Algorithm::SlidingWindowLog { log_entries } => format!(", {} entries", log_entries.get()),
            Algorithm::TokenBucket { .. } => format!(", burst {}", algorithm.capacity(self.limit, self.counter.window)),
            Algorithm::FixedWindow => String::new(),
        };
        let name = self.name.map_or_else(String::new, |name| format!(" \"{name}\""));
        let kind = match self.kind {
            Kind::Enforce => "",
            Kind::Shadow => ", in shadow mode",
            Kind::Quota => ", a quota",
            Kind::QuotaShadow => ", a quota in shadow mode",
        };
        writeln!(f, "  limit{name} {} per {}{kind}", self.limit.get(), self.counter.window)?;
        writeln!(f, "     algorithm {}{shape}", algorithm.as_str())?;
        if let Some(lease) = self.lease {
            writeln!(f, "     lease     {} hits at most", lease.get())?;
        }
        writeln!(f, "     action    {}", self.counter.action)?;
        writeln!(f, "     client    {:?}", self.counter.client)?;
        if let Some(key) = &self.key {
            writeln!(f, "     key       {key}")?;
        }
        match &self.live {
            Some(Live { used, remaining, reset }) => {
                writeln!(f, "     now       {used} used, {remaining} left, reset in {:.3} s", reset.as_secs_f64())
            }
            None => Ok(()),
        }
    }
}

fn policy(policy: Option<FailurePolicy>) -> String {
    policy.map_or_else(String::new, |policy| format!(", while the store fails: {}", policy.as_str()))
}

fn shown(entry: &Entry) -> String {
    format!("{}={}", entry.key, entry.value)
}

fn nearest<'a>(names: impl Iterator<Item = (usize, &'a str)>) -> Vec<&'a str> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.into_iter().take(NEAREST_MAX).map(|(_, name)| name).collect()
}

/// How far a descriptor is from a rule's place, in letters: keys, and values where the rule fixes them.
fn distance(rule: &Rule, entries: &[Entry]) -> usize {
    let level = |((key, value), entry): ((&str, Option<&str>), &Entry)| {
        levenshtein(key, &entry.key) + value.map_or(0, |value| levenshtein(value, &entry.value))
    };
    let missing = rule.depth().abs_diff(entries.len()) * MISSING_LEVEL;
    rule.levels().zip(entries).map(level).sum::<usize>() + missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::RequestBounds;
    use crate::hit::Action;
    use crate::limit::{Burst, Window};
    use crate::rules::{DomainSpec, Limits, RateLimit, RuleSpec};

    fn rule(key: &str, value: &str, limits: Limits, children: Vec<RuleSpec>) -> RuleSpec {
        RuleSpec { key: key.into(), value: Some(value.into()), limits, children, ..RuleSpec::default() }
    }

    fn five() -> Limits {
        let (limit, window) = (Limit::from(5), Window::MINUTE);
        Limits::All(vec![RateLimit {
            name: Some("five".into()),
            limit,
            window,
            algorithm: Algorithm::default(),
            lease: None,
            replaces: vec![],
        }])
    }

    fn explain(descriptors: &[&[(&str, &str)]]) -> String {
        let specs = vec![
            rule("path", "/a", Limits::None, vec![rule("client", "", five(), vec![])]),
            rule("path", "/b*", five(), vec![]),
            rule("path", "", five(), vec![]),
            rule("ip", "::1", Limits::Exempt, vec![]),
        ];
        let rules = Rules::new(vec![DomainSpec { name: "d".into(), rules: specs, ..DomainSpec::default() }]).unwrap();
        let entries = |entries: &&[(&str, &str)]| entries.iter().map(|(key, value)| Entry::new(*key, *value)).collect();
        let descriptors = descriptors.iter().map(|of| Descriptor { entries: entries(of), ..Descriptor::default() }).collect();
        let request = Request::new("d".into(), descriptors, 1, RequestBounds::default()).unwrap();
        rules.explain(&request).to_string()
    }

    #[test]
    fn the_way_and_the_counter_are_told() {
        let told = explain(&[&[("path", "/a"), ("client", "x")]]);
        let expected = "domain d\n\ndescriptor path=/a, client=x\n  1. path=/a\n     exact     path=/a: yes\n  2. client=x\n     \
                        exact     client=x: no\n     key alone client: yes\n  rule path=/a|client\n  limit \"five\" 5 per 1m\n     \
                        algorithm sliding_window_log, 128 entries\n     action    path=/a|client\n     client    [\"x\"]\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn each_algorithm_is_told_with_what_shapes_it() {
        let told = |algorithm| {
            let counter =
                Counter { domain: "d", client: Default::default(), action: Action::named("a"), algorithm, window: Window::MINUTE };
            let limit =
                ExplainedLimit { limit: Limit::from(5), name: None, kind: Kind::Enforce, counter, lease: None, key: None, live: None };
            limit.to_string().lines().nth(1).unwrap_or_default().to_owned()
        };
        let bucket = |burst| Algorithm::TokenBucket { burst };
        assert_eq!(told(Algorithm::default()), "     algorithm sliding_window_log, 128 entries");
        assert_eq!(told(bucket(Burst::new(9).ok())), "     algorithm token_bucket, burst 9");
        assert_eq!(told(bucket(None)), "     algorithm token_bucket, burst 5");
        assert_eq!(told(Algorithm::FixedWindow), "     algorithm fixed_window");
    }

    #[test]
    fn where_the_walk_stops_the_nearest_rules_are_named() {
        let told = explain(&[&[("path", "/a"), ("user", "x")]]);
        let end = "  2. user=x\n     exact     user=x: no\n     key alone user: no\n     the walk stops here\n  passes: no rule takes it; \
                   nearest: path=/a|client, path, path=/b*\n";
        assert!(told.ends_with(end), "{told}");
        assert!(explain(&[&[]]).contains("descriptor without entries\n  passes: no rule takes it"));
    }

    #[test]
    fn wildcards_are_told_in_the_order_in_which_they_are_asked() {
        let told = explain(&[&[("path", "/c")]]);
        assert!(told.contains("exact     path=/c: no\n     wildcard  path=/b*: no\n     key alone path: yes\n"), "{told}");
        assert!(explain(&[&[("path", "/a")]]).contains("passes: it lands on a rule without a rate_limit"));
    }

    #[test]
    fn an_exempt_descriptor_says_so_and_so_do_the_others() {
        let told = explain(&[&[("path", "/c")], &[("ip", "::1")]]);
        assert!(told.contains("passes: another descriptor of the request is exempt"), "{told}");
        assert!(told.ends_with("exempt: the whole request passes, and nothing is counted\n"), "{told}");
    }
}
